"""classify: real exceptions of the installed libraries, and what each of them means."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pydantic_ai.exceptions as ai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk import errors
from steer_llm_sdk.errors import RETRYABLE, CircuitOpen, ErrorCategory, ProviderError, ToolExecutionError
from steer_llm_sdk.reliability import ErrorClassifier
from steer_llm_sdk.reliability.classify import classify

C = ErrorCategory
URL = "http://127.0.0.1/v1"
OLD, NEW = httpx.Request("POST", URL), httpx2.Request("POST", URL)


def response(status: int, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, request=NEW, headers={k.replace("_", "-"): v for k, v in headers.items()})


def of_httpx(library: Any, request: Any) -> Iterator[tuple[BaseException, ErrorCategory]]:
    for name, category in {
        "ReadTimeout": C.TIMEOUT,
        "WriteTimeout": C.TIMEOUT,
        "ConnectTimeout": C.TIMEOUT,
        "PoolTimeout": C.TIMEOUT,
        "ConnectError": C.NETWORK,
        "ReadError": C.NETWORK,
        "WriteError": C.NETWORK,
        "CloseError": C.NETWORK,
        "ProxyError": C.NETWORK,
        "RemoteProtocolError": C.NETWORK,
        "LocalProtocolError": C.VALIDATION,
        "UnsupportedProtocol": C.VALIDATION,
        "DecodingError": C.BAD_RESPONSE,
        "TooManyRedirects": C.UNKNOWN,
    }.items():
        yield getattr(library, name)("x", request=request), category
        yield getattr(library, name)("x"), category
    for status, category in {400: C.VALIDATION, 401: C.AUTHENTICATION, 429: C.RATE_LIMIT, 502: C.SERVER_ERROR}.items():
        yield (
            library.HTTPStatusError("x", request=request, response=library.Response(status, request=request)),
            category,
        )


STATUSES = {
    400: C.VALIDATION,
    401: C.AUTHENTICATION,
    402: C.QUOTA,
    403: C.PERMISSION_DENIED,
    404: C.NOT_FOUND,
    408: C.TIMEOUT,
    409: C.CONFLICT,
    413: C.VALIDATION,
    422: C.VALIDATION,
    425: C.SERVER_ERROR,
    429: C.RATE_LIMIT,
    500: C.SERVER_ERROR,
    502: C.SERVER_ERROR,
    503: C.SERVER_ERROR,
    504: C.SERVER_ERROR,
    529: C.SERVER_ERROR,
}


def of_sdk(sdk: Any) -> Iterator[tuple[BaseException, ErrorCategory]]:
    for status, category in STATUSES.items():
        yield sdk.APIStatusError("x", response=response(status), body=None), category
    for name, status in {
        "BadRequestError": 400,
        "AuthenticationError": 401,
        "PermissionDeniedError": 403,
        "NotFoundError": 404,
        "ConflictError": 409,
        "UnprocessableEntityError": 422,
        "RateLimitError": 429,
        "InternalServerError": 500,
    }.items():
        yield getattr(sdk, name)("x", response=response(status), body=None), STATUSES[status]
    yield sdk.APIConnectionError(request=NEW), C.NETWORK
    yield sdk.APITimeoutError(request=NEW), C.TIMEOUT
    yield sdk.APIResponseValidationError(response=response(200), body=None), C.BAD_RESPONSE


def of_openai() -> Iterator[tuple[BaseException, ErrorCategory]]:
    yield openai.RateLimitError("x", response=response(429), body={"code": "insufficient_quota"}), C.QUOTA
    yield openai.RateLimitError("x", response=response(429), body={"code": "rate_limit_exceeded"}), C.RATE_LIMIT
    yield openai.ContentFilterFinishReasonError(), C.CONTENT_FILTER
    yield openai.APIError("in a stream", NEW, body={"type": "server_error"}), C.SERVER_ERROR
    yield openai.APIError("in a stream", NEW, body={"code": "rate_limit_exceeded"}), C.RATE_LIMIT
    yield openai.APIError("in a stream", NEW, body={"code": "insufficient_quota"}), C.QUOTA
    yield openai.APIError("in a stream", NEW, body={"type": "invalid_request_error"}), C.VALIDATION
    yield openai.APIError("in a stream", NEW, body=None), C.BAD_RESPONSE
    yield openai.OpenAIError("no key"), C.UNKNOWN


def of_anthropic() -> Iterator[tuple[BaseException, ErrorCategory]]:
    yield anthropic.OverloadedError("x", response=response(529), body=None), C.SERVER_ERROR
    yield anthropic.ServiceUnavailableError("x", response=response(503), body=None), C.SERVER_ERROR
    for kind, category in {
        "overloaded_error": C.SERVER_ERROR,
        "api_error": C.SERVER_ERROR,
        "rate_limit_error": C.RATE_LIMIT,
        "timeout_error": C.TIMEOUT,
        "billing_error": C.QUOTA,
        "invalid_request_error": C.VALIDATION,
        "authentication_error": C.AUTHENTICATION,
        "permission_error": C.PERMISSION_DENIED,
        "not_found_error": C.NOT_FOUND,
    }.items():
        body = {"type": "error", "error": {"type": kind, "message": "in a stream"}}
        yield anthropic.APIStatusError("x", response=response(200), body=body), category
    yield anthropic.APIStatusError("x", response=response(200), body=None), C.BAD_RESPONSE


def of_pydantic_ai() -> Iterator[tuple[BaseException, ErrorCategory]]:
    for status, category in STATUSES.items():
        yield ai.ModelHTTPError(status, "m"), category
    for kind, category in (
        (ai.ModelRateLimitError, C.RATE_LIMIT),
        (ai.ModelQuotaExceededError, C.QUOTA),
        (ai.ModelUnavailableError, C.SERVER_ERROR),
        (ai.ModelOverloadedError, C.SERVER_ERROR),
        (ai.ModelServerError, C.SERVER_ERROR),
        (ai.ModelTimeoutError, C.TIMEOUT),
        (ai.ModelConnectionError, C.NETWORK),
        (ai.ModelAuthenticationError, C.AUTHENTICATION),
        (ai.ModelNotFoundError, C.NOT_FOUND),
        (ai.ModelRequestRejectedError, C.VALIDATION),
        (ai.ModelContextWindowExceededError, C.VALIDATION),
        (ai.ModelAPIError, C.BAD_RESPONSE),
    ):
        yield kind("m", "x"), category
    yield ai.ModelRequestTimeout("m", 3.0), C.TIMEOUT
    yield ai.ModelHTTPError.for_category(ai.ModelQuotaExceededError, status_code=429, model_name="m"), C.QUOTA
    yield ai.ModelHTTPError.for_category(ai.ModelOverloadedError, status_code=529, model_name="m"), C.SERVER_ERROR
    yield ai.UnexpectedModelBehavior("x"), C.BAD_RESPONSE
    yield ai.ContentFilterError("x"), C.CONTENT_FILTER
    yield ai.OutputTokenLimitExceeded("x"), C.VALIDATION
    yield ai.UsageLimitExceeded("x"), C.UNKNOWN
    yield ai.UserError("x"), C.UNKNOWN


def of_the_standard_library() -> Iterator[tuple[BaseException, ErrorCategory]]:
    yield TimeoutError(), C.TIMEOUT
    yield OSError(errno.ETIMEDOUT, "x"), C.TIMEOUT
    for kind in (ConnectionResetError, ConnectionRefusedError, ConnectionAbortedError, BrokenPipeError):
        yield kind(), C.NETWORK
    yield OSError(errno.ECONNRESET, "x"), C.NETWORK
    for number in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN):
        yield OSError(number, "x"), C.NETWORK
    yield socket.gaierror(socket.EAI_NONAME, "x"), C.NETWORK
    yield ssl.SSLError("x"), C.NETWORK
    yield ssl.SSLEOFError("x"), C.NETWORK
    yield ssl.SSLCertVerificationError("x"), C.VALIDATION
    yield asyncio.IncompleteReadError(b"", 5), C.NETWORK
    yield asyncio.InvalidStateError(), C.UNKNOWN
    yield asyncio.CancelledError(), C.UNKNOWN
    yield ValueError("x"), C.VALIDATION
    yield json.JSONDecodeError("x", "", 0), C.VALIDATION
    yield TypeError("x"), C.VALIDATION
    yield FileNotFoundError(), C.UNKNOWN
    yield OSError(errno.ENOSPC, "x"), C.UNKNOWN
    for unknown in (KeyError("x"), RuntimeError("429 rate limit timeout"), Exception(), KeyboardInterrupt()):
        yield unknown, C.UNKNOWN


def ours() -> Iterator[tuple[BaseException, ErrorCategory]]:
    for status, category in STATUSES.items():
        yield ProviderError("x", "p", status_code=status), category
    yield ProviderError("x", "p"), C.UNKNOWN
    yield ProviderError("x", "p", status_code=200), C.UNKNOWN
    for kind, category in (
        (errors.AuthenticationFailed, C.AUTHENTICATION),
        (errors.PermissionDenied, C.PERMISSION_DENIED),
        (errors.ModelNotFound, C.NOT_FOUND),
        (errors.RequestRejected, C.VALIDATION),
        (errors.ContextWindowExceeded, C.VALIDATION),
        (errors.RateLimited, C.RATE_LIMIT),
        (errors.QuotaExhausted, C.QUOTA),
        (errors.ContentFiltered, C.CONTENT_FILTER),
        (errors.ProviderConflict, C.CONFLICT),
        (errors.ProviderUnavailable, C.SERVER_ERROR),
        (errors.ConnectionFailed, C.NETWORK),
        (errors.ProviderTimeout, C.TIMEOUT),
        (errors.BadResponse, C.BAD_RESPONSE),
        (errors.TruncatedStream, C.BAD_RESPONSE),
    ):
        yield kind("x", "p"), category
    yield errors.InvalidRequest("f", 1, "x"), C.VALIDATION
    yield errors.BudgetExceeded("cost", 1, 2), C.UNKNOWN
    yield errors.AttemptsUsedUp(10), C.UNKNOWN
    yield ToolExecutionError("t", TimeoutError()), C.TIMEOUT
    yield ToolExecutionError("t", ToolExecutionError("u", ValueError())), C.VALIDATION


TABLE = [
    *of_httpx(httpx, OLD),
    *of_httpx(httpx2, NEW),
    *of_sdk(openai),
    *of_openai(),
    *of_sdk(anthropic),
    *of_anthropic(),
    *of_pydantic_ai(),
    *of_the_standard_library(),
    *ours(),
]


@pytest.mark.parametrize(("error", "category"), TABLE, ids=lambda x: f"{type(x).__module__}.{type(x).__name__}")
def test_the_category_follows_from_type_and_status(error: BaseException, category: ErrorCategory) -> None:
    means = classify(error)
    assert means.category is category
    assert means.is_retryable is (category in RETRYABLE)
    assert ErrorClassifier().classify(error) == means


@pytest.mark.parametrize("category", ErrorCategory)
def test_only_the_health_of_the_provider_counts_for_a_breaker(category: ErrorCategory) -> None:
    found = [classify(other) for other, of in TABLE if of is category]
    health = category in (C.SERVER_ERROR, C.TIMEOUT, C.NETWORK, C.BAD_RESPONSE)
    assert found
    assert all(means.blames_provider is health for means in found)


# ── what the server asks for ─────────────────────────────────────────────────────────────────────────────────────────


def slow_down(**headers: str) -> list[BaseException]:
    got = {k.replace("_", "-"): v for k, v in headers.items()}
    old = httpx.Response(429, request=OLD, headers=got)
    return [
        httpx.HTTPStatusError("x", request=OLD, response=old),
        httpx2.HTTPStatusError("x", request=NEW, response=response(429, **headers)),
        openai.RateLimitError("x", response=response(429, **headers), body=None),
        anthropic.RateLimitError("x", response=response(429, **headers), body=None),
    ]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry_After": "7"}, 7),
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after_ms": "250"}, 0.25),
        ({"retry_after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_off_the_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert [classify(error).retry_after for error in slow_down(**headers)] == [seconds] * 4


@pytest.mark.parametrize("bad", [float("nan"), -1, float("inf"), "soon", True, None, 10**400])
def test_a_retry_after_that_makes_no_sense_is_ignored(bad: Any) -> None:
    assert classify(ProviderError("x", "p", 429, retry_after=bad)).retry_after is None
    foreign = RuntimeError("x")
    foreign.retry_after = bad  # type: ignore[attr-defined]
    assert classify(foreign).retry_after is None


def test_what_pydantic_ai_read_is_believed() -> None:
    assert classify(ai.ModelRateLimitError("m", "x", retry_after=7.0)).retry_after == 7


def test_a_conflict_is_worth_another_try_where_the_server_said_when() -> None:
    assert not classify(openai.ConflictError("x", response=response(409), body=None)).is_retryable
    assert classify(openai.ConflictError("x", response=response(409, retry_after="1"), body=None)).is_retryable


@pytest.mark.parametrize(
    ("status", "says", "retryable"), [(503, "false", False), (400, "true", True), (503, "maybe", True)]
)
def test_x_should_retry_is_believed(status: int, says: str, retryable: bool) -> None:
    error = openai.APIStatusError("x", response=response(status, x_should_retry=says), body=None)
    assert classify(error).is_retryable is retryable


# ── what an exception says of itself ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("error", [RuntimeError("x"), ProviderError("x", "p", 503), ProviderError("x", "p", 400)])
def test_is_retryable_set_on_an_instance_is_believed(error: Any, says: bool) -> None:
    error.is_retryable = says
    assert (classify(error).is_retryable, classify(error).declared) == (says, says)


@pytest.mark.parametrize(
    ("declared", "inner", "retryable"),
    [
        (None, ProviderError("x", "p", 503), True),
        (None, ValueError("x"), False),
        (True, ValueError("x"), True),
        (False, ProviderError("x", "p", 503), False),
    ],
)
def test_a_tool_error_says_what_it_was_told_or_what_its_cause_says(
    declared: bool | None, inner: Exception, retryable: bool
) -> None:
    error = ToolExecutionError("t", inner, is_retryable=declared)
    assert classify(error).is_retryable is retryable


def test_a_refusal_blames_nobody() -> None:
    for refusal in (CircuitOpen("p", 3.0), errors.AttemptsUsedUp(10)):
        means = classify(refusal)
        assert (means.refused, means.blames_provider, means.maybe_billed) == (True, False, False)
    assert classify(CircuitOpen("p", 3.0)).retry_after == 3


def test_a_failure_does_not_mean_what_refused_the_attempt_after_it() -> None:
    failure = Exception("of a kind that nobody knows")
    failure.__cause__ = CircuitOpen("p", 3.0)
    assert classify(failure) == classify(Exception())


def test_what_has_no_end_is_unknown() -> None:
    group: Exception = OSError()
    error = ToolExecutionError("t", OSError())
    for _ in range(5000):
        group = ExceptionGroup("more", [group])
    error.original_error = error
    for endless in (group, error):
        assert classify(endless).category is C.UNKNOWN


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_group_is_worth_another_try_only_if_each_of_its_errors_is() -> None:
    busy, slow, wrong = ProviderError("x", "p", 503), ProviderError("x", "p", 429, retry_after=4), ValueError("x")
    cured = classify(ExceptionGroup("g", [busy, ExceptionGroup("h", [slow])]))
    assert (cured.category, cured.is_retryable, cured.retry_after) == (C.SERVER_ERROR, True, 4)
    mixed = classify(ExceptionGroup("g", [busy, wrong]))
    assert (mixed.category, mixed.is_retryable, mixed.blames_provider) == (C.UNKNOWN, False, False)
    assert classify(ExceptionGroup("g", [wrong, wrong])).category is C.VALIDATION


async def test_what_a_task_group_raises_is_classified() -> None:
    async def fail() -> None:
        raise ProviderError("x", "p", 503)

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
    assert classify(caught.value).category is C.SERVER_ERROR


# ── who may have billed ──────────────────────────────────────────────────────────────────────────────────────────────


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "maybe"),
    [
        (httpx.ReadTimeout("x"), True),
        (httpx.ReadError("x"), True),
        (httpx2.RemoteProtocolError("x"), True),
        (httpx.ConnectError("x"), False),
        (httpx2.ConnectTimeout("x"), False),
        (httpx2.PoolTimeout("x"), False),
        (ConnectionResetError(), True),
        (ConnectionRefusedError(), False),
        (OSError(errno.EHOSTUNREACH, "x"), False),
        (socket.gaierror(socket.EAI_NONAME, "x"), False),
        (TimeoutError(), True),
        (openai.APIConnectionError(request=NEW), True),
        (caused(openai.APIConnectionError(request=NEW), httpx2.ConnectError("x")), False),
        (caused(openai.APIConnectionError(request=NEW), httpx2.ReadError("x")), True),
        (openai.APITimeoutError(request=NEW), True),
        (caused(anthropic.APITimeoutError(request=NEW), httpx2.ConnectTimeout("x")), False),
        (ai.ModelConnectionError("m", "x", phase="connect"), False),
        (ai.ModelConnectionError("m", "x", phase="pool"), False),
        (ai.ModelTimeoutError("m", "x", phase="read"), True),
        (ai.ModelConnectionError("m", "x"), True),
        (errors.ConnectionFailed("x", "p", sent=False), False),
        (errors.ConnectionFailed("x", "p"), True),
        (errors.ProviderTimeout("x", "p"), True),
        (errors.BadResponse("x", "p", status_code=200), True),
        (openai.InternalServerError("x", response=response(500), body=None), False),
        (ProviderError("x", "p", 408), False),
        (ProviderError("x", "p", 503), False),
        (ValueError("x"), False),
        (asyncio.CancelledError(), True),
    ],
    ids=repr,
)
def test_silence_may_have_been_billed_and_what_was_never_sent_was_not(error: BaseException, maybe: bool) -> None:
    assert classify(error).maybe_billed is maybe


def test_a_chain_of_causes_that_bites_its_tail_ends() -> None:
    one, two = httpx.ReadError("x"), httpx.ReadError("y")
    one.__cause__, two.__cause__ = two, one
    assert classify(one).maybe_billed


# ── total ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_exception_whose_own_properties_raise_is_unknown() -> None:
    class Hostile(Exception):
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

        @property
        def response(self) -> Any:
            raise KeyError("response")

        status_code = property(lambda self: 1 / 0)

    assert classify(Hostile()).category is C.UNKNOWN


ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dictionaries(st.text(), st.text())


@given(
    st.dictionaries(
        st.sampled_from(["status_code", "status", "headers", "retry_after", "is_retryable", "code", "type", "phase"]),
        ANYTHING | st.lists(ANYTHING, max_size=2),
    ),
    st.sampled_from([Exception, ValueError, OSError, TimeoutError]),
)
def test_whatever_an_exception_carries_it_is_classified(attributes: dict[str, Any], kind: type[Exception]) -> None:
    error = kind("x")
    for name, value in attributes.items():
        setattr(error, name, value)
    means = classify(error)
    assert isinstance(means.category, ErrorCategory)
    assert isinstance(means.is_retryable, bool)
    assert means.retry_after is None or means.retry_after >= 0
