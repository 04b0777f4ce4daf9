"""From replicates to one summary: the consensus, how many replicates support it, and where they differ."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from statistics import median
from typing import Any, Final, NamedTuple, SupportsFloat, TypeAlias

from pydantic import BaseModel

from steer_llm_sdk.evidence._json import AT_ONCE, are_flat, json_value
from steer_llm_sdk.evidence._leaves import (
    ABSENT,
    MOST_CHARACTERS,
    MOST_VALUES,
    at,
    dotted,
    has,
    natural,
    replaced,
)
from steer_llm_sdk.evidence._limits import Limits, cut, noting
from steer_llm_sdk.evidence._reading import Ballot, Reading
from steer_llm_sdk.evidence.confidence import stability as stability_of
from steer_llm_sdk.evidence.consensus import Election, Tally
from steer_llm_sdk.evidence.disagreements import MOST_ANSWERS, disagreement
from steer_llm_sdk.evidence.distance import Matrix, distances
from steer_llm_sdk.evidence.distributions import describe
from steer_llm_sdk.evidence.equivalence import number_of
from steer_llm_sdk.evidence.models import BundleSummary, ModelAgreement, Replicate, Standing
from steer_llm_sdk.evidence.policy import Fields, Policies
from steer_llm_sdk.evidence.validation import Check, InvalidAnswer, check_of, read_json

MAX_PAIRWISE: Final = 50
"""Valid replicates up to which distances are computed unasked: the matrix grows with their square."""
_MOST_EXACT: Final = 20
"""Votes up to which their posterior is integrated; of many that takes a hundred times as long as all else."""
_NULL: Final = type(None)
_LEAST_SPREAD: Final = 0.02

Given: TypeAlias = Replicate | BaseModel | Mapping[str, Any] | Sequence[Any] | str | float | None


def summarize(
    replicates: Iterable[Given],
    *,
    schema: Any = None,
    fields: Fields | Policies | None = None,
    weights: Mapping[str, float] | Sequence[float] | None = None,
    accepts: Callable[[Any], bool] | None = None,
    limits: Limits = Limits(),
    pairwise: bool | None = None,
) -> BundleSummary:
    """Vote field by field and report the result, which does not depend on the order of the replicates.

        summarize(["Paris", "paris", "Lyon"]).consensus            # "Paris"
        summarize(texts, schema=Invoice, fields={"total": FieldPolicy(rel_tol=0.001)})

    A replicate is a Replicate or any JSON value; values are called r1, r2, … in the order they come. One that is no
    JSON, or does not fit `schema` (a JSON Schema, a pydantic model or type, or a predicate), is invalid: it has no
    vote, but counts in the denominator of every share. A text that does not fit the schema as a text is read as JSON.

    There is a consensus if at least two valid replicates give the same answer to at least one field; a single answer is
    not a consensus. Fields on which all differ are then taken from the replicate that agrees most with the others, and
    listed among the disagreements.

    `fields` as a list names the paths that are voted on; everything else comes from the replicate nearest to the
    result. As a mapping it gives paths a FieldPolicy, beside which everything else is voted on as by default. `weights`
    by replicate id or by model, or one for each replicate in order; 1.0 where none is given. A path that no valid
    replicate has, and a weight of none of them, are told in `warnings`. If the field-wise result
    does not fit the schema, or `accepts` refuses it, the answer of the nearest replicate that fits is used instead.
    `pairwise` True computes the distances of more than 50 replicates too, False of none.

    An answer of more than 10,000 values or 1,000,000 characters (with `fields` as a list, what it has at one of them)
    is compared as a whole and to the letter, keys in their order: `truncation_info["compared_whole"]` names it.
    """
    check = None if schema is None else check_of(schema)
    policies = Policies.of(fields, schema)
    cast = _read(replicates, check, weights)
    total = math.fsum(vote.ballot.weight for vote in cast)
    ballots = [vote.ballot for vote in cast if not vote.errors]
    invalid = {vote.ballot.id: list(vote.errors) for vote in cast if vote.errors}
    if not ballots:
        return BundleSummary(invalid=invalid, models=_models(cast, {}), warnings=_without_replicate(weights, cast))
    reading = Reading(ballots, policies)
    result = _vote(reading, _acceptance(check, accepts), total)
    matrix = distances(reading) if pairwise or (pairwise is None and len(ballots) <= MAX_PAIRWISE) else None
    summary = result.report(cast, invalid, matrix)
    if matrix is None and pairwise is None:
        summary = noting(summary, "pairwise_distance", {"limit": MAX_PAIRWISE, "total": len(ballots)})
    if reading.whole:
        of = [ballots[index].id for index in reading.whole]
        most = {"values": MOST_VALUES, "characters": MOST_CHARACTERS}
        summary = noting(summary, "compared_whole", {"limit": most, "replicate_ids": of})
    missing = [*_without_value(policies, ballots), *_without_replicate(weights, cast)]
    if missing:
        summary = summary.model_copy(update={"warnings": [*summary.warnings, *missing]})
    return cut(summary, limits)


def _without_value(policies: Policies, ballots: Sequence[Ballot]) -> list[str]:
    """Paths of `fields` that are in no answer: misspelt, or in one that did not come, which is no error."""
    return [
        f"fields: no valid replicate has {dotted(path)!r}"
        for path in policies.named
        if not any(has(ballot.data, path) for ballot in ballots)
    ]


def _without_replicate(weights: Mapping[str, float] | Sequence[float] | None, cast: Sequence[_Cast]) -> list[str]:
    if not isinstance(weights, Mapping):
        return []
    known = {vote.ballot.id for vote in cast} | {vote.ballot.model for vote in cast}
    return [f"weights: no replicate is of {name!r}, by id or model" for name in weights if name not in known]


# ── what is given ────────────────────────────────────────────────────────────────────────────────────────────────────


class _Cast(NamedTuple):
    """A replicate as a vote; with `errors` it has none."""

    ballot: Ballot
    errors: Sequence[str] = ()


def _read(
    replicates: Iterable[Given], check: Check | None, weights: Mapping[str, float] | Sequence[float] | None
) -> list[_Cast]:
    if isinstance(replicates, (str, Mapping, BaseModel, float, int, type(None))):
        raise ValueError(f"replicates: {replicates!r:.80} is no list of answers; give one, such as [first, second]")
    given = list(replicates)
    weigh = _weigher(weights, len(given))
    seen: set[str] = set()
    cast = []
    flat = [are_flat(given[start : start + AT_ONCE]) for start in range(0, len(given), AT_ONCE)]
    for place, item in enumerate(given):
        name, model = (item.id, item.model) if isinstance(item, Replicate) else (f"r{place + 1}", None)
        if name in seen:
            raise ValueError(f"replicates: the id {name!r} is there twice; give each replicate its own")
        seen.add(name)
        data, errors = (item, ()) if check is None and flat[place // AT_ONCE] else _value_of(item, check)
        cast.append(_Cast(Ballot(name, data, weigh(place, name, model), model), errors))
    named = any(isinstance(item, Replicate) for item in given)
    return sorted(cast, key=lambda vote: natural(vote.ballot.id)) if named else cast


def _value_of(item: Any, check: Check | None) -> tuple[Any, Sequence[str]]:
    """The JSON value that votes, or why there is none."""
    if isinstance(item, Replicate):
        if not item.quality.valid:
            return None, list(item.quality.errors) or ["no reason was given"]
        item = item.data
    else:
        try:
            item = json_value(item)
        except (ValueError, RecursionError) as error:
            return None, [str(error)]
    if check is None:
        return item, ()
    try:
        return check(item), ()
    except InvalidAnswer as error:
        refused = str(error)
    if isinstance(item, str):
        try:
            return check(read_json(item)[0]), ()
        except InvalidAnswer as error:
            refused = str(error)
    return None, [refused]


def _weigher(
    weights: Mapping[str, float] | Sequence[float] | None, count: int
) -> Callable[[int, str, str | None], float]:
    if weights is None:
        return lambda place, name, model: 1.0
    if not isinstance(weights, Iterable):
        raise ValueError(
            f"weights: {weights!r} cannot be used; give one for each replicate, or a mapping by id or model"
        )
    if not isinstance(weights, Mapping):
        weights = list(weights)
        if len(weights) != count:
            raise ValueError(f"weights: {len(weights)} for {count} replicates; give one for each, or a mapping by id")
        by_place = [_checked(str(place), weight) for place, weight in enumerate(weights, start=1)]
        return lambda place, name, model: by_place[place]
    by_name = {name: _checked(name, weight) for name, weight in weights.items()}
    return lambda place, name, model: by_name.get(name, by_name.get(model or "", 1.0))


def _checked(name: str, weight: Any) -> float:
    number = float(weight) if isinstance(weight, SupportsFloat) else math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"weights: {weight!r} for {name!r} cannot be used; give a positive finite number")
    return number


def _acceptance(check: Check | None, accepts: Callable[[Any], bool] | None) -> Callable[[Any], bool] | None:
    if check is None:
        return accepts

    def fits(value: Any) -> bool:
        try:
            check(value)
        except InvalidAnswer:
            return False
        return accepts is None or accepts(value)

    return fits


# ── the result ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """`total` is the weight of all replicates, invalid ones included; `whole`: `value` is the answer of `nearest`."""

    reading: Reading
    election: Election
    value: Any
    nearest: int
    whole: bool
    total: float

    def report(self, cast: Sequence[_Cast], invalid: Mapping[str, list[str]], matrix: Matrix | None) -> BundleSummary:
        ballots = self.reading.ballots
        supports = [self._support(tally) for tally in self.election.tallies]
        leaves = [support for tally, support in zip(self.election.tallies, supports, strict=True) if tally.leaf]
        agreed = any(self._agreed(tally) for tally in self.election.tallies)
        support = math.fsum(leaves) / len(leaves) if agreed else None
        stability = None if support is None or self.whole else self._stability()
        shares = self._shares() if matrix is not None or any(vote.ballot.model for vote in cast) else []
        ids = [ballot.id for ballot in ballots]
        return BundleSummary(
            consensus=self.value if agreed else None,
            confidence=support if stability is None else stability,
            confidence_is=None if support is None else "support" if stability is None else "stability",
            support=support,
            stability=stability,
            disagreements=[
                disagreement(tally.column, ids, self._behind(tally), part, self.total)
                for tally, part in zip(self.election.tallies, supports, strict=True)
                if tally.column.contested
            ],
            distributions={
                dotted(tally.path): self._distribution(tally, part, len(invalid))
                for tally, part in zip(self.election.tallies, supports, strict=True)
                if tally.leaf
            },
            pairwise_distance=None if matrix is None else list(map(list, matrix)),
            nearest=ballots[self.nearest].id,
            medoid=ballots[self._medoid(matrix)].id,
            consensus_from=ballots[self.nearest].id if self.whole and agreed else None,
            invalid=dict(invalid),
            standing=None if matrix is None else _standing(ballots, shares, matrix),
            models=_models(cast, dict(zip(ids, shares, strict=False))),
            warnings=[*self.reading.warnings, *self.election.warnings],
        )

    def _behind(self, tally: Tally) -> int | None:
        """The class that has the consensus's value; None where the consensus has no object in which it could be."""
        return tally.column.class_of.get(self.nearest) if self.whole else tally.winner

    def _agreed(self, tally: Tally) -> bool:
        """Whether at least two replicates gave this field the value of the consensus."""
        behind = self._behind(tally)
        if behind is None or not tally.leaf or tally.column.said[behind] is ABSENT:
            return False
        return len(tally.column.ballots_of[behind]) > 1

    def _support(self, tally: Tally) -> float:
        behind = self._behind(tally)
        return 0.0 if behind is None else tally.column.weights[behind] / self.total

    def _stability(self) -> float:
        """The mean over the fields of the probability that the consensus is what is said most often."""
        leaves = [tally for tally in self.election.tallies if tally.leaf]
        return math.fsum(_keeps(tally) for tally in leaves) / len(leaves)

    def _shares(self) -> list[float]:
        """For each ballot the share of the fields in which it gave the consensus."""
        found = [0] * len(self.reading.ballots)
        leaves = [tally for tally in self.election.tallies if tally.leaf]
        for tally in leaves:
            behind = self._behind(tally)
            for ballot in () if behind is None else tally.column.ballots_of[behind]:
                found[ballot] += 1
        return [count / len(leaves) for count in found]

    def _medoid(self, matrix: Matrix | None) -> int:
        everyone = range(len(self.reading.ballots))
        if matrix is None:
            return self.election.first(everyone)
        far = [math.fsum(row) for row in matrix]
        least = min(far)
        return self.election.first([index for index in everyone if far[index] == least])

    def _distribution(self, tally: Tally, support: float, invalid: int) -> dict[str, Any]:
        """`votes`: replicates per answer, the heaviest first, at most 10; of numbers what they are like."""
        column = tally.column
        absent, given = column.absent_class, column.given
        nulls = [number for number in given if column.said[number] is None] if _NULL in column.kinds else []
        return {
            "support": support,
            "votes": [len(column.ballots_of[number]) for number in given[:MOST_ANSWERS]],
            "distinct": len(given),
            "absent": 0 if absent is None else len(column.ballots_of[absent]),
            "null": sum(len(column.ballots_of[number]) for number in nulls),
            "invalid": invalid,
            "entropy": column.entropy,
            **describe(_numbers(tally)),
        }


