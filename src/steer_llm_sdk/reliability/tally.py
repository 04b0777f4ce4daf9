"""What a closed circuit counts: failures in a row, and shares of the calls over a window of time.

It is counted in place and in slices, so that a record costs the same whatever the window holds. Times are seconds on
one clock; a time before the newest one counts as the newest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerConfig

SPANS = 16
"""A threshold up to this is counted exactly in time; above, the failures of a 16th of the window go together."""

SLICES = 10
"""The window of a rate in slices; the oldest goes as a whole, so that nine tenths of the window or more are seen."""


class Trip(NamedTuple):
    """The evidence is enough. `parts` failed; `alone`: one part by itself, while the others are no worse than usual."""

    parts: frozenset[str]
    alone: bool = False


@dataclass(slots=True)
class Streak:
    """Failures in a row, none older than the window.

    Each span is the time of its first failure and the failures by part. A span goes as a whole, with its first: a
    failure older than the window never counts, and one nearly as old may already be forgotten.
    """

    total: int = 0
    spans: list[tuple[float, dict[str, int]]] = field(default_factory=list)

    def add(self, part: str, at: float, cfg: CircuitBreakerConfig, count: int = 1) -> int:
        """How many there are with these."""
        spans, window = self.spans, cfg.window_size
        self.total += count
        while spans and at - spans[0][0] > window:
            self.total -= sum(spans.pop(0)[1].values())
        if spans:
            start, counts = spans[-1]
            if at - start <= (0.0 if cfg.failure_threshold <= SPANS else window / SPANS):
                counts[part] = counts.get(part, 0) + count
                return self.total
        spans.append((at, {part: count}))
        return self.total

    def expire(self, now: float, cfg: CircuitBreakerConfig) -> int:
        """How many there are still."""
        while self.spans and now - self.spans[0][0] > cfg.window_size:
            self.total -= sum(self.spans.pop(0)[1].values())
        return self.total

    def of(self, part: str) -> int:
        return sum(counts.get(part, 0) for _, counts in self.spans)

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
class Counts:
    calls: int = 0
    failed: int = 0
    slow: int = 0

    def take_out(self, other: Counts) -> None:
        self.calls -= other.calls
        self.failed -= other.failed
        self.slow -= other.slow

    def too_many(self, cfg: CircuitBreakerConfig) -> bool:
        """Whether a share has reached its threshold, of no fewer calls than `minimum_throughput`."""
        if self.calls < cfg.minimum_throughput:
            return False
        failing, slow = cfg.failure_rate_threshold, cfg.slow_call_rate_threshold
        return (failing is not None and self.failed / self.calls >= failing) or (
            slow is not None and self.slow / self.calls >= slow
        )

    def copy(self) -> Counts:
        return Counts(self.calls, self.failed, self.slow)


@dataclass(slots=True)
class Rates:
    """Calls, and the failed and slow ones among them: of all, of each part, and of each part in a ring of slices.

    `newest` is the number of the newest slice since time 0, and tells which slices of the ring are out of date.
    """

    newest: int = -1
    whole: Counts = field(default_factory=Counts)
    parts: dict[str, Counts] = field(default_factory=dict)
    ring: list[dict[str, Counts]] = field(default_factory=lambda: [{} for _ in range(SLICES)])

    def add(self, part: str, now: float, window: float, failed: bool, slow: bool) -> Counts:
        """The counts of the part with this call."""
        number = int(now * SLICES / window)
        if number > self.newest:
            self._turn(number)
        counted = self.ring[self.newest % SLICES]
        recent, own, whole = counted.get(part), self.parts.get(part), self.whole
        if recent is None:
            recent = counted[part] = Counts()
        if own is None:
            own = self.parts[part] = Counts()
        recent.calls += 1
        own.calls += 1
        whole.calls += 1
        if failed:
            recent.failed += 1
            own.failed += 1
            whole.failed += 1
        if slow:
            recent.slow += 1
            own.slow += 1
            whole.slow += 1
        return own

    def _turn(self, number: int) -> None:
        """Make slice `number` the newest, and drop what is then out of date."""
        for turned in range(max(self.newest + 1, number - SLICES + 1), number + 1):
            counted = self.ring[turned % SLICES]
            for part, counts in counted.items():
                self.whole.take_out(counts)
                self.parts[part].take_out(counts)
                if not self.parts[part].calls:
                    del self.parts[part]
            counted.clear()
        self.newest = number

    def forget(self, part: str) -> None:
        self.whole.take_out(self.parts.pop(part, Counts()))
        for counted in self.ring:
            counted.pop(part, None)

    def copy(self) -> Rates:
        ring = [{part: counts.copy() for part, counts in counted.items()} for counted in self.ring]
        parts = {part: counts.copy() for part, counts in self.parts.items()}
        return Rates(self.newest, self.whole.copy(), parts, ring)


@dataclass(slots=True)
class Tally:
    """`streak`: the failures since the last success. `aside`: by part, those before it and after the part's own last
    success, for a part that fails among the successes of others has a streak as well. `rates`: where they are on.

    `asked` has, by part, the latest time before which a provider that failed asked not to be called.
    """

    streak: Streak = field(default_factory=Streak)
    aside: dict[str, Streak] = field(default_factory=dict)
    rates: Rates | None = None
    asked: dict[str, float] = field(default_factory=dict)

    def failed(self, part: str, now: float, cfg: CircuitBreakerConfig, slow: bool, asked: float) -> Trip | None:
        if asked:
            self.asked[part] = max(self.asked.get(part, 0.0), now + asked)
        threshold = cfg.failure_threshold
        if self.streak.add(part, now, cfg) >= threshold:
            return Trip(self.streak.parts)
        if part in self.aside and self.aside[part].expire(now, cfg) + self.streak.of(part) >= threshold:
            return Trip(frozenset((part,)), alone=True)
        if cfg.failure_rate_threshold is None and cfg.slow_call_rate_threshold is None:
            return None
        return self._rated(part, now, cfg, True, slow)

    def succeeded(self, part: str, now: float, cfg: CircuitBreakerConfig, slow: bool) -> Trip | None:
        if self.streak.total or part in self.aside:
            self._set_aside_all_but(part, cfg)
        if cfg.failure_rate_threshold is None and cfg.slow_call_rate_threshold is None:
            return None
        return self._rated(part, now, cfg, False, slow)

    def forget(self, part: str) -> None:
        """What a part did alone is no evidence against the others."""
        self.streak.forget(part)
        self.aside.pop(part, None)
        self.asked.pop(part, None)
        if self.rates is not None:
            self.rates.forget(part)

    def copy(self) -> Tally:
        return Tally(
            self.streak.copy(),
            {part: streak.copy() for part, streak in self.aside.items()},
            self.rates and self.rates.copy(),
            dict(self.asked),
        )

    def _set_aside_all_but(self, part: str, cfg: CircuitBreakerConfig) -> None:
        self.aside.pop(part, None)
        self.asked.pop(part, None)
        for at, counts in self.streak.spans:
            for other, count in counts.items():
                if other != part:
                    self.aside.setdefault(other, Streak()).add(other, at, cfg, count)
        self.streak.clear()

    def _rated(self, part: str, now: float, cfg: CircuitBreakerConfig, failed: bool, slow: bool) -> Trip | None:
        rates = self.rates
        if rates is None:
            rates = self.rates = Rates()
        own = rates.add(part, now, cfg.window_size, failed, slow)
        if not (failed or slow):
            return None
        whole_trips, own_trips = rates.whole.too_many(cfg), own.too_many(cfg)
        if not (whole_trips or own_trips):
            return None
        # Where the other parts are served well, the calls they have made already are the proof that this one is alone.
        rest = rates.whole.copy()
        rest.take_out(own)
        if own_trips and (not whole_trips or (rest.calls >= cfg.minimum_throughput and not rest.too_many(cfg))):
            return Trip(frozenset((part,)), alone=True)
        return Trip(frozenset(name for name, counts in rates.parts.items() if counts.failed or counts.slow))
