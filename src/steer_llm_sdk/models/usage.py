"""How usages add. A usage is a mapping of counts, possibly nested; what is not a number is kept from the first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

_SIDES = {"input": ("input_tokens", "prompt_tokens"), "output": ("output_tokens", "completion_tokens")}
"""The two names that providers give to each."""


def add_usage(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """The sum, key by key. Neither argument is written, and the sum shares nothing with them that could be."""
    total = {key: add_usage(value, {}) if isinstance(value, Mapping) else value for key, value in left.items()}
    for key, value in right.items():
        mine = total.get(key)
        if isinstance(value, Mapping):
            total[key] = add_usage(mine if isinstance(mine, Mapping) else {}, value)
        elif _is_number(value) and _is_number(mine):
            total[key] = mine + value
        elif mine is None:
            total[key] = value
    return total


def tokens_of(usage: Mapping[str, Any]) -> int:
    """All tokens of a usage: `total_tokens` where it is given, else input plus output under either name."""
    if not usage:
        return 0
    total = usage.get("total_tokens")
    if _is_number(total):
        return _count(total)
    return sum(
        _count(next((usage[name] for name in names if _is_number(usage.get(name))), 0)) for names in _SIDES.values()
    )


def tokens_by_side(usage: Mapping[str, Any]) -> dict[str, int]:
    """By "input" and "output", each only where it is given."""
    known = {side: [usage[name] for name in names if _is_number(usage.get(name))] for side, names in _SIDES.items()}
    return {side: _count(counts[0]) for side, counts in known.items() if counts}


def _count(number: Any) -> int:
    # Nobody gives tokens back.
    return max(0, int(number))


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)


class Amount(NamedTuple):
    """What a call takes from a budget. `cost_usd` None: nobody knows the price."""

    tokens: int = 0
    cost_usd: float | None = 0.0
