"""Whether a canary is worse than the version beside it, by what was seen of both."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from operator import add
from typing import NamedTuple

from steer_llm_sdk.orchestration.versions import Release

ENOUGH = 30
"""Runs of a canary from which it is judged; then each time half as many more were seen, for who looks after every run
sees something odd in the end."""
_Z = 2.33
"""Standard errors: a canary that is no worse is taken back about once in a hundred looks."""


def next_look(runs: float) -> int:
    """The number of runs at which a canary is judged that has made so many."""
    mark = ENOUGH
    while mark <= runs:
        mark += mark // 2
    return mark


class Seen(NamedTuple):
    """Runs of a version that came to an end by themselves; and of those that gave a confidence, how many, the sum and
    the sum of squares."""

    runs: float = 0
    failures: float = 0
    told: float = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def once(cls, succeeded: bool, confidence: float | None) -> Seen:
        told = () if confidence is None else (1, confidence, confidence * confidence)
        return cls(1, int(not succeeded), *told)

    def plus(self, more: Iterable[float]) -> Seen:
        return Seen(*map(add, self, more))


def why_worse(canary: Seen, beside: Seen, margin: float) -> str | None:
    """In what a canary is worse than the version beside it by more than the margin, beyond chance; None where it is
    not, or too little was seen of either."""
    if min(canary.runs, beside.runs) < ENOUGH:
        return None
    p, q = canary.failures / canary.runs, beside.failures / beside.runs
    if p - q - _Z * _error(p, canary.runs, q, beside.runs) > margin:
        return f"{p:.0%} of its {canary.runs:.0f} runs failed, and {q:.0%} of {beside.runs:.0f} of the other"
    if min(canary.told, beside.told) >= ENOUGH:
        (a, of_a), (b, of_b) = _mean(canary), _mean(beside)
        if b - a - _Z * sqrt(of_a + of_b) > margin:
            return f"the confidence of its answers is {a:.2f} in the mean, and {b:.2f} of the other"
    return None


def _error(p: float, n: float, q: float, m: float) -> float:
    # One failure and one success are added, so that what never failed is not taken for certain.
    p, q = (p * n + 1) / (n + 2), (q * m + 1) / (m + 2)
    return sqrt(p * (1 - p) / n + q * (1 - q) / m)


def _mean(seen: Seen) -> tuple[float, float]:
    """And the square of its error."""
    mean = seen.total / seen.told
    return mean, max(seen.squares / seen.told - mean * mean, 0.0) / seen.told


class Trials:
    """What was seen of the versions of tools while one of them was a canary. A canary whose share, key or margin is
    another is on another trial."""

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}

    def add(self, key: str, more: Seen) -> None:
        self._seen[key] = self.of(key).plus(more)

    def of(self, key: str) -> Seen:
        return self._seen.get(key, _NO_RUNS)

    def forget(self, trial: str) -> None:
        for key in [key for key in self._seen if key.startswith(trial)]:
            del self._seen[key]

    async def aclose(self) -> None:
        """There is nothing to close."""


_NO_RUNS = Seen()


def trial_of(name: str, version: str, release: Release) -> str:
    """What the keys of a trial begin with; the version that was seen comes after it."""
    return "\x1f".join((name, version, f"{release.share:g}", release.key, f"{release.margin}", ""))
