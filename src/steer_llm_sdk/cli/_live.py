"""What a run is doing, on a terminal while it does it. Where nobody looks nothing is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.text import Text

from steer_llm_sdk.cli._show import printable
from steer_llm_sdk.models.events import StreamDeltaEvent, StreamEvent


class Live:
    """A spinner on stderr that counts answers, and a line for each retry, circuit and fallback.

        with Live(console(stderr=True)) as live:
            await orchestrator.run(..., event_manager=EventManager(on_create_event=live.on_event))

    `spinner` False leaves the spinner out: text that streams on the same terminal has no room for it.
    """

    def __init__(self, err: Console, *, spinner: bool = True) -> None:
        self._err = err
        self._progress = _Progress()
        self._status: Status | None = err.status(self._progress.line) if spinner and err.is_terminal else None

    def __enter__(self) -> Live:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """What is printed from now on has the terminal to itself."""
        if self._status is not None:
            self._status.stop()

    def on_event(self, event: StreamEvent) -> None:
        if not self._err.is_terminal:
            return
        said = said_of(event)
        if said is not None:
            self._err.print(Text(f"  {said}", style="dim"), soft_wrap=True)
        self._progress.count(event)
        if self._status is not None:
            self._status.update(self._progress.line)


class _Progress:
    """How far a run is, in a few words."""

    def __init__(self) -> None:
        self._answers = self._invalid = self._retries = 0
        self._wanted: int | None = None

    def count(self, event: StreamEvent) -> None:
        kind, data = _told(event)
        if kind == "bundle_started":
            self._wanted, self._answers, self._invalid = data["k"], 0, 0
        elif kind == "replicate_done":
            self._answers += 1
            self._invalid += not data["valid"]
        elif kind == "retry_attempt":
            self._retries += 1

    @property
    def line(self) -> str:
        parts = ["asking" if self._wanted is None else f"{self._answers} of {self._wanted} answers"]
        if self._invalid:
            parts.append(f"{self._invalid} not valid")
        if self._retries:
            parts.append("1 retry" if self._retries == 1 else f"{self._retries} retries")
        return " · ".join(parts)


def said_of(event: StreamEvent) -> str | None:
    """An event in words, where it is news: a retry, a circuit, a fallback, a warning."""
    kind, data = _told(event)
    if kind == "retry_attempt":
        return f"{in_words(data['error'])}, again in {data['delay_ms'] / 1000:.1f} s"
    if kind == "circuit_breaker":
        return f"circuit of {data['provider'].partition('@')[0]} is {data['state']}"
    if kind == "fallback":
        return f"{data['from']} failed ({data['error']['code']}); asking {data['to']}"
    if kind in ("warning", "timeout", "cancelled"):
        return printable(str(data.get("message") or f"{kind} after {data.get('completed')} of {data.get('k')} answers"))
    return None


def in_words(error: str) -> str:
    """ProviderTimeout: "provider timeout"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", error).lower()


def _told(event: StreamEvent) -> tuple[str, Mapping[str, Any]]:
    """The `event_type` and `data` of a delta that has them."""
    if not isinstance(event, StreamDeltaEvent) or not isinstance(event.delta, Mapping):
        return "", {}
    data = event.delta.get("data")
    return str(event.delta.get("event_type")), data if isinstance(data, Mapping) else {}
