"""Copies of what callers, tools and handlers hand to each other, so that none of them writes into another's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

_DEPTH = 100
_QUICK = 16
_ATOMS = frozenset({str, int, float, bool, bytes, type(None)})


class _Deep(Exception):
    """It goes on below _QUICK levels."""


def copied(value: Any) -> Any:
    """`value` with its dicts, lists, tuples and sets made anew, 100 levels deep; any other object is kept as it is, and
    so is a subclass of these that cannot be copied and written."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        for item in value.values():
            if type(item) not in _ATOMS:
                break
        else:  # Flat, like most: twice as fast.
            return value.copy()
    try:
        return _quickly(value, _QUICK)
    except _Deep:
        return _each_once(value, _DEPTH, {})


def _quickly(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if depth == 0:
        raise _Deep
    if kind is dict:
        return {key: item if type(item) in _ATOMS else _quickly(item, depth - 1) for key, item in value.items()}
    if kind is list or kind is tuple:
        return kind(item if type(item) in _ATOMS else _quickly(item, depth - 1) for item in value)
    if isinstance(value, (dict, list, set)):
        return _copied_subclass(value, lambda item: _quickly(item, depth - 1))
    return value


def copier(value: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """What makes a copy of `value` again and again; whether it is flat is looked at only once."""
    flat = all(type(item) in _ATOMS for item in value.values())
    return value.copy if flat else partial(copied, value)


def _each_once(value: Any, depth: int, known: dict[int, Any]) -> Any:
    """What is met again is not copied again: a tree whose nodes know their parents has no end, and twice as much of it
    on each level."""
    kind = type(value)
    if kind in _ATOMS or depth == 0:
        return value
    if id(value) in known:
        return known[id(value)]
    below = partial(_each_once, depth=depth - 1, known=known)
    if kind is dict:
        fresh = known[id(value)] = {}
        fresh.update((key, below(item)) for key, item in value.items())
        return fresh
    if kind is list:
        items = known[id(value)] = []
        items.extend(below(item) for item in value)
        return items
    if kind is tuple:
        made = tuple(below(item) for item in value)
    elif isinstance(value, (dict, list, set)):
        made = _copied_subclass(value, below, partial(known.__setitem__, id(value)))
    else:
        return value
    known[id(value)] = made
    return made


def _copied_subclass(value: Any, below: Callable[[Any], Any], begun: Callable[[Any], None] = lambda fresh: None) -> Any:
    """An OrderedDict, a list of somebody's own, a set: copied as its class copies itself, then what is in it. `begun`
    gets the copy before that."""
    try:
        fresh = copy.copy(value)
        if fresh is value:  # Its class says that nobody can write into it.
            return value
        begun(fresh)
        if isinstance(fresh, dict):
            for key in fresh:
                fresh[key] = below(fresh[key])
        elif isinstance(fresh, list):
            fresh[:] = [below(item) for item in fresh]
    except _Deep:
        raise
    except Exception:
        return value
    return fresh
