"""What a closed circuit counts: failures in a row, and shares of the calls over a window of time.

It is counted in place and in buckets, so that a record costs the same whatever the window holds. Times are seconds on
one clock; a time before the newest one counts as the newest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerConfig

SPANS = 16
"""A threshold up to this is counted exactly in time; above, failures are put together by this part of the window."""

BUCKETS = 10
"""Into so many buckets the window of a rate is divided: it reaches back nine tenths of its size, or a little more."""


class Trip(NamedTuple):
    """The evidence is enough. `parts` failed; `alone`: one part by itself, while the others are no worse than usual."""

    parts: frozenset[str]
    alone: bool = False


@dataclass(slots=True)
class Streak:
    """Failures since the last success, none older than the window.

    Each span is the time of its first failure and the failures by part. A span goes as a whole, with its first: a
    failure older than the window never counts, and one nearly as old may already be forgotten.
    """

    total: int = 0
    spans: list[tuple[float, dict[str, int]]] = field(default_factory=list)

    def add(self, part: str, now: float, cfg: CircuitBreakerConfig) -> int:
        """How many there are with this one."""
        spans, window = self.spans, cfg.window_size
        while spans and now - spans[0][0] > window:
            self.total -= sum(spans.pop(0)[1].values())
        self.total += 1
        if spans:
            start, counts = spans[-1]
            if now - start <= (0.0 if cfg.failure_threshold <= SPANS else window / SPANS):
                counts[part] = counts.get(part, 0) + 1
                return self.total
        spans.append((now, {part: 1}))
        return self.total

    def forget(self, part: str) -> None:
        self.total -= sum(counts.pop(part, 0) for _, counts in self.spans)
        self.spans = [span for span in self.spans if span[1]]

    def clear(self) -> None:
        self.total = 0
        self.spans.clear()

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(part for _, counts in self.spans for part in counts)

    def copy(self) -> Streak:
        return Streak(self.total, [(start, dict(counts)) for start, counts in self.spans])


@dataclass(slots=True)
class Rates:
    """Calls, and the failed and slow ones among them, in a ring of buckets. `newest` is the number of the newest bucket
    since time 0, and tells which buckets are out of date."""

    newest: int = -1
    calls: int = 0
    failed: int = 0
    slow: int = 0
    ring: list[list[int]] = field(default_factory=lambda: [[0, 0, 0] for _ in range(BUCKETS)])

    def add(self, now: float, window: float, failed: bool, slow: bool) -> None:
        number = int(now * BUCKETS / window)
        if number > self.newest:
            self.turn(number)
        bucket = self.ring[self.newest % BUCKETS]
        bucket[0] += 1
        self.calls += 1
        if failed:
            bucket[1] += 1
            self.failed += 1
        if slow:
            bucket[2] += 1
            self.slow += 1

    def turn(self, number: int) -> None:
        """Make bucket `number` the newest, and drop what is then out of date."""
        for turned in range(max(self.newest + 1, number - BUCKETS + 1), number + 1):
            bucket = self.ring[turned % BUCKETS]
            self.calls -= bucket[0]
            self.failed -= bucket[1]
            self.slow -= bucket[2]
            bucket[:] = (0, 0, 0)
        self.newest = number

    def without(self, other: Rates) -> Rates:
        """What is left when the calls of `other`, turned to the same bucket, are taken out."""
        ring = [
            [a - b for a, b in zip(mine, its, strict=True)] for mine, its in zip(self.ring, other.ring, strict=True)
        ]
        return Rates(self.newest, self.calls - other.calls, self.failed - other.failed, self.slow - other.slow, ring)

    def too_many(self, cfg: CircuitBreakerConfig) -> bool:
        """Whether a share has reached its threshold, of no fewer calls than `minimum_throughput`."""
        calls = self.calls
        if calls < cfg.minimum_throughput:
            return False
        failing, slow = cfg.failure_rate_threshold, cfg.slow_call_rate_threshold
        return (failing is not None and self.failed / calls >= failing) or (
            slow is not None and self.slow / calls >= slow
        )

    def copy(self) -> Rates:
        return Rates(self.newest, self.calls, self.failed, self.slow, [bucket[:] for bucket in self.ring])


@dataclass(slots=True)
class Tally:
    """The failures in a row of all and of each part since its own last success; likewise the rates, where they are on.

    `asked` has, by part, the latest time before which a provider that failed asked not to be called.
    """

    streak: Streak = field(default_factory=Streak)
    streaks: dict[str, Streak] = field(default_factory=dict)
    rates: Rates | None = None
    rates_of: dict[str, Rates] = field(default_factory=dict)
    asked: dict[str, float] = field(default_factory=dict)

    def failed(self, part: str, now: float, cfg: CircuitBreakerConfig, slow: bool, asked: float) -> Trip | None:
        if asked:
            self.asked[part] = max(self.asked.get(part, 0.0), now + asked)
        threshold = cfg.failure_threshold
        if self.streak.add(part, now, cfg) >= threshold:
            return Trip(self.streak.parts)
        own = self.streaks.get(part)
        if own is None:
            own = self.streaks[part] = Streak()
        if own.add(part, now, cfg) >= threshold:
            return Trip(frozenset((part,)), alone=True)
        if cfg.failure_rate_threshold is None and cfg.slow_call_rate_threshold is None:
            return None
        return self._rated(part, now, cfg, True, slow)

    def succeeded(self, part: str, now: float, cfg: CircuitBreakerConfig, slow: bool) -> Trip | None:
        if self.streak.total:
            self.streak.clear()
        if part in self.streaks:
            del self.streaks[part]
            self.asked.pop(part, None)
        if cfg.failure_rate_threshold is None and cfg.slow_call_rate_threshold is None:
            return None
        return self._rated(part, now, cfg, False, slow)

    def _rated(self, part: str, now: float, cfg: CircuitBreakerConfig, failed: bool, slow: bool) -> Trip | None:
        whole, own = self.rates, self.rates_of.get(part)
        if whole is None:
            whole = self.rates = Rates()
        if own is None:
            own = self.rates_of[part] = Rates()
        whole.add(now, cfg.window_size, failed, slow)
        if own.newest < whole.newest:
            own.turn(whole.newest)
        own.add(now, cfg.window_size, failed, slow)
        if not (failed or slow):
            return None
        whole_trips, own_trips = whole.too_many(cfg), own.too_many(cfg)
        if not (whole_trips or own_trips):
            return None
        # Where the other parts are served well, the calls they have made already are the proof that this one is alone.
        rest = whole.without(own)
        if own_trips and (not whole_trips or (rest.calls >= cfg.minimum_throughput and not rest.too_many(cfg))):
            return Trip(frozenset((part,)), alone=True)
        return Trip(self._bad_parts(whole.newest))

    def _bad_parts(self, newest: int) -> frozenset[str]:
        for rates in self.rates_of.values():
            rates.turn(newest)
        return frozenset(part for part, rates in self.rates_of.items() if rates.failed or rates.slow)

    def forget(self, part: str) -> None:
        """What a part did alone is no evidence against the others."""
        self.streak.forget(part)
        self.streaks.pop(part, None)
        self.asked.pop(part, None)
        own = self.rates_of.pop(part, None)
        if self.rates is not None and own is not None:
            own.turn(self.rates.newest)
            self.rates = self.rates.without(own)

    def copy(self) -> Tally:
        return Tally(
            self.streak.copy(),
            {part: streak.copy() for part, streak in self.streaks.items()},
            self.rates and self.rates.copy(),
            {part: rates.copy() for part, rates in self.rates_of.items()},
            dict(self.asked),
        )
