"""JSON values as leaves: nested objects by path, arrays whole. Absent and null are two different answers."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from hashlib import sha256
from typing import Any, Final, TypeAlias

from pydantic_core import to_json

Path: TypeAlias = tuple[str, ...]

MAX_DEPTH: Final = 200
"""The deepest nesting of an answer that can be compared. Real answers have fewer than ten levels."""


_LONGEST_NAME: Final = 60


class Absent(Enum):
    """Stands for the value of a field that a replicate does not have."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT

MOST_VALUES: Final = 10_000
MOST_CHARACTERS: Final = 1_000_000
"""How many values at any depth, and characters in them, an answer may have to be compared part by part."""


class Whole(str):
    """Stands for an answer that is too large to be compared part by part, and is compared to the letter.

    As a text it is a digest of the answer's JSON, which has the keys in the order they were given.
    """

    __slots__ = ("value",)
    value: Any


def bounded(value: Any) -> Any:
    """The value, or a Whole of it if it is too large. ValueError for what has no JSON."""
    if not _is_large(value):
        return value
    # The mark before the digest is no JSON, so that no answer is ever equal to it.
    digest = Whole(f"\0{sha256(to_json(value)).hexdigest()}")
    digest.value = value
    return digest


def plain(value: Any) -> Any:
    """The inverse of `bounded`."""
    return value.value if type(value) is Whole else value


def _is_large(value: Any) -> bool:
    if type(value) is str:
        return len(value) > MOST_CHARACTERS
    values = characters = 0
    todo = [value] if type(value) in _CONTAINERS else []
    while todo:
        each = todo.pop()
        values += len(each)
        if values > MOST_VALUES:
            return True
        items = each
        if type(each) is dict:
            characters += len("".join(each))
            items = each.values()
        texts = [item for item in items if type(item) is str]
        characters += len("".join(texts))
        if len(texts) < len(each) and not _CONTAINERS.isdisjoint(map(type, items)):
            todo += [item for item in items if type(item) in _CONTAINERS]
        if characters > MOST_CHARACTERS:
            return True
    return False


_CONTAINERS: Final = frozenset({dict, list})


def class_of(value: Any, *, exact: bool = False, depth: int = 0) -> Hashable:
    """A key that is equal for values that are the same answer by their form; with `exact`, for equal JSON values only.

    1 equals 1.0, true does not equal 1, nor null ABSENT. The order of an object's keys does not matter, that of an
    array does.
    """
    if isinstance(value, str):
        if type(value) is Whole:
            return ("whole", value)
        # Quoted, because a text is never equal to a number here.
        return ("text", value) if exact else _of_text(value)
    if value is None or value is ABSENT:
        return value
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, (int, float)):
        return value
    if depth >= MAX_DEPTH:
        raise ValueError(f"an answer is nested deeper than {MAX_DEPTH} levels; flatten it")
    if isinstance(value, Mapping):
        items = ((key, class_of(item, exact=exact, depth=depth + 1)) for key, item in value.items())
        return ("object", frozenset(items))
    return ("array", tuple(class_of(item, exact=exact, depth=depth + 1) for item in value))


_NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,30})(?:\.\d{1,30})?(?:[eE][+-]?\d{1,2})?")


def _of_text(text: str) -> Hashable:
    folded = fold(text)
    if folded[:1] in _FIRST and _NUMBER.fullmatch(folded):
        return numeral(folded)
    return folded


_FIRST: Final = frozenset("-0123456789")


def numeral(digits: str) -> int | float:
    return float(digits) if not digits.lstrip("-").isdecimal() else int(digits)


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every leaf with its path. An empty object is a leaf, and so is an array of anything."""
    if isinstance(value, Mapping) and value:
        _check_depth(len(path))
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def at(value: Any, path: Path) -> Any:
    """The value at `path`, or ABSENT. `[id=7]` is the element of an array whose `id` is 7, `[#=2]` the second one."""
    for key in path:
        if isinstance(value, list) and is_element(key):
            value = aligned(value, key_in(key)) or {}
        if not isinstance(value, Mapping) or key not in value:
            return ABSENT
        value = value[key]
    return value


def has(value: Any, path: Path) -> bool:
    """Whether there is something at `path`, in which `[]` is any element of an array."""
    for place, key in enumerate(path):
        if key == ELEMENT:
            return isinstance(value, list) and any(has(item, path[place + 1 :]) for item in value)
        value = at(value, (key,))
    return value is not ABSENT


def fold(text: str) -> str:
    """Unicode NFKC, without case, one space where there is any."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


ELEMENT: Final = "[]"
"""In the path of a policy: any element of an aligned array."""


def is_element(part: str) -> bool:
    """Whether a part of a path names an element of an aligned array: `[id=7]`, or `[=red]` of a set."""
    return part.startswith("[") and part.endswith("]") and "=" in part


def key_in(part: str) -> str | None:
    """By what such an element is told apart: the key, None for the element itself, or PLACE."""
    return part[1:].partition("=")[0] or None


PLACE: Final = "#"
"""In the place of a key: elements are told apart by the place that they have in the consensus."""


def aligned(items: Sequence[Any], key: str | None) -> dict[str, Any] | None:
    """The elements of an array by what tells them apart: the value of `key`, or without one the element itself.

    None where they cannot be told apart: one is no object, has no such key, or one that another one has.
    """
    if key == PLACE:
        return {f"[{PLACE}={place}]": item for place, item in enumerate(items, start=1)}
    found: dict[str, Any] = {}
    for item in items:
        if key is None:
            found.setdefault(f"[={_name_of(item)}]", item)
            continue
        if not isinstance(item, Mapping) or isinstance(item.get(key, ABSENT), (Mapping, list, Absent)):
            return None
        name = f"[{key}={_name_of(item[key])}]"
        if name in found:
            return None
        found[name] = item
    return found


def _name_of(value: Any) -> str:
    name = fold(value) if isinstance(value, str) else canonical(value)
    return (
        name if len(name) <= _LONGEST_NAME else f"{name[:40]}…{sha256(name.encode(errors='replace')).hexdigest()[:12]}"
    )


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


_DIGITS = re.compile(r"(\d{1,18})")


def natural(name: str) -> tuple[Any, ...]:
    """r2 comes before r10."""
    parts = _DIGITS.split(name)
    return (*((text, int(number)) for text, number in zip(parts[::2], [*parts[1::2], "-1"], strict=True)), name)


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
