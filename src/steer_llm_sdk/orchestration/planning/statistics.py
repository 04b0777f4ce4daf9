"""What tools have done: cost, duration, success and quality by task type and tool version, shrunken to what is known.

With g a task type, m a tool at a version, S a sum over N runs and n0 the weight of what is known without g:

    success, quality   mu_m = (S_m + 1) / (N_m + 2)              theta_gm = (n0 mu_m + S_gm) / (n0 + N_gm)
    cost, duration     mu_m = (n0 declared + S_m) / (n0 + N_m)   theta_gm = (n0 mu_m + S_gm) / (n0 + N_gm)

(empirical Bayes with a fixed prior weight; a duration's sums are over the last runs, see HALF). Where nothing is
declared, mu_m is the mean of what was seen.
"""

from __future__ import annotations

import time
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable
from math import ceil
from typing import NamedTuple, TypeVar

from steer_llm_sdk.orchestration.planning.planner import ToolMetadata

K = TypeVar("K")

HALF = 100
"""A duration that is so many runs old counts half: a provider that has become faster is known to be soon."""
KEPT = 128
"""So many recent durations of a tool are known, for their 95th percentile."""
ENOUGH = 20
"""Runs from which what was seen alone may exclude a tool."""
MOST_CELLS = 10_000
"""Pairs of task type and tool that are known at a time; the one that was not seen for longest goes first."""

_FADE = 0.5 ** (1 / HALF)


class Estimate(NamedTuple):
    """What a run of a tool is expected to come to. `runs`: how many of the tool were seen, of any type.

    `success` and `quality` are from 0 to 1; `quality` is None where nobody ever told one. Cost is USD; it and the
    durations are None where nothing was declared or seen. `p95_ms` and `fastest_ms`, of the recent runs, need ENOUGH.
    """

    success: float
    cost_usd: float | None
    duration_ms: float | None
    p95_ms: float | None
    fastest_ms: float | None
    quality: float | None
    runs: int


UNKNOWN = Estimate(0.5, None, None, None, None, None, 0)


