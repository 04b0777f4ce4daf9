"""How usages add. A usage is a mapping of counts, possibly nested; what is not a number is kept from the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_INPUT = ("input_tokens", "prompt_tokens")
_OUTPUT = ("output_tokens", "completion_tokens")


def add_usage(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """The sum, key by key. Neither argument is written."""
    total = dict(left)
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
    total = usage.get("total_tokens")
    if total is not None and _is_number(total):
        return int(total)
    return sum(
        int(next((usage[name] for name in names if _is_number(usage.get(name))), 0)) for names in (_INPUT, _OUTPUT)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


@dataclass(frozen=True, slots=True)
class Amount:
    """What a call takes from a budget. `cost_usd` None: nobody knows the price."""

    tokens: int = 0
    cost_usd: float | None = 0.0
