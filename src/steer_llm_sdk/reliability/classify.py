"""From an exception to what it means: decided by type and status, never by the English in the message."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import math
import socket
import ssl
import time
from collections.abc import Mapping
from datetime import UTC
from typing import TYPE_CHECKING, Any, NamedTuple

from steer_llm_sdk.errors import (
    RETRYABLE,
    AllToolsFailed,
    ErrorCategory,
    InvalidRequest,
    OrchestratorError,
    ProviderError,
    Rejected,
    ToolExecutionError,
    category_of_status,
    status_of,
)

if TYPE_CHECKING:
    from steer_llm_sdk.reliability._pipeline import Call, Next

_log = logging.getLogger(__name__)

_BLAMES_PROVIDER = frozenset(
    {ErrorCategory.SERVER_ERROR, ErrorCategory.TIMEOUT, ErrorCategory.NETWORK, ErrorCategory.BAD_RESPONSE}
)
_MAYBE_BILLED = frozenset({ErrorCategory.TIMEOUT, ErrorCategory.NETWORK, ErrorCategory.BAD_RESPONSE})


class ErrorClassification(NamedTuple):
    """What an error means. `retry_after` in seconds, None where the server did not ask for a wait.

    `declared` is what the exception says of itself (`is_retryable`), None where it says nothing.
    `blames_provider`: the error speaks about the provider's health, so a breaker counts it.
    `maybe_billed`: the provider may have done the work, so a budget charges the worst case.
    """

    category: ErrorCategory
    is_retryable: bool
    retry_after: float | None = None
    status_code: int | None = None
    declared: bool | None = None
    refused: bool = False
    maybe_billed: bool = False

    @property
    def blames_provider(self) -> bool:
        return not self.refused and self.category in _BLAMES_PROVIDER


class ErrorClassifier:
    """Says what an exception means. Subclass it to say more than this library knows, and hand it over as
    `ReliabilityConfig(error_classifier=...)`:

        class Mine(ErrorClassifier):
            def classify(self, error):
                if isinstance(error, warehouse.Busy):
                    return ErrorClassification(ErrorCategory.SERVER_ERROR, is_retryable=True)
                return super().classify(error)

    Retry, breaker, budgets and the output then all go by that. Where it raises, the library's own answer holds.
    """

    def classify(self, error: BaseException) -> ErrorClassification:
        return classify(error)


class Classify:
    """The policy, for those who have a classifier of their own: each failed attempt is given its meaning once."""

    def __init__(self, classifier: ErrorClassifier) -> None:
        self._classifier = classifier

    async def __call__(self, call: Call, next: Next[Any, Any], /) -> Any:
        try:
            return await next(call)
        except Exception as error:
            self._note(error)
            raise

    def _note(self, error: Exception) -> None:
        # It is noted on the exception, so that whoever meets it later, also wrapped, reads the same. What an earlier
        # attempt noted is forgotten first: a program may raise one and the same exception object again.
        object.__setattr__(error, _NOTED, None)
        try:
            means: Any = self._classifier.classify(error)
        except Exception:
            _log.warning("the error classifier failed on a %s", type(error).__name__, exc_info=True)
            return
        if isinstance(means, ErrorClassification) and isinstance(means.category, ErrorCategory):
            note(error, means._replace(retry_after=valid_delay(means.retry_after)))
        else:
            _log.warning("the error classifier returned %r; it must be an ErrorClassification of a category", means)


_NOTED = "__steer_means__"


def note(error: BaseException, means: ErrorClassification) -> None:
    """From now on `error` means that, whatever its type says."""
    object.__setattr__(error, _NOTED, means)


# Class names, with the package that defines them, of libraries that this one does not import. A subclass is found
# through its bases, nearest first.
_BY_NAME = {
    ("httpx", "ConnectTimeout"): ErrorCategory.TIMEOUT,
    ("httpx", "TimeoutException"): ErrorCategory.TIMEOUT,
    ("httpx", "InvalidURL"): ErrorCategory.VALIDATION,
    ("httpx", "LocalProtocolError"): ErrorCategory.VALIDATION,
    ("httpx", "UnsupportedProtocol"): ErrorCategory.VALIDATION,
    ("httpx", "SSEError"): ErrorCategory.BAD_RESPONSE,
    ("httpx", "TransportError"): ErrorCategory.NETWORK,
    ("httpx", "NetworkError"): ErrorCategory.NETWORK,
    ("httpx", "ProtocolError"): ErrorCategory.NETWORK,
    ("httpx", "ProxyError"): ErrorCategory.NETWORK,
    ("httpx", "DecodingError"): ErrorCategory.BAD_RESPONSE,
    ("openai", "APITimeoutError"): ErrorCategory.TIMEOUT,
    ("openai", "APIConnectionError"): ErrorCategory.NETWORK,
    ("openai", "APIResponseValidationError"): ErrorCategory.BAD_RESPONSE,
    ("openai", "LengthFinishReasonError"): ErrorCategory.VALIDATION,
    ("openai", "ContentFilterFinishReasonError"): ErrorCategory.CONTENT_FILTER,
    ("openai", "WebSocketConnectionClosedError"): ErrorCategory.NETWORK,
    ("anthropic", "ContractSpendLimitReachedError"): ErrorCategory.QUOTA,
    ("anthropic", "EnforcedSpendLimitReachedError"): ErrorCategory.QUOTA,
    ("anthropic", "APIWebhookValidationError"): ErrorCategory.VALIDATION,
    ("anthropic", "CredentialsError"): ErrorCategory.AUTHENTICATION,
    ("anthropic", "APITimeoutError"): ErrorCategory.TIMEOUT,
    ("anthropic", "APIConnectionError"): ErrorCategory.NETWORK,
    ("anthropic", "APIResponseValidationError"): ErrorCategory.BAD_RESPONSE,
    ("pydantic_ai", "ModelRateLimitError"): ErrorCategory.RATE_LIMIT,
    ("pydantic_ai", "ModelQuotaExceededError"): ErrorCategory.QUOTA,
    ("pydantic_ai", "ModelUnavailableError"): ErrorCategory.SERVER_ERROR,
    ("pydantic_ai", "ModelServerError"): ErrorCategory.SERVER_ERROR,
    ("pydantic_ai", "ModelTimeoutError"): ErrorCategory.TIMEOUT,
    ("pydantic_ai", "ModelRequestTimeout"): ErrorCategory.TIMEOUT,
    ("pydantic_ai", "ModelConnectionError"): ErrorCategory.NETWORK,
    ("pydantic_ai", "ModelAuthenticationError"): ErrorCategory.AUTHENTICATION,
    ("pydantic_ai", "ModelNotFoundError"): ErrorCategory.NOT_FOUND,
    ("pydantic_ai", "ModelRequestRejectedError"): ErrorCategory.VALIDATION,
    ("pydantic_ai", "ContentFilterError"): ErrorCategory.CONTENT_FILTER,
    ("pydantic_ai", "OutputTokenLimitExceeded"): ErrorCategory.VALIDATION,
    ("pydantic_ai", "UnexpectedModelBehavior"): ErrorCategory.BAD_RESPONSE,
}
_PACKAGE = {"httpx2": "httpx", "httpcore": "httpx", "httpcore2": "httpx"}

# What these say of themselves is asked after their status: they are the bases of errors that have one.
_BASES = {
    ("openai", "APIError"): ErrorCategory.BAD_RESPONSE,
    ("openai", "SubjectTokenProviderError"): ErrorCategory.AUTHENTICATION,
    ("anthropic", "APIError"): ErrorCategory.BAD_RESPONSE,
    ("anthropic", "WorkloadIdentityError"): ErrorCategory.AUTHENTICATION,
    ("pydantic_ai", "ModelAPIError"): ErrorCategory.BAD_RESPONSE,
}

# Their JSONDecodeError is raised as it is where an answer is malformed.
_CLIENTS = frozenset({"httpx", "httpx2", "openai", "anthropic"})

# Raised by a program to ask for another try.
_ASKS_FOR_RETRY = ("anthropic", "RetryableError")

# The codes that say more than the status they come with.
_ABOVE_STATUS = {
    "insufficient_quota": ErrorCategory.QUOTA,
    "billing_hard_limit_reached": ErrorCategory.QUOTA,
    "billing_not_active": ErrorCategory.QUOTA,
    "billing_error": ErrorCategory.QUOTA,
    "content_filter": ErrorCategory.CONTENT_FILTER,
    "content_policy_violation": ErrorCategory.CONTENT_FILTER,
}
_LONGEST_BODY = 65_536

# The codes of errors that come inside a stream, whose own status was 200.
_BY_CODE = {
    **_ABOVE_STATUS,
    "overloaded_error": ErrorCategory.SERVER_ERROR,
    "api_error": ErrorCategory.SERVER_ERROR,
    "server_error": ErrorCategory.SERVER_ERROR,
    "timeout_error": ErrorCategory.TIMEOUT,
    "rate_limit_error": ErrorCategory.RATE_LIMIT,
    "rate_limit_exceeded": ErrorCategory.RATE_LIMIT,
    "invalid_request_error": ErrorCategory.VALIDATION,
    "authentication_error": ErrorCategory.AUTHENTICATION,
    "permission_error": ErrorCategory.PERMISSION_DENIED,
    "not_found_error": ErrorCategory.NOT_FOUND,
}

# Raised before a request is on its way: nobody can have billed it.
_NOT_SENT = {
    ("httpx", "ConnectError"),
    ("httpx", "ConnectTimeout"),
    ("httpx", "PoolTimeout"),
    ("httpx", "ProxyError"),
}
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}

_BY_TYPE: tuple[tuple[type[BaseException], ErrorCategory], ...] = (
    (ssl.SSLCertVerificationError, ErrorCategory.VALIDATION),
    (TimeoutError, ErrorCategory.TIMEOUT),
    (ConnectionError, ErrorCategory.NETWORK),
    (socket.gaierror, ErrorCategory.NETWORK),
    (socket.herror, ErrorCategory.NETWORK),
    (ssl.SSLError, ErrorCategory.NETWORK),
    (asyncio.IncompleteReadError, ErrorCategory.NETWORK),
    (ValueError, ErrorCategory.VALIDATION),
    (TypeError, ErrorCategory.VALIDATION),
)


def classify(error: BaseException) -> ErrorClassification:
    """What `error` means. Total: anything unknown is UNKNOWN and not retried, and so is what cannot be read.

    An exception that says nothing itself means what the one it was raised `from` means.
    """
    try:
        return _classified(error, _MOST_CAUSES)
    except Exception:  # Groups within groups, a tool's error that is its own, a property that raises.
        return ErrorClassification(ErrorCategory.UNKNOWN, False)


_MOST_CAUSES = 5


def _classified(error: BaseException, causes: int) -> ErrorClassification:
    noted = _told(error, _NOTED)
    if isinstance(noted, ErrorClassification):
        return noted
    means = _of_itself(error)
    cause = error.__cause__
    silent = means.category is ErrorCategory.UNKNOWN and means.status_code is None and not means.refused
    ours = isinstance(error, (OrchestratorError, asyncio.CancelledError, BaseExceptionGroup))
    # A refusal is how it ended, and not what went wrong.
    if not (silent and cause is not None and causes) or ours or isinstance(cause, Rejected):
        return means
    from_cause = _classified(cause, causes - 1)
    if means.declared is not None:
        from_cause = from_cause._replace(is_retryable=means.declared, declared=means.declared)
    return from_cause if means.retry_after is None else from_cause._replace(retry_after=means.retry_after)


def _of_itself(error: BaseException) -> ErrorClassification:
    if isinstance(error, ToolExecutionError):
        return _of_tool_error(error)
    if isinstance(error, ProviderError):
        status = status_of(error.status_code)
        return ErrorClassification(
            error.category,
            error.is_retryable,
            _asked_delay(error.retry_after),
            status,
            error.declared_retryable,
            isinstance(error, Rejected),
            _maybe_billed(error.category, status) and getattr(error, "sent", True) is True,
        )
    if isinstance(error, AllToolsFailed):
        return _of_all(error)
    if isinstance(error, Rejected):
        return ErrorClassification(ErrorCategory.UNKNOWN, False, valid_delay(error.retry_after), refused=True)
    if isinstance(error, InvalidRequest):
        return ErrorClassification(ErrorCategory.VALIDATION, False)
    if isinstance(error, asyncio.CancelledError):
        return ErrorClassification(ErrorCategory.UNKNOWN, False, maybe_billed=True)
    if isinstance(error, BaseExceptionGroup):
        return _of_group(error)
    return _of_foreign(error)


def _of_tool_error(error: ToolExecutionError) -> ErrorClassification:
    inner = classify(error.original_error)
    if error.declared_retryable is None:
        return inner
    return ErrorClassification(
        inner.category,
        error.declared_retryable,
        inner.retry_after,
        inner.status_code,
        error.declared_retryable,
        inner.refused,
        inner.maybe_billed,
    )


def _of_group(group: BaseExceptionGroup[BaseException]) -> ErrorClassification:
    """Of a group as a TaskGroup raises it: it is worth another try only if that can cure every error in it, unless the
    group itself says so."""
    parts = [classify(error) for error in group.exceptions]
    retryable = all(part.is_retryable and not part.refused for part in parts)
    alike = retryable or len({part.category for part in parts}) == 1
    waits = [part.retry_after for part in parts if part.retry_after is not None]
    told = _told(group, "is_retryable")
    declared = told if isinstance(told, bool) else None
    return ErrorClassification(
        parts[0].category if alike else ErrorCategory.UNKNOWN,
        retryable if declared is None else declared,
        max(waits, default=None),
        declared=declared,
        maybe_billed=any(part.maybe_billed for part in parts),
    )


def _of_all(error: AllToolsFailed) -> ErrorClassification:
    """What the first cause means, worth another try where any of them is."""
    means = [classify(cause) for cause in error.failures.values()]
    if not means:
        return ErrorClassification(ErrorCategory.UNKNOWN, False)
    return means[0]._replace(is_retryable=any(each.is_retryable for each in means), declared=None)


def _of_foreign(error: BaseException) -> ErrorClassification:
    status = _status_of(error)
    headers = _headers_of(error)
    retry_after = parse_retry_after(headers, time.time()) if headers is not None else None
    if retry_after is None:
        retry_after = valid_delay(_told(error, "retry_after"))
    category = _category_of(error, status)
    declared = _told(error, "is_retryable")
    if not isinstance(declared, bool):
        declared = True if _ASKS_FOR_RETRY in _names_of(error) else _should_retry(headers)
    retryable = category in RETRYABLE or (category is ErrorCategory.CONFLICT and retry_after is not None)
    return ErrorClassification(
        category,
        retryable if declared is None else declared,
        retry_after,
        status,
        declared,
        maybe_billed=_maybe_billed(category, status) and _may_have_been_sent(error),
    )


def _category_of(error: BaseException, status: int | None) -> ErrorCategory:
    names = _names_of(error)
    for name in names:
        if name in _BY_NAME:
            return _BY_NAME[name]
    if status is not None and status >= 400:
        coded = [_ABOVE_STATUS[code] for code in _codes_of(error) if code in _ABOVE_STATUS]
        return coded[0] if coded else category_of_status(status)
    if any(name in _BASES for name in names):
        coded = [_BY_CODE[code] for code in _codes_of(error) if code in _BY_CODE]
        return coded[0] if coded else next(_BASES[name] for name in names if name in _BASES)
    if isinstance(error, OSError) and error.errno in _UNREACHABLE:
        return ErrorCategory.NETWORK
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) and _came_through_a_client(error):
        return ErrorCategory.BAD_RESPONSE
    return next((category for kind, category in _BY_TYPE if isinstance(error, kind)), ErrorCategory.UNKNOWN)


def _names_of(error: BaseException) -> list[tuple[str, str]]:
    """(package, class) of the error's type and its bases, nearest first."""
    packages = ((base.__module__.partition(".")[0], base.__name__) for base in type(error).__mro__)
    return [(_PACKAGE.get(package, package), name) for package, name in packages]


