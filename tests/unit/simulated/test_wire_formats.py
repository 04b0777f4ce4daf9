"""Both wire formats without a socket: tokens, requests that cannot be read, the ends of streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from steer_llm_sdk.providers.simulated._anthropic import AnthropicWire
from steer_llm_sdk.providers.simulated._openai import OpenAIWire
from steer_llm_sdk.providers.simulated._sse import events_in
from steer_llm_sdk.providers.simulated._wire import ApiError, Reply, Wire, cut, estimate_tokens

OPENAI, ANTHROPIC = OpenAIWire(), AnthropicWire()
HELLO = [{"role": "user", "content": "hello"}]


def reply(text: str = "a longer answer than one piece holds") -> Reply:
    return Reply(id="1", model="m", text=text, finish="stop", input_tokens=3, output_tokens=9, created=0)


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("four", 1), ("fives", 2), ("é" * 4, 2), ("語", 1)])
def test_four_bytes_are_a_token(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


@pytest.mark.parametrize("text", ["plain words and more of them", "語" * 20, "mixed 語 é ü text"])
@pytest.mark.parametrize("limit", [1, 2, 3, 50])
def test_an_answer_is_cut_to_the_tokens_allowed_and_never_inside_a_character(text: str, limit: int) -> None:
    kept = cut(text, limit)
    assert text.startswith(kept)
    assert estimate_tokens(kept) <= limit
    assert kept == text or estimate_tokens(text) > limit


def test_the_question_is_the_first_user_message_in_either_format() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "x"}}]
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "two"},
    ]
    assert OPENAI.ask({"model": "m", "messages": messages}).question == "one"
    assert ANTHROPIC.ask({"model": "m", "max_tokens": 5, "messages": messages[1:]}).question == "one"


def test_input_is_counted_with_four_tokens_for_each_message_and_the_system_prompt_as_one() -> None:
    assert OPENAI.ask({"model": "m", "messages": HELLO}).input_tokens == 6
    assert ANTHROPIC.ask({"model": "m", "max_tokens": 1, "system": "four", "messages": HELLO}).input_tokens == 11


@pytest.mark.parametrize(
    ("wire", "body", "field"),
    [
        (OPENAI, {"messages": HELLO}, "model"),
        (OPENAI, {"model": 3, "messages": HELLO}, "model"),
        (OPENAI, {"model": "m"}, "messages"),
        (OPENAI, {"model": "m", "messages": []}, "messages"),
        (OPENAI, {"model": "m", "messages": ["hi"]}, "messages"),
        (OPENAI, {"model": "m", "messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        (OPENAI, {"model": "m", "messages": HELLO, "max_tokens": 0}, "max_tokens"),
        (OPENAI, {"model": "m", "messages": HELLO, "max_completion_tokens": "9"}, "max_completion_tokens"),
        (OPENAI, {"model": "m", "messages": HELLO, "seed": True}, "seed"),
        (OPENAI, {"model": "m", "messages": HELLO, "n": 2}, "n"),
        (ANTHROPIC, {"model": "m", "messages": HELLO}, "max_tokens"),
        (ANTHROPIC, {"model": "m", "messages": HELLO, "max_tokens": 5, "system": 3}, "system"),
    ],
)
def test_a_request_that_cannot_be_read_is_a_400_that_names_the_field(
    wire: Wire, body: dict[str, Any], field: str
) -> None:
    with pytest.raises(ApiError) as caught:
        wire.ask(body)
    assert (caught.value.status, caught.value.param) == (400, field)
    assert field in caught.value.message


@pytest.mark.parametrize(("wire", "ending"), [(OPENAI, 2), (ANTHROPIC, 2)])
def test_the_ending_of_a_stream_is_its_finish_reason_and_what_follows(wire: Wire, ending: int) -> None:
    events = list(wire.events(reply()))
    assert [wire.ends(event) for event in events] == [False] * (len(events) - ending) + [True] * ending


def test_a_stream_says_the_whole_text() -> None:
    said = [json.loads(event[6:]) for event in OPENAI.events(reply()) if not event.startswith(b"data: [DONE]")]
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in said) == reply().text


async def _arriving(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize(
    "pieces",
    [
        (b"data: 1\n\ndata: 2\n\nrest",),
        (b"data: 1\n", b"\nda", b"ta: 2\n\nre", b"st"),
        (b"data: 1\r\n\r", b"\ndata: 2\r\n\r\nrest"),
    ],
)
async def test_events_are_found_however_the_bytes_arrive(pieces: tuple[bytes, ...]) -> None:
    assert [event async for event in events_in(_arriving(*pieces))] == [b"data: 1\n\n", b"data: 2\n\n", b"rest"]
