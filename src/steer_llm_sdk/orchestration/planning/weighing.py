"""What each tool is worth for a request, by what is believed: its reward, less what its cost and its time are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from steer_llm_sdk.orchestration.planning.beliefs import Beliefs
from steer_llm_sdk.orchestration.planning.choosing import Candidate
from steer_llm_sdk.orchestration.planning.neighbours import Nearby
from steer_llm_sdk.orchestration.planning.planner import ToolMetadata, declared_number

MOST_CANDIDATES = 12
"""Of no more tools than this all are weighed for each request."""
OF_MANY = 8
"""Of more, so many that promise most; which these are is looked for now and then."""
LOOK_AROUND = 64
"""Decisions of a task type, and an eighth of those before, after which the promising ones are looked for again."""
MOST_TASKS = 1_000
"""Task types of which it is known which tools promise most."""

Tools = Mapping[str, ToolMetadata]
_NO_NEIGHBOUR = Nearby()


def arm_of(tool: ToolMetadata) -> str:
    return f"{tool.name}@{tool.version}"


class Case(NamedTuple):
    """What tools are weighed for. `home` is the tool that serves where nothing better is known, `weights` is what rules
    add to a tool, `price` the reward that a request must gain for costing as much as `home`."""

    task: str
    tools: Tools
    home: str
    weights: Mapping[str, float]
    price: float


class Weighing:
    """`latency_weight` and `latency_target_ms` are LearnedPlanner's; `chance` says whose turn it is of tools that
    nothing is known of."""

    def __init__(
        self, beliefs: Beliefs, latency_weight: float, latency_target_ms: float | None, chance: Callable[[], float]
    ) -> None:
        self._beliefs = beliefs
        self._latency_weight, self._latency_target_ms = latency_weight, latency_target_ms
        self._chance = chance
        self._promising: dict[str, tuple[Any, int, list[str]]] = {}

    def few(self, case: Case, names: Sequence[str], decided: int) -> Sequence[str]:
        """Those that are weighed: all of a few; of many the default and those that promise most. `decided`: how often
        the task type was decided for before. In the order of their names, not in that of registration: among equals the
        first one is taken, and a draw falls on a place."""
        if len(names) <= MOST_CANDIDATES:
            return sorted(names)
        known = self._promising.get(case.task)
        if known is not None and decided < known[1] and known[0] == names:
            return known[2]
        found = sorted(self._most_promising(case, sorted(names)))
        if len(self._promising) >= MOST_TASKS:
            self._promising.clear()
        self._promising[case.task] = (names, decided + LOOK_AROUND + decided // 8, found)
        return found

    def _most_promising(self, case: Case, names: Sequence[str]) -> list[str]:
        """Those that nothing is known of promise the same: some are taken by chance, and each has its turn."""
        task, tools, home, weights, price = case
        beliefs = self._beliefs
        scale = self._cost_scale(home, (), tools) if price else 0.0
        known: list[str] = []
        unknown: list[str] = []
        for name in names:
            (known if arm_of(tools[name]) in beliefs.arms or name in weights else unknown).append(name)

        def promise(name: str) -> float:
            belief = beliefs.reward(task, arm_of(tools[name]))
            cost = self.cost(task, tools[name], 0) if scale else None
            return belief.mean + 2 * belief.sd - (price * cost / scale if cost else 0.0) + weights.get(name, 0.0)

        first = int(self._chance() * len(unknown))
        some = [unknown[(first + n) % len(unknown)] for n in range(min(OF_MANY // 2, len(unknown)))]
        found = sorted([*known, *some], key=promise, reverse=True)[:OF_MANY]
        return found if home in found or home not in names else [home, *found[:-1]]

    def weighed(
        self, case: Case, names: Sequence[str], characters: int, nearby: Mapping[str, Nearby]
    ) -> list[Candidate]:
        task, tools, home, weights, price = case
        scale = self._cost_scale(home, names, tools)
        weighed = []
        for name in names:
            tool = tools[name]
            arm = arm_of(tool)
            belief, near = self._beliefs.reward(task, arm), nearby.get(arm, _NO_NEIGHBOUR)
            reward, sd, mass = belief.mean, belief.sd, belief.mass
            if near is not _NO_NEIGHBOUR:
                reward = min(max(reward + near.shift, 1e-6), 1 - 1e-6)
                mass += near.weight
                sd = math.sqrt(reward * (1 - reward) / (mass + 1))
            utility = reward + weights.get(name, 0.0)
            if price and scale:
                utility -= price * (self.cost(task, tool, characters) or 0.0) / scale
            if self._latency_weight:
                utility -= self._latency_weight * self._lateness(task, tool)
            weighed.append(Candidate(name, utility, reward, sd, belief.runs + near.support, mass))
        return weighed

    def _cost_scale(self, home: str, names: Sequence[str], tools: Tools) -> float:
        """USD that the default tool costs in the mean; where nobody knows, the dearest of those that may serve."""
        known = self.usual_cost(tools[home]) if home in tools else None
        if known:
            return known
        return max((cost for name in names if (cost := self.usual_cost(tools[name]))), default=0.0)

    def usual_cost(self, tool: ToolMetadata) -> float | None:
        """USD of a request in the mean."""
        seen = self._beliefs.mean_cost(arm_of(tool))
        return declared_number(tool, "estimated_cost_per_run") if seen is None else seen

    def cost(self, task: str, tool: ToolMetadata, characters: int) -> float | None:
        """USD of a request of this type and length."""
        seen = self._beliefs.cost(task, arm_of(tool), characters)
        return declared_number(tool, "estimated_cost_per_run") if seen is None else seen

    def _lateness(self, task: str, tool: ToolMetadata) -> float:
        seen = self._beliefs.duration(task, arm_of(tool))
        ms = declared_number(tool, "estimated_duration_ms") if seen is None else seen
        target = self._latency_target_ms
        return max(0.0, ms - target) / target if ms is not None and target else 0.0