def _codes_of(error: BaseException) -> list[str]:
    """The codes that a provider gave: as the exception has them, else from the body of the answer if it was read."""
    own = [_told(error, "code"), _told(error, "type")]
    found = [code for code in own if isinstance(code, str)]
    body = _told(error, "body")
    if not found and body is None:
        body = _json_of(_told(_told(error, "response"), "content"))
    inner = body.get("error", body) if isinstance(body, Mapping) else None
    said = [inner.get("code"), inner.get("type")] if isinstance(inner, Mapping) else []
    return found + [code for code in said if isinstance(code, str)]


def _came_through_a_client(error: BaseException) -> bool:
    """Whether a client library was reading an answer when this was raised, rather than a program its own data."""
    step = error.__traceback__
    while step is not None:
        if str(step.tb_frame.f_globals.get("__name__")).partition(".")[0] in _CLIENTS:
            return True
        step = step.tb_next
    return False


def _json_of(content: Any) -> Any:
    if not isinstance(content, bytes) or len(content) > _LONGEST_BODY:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _may_have_been_sent(error: BaseException) -> bool:
    """False where it, or what it was raised from, says that the request never left."""
    cause: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if cause is None:
            break
        early = isinstance(cause, (ConnectionRefusedError, socket.gaierror)) or _told(cause, "phase") in _EARLY
        unreachable = isinstance(cause, OSError) and cause.errno in _UNREACHABLE
        if early or unreachable or not _NOT_SENT.isdisjoint(_names_of(cause)):
            return False
        cause = cause.__cause__
    return True


