"""What is believed of each tool for each task type, from what was seen: hierarchical empirical Bayes over sums.

With m a tool at a version, g a task type, S a sum of rewards over N runs:

    mu_m = (S_m + n0/2) / (N_m + n0)        theta_gm = (n mu_m + S_gm) / (n + N_gm),   1/n = 1/n0 + 1/(N_m + 2)

The cost of a request of x characters is a line per tool, fitted by least squares, times the cell's own shrunken ratio
of what was paid to what the line said. Everything is kept as sums, so that several processes can add to the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

PRIOR_RUNS = 10.0
"""n0, in runs: chosen by leaving tasks out of recordings, where 5 to 20 are flat."""

Cell = tuple[str, str]
"""Task type and arm. The task type "" is that of requests without one."""


class Seen(NamedTuple):
    """Sums of one cell; also what one observation adds to them. `ratio` is paid over predicted cost, summed."""

    runs: float = 0.0
    reward: float = 0.0
    costs: float = 0.0
    ratio: float = 0.0
    times: float = 0.0
    ms: float = 0.0

    def plus(self, other: Iterable[float]) -> Seen:
        return Seen(*map(sum, zip(self, other, strict=True)))


class Line(NamedTuple):
    """Sums over costs y (USD) of requests with x characters, of one arm."""

    n: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    @classmethod
    def point(cls, x: float, y: float) -> Line:
        return cls(1.0, x, y, x * x, x * y)

    def plus(self, other: Iterable[float]) -> Line:
        return Line(*map(sum, zip(self, other, strict=True)))

    def at(self, x: float) -> float | None:
        """USD expected for x characters; the plain mean until five requests were of different lengths."""
        if self.n <= 0:
            return None
        mean_x, mean_y = self.x / self.n, self.y / self.n
        spread = self.xx / self.n - mean_x * mean_x
        if self.n < 5 or spread <= 1e-9 * (1 + mean_x * mean_x):
            return mean_y
        slope = min(max((self.xy / self.n - mean_x * mean_y) / spread, 0.0), mean_y / mean_x if mean_x else 0.0)
        return mean_y + slope * (x - mean_x)


NOTHING = Seen()
NO_COSTS = Line()


class Belief(NamedTuple):
    """A reward's mean and standard deviation; `runs` were seen in the cell itself, and `mass` counts the prior too."""

    mean: float
    sd: float
    runs: float
    mass: float


class Beliefs:
    """The sums, and what follows from them. `seen` counts observations, and moves with every change."""

    def __init__(self, prior_runs: float = PRIOR_RUNS) -> None:
        self.prior_runs = prior_runs
        self.seen = 0
        self.cells: dict[Cell, Seen] = {}
        self.arms: dict[str, Seen] = {}
        self.lines: dict[str, Line] = {}
        self._versions: dict[str, list[str]] = {}

    def add(self, cell: Cell, more: Iterable[float]) -> None:
        more = tuple(more)
        self.seen += 1
        self.cells[cell] = self.cells.get(cell, NOTHING).plus(more)
        arm = cell[1]
        known = self.arms.get(arm)
        if known is None:
            self._versions.setdefault(arm.rpartition("@")[0], []).append(arm)
        self.arms[arm] = (known or NOTHING).plus(more)

    def replace(self, cell: Cell, with_: Seen) -> None:
        """The cell becomes this; its arm's sums follow."""
        old = self.cells.get(cell, NOTHING)
        self.add(cell, [new - was for new, was in zip(with_, old, strict=True)])

    def add_cost(self, arm: str, more: Iterable[float]) -> None:
        self.lines[arm] = self.lines.get(arm, NO_COSTS).plus(more)

    def reward(self, task: str, arm: str) -> Belief:
        seen = self.cells.get((task, arm), NOTHING)
        prior, weight = self._prior(task, arm)
        mass = weight + max(seen.runs, 0.0)
        mean = min(max((weight * prior + seen.reward) / mass, 1e-6), 1 - 1e-6)
        return Belief(mean, math.sqrt(mean * (1 - mean) / (mass + 1)), seen.runs, mass)

    def usual(self, arm: str) -> float:
        """The mean reward of the arm over all tasks."""
        return self._prior("", arm)[0]

    def _prior(self, task: str, arm: str) -> tuple[float, float]:
        """The mean over all tasks, and the runs it counts for: fewer than n0 while it is itself not known well. A new
        version starts from what its predecessor comes to, which counts as n0 runs and no more."""
        n0 = self.prior_runs
        known = self.arms.get(arm, NOTHING)
        start, inherited = 0.5, 2.0
        if known.runs < 10 * n0:
            before = self._predecessor(arm)
            if before is not None:
                start, inherited = self.reward(task, before).mean, n0
        return (known.reward + n0 * start) / (known.runs + n0), 1 / (1 / n0 + 1 / (max(known.runs, 0.0) + inherited))

    def _predecessor(self, arm: str) -> str | None:
        """The highest version of the tool that was seen and is below this one."""
        versions = self._versions.get(arm.rpartition("@")[0])
        if not versions or versions == [arm]:
            return None
        below = [other for other in versions if other != arm and _rank(other) < _rank(arm)]
        return max(below, key=_rank, default=None)

    def cost(self, task: str, arm: str, characters: float) -> float | None:
        """USD expected for a request of so many characters; None where no cost was ever told."""
        line = self.lines.get(arm)
        predicted = None if line is None else line.at(characters)
        if predicted is None:
            return None
        seen = self.cells.get((task, arm), NOTHING)
        return predicted * (self.prior_runs + seen.ratio) / (self.prior_runs + seen.costs)

    def mean_cost(self, arm: str) -> float | None:
        line = self.lines.get(arm)
        return line.y / line.n if line is not None and line.n > 0 else None

    def duration(self, task: str, arm: str) -> float | None:
        """Milliseconds, shrunken to the arm's mean."""
        known = self.arms.get(arm, NOTHING)
        if known.times <= 0:
            return None
        seen = self.cells.get((task, arm), NOTHING)
        return (self.prior_runs * known.ms / known.times + seen.ms) / (self.prior_runs + seen.times)

    def runs_of(self, task: str, arms: Iterable[str]) -> float:
        return sum(self.cells.get((task, arm), NOTHING).runs for arm in arms)


def _rank(arm: str) -> tuple[bool, object, str]:
    from packaging.version import InvalidVersion, Version  # 6 ms that only those with two versions of a tool pay

    version = arm.rpartition("@")[2]
    try:
        return True, Version(version), version
    except InvalidVersion:
        return False, Version("0"), version


def shown(beliefs: Beliefs) -> Mapping[str, Mapping[str, float]]:
    """By task type and arm, the expected reward: for people to look at."""
    table: dict[str, dict[str, float]] = {}
    for task, arm in beliefs.cells:
        table.setdefault(task, {})[arm] = round(beliefs.reward(task, arm).mean, 4)
    return table
