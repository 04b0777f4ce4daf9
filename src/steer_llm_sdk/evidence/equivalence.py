"""Which values are the same answer: canonical forms first, then clusters in which every two are close enough.

What comes out is a partition, and the same one whatever the order of the values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final, TypeAlias

from steer_llm_sdk.evidence._leaves import ABSENT, canonical, class_of, fold, numeral, plain
from steer_llm_sdk.evidence.policy import FieldPolicy

MOST_TEXTS: Final = 150
"""Distinct texts that are compared with each other; beyond it only equal ones are one answer."""
MOST_JUDGED: Final = 40
"""Classes that a judge is asked about; beyond it he would be asked thousands of times."""
_SAMPLE: Final = 4096
"""Characters at each end of a long text by which its likeness to another is estimated."""

OBJECT: Final = ("object",)
"""The class of every object whose keys are voted on one by one."""

Key: TypeAlias = Hashable


def key_of(value: Any, policy: FieldPolicy) -> Key:
    """Equal for values that are the same answer by their form alone; 1 and true, null and ABSENT are different."""
    kind = policy.kind
    if kind == "number":
        number = number_of(value, policy.units)
        return class_of(value) if number is None else number
    if kind == "date" and isinstance(value, str):
        return date_key(value, policy.day_first) or class_of(value)
    return class_of(value, exact=kind == "exact")


# Numbers and dates in words.

_GROUPED = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[+-]?\d{1,3})?")


def number_of(value: Any, units: Mapping[str, float] | None = None) -> int | float | None:
    """The number that a value is or says: 5, "5", "1,000", with `units` "5 kg" or "$5"; None where it is none."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or len(value) > 100:
        return None
    text, factor = _without_unit(fold(value).replace("\u2212", "-"), units or {})
    if not any(character.isdigit() for character in text) or not _GROUPED.fullmatch(text):
        return None
    number = numeral(text.replace(",", "").removeprefix("+"))
    return number if factor == 1 else number * factor


def _without_unit(text: str, units: Mapping[str, float]) -> tuple[str, float]:
    for unit in sorted(units, key=len, reverse=True):
        folded = fold(unit)
        for rest in (text.removesuffix(folded), text.removeprefix(folded)):
            if rest != text:
                return rest.strip(), units[unit]
    return text, 1


_MONTHS: Final = {
    name: number
    for number, names in enumerate(
        (
            *("january jan", "february feb", "march mar", "april apr", "may", "june jun", "july jul", "august aug"),
            *("september sep sept", "october oct", "november nov", "december dec"),
        ),
        start=1,
    )
    for name in names.split()
}
_WORDED = re.compile(r"(?:(\d{1,2})(?:st|nd|rd|th)?\.? )?([a-z]{3,9})\.? (?:(\d{1,2})(?:st|nd|rd|th)?,? )?(\d{4})")
_DIGITS = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})")
_DAY_OR_MONTH = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})")


def date_key(text: str, day_first: bool | None = None) -> Key | None:
    """("date", ISO text) of a date or time, the latter in UTC where it has an offset; None where it is none."""
    folded = fold(text)
    try:
        found = _date_of(folded, day_first)
        if found is not None:
            return ("date", found.isoformat())
        moment = datetime.fromisoformat(folded.upper())
    except (ValueError, OverflowError):
        return None
    moment = moment.astimezone(UTC) if moment.tzinfo is not None else moment
    midnight = moment.tzinfo is None and moment.time().isoformat() == "00:00:00"
    return ("date", moment.date().isoformat() if midnight else moment.isoformat())


def _date_of(text: str, day_first: bool | None) -> date | None:
    if found := _DIGITS.fullmatch(text):
        return date(*map(int, found.groups()))
    if (found := _DAY_OR_MONTH.fullmatch(text)) and day_first is not None:
        first, second, year = map(int, found.groups())
        return date(year, second, first) if day_first else date(year, first, second)
    found = _WORDED.fullmatch(text)
    if found and found[2] in _MONTHS and (found[1] is None) != (found[3] is None):
        return date(int(found[4]), _MONTHS[found[2]], int(found[1] or found[3]))
    return None


# Clusters of distinct values.


def clusters(keys: Mapping[Key, float], values: Mapping[Key, Any], policy: FieldPolicy) -> dict[Key, Key]:
    """From each key to the one that stands for its class. `keys` has weights, `values` a value of each key."""
    if policy.kind == "number" and (policy.abs_tol or policy.rel_tol):
        found = _numbers(keys, policy.abs_tol, policy.rel_tol)
    elif policy.kind == "text" and policy.similarity < 1:
        found = _texts([key for key in keys if isinstance(key, str)], policy.similarity)
    else:
        found = {}
    leaders = {key: found.get(key, key) for key in keys}
    return leaders if policy.judge is None else _judged(leaders, values, policy.judge)


