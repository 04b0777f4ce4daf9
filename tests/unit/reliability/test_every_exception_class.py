"""Every public exception class of the libraries that tools use has a place: one that is new fails here until it has."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import ssl
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

import anthropic
import httpcore
import httpcore2
import httpx
import httpx2
import openai
import pydantic_ai.exceptions
import pytest
from pydantic_ai.messages import ToolReturnPart

from steer_llm_sdk.errors import RETRYABLE, ErrorCategory
from steer_llm_sdk.reliability.classify import ErrorClassification, classify

C = ErrorCategory
URL = "http://127.0.0.1/v1"

OF_TRANSPORT = {
    C.TIMEOUT: ("TimeoutException", "ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout"),
    C.NETWORK: ("NetworkError", "ConnectError", "ReadError", "WriteError", "ProtocolError", "RemoteProtocolError"),
    C.VALIDATION: ("LocalProtocolError", "UnsupportedProtocol"),
}
OF_HTTPX = {
    C.TIMEOUT: OF_TRANSPORT[C.TIMEOUT],
    C.NETWORK: (*OF_TRANSPORT[C.NETWORK], "TransportError", "CloseError", "ProxyError"),
    C.VALIDATION: (*OF_TRANSPORT[C.VALIDATION], "InvalidURL"),
    C.BAD_RESPONSE: ("DecodingError",),
    C.SERVER_ERROR: ("HTTPStatusError",),
    # A program that uses its client wrongly, and bases that say nothing.
    C.UNKNOWN: (
        *("HTTPError", "RequestError", "TooManyRedirects", "CookieConflict"),
        *("StreamError", "StreamClosed", "StreamConsumed", "RequestNotRead", "ResponseNotRead"),
    ),
}
OF_BOTH_CLIENTS = {
    C.TIMEOUT: ("APITimeoutError",),
    C.NETWORK: ("APIConnectionError",),
    C.BAD_RESPONSE: ("APIError", "APIResponseValidationError"),
    C.RATE_LIMIT: ("RateLimitError",),
    C.SERVER_ERROR: ("InternalServerError", "APIStatusError"),
    C.AUTHENTICATION: ("AuthenticationError",),
    C.PERMISSION_DENIED: ("PermissionDeniedError",),
    C.NOT_FOUND: ("NotFoundError",),
    C.CONFLICT: ("ConflictError",),
    C.VALIDATION: ("BadRequestError", "UnprocessableEntityError"),
}


def joined(*tables: dict[ErrorCategory, tuple[str, ...]]) -> dict[str, ErrorCategory]:
    return {name: category for table in tables for category, names in table.items() for name in names}


PLACES: dict[ModuleType, dict[str, ErrorCategory]] = {
    httpx: joined(OF_HTTPX),
    httpx2: joined(OF_HTTPX, {C.BAD_RESPONSE: ("SSEError",)}),
    httpcore: joined(OF_TRANSPORT, {C.NETWORK: ("ProxyError",), C.UNKNOWN: ("ConnectionNotAvailable",)}),
    httpcore2: joined(OF_TRANSPORT, {C.NETWORK: ("ProxyError",), C.UNKNOWN: ("ConnectionNotAvailable",)}),
    openai: joined(
        OF_BOTH_CLIENTS,
        {
            C.AUTHENTICATION: ("OAuthError", "SubjectTokenProviderError"),
            C.NETWORK: ("WebSocketConnectionClosedError",),
            C.VALIDATION: ("LengthFinishReasonError", "InvalidWebhookSignatureError"),
            C.CONTENT_FILTER: ("ContentFilterFinishReasonError",),
            C.UNKNOWN: ("OpenAIError", "WebSocketQueueFullError"),
        },
    ),
    anthropic: joined(
        OF_BOTH_CLIENTS,
        {
            C.TIMEOUT: ("RequestTimeoutError",),
            C.RATE_LIMIT: ("RampLimitExceededError",),
            C.QUOTA: (
                *("ContractSpendLimitReachedError", "EnforcedSpendLimitReachedError", "PaymentRequiredError"),
                *("LinkedOrganizationBillingUnavailableError", "LinkedOrganizationSpendLimitReachedError"),
            ),
            C.SERVER_ERROR: (
                *("OverloadedError", "ServiceUnavailableError", "GatewayTimeoutError", "HTTPNotImplementedError"),
                *("CMEKContextUnavailableError", "CMEKKeyUnreachableError"),
            ),
            C.AUTHENTICATION: ("CredentialsError", "IdentityTokenFileError", "WorkloadIdentityError"),
            C.PERMISSION_DENIED: ("SandboxEgressRestrictedError",),
            C.VALIDATION: (
                *("APIWebhookValidationError", "CMEKKeyDisabledError", "CMEKKeyNetworkBlockedError"),
                *("ClaudeCodeKeyCreatorNotMemberError", "ClaudeCodeVersionTooOldError", "ClientClosedRequestError"),
                *("ContentTooLargeError", "OrganizationOnHoldError", "OrganizationTypeNotSupportedError"),
                *("ParentOrganizationRequiredError", "PreconditionFailedError", "RequestHeaderFieldsTooLargeError"),
                *("RequestBodyEncodingInvalidError", "RequestBodyEncodingUnsupportedError"),
                "RequestBodyTooLargeAfterDecodingError",
            ),
            C.UNKNOWN: ("AnthropicError", "RetryableError"),
        },
    ),
    pydantic_ai.exceptions: joined(
        {
            C.RATE_LIMIT: ("ModelRateLimitError",),
            C.QUOTA: ("ModelQuotaExceededError",),
            C.SERVER_ERROR: ("ModelHTTPError", "ModelOverloadedError", "ModelUnavailableError", "ModelServerError"),
            C.TIMEOUT: ("ModelTimeoutError", "ModelRequestTimeout", "RunTimedOut"),
            C.NETWORK: ("ModelConnectionError",),
            C.AUTHENTICATION: ("ModelAuthenticationError",),
            C.NOT_FOUND: ("ModelNotFoundError",),
            C.VALIDATION: (
                *("ModelRequestRejectedError", "ModelContextWindowExceededError"),
                *("OutputTokenLimitExceeded", "IncompleteToolCall"),
            ),
            C.CONTENT_FILTER: ("ContentFilterError",),
            C.BAD_RESPONSE: ("ModelAPIError", "UnexpectedModelBehavior"),
            # What an agent says to itself, and mistakes of its program.
            C.UNKNOWN: (
                *("AgentRunError", "ConcurrencyLimitExceeded", "RunCancelled", "SuspendedResponseExpired"),
                *("UsageLimitExceeded", "UserError", "UndrainedPendingMessagesError", "FallbackExceptionGroup"),
                *("ApprovalRequired", "CallDeferred", "ModelRetry", "RetryModelRequest", "SkipModelRequest"),
                *("SkipToolExecution", "SkipToolValidation", "ToolFailed", "ToolFailedError", "ToolRetryError"),
            ),
        }
    ),
    asyncio: joined(
        {
            C.TIMEOUT: ("TimeoutError",),
            C.NETWORK: ("IncompleteReadError",),
            C.UNKNOWN: (
                *("BrokenBarrierError", "CancelledError", "InvalidStateError", "LimitOverrunError"),
                *("SendfileNotAvailableError", "QueueEmpty", "QueueFull", "QueueShutDown"),
            ),
        }
    ),
    ssl: joined(
        {
            C.VALIDATION: ("SSLCertVerificationError",),
            C.NETWORK: (
                *("SSLError", "SSLEOFError", "SSLSyscallError", "SSLZeroReturnError"),
                *("SSLWantReadError", "SSLWantWriteError"),
            ),
            C.UNKNOWN: ("OSError",),
        }
    ),
    socket: joined({C.TIMEOUT: ("TimeoutError",), C.NETWORK: ("gaierror", "herror"), C.UNKNOWN: ("OSError",)}),
}
OF_PYTHON = (asyncio, ssl, socket)
"""They have other classes in other versions of Python."""


def classes_of(library: ModuleType) -> dict[str, type[BaseException]]:
    """Those that the library exports or keeps in its module of exceptions, without warnings and private names."""
    modules = [library]
    for name in ("exceptions", "_exceptions"):
        try:
            modules.append(import_module(f"{library.__name__}.{name}"))
        except ImportError:
            continue
    held: Iterable[Any] = [value for module in modules for value in list(vars(module).values())]
    found = [kind for kind in held if inspect.isclass(kind) and issubclass(kind, BaseException)]
    root = library.__name__.partition(".")[0]
    return {
        kind.__name__: kind
        for kind in found
        if not issubclass(kind, Warning)
        and not kind.__name__.startswith("_")
        and (library in OF_PYTHON or kind.__module__.partition(".")[0] == root)
    }


ALL = [(library, name, kind) for library in PLACES for name, kind in classes_of(library).items()]


@pytest.mark.parametrize("library", PLACES, ids=lambda library: library.__name__)
def test_every_public_exception_class_of_the_library_has_a_place(library: ModuleType) -> None:
    found, placed = set(classes_of(library)), set(PLACES[library])
    assert found - placed == set()
    if library not in OF_PYTHON:
        assert placed - found == set()


STATUS = {
    "BadRequestError": 400,
    "AuthenticationError": 401,
    "OAuthError": 401,
    "PermissionDeniedError": 403,
    "NotFoundError": 404,
    "ConflictError": 409,
    "UnprocessableEntityError": 422,
    "RateLimitError": 429,
    "InternalServerError": 500,
    "APIStatusError": 503,
    "ModelHTTPError": 503,
    "HTTPStatusError": 503,
    "ModelRateLimitError": 429,
    "ModelQuotaExceededError": 429,
    "ModelOverloadedError": 529,
}


def made(kind: type[BaseException]) -> BaseException:
    """An instance, with whatever its constructor asks for."""
    if issubclass(kind, BaseExceptionGroup):
        return kind("x", [RuntimeError("x")])
    if issubclass(kind, asyncio.IncompleteReadError):
        return kind(b"", 5)
    if kind.__module__.partition(".")[0] == "pydantic_ai" and issubclass(kind, pydantic_ai.exceptions.ModelAPIError):
        return made_of_pydantic_ai(kind)
    library: Any = httpx if kind.__module__ == "httpx" else httpx2
    request = library.Request("POST", URL)
    status = next((STATUS[base.__name__] for base in kind.__mro__ if base.__name__ in STATUS), 200)
    # The classes of Anthropic's client that stand for one status have it as an attribute.
    declared = inspect.getattr_static(kind, "status_code", None)
    status = declared if isinstance(declared, int) else status
    given = {
        "message": "x",
        "request": request,
        "response": library.Response(status, request=request),
        "body": None,
        "completion": None if kind is openai.ContentFilterFinishReasonError else Completion(),
        "unsent_messages": [],
        "consumed": 1,
        "tool_failed": PART,
        "tool_retry": PART,
        "result": None,
        "validated_args": {},
    }
    try:
        parameters = list(inspect.signature(kind).parameters.values())
    except ValueError:  # written in C
        return kind("x")
    required = [
        one for one in parameters if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if not required and any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return kind("x")
    positional = [given[one.name] for one in required if one.kind is not one.KEYWORD_ONLY]
    return kind(*positional, **{one.name: given[one.name] for one in required if one.kind is one.KEYWORD_ONLY})


def made_of_pydantic_ai(kind: type[Any]) -> BaseException:
    if kind is pydantic_ai.exceptions.ModelRequestTimeout:
        return kind("m", 3.0)
    if issubclass(kind, pydantic_ai.exceptions.ModelHTTPError):
        return kind(STATUS.get(kind.__name__, 503), "m")
    return kind("m", "x")


class Completion:
    usage = None


PART = ToolReturnPart(tool_name="t", content="x")


@pytest.mark.parametrize(("library", "name", "kind"), ALL, ids=lambda value: getattr(value, "__name__", value))
def test_each_class_constructed_and_raised_is_what_its_place_says(
    library: ModuleType, name: str, kind: type[BaseException]
) -> None:
    error = made(kind)
    try:
        raise error
    except BaseException as caught:
        means = classify(caught)
    assert means.category is PLACES[library][name]
    assert means.is_retryable is (means.category in RETRYABLE or name == "RetryableError")


def words(kind: type[BaseException], text: str) -> ErrorClassification:
    error = made(kind)
    error.args = (text,)
    if "message" in vars(error):
        error.message = text  # type: ignore[attr-defined]
    return classify(error)


@pytest.mark.parametrize(("library", "name", "kind"), ALL, ids=lambda value: getattr(value, "__name__", value))
def test_what_the_message_says_changes_nothing(library: ModuleType, name: str, kind: type[BaseException]) -> None:
    said = (
        "429 Too Many Requests: rate limit exceeded, quota insufficient_quota",
        "timeout; connection reset; try again",
    )
    assert {words(kind, text) for text in said} == {classify(made(kind))}


# ── what the body of an answer says above its status ─────────────────────────────────────────────────────────────────


def with_body(library: Any, status: int, body: Any) -> BaseException:
    request = library.Request("POST", URL)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return library.HTTPStatusError(
        "x", request=request, response=library.Response(status, request=request, content=content)
    )  # type: ignore[no-any-return]


@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize(
    ("status", "body", "category"),
    [
        (429, {"error": {"code": "insufficient_quota"}}, C.QUOTA),
        (429, {"error": {"type": "insufficient_quota", "code": None}}, C.QUOTA),
        (429, {"error": {"code": "billing_hard_limit_reached"}}, C.QUOTA),
        (400, {"type": "error", "error": {"type": "billing_error"}}, C.QUOTA),
        (400, {"error": {"code": "content_filter"}}, C.CONTENT_FILTER),
        (429, {"error": {"code": "rate_limit_exceeded"}}, C.RATE_LIMIT),
        (429, {"error": {"message": "You exceeded your current quota: insufficient_quota"}}, C.RATE_LIMIT),
        (429, {"error": "insufficient_quota"}, C.RATE_LIMIT),
        (429, ["insufficient_quota"], C.RATE_LIMIT),
        (429, b"<html>insufficient_quota</html>", C.RATE_LIMIT),
        (429, b"[" * 60_000, C.RATE_LIMIT),
        (503, {"error": {"code": 7}}, C.SERVER_ERROR),
    ],
)
def test_a_code_in_the_body_tells_an_exhausted_quota_from_a_rate_limit(
    library: Any, status: int, body: Any, category: ErrorCategory
) -> None:
    assert classify(with_body(library, status, body)).category is category


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_a_body_that_was_not_read_says_nothing(library: Any) -> None:
    request = library.Request("POST", URL)
    unread = library.Response(
        429, request=request, stream=library.ByteStream(b'{"error": {"code": "insufficient_quota"}}')
    )
    unread.is_stream_consumed = True
    assert classify(library.HTTPStatusError("x", request=request, response=unread)).category is C.RATE_LIMIT


# ── raised from something ────────────────────────────────────────────────────────────────────────────────────────────


class Own(Exception):
    """An exception of somebody's program, which says nothing by itself."""


