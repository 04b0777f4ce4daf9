"""A key is shown to the server it is for, and to nothing else."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Awaitable, Callable

import pytest
from canned import (
    KEY,
    OK_ANTHROPIC,
    OK_OPENAI,
    Answer,
    Canned,
    adapter_at,
    asking,
    chunk,
    event,
    message_start,
    raw,
    stream,
)

from steer_llm_sdk.errors import AuthenticationFailed, InvalidRequest, ProviderError
from steer_llm_sdk.providers.base import ModelAdapter
from steer_llm_sdk.providers.models import Model, resolve_model

Start = Callable[[Answer], Awaitable[Canned]]
ECHO = f"Incorrect API key provided: {KEY}. You can find your key at https://example.com."


def told_by(error: BaseException) -> str:
    """Everything of an error and its causes that a log, an event or a person may see."""
    shown = [repr(error), str(error), *traceback.format_exception(error), repr(vars(error))]
    cause = error.__cause__ or error.__context__
    return "\n".join(shown) + ("" if cause is None else told_by(cause))


async def failure(adapter: ModelAdapter) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await adapter.request(asking())
    await adapter.aclose()
    return caught.value


ERRORS = {
    "openai": '{"error": {"message": "%s", "type": "invalid_request_error", "code": "invalid_api_key"}}',
    "anthropic": '{"type": "error", "error": {"type": "authentication_error", "message": "%s"}}',
}


async def test_a_key_that_the_provider_echoes_is_not_repeated(canned: Start, wire: str) -> None:
    server = await canned(raw("401 Unauthorized", "application/json", (ERRORS[wire] % ECHO).encode()))
    error = await failure(adapter_at(server.url, wire))
    assert type(error) is AuthenticationFailed
    assert "Incorrect API key provided: [redacted]" in str(error)
    assert KEY not in told_by(error)
    assert error.original_error is error.__cause__ is error.__context__ is None


async def test_a_half_masked_key_is_not_repeated_either(canned: Start, wire: str) -> None:
    masked = ERRORS[wire] % "Incorrect API key provided: sk-proj-abcd****************wxyz"
    server = await canned(raw("401 Unauthorized", "application/json", masked.encode()))
    assert "wxyz" not in str(await failure(adapter_at(server.url, wire)))


BROKEN = {
    "openai": [chunk({"content": "a"}), b'data: {"error": {"message": "bad key %s", "type": "server_error"}}\n\n'],
    "anthropic": [message_start(), event("error", error={"type": "api_error", "message": "bad key %s"})],
}


async def test_neither_is_one_in_a_stream_or_on_a_page(canned: Start, wire: str) -> None:
    events = [part.replace(b"%s", KEY.encode()) for part in BROKEN[wire]]
    for answer in (
        stream(*events),
        raw("200 OK", "text/html", f"<p>{KEY}</p>".encode()),
        raw("503 Unavailable", "text/plain", f"try later with {KEY}".encode()),
        raw("307 Moved", "text/plain", b"", f"location: http://127.0.0.1/?key={KEY}"),
    ):
        server = await canned(answer)
        error = await failure(adapter_at(server.url, wire))
        assert KEY not in told_by(error)
        assert "[redacted]" in str(error)


async def test_where_nothing_shows_the_key_the_cause_is_kept(canned: Start, wire: str) -> None:
    server = await canned(raw("500 Oops", "application/json", (ERRORS[wire] % "oops").encode()))
    error = await failure(adapter_at(server.url, wire))
    assert error.original_error is error.__cause__ is not None
    assert KEY not in told_by(error)


def test_no_object_shows_its_key() -> None:
    for key in (KEY, Model("openai:m", api_key=KEY).api_key):
        model = Model("openai:m", base_url="http://127.0.0.1:1/v1", api_key=key)
        adapter = resolve_model(model)
        for thing in (model, adapter, vars(adapter), [model], model.api_key):
            assert KEY not in repr(thing)
            assert KEY not in str(thing)


def test_a_password_in_an_address_is_refused_unseen() -> None:
    for url in (f"https://user:{KEY}@example.com/v1", f"https://example.com/v1?key={KEY}"):
        with pytest.raises(InvalidRequest, match="leave out user, password") as caught:
            Model("openai:m", base_url=url)
        assert KEY not in told_by(caught.value)


async def test_no_log_line_shows_the_key(canned: Start, wire: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = await canned(stream(*(OK_OPENAI if wire == "openai" else OK_ANTHROPIC)))
    adapter = adapter_at(server.url, wire)
    await adapter.request(asking())
    await adapter.aclose()
    assert caplog.records
    assert KEY not in caplog.text


async def test_a_reply_has_nothing_of_the_key(canned: Start, wire: str) -> None:
    server = await canned(stream(*(OK_OPENAI if wire == "openai" else OK_ANTHROPIC)))
    adapter = adapter_at(server.url, wire)
    reply = await adapter.request(asking())
    await adapter.aclose()
    assert KEY not in repr(reply)
    assert KEY.encode() not in pickle.dumps(reply)


NAMES = {
    "openai": {"error": {"message": "no", "type": KEY, "code": KEY}},
    "anthropic": {"type": "error", "error": {"type": KEY, "message": "no"}},
}
HALF_JSON = {
    "openai": b'data: {"id": "%s\n\n' % KEY.encode(),
    "anthropic": b'event: message_start\ndata: {"id": "%s\n\n' % KEY.encode(),
}


async def test_a_key_in_the_names_that_a_provider_gives_an_error_is_not_repeated(canned: Start, wire: str) -> None:
    body, plain = json.dumps(NAMES[wire]).encode(), (ERRORS[wire] % "no").encode()
    for answer in (
        raw("401 Unauthorized", "application/json", body),
        raw("401 Unauthorized", "application/json", plain, f"x-request-id: {KEY}", f"request-id: {KEY}"),
        stream(b"event: error\ndata: " + body + b"\n\n"),
        stream(HALF_JSON[wire]),
        raw("200 OK", "text/event-stream", b"", f"x-request-id: {KEY}"),
    ):
        server = await canned(answer)
        assert KEY not in told_by(await failure(adapter_at(server.url, wire)))


async def test_half_a_key_where_a_long_explanation_is_cut_is_not_repeated(canned: Start, wire: str) -> None:
    for length in (270, 290, 370, 390):
        text = "x" * (length - 1) + " " + KEY
        for answer in (
            raw("400 Bad Request", "application/json", (ERRORS[wire] % text).encode()),
            raw("200 OK", "text/plain", text.encode()),
        ):
            server = await canned(answer)
            assert KEY[:6] not in told_by(await failure(adapter_at(server.url, wire)))


def with_the_key(wire: str) -> Answer:
    """A good answer that repeats the key wherever it gives something a name."""
    known = {"openai": b"gpt-test-1", "anthropic": b"claude-test-1"}
    events = b"".join(OK_OPENAI if wire == "openai" else OK_ANTHROPIC)
    named = events.replace(known[wire], KEY.encode()).replace(b'"stop"', f'"{KEY}"'.encode())
    ids = (f"x-request-id: {KEY}", f"request-id: {KEY}")
    return raw("200 OK", "text/event-stream", named.replace(b"end_turn", KEY.encode()), *ids)


async def test_a_key_in_the_names_of_a_good_answer_is_not_repeated(canned: Start, wire: str) -> None:
    server = await canned(with_the_key(wire))
    adapter = adapter_at(server.url, wire)
    reply = await adapter.request(asking())
    await adapter.aclose()
    assert (reply.model, reply.request_id, reply.text) == ("[redacted]", "[redacted]", "yes")
    assert KEY not in repr(reply)


async def test_a_key_too_short_to_be_one_garbles_no_message_and_drops_no_cause(canned: Start, wire: str) -> None:
    server = await canned(raw("500 Oops", "application/json", (ERRORS[wire] % "broken ollama link").encode()))
    base_url = f"{server.url}/v1" if wire == "openai" else server.url
    for key in ("ollama", "k"):
        error = await failure(resolve_model(Model(f"{wire}:ollama-m", base_url=base_url, api_key=key)))
        assert str(error) == f"{wire}:ollama-m: answered 500: broken ollama link"
        assert error.original_error is error.__cause__ is not None
