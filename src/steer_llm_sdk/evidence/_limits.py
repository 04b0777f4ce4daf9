"""How a summary is cut to the size the caller asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from steer_llm_sdk.evidence.models import BundleSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is reported; None is no limit. The consensus is never cut.

    `max_fields`: fields in `distributions`. `max_diffs`: disagreements, the most contested are kept. `max_bytes`: the
    summary as JSON; distributions go first, then distances and standings, then the least contested disagreements.
    """

    max_fields: int | None = None
    max_diffs: int | None = None
    max_bytes: int | None = None


def cut(summary: BundleSummary, limits: Limits) -> BundleSummary:
    """The summary within its limits. `truncation_info` has, for each limit that was exceeded, the size before."""
    for shorten, limit in (
        (_cut_fields, limits.max_fields),
        (_cut_diffs, limits.max_diffs),
        (_cut_bytes, limits.max_bytes),
    ):
        summary = summary if limit is None else shorten(summary, limit)
    return summary


def noting(summary: BundleSummary, what: str, facts: Mapping[str, Any]) -> BundleSummary:
    info = {**(summary.truncation_info or {}), what: dict(facts)}
    return summary.model_copy(update={"truncated": True, "truncation_info": info})


def _cut_fields(summary: BundleSummary, limit: int) -> BundleSummary:
    fields = summary.distributions or {}
    if len(fields) <= limit:
        return summary
    kept = summary.model_copy(update={"distributions": dict(list(fields.items())[:limit])})
    return noting(kept, "max_fields", {"limit": limit, "total": len(fields)})


def _cut_diffs(summary: BundleSummary, limit: int) -> BundleSummary:
    total = len(summary.disagreements)
    if total <= limit:
        return summary
    return noting(_with_diffs(summary, limit), "max_diffs", {"limit": limit, "total": total})


def _cut_bytes(summary: BundleSummary, limit: int) -> BundleSummary:
    before = _size(summary)
    dropped: list[str] = []
    for name, step in _STEPS:
        if _size(summary) <= limit:
            break
        summary = step(summary, limit)
        dropped.append(name)
    if not dropped:
        return summary
    facts = {"limit": limit, "total": before, "left": _size(summary), "dropped": dropped}
    return noting(summary, "max_bytes", facts)


def _fewer_diffs(summary: BundleSummary, limit: int) -> BundleSummary:
    """Drop half of them at a time, so that a long list is measured only a few times."""
    while summary.disagreements and _size(summary) > limit:
        summary = _with_diffs(summary, len(summary.disagreements) // 2)
    return summary


def _with_diffs(summary: BundleSummary, count: int) -> BundleSummary:
    """The `count` most contested ones, in the order of the fields."""
    found = summary.disagreements
    ranked = sorted(range(len(found)), key=lambda index: found[index].support or 0.0)
    return summary.model_copy(update={"disagreements": [found[index] for index in sorted(ranked[:count])]})


def _without(*names: str) -> Callable[[BundleSummary, int], BundleSummary]:
    return lambda summary, _: summary.model_copy(update=dict.fromkeys(names))


_STEPS: Final[tuple[tuple[str, Callable[[BundleSummary, int], BundleSummary]], ...]] = (
    ("distributions", _without("distributions")),
    ("pairwise_distance", _without("pairwise_distance", "standing")),
    ("disagreements", _fewer_diffs),
)
_MEASURED: Final = {"consensus", "disagreements", "pairwise_distance", "distributions", "standing"}


def _size(summary: BundleSummary) -> int:
    """Bytes of what is reported, as JSON."""
    told = summary.model_dump(include=_MEASURED)
    return len(json.dumps(told, separators=(",", ":"), ensure_ascii=False, default=str).encode(errors="replace"))
