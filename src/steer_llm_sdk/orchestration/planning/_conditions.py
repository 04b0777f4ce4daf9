"""From a rule's conditions to closures: everything that can be done once is done when the rule is added."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import gt, lt
from typing import Any

from steer_llm_sdk.errors import a_kind
from steer_llm_sdk.orchestration.planning import _needles
from steer_llm_sdk.orchestration.planning._guards import Guard, Item, Present, Range, Value, Words
from steer_llm_sdk.orchestration.planning.rules import RuleCondition

Test = Callable[[Any], bool]
"""Says of a request, or of a value in it, whether something holds; raises where that cannot be said."""
Check = Callable[[Any, Any], bool]
"""Says it of a value in a request and of what is expected of it."""

_TEXT_SHOWN = 80
_FEW_WORDS = 16
"""So many plain words are looked for one by one: 0.1 us where RE2 takes 3."""


class Unfit(ValueError):
    """A condition cannot be used on this value, or on any."""


def asked(steps: Sequence[tuple[str | None, Check]]) -> Check:
    """Whether a request meets all of these, each with what it expects, which is given as it is where it is one;
    None as a path: it is asked of the request.

    One for all rules that ask alike: of ten thousand rules most are not in the processor's cache when they are met, so
    a rule keeps what it expects and nothing else.
    """
    return _asked(tuple(steps))


@lru_cache(1024)
def _asked(steps: tuple[tuple[str | None, Check], ...]) -> Check:
    all_steps = [(_reader_of(path), check) for path, check in steps]
    if len(steps) == 1:
        return _asked_once(*steps[0])

    def holds(request: Any, expected: Sequence[Any]) -> bool:
        for (read, check), value in zip(all_steps, expected, strict=True):  # noqa: SIM110 - twice as fast as all()
            if not check(read(request), value):
                return False
        return True

    keys = [(path, check) for path, check in steps if path is not None and "." not in path]
    if len(keys) < len(steps):
        return holds

    def holds_of_keys(request: Any, expected: Sequence[Any]) -> bool:
        if type(request) is not dict:
            return holds(request, expected)
        for (key, check), value in zip(keys, expected, strict=True):
            if check is _same:
                if not request.get(key) == value:  # noqa: SIM201 - what equals is asked, and may answer as it likes
                    return False
            elif not check(request.get(key), value):
                return False
        return True

    return holds_of_keys


def _asked_once(path: str | None, check: Check) -> Check:
    read = _reader_of(path)
    if path is None or "." in path:
        return lambda request, expected: check(read(request), expected)
    # The common case, one key of a plain dict, is worth a short cut: it halves the time of a rule.
    return lambda request, expected: check(request.get(path) if type(request) is dict else read(request), expected)


def _reader_of(path: str | None) -> Callable[[Any], Any]:
    return _whole if path is None else reader(path)


def _whole(request: Any) -> Any:
    return request


def step_of(condition: RuleCondition) -> tuple[str | None, Check, Any]:
    """The path, what is asked of the value there, and with what. Unfit as `checked`."""
    path = condition.attribute_path
    check, expected = checked(condition)
    if check is _is_there and "." not in path:
        # Asked of the request itself: thousands of rules may ask for a field, each for another.
        return None, _has_field, (path, expected)
    return path, check, expected


def value_of(condition: RuleCondition) -> Value | None:
    """The value that a request must have for the condition to hold, where the index can look for that."""
    if condition.custom_matcher is None and condition.operator == "equals" and type(condition.value) in _SCALARS:
        return Value(condition.attribute_path, condition.value)
    return None


def guard_of(condition: RuleCondition) -> Guard | None:
    """What else a request must have for it to hold. A condition that is no use guards nothing: its rule has to be met
    to be told of."""
    if condition.custom_matcher is not None:
        return None
    path, expected = condition.attribute_path, condition.value
    needles: tuple[str, ...] | None = None
    if condition.operator == "keywords":
        needles = _needles.of_words(expected)
    elif condition.operator == "regex":
        needles = _needles.of_pattern(expected)
    elif condition.operator == "contains":
        return Item(path, expected) if type(expected) is str and expected else None
    elif condition.operator == "exists":
        return Present("", path) if (expected is None or expected is True) and "." not in path else None
    return None if needles is None else Words(path, needles)


def range_of(one: RuleCondition, other: RuleCondition) -> Range | None:
    """Where both of two conditions hold, if they are limits to the same number."""
    if one.operator == "lt":
        one, other = other, one
    if (one.operator, other.operator) != ("gt", "lt") or one.attribute_path != other.attribute_path:
        return None
    if not all(c.custom_matcher is None and type(c.value) in (int, float) for c in (one, other)):
        return None
    return Range.between(one.attribute_path, one.value, other.value)


_SCALARS = (str, int, float, bool, type(None))


@lru_cache(1024)
def reader(path: str) -> Callable[[Any], Any]:
    """Follows a dotted path into mappings, sequences and attributes; None where it leads nowhere."""
    segments = path.split(".")

    def read(value: Any) -> Any:
        for segment in segments:
            if value is None:
                return None
            value = _step(value, segment)
        return value

    return read


def _step(value: Any, segment: str) -> Any:
    if type(value) is dict or isinstance(value, Mapping):
        return value.get(segment)
    if isinstance(value, (str, bytes, int, float)):
        return None
    if isinstance(value, Sequence):
        return _item(value, segment)
    # An object's own data, never its methods or what it keeps private.
    found = None if segment.startswith("_") else getattr(value, segment, None)
    return None if callable(found) else found


def _item(items: Sequence[Any], segment: str) -> Any:
    if not (segment.removeprefix("-").isdecimal() and segment.isascii() and len(segment) < 10):
        return None
    position = int(segment)
    return items[position] if -len(items) <= position < len(items) else None


def checker(condition: RuleCondition) -> Test:
    """The condition as a test on the value that its path leads to."""
    check, expected = checked(condition)
    return lambda value: check(value, expected)


def checked(condition: RuleCondition) -> tuple[Check, Any]:
    """What is asked of the value, and what it is asked with. Unfit where the condition can be used on no value: a
    pattern that does not compile."""
    matcher, expected = condition.custom_matcher, condition.value
    if matcher is None:
        return _CHECKERS[condition.operator](expected)
    ask = adapted(matcher, "custom_matcher", ("value", "expected"))
    return _custom, lambda value: bool(ask(value, expected))


def _custom(value: Any, ask: Test) -> bool:
    return ask(value)


def _equals(expected: Any) -> tuple[Check, Any]:
    if isinstance(expected, bool):
        return _same_bool, expected
    return _same_number if isinstance(expected, (int, float)) else _same, expected


def _same(value: Any, expected: Any) -> bool:
    return bool(value == expected)


def _same_number(value: Any, expected: Any) -> bool:
    return not isinstance(value, bool) and bool(value == expected)


def _same_bool(value: Any, expected: Any) -> bool:
    return isinstance(value, bool) and bool(value == expected)


def _contains(expected: Any) -> tuple[Check, Any]:
    if expected is None:
        raise Unfit("contains: no value was given to look for")
    return _has_in_it, expected


def _has_in_it(value: Any, expected: Any) -> bool:
    if value is None:
        return False
    if isinstance(value, str):
        if not isinstance(expected, str):
            raise Unfit(f"contains: looks for {_kind(expected)} in a text")
        return expected in value
    if isinstance(value, Mapping):
        return expected in value
    if isinstance(value, (list, tuple, set, frozenset)):
        same, _ = _equals(expected)
        return any(same(item, expected) for item in value)
    raise Unfit(f"contains: the value is {_kind(value)}, not a text, list or mapping")


def _regex(pattern: Any) -> tuple[Check, Any]:
    return _found, _searcher(pattern)


def _found(value: Any, search: Callable[[str], bool]) -> bool:
    return search(value) if isinstance(value, str) else _found_among("regex", value, search)


def _found_among(operator: str, value: Any, search: Callable[[str], bool]) -> bool:
    if value is None:
        return False
    if isinstance(value, (list, tuple)):
        return any(search(item) for item in value if isinstance(item, str))
    raise Unfit(f"{operator}: the value is {_kind(value)}, not a text")


def _keywords(words: Any) -> tuple[Check, Any]:
    if not isinstance(words, (list, tuple)) or not words or not all(isinstance(word, str) and word for word in words):
        raise Unfit("keywords: give a list of words that are not empty")
    search = _searcher(f"(?i:{'|'.join(map(re.escape, words))})")
    if len(words) > _FEW_WORDS or not all(map(str.isascii, words)):
        return _found_words, (search,)
    return _found_words, (search, *(word.lower() for word in words))


def _found_words(value: Any, expected: tuple[Any, ...]) -> bool:
    """`expected`: what searches for them, and the words themselves where looking for each is faster."""
    if not isinstance(value, str):
        return _found_among("keywords", value, lambda text: _found_words(text, expected))
    if len(expected) == 1 or not value.isascii():
        return bool(expected[0](value))
    lower = value.lower()
    for word in expected[1:]:  # noqa: SIM110 - a loop is twice as fast as any() over a generator
        if word in lower:
            return True
    return False


def _searcher(pattern: Any) -> Callable[[str], bool]:
    import re2  # type: ignore[import-untyped]  # 7 ms that only those who write patterns pay

    if not isinstance(pattern, str):
        raise Unfit(f"regex: the pattern is {_kind(pattern)}, not a text")
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    try:
        search = re2.compile(pattern, options).search
    except (re2.error, UnicodeError) as error:
        raise Unfit(f"regex: the pattern {_short(pattern)} is not RE2: {_told(error)}") from error
    # A set of one says whether, and not where: it takes half of the time, and less memory that is not in the cache.
    alone = re2.Set.SearchSet(options)
    alone.Add(pattern)
    try:
        alone.Compile()
    except re2.error:  # It has no slower way for a pattern that is too large for the fast one.
        return lambda text: search(text.encode("utf-8", "surrogatepass")) is not None
    # Bytes, because JSON can carry a lone surrogate, which is no UTF-8 and must not stop a search.
    match = alone.Match
    return lambda text: bool(match(text.encode("utf-8", "surrogatepass")))


def _told(error: Exception) -> str:
    first = error.args[0] if error.args else ""
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(error)


def _exists(expected: Any) -> tuple[Check, Any]:
    if expected is not None and not isinstance(expected, bool):
        raise Unfit(f"exists: {expected!r:.80} is neither true nor false")
    return _is_there, expected is not False


def _is_there(value: Any, expected: bool) -> bool:
    return (value is not None) is expected


def _has_field(request: Any, expected: tuple[str, bool]) -> bool:
    path, there = expected
    return ((request.get(path) if type(request) is dict else _step(request, path)) is not None) is there


def _greater(expected: Any) -> tuple[Check, Any]:
    return _is_greater, _comparable("gt", expected)


def _comparison(operator: str, holds: Callable[[Any, Any], Any]) -> Check:
    def compares(value: Any, expected: Any) -> bool:
        if value is None:
            return False
        if isinstance(value, bool):
            raise _incomparable(operator, value, expected)
        try:
            return bool(holds(value, expected))
        except TypeError as error:
            raise _incomparable(operator, value, expected) from error

    return compares


_is_greater, _is_less = _comparison("gt", gt), _comparison("lt", lt)


def _less(expected: Any) -> tuple[Check, Any]:
    return _is_less, _comparable("lt", expected)


def _comparable(operator: str, expected: Any) -> Any:
    if expected is None or isinstance(expected, bool):
        raise Unfit(f"{operator}: {expected!r} is nothing to compare with; give a number or a text")
    return expected


def _incomparable(operator: str, value: Any, expected: Any) -> Unfit:
    return Unfit(f"{operator}: the value is {_kind(value)}, compared with {_kind(expected)}")


_CHECKERS: Mapping[str, Callable[[Any], tuple[Check, Any]]] = {
    "equals": _equals,
    "contains": _contains,
    "regex": _regex,
    "keywords": _keywords,
    "exists": _exists,
    "gt": _greater,
    "lt": _less,
}


def adapted(function: Callable[..., Any], field: str, names: Sequence[str], alone: int = 0) -> Callable[..., Any]:
    """A call that hands over what the function asks for: by name where it uses `names`, else in their order; to a
    function of one argument the value at the place `alone`. What has a default and another name is left alone."""
    if inspect.iscoroutinefunction(function):
        raise Unfit(f"{field}: {function!r} is async; planning asks plain functions")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin that does not tell
        return lambda *values: function(values[alone])
    places = {p.name: names.index(p.name) for p in parameters if p.name in names and p.kind is not p.POSITIONAL_ONLY}
    required = [p for p in parameters if p.default is p.empty and p.kind in _BY_POSITION]
    if places and all(p.name in places for p in required):
        return lambda *values: function(**{name: values[place] for name, place in places.items()})
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return function
    count = len(required) or min(1, sum(p.kind in _BY_POSITION for p in parameters))
    return lambda *values: function(values[alone]) if count == 1 else function(*values[:count])


_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _kind(value: object) -> str:
    return "null" if value is None else a_kind(value)


def _short(text: str) -> str:
    return repr(text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 3] + "...")
