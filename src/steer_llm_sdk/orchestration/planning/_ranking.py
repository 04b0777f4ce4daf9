"""Which of several tools that can do the same goes first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from steer_llm_sdk.orchestration.planning._catalog import Catalog
from steer_llm_sdk.orchestration.planning.planner import ToolMetadata
from steer_llm_sdk.orchestration.planning.statistics import ENOUGH, Estimate, Statistics

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
    """Keeps the groups that it made for one catalog. Where something new is known of a tool, only the groups that it is
    in are ordered anew."""

    __slots__ = ("_expected", "_last", "_statistics")

    def __init__(self, statistics: Statistics, expected: Expected) -> None:
        self._statistics = statistics
        self._expected = expected
        # Together, because threads may share a planner for several registries.
        self._last: tuple[Catalog | None, dict[Any, _Kept]] = (None, {})

    def group(self, catalog: Catalog, key: Any, names: Sequence[str], kind: str | None, optimize: str | None) -> Group:
        """`key` says which tools these are."""
        last, groups = self._last
        if last is not catalog or len(groups) > MOST_KEPT:
            groups = {}
            self._last = catalog, groups
        kept, version = groups.get((key, kind, optimize)), self._statistics.version
        if kept is not None and kept.version == version:
            return kept.group
        changed = None if kept is None else self._statistics.changed_since(kept.version)
        if kept is None or changed is None:
            known = {name: self._expected(catalog.tools[name], kind) for name in names}
            group = _ordered(catalog, known, optimize, None)
        elif changed := changed & kept.known.keys():
            known = {**kept.known, **{name: self._expected(catalog.tools[name], kind) for name in changed}}
            group = _ordered(catalog, known, optimize, None)
        else:
            known, group = kept.known, kept.group
        groups[key, kind, optimize] = _Kept(version, known, group)
        return group

    def ranked(
        self,
        catalog: Catalog,
        names: Sequence[str],
        kind: str | None,
        optimize: str | None,
        weights: Mapping[str, float] | None = None,
    ) -> Group:
        known = {name: self._expected(catalog.tools[name], kind) for name in names}
        return _ordered(catalog, known, optimize, weights)


class _Kept(NamedTuple):
    version: int
    known: dict[str, Estimate]
    group: Group


def _ordered(
    catalog: Catalog, known: Mapping[str, Estimate], optimize: str | None, weights: Mapping[str, float] | None
) -> Group:
    by, position = _measure(optimize, known.values()), catalog.position
    keys: dict[str, Key] = {}
    for name, estimate in known.items():
        unreliable = estimate.runs >= ENOUGH and estimate.success < UNRELIABLE
        keys[name] = (unreliable, by(estimate)) if weights is None else (-weights[name], unreliable, by(estimate))
    return Group(sorted(known, key=lambda name: (keys[name], position[name])), keys)


def _measure(optimize: str | None, known: Collection[Estimate]) -> Callable[[Estimate], Any]:
    """What is less for the better tool. What nobody knows goes last where the caller asked for it; by itself, and among
    those that are equal in what the caller asked for, cost decides only where it is known of all."""
    if optimize == "cost":
        return _price_of_an_answer
    price = _price_of_an_answer if all(e.cost_usd is not None for e in known) else lambda e: 0.0
    if optimize == "latency":
        return lambda e: (_INFINITE if e.duration_ms is None else e.duration_ms, price(e))
    if optimize == "quality":
        return lambda e: (_INFINITE if e.quality is None else -e.quality, price(e))
    return price


_INFINITE = float("inf")


def _price_of_an_answer(estimate: Estimate) -> float:
    """What has to be paid until one run succeeds. Success counts once it is known well enough."""
    if estimate.cost_usd is None:
        return _INFINITE
    success = estimate.success if estimate.runs >= ENOUGH else 1.0
    return estimate.cost_usd / success
