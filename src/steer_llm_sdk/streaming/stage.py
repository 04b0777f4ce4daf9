"""One text at a time: what a reader sees while several answers are being written beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from steer_llm_sdk.models.events import StreamDeltaEvent, StreamEvent
from steer_llm_sdk.streaming.manager import RunEvents


class Stage:
    """`shown` counts the pieces that were shown since the last restart."""

    __slots__ = ("shown", "speaker")

    def __init__(self) -> None:
        self.shown = 0
        self.speaker: Voice | None = None


class Voice:
    """One of those who write. The first to say something is shown; what the others say is kept until one of them takes
    its place, after a restart that says that what was shown is not part of the answer.

    `show` gets a piece and its number, `restart` how many pieces are void.
    """

    __slots__ = ("_kept", "_out", "_restart", "_show", "_stage")

    def __init__(self, stage: Stage, show: Callable[[Any, int], None], restart: Callable[[int], None]) -> None:
        self._stage = stage
        self._show = show
        self._restart = restart
        self._kept: list[Any] = []
        self._out = False
        if stage.speaker is None:
            self._clear()

    def say(self, piece: Any) -> None:
        if self._out:
            return
        if self._stage.speaker is None:
            self._take_over()
        if self._stage.speaker is self:
            self._tell(piece)
        else:
            self._kept.append(piece)

    def won(self) -> None:
        """It is the answer, also where another was shown so far."""
        if self._stage.speaker is not self and (self._kept or self._stage.shown):
            self._take_over()

    def begins_anew(self) -> bool:
        """What it said so far is void. Returns whether that was shown."""
        self._kept.clear()
        if self._stage.speaker is not self:
            return False
        self._stage.shown = 0
        return True

    def left(self) -> None:
        """It failed, or was stopped: it says no more."""
        self._out = True
        self._kept.clear()
        if self._stage.speaker is self:
            self._stage.speaker = None

    def _take_over(self) -> None:
        self._clear()
        self._stage.speaker = self
        kept, self._kept = self._kept, []
        for piece in kept:
            self._tell(piece)

    def _clear(self) -> None:
        if self._stage.shown:
            void, self._stage.shown = self._stage.shown, 0
            self._restart(void)

    def _tell(self, piece: Any) -> None:
        number, self._stage.shown = self._stage.shown, self._stage.shown + 1
        self._show(piece, number)


class StagedEvents(RunEvents):
    """The events of one of several who work beside each other within a run: its texts wait for their turn, all other
    events pass, with `metadata` to tell whose they are. Each of them calls `on_event`."""

    def __init__(self, run: RunEvents, stage: Stage, metadata: Mapping[str, Any], on_event: Callable[[], None]) -> None:
        super().__init__(run, run.request_id or "", run.trace_id or "", metadata, None)
        self._run = run
        self._on_event = on_event
        self.voice = Voice(stage, lambda event, _: run.tell(event), self._tell_restart)

    def tell(self, event: StreamEvent) -> None:
        self._on_event()
        event = replace(event, metadata={**self.metadata, **event.metadata})
        delta = event.delta if isinstance(event, StreamDeltaEvent) else None
        if isinstance(delta, str):
            self.voice.say(event)
        elif not _is_restart(delta) or self.voice.begins_anew():
            self._run.tell(event)

    async def flush(self, until: float | None = None) -> None:
        """The run does this."""

    def _tell_restart(self, void: int) -> None:
        delta = {"event_type": "restart", "data": {**self.metadata, "chunks": void}}
        self._run.tell(StreamDeltaEvent(delta, metadata=self.metadata))


def _is_restart(delta: object) -> bool:
    return isinstance(delta, Mapping) and delta.get("event_type") == "restart"
