"""What is shown on a terminal while a run goes on."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from steer_llm_sdk.cli._live import Live, said_of
from steer_llm_sdk.models.events import StreamDeltaEvent, StreamStartEvent


def told(event_type: str, **data: Any) -> StreamDeltaEvent:
    return StreamDeltaEvent({"event_type": event_type, "data": data})


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (told("retry_attempt", error="ProviderTimeout", delay_ms=1240.0), "provider timeout, again in 1.2 s"),
        (told("circuit_breaker", provider="openai@http://x", state="open"), "circuit of openai is open"),
        (told("fallback", **{"from": "a", "to": "b", "error": {"code": "timeout"}}), "a failed (timeout); asking b"),
        (told("warning", message="half\x1b[31m done"), "half[31m done"),
        (told("timeout", completed=1, k=3), "timeout after 1 of 3 answers"),
        (told("replicate_done", valid=True), None),
        (told("something_else"), None),
        (StreamDeltaEvent("some text"), None),
        (StreamDeltaEvent({"of": "a tool's own"}), None),
        (StreamStartEvent(), None),
    ],
)
def test_what_is_news_is_said_in_words_and_the_rest_is_not(event: Any, said: str | None) -> None:
    assert said_of(event) == said


def shown(*events: StreamDeltaEvent, terminal: bool, spinner: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, color_system=None, width=80, markup=False)
    with Live(console, spinner=spinner) as live:
        for event in events:
            live.on_event(event)
    return out.getvalue()


BUNDLE = (
    told("bundle_started", k=3),
    told("replicate_done", valid=True),
    told("retry_attempt", error="RateLimited", delay_ms=500),
    told("retry_attempt", error="RateLimited", delay_ms=500),
    told("replicate_done", valid=False),
)


def test_a_terminal_sees_answers_and_retries_counted() -> None:
    text = shown(*BUNDLE, terminal=True)
    assert "2 of 3 answers · 1 not valid · 2 retries" in text
    assert "rate limited, again in 0.5 s" in text


def test_without_a_spinner_only_the_news_is_shown() -> None:
    text = shown(*BUNDLE, terminal=True, spinner=False)
    assert "of 3 answers" not in text
    assert text.splitlines() == ["  rate limited, again in 0.5 s"] * 2


def test_where_no_terminal_is_nothing_is_written() -> None:
    assert shown(*BUNDLE, terminal=False) == ""