_EARLY = ("pool", "connect")


def _told(error: object, name: str) -> Any:
    """What an attribute says. A property of somebody else's exception may raise: then it says nothing."""
    try:
        return getattr(error, name, None)
    except Exception:
        return None


def _maybe_billed(category: ErrorCategory, status: int | None) -> bool:
    # An error status is an answer: nobody bills for it. Silence and broken answers may have been billed.
    return category in _MAYBE_BILLED and (status is None or status < 400)


def _status_of(error: BaseException) -> int | None:
    for holder in (error, _told(error, "response")):
        for name in ("status_code", "status"):
            status = _told(holder, name)
            if isinstance(status, int) and not isinstance(status, bool) and 100 <= status < 600:
                return status
    return None


def _headers_of(error: BaseException) -> Mapping[str, str] | None:
    for holder in (error, _told(error, "response")):
        headers = _told(holder, "headers")
        if isinstance(headers, Mapping):
            try:
                return {_header(name).lower(): _header(value) for name, value in headers.items()}
            except Exception:  # A mapping of somebody else's that cannot be read says nothing.
                return None
    return None


def _header(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _should_retry(headers: Mapping[str, str] | None) -> bool | None:
    return {"true": True, "false": False}.get((headers or {}).get("x-should-retry", "").lower())


def _asked_delay(retry_after: Any) -> float | None:
    """Seconds, also from a header's value that was handed on as it came."""
    if isinstance(retry_after, str):
        return parse_retry_after({"retry-after": retry_after}, time.time())
    return valid_delay(retry_after)


def valid_delay(seconds: Any) -> float | None:
    """A delay somebody asked for, in seconds; None for what is none: negative, NaN, infinite, not a number."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return None
    try:
        value = float(seconds)
    except OverflowError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def parse_retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The wait that a response asks for, in seconds, from lower-case `headers`; `now` is seconds since the epoch.

    `retry-after-ms` first, then `retry-after` as seconds (whole or not) or as an HTTP date in any of its three forms
    (RFC 9110, 5.6.7). Of several numbers the greatest. A date that is past is 0. Never raises: a value that makes no
    sense is ignored.
    """
    millis = _number(headers.get("retry-after-ms"))
    if millis is not None:
        return millis / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    return seconds if seconds is not None or text is None else _until_date(text, now)


def _number(text: str | None) -> float | None:
    if text is None or "_" in text:  # Python would read 1_000.
        return None
    try:
        delays = [valid_delay(float(part)) for part in text.split(",")]
    except ValueError:
        return None
    return None if None in delays else max(delay for delay in delays if delay is not None)


def _until_date(text: str, now: float) -> float | None:
    from email.utils import parsedate_to_datetime  # 6 ms that only those who are given a date pay

    try:
        when = parsedate_to_datetime(text)
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        return valid_delay(max(0.0, when.timestamp() - now))
    except (ValueError, TypeError, OverflowError, IndexError, OSError):
        return None
