"""The log of decisions with rewards: one JSON object per line, written by LearnedPlanner and read by its evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple


class Decided(NamedTuple):
    """What was decided: for which task type, among which tools, with which chance. `default` is the planner's."""

    task: str
    candidates: Sequence[str]
    tool: str
    propensity: float
    default: str | None
    query: str | None


def line_of(decision_id: str, decided: Decided, reward: float, cost: float | None, ms: float | None) -> str:
    fields = {
        "decision_id": decision_id,
        "type": decided.task,
        "candidates": list(decided.candidates),
        "tool": decided.tool,
        "propensity": decided.propensity,
        "default": decided.default,
        "reward": reward,
        "cost_usd": cost,
        "latency_ms": ms,
        "query": decided.query,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None})
