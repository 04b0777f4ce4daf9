"""The summary of a bundle, and how it is cut to the size the caller asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

MAX_PAIRWISE: Final = 100
"""Valid replicates up to which distances are computed: the matrix grows with their square."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is reported; None is no limit. The consensus is never cut.

    `max_fields`: fields in `distributions`. `max_diffs`: disagreements, the most contested are kept. `max_bytes`: the
    summary as JSON; distributions go first, then distances, then the least contested disagreements.
    """

    max_fields: int | None = None
    max_diffs: int | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`values[i]` is the value of `replicate_ids[i]`; a valid replicate that is not listed does not have the field.

    `support` is the share of all votes that the consensus's value has.
    """

    field: str
    values: tuple[Any, ...]
    replicate_ids: tuple[str, ...]
    support: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`confidence` is None exactly if there is no consensus. `nearest` is the id of the valid replicate that agrees
    most with the consensus. `whole`: the consensus is its answer, because the field-wise result was refused.
    """

    consensus: Any = None
    confidence: float | None = None
    disagreements: tuple[Difference, ...] = ()
    pairwise_distance: tuple[tuple[float, ...], ...] | None = None
    distributions: Mapping[str, Mapping[str, Any]] | None = None
    nearest: str | None = None
    whole: bool = False
    truncated: bool = False
    truncation_info: Mapping[str, Any] | None = None


def cut(summary: Summary, limits: Limits) -> Summary:
    """The summary within its limits. `truncation_info` has, for each limit that was exceeded, the size before."""
    for shorten, limit in (
        (_cut_fields, limits.max_fields),
        (_cut_diffs, limits.max_diffs),
        (_cut_bytes, limits.max_bytes),
    ):
        summary = summary if limit is None else shorten(summary, limit)
    return summary


def noting(summary: Summary, what: str, facts: Mapping[str, Any]) -> Summary:
    return replace(summary, truncated=True, truncation_info={**(summary.truncation_info or {}), what: facts})


def _cut_fields(summary: Summary, limit: int) -> Summary:
    fields = summary.distributions or {}
    if len(fields) <= limit:
        return summary
    kept = dict(list(fields.items())[:limit])
    return noting(replace(summary, distributions=kept), "max_fields", {"limit": limit, "total": len(fields)})


def _cut_diffs(summary: Summary, limit: int) -> Summary:
    total = len(summary.disagreements)
    if total <= limit:
        return summary
    return noting(_with_diffs(summary, limit), "max_diffs", {"limit": limit, "total": total})


def _cut_bytes(summary: Summary, limit: int) -> Summary:
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


def _fewer_diffs(summary: Summary, limit: int) -> Summary:
    """Drop half of them at a time, so that a long list is measured only a few times."""
    while summary.disagreements and _size(summary) > limit:
        summary = _with_diffs(summary, len(summary.disagreements) // 2)
    return summary


def _with_diffs(summary: Summary, count: int) -> Summary:
    """The `count` most contested ones, in the order of the fields."""
    ranked = sorted(range(len(summary.disagreements)), key=lambda index: summary.disagreements[index].support)
    return replace(summary, disagreements=tuple(summary.disagreements[index] for index in sorted(ranked[:count])))


_STEPS: Final[tuple[tuple[str, Callable[[Summary, int], Summary]], ...]] = (
    ("distributions", lambda summary, _: replace(summary, distributions=None)),
    ("pairwise_distance", lambda summary, _: replace(summary, pairwise_distance=None)),
    ("disagreements", _fewer_diffs),
)


def _size(summary: Summary) -> int:
    """Bytes of what is reported, as JSON."""
    told = {
        "consensus": summary.consensus,
        "disagreements": [asdict(difference) for difference in summary.disagreements],
        "pairwise_distance": summary.pairwise_distance,
        "distributions": summary.distributions,
    }
    return len(json.dumps(told, separators=(",", ":"), ensure_ascii=False, default=str).encode(errors="replace"))
