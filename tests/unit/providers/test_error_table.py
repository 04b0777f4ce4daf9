"""What the client libraries raise, also what no server in the tests makes them raise.

Status by status, as a server answers: tests/integration/providers/test_faults_become_errors.py.
"""

from __future__ import annotations

import anthropic
import httpx2
import openai
import pytest
from pydantic import SecretStr
from pydantic_ai import exceptions as ai

from steer_llm_sdk.errors import (
    BadResponse,
    ConnectionFailed,
    ContentFiltered,
    ContextWindowExceeded,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    RequestRejected,
    TruncatedStream,
)
from steer_llm_sdk.providers._endpoint import Endpoint
from steer_llm_sdk.providers._llm.errors import as_provider_error
from steer_llm_sdk.providers._llm.exchange import Exchange

ENDPOINT = Endpoint(
    name="openai:m",
    provider="openai",
    wire="openai",
    model="m",
    base_url="http://127.0.0.1:9/v1",
    target="openai@http://127.0.0.1:9/v1",
    key_from="a test",
    api_key=SecretStr("sk-a"),
)
REQUEST = httpx2.Request("POST", "http://127.0.0.1:9/v1/chat/completions")


def answered(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=REQUEST, headers={"retry-after": "3"})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ai.ModelRateLimitError("m", "slow down"), RateLimited),
        (ai.ModelQuotaExceededError("m", "no credit"), QuotaExhausted),
        (ai.ModelHTTPError(429, "m"), RateLimited),
        (ai.ModelHTTPError(402, "m"), QuotaExhausted),
        (ai.ModelHTTPError(418, "m"), RequestRejected),
        (ai.ModelHTTPError(425, "m"), ProviderUnavailable),
        (ai.ModelHTTPError(599, "m"), ProviderUnavailable),
        (ai.ModelContextWindowExceededError("m", "too long"), ContextWindowExceeded),
        (ai.ModelOverloadedError("m", "busy"), ProviderUnavailable),
        (ai.ModelConnectionError("m", "no", phase="connect"), ConnectionFailed),
        (ai.ModelTimeoutError("m", "no", phase="connect"), ConnectionFailed),
        (ai.ModelTimeoutError("m", "no", phase="read"), ProviderTimeout),
        (ai.ModelRequestTimeout("m", 3.0), ProviderTimeout),
        (ai.ContentFilterError("no"), ContentFiltered),
        (ai.ModelAPIError("m", "not JSON"), BadResponse),
        (ai.UnexpectedModelBehavior("what is this"), BadResponse),
        (ai.UserError("not so"), RequestRejected),
        (IndexError("list index out of range"), BadResponse),
        (TypeError("'NoneType' object is not iterable"), BadResponse),
        (openai.RateLimitError("slow down", response=answered(429), body=None), RateLimited),
        (openai.APITimeoutError(request=REQUEST), ProviderTimeout),
        (openai.APIConnectionError(request=REQUEST), ConnectionFailed),
        (anthropic.InternalServerError("oops", response=answered(529), body=None), ProviderUnavailable),
        (anthropic.APITimeoutError(request=REQUEST), ProviderTimeout),
        (anthropic.APIConnectionError(request=REQUEST), ConnectionFailed),
        (httpx2.ConnectError("refused"), ConnectionFailed),
        (httpx2.ConnectTimeout("slow"), ConnectionFailed),
        (httpx2.ReadTimeout("slow"), ProviderTimeout),
        (httpx2.ReadError("reset"), ConnectionFailed),
        (httpx2.RemoteProtocolError("cut"), ConnectionFailed),
        (ConnectionResetError("reset"), ConnectionFailed),
    ],
)
def test_each_has_its_class(error: Exception, kind: type[ProviderError]) -> None:
    failure = as_provider_error(error, ENDPOINT, Exchange(sent=True))
    assert type(failure) is kind
    assert failure.original_error is failure.__cause__ is error
    assert failure.provider == ENDPOINT.target
    assert str(failure).startswith("openai:m: ")


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        (ai.ModelConnectionError("m", "no", phase="pool"), False),
        (ai.ModelConnectionError("m", "no", phase="connect"), False),
        (ai.ModelConnectionError("m", "no", phase="write"), True),
        (ai.ModelConnectionError("m", "no", phase="read"), True),
        (ai.ModelConnectionError("m", "no"), True),
        (httpx2.ConnectError("refused"), False),
        (httpx2.WriteError("reset"), True),
    ],
)
def test_only_a_connection_that_never_was_cannot_have_been_billed(error: Exception, sent: bool) -> None:
    failure = as_provider_error(error, ENDPOINT, Exchange(sent=True))
    assert isinstance(failure, ConnectionFailed)
    assert failure.sent is sent


def test_what_cannot_be_prepared_is_a_rejected_request_and_no_bad_response() -> None:
    assert type(as_provider_error(TypeError("no"), ENDPOINT, Exchange())) is RequestRejected


def test_a_stream_that_was_read_to_its_end_without_a_marker_is_truncated() -> None:
    exchange = Exchange(sent=True)
    exchange.take(b'data: {"choices": [{"delta": {"content": "data: [DONE]"')
    exchange.take(None)
    assert type(as_provider_error(ValueError("half a line"), ENDPOINT, exchange)) is TruncatedStream


def test_a_provider_error_stays_itself() -> None:
    error = RequestRejected("no", "openai")
    assert as_provider_error(error, ENDPOINT, Exchange()) is error


def test_a_long_explanation_is_cut() -> None:
    failure = as_provider_error(
        ai.ModelHTTPError(400, "m", body={"message": "x" * 9000}), ENDPOINT, Exchange(sent=True)
    )
    assert len(str(failure)) < 500
