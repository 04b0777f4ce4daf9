"""Text as it comes, from attempts that may fail, be repeated, or run beside each other: one of them is shown at a time.

What a reader has is the beginning of what one attempt said. Before the text of another attempt comes a `restart` event,
and everything before it is void. So the reader's rule is: add each text delta; drop all of them at a `restart`.

    Screen      what the reader has
    └ Stage     the attempts at one thing, of which one at a time is shown
      └ Voice   what one attempt said; a tool that asks models has a Stage of its own on it, and so on

Nothing here awaits, and nothing is shown twice: a Voice that is not shown is kept until it is, or is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeAlias

from steer_llm_sdk.models.events import StreamDeltaEvent, StreamEvent


@dataclass(frozen=True, slots=True)
class Speaker:
    """Whose text it is: `provider` and `model` of its events, and what a `restart` event says of it: `who` in its data,
    and its `metadata`."""

    who: Mapping[str, Any]
    provider: str = ""
    model: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Work(NamedTuple):
    """The task that makes an attempt, and how often it had been asked to stop when the attempt began."""

    task: asyncio.Task[Any] | None
    stops: int

    @classmethod
    def running(cls) -> Work:
        task = asyncio.current_task()
        return cls(task, 0 if task is None else task.cancelling())

    @property
    def cancelled(self) -> bool:
        """It was asked to stop since. It may not have done so, and have been left behind."""
        return self.task is not None and self.task.cancelling() > self.stops


class _Sheet(Protocol):
    """A place where text is written, by its owner (None) or by one of its voices."""

    def write(self, event: StreamDeltaEvent, by: Voice | None) -> None: ...
    def replace(self, old: Voice | None, new: Voice) -> None:
        """Take back what `old` wrote, and write all that `new` has said."""
        ...

    def void(self, voice: Voice) -> None:
        """What `voice` wrote is of no more use: it is taken back before anything else is written."""
        ...


class Screen:
    """What the reader has: each piece is told, and a `restart` where a piece is taken back."""

    def __init__(self, tell: Callable[[StreamEvent], None]) -> None:
        self._tell = tell
        self._pieces: list[_Piece] = []

    def write(self, event: StreamDeltaEvent, by: Voice | None) -> None:
        self._pieces.append((by, event))
        self._tell(event)

    def replace(self, old: Voice | None, new: Voice) -> None:
        shown = len(self._pieces)
        kept = _without(self._pieces, old, new)
        if len(kept) < shown:
            speaker = new.latest
            told = {"event_type": "restart", "data": {**speaker.who, "chunks": shown}}
            provider, model = speaker.provider, speaker.model
            self._tell(StreamDeltaEvent(told, provider=provider, model=model, metadata=speaker.metadata))
            self._pieces = []
            for by, event in kept:
                self.write(event, by)
        for event in new.said:
            self.write(event, new)

    def void(self, voice: Voice) -> None:
        """It is taken back when the next attempt begins, and kept on the screen if none does."""


class _State(Enum):
    SPEAKING = "speaking"
    RETURNED = "returned"
    FAILED = "failed"
    DROPPED = "dropped"


class Stage:
    """Attempts at one thing. The first to speak is shown until it fails; the one that is chosen is shown in the end."""

    def __init__(self, sheet: _Sheet) -> None:
        self._sheet = sheet
        self._voices: list[Voice] = []
        self._shown: Voice | None = None

    def begin(self, speaker: Speaker, work: Work | None = None) -> Voice:
        """A new attempt, made by `work` (the running task unless given). It is shown at once if the one that was has
        ended."""
        voice = Voice(self, speaker, work or Work.running())
        self._voices.append(voice)
        if self._shown is None or not self._shown.speaking:
            self._show(voice)
        return voice

    def choose(self, result: object) -> None:
        """The attempt that returned `result` is the answer, also if it said nothing; nobody else is heard any more."""
        silent = Voice(self, Speaker({}), Work(None, 0))
        chosen = next((voice for voice in reversed(self._voices) if voice.holds(result)), silent)
        if chosen is not self._shown or chosen.behind:
            self._show(chosen)
        for voice in self._voices:
            if voice is not chosen:
                voice.drop()
        self._voices = [chosen]

    def void(self) -> None:
        """No attempt came to anything."""
        if self._shown is not None:
            self._sheet.void(self._shown)

    def spoke(self, voice: Voice, event: StreamDeltaEvent) -> None:
        shown = self._shown
        if shown is voice and voice.cancelled:
            voice.behind = True  # Nobody wants it any more, unless it returns after all and is chosen.
        elif shown is voice and voice.behind:
            self._show(voice)
        elif shown is voice:
            self._sheet.write(event, voice)
        elif voice.speaking and (shown is None or shown.failed or shown.mute):
            self._show(voice)

    def rewritten(self, voice: Voice) -> None:
        if self._shown is voice:
            self._sheet.replace(voice, voice)

    def ended(self, voice: Voice) -> None:
        """If the attempt that was shown has failed, the next that has something to say is shown."""
        if self._shown is voice and voice.failed:
            waiting = (other for other in self._voices if other.speaking and other.said)
            following = next(waiting, None)
            if following is not None:
                self._show(following)

    def _show(self, voice: Voice) -> None:
        old, self._shown, voice.behind = self._shown, voice, False
        self._sheet.replace(old, voice)


class Voice:
    """What one attempt says, whether it is shown or not. `behind`: it is shown, and not all of it. `on_text` is called
    with each piece, for it is a sign of life."""

    on_text: Callable[[], None] | None = None

    def __init__(self, stage: Stage, speaker: Speaker, work: Work) -> None:
        self.speaker = self.latest = speaker
        self._stage = stage
        self._pieces: list[_Piece] = []
        self._void: list[Voice] = []
        self._state = _State.SPEAKING
        self._result: object = None
        self.behind = False
        self._work = work

    @property
    def said(self) -> list[StreamDeltaEvent]:
        return [event for _, event in self._pieces]

    @property
    def mute(self) -> bool:
        """It has said nothing; asked for each piece of those who are not shown."""
        return not self._pieces

    @property
    def cancelled(self) -> bool:
        return self._work.cancelled

    @property
    def speaking(self) -> bool:
        return self._state is _State.SPEAKING and not self.cancelled

    @property
    def failed(self) -> bool:
        return self._state is _State.FAILED

    def say(self, text: str, *, is_json: bool = False) -> None:
        speaker = self.speaker
        index = len(self._pieces)
        self.write(StreamDeltaEvent(text, index, is_json, provider=speaker.provider, model=speaker.model))

    def returned(self, result: object) -> None:
        self._state, self._result = _State.RETURNED, result
        self._take_back()

    def fail(self) -> None:
        if self._state is _State.SPEAKING:
            self._state = _State.FAILED
            self._stage.ended(self)

    def drop(self) -> None:
        self._state = _State.DROPPED
        self._pieces = []

    def holds(self, result: object) -> bool:
        return self._state is _State.RETURNED and self._result is result

    # ── as a sheet ───────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, event: StreamDeltaEvent, by: Voice | None = None) -> None:
        if self._state in (_State.FAILED, _State.DROPPED):
            return  # It was left behind, and goes on speaking.
        if self.on_text is not None:
            self.on_text()
        self._take_back()
        self._pieces.append((by, event))
        self._stage.spoke(self, event)

    def replace(self, old: Voice | None, new: Voice) -> None:
        if self._state in (_State.FAILED, _State.DROPPED):
            return
        kept = _without(self._pieces, old, new, *self._void)
        self._void = []
        if len(kept) == len(self._pieces):
            for event in new.said:
                self.write(event, new)
        else:
            self._pieces = [*kept, *((new, event) for event in new.said)]
            self.latest = new.latest
            self._stage.rewritten(self)

    def void(self, voice: Voice) -> None:
        self._void.append(voice)

    def _take_back(self) -> None:
        if not self._void:
            return
        kept = _without(self._pieces, *self._void)
        self._void = []
        if len(kept) < len(self._pieces):
            self._pieces = kept
            self._stage.rewritten(self)


_Piece: TypeAlias = tuple[Voice | None, StreamDeltaEvent]


def _without(pieces: list[_Piece], *voices: Voice | None) -> list[_Piece]:
    gone = [voice for voice in voices if voice is not None]
    return [piece for piece in pieces if piece[0] not in gone]
