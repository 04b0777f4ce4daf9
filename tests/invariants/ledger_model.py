"""Three attempts at once on one account: each reserves its worst case, then uses none, some, all or more of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from invariants.explore import promise
from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.reliability.budget import Ledger

ATTEMPTS = 3
LIMIT = 10
WORST = (Amount(3, 3.0), Amount(5, 5.0), Amount(0, None))
MORE = 12


@dataclass(frozen=True, slots=True)
class World:
    """`settled` is what all settlements so far came to: tokens, USD. `excess`: one of them was above its worst case."""

    ledger: Ledger
    reserved: tuple[Amount, ...] = ()
    settled: tuple[int, float] = (0, 0.0)
    excess: bool = False


class LedgerModel:
    name = "ledger"

    def start(self) -> World:
        return World(Ledger(tokens=LIMIT, cost_usd=float(LIMIT)))

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        if len(world.reserved) < ATTEMPTS:
            for worst in WORST:
                yield f"{worst} is reserved", self._reserve(world, worst)
        for worst in dict.fromkeys(world.reserved):
            cost = worst.cost_usd or 0.0
            for actual in (Amount(0, 0.0), Amount(1, 1.0), worst, Amount(worst.tokens, None), Amount(MORE, cost)):
                yield f"{worst} comes to {actual}", self._settle(world, worst, actual)

    def _reserve(self, world: World, worst: Amount) -> World:
        ledger = copy.copy(world.ledger)
        step = f"{worst} is reserved"
        try:
            ledger.reserve(worst)
        except (BudgetExceeded, InvalidRequest) as refusal:
            promise(_state(ledger) == _state(world.ledger), "a refusal sets nothing aside", step)
            fits = worst.cost_usd is not None and _taken(world.ledger) + worst.tokens <= LIMIT and not world.excess
            promise(not fits, f"what fits is admitted ({refusal})", step)
            return world
        promise(worst.cost_usd is not None, "an unknown price is refused where cost is limited", step)
        promise(world.ledger.spent_tokens <= LIMIT, "nothing is admitted after the limit was passed", step)
        return replace(world, ledger=ledger, reserved=(*world.reserved, worst))

    def _settle(self, world: World, worst: Amount, actual: Amount) -> World:
        ledger = copy.copy(world.ledger)
        ledger.settle(worst, actual)
        place = world.reserved.index(worst)
        cost = (worst.cost_usd or 0.0) if actual.cost_usd is None else actual.cost_usd
        return World(
            ledger,
            world.reserved[:place] + world.reserved[place + 1 :],
            (world.settled[0] + actual.tokens, world.settled[1] + cost),
            world.excess or actual.tokens > worst.tokens,
        )

    def check(self, world: World) -> None:
        ledger = world.ledger
        promise(
            (ledger.spent_tokens, ledger.spent_cost) == world.settled, "what is spent is the sum of the settlements"
        )
        reserved = sum(worst.tokens for worst in world.reserved), sum(worst.cost_usd or 0.0 for worst in world.reserved)
        promise((ledger.reserved_tokens, ledger.reserved_cost) == reserved, "what is set aside is what is under way")
        if not world.excess:
            promise(_taken(ledger) <= LIMIT, "spent + reserved <= limit")
            promise(ledger.spent_cost + ledger.reserved_cost <= LIMIT, "spent + reserved <= limit, in USD")

    def key(self, world: World) -> Any:
        return _state(world.ledger), tuple(sorted((w.tokens, w.cost_usd or 0.0) for w in world.reserved)), world.excess


def _taken(ledger: Ledger) -> float:
    return ledger.spent_tokens + ledger.reserved_tokens


def _state(ledger: Ledger) -> tuple[Any, ...]:
    return tuple(getattr(ledger, name) for name in Ledger.__slots__)
