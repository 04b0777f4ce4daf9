"""What a request must have for a rule to hold: the index finds rules by that."""

from __future__ import annotations

from collections.abc import Iterable
from math import floor, frexp
from typing import Any, NamedTuple


class Value(NamedTuple):
    """The request has this value at this path: a text, a number, a bool or None."""

    path: str
    value: Any


class Words(NamedTuple):
    """One of these, case-folded, occurs in the text at this path, case-folded."""

    path: str
    needles: tuple[str, ...]


class Item(NamedTuple):
    """What is at this path is a text, a list or a mapping with this text in it."""

    path: str
    item: str


class Present(NamedTuple):
    """The request itself has something under this key. `path` is empty."""

    path: str
    key: str


class Range(NamedTuple):
    """The number at this path is between these two, which are no more than WIDEST from 0."""

    path: str
    low: float
    high: float

    @property
    def scale(self) -> float:
        """By which a number is multiplied to find its cell in a grid: a cell is from 1/8 to 1/4 as wide as the range,
        so that few meet the ends of others."""
        _, exponent = frexp(self.high - self.low)
        return 2.0 ** -max(exponent - 3, -20)

    @property
    def cells(self) -> Iterable[int]:
        """Those of the grid that the range touches, nine at most."""
        return range(floor(self.low * self.scale), floor(self.high * self.scale) + 1)

    @classmethod
    def between(cls, path: str, low: float, high: float) -> Range | None:
        return cls(path, low, high) if -WIDEST < low < high < WIDEST else None


WIDEST = 2.0**52
"""Up to here a number and its multiples by powers of two are exact."""

Guard = Words | Item | Present | Range