def _numbers(keys: Mapping[Key, float], abs_tol: float, rel_tol: float) -> dict[Key, Key]:
    """The heaviest stretch of numbers that are all within the tolerance of each other, then the heaviest of the rest.

    Of stretches of one weight the narrowest, then the lowest. One more vote for a number of the heaviest stretch leaves
    it the heaviest.
    """
    found: dict[Key, Key] = {}
    for left in _stretches(sorted((key, weight) for key, weight in keys.items() if _is_number(key)), abs_tol, rel_tol):
        while left:
            start, end = _heaviest(left, abs_tol, rel_tol)
            found.update((key, left[start][0]) for key, _ in left[start:end])
            del left[start:end]
    return found


_Weighted = tuple[Any, float]


def _stretches(numbers: Sequence[_Weighted], abs_tol: float, rel_tol: float) -> list[list[_Weighted]]:
    """Cut where two neighbours are too far apart: what is on either side has nothing to do with the other."""
    found: list[list[_Weighted]] = []
    for number in numbers:
        if found and _within(found[-1][-1][0], number[0], abs_tol, rel_tol):
            found[-1].append(number)
        else:
            found.append([number])
    return found


def _heaviest(numbers: Sequence[_Weighted], abs_tol: float, rel_tol: float) -> tuple[int, int]:
    found, end, weight = [], 0, 0.0
    for start in range(len(numbers)):
        while end < len(numbers) and _within(numbers[start][0], numbers[end][0], abs_tol, rel_tol):
            weight += numbers[end][1]
            end += 1
        found.append((-weight, numbers[end - 1][0] - numbers[start][0], start, end))
        weight -= numbers[start][1]
    return min(found)[2:]


def _within(low: float, high: float, abs_tol: float, rel_tol: float) -> bool:
    return high - low <= max(abs_tol, rel_tol * max(abs(low), abs(high)))


def _is_number(key: Key) -> bool:
    return isinstance(key, (int, float)) and not isinstance(key, bool) and abs(key) < 1e300


def _texts(texts: Sequence[str], similarity: float) -> dict[Key, Key]:
    """Complete linkage: the two nearest clusters are joined for as long as every two of their texts are near enough."""
    if len(texts) > MOST_TEXTS:
        return {}
    texts = sorted(texts)
    shingled = [shingles(text) for text in texts]
    span: dict[tuple[int, int], float] = {}
    for high in range(len(texts)):
        for low in range(high):
            span[low, high] = unlikeness(texts[low], texts[high], shingled[low], shingled[high])
    members = {index: [index] for index in range(len(texts))}
    while span:
        pair = min(span, key=lambda pair: (span[pair], pair))
        if span[pair] > 1 - similarity:
            break
        _join(*pair, members, span)
    return {texts[index]: texts[leader] for leader, group in members.items() for index in group}


def _join(low: int, high: int, members: dict[int, list[int]], span: dict[tuple[int, int], float]) -> None:
    members[low] += members.pop(high)
    del span[low, high]
    for other in members:
        if other != low:
            far = span.pop((min(other, high), max(other, high)))
            near = (min(other, low), max(other, low))
            span[near] = max(span[near], far)


def _judged(leaders: Mapping[Key, Key], values: Mapping[Key, Any], judge: Callable[[Any, Any], bool]) -> dict[Key, Key]:
    """Each class joins the first one that is the same as all of its classes, in the order of their texts."""
    said = {leader: plain(values[leader]) for leader in leaders.values() if leader is not ABSENT and leader is not None}
    if len(said) > MOST_JUDGED:
        return dict(leaders)
    joined: dict[Key, Key] = {}
    groups: list[list[Key]] = []
    for leader in sorted(said, key=lambda leader: canonical(values[leader])):
        group = next((each for each in groups if all(judge(said[other], said[leader]) for other in each)), None)
        if group is None:
            groups.append([leader])
        else:
            group.append(leader)
            joined[leader] = group[0]
    return {key: joined.get(leader, leader) for key, leader in leaders.items()}


# How alike two texts are.


def shingles(text: str) -> frozenset[str]:
    """Its sequences of three characters; of a long text those of its two ends."""
    if len(text) > 2 * _SAMPLE:
        return shingles(text[:_SAMPLE]) | shingles(text[-_SAMPLE:])
    padded = f" {text} "
    return frozenset(padded[at : at + 3] for at in range(max(1, len(padded) - 2)))


def unlikeness(left: str, right: str, of_left: frozenset[str], of_right: frozenset[str]) -> float:
    """1 - (shared sequences of three characters / those of either), and more than 0 for texts that are not equal."""
    if left == right:
        return 0.0
    shared = len(of_left & of_right)
    return max(1.0 - shared / (len(of_left) + len(of_right) - shared), 1.0 / (1 + max(len(left), len(right))))


def relative(left: float, right: float) -> float:
    """The difference of two numbers by the larger one, at most 1."""
    largest = max(abs(left), abs(right))
    return min(1.0, abs(left - right) / largest) if largest else 0.0
