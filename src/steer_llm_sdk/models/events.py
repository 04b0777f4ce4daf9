"""What a run tells while it runs. One frozen dataclass per fact; EventManager fills what is left at its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class StreamEvent:
    """`timestamp` is seconds since the epoch; 0.0, like an empty string, means "not filled yet"."""

    PAYLOAD: ClassVar[str | None] = None

    type: str = ""
    provider: str = ""
    model: str = ""
    request_id: str = ""
    timestamp: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StreamStartEvent(StreamEvent):
    type: str = "start"


@dataclass(frozen=True)
class StreamDeltaEvent(StreamEvent):
    """A piece of text, or a mapping `{"event_type", "data"}` from a bundle or a policy. At the event_type "restart" all
    text before it is void."""

    PAYLOAD: ClassVar[str | None] = "delta"

    delta: str | Mapping[str, Any]
    chunk_index: int = 0
    is_json: bool = False
    type: str = field(default="delta", kw_only=True)


@dataclass(frozen=True)
class StreamUsageEvent(StreamEvent):
    PAYLOAD: ClassVar[str | None] = "usage"

    usage: Mapping[str, Any]
    type: str = field(default="usage", kw_only=True)


@dataclass(frozen=True, kw_only=True)
class StreamCompleteEvent(StreamEvent):
    type: str = "complete"


@dataclass(frozen=True)
class StreamErrorEvent(StreamEvent):
    """`error` is an exception, or the mapping that describes one."""

    PAYLOAD: ClassVar[str | None] = "error"

    error: BaseException | Mapping[str, Any]
    type: str = field(default="error", kw_only=True)
