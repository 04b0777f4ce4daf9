"""From a request to messages, with errors that name the field."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.tools._messages import messages_of
from steer_llm_sdk.providers.base import Image, Message

PIXEL = base64.b64encode(b"\x89PNG").decode()


@pytest.mark.parametrize("request_", ["Why?", {"query": "Why?"}, {"text": "Why?"}, {"prompt": "Why?"}])
def test_query_text_or_prompt_is_the_users_message(request_: Any) -> None:
    assert messages_of(request_) == (Message("user", "Why?"),)


def test_instructions_are_the_systems_message() -> None:
    assert messages_of("Why?", "Be brief.") == (Message("system", "Be brief."), Message("user", "Why?"))


def test_every_other_key_is_added_under_its_name() -> None:
    request = {"text": "Long text.", "query": "Summarise.", "language": "de", "limits": {"words": 5}}
    (message,) = messages_of(request)
    expected = 'Summarise.\n\ntext:\nLong text.\n\nlanguage:\nde\n\nlimits:\n{\n  "words": 5\n}'
    assert message.content == expected


def test_what_is_for_the_planner_is_not_shown() -> None:
    assert messages_of({"query": "q", "type": "summary", "options": {"budget": {}}}) == (Message("user", "q"),)


def test_keys_alone_will_do() -> None:
    assert messages_of({"subject": "x"}) == (Message("user", "subject:\nx"),)


@pytest.mark.parametrize("text", ["a\x00b", "\u202eabc", "\U0001f600", "x" * 1_000_000])
def test_odd_text_is_sent_as_it_is(text: str) -> None:
    assert messages_of(text) == (Message("user", text),)


def test_messages_are_sent_as_they_say() -> None:
    request = {
        "messages": [
            {"role": "system", "content": "s"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": "https://x/y"}],
            },
            {"role": "assistant", "content": "a"},
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}],
            },
            Message("user", "m"),
        ]
    }
    assert messages_of(request, "i") == (
        Message("system", "i"),
        Message("system", "s"),
        Message("user", ("t", Image(url="https://x/y"))),
        Message("assistant", "a"),
        Message("user", (Image(data=b"\x89PNG", media_type="image/png"),)),
        Message("user", "m"),
    )


def said(role: Any = "user", content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content, **more}]}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (5, "request"),
        (["x"], "request"),
        ({}, "request"),
        ({"type": "summary"}, "request"),
        ("", "query"),
        ({"query": " \n"}, "query"),
        ({"query": 5}, "query"),
        ({"query": "q", "data": object()}, "data"),
        ({"query": "q", "data": float("nan")}, "data"),
        ({"query": "q", "messages": [{"role": "user", "content": "x"}]}, "query"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        (said(role="tool"), "messages[0].role"),
        (said(role=None), "messages[0].role"),
        (said(name="x"), "messages[0].name"),
        (said(content=None), "messages[0].content"),
        (said(content=""), "messages[0].content"),
        (said(content=[]), "messages[0].content"),
        (said(content=["x", {"type": "audio"}]), "messages[0].content[1]"),
        (said(content=[{"type": "text"}]), "messages[0].content[0]"),
        (said(content=[{"type": "image_url", "image_url": "ftp://x"}]), "messages[0].content[0].image_url"),
        (said(content=[{"type": "image_url", "image_url": {}}]), "messages[0].content[0].image_url"),
        (
            said(content=[{"type": "image_url", "image_url": "data:image/png;base64,%%"}]),
            "messages[0].content[0].image_url",
        ),
        (
            said(content=[{"type": "image_url", "image_url": "data:image/png;base64,\u00e9"}]),
            "messages[0].content[0].image_url",
        ),
        (
            said(content=[{"type": "image_url", "image_url": "data:text/html;base64,eA=="}]),
            "messages[0].content[0].image_url",
        ),
    ],
)
def test_what_cannot_be_sent_is_refused_by_its_field(request_: Any, field: str) -> None:
    with pytest.raises(InvalidRequest, match="^" + re.escape(f"{field}: ")) as caught:
        messages_of(request_)
    assert caught.value.field == field


def test_the_bytes_of_an_image_are_not_in_the_error() -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages_of(said(content=[{"type": "image_url", "image_url": "data:image/png;base64,c2VjcmV0%"}]))
    assert "c2VjcmV0" not in str(caught.value)


def test_the_callers_request_is_not_written() -> None:
    request = {"query": "q", "more": [1]}
    messages_of(request)
    assert request == {"query": "q", "more": [1]}
