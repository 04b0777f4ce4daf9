"""Which of several tools that can do the same goes first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from steer_llm_sdk.orchestration.planning._catalog import Catalog
from steer_llm_sdk.orchestration.planning.planner import ToolMetadata
from steer_llm_sdk.orchestration.planning.statistics import ENOUGH, Estimate

MOST_KEPT = 1000
UNRELIABLE = 0.5
"""A tool of which fewer runs succeed goes last among its equals."""

Key = tuple[Any, ...]
Expected = Callable[[ToolMetadata, str | None], Estimate]
OPTIMIZE = ("cost", "latency", "quality")


class Group(NamedTuple):
    """Tools in the order they are to be tried. Where two have the same key, only the order of registration decides."""

    names: Sequence[str]
    keys: Mapping[str, Key]


class Ranking:
    """Keeps the groups that it made for one catalog and one version of what is known."""

    __slots__ = ("_expected", "_groups", "_of")

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._of: tuple[Catalog | None, int] = (None, 0)
        self._groups: dict[Any, Group] = {}

    def group(
        self, catalog: Catalog, version: int, key: Any, names: Sequence[str], kind: str | None, optimize: str | None
    ) -> Group:
        """`key` says which tools these are."""
        if self._of[0] is not catalog or self._of[1] != version or len(self._groups) > MOST_KEPT:
            self._of, self._groups = (catalog, version), {}
        known = self._groups.get((key, kind, optimize))
        if known is None:
            known = self._groups[key, kind, optimize] = self.ranked(catalog, names, kind, optimize)
        return known

    def ranked(
        self,
        catalog: Catalog,
        names: Sequence[str],
        kind: str | None,
        optimize: str | None,
        weights: Mapping[str, float] | None = None,
    ) -> Group:
        if len(names) == 1:
            return Group(names, {names[0]: ()})
        known = {name: self._expected(catalog.tools[name], kind) for name in names}
        by = _measure(optimize, known.values())
        keys: dict[str, Key] = {}
        for name, estimate in known.items():
            seen = estimate.runs >= ENOUGH
            weight = () if weights is None else (-weights[name],)
            keys[name] = (*weight, seen and estimate.success < UNRELIABLE, by(estimate))
        order = sorted(names, key=lambda name: (keys[name], catalog.position[name]))
        return Group(order, keys)


def _measure(optimize: str | None, known: Any) -> Callable[[Estimate], float]:
    """What is less for the better tool. What nobody knows goes last where the caller asked for it; by itself cost
    decides only among tools of which all are known to cost something or nothing."""
    if optimize == "latency":
        return lambda e: _INFINITE if e.duration_ms is None else e.duration_ms
    if optimize == "quality":
        return lambda e: _INFINITE if e.quality is None else -e.quality
    if optimize == "cost":
        return _price_of_an_answer
    return _price_of_an_answer if all(e.cost_usd is not None for e in known) else lambda e: 0.0


_INFINITE = float("inf")


def _price_of_an_answer(estimate: Estimate) -> float:
    """What has to be paid until one run succeeds. Success counts once it is known well enough."""
    if estimate.cost_usd is None:
        return _INFINITE
    success = estimate.success if estimate.runs >= ENOUGH else 1.0
    return estimate.cost_usd / success