def _keeps(tally: Tally) -> float:
    """The probability that the winner is what is said most often.

    Of few votes of one weight exactly. Else as the product of the probabilities that it is said more often than each
    rival, by the normal approximation of a Beta distribution: these are positively associated, so that the product is
    at most the probability of all of them together.
    """
    column, winner = tally.column, tally.winner
    leads = winner == column.by_weight[0] or column.weights[winner] == max(column.weights)
    if leads and len(column.members) <= _MOST_EXACT and math.fsum(column.weights) == len(column.members):
        return stability_of(column.classes)
    first = column.weights[winner]
    rivals = Counter(column.alike)
    rivals[first] -= 1
    rivals[0.0] += 1  # An answer that nobody has given yet.
    return math.prod(_is_ahead(first, weight) ** count for weight, count in rivals.items())


def _is_ahead(first: float, second: float) -> float:
    """P(theta > 1/2) of Beta(first + 1, second + 1)."""
    return 0.5 * (1 + math.erf((first - second) / math.sqrt(2 * (first + second + 3))))


def _numbers(tally: Tally) -> list[float]:
    """What was said, as numbers; none where something else was said too."""
    column = tally.column
    kinds = column.kinds
    if kinds <= {int, float}:
        return list(column.values)
    if bool in kinds or dict in kinds or list in kinds:
        return []
    units = column.policy.units if column.policy.kind == "number" else None
    if units is None and str in kinds and column.policy.kind != "number":
        return []
    given = [number_of(value, units) for value in column.values if value is not None and value is not ABSENT]
    return [] if None in given else [number for number in given if number is not None]


