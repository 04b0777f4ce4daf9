"""Queues of runs that were handed in, and how many of each a provider gets."""

from __future__ import annotations

from dataclasses import dataclass

from steer_llm_sdk.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """How many runs of one provider may be at work, over all workers and on each, and how many may begin: at most
    `rate` in any `per` seconds. None is no such limit. InvalidRequest where a number cannot be used.
    """

    concurrency: int | None = None
    worker_concurrency: int | None = None
    rate: int | None = None
    per: float = 1.0

    def __post_init__(self) -> None:
        for name in ("concurrency", "worker_concurrency", "rate"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InvalidRequest(f"queues.{name}", value, "give a whole number from 1, or None for no limit")
        if not 0 < self.per <= 86_400:
            raise InvalidRequest("queues.per", self.per, "give seconds, more than 0 and a day at most")
        if self.concurrency and self.worker_concurrency and self.worker_concurrency > self.concurrency:
            raise InvalidRequest(
                "queues.worker_concurrency", self.worker_concurrency, f"give at most concurrency = {self.concurrency}"
            )
