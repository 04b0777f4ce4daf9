"""From a rule's conditions to closures: everything that can be done once is done when the rule is added."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from steer_llm_sdk.orchestration.planning import _needles
from steer_llm_sdk.orchestration.planning._index import Value, Words
from steer_llm_sdk.orchestration.planning.rules import RuleCondition

Test = Callable[[Any], bool]
"""Says of a request, or of a value in it, whether something holds; raises where that cannot be said."""

_TEXT_SHOWN = 80
_FEW_WORDS = 16
"""So many plain words are looked for one by one: 0.1 us where RE2 takes 3."""


class Unfit(ValueError):
    """A condition cannot be used on this value, or on any."""


def compiled(condition: RuleCondition) -> Test:
    """The condition as a test on requests. Unfit where it can be used on none: a pattern that does not compile."""
    read, check = reader(condition.attribute_path), checker(condition)
    key = condition.attribute_path
    if "." in key:
        return lambda request: check(read(request))
    # The common case, one key of a plain dict, is worth a short cut: it halves the time of a rule.
    return lambda request: check(request.get(key) if type(request) is dict else read(request))


def guard_of(condition: RuleCondition) -> Value | Words | None:
    """What a request must have for the condition to hold, where the index can look for that. A condition that is no use
    guards nothing: its rule has to be met to be told of."""
    if condition.custom_matcher is not None:
        return None
    path, expected = condition.attribute_path, condition.value
    if condition.operator == "equals":
        return Value(path, expected) if type(expected) in _SCALARS else None
    needles: tuple[str, ...] | None = None
    if condition.operator == "keywords":
        needles = _needles.of_words(expected)
    elif condition.operator == "regex":
        needles = _needles.of_pattern(expected)
    return None if needles is None else Words(path, needles)


_SCALARS = (str, int, float, bool, type(None))


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
    if isinstance(value, Mapping):
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
    matcher, expected = condition.custom_matcher, condition.value
    if matcher is not None:
        ask = adapted(matcher, "custom_matcher", ("value", "expected"))
        return lambda value: bool(ask(value, expected))
    return _CHECKERS[condition.operator](expected)


def _equals(expected: Any) -> Test:
    if isinstance(expected, (bool, int, float)):
        is_bool = isinstance(expected, bool)
        return lambda value: isinstance(value, bool) is is_bool and bool(value == expected)
    return lambda value: bool(value == expected)


def _contains(expected: Any) -> Test:
    if expected is None:
        raise Unfit("contains: no value was given to look for")
    same = _equals(expected)

    def check(value: Any) -> bool:
        if value is None:
            return False
        if isinstance(value, str):
            if not isinstance(expected, str):
                raise Unfit(f"contains: looks for {_kind(expected)} in a text")
            return expected in value
        if isinstance(value, Mapping):
            return expected in value
        if isinstance(value, (list, tuple, set, frozenset)):
            return any(same(item) for item in value)
        raise Unfit(f"contains: the value is {_kind(value)}, not a text, list or mapping")

    return check


def _regex(pattern: Any) -> Test:
    return _searched("regex", _searcher(pattern))


def _searched(operator: str, search: Callable[[str], bool]) -> Test:
    def check(value: Any) -> bool:
        if value is None:
            return False
        if isinstance(value, str):
            return search(value)
        if isinstance(value, (list, tuple)):
            return any(search(item) for item in value if isinstance(item, str))
        raise Unfit(f"{operator}: the value is {_kind(value)}, not a text")

    return check


def _keywords(words: Any) -> Test:
    if not isinstance(words, (list, tuple)) or not words or not all(isinstance(word, str) and word for word in words):
        raise Unfit("keywords: give a list of words that are not empty")
    search = _searcher(f"(?i:{'|'.join(map(re.escape, words))})")
    plain = [word.lower() for word in words]
    if len(words) > _FEW_WORDS or not all(map(str.isascii, words)):
        return _searched("keywords", search)

    def found(text: str) -> bool:
        if not text.isascii():
            return search(text)
        lower = text.lower()
        for word in plain:  # noqa: SIM110 - a loop is twice as fast as any() over a generator
            if word in lower:
                return True
        return False

    return _searched("keywords", found)


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
    # Bytes, because JSON can carry a lone surrogate, which is no UTF-8 and must not stop a search.
    return lambda text: search(text.encode("utf-8", "surrogatepass")) is not None


def _told(error: Exception) -> str:
    first = error.args[0] if error.args else ""
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(error)


def _exists(expected: Any) -> Test:
    if expected is False:
        return lambda value: value is None
    return lambda value: value is not None


def _greater(expected: Any) -> Test:
    return _ordered("gt", expected, lambda value: bool(value > expected))


def _less(expected: Any) -> Test:
    return _ordered("lt", expected, lambda value: bool(value < expected))


def _ordered(operator: str, expected: Any, compare: Test) -> Test:
    if expected is None or isinstance(expected, bool):
        raise Unfit(f"{operator}: {expected!r} is nothing to compare with; give a number or a text")

    def check(value: Any) -> bool:
        if value is None:
            return False
        if isinstance(value, bool):
            raise Unfit(f"{operator}: the value is a bool, compared with {_kind(expected)}")
        try:
            return compare(value)
        except TypeError as error:
            raise Unfit(f"{operator}: the value is {_kind(value)}, compared with {_kind(expected)}") from error

    return check


_CHECKERS: Mapping[str, Callable[[Any], Test]] = {
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
    return "null" if value is None else f"a {type(value).__name__}"


def _short(text: str) -> str:
    return repr(text if len(text) <= _TEXT_SHOWN else text[: _TEXT_SHOWN - 3] + "...")
