"""Breadth first through everything that can happen, looking for a broken promise.

A model says where it starts, what can happen next and what must hold. Two worlds with one key go on alike, so only the
first of them is followed. The first broken promise ends the search, with the shortest way to it.
"""

from __future__ import annotations

import hashlib
import marshal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

W = TypeVar("W")

LEAST_DEPTH = 10


class Broken(AssertionError):
    """A promise that does not hold; `step` is what broke it, where a model knows."""

    def __init__(self, what: str, step: str = "") -> None:
        super().__init__(what)
        self.step = step


def promise(holds: bool, what: str, step: str = "") -> None:
    if not holds:
        raise Broken(what, step)


class Model(Protocol[W]):
    name: str

    def start(self) -> W: ...

    def steps(self, world: W, /) -> Iterator[tuple[str, W]]:
        """What can happen, and what comes of it. Raises Broken where a step breaks a promise."""
        ...

    def key(self, world: W, /) -> Any:
        """Plain tuples, numbers and text."""
        ...

    def check(self, world: W, /) -> None:
        """Raises Broken where a promise does not hold of the world as it is."""
        ...


@dataclass(frozen=True)
class Explored:
    """`broken` is None where every promise holds; else `way` leads to where one does not."""

    name: str
    states: int
    steps: int
    depth: int
    broken: str | None = None
    way: tuple[str, ...] = ()


class Exploration(Generic[W]):
    def __init__(self, model: Model[W]) -> None:
        self._model = model
        self._seen: dict[bytes, tuple[bytes | None, str]] = {}
        self._steps = 0
        self._last = ""

    def run(self, depth: int, most_states: int | None = None, least_depth: int = LEAST_DEPTH) -> Explored:
        """To `depth` steps, or until `most_states` are known, but `least_depth` steps at least.

        `depth` in the answer is that of the last whole level.
        """
        model = self._model
        first = model.start()
        key = self._key(first)
        self._seen[key] = (None, "")
        level = [(key, first)]
        reached = 0
        for reached in range(1, depth + 1):
            found: list[tuple[bytes, W]] = []
            for came_from, world in level:
                try:
                    self._follow(came_from, world, found)
                except Broken as broken:
                    return self._result(reached, broken, came_from)
            level = found
            enough = most_states is not None and len(self._seen) > most_states
            if not level or (enough and reached >= least_depth):
                break
        return self._result(reached)

    def _follow(self, came_from: bytes, world: W, found: list[tuple[bytes, W]]) -> None:
        model, seen = self._model, self._seen
        for self._last, after in model.steps(world):
            self._steps += 1
            key = self._key(after)
            if key not in seen:
                seen[key] = (came_from, self._last)
                model.check(after)
                found.append((key, after))

    def _key(self, world: W) -> bytes:
        return hashlib.blake2b(marshal.dumps(self._model.key(world), 2), digest_size=12).digest()

    def _result(self, depth: int, broken: Broken | None = None, at: bytes | None = None) -> Explored:
        way: list[str] = []
        if broken is not None:
            way.append(broken.step or self._last)
            while at is not None:
                at, label = self._seen[at]
                way.append(label)
        text = None if broken is None else str(broken)
        return Explored(self._model.name, len(self._seen), self._steps, depth, text, tuple(filter(None, way[::-1])))
