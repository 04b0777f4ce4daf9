"""The events of a run, kept in a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steer_llm_sdk.models.events import StreamDeltaEvent, StreamEvent
from steer_llm_sdk.streaming.manager import EventManager

__all__ = ["RecordedEvents"]


class RecordedEvents(EventManager):
    """Pass it as `event_manager`; afterwards `all` holds every event in the order it came."""

    def __init__(self) -> None:
        self.all: list[StreamEvent] = []
        super().__init__(on_create_event=self.all.append)

    @property
    def types(self) -> list[str]:
        """What happened, in order: "start", "complete", ...; for a delta its `event_type` where it has one."""
        return [_kind(event) for event in self.all]

    @property
    def text(self) -> str:
        """The text as a reader has it at the end: all text deltas after the last `restart`, joined."""
        begun = max((place for place, kind in enumerate(self.types, start=1) if kind == "restart"), default=0)
        deltas = [event.delta for event in self.all[begun:] if isinstance(event, StreamDeltaEvent)]
        return "".join(delta for delta in deltas if isinstance(delta, str))

    def data(self, event_type: str) -> list[Mapping[str, Any]]:
        """The `data` of each delta of that `event_type`."""
        deltas = [
            event.delta for event in self.all if isinstance(event, StreamDeltaEvent) and _kind(event) == event_type
        ]
        return [delta["data"] for delta in deltas if isinstance(delta, Mapping)]


def _kind(event: StreamEvent) -> str:
    if isinstance(event, StreamDeltaEvent) and isinstance(event.delta, Mapping):
        return str(event.delta.get("event_type", event.type))
    return event.type
