"""From the exceptions of the client libraries to ProviderError.

The type of an exception goes before its status: it tells an exhausted quota from a rate limit, and a prompt that is too
long from one that is malformed. An exception that no table lists is a bad response if the request was sent, else a
rejected request.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from typing import Any

import httpx2
from pydantic_ai import exceptions as ai

from steer_llm_sdk import errors
from steer_llm_sdk.errors import ProviderError
from steer_llm_sdk.providers._endpoint import Endpoint
from steer_llm_sdk.providers._llm.exchange import LONGEST_SILENCE, Exchange
from steer_llm_sdk.reliability.classify import classify, parse_retry_after

_BY_TYPE: tuple[tuple[type[Exception], type[ProviderError]], ...] = (
    (ai.ModelRateLimitError, errors.RateLimited),
    (ai.ModelQuotaExceededError, errors.QuotaExhausted),
    (ai.ModelContextWindowExceededError, errors.ContextWindowExceeded),
    (ai.ModelNotFoundError, errors.ModelNotFound),
    (ai.ModelUnavailableError, errors.ProviderUnavailable),
    (ai.ModelServerError, errors.ProviderUnavailable),
    (ai.ContentFilterError, errors.ContentFiltered),
    (ai.ModelRequestTimeout, errors.ProviderTimeout),
    (ai.ModelTimeoutError, errors.ProviderTimeout),
    (ai.ModelConnectionError, errors.ConnectionFailed),
    (ai.UserError, errors.RequestRejected),
    (httpx2.TimeoutException, errors.ProviderTimeout),
    (httpx2.TransportError, errors.ConnectionFailed),
    (ConnectionError, errors.ConnectionFailed),
)
_BY_NAME = {"APITimeoutError": errors.ProviderTimeout, "APIConnectionError": errors.ConnectionFailed}
"""By name, since only the library in use is loaded; both have these two. The first is a subclass of the second, so the
nearest class decides."""
_CLIENTS = ("openai", "anthropic")
_LONGEST_DETAIL = 400


def as_provider_error(error: Exception, endpoint: Endpoint, exchange: Exchange) -> ProviderError:
    """The ProviderError for `error`. It keeps `error` as its cause, unless the traceback of `error` shows the key.

    Its usage is empty: what a stream had counted when it broke is not what is billed.
    """
    if isinstance(error, ProviderError):
        return error
    kind = _class_of(error, exchange)
    if kind is errors.ProviderTimeout and not _was_sent(error):
        kind = errors.ConnectionFailed
    failure = _build(kind, error, endpoint, exchange)
    failure.is_retryable = classify(error).declared
    failure.original_error = failure.__cause__ = None if _betrays(error, endpoint) else error
    return failure


def _betrays(error: BaseException, endpoint: Endpoint) -> bool:
    """Whether the key stands in the traceback, or in what the error or one of its causes holds."""
    held = [repr((cause.args, vars(cause))) for cause in _chain(error)]
    return endpoint.has_key_in("".join([*traceback.format_exception(error), *held]))


def _chain(error: BaseException) -> list[BaseException]:
    """The error and everything it came from, also what a traceback would leave out."""
    found = [error]
    for each in found:
        group = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        found += [cause for cause in (each.__cause__, each.__context__, *group) if cause and cause not in found]
    return found


def _class_of(error: Exception, exchange: Exchange) -> type[ProviderError]:
    if exchange.silence is not None:
        return errors.ProviderTimeout
    if exchange.no_stream is not None:
        return errors.BadResponse
    by_code = errors.error_of_code(_code_of(error))
    if by_code is not None:
        return by_code
    for known, kind in _BY_TYPE:
        if isinstance(error, known):
            return kind
    for name in _names_of(error):
        if name in _BY_NAME:
            return _BY_NAME[name]
    by_status = errors.error_of_status(_status_of(error))
    if by_status is not None:
        return by_status
    if isinstance(error, ai.ModelAPIError) and error.provider_error_type == "invalid_request_error":
        return errors.RequestRejected
    if exchange.truncated:
        return errors.TruncatedStream
    return errors.BadResponse if exchange.sent else errors.RequestRejected


def _build(kind: type[ProviderError], error: Exception, endpoint: Endpoint, exchange: Exchange) -> ProviderError:
    code = _code_of(error)
    details: dict[str, Any] = {
        "status_code": _status_of(error),
        "retry_after": parse_retry_after(exchange.headers, time.time()),
        "request_id": exchange.request_id,
        "rate_limit": exchange.rate_limit,
        "code": None if code is None else endpoint.scrub(code),
    }
    message = endpoint.scrub(f"{endpoint.name}: {_says(kind, error, endpoint, exchange)}")
    if issubclass(kind, errors.ConnectionFailed):
        return kind(message, endpoint.target, sent=_was_sent(error), **details)
    return kind(message, endpoint.target, **details)


def _status_of(error: Exception) -> int | None:
    """The status of the answer, or the one that a provider's error inside a stream stands for."""
    if isinstance(error, ai.ModelHTTPError) or "APIStatusError" in _names_of(error):
        status: int = error.status_code  # type: ignore[attr-defined]  # All of them have one.
        return status
    return None


