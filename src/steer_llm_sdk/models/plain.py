"""Copies of what callers, tools and handlers hand to each other, so that none of them writes into another's."""

from __future__ import annotations

import copy
from typing import Any

_DEPTH = 100
_ATOMS = frozenset({str, int, float, bool, bytes, type(None)})


def copied(value: Any, depth: int = _DEPTH) -> Any:
    """`value` with its dicts, lists, tuples and sets made anew, 100 levels deep; any other object is kept as it is."""
    kind = type(value)
    if kind in _ATOMS or depth == 0:
        return value
    if kind is dict:
        for item in value.values():
            if type(item) not in _ATOMS:
                break
        else:  # Flat, like most: twice as fast.
            return value.copy()
        return {key: item if type(item) in _ATOMS else copied(item, depth - 1) for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind(item if type(item) in _ATOMS else copied(item, depth - 1) for item in value)
    if isinstance(value, (dict, list, set)):
        return _copied_subclass(value, depth)
    return value


def _copied_subclass(value: Any, depth: int) -> Any:
    """An OrderedDict, a list of somebody's own, a set: copied as its class copies itself, then what is in it."""
    fresh = copy.copy(value)
    if isinstance(fresh, dict):
        for key in fresh:
            fresh[key] = copied(fresh[key], depth - 1)
    elif isinstance(fresh, list):
        fresh[:] = [copied(item, depth - 1) for item in fresh]
    return fresh
