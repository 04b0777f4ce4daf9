"""From replicates to one summary: the consensus, how many replicates support it, and where they differ."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from statistics import median_low
from typing import Any, Protocol

from steer_llm_sdk.evidence._leaves import ABSENT, Path, at, dotted, parse_paths, replaced
from steer_llm_sdk.evidence._report import MAX_PAIRWISE, Difference, Limits, Summary, cut, noting
from steer_llm_sdk.evidence.consensus import Ballot, Election, Group, Tally, shape_of
from steer_llm_sdk.evidence.distance import pairwise_distance


class Quality(Protocol):
    @property
    def valid(self) -> bool: ...


class ReplicateLike(Protocol):
    """What a replicate must have. An invalid one has no vote, but counts in the denominator of every share."""

    @property
    def id(self) -> str: ...
    @property
    def data(self) -> Any: ...
    @property
    def quality(self) -> Quality: ...


def summarize(
    replicates: Sequence[ReplicateLike],
    *,
    fields: Sequence[str] | None = None,
    weights: Mapping[str, float] | None = None,
    accepts: Callable[[Any], bool] | None = None,
    limits: Limits = Limits(),
) -> Summary:
    """Vote field by field and report the result, which does not depend on the order of the replicates.

    There is a consensus if at least two valid replicates give the same value to at least one field; a single answer is
    not a consensus. Fields on which all differ are then taken from the replicate that agrees most with the others, and
    listed among the disagreements. The confidence is the share of all replicates, invalid ones included, that gave the
    consensus's value, averaged over the fields. It measures stability, not truth.

    `fields` are the dotted paths that are voted on; everything else comes from the replicate nearest to the result.
    `weights` by replicate id, 1.0 where none is given. If `accepts` refuses the field-wise result, the answer of the
    nearest replicate that it accepts is used instead.
    """
    ordered = sorted(replicates, key=lambda replicate: _natural(replicate.id))
    weigh = _weigher(weights or {})
    ballots = [Ballot(item.id, item.data, weigh(item.id)) for item in ordered if item.quality.valid]
    if not ballots:
        return Summary()
    roots = None if fields is None else parse_paths(fields)
    result = _vote(ballots, roots, accepts, total=sum(weigh(item.id) for item in ordered))
    return cut(_with_distances(result.report(), ballots, fields), limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class _VoteResult:
    """`total` is the weight of all replicates, invalid ones included; `whole`: `value` is that of `nearest`."""

    election: Election
    value: Any
    nearest: Ballot
    whole: bool
    total: float

    def report(self) -> Summary:
        tallies = self.election.tallies
        agreed = any(self._agreed(tally) for tally in tallies)
        return Summary(
            consensus=self.value if agreed else None,
            confidence=self._confidence() if agreed else None,
            disagreements=tuple(self._difference(tally) for tally in tallies if len(tally.groups) > 1),
            distributions={dotted(tally.path): self._distribution(tally) for tally in tallies if tally.leaf},
            nearest=self.nearest.id,
            whole=self.whole,
        )

    def _behind(self, tally: Tally) -> Group:
        """The ballots that have the consensus's value."""
        if not self.whole:
            return tally.groups[0]
        said = shape_of(at(self.value, tally.path))
        return next((group for group in tally.groups if shape_of(tally.values[group[0]]) == said), ())

    def _agreed(self, tally: Tally) -> bool:
        """Whether at least two replicates gave this field the value of the consensus."""
        behind = self._behind(tally)
        return tally.leaf and len(behind) > 1 and tally.values[behind[0]] is not ABSENT

    def _support(self, tally: Tally) -> float:
        return self.election.weight(self._behind(tally)) / self.total

    def _confidence(self) -> float:
        supports = [self._support(tally) for tally in self.election.tallies if tally.leaf]
        return math.fsum(supports) / len(supports)

    def _difference(self, tally: Tally) -> Difference:
        said = [(value, self.election.ballots[i].id) for i, value in tally.values.items() if value is not ABSENT]
        return Difference(
            field=dotted(tally.path),
            values=tuple(value for value, _ in said),
            replicate_ids=tuple(name for _, name in said),
            support=self._support(tally),
        )

    def _distribution(self, tally: Tally) -> dict[str, Any]:
        """`votes`: replicates per value, most first; `absent`: those without the field; of numbers min, median, max."""
        given = [group for group in tally.groups if tally.values[group[0]] is not ABSENT]
        votes = sorted((len(group) for group in given), reverse=True)
        absent = len(tally.values) - sum(votes)
        values = [tally.values[index] for group in given for index in group]
        return {"support": self._support(tally), "votes": votes, "absent": absent, **_of_numbers(values)}


def _vote(
    ballots: Sequence[Ballot],
    roots: Sequence[Path] | None,
    accepts: Callable[[Any], bool] | None,
    total: float,
) -> _VoteResult:
    election = Election(ballots)
    if roots is None:
        value = election.elect()
        nearest = _nearest(election, range(len(ballots)))
    else:
        elected = [(root, election.elect(root)) for root in roots]
        nearest = _nearest(election, range(len(ballots)))
        value = reduce(lambda made, choice: replaced(made, *choice), elected, nearest.data)
    if accepts is not None and not accepts(value):
        acceptable = [index for index, ballot in enumerate(ballots) if accepts(ballot.data)]
        if acceptable:
            whole = _nearest(election, acceptable)
            return _VoteResult(election=election, value=whole.data, nearest=whole, whole=True, total=total)
    return _VoteResult(election=election, value=value, nearest=nearest, whole=False, total=total)


def _nearest(election: Election, among: Sequence[int]) -> Ballot:
    """The ballot whose values of the elected fields have the most votes."""
    behind = dict.fromkeys(among, 0.0)
    for tally in election.tallies:
        weight = election.weight(tally.groups[0])
        for index in behind.keys() & set(tally.groups[0]):
            behind[index] += weight
    best = max(behind.values())
    nearest = [index for index, weight in behind.items() if weight == best]
    return election.ballots[nearest[0] if len(nearest) == 1 else min(nearest, key=election.rank.__getitem__)]


def _with_distances(summary: Summary, ballots: Sequence[Ballot], fields: Sequence[str] | None) -> Summary:
    if len(ballots) > MAX_PAIRWISE:
        return noting(summary, "pairwise_distance", {"limit": MAX_PAIRWISE, "total": len(ballots)})
    return replace(summary, pairwise_distance=pairwise_distance([ballot.data for ballot in ballots], fields=fields))


def _of_numbers(values: Sequence[Any]) -> dict[str, Any]:
    """Values that were given. There is no mean, because that may be a value that no replicate gave."""
    if not values or any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        return {}
    return {"min": min(values), "median": median_low(values), "max": max(values)}


def _weigher(weights: Mapping[str, float]) -> Callable[[str], float]:
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"weights: {weight!r} for {name!r} cannot be used; give a positive finite number")
    return lambda name: weights.get(name, 1.0)


_DIGITS = re.compile(r"(\d{1,18})")


def _natural(name: str) -> tuple[Any, ...]:
    """r2 comes before r10."""
    parts = _DIGITS.split(name)
    return (*((text, int(number)) for text, number in zip(parts[::2], [*parts[1::2], "-1"], strict=True)), name)
