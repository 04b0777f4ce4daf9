"""From an exception to what it means: decided by type and status, never by the English in the message."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import ssl
import time
from collections.abc import Mapping
from datetime import UTC
from typing import Any, NamedTuple

from steer_llm_sdk.errors import (
    RETRYABLE,
    AllToolsFailed,
    ErrorCategory,
    InvalidRequest,
    ProviderError,
    Rejected,
    ToolExecutionError,
    category_of_status,
)

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
    """`classify` as an object, for those who pass one along."""

    def classify(self, error: BaseException) -> ErrorClassification:
        return classify(error)


# Class names, with the package that defines them, of libraries that this one does not import. A subclass is found
# through its bases, nearest first.
_BY_NAME = {
    ("httpx", "ConnectTimeout"): ErrorCategory.TIMEOUT,
    ("httpx", "TimeoutException"): ErrorCategory.TIMEOUT,
    ("httpx", "RemoteProtocolError"): ErrorCategory.NETWORK,
    ("httpx", "LocalProtocolError"): ErrorCategory.VALIDATION,
    ("httpx", "UnsupportedProtocol"): ErrorCategory.VALIDATION,
    ("httpx", "TransportError"): ErrorCategory.NETWORK,
    ("httpx", "DecodingError"): ErrorCategory.BAD_RESPONSE,
    ("openai", "APITimeoutError"): ErrorCategory.TIMEOUT,
    ("openai", "APIConnectionError"): ErrorCategory.NETWORK,
    ("openai", "APIResponseValidationError"): ErrorCategory.BAD_RESPONSE,
    ("openai", "LengthFinishReasonError"): ErrorCategory.VALIDATION,
    ("openai", "ContentFilterFinishReasonError"): ErrorCategory.CONTENT_FILTER,
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
    ("anthropic", "APIError"): ErrorCategory.BAD_RESPONSE,
    ("pydantic_ai", "ModelAPIError"): ErrorCategory.BAD_RESPONSE,
}

# The codes of errors that come inside a stream, whose own status was 200.
_BY_CODE = {
    "overloaded_error": ErrorCategory.SERVER_ERROR,
    "api_error": ErrorCategory.SERVER_ERROR,
    "server_error": ErrorCategory.SERVER_ERROR,
    "timeout_error": ErrorCategory.TIMEOUT,
    "rate_limit_error": ErrorCategory.RATE_LIMIT,
    "rate_limit_exceeded": ErrorCategory.RATE_LIMIT,
    "insufficient_quota": ErrorCategory.QUOTA,
    "billing_error": ErrorCategory.QUOTA,
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
    (ssl.SSLError, ErrorCategory.NETWORK),
    (asyncio.IncompleteReadError, ErrorCategory.NETWORK),
    (ValueError, ErrorCategory.VALIDATION),
    (TypeError, ErrorCategory.VALIDATION),
)


def classify(error: BaseException) -> ErrorClassification:
    """What `error` means. Total: anything unknown is UNKNOWN and not retried."""
    if isinstance(error, ToolExecutionError):
        return _of_tool_error(error)
    if isinstance(error, ProviderError):
        return ErrorClassification(
            error.category,
            error.is_retryable,
            _asked_delay(error.retry_after),
            error.status_code,
            error.declared_retryable,
            isinstance(error, Rejected),
            _maybe_billed(error.category, error.status_code) and getattr(error, "sent", True) is True,
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
    """Of a group as a TaskGroup raises it: it is worth another try only if that can cure every error in it."""
    parts = [classify(error) for error in group.exceptions]
    retryable = all(part.is_retryable and not part.refused for part in parts)
    alike = retryable or len({part.category for part in parts}) == 1
    waits = [part.retry_after for part in parts if part.retry_after is not None]
    return ErrorClassification(
        parts[0].category if alike else ErrorCategory.UNKNOWN,
        retryable,
        max(waits, default=None),
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
    declared = declared if isinstance(declared, bool) else _should_retry(headers)
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
        quota = status == 429 and _told(error, "code") == "insufficient_quota"
        return ErrorCategory.QUOTA if quota else category_of_status(status)
    if any(name in _BASES for name in names):
        codes = (_told(error, "code"), _told(error, "type"))
        coded = [_BY_CODE[code] for code in codes if isinstance(code, str) and code in _BY_CODE]
        return coded[0] if coded else next(_BASES[name] for name in names if name in _BASES)
    if isinstance(error, OSError) and error.errno in _UNREACHABLE:
        return ErrorCategory.NETWORK
    return next((category for kind, category in _BY_TYPE if isinstance(error, kind)), ErrorCategory.UNKNOWN)


def _names_of(error: BaseException) -> list[tuple[str, str]]:
    """(package, class) of the error's type and its bases, nearest first."""
    packages = ((base.__module__.partition(".")[0], base.__name__) for base in type(error).__mro__)
    return [(_PACKAGE.get(package, package), name) for package, name in packages]


def _may_have_been_sent(error: BaseException) -> bool:
    """False where it, or what it was raised from, says that the request never left."""
    cause: BaseException | None = error
    for _ in range(5):
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
                return {str(name).lower(): str(value) for name, value in headers.items()}
            except Exception:  # A mapping of somebody else's that cannot be read says nothing.
                return None
    return None


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

    `retry-after-ms` first, then `retry-after` as seconds (whole or not) or as an HTTP date. Never raises: a value that
    makes no sense is ignored.
    """
    millis = _number(headers.get("retry-after-ms"))
    if millis is not None:
        return millis / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    return seconds if seconds is not None or text is None else _until_date(text, now)


def _number(text: str | None) -> float | None:
    try:
        return valid_delay(float(text)) if text is not None else None
    except ValueError:
        return None


def _until_date(text: str, now: float) -> float | None:
    from email.utils import parsedate_to_datetime  # 6 ms that only those who are given a date pay

    try:
        when = parsedate_to_datetime(text)
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        return valid_delay(max(0.0, when.timestamp() - now))
    except (ValueError, TypeError, OverflowError, IndexError, OSError):
        return None
