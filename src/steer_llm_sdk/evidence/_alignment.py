"""Which elements of several arrays are the same one, where nobody said by what they are told apart.

By a key that is found, else by the assignment under which the elements are most alike. The result does not depend on
the order of the arrays.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from steer_llm_sdk.evidence._leaves import ABSENT, PLACE, canonical, class_of, fold, leaves
from steer_llm_sdk.evidence.equivalence import relative, shingles, unlikeness

UNIQUE_IN: Final = 0.8
"""The share of the arrays in which the values of a key must all be there and different."""
SHARED: Final = 0.5
"""The share of its values that a key must have in common with other arrays: what is new in each aligns nothing."""
ALIKE: Final = 0.5
"""Elements less alike than this are two different ones."""
MOST_ASSIGNED: Final = 50
"""Elements of an array up to which they are assigned by likeness; those of longer ones by their place."""
_MOST_COMPARED: Final = 8
"""Different arrays of which the one that is most like the others is looked for."""


def found_key(arrays: Sequence[Sequence[Any]]) -> str | None:
    """A field of the elements that is unique in at least 80 % of the arrays, and has the same values in several.

    Of several keys the one with most values in common, then one called `id` or `..._id`, then one with texts.
    """
    filled = [array for array in arrays if array and all(isinstance(item, Mapping) for item in array)]
    if not filled or len(filled) < UNIQUE_IN * sum(map(bool, arrays)):
        return None
    names = {name for array in filled for item in array for name in item}
    ranked = [rank for name in names if (rank := _rank(name, filled)) is not None]
    return min(ranked)[-1] if ranked else None


def _rank(name: str, arrays: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[float, bool, bool, str] | None:
    unique, texts = [], True
    for array in arrays:
        values = [item.get(name) for item in array]
        if all(isinstance(value, (str, int)) and not isinstance(value, bool) for value in values):
            texts = texts and all(isinstance(value, str) for value in values)
            classes = set(map(class_of, values))
            unique += [classes] if len(classes) == len(values) else []
    if len(unique) < UNIQUE_IN * len(arrays):
        return None
    held = Counter(value for classes in unique for value in classes)
    shared = sum(count for count in held.values() if count > 1) / sum(held.values())
    if shared < SHARED:
        return None
    return -shared, not (fold(name) == "id" or name.endswith(("_id", "Id"))), not texts, name


class Assignment:
    """Elements by the place of the one they are most like. Places are numbered in the order of the consensus.

    The first places are those that at least `threshold` of the arrays, by weight, have an element for.
    """

    def __init__(self, arrays: Sequence[tuple[Sequence[Any], float]], threshold: float) -> None:
        """`arrays` with their weights."""
        by_text: dict[str, Sequence[Any]] = {}
        heavy: dict[str, list[float]] = {}
        for array, weight in arrays:
            text = canonical(array)
            by_text.setdefault(text, array)
            heavy.setdefault(text, []).append(weight)
        weight_of = {text: math.fsum(each) for text, each in heavy.items()}
        ordered = sorted(by_text, key=lambda text: (-weight_of[text], text))
        places = _places([by_text[text] for text in ordered], [weight_of[text] for text in ordered])
        found = dict(zip(ordered, places, strict=True))
        rank = _ranks(found, weight_of, threshold * math.fsum(weight for _, weight in arrays))
        self._names = {text: [f"[{PLACE}={rank[place]}]" for place in of_text] for text, of_text in found.items()}

    def named(self, array: Sequence[Any]) -> dict[str, Any]:
        """The elements of one of the arrays by the names of their places."""
        return dict(zip(self._names[canonical(array)], array, strict=True))


def _ranks(places: Mapping[str, Sequence[int]], weights: Mapping[str, float], needed: float) -> dict[int, int]:
    """From a place to its number: those that are kept first, in the order in which most have them."""
    where: dict[int, list[tuple[int, float]]] = {}
    for text, of_text in sorted(places.items()):
        for index, place in enumerate(of_text):
            where.setdefault(place, []).append((index, weights[text]))

    def order(place: int) -> tuple[bool, float, float, int]:
        held = math.fsum(weight for _, weight in where[place])
        mean = math.fsum(index * weight for index, weight in where[place]) / held
        return held < needed, _median(where[place], held), mean, place

    return {place: number for number, place in enumerate(sorted(where, key=order), start=1)}


def _median(weighed: Sequence[tuple[int, float]], whole: float) -> int:
    """The lower one, by weight: the place that more than half give."""
    passed = 0.0
    for index, weight in sorted(weighed):
        passed += weight
        if passed >= whole / 2:
            return index
    return max(weighed)[0]


def _places(arrays: Sequence[Sequence[Any]], weights: Sequence[float]) -> list[Sequence[int]]:
    """For each array the places of its elements; `arrays` are different ones, the heaviest first."""
    if any(len(array) > MOST_ASSIGNED for array in arrays):
        return [range(len(array)) for array in arrays]
    elements = [[_Element(item) for item in array] for array in arrays]
    typical = _typical(elements, weights)
    known = list(elements[typical])
    found: list[Sequence[int]] = []
    for of_array in elements:
        pairs = dict(_pairs(of_array, known))
        for index in range(len(of_array)):
            if index not in pairs:
                pairs[index] = len(known)
                known.append(of_array[index])
        found.append([pairs[index] for index in range(len(of_array))])
    return found


def _typical(arrays: Sequence[Sequence[_Element]], weights: Sequence[float]) -> int:
    """The array whose elements are most like those of the others; the first of several."""
    compared = range(min(len(arrays), _MOST_COMPARED))
    likeness = {
        (one, other): sum(arrays[one][a].likeness(arrays[other][b]) for a, b in _pairs(arrays[one], arrays[other]))
        for one in compared
        for other in compared
        if one < other
    }
    return max(
        compared,
        key=lambda one: (
            math.fsum(weights[o] * likeness[min(one, o), max(one, o)] for o in compared if o != one)
            + weights[one] * len(arrays[one])
        ),
        default=0,
    )


def _pairs(left: Sequence[_Element], right: Sequence[_Element]) -> Iterator[tuple[int, int]]:
    """Of the assignment with the most likeness in all, the pairs that are alike."""
    alike = [[one.likeness(other) for other in right] for one in left]
    cost = [[1.0 - (share if share >= ALIKE else 0.0) for share in row] for row in alike]
    for row, column in assigned(cost):
        if alike[row][column] >= ALIKE:
            yield row, column


class _Element:
    """One element of an array, taken apart once."""

    def __init__(self, value: Any) -> None:
        self._leaves = {path: (class_of(leaf), leaf) for path, leaf in leaves(value)}
        self._shingles: dict[Any, frozenset[str]] = {}

    def likeness(self, other: _Element) -> float:
        """1 for the same answer; the mean over the leaves that either has."""
        every = self._leaves.keys() | other._leaves.keys()
        nothing = (ABSENT, ABSENT)
        shares = (
            self._share(path, self._leaves.get(path, nothing), other._leaves.get(path, nothing), other)
            for path in every
        )
        return math.fsum(shares) / len(every)

    def _share(self, path: Any, mine: tuple[Any, Any], theirs: tuple[Any, Any], other: _Element) -> float:
        (kind, value), (kind_of_other, value_of_other) = mine, theirs
        if kind == kind_of_other:
            return 1.0
        if isinstance(value, str) and isinstance(value_of_other, str):
            texts = self._text(path, value), other._text(path, value_of_other)
            return 1.0 - unlikeness(fold(value), fold(value_of_other), *texts)
        if _is_number(value) and _is_number(value_of_other):
            return 1.0 - relative(value, value_of_other)
        return 0.0

    def _text(self, path: Any, value: str) -> frozenset[str]:
        if path not in self._shingles:
            self._shingles[path] = shingles(fold(value))
        return self._shingles[path]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def assigned(cost: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """The assignment of rows to columns, as many as there are of the fewer, that costs least in all.

    By shortest augmenting paths with potentials, O(n**3) (Kuhn 1955; Jonker and Volgenant 1987).
    """
    if not cost or not cost[0]:
        return []
    if len(cost) > len(cost[0]):
        return sorted((row, column) for column, row in assigned(list(zip(*cost, strict=True))))
    columns = len(cost[0])
    of_row, of_column = [0.0] * len(cost), [0.0] * columns
    holder: list[int | None] = [None] * columns
    for row in range(len(cost)):
        _augment(row, cost, of_row, of_column, holder)
    return sorted((row, column) for column, row in enumerate(holder) if row is not None)


def _augment(
    start: int, cost: Sequence[Sequence[float]], of_row: list[float], of_column: list[float], holder: list[int | None]
) -> None:
    """Give the row `start` a column: along the cheapest path, on which each row passes its own column on."""
    columns = range(len(of_column))
    far, before = [math.inf] * len(of_column), [-1] * len(of_column)
    done: list[int] = []
    row: int | None = start
    came, least = -1, 0.0
    while row is not None:
        for column in columns:
            if column not in done:
                reached = least + cost[row][column] - of_row[row] - of_column[column]
                if reached < far[column]:
                    far[column], before[column] = reached, came
        came = min((column for column in columns if column not in done), key=far.__getitem__)
        least = far[came]
        done.append(came)
        row = holder[came]
    of_row[start] += least
    for column in done[:-1]:
        moved = holder[column]
        assert moved is not None
        of_row[moved] += least - far[column]
        of_column[column] -= least - far[column]
    while came >= 0:
        previous = before[came]
        holder[came] = start if previous < 0 else holder[previous]
        came = previous
