"""Where the answers differ: who said what, how much it matters, and where two long texts part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from math import fsum
from typing import Any, Final

from steer_llm_sdk.evidence._json import json_value
from steer_llm_sdk.evidence._leaves import Whole, dotted, plain
from steer_llm_sdk.evidence._reading import Column
from steer_llm_sdk.evidence.distance import Ruler
from steer_llm_sdk.evidence.equivalence import relative
from steer_llm_sdk.evidence.models import Answer, Disagreement
from steer_llm_sdk.models.plain import copied

MOST_ANSWERS: Final = 10
"""Different answers to a field that are listed with their replicates."""
_SAMPLED: Final = 50
"""Different texts whose distance from the consensus is measured; of more, the ones with most votes."""
_LONG: Final = 80
_BEFORE: Final = 24


def disagreement(column: Column, ids: Sequence[str], behind: int | None, support: float, total: float) -> Disagreement:
    """`behind` is the class that gave the consensus, None if none did."""
    absent = column.absent_class
    names = list(ids) if len(column.members) == len(ids) else [ids[index] for index in column.members]
    values = list(column.values)
    if absent is not None:
        given = [number != absent for number in column.classes]
        names, values = list(compress(names, given)), list(compress(values, given))
    ranked = column.given
    chosen = None if behind is None else plain(column.said[behind])
    # Those of many megabytes are copied once, and shared by all who gave them.
    whole = {said: json_value(said.value) for said in column.said if type(said) is Whole}
    if whole or not _is_plain(column):
        values = [whole[value] if type(value) is Whole else copied(value) for value in values]
    # Not validated again: all of it was made here, of values that are JSON.
    return Disagreement.model_construct(
        field=dotted(column.path),
        values=values,
        replicate_ids=names,
        support=support,
        entropy=column.entropy,
        severity=severity(column, behind),
        answers=[_answer(column, number, ids, chosen, total, whole) for number in ranked[:MOST_ANSWERS]],
        more=max(0, len(ranked) - MOST_ANSWERS),
        absent=[] if absent is None else [ids[index] for index in column.ballots_of[absent]],
    )


def _is_plain(column: Column) -> bool:
    return not set(map(type, column.said)) & {dict, list}


def _answer(
    column: Column, number: int, ids: Sequence[str], chosen: Any, total: float, whole: Mapping[Whole, Any]
) -> Answer:
    said, ballots = column.said[number], column.ballots_of[number]
    value = plain(said)
    return Answer(
        value=whole[said] if type(said) is Whole else copied(value),
        votes=len(ballots),
        share=column.weights[number] / total,
        replicate_ids=[ids[index] for index in ballots],
        excerpt=excerpt(value, chosen) if isinstance(value, str) else None,
    )


def severity(column: Column, behind: int | None) -> float:
    """The mean distance of the answers from the consensus by weight; 1.0 where there is none."""
    if behind is None:
        return 1.0
    chosen = column.said[behind]
    if _all_numbers(column):
        return _of_numbers(column.said, column.weights, chosen)
    ruler = Ruler(column)
    ranked = [number for number in column.by_weight if number != behind][:_SAMPLED]
    weights = [column.weights[number] for number in ranked]
    apart = [weight * ruler.distance(number, behind) for number, weight in zip(ranked, weights, strict=True)]
    others = fsum(column.weights) - column.weights[behind]
    return fsum(apart) / fsum(weights) * others / (others + column.weights[behind])


def _of_numbers(said: Sequence[float], weights: Sequence[float], chosen: float) -> float:
    if min(said) > 0:  # As most are: the same in a third of the time.
        apart = [(chosen - value) / chosen if value < chosen else (value - chosen) / value for value in said]
    else:
        apart = [relative(value, chosen) for value in said]
    return fsum([weight * far for weight, far in zip(weights, apart, strict=True)]) / fsum(weights)


def _all_numbers(column: Column) -> bool:
    return set(map(type, column.said)) <= {int, float} and -1e300 < min(column.said) <= max(column.said) < 1e300


def excerpt(text: str, beside: Any) -> str | None:
    """Of a long text the part from a little before where it differs from the other; None for a short one."""
    if len(text) <= _LONG:
        return None
    same = _shared(text, beside) if isinstance(beside, str) and text != beside else 0
    start = max(0, same - _BEFORE)
    end = start + _LONG
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}"


def _shared(left: str, right: str) -> int:
    """How many characters they begin with alike."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left.startswith(right[:middle]) else (low, middle - 1)
    return low