class Statistics:
    """Told of runs, asked for estimates. It belongs to one planner and is kept in memory.

    `prior_runs` is n0. Of a tool that has not been seen for `fresh_for` seconds only what it declares is believed: so
    one that was too slow, and was left alone for it, is tried again. `clock` gives seconds.

    `version` changes when an estimate may have: at runs 1 to 8 of a tool, then each time an eighth more were seen,
    every 64 at the latest. Who keeps something that he made of estimates keeps it for one version.
    """

    def __init__(
        self, prior_runs: float = 10.0, fresh_for: float = 600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not prior_runs > 0:
            raise ValueError(f"prior_runs: {prior_runs!r} cannot be used; give a positive number of runs")
        if not fresh_for > 0:
            raise ValueError(f"fresh_for: {fresh_for!r} cannot be used; give a positive number of seconds")
        self.prior_runs = prior_runs
        self.fresh_for = fresh_for
        self.version = 0
        self._clock = clock
        self._changes: deque[tuple[int, str]] = deque(maxlen=64)
        self._arms: OrderedDict[tuple[str, str], _Sums] = OrderedDict()
        self._cells: OrderedDict[tuple[str, str, str], _Sums] = OrderedDict()

    def record(
        self,
        task_type: str | None,
        tool: str,
        version: str,
        *,
        succeeded: bool,
        cost_usd: float | None = None,
        duration_ms: float | None = None,
        quality: float | None = None,
        runs: int = 1,
    ) -> None:
        """One run of a tool that has ended, which stands for `runs` like it. A cancelled one says nothing of the tool
        and is not recorded."""
        now = self._clock()
        arm = _at(self._arms, (tool, version))
        arm.add(succeeded, cost_usd, duration_ms, quality, now, runs)
        if duration_ms is not None:
            arm.remember(duration_ms)
        if task_type is not None:
            _at(self._cells, (task_type, tool, version)).add(succeeded, cost_usd, duration_ms, quality, now, runs)
        if arm.runs >= arm.publish_at:
            arm.publish_at = arm.runs + min(64, max(1, arm.runs // 8))
            self.version += 1
            self._changes.append((self.version, tool))

    def changed_since(self, version: int) -> set[str] | None:
        """The tools of which estimates may have changed since; None where these are too many to know."""
        if self.version - version > len(self._changes):
            return None
        # Copied at once: another thread may tell of a run meanwhile.
        return {tool for at, tool in tuple(self._changes) if at > version}

    def estimate(
        self,
        task_type: str | None,
        tool: ToolMetadata,
        declared_cost: float | None = None,
        declared_ms: float | None = None,
    ) -> Estimate:
        """For a run of this task type (None: of any). What is declared is of the whole run, all its replicates."""
        arm = self._fresh(self._arms.get((tool.name, tool.version)))
        if arm is None:
            return UNKNOWN._replace(cost_usd=declared_cost, duration_ms=declared_ms)
        cell = _NOTHING if task_type is None else self._cells.get((task_type, tool.name, tool.version), _NOTHING)
        n0 = self.prior_runs
        many = len(arm.ordered) >= ENOUGH
        quality = None
        if arm.qualities:
            mean = (arm.quality + 1) / (arm.qualities + 2)
            quality = _shrunken(mean, n0, cell.quality, cell.qualities)
        return Estimate(
            _shrunken((arm.succeeded + 1) / (arm.runs + 2), n0, cell.succeeded, cell.runs),
            _two_levels(declared_cost, n0, arm.cost, arm.costs, cell.cost, cell.costs),
            _two_levels(declared_ms, n0, arm.ms, arm.weight, cell.ms, cell.weight),
            arm.ordered[ceil(0.95 * len(arm.ordered)) - 1] if many else None,
            arm.ordered[0] if many else None,
            quality,
            arm.runs,
        )

    def runs(self, tool: str, version: str) -> int:
        """How many runs of a tool at a version were seen."""
        arm = self._arms.get((tool, version))
        return 0 if arm is None else arm.runs

    def _fresh(self, arm: _Sums | None) -> _Sums | None:
        return arm if arm is not None and self._clock() - arm.last <= self.fresh_for else None


class _Sums:
    """What was seen of one tool, or of one task type of it. Changed in place: it is added to after each run."""

    __slots__ = (
        "cost",
        "costs",
        "last",
        "ms",
        "ordered",
        "publish_at",
        "qualities",
        "quality",
        "recent",
        "runs",
        "succeeded",
        "weight",
    )

    def __init__(self) -> None:
        self.runs = self.succeeded = self.costs = self.qualities = 0
        self.cost = self.ms = self.weight = self.quality = self.last = 0.0
        self.publish_at = 1
        self.recent: deque[float] = deque()
        self.ordered: list[float] = []

    def add(
        self, succeeded: bool, cost: float | None, ms: float | None, quality: float | None, now: float, runs: int
    ) -> None:
        self.runs += runs
        self.last = now
        if succeeded:
            self.succeeded += runs
        if cost is not None:
            self.costs += runs
            self.cost += cost * runs
        if ms is not None:
            fade = _FADE if runs == 1 else _FADE**runs
            self.ms = self.ms * fade + ms * runs
            self.weight = self.weight * fade + runs
        if quality is not None:
            self.qualities += runs
            self.quality += quality * runs

    def remember(self, ms: float) -> None:
        recent, ordered = self.recent, self.ordered
        while len(recent) >= KEPT:  # Two threads may have added one each.
            ordered.remove(recent.popleft())
        recent.append(ms)
        insort(ordered, ms)


_NOTHING = _Sums()


def _at(sums: OrderedDict[K, _Sums], key: K) -> _Sums:
    found = sums.get(key)
    if found is None:
        if len(sums) >= MOST_CELLS:
            sums.popitem(last=False)
        found = sums[key] = _Sums()
        return found
    sums.move_to_end(key)
    return found


def _shrunken(mean: float, n0: float, total: float, count: float) -> float:
    return (n0 * mean + total) / (n0 + count)


def _two_levels(
    declared: float | None, n0: float, total: float, count: float, of_type: float, count_of_type: float
) -> float | None:
    if declared is not None:
        mean = _shrunken(declared, n0, total, count)
    elif count:
        mean = total / count
    else:
        return None
    return _shrunken(mean, n0, of_type, count_of_type)
