"""JSON values as leaves: nested objects by path, arrays whole. Absent and null are two different answers."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final, TypeAlias

Path: TypeAlias = tuple[str, ...]

MAX_DEPTH: Final = 200
"""The deepest nesting of an answer that can be compared. Real answers have fewer than ten levels."""


class Absent(Enum):
    """Stands for the value of a field that a replicate does not have."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


def class_of(value: Any, depth: int = 0) -> Hashable:
    """A key that is equal for equal answers only: 1 equals 1.0, true does not equal 1, nor null ABSENT.

    The order of an object's keys does not matter, the order of an array does.
    """
    if isinstance(value, str) or value is None or value is ABSENT:
        return value
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, (int, float)):
        return value if value == value else ("nan",)
    _check_depth(depth)
    if isinstance(value, Mapping):
        return ("object", frozenset((key, class_of(item, depth + 1)) for key, item in value.items()))
    return ("array", tuple(class_of(item, depth + 1) for item in value))


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf with its path. An empty object is a leaf, and so is an array of anything."""
    if isinstance(value, Mapping) and value:
        _check_depth(len(path))
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def at(value: Any, path: Path) -> Any:
    """The value at `path`, or ABSENT."""
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return ABSENT
        value = value[key]
    return value


def replaced(value: Any, path: Path, new: Any) -> Any:
    """A copy of `value` with `new` at `path`; without that key where `new` is ABSENT. Objects on the way are made."""
    if new is ABSENT and at(value, path) is ABSENT:
        return value
    if not path:
        return new
    here = dict(value) if isinstance(value, Mapping) else {}
    inner = replaced(here.get(path[0]), path[1:], new)
    if inner is not ABSENT:
        return {**here, path[0]: inner}
    del here[path[0]]
    return here


def is_under(path: Path, roots: Sequence[Path] | None) -> bool:
    """Whether `path` is one of the `roots` or inside one; always true if `roots` is None."""
    return roots is None or any(path[: len(root)] == root for root in roots)


_PLAIN_KEY = re.compile(r'[^".$]+')
_SEGMENT = re.compile(r'"(?:[^"\\]|\\.)*"|[^."]+')


def dotted(path: Path) -> str:
    """`a.b`; keys with a dot, a quote or nothing in them are quoted as in JSON; `$` is the whole answer."""
    return ".".join(key if _PLAIN_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False) for key in path) or "$"


def parse_paths(texts: Iterable[str]) -> list[Path]:
    """The paths, without those that are inside another one."""
    paths = list(dict.fromkeys(map(parse_path, texts)))
    return [path for path in paths if not is_under(path, [other for other in paths if other != path])]


def parse_path(text: str) -> Path:
    """The inverse of `dotted`. ValueError names the path and how to write one."""
    if text == "$":
        return ()
    keys = _SEGMENT.findall(text)
    if not keys or ".".join(keys) != text:
        raise ValueError(f'fields: {text!r} is not a path; write a.b, or "a.b" in quotes for a key with a dot in it')
    return tuple(json.loads(key) if key.startswith('"') else key for key in keys)


def canonical(value: Any) -> str:
    """A text that orders answers the same way on every machine."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def _check_depth(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise ValueError(f"an answer is nested deeper than {MAX_DEPTH} levels; flatten it")
