"""First and extra attempts at one provider, in any order and at any time, against a count that keeps each of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from invariants.explore import promise
from steer_llm_sdk.reliability import retry_budget
from steer_llm_sdk.reliability.retry_budget import SLICES, RetryBudgetConfig, Window

KNOWN = {"slice", "firsts", "extras", "older", "older_firsts", "older_extras"}


def unknown_fields() -> list[str]:
    return [f"Window.{name}" for name in Window._fields if name not in KNOWN]


@dataclass(frozen=True, slots=True)
class World:
    """`firsts` and `extras` are the slices of time in which they were made, of the last window."""

    window: Window = field(default_factory=Window)
    now: float = 0.0
    firsts: tuple[int, ...] = ()
    extras: tuple[int, ...] = ()


class RetryBudgetModel:
    def __init__(self, name: str, cfg: RetryBudgetConfig) -> None:
        self.name = name
        self._cfg = cfg

    def start(self) -> World:
        return World()

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        for slices in (1, 4):
            yield f"{slices} slices pass", self._later(world, slices)
        at = self._slice(world.now)
        first = retry_budget.first(world.window, world.now, self._cfg)
        yield "a first attempt", replace(world, window=first, firsts=(*world.firsts, at))
        window, allowed = retry_budget.draw(world.window, world.now, self._cfg)
        most = self._cfg.minimum + self._cfg.ratio * len(world.firsts)
        fits = len(world.extras) + 1 <= most
        promise(allowed == fits, f"an extra attempt is allowed up to {most:g} and not beyond", "an extra attempt")
        yield "an extra attempt", replace(world, window=window, extras=(*world.extras, at) if allowed else world.extras)

    def _slice(self, now: float) -> int:
        return math.floor(now * SLICES / self._cfg.window)

    def _later(self, world: World, slices: int) -> World:
        now = world.now + slices * self._cfg.window / SLICES
        oldest = self._slice(now) - SLICES + 1

        def kept(times: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(at for at in times if at >= oldest)

        return replace(world, now=now, firsts=kept(world.firsts), extras=kept(world.extras))

    def check(self, world: World) -> None:
        """Every promise is about a step."""

    def key(self, world: World) -> Any:
        at, window = self._slice(world.now), world.window
        ages = tuple(at - n for n in world.firsts), tuple(at - n for n in world.extras)
        counts = window.firsts, window.extras, window.older, window.older_firsts, window.older_extras
        return ages, min(at - window.slice, SLICES), counts


def retry_budget_models() -> list[RetryBudgetModel]:
    return [
        RetryBudgetModel("retry budget, a half and one", RetryBudgetConfig(ratio=0.5, minimum=1)),
        RetryBudgetModel("retry budget, a share only", RetryBudgetConfig(ratio=1, minimum=0)),
    ]