def caused(error: BaseException, cause: BaseException | None) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("library", [httpx, httpx2])
def test_an_unknown_exception_means_what_it_was_raised_from(library: Any) -> None:
    request = library.Request("POST", URL)
    busy = library.HTTPStatusError(
        "x", request=request, response=library.Response(429, request=request, headers={"retry-after": "7"})
    )
    for error in (caused(Own(), busy), caused(RuntimeError("x"), caused(Own(), busy))):
        means = classify(error)
        assert (means.category, means.is_retryable, means.retry_after) == (C.RATE_LIMIT, True, 7)
    assert classify(caused(Own(), library.ConnectError("x"))).maybe_billed is False
    assert classify(caused(Own(), library.ReadTimeout("x"))).maybe_billed is True


def test_an_exception_that_says_something_is_not_asked_what_it_came_from() -> None:
    assert classify(caused(ValueError("x"), httpx.ReadTimeout("x"))).category is C.VALIDATION
    declared = caused(Own(), httpx.ReadTimeout("x"))
    declared.is_retryable = False  # type: ignore[attr-defined]
    assert (classify(declared).category, classify(declared).is_retryable) == (C.TIMEOUT, False)


def test_what_merely_happened_before_is_no_cause() -> None:
    error = Own()
    error.__context__ = httpx.ReadTimeout("x")
    assert classify(error).category is C.UNKNOWN


def test_a_chain_of_unknown_exceptions_that_bites_its_tail_is_unknown() -> None:
    one, two = Own(), Own()
    one.__cause__, two.__cause__ = two, one
    assert classify(one) == ErrorClassification(C.UNKNOWN, False)


def test_an_exception_raised_from_a_group_means_what_the_group_means() -> None:
    group = ExceptionGroup("g", [httpx.ReadTimeout("x"), httpx2.ConnectError("x")])
    assert classify(caused(Own(), group)).is_retryable is True
    assert classify(caused(Own(), ExceptionGroup("g", [*group.exceptions, ValueError()]))).is_retryable is False


def test_a_group_that_says_whether_it_is_worth_another_try_is_believed() -> None:
    group = ExceptionGroup("g", [httpx.ReadTimeout("x")])
    group.is_retryable = False  # type: ignore[attr-defined]
    assert classify(group).is_retryable is False
