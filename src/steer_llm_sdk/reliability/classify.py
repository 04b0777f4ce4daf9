"""From an exception to what it means: decided by type and status, never by the English in the message."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from steer_llm_sdk.errors import (
    RETRYABLE,
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


@dataclass(frozen=True, slots=True)
class ErrorClassification:
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
    ("pydantic_ai", "UnexpectedModelBehavior"): ErrorCategory.BAD_RESPONSE,
}
_PACKAGE = {"httpx2": "httpx", "httpcore": "httpx", "httpcore2": "httpx"}

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
            valid_delay(error.retry_after),
            error.status_code,
            error.declared_retryable,
            isinstance(error, Rejected),
            _maybe_billed(error.category, error.status_code) and getattr(error, "sent", True) is True,
        )
    if isinstance(error, Rejected):
        return ErrorClassification(ErrorCategory.UNKNOWN, False, valid_delay(error.retry_after), refused=True)
    if isinstance(error, InvalidRequest):
        return ErrorClassification(ErrorCategory.VALIDATION, False)
    if isinstance(error, asyncio.CancelledError):
        return ErrorClassification(ErrorCategory.UNKNOWN, False, maybe_billed=True)
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


def _of_foreign(error: BaseException) -> ErrorClassification:
    status = _status_of(error)
    headers = _headers_of(error)
    retry_after = parse_retry_after(headers, time.time()) if headers is not None else None
    named = getattr(error, "retry_after", None)
    if retry_after is None and isinstance(named, (int, float)):
        retry_after = valid_delay(named)
    category = _category_of(error, status)
    declared = getattr(error, "is_retryable", None)
    declared = declared if isinstance(declared, bool) else _should_retry(headers)
    retryable = category in RETRYABLE or (category is ErrorCategory.CONFLICT and retry_after is not None)
    return ErrorClassification(
        category,
        retryable if declared is None else declared,
        retry_after,
        status,
        declared,
        maybe_billed=_maybe_billed(category, status),
    )


def _category_of(error: BaseException, status: int | None) -> ErrorCategory:
    for base in type(error).__mro__:
        package = base.__module__.partition(".")[0]
        found = _BY_NAME.get((_PACKAGE.get(package, package), base.__name__))
        if found is not None:
            return found
    if status is not None:
        quota = status == 429 and getattr(error, "code", None) == "insufficient_quota"
        return ErrorCategory.QUOTA if quota else category_of_status(status)
    return next((category for kind, category in _BY_TYPE if isinstance(error, kind)), ErrorCategory.UNKNOWN)


def _maybe_billed(category: ErrorCategory, status: int | None) -> bool:
    # An error status is an answer: nobody bills for it. Silence and broken answers may have been billed.
    return category in _MAYBE_BILLED and (status is None or status < 400)


def _status_of(error: BaseException) -> int | None:
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and not isinstance(status, bool) and 100 <= status < 600:
                return status
    return None


def _headers_of(error: BaseException) -> Mapping[str, str] | None:
    for holder in (error, getattr(error, "response", None)):
        headers = getattr(holder, "headers", None)
        if isinstance(headers, Mapping):
            return {str(name).lower(): str(value) for name, value in headers.items()}
    return None


def _should_retry(headers: Mapping[str, str] | None) -> bool | None:
    return {"true": True, "false": False}.get((headers or {}).get("x-should-retry", "").lower())


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
    try:
        when = parsedate_to_datetime(text)
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        return valid_delay(max(0.0, when.timestamp() - now))
    except (ValueError, TypeError, OverflowError, IndexError, OSError):
        return None
