"""How far answers are from each other, leaf by leaf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, TypeAlias

from steer_llm_sdk.evidence._leaves import ABSENT, Whole, canonical, fold, plain
from steer_llm_sdk.evidence._reading import Ballot, Column, Reading
from steer_llm_sdk.evidence.equivalence import number_of, relative, shingles, unlikeness
from steer_llm_sdk.evidence.policy import Fields, Policies

MOST_GRADED: Final = 200
"""Distinct values of a field that are compared with each other by degrees; beyond it two are alike or they are not."""
_FEW: Final = 64
"""Answers below which loading numpy costs more than it saves."""

Matrix: TypeAlias = tuple[tuple[float, ...], ...]


class Ruler:
    """The distance of two classes of one field, from 0.0 for the same answer to 1.0 for nothing in common.

    Numbers: their difference by the larger of the two, at most 1. Texts: 1 - the shared part of their sequences of
    three characters. Anything else, and a field that only one has: 1.
    """

    def __init__(self, column: Column) -> None:
        self._column = column
        self._shingles: dict[int, frozenset[str]] = {}
        self._folded: dict[int, str] = {}

    def distance(self, left: int, right: int) -> float:
        if left == right:
            return 0.0
        one, other = self._numbers[left], self._numbers[right]
        if one is not None and other is not None:
            return relative(one, other)
        if isinstance(plain(self._column.said[left]), str) and isinstance(plain(self._column.said[right]), str):
            # The lower number first: the same two texts are looked at once.
            return unlikeness(self._text(left), self._text(right), self._shingle(left), self._shingle(right)) or 1.0
        return 1.0

    @cached_property
    def _numbers(self) -> Sequence[float | int | None]:
        units = self._column.policy.units if self._column.policy.kind == "number" else None
        exact = self._column.policy.kind == "exact"
        return [
            None if (isinstance(value, str) and exact) or (isinstance(value, int) and abs(value) > 1e300) else number
            for value in self._column.said
            for number in [number_of(value, units)]
        ]

    def _text(self, number: int) -> str:
        if number not in self._folded:
            said = self._column.said[number]
            self._folded[number] = said.value if type(said) is Whole else fold(said)
        return self._folded[number]

    def _shingle(self, number: int) -> frozenset[str]:
        if number not in self._shingles:
            self._shingles[number] = shingles(self._text(number))
        return self._shingles[number]


def pairwise_distance(answers: Sequence[Any], *, fields: Fields | Policies | None = None) -> Matrix:
    """A symmetric matrix of the mean distance over the leaves that either has: 0.0 the same answer, 1.0 no part alike.

    Arrays that no policy aligns are one leaf. With `fields` as a list, only leaves at or under these paths are looked
    at. Work grows with the square of the number of answers.
    """
    ballots = [Ballot(str(number), answer) for number, answer in enumerate(answers)]
    return distances(Reading(ballots, Policies.of(fields)))


def distances(reading: Reading, *, numpy: bool | None = None) -> Matrix:
    """The matrix of all ballots. `numpy` None uses it where it is installed and there are many; the result is equal."""
    k = len(reading.ballots)
    if numpy is None:
        numpy = k >= _FEW and find_spec("numpy") is not None
    leaf_columns = [column for column in reading.all_columns() if _has_leaves(column)]
    return _with_numpy(leaf_columns, k) if numpy else _without_numpy(leaf_columns, k)


def mean_distance(matrix: Sequence[Sequence[float]]) -> float | None:
    """The mean over all pairs; None where there are fewer than two answers."""
    n = len(matrix)
    return sum(matrix[row][column] for row in range(n) for column in range(row)) / (n * (n - 1) / 2) if n > 1 else None


def _has_leaves(column: Column) -> bool:
    return any(number != column.object_class or not column.children for number in range(len(column.said)))


_NONE: Final = -1


def _leaf_classes(column: Column, k: int) -> list[int]:
    """For each ballot the class of its leaf; _NONE where it has none here."""
    nothing = {column.absent_class, column.object_class if column.children else None}
    classes = [_NONE] * k
    for index, number in zip(column.members, column.classes, strict=True):
        if number not in nothing:
            classes[index] = number
    return classes


def _table(column: Column, classes: Sequence[int]) -> Mapping[tuple[int, int], float]:
    """The distance of each two different classes that are not 1 apart."""
    found = sorted(set(classes) - {_NONE})
    if len(found) > MOST_GRADED:
        return {}
    ruler = Ruler(column)
    pairs = ((low, high) for place, high in enumerate(found) for low in found[:place])
    table = {pair: ruler.distance(*pair) for pair in pairs}
    return {pair: far for pair, far in table.items() if far != 1.0}


def _without_numpy(columns: Sequence[Column], k: int) -> Matrix:
    apart = [[0.0] * k for _ in range(k)]
    leaves = [[0] * k for _ in range(k)]
    for column in columns:
        classes = _leaf_classes(column, k)
        table = _table(column, classes)
        for row in range(k):
            of_row, far, count = classes[row], apart[row], leaves[row]
            for place in range(row):
                other = classes[place]
                if of_row == other == _NONE:
                    continue
                count[place] += 1
                if of_row != other:
                    far[place] += table.get((other, of_row) if other < of_row else (of_row, other), 1.0)
    half = [
        [far / count if count else 0.0 for far, count in zip(apart[row][:row], leaves[row][:row], strict=True)]
        for row in range(k)
    ]
    return tuple(
        tuple(0.0 if row == place else half[max(row, place)][min(row, place)] for place in range(k)) for row in range(k)
    )


def _with_numpy(columns: Sequence[Column], k: int) -> Matrix:
    np: Any = import_module("numpy")
    apart, leaves = np.zeros((k, k)), np.zeros((k, k))
    for column in columns:
        classes = _leaf_classes(column, k)
        numbers = np.array(classes)
        size = max(classes, default=0) + 1
        table = _table(column, classes)
        here = numbers != _NONE
        leaves += here[:, None] | here[None, :]
        if table:
            square = np.ones((size + 1, size + 1))  # The last row and column are those of _NONE.
            np.fill_diagonal(square, 0.0)
            for (low, high), far in table.items():
                square[low, high] = square[high, low] = far
            apart += square[numbers[:, None], numbers[None, :]]
        else:
            apart += numbers[:, None] != numbers[None, :]
    return tuple(map(tuple, np.divide(apart, leaves, out=np.zeros((k, k)), where=leaves > 0).tolist()))


def text_of(value: Any) -> str:
    """What a value reads as."""
    return "absent" if value is ABSENT else value if isinstance(value, str) else canonical(value)
