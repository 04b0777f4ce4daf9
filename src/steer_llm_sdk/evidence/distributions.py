"""What the numbers of one field are like: their middle, their spread, and how sure the middle is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import mul
from typing import Any

_LARGEST = 1e150
"""Beyond it a square is no number any more."""


def describe(numbers: Sequence[int | float]) -> dict[str, Any]:
    """n, mean, stdev, MAD and quantiles. A quantile is a number that was given: the lowest with a share q at or below.

    `stdev` is that of a sample, None for one number. `mad` is the median distance to the median. `median_interval` is
    the 95 % bootstrap interval of the median by percentiles, computed exactly instead of by drawing (the j-th of n
    draws is at or below the i-th number with P(Bin(n, i/n) >= j)); None for fewer than three. {} for none, or for
    numbers beyond 1e150.
    """
    ordered = sorted(numbers)
    if not ordered or not -_LARGEST < ordered[0] <= ordered[-1] < _LARGEST:
        return {}
    n = len(ordered)
    mean = math.fsum(ordered) / n
    median = ordered[_rank(n, 0.5)]
    apart = [number - mean for number in ordered]
    squares = math.fsum(map(mul, apart, apart))
    low, high = median_ranks(n)
    return {
        "n": n,
        "mean": mean,
        "stdev": math.sqrt(squares / (n - 1)) if n > 1 else None,
        "min": ordered[0],
        "q05": ordered[_rank(n, 0.05)],
        "q25": ordered[_rank(n, 0.25)],
        "median": median,
        "q75": ordered[_rank(n, 0.75)],
        "q95": ordered[_rank(n, 0.95)],
        "max": ordered[-1],
        "mad": _median_distance(ordered, _rank(n, 0.5)),
        "median_interval": [ordered[low], ordered[high]] if n > 2 else None,
    }


def _median_distance(ordered: Sequence[float], middle: int) -> float:
    median = ordered[middle]
    # Two runs that rise are sorted in one pass.
    below = [median - number for number in reversed(ordered[:middle])]
    return sorted(below + [number - median for number in ordered[middle:]])[middle]


def entropy(alike: Mapping[float, int]) -> float:
    """-Σ p ln p in nats over the classes: 0 where all agree, ln n where all n differ.

    `alike` is how many classes have each weight.
    """
    total = math.fsum(weight * count for weight, count in alike.items())
    shares = [(weight / total, count) for weight, count in alike.items()] if total else []
    return math.fsum([-count * share * math.log(share) for share, count in shares])


def _rank(n: int, q: float) -> int:
    # The product is rounded before it is rounded up: 0.05 * 100 is a little more than 5.
    return max(0, math.ceil(round(n * q, 9)) - 1)


@lru_cache(maxsize=1024)
def median_ranks(n: int, level: float = 0.95) -> tuple[int, int]:
    """The ranks, from 0, of the numbers between which the median of a resample lies with probability `level`."""
    half = _rank(n, 0.5) + 1
    tail = (1 - level) / 2
    return _first_rank(n, half, tail), _first_rank(n, half, 1 - tail)


def _first_rank(n: int, half: int, probability: float) -> int:
    low, high = 1, n
    while low < high:
        middle = (low + high) // 2
        if _at_least(half, n, middle / n) >= probability:
            high = middle
        else:
            low = middle + 1
    return low - 1


def _at_least(successes: int, n: int, p: float) -> float:
    """P(Bin(n, p) >= successes)."""
    if p >= 1:
        return 1.0
    up, down = math.log(p), math.log1p(-p)
    fixed = math.lgamma(n + 1)
    return math.fsum(
        math.exp(fixed - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * up + (n - i) * down)
        for i in range(successes, n + 1)
    )