def _vote(reading: Reading, accepts: Callable[[Any], bool] | None, total: float) -> _Result:
    election = Election(reading)
    roots = reading.policies.roots
    elected = [election.elect(column) for column in reading.columns]
    everyone = range(len(reading.ballots))
    nearest = _nearest(election, everyone)
    filler = reading.ballots[nearest].data
    if roots is None:
        value = reduce(lambda made, path: replaced(made, path, at(filler, path)), reading.ignored, elected[0])
    else:
        value = reduce(lambda made, choice: replaced(made, *choice), zip(roots, elected, strict=True), filler)
    if accepts is not None and not accepts(value):
        acceptable = [index for index in everyone if accepts(reading.ballots[index].data)]
        if acceptable:
            nearest = _nearest(election, acceptable)
            value = reading.ballots[nearest].data
            return _Result(reading=reading, election=election, value=value, nearest=nearest, whole=True, total=total)
    return _Result(reading=reading, election=election, value=value, nearest=nearest, whole=False, total=total)


def _nearest(election: Election, among: Sequence[int]) -> int:
    """The ballot whose values of the elected fields have the most votes."""
    behind = [0.0] * len(election.reading.ballots)
    for tally in election.tallies:
        weight = tally.column.weights[tally.winner]
        for index in tally.column.ballots_of[tally.winner]:
            behind[index] += weight
    best = max(behind[index] for index in among)
    return election.first([index for index in among if behind[index] == best])


