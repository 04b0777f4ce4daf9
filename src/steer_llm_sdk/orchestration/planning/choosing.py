"""From beliefs to a choice: utility, gate, exploration. Pure; chance comes in as a number.

Exploration matches probability: a tool is chosen as often as it is the best one, by what is believed (Thompson 1933).
The chances are computed and then drawn from, so the propensity of a decision is known exactly, and not estimated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

BOLD = 0.8
"""The width of a draw in standard deviations of the belief. Below 1 less is spent on looking; chosen on recordings."""
LOOK_AT_LEAST = 20
"""Runs of a tool in its cell from which the gate holds for exploratory draws too."""
FLOOR = 0.02
"""The share of a cell's first decision that goes to any tool; it falls as 1/sqrt(n)."""
_GRID = 16


class Candidate(NamedTuple):
    """One tool that may be chosen. `utility` is its reward less what its cost and duration are worth; `reward` and `sd`
    are of the reward alone. `support` is how many runs speak for it here, `mass` counts the prior too."""

    name: str
    utility: float
    reward: float
    sd: float
    support: float
    mass: float


class Choice(NamedTuple):
    """One of `candidates`, and the chance with which each is chosen; `chosen` and `default` are places among them."""

    candidates: Sequence[Candidate]
    chances: Sequence[float]
    chosen: int
    default: int | None


def passes(candidate: Candidate, default: Candidate, z: float) -> bool:
    """Whether what is to be gained over the default is more than `z` standard errors. Without runs of its own nothing
    is known well enough."""
    if candidate.support <= 0:
        return False
    p, q = candidate.reward, default.reward
    error = math.sqrt(p * (1 - p) / candidate.support + q * (1 - q) / default.mass)
    return candidate.utility - default.utility > z * error


def best(candidates: Sequence[Candidate], default: int | None, z: float) -> int:
    """The greatest utility among those that pass the gate; the default where none does."""
    if default is None:
        return max(range(len(candidates)), key=lambda i: candidates[i].utility)
    home = candidates[default]
    through = [i for i, candidate in enumerate(candidates) if i != default and passes(candidate, home, z)]
    return max(through, key=lambda i: candidates[i].utility, default=default)


def chances(candidates: Sequence[Candidate], default: int | None, z: float, decided: float) -> list[float]:
    """How often each is to be chosen. `decided`: how often this cell was decided for before."""
    found = chances_to_be_best([c.utility for c in candidates], [BOLD * c.sd for c in candidates])
    if default is not None:
        home = candidates[default]
        for i, candidate in enumerate(candidates):
            if i != default and candidate.support >= LOOK_AT_LEAST and found[i] and not passes(candidate, home, z):
                found[default] += found[i]
                found[i] = 0.0
    floor = FLOOR / math.sqrt(decided + 1)
    return [(1 - floor) * chance + floor / len(found) for chance in found]


def chances_to_be_best(means: Sequence[float], sds: Sequence[float]) -> list[float]:
    """The chance of each of several independent normal variables to be the greatest, by the midpoint rule."""
    found = [0.0] * len(means)
    sds = [max(sd, 1e-6) for sd in sds]
    low = max([mean - 3 * sd for mean, sd in zip(means, sds, strict=True)])
    near = [(i, mean, sd) for i, (mean, sd) in enumerate(zip(means, sds, strict=True)) if mean + 3 * sd > low]
    if len(near) == 1:
        found[near[0][0]] = 1.0
        return found
    step = (max([mean + 3 * sd for _, mean, sd in near]) - low) / _GRID
    ticks = [low + step * tick for tick in range(_GRID + 1)]
    erf = math.erf
    shares = []
    for _, mean, sd in near:
        scale = _ROOT2 * sd
        shares.append([erf((x - mean) / scale) + _ONE for x in ticks])
    middles = [[a + b for a, b in pairwise(share)] for share in shares]
    together = [math.prod(column) for column in zip(*middles, strict=True)]
    total = 0.0
    for (i, _, _), share, middle in zip(near, shares, middles, strict=True):
        found[i] = sum([(b - a) * all_ / m for (a, b), all_, m in zip(pairwise(share), together, middle, strict=True)])
        total += found[i]
    return [chance / total for chance in found]


def chance_to_beat(one: Candidate, other: Candidate) -> float:
    """Of one to be worth more than another."""
    spread = math.hypot(one.sd, other.sd)
    return 0.5 + 0.5 * math.erf((one.utility - other.utility) / (spread * _ROOT2)) if spread else 0.5


_ROOT2 = math.sqrt(2)
_ONE = 1 + 1e-12
"""Twice a distribution function is erf + 1; a little more, so that nothing is divided by 0."""


def drawn(chances: Sequence[float], number: float) -> int:
    """The place that a number from 0 to 1 falls on."""
    total = 0.0
    for place, total in enumerate(accumulate(chances)):
        if number < total:
            return place
    return max(range(len(chances)), key=chances.__getitem__)


def confidence_in(choice: Choice, chosen: int) -> float:
    """The chance that it is worth more than the best of the others."""
    taken = choice.candidates[chosen]
    others = [candidate for candidate in choice.candidates if candidate is not taken]
    return min(1.0, chance_to_beat(taken, max(others, key=lambda other: other.utility))) if others else 1.0


def reasoning_of(choice: Choice, chosen: int, home: str, shadow: bool) -> str:
    """`home`: the default tool, which may be none of the candidates."""
    taken = choice.candidates[chosen]
    seen = f"expected reward {taken.reward:.2f} from {taken.support:.0f} runs of this type"
    if shadow:
        return f"Shadow: '{taken.name}' as without learning ({seen})"
    if len(choice.candidates) == 1:
        return f"'{taken.name}' is the only one that may serve ({seen})"
    if chosen == choice.default and taken.name != home:
        return f"'{taken.name}' in place of the default '{home}', which cannot serve ({seen})"
    if chosen == choice.default:
        return f"Default '{taken.name}': nothing that can serve is known to be better ({seen})"
    best_one = max(choice.candidates, key=lambda candidate: candidate.utility)
    if taken is not best_one:
        return f"Trying '{taken.name}', which may turn out best ({seen})"
    return f"'{taken.name}' is worth most ({seen})"
