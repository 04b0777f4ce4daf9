"""A call as the mechanisms see it, and nothing behind it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any, Self

from steer_llm_sdk.models.quota import RateLimitStatus
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.reliability.budget import Ledger
from steer_llm_sdk.reliability.deadline import Deadline
from steer_llm_sdk.reliability.silence import Life


@dataclass(kw_only=True)
class FakeCall:
    """What `reliability._pipeline.Call` says, alone in its run, which began at `started`.

    `used` is what any result took, `status` what any told of limits; `events` has what was emitted.
    """

    target: str = "p"
    part: str = "a"
    model: str | None = None
    tenant: str = "default"
    worst_case: Amount = field(default_factory=Amount)
    deadline: Deadline | None = None
    ledger: Ledger | None = None
    max_attempts: int = 3
    attempt_timeout: float | None = None
    answers: int = 1
    kept_for_others: int = 0
    attempts: int = 0
    sent: int = 0
    ended: float | None = None
    queued: float = 0.0
    life: Life | None = None
    started: float = 0.0
    used: Amount = field(default_factory=Amount)
    status: RateLimitStatus | None = None
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def promise(self) -> None:
        """Nobody else is there."""

    def renounce(self) -> None:
        """Nobody else is there."""

    def elapsed(self) -> float:
        return asyncio.get_running_loop().time() - self.started

    def watched(self, life: Life) -> Self:
        return replace(self, life=life)

    def spent(self, result: Any) -> Amount:
        return self.used

    def told(self, result: Any) -> RateLimitStatus | None:
        return self.status

    def emit(self, event_type: str, data: dict[str, Any]) -> None:
        self.events.append((event_type, data))