# ── replicates and models ────────────────────────────────────────────────────────────────────────────────────────────


def _standing(ballots: Sequence[Ballot], shares: Sequence[float], matrix: Matrix) -> dict[str, Standing]:
    if len(ballots) < 2:
        return {ballot.id: Standing(agreement=share) for ballot, share in zip(ballots, shares, strict=True)}
    far = [math.fsum(row) / (len(row) - 1) for row in matrix]
    middle = median(far)
    spread = max(1.4826 * median([abs(each - middle) for each in far]), _LEAST_SPREAD)
    return {
        ballot.id: Standing(agreement=share, distance=each, outlier=(each - middle) / spread)
        for ballot, share, each in zip(ballots, shares, far, strict=True)
    }


def _models(cast: Sequence[_Cast], shares: Mapping[str, float]) -> dict[str, ModelAgreement] | None:
    """Each of several models; None where only one answered, or none is named."""
    names = {vote.ballot.model for vote in cast if vote.ballot.model is not None}
    if len(names) < 2:
        return None
    found = {}
    for name in sorted(names):
        own = [vote.ballot.id for vote in cast if vote.ballot.model == name]
        valid = [shares[each] for each in own if each in shares]
        agreement = math.fsum(valid) / len(valid) if valid else None
        found[name] = ModelAgreement(replicates=len(own), valid=len(valid), agreement=agreement)
    return found
