"""Three attempts at once against one account: each reserves its worst case, then uses none, some, all or more of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from invariants.explore import promise
from steer_llm_sdk.reliability.budget import Account, Claim, Limits

ATTEMPTS = 3
LIMIT = 10
MINUTE = 60.0
WORST = (Claim(3, 3), Claim(5, 5), Claim(0, None))
MORE = 6
"""More than was reserved, and yet within the limit."""
KNOWN = {"spent_tokens", "spent_usd", "reserved_tokens", "reserved_usd", "overrun", "starts", "ends"}


def unknown_fields() -> list[str]:
    return [name for name in Account._fields if name not in KNOWN]


@dataclass(frozen=True, slots=True)
class World:
    """`settled` is what all settlements of this window came to: tokens, USD. `excess`: one was above its worst case."""

    account: Account = field(default_factory=Account)
    reserved: tuple[Claim, ...] = ()
    settled: tuple[int, int] = (0, 0)
    excess: bool = False
    now: float = 0.0

    @property
    def taken(self) -> tuple[int, int]:
        """Tokens and USD spent and set aside, by an account of its own."""
        tokens = self.settled[0] + sum(claim.tokens for claim in self.reserved)
        return tokens, self.settled[1] + sum(claim.usd or 0 for claim in self.reserved)


class AccountModel:
    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self._limits = limits

    def start(self) -> World:
        return World()

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        if self._limits.per is not None:
            yield "half a minute passes", self._later(world)
        if len(world.reserved) < ATTEMPTS:
            for worst in WORST:
                yield f"{worst} is reserved", self._reserve(world, worst)
        for worst in dict.fromkeys(world.reserved):
            usd = worst.usd or 0
            for actual in (Claim(0, 0), Claim(1, 1), worst, Claim(worst.tokens, None), Claim(MORE, usd)):
                yield f"{worst} comes to {actual}", self._settle(world, worst, actual)

    def _later(self, world: World) -> World:
        now = world.now + MINUTE / 2
        if now % MINUTE:
            return replace(world, now=now)
        return replace(world, now=now, settled=(0, 0), excess=False)  # A new window begins.

    def _reserve(self, world: World, worst: Claim) -> World:
        account, refused = world.account.reserve(worst, world.now, self._limits)
        step = f"{worst} is reserved"
        tokens, usd = world.taken
        fits = worst.usd is not None and not world.excess
        fits = fits and tokens + worst.tokens <= LIMIT and usd + (worst.usd or 0) <= LIMIT
        if refused is not None:
            promise(not fits, f"what fits is admitted ({refused.kind})", step)
            before = world.account.at(world.now, self._limits)
            promise(account == before, "a refusal sets nothing aside", step)
            return replace(world, account=account)
        promise(worst.usd is not None, "an unknown price is refused where cost is limited", step)
        promise(not world.excess, "nothing is admitted after a call took more than was reserved for it", step)
        promise(fits, "what is admitted fits", step)
        return replace(world, account=account, reserved=(*world.reserved, worst))

    def _settle(self, world: World, worst: Claim, actual: Claim) -> World:
        account, over = world.account.settle(worst, actual, world.now, self._limits)
        more = actual.tokens > worst.tokens
        promise(
            (over is not None) == more, "more than was reserved is told, and only that", f"{worst} comes to {actual}"
        )
        place = world.reserved.index(worst)
        usd = (worst.usd or 0) if actual.usd is None else actual.usd
        return replace(
            world,
            account=account,
            reserved=world.reserved[:place] + world.reserved[place + 1 :],
            settled=(world.settled[0] + actual.tokens, world.settled[1] + usd),
            excess=world.excess or more,
        )

    def check(self, world: World) -> None:
        account = world.account.at(world.now, self._limits)
        spent = account.spent_tokens, account.spent_usd
        promise(spent == world.settled, "what is spent is the sum of the settlements")
        reserved = sum(claim.tokens for claim in world.reserved), sum(claim.usd or 0 for claim in world.reserved)
        promise((account.reserved_tokens, account.reserved_usd) == reserved, "what is set aside is what is under way")
        if not world.excess:
            promise(max(world.taken) <= LIMIT, "spent + reserved <= limit")

    def key(self, world: World) -> Any:
        at = world.now % MINUTE
        account = world.account.at(world.now, self._limits)
        return tuple(account[:5]), tuple(sorted((c.tokens, c.usd or 0) for c in world.reserved)), world.excess, at


def account_models() -> list[AccountModel]:
    return [
        AccountModel("budget, for ever", Limits(LIMIT, LIMIT)),
        AccountModel("budget, by the minute", Limits(LIMIT, LIMIT, "minute")),
    ]
