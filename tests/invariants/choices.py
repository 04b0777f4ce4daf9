"""Every way in which a piece of asynchronous code can go, where what happens to it is a choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Hands out options: those of the script first, then always the first. `made` is what was chosen: (which, of)."""

    def __init__(self, script: list[int]) -> None:
        self._script = script
        self.made: list[tuple[int, int]] = []
        self.labels: list[str] = []

    def choose(self, *options: T) -> T:
        place = len(self.made)
        which = self._script[place] if place < len(self._script) else 0
        self.made.append((which, len(options)))
        self.labels.append(str(options[which]))
        return options[which]


def every_way(body: Callable[[Choices], None]) -> int:
    """Run `body` once for each combination of its choices, depth first. Returns how many there are."""
    script: list[int] = []
    count = 0
    while True:
        choices = Choices(script)
        try:
            body(choices)
        except AssertionError as error:
            error.add_note("the choices: " + ", ".join(choices.labels))
            raise
        count += 1
        made = choices.made
        while made and made[-1][0] + 1 == made[-1][1]:
            made.pop()
        if not made:
            return count
        which, _ = made.pop()
        script = [*(n for n, _ in made), which + 1]
