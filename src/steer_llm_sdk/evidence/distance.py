"""The distance of two answers: the share of their leaves on which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steer_llm_sdk.evidence._leaves import Path, class_of, is_under, leaves, parse_paths


def pairwise_distance(answers: Sequence[Any], *, fields: Sequence[str] | None = None) -> tuple[tuple[float, ...], ...]:
    """A symmetric matrix of 1 - (equal leaves / leaves of either): 0.0 the same answer, 1.0 nothing in common.

    Arrays are one leaf. With `fields`, only leaves at or under these paths are looked at. Work grows with the square
    of the number of answers.
    """
    roots = None if fields is None else parse_paths(fields)
    numbers: dict[Any, int] = {}
    seen = [_numbered(answer, roots, numbers) for answer in answers]
    half = [[_distance(seen[row], seen[column]) for column in range(row)] for row in range(len(seen))]
    return tuple(
        tuple(0.0 if row == column else half[max(row, column)][min(row, column)] for column in range(len(seen)))
        for row in range(len(seen))
    )


def mean_distance(matrix: Sequence[Sequence[float]]) -> float | None:
    """The mean over all pairs; None where there are fewer than two answers."""
    n = len(matrix)
    return sum(matrix[row][column] for row in range(n) for column in range(row)) / (n * (n - 1) / 2) if n > 1 else None


_Leaves = tuple[frozenset[int], frozenset[int]]


def _numbered(answer: Any, roots: Sequence[Path] | None, numbers: dict[Any, int]) -> _Leaves:
    """The paths of an answer and its (path, value) pairs as small integers, so that comparing is set arithmetic."""
    found: Mapping[Path, Any] = {path: class_of(value) for path, value in leaves(answer) if is_under(path, roots)}
    paths = frozenset(numbers.setdefault(path, len(numbers)) for path in found)
    return paths, frozenset(numbers.setdefault((None, item), len(numbers)) for item in found.items())


def _distance(left: _Leaves, right: _Leaves) -> float:
    union = len(left[0] | right[0])
    return 1.0 - len(left[1] & right[1]) / union if union else 0.0
