"""Copies of what callers, tools and handlers hand to each other, so that none of them writes into another's."""

from __future__ import annotations

import array
import copy
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from types import MappingProxyType, MemberDescriptorType, SimpleNamespace
from typing import Any, TypeAlias

_DEPTH = 100
_QUICK = 16
_ATOMS = frozenset({str, int, float, bool, bytes, type(None)})


class _Deep(Exception):
    """It goes on below _QUICK levels."""


def copied(value: Any) -> Any:
    """`value` with all that is data in it made anew, 100 levels deep.

    Data are dicts, lists, tuples, sets and what is derived from them, deques, UserDicts, UserLists, ChainMaps,
    bytearrays, arrays (also numpy's), SimpleNamespaces, dataclasses and pydantic models. Any other object is kept as it
    is: a client, a lock, an open file, a function; also a dataclass or model that can be called, closed or entered, and
    what cannot be copied.
    """
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
    return _remade(value, lambda item: _quickly(item, depth - 1))


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
    else:
        made = _remade(value, below, partial(known.__setitem__, id(value)))
    known[id(value)] = made
    return made


_Below: TypeAlias = Callable[[Any], Any]
"""Copies what is in a value."""


def _remade(value: Any, below: _Below, begun: Callable[[Any], None] = lambda fresh: None) -> Any:
    """What is no plain JSON: copied as its class copies itself, then what is in it. `begun` gets the copy before."""
    try:
        fill = _way_of(type(value))  # type: ignore[arg-type]  # Classes can be hashed, whatever theirs is.
        if fill is None:
            return value
        if fill in _FROZEN:
            return fill(value, below)
        fresh = copy.copy(value)
        if fresh is value:  # Its class says that nobody can write into it.
            return value
        begun(fresh)
        fill(fresh, below)
    except _Deep:
        raise
    except Exception:
        return value
    return fresh


@lru_cache(maxsize=1000)
def _way_of(kind: type) -> Callable[[Any, _Below], Any] | None:
    """How what is in a copy of this type is made anew; None where it is kept as it is."""
    for base, fill in _BY_BASE.items():
        if issubclass(kind, base):
            return fill
    if issubclass(kind, tuple):
        return _named if hasattr(kind, "_make") else None
    bases = {(base.__module__, base.__name__) for base in kind.__mro__}
    if ("numpy", "ndarray") in bases:
        return _nothing
    # Not getattr: every class has the __call__ of its own class. A field may well be called `close`.
    if any(callable(vars(base).get(name)) for base in kind.__mro__ for name in _OF_HANDLES):
        return None
    if ("pydantic.main", "BaseModel") in bases:
        return _model
    return _attributes if is_dataclass(kind) or issubclass(kind, SimpleNamespace) else None


_OF_HANDLES = ("__call__", "close", "aclose", "__enter__", "__aenter__")


def _nothing(fresh: Any, below: _Below) -> None:
    """What is in it cannot be written."""


def _values(fresh: Any, below: _Below) -> None:
    for key in fresh:
        fresh[key] = below(fresh[key])


def _items(fresh: Any, below: _Below) -> None:
    fresh[:] = [below(item) for item in fresh]


def _queued(fresh: Any, below: _Below) -> None:
    items = [below(item) for item in fresh]
    fresh.clear()
    fresh.extend(items)


def _wrapped(fresh: Any, below: _Below) -> None:
    fresh.data = below(fresh.data)


def _chained(fresh: Any, below: _Below) -> None:
    fresh.maps = [below(each) for each in fresh.maps]


def _attributes(fresh: Any, below: _Below) -> None:
    own = getattr(fresh, "__dict__", {})
    _values(own, below)
    slots = [each.name for each in fields(fresh)] if is_dataclass(fresh) else []
    for name in slots:
        if isinstance(getattr(type(fresh), name, None), MemberDescriptorType) and hasattr(fresh, name):
            object.__setattr__(fresh, name, below(getattr(fresh, name)))  # A frozen one is being made still.


def _model(fresh: Any, below: _Below) -> None:
    for own in (fresh.__dict__, fresh.__pydantic_extra__, fresh.__pydantic_private__):
        _values(own or {}, below)


def _named(value: Any, below: _Below) -> Any:
    return type(value)._make(below(item) for item in value)


def _read_only(value: Mapping[Any, Any], below: _Below) -> Any:
    return MappingProxyType({key: below(item) for key, item in value.items()})


_FROZEN = frozenset({_named, _read_only})
"""These make a copy of what cannot be written but holds what can."""

_BY_BASE: Mapping[type, Callable[[Any, _Below], Any]] = {
    dict: _values,
    list: _items,
    set: _nothing,
    bytearray: _nothing,
    array.array: _nothing,
    deque: _queued,
    UserDict: _wrapped,
    UserList: _wrapped,
    ChainMap: _chained,
    MappingProxyType: _read_only,
}
