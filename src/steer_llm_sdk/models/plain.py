"""Copies of what callers, tools and handlers hand to each other, so that none of them writes into another's."""

from __future__ import annotations

from typing import Any

_DEPTH = 100
_CONTAINERS = frozenset({dict, list, tuple})


def copied(value: Any, depth: int = _DEPTH) -> Any:
    """`value` with its dicts, lists and tuples made anew, 100 levels deep; any other object is kept as it is."""
    kind = type(value)
    if kind not in _CONTAINERS or depth == 0:
        return value
    if kind is dict:
        return {key: copied(item, depth - 1) if type(item) in _CONTAINERS else item for key, item in value.items()}
    return kind(copied(item, depth - 1) if type(item) in _CONTAINERS else item for item in value)