def _names_of(error: Exception) -> list[str]:
    """What a client library calls it and its bases, the nearest first; nothing where it is of neither."""
    return [kind.__name__ for kind in type(error).__mro__ if kind.__module__.partition(".")[0] in _CLIENTS]


def _code_of(error: Exception) -> str | None:
    if isinstance(error, ai.ModelAPIError):
        return error.provider_error_code or error.provider_error_type
    return None


def _was_sent(error: Exception) -> bool:
    """Of a broken connection or a timeout: whether the request may have reached the provider."""
    return _status_of(error) is not None or classify(error).maybe_billed


def _says(kind: type[ProviderError], error: Exception, endpoint: Endpoint, exchange: Exchange) -> str:
    """A sentence: what happened, the provider's own message, and a way out where there is one."""
    if exchange.silence is not None:
        limit, seconds = exchange.silence
        return f"no byte for {seconds:g} s ({limit}); the call may have been billed"
    if exchange.no_stream is not None:
        return f"answered with {exchange.no_stream}"
    if exchange.status is not None and 300 <= exchange.status < 400:
        return f"redirects to {exchange.headers.get('location', 'nowhere')}; write that address as base_url"
    status = _status_of(error)
    if status is not None:
        where = f"reported {status} inside its stream" if exchange.began else f"answered {status}"
        return f"{where}: {_detail(error, endpoint)}{_advice(kind, endpoint)}"
    if isinstance(error, ai.ModelAPIError) and error.in_stream:
        return f"reported an error inside its stream: {_detail(error, endpoint)}"
    if issubclass(kind, errors.ConnectionFailed):
        return _connection(error, endpoint)
    if kind is errors.TruncatedStream:
        return "the stream stopped without a finish reason or an end marker"
    if kind is errors.ProviderTimeout:
        return f"no byte for {LONGEST_SILENCE:g} s; the call may have been billed"
    detail = _detail(error, endpoint)
    return f"the answer cannot be read: {detail}" if exchange.sent else detail


def _connection(error: Exception, endpoint: Endpoint) -> str:
    if _was_sent(error):
        return f"the connection broke before the answer was complete: {_root(error)}"
    start = "; start the server, or write its address as base_url" if endpoint.local else ""
    return f"nothing could be reached at {endpoint.base_url or 'the recorded server'}: {_root(error)}{start}"


def _advice(kind: type[ProviderError], endpoint: Endpoint) -> str:
    if kind is errors.AuthenticationFailed:
        return f" (the key came from {endpoint.key_from})"
    return ""


def _detail(error: Exception, endpoint: Endpoint) -> str:
    """The provider's own message, else the exception's. It is scrubbed before it is cut: half a key is not found."""
    body = error.body if isinstance(error, ai.ModelAPIError) else None
    inner = body.get("error", body) if isinstance(body, Mapping) else body
    message = inner.get("message") if isinstance(inner, Mapping) else inner
    text = endpoint.scrub(" ".join(str(message or error or type(error).__name__).split()))
    return text if len(text) <= _LONGEST_DETAIL else text[:_LONGEST_DETAIL] + "..."


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
