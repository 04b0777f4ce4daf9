"""Each thing that can go wrong on the wire becomes one class of error, with what the provider said of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from canned import KEY, Answer, Canned, adapter_at, asking, chunk, event, message_start, raw, stream, text_block

from steer_llm_sdk.errors import (
    AuthenticationFailed,
    BadResponse,
    ConnectionFailed,
    ContentFiltered,
    ContextWindowExceeded,
    ModelNotFound,
    PermissionDenied,
    ProviderConflict,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    RequestRejected,
    TruncatedStream,
)
from steer_llm_sdk.providers.base import Message, ModelAdapter, ModelRequest
from steer_llm_sdk.providers.models import resolve_model
from steer_llm_sdk.providers.simulated import SimulatedServer

Start = Callable[[Answer], Awaitable[Canned]]


async def failure(adapter: ModelAdapter, request: ModelRequest) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await adapter.request(request)
    return caught.value


@pytest.mark.parametrize(
    ("fault", "kind", "retryable"),
    [
        ("400", RequestRejected, False),
        ("401", AuthenticationFailed, False),
        ("403", PermissionDenied, False),
        ("404", ModelNotFound, False),
        ("408", ProviderTimeout, True),
        ("409", ProviderConflict, False),
        ("413", RequestRejected, False),
        ("422", RequestRejected, False),
        ("429", RateLimited, True),
        ("500", ProviderUnavailable, True),
        ("502", ProviderUnavailable, True),
        ("503", ProviderUnavailable, True),
        ("504", ProviderUnavailable, True),
        ("529", ProviderUnavailable, True),
    ],
)
async def test_a_status_becomes_its_class(
    simulated: SimulatedServer,
    adapter: ModelAdapter,
    question: ModelRequest,
    fault: str,
    kind: type[ProviderError],
    retryable: bool,
) -> None:
    await simulated.set_faults(fault)
    error = await failure(adapter, question)
    assert type(error) is kind
    assert error.is_retryable is retryable
    assert error.status_code == int(fault)
    assert error.provider == adapter.target
    assert error.request_id is not None
    assert error.code is not None
    assert error.__cause__ is error.original_error is not None
    assert adapter.name in str(error)
    assert f"answered {fault}" in str(error)
    assert simulated.requests == 1, "the adapter has no retries of its own"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("drop", ConnectionFailed),
        ("reset", ConnectionFailed),
        ("reset:chunks=0", ConnectionFailed),
        ("reset:chunks=4", ConnectionFailed),
        ("no-end", TruncatedStream),
        ("malformed", BadResponse),
        ("malformed:chunks=0", BadResponse),
        ("malformed:chunks=4", BadResponse),
        ("html", BadResponse),
        ("empty", BadResponse),
        ("wrong-type", BadResponse),
    ],
)
async def test_an_answer_that_is_none_becomes_its_class(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest, fault: str, kind: type[ProviderError]
) -> None:
    await simulated.set_faults(fault)
    error = await failure(adapter, question)
    assert type(error) is kind
    assert error.is_retryable
    assert error.status_code is None
    assert simulated.requests == 1


async def test_a_page_instead_of_a_stream_is_quoted(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    await simulated.set_faults("html")
    assert "text/html; charset=utf-8 instead of a stream of events: '<!DOCTYPE html>" in str(
        await failure(adapter, question)
    )


async def test_a_refused_connection_was_not_sent(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    await simulated.set_faults("refuse")
    error = await failure(adapter, question)
    assert type(error) is ConnectionFailed
    assert error.sent is False
    assert simulated.base_url in str(error)
    assert simulated.requests == 0


async def test_a_connection_that_broke_may_have_been_billed(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    await simulated.set_faults("reset")
    error = await failure(adapter, question)
    assert isinstance(error, ConnectionFailed)
    assert error.sent is True


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        ("429:retry-after=2", 2.0),
        ("429:retry-after=1.5", 1.5),
        ("429:retry-after-ms=1500", 1.5),
        ("429:retry-after-ms=250,retry-after=9", 0.25),
        ("503:retry-after=7", 7.0),
        ("429:retry-after=soon", None),
        ("429", None),
    ],
)
async def test_retry_after_comes_back_in_seconds(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest, fault: str, seconds: float | None
) -> None:
    await simulated.set_faults(fault)
    assert (await failure(adapter, question)).retry_after == seconds


async def test_retry_after_as_a_date_is_the_time_until_then(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    await simulated.set_faults("429:retry-after=date+90")
    error = await failure(adapter, question)
    assert error.retry_after is not None
    assert 60 < error.retry_after <= 90


async def test_a_conflict_with_a_hint_may_be_tried_again(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    await simulated.set_faults("409:retry-after=1")
    assert (await failure(adapter, question)).is_retryable


@pytest.mark.parametrize(("fault", "retryable"), [("503:should-retry=false", False), ("400:should-retry=true", True)])
async def test_what_the_provider_says_of_retrying_is_believed(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest, fault: str, retryable: bool
) -> None:
    await simulated.set_faults(fault)
    assert (await failure(adapter, question)).is_retryable is retryable


async def test_an_exhausted_quota_is_no_rate_limit(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest, wire: str
) -> None:
    await simulated.set_faults("quota")
    error = await failure(adapter, question)
    assert type(error) is QuotaExhausted
    assert not error.is_retryable
    assert (error.status_code, error.code) == {
        "openai": (429, "insufficient_quota"),
        "anthropic": (402, "billing_error"),
    }[wire]


@pytest.mark.parametrize("chunks", [0, 3])
@pytest.mark.parametrize(("status", "kind"), [(500, ProviderUnavailable), (429, RateLimited), (400, RequestRejected)])
async def test_an_error_inside_a_stream_becomes_its_class(
    simulated: SimulatedServer,
    adapter: ModelAdapter,
    question: ModelRequest,
    status: int,
    kind: type[ProviderError],
    chunks: int,
) -> None:
    await simulated.set_faults(f"error-event:chunks={chunks},status={status}")
    error = await failure(adapter, question)
    assert type(error) is kind
    assert "inside its stream" in str(error)
    assert error.request_id is not None


async def test_overload_inside_a_stream_is_unavailable(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    await simulated.set_faults("error-event:status=529")
    assert type(await failure(adapter, question)) is ProviderUnavailable


async def test_a_key_that_is_refused_is_told_where_it_came_from(
    simulated: SimulatedServer, monkeypatch: pytest.MonkeyPatch, question: ModelRequest
) -> None:
    await simulated.set_faults("401")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{simulated.base_url}/v1")
    adapter = resolve_model("openai:gpt-4o-2024-05-13")
    error = await failure(adapter, question)
    await adapter.aclose()
    assert "(the key came from OPENAI_API_KEY)" in str(error)


async def test_a_question_that_was_not_recorded_is_refused_with_a_sentence() -> None:
    adapter = resolve_model("recorded:demo")
    error = await failure(adapter, asking("What is the weather?"))
    await adapter.aclose()
    assert type(error) is RequestRejected
    assert "answers its own 100 questions and no others" in str(error)


async def test_a_prompt_that_is_too_long_says_so(canned: Start, wire: str) -> None:
    body = {
        "openai": b'{"error": {"message": "too long", "code": "context_length_exceeded"}}',
        "anthropic": b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 > 8"}}',
    }[wire]
    server = await canned(raw("400 Bad Request", "application/json", body))
    adapter = adapter_at(server.url, wire)
    error = await failure(adapter, asking())
    await adapter.aclose()
    assert type(error) is ContextWindowExceeded


async def test_a_filtered_prompt_is_content_filtered(canned: Start) -> None:
    body = b'{"error": {"message": "no", "type": "invalid_request_error", "code": "content_filter"}}'
    server = await canned(raw("400 Bad Request", "application/json", body))
    adapter = adapter_at(server.url, "openai")
    error = await failure(adapter, asking())
    await adapter.aclose()
    assert type(error) is ContentFiltered
    assert error.code == "content_filter"


FILTERED = {
    "openai": (
        chunk({"content": "Well"}),
        chunk({}, "content_filter", usage={"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}),
        b"data: [DONE]\n\n",
    ),
    "anthropic": (
        message_start(),
        text_block("Well"),
        event("message_delta", delta={"stop_reason": "refusal"}, usage={"output_tokens": 1}),
        event("message_stop"),
    ),
}


async def test_a_withheld_answer_is_content_filtered_and_paid_for(canned: Start, wire: str) -> None:
    server = await canned(stream(*FILTERED[wire]))
    adapter = adapter_at(server.url, wire)
    error = await failure(adapter, asking())
    await adapter.aclose()
    assert type(error) is ContentFiltered
    assert not error.is_retryable
    assert error.usage["total_tokens"] == {"openai": 6, "anthropic": 11}[wire]


async def test_a_stream_that_broke_off_claims_no_usage(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    for fault in ("no-end", "reset:chunks=3", "malformed:chunks=3"):
        await simulated.set_faults(fault)
        assert (await failure(adapter, question)).usage == {}


async def test_a_stream_of_nothing_is_truncated(canned: Start, wire: str) -> None:
    server = await canned(stream())
    adapter = adapter_at(server.url, wire)
    error = await failure(adapter, asking())
    await adapter.aclose()
    assert type(error) is TruncatedStream


async def test_a_redirect_is_not_followed_and_says_where_it_points(canned: Start, wire: str) -> None:
    server = await canned(raw("307 Temporary Redirect", "text/plain", b"", "location: https://elsewhere.example/v1"))
    adapter = adapter_at(server.url, wire)
    error = await failure(adapter, asking())
    await adapter.aclose()
    assert type(error) is BadResponse
    assert "redirects to https://elsewhere.example/v1" in str(error)


async def test_the_provider_is_well_again_after_each_fault(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    for fault in ("reset", "malformed", "html", "503", "drop", "refuse"):
        await simulated.set_faults(fault)
        await failure(adapter, question)
        await simulated.set_faults()
        assert (await adapter.request(question)).text


async def test_nothing_is_sent_that_cannot_be_answered(canned: Start, wire: str) -> None:
    server = await canned(stream())
    adapter = adapter_at(server.url, wire)
    for request, field in (
        (ModelRequest(messages=()), "messages"),
        (ModelRequest(messages=(Message("system", "Be brief."),)), "messages"),
        (replace(asking(), max_tokens=0), "max_tokens"),
    ):
        error = await failure(adapter, request)
        assert type(error) is RequestRejected
        assert str(error).startswith(field)
        assert not error.is_retryable
    await adapter.aclose()
    assert server.seen == []
