"""What a request has, and what the rules are that are found by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from steer_llm_sdk.orchestration.planning._guards import Guard, Value


class Entry(Protocol):
    """A rule in the index. `order` is its place among all, unique; the lowest is asked first."""

    @property
    def order(self) -> tuple[int, int]: ...
    @property
    def values(self) -> Sequence[Value]: ...
    @property
    def guard(self) -> Guard | None: ...
    @property
    def settled(self) -> bool:
        """Whether the one value that it asks for is all that it asks for."""
        ...


E = TypeVar("E", bound=Entry)
Reader = Callable[[Any], Any]
by_order = attrgetter("order")


ODD: Any = object()
"""A value of which only the conditions themselves can say what it equals."""


class Facts:
    """What a request has, each thing read once."""

    __slots__ = ("_folded", "request", "values")

    def __init__(self, request: Any) -> None:
        self.request = request
        self.values: dict[str, Any] = {}
        self._folded: dict[str, Any] = {}

    def value(self, path: str, read: Reader) -> Any:
        if type(self.request) is dict and "." not in path:
            return self.request.get(path)
        values = self.values
        if path in values:
            return values[path]
        try:
            value = read(self.request)
        except Exception:  # Who tests a rule meets it again, and tells of it.
            value = ODD
        values[path] = value
        return value

    def folded(self, path: str, read: Reader) -> Any:
        """The texts at a path, case-folded; ODD where there is something else."""
        if path not in self._folded:
            self._folded[path] = _folded(self.value(path, read))
        return self._folded[path]


def _folded(value: Any) -> Any:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value.casefold(),)
    if isinstance(value, (list, tuple)) and all(isinstance(item, _PLAIN) for item in value):
        return [item.casefold() for item in value if isinstance(item, str)]
    return ODD


_PLAIN = (str, int, float, type(None), list, Mapping)
"""What may be in a list without being like a text in its own way."""
