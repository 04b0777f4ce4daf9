"""Plain JSON values, and the reason why something is none."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticSerializationError, to_jsonable_python

from steer_llm_sdk.evidence._leaves import MAX_DEPTH

_FLAT: Final = frozenset({str, int, float, bool, type(None)})
_LONG: Final = 2**63
AT_ONCE: Final = 64
"""Objects that are looked at together; not all of them, because some are of many megabytes."""
MOST_BITS: Final = 14_000
"""Of a whole number: beyond 4,300 digits Python writes none."""


def json_value(value: Any, depth: int = 0) -> Any:
    """A copy of `value` in plain JSON types. ValueError for what JSON cannot say: NaN, half a character, an object."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _whole(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return _number(value)
    if depth >= MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels; flatten it")
    if isinstance(value, Mapping):
        if type(value) is dict and is_flat(value):
            return value.copy()
        return {_key(key): json_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if _are_plain(value):
            return list(value)
        if set(map(type, value)) != {dict} or depth + 1 >= MAX_DEPTH:
            return [json_value(item, depth + 1) for item in value]
        some = (value[start : start + AT_ONCE] for start in range(0, len(value), AT_ONCE))
        return [item for objects in some for item in _objects(objects, depth + 1)]
    return json_value(_plain(value), depth + 1)


def _objects(objects: Sequence[dict[Any, Any]], depth: int) -> list[Any]:
    if are_flat(objects):
        return [each.copy() for each in objects]
    return [json_value(each, depth) for each in objects]


def is_flat(value: dict[Any, Any]) -> bool:
    """Whether it is an object of ASCII texts and numbers, as most are: then looking at all of it at once will do.

    Any other object is looked at piece by piece, for the reason why it is no JSON.
    """
    try:
        return "".join(value).isascii() and _are_plain(value.values())
    except TypeError:  # A key is no string.
        return False


def are_flat(values: Sequence[Any]) -> bool:
    """Whether each of them is such an object: sooner said of many at once."""
    if set(map(type, values)) != {dict}:
        return False
    names = tuple(values[0])
    alike = all(tuple(each) == names for each in values)
    try:
        if not "".join(names if alike else chain.from_iterable(values)).isascii():
            return False
    except TypeError:
        return False
    if alike:
        # What stands in one field is of one type, which is seen at once.
        return all(map(_are_plain, zip(*map(dict.values, values), strict=True)))
    return _are_plain(list(chain.from_iterable(map(dict.values, values))))


def _are_plain(items: Collection[Any]) -> bool:
    kinds = set(map(type, items))
    if not kinds <= _FLAT:
        return False
    if str in kinds and not "".join(_of(str, items, kinds)).isascii():
        return False
    # A sum is finite only if all of its parts are.
    if float in kinds and not math.isfinite(sum(_of(float, items, kinds))):
        return False
    if int not in kinds:
        return True
    whole = _of(int, items, kinds)
    return bool(-_LONG < min(whole) <= max(whole) < _LONG)


def _of(kind: type, items: Collection[Any], kinds: set[type]) -> Collection[Any]:
    return items if len(kinds) == 1 else [item for item in items if type(item) is kind]


def _whole(value: int) -> int:
    if value.bit_length() > MOST_BITS:
        raise ValueError("a whole number of more than 4,200 digits; use a string")
    return value


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text with half a character (a lone surrogate) at {error.start}; replace it") from None
    return value


def _number(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a JSON number; use null or a string")
    return value


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"key {key!r} is no string; JSON objects have string keys")
    return _text(key)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        raise ValueError(f"{type(value).__name__} is no JSON value: {error}") from None


Json = Annotated[Any, BeforeValidator(json_value)]
