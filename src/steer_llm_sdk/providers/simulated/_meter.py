"""A rate limit as providers keep it: a bucket that holds a minute's worth of requests and fills evenly."""

from __future__ import annotations

from typing import NamedTuple

_ROUNDING = 1e-6


class Reading(NamedTuple):
    """`remaining` whole requests of `limit`; `reset` seconds until all are there; `wait` until one is, 0 if it went."""

    limit: int
    remaining: int
    reset: float
    wait: float


class Meter:
    def __init__(self, per_minute: int, now: float) -> None:
        self._limit, self._left, self._at = per_minute, float(per_minute), now

    def take(self, now: float) -> Reading:
        """One request, if one is left."""
        per_second = self._limit / 60
        self._left, self._at = min(self._limit, self._left + (now - self._at) * per_second), now
        wait = max(0.0, (1 - _ROUNDING - self._left) / per_second)
        if not wait:
            self._left -= 1
        return Reading(self._limit, int(self._left), (self._limit - self._left) / per_second, wait)
