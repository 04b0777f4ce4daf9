"""Budgets that instances share: spent + reserved <= limit over all of them, at every instant.

The account is that of `reliability.budget`, moved by the same functions. What a crashed instance had reserved is
charged by its estimate when its lease ends: its calls were sent, as far as anybody knows, and money that may be owed is
not given to others. An instance that cannot reach the store goes on with its part of what was left when it last could:
what each of the instances has then, all together have no more than was left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from steer_llm_sdk.errors import StoreUnavailable
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.reliability.budget import (
    Account,
    Budget,
    BudgetAccounts,
    Claim,
    Ledger,
    Limits,
    NamedAccount,
    Overrun,
    Refusal,
    Reservation,
    Settled,
    refuse,
    reserved,
    settle,
    tell,
)
from steer_llm_sdk.reliability.shared import snapshot
from steer_llm_sdk.reliability.shared.link import Link
from steer_llm_sdk.reliability.shared.owners import Give, Held, Owned, OwnedCell, Term, swept

if TYPE_CHECKING:
    from steer_llm_sdk.reliability._pipeline import Call, Next

_KEPT = {None: 100 * 365, "minute": 1, "hour": 1, "day": 2, "month": 62}
"""Days for which an account is kept after its last change."""

NOTHING = Claim()


class Unknown(NamedTuple):
    """The store has never answered, so nobody knows what is left."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """Answered with a refusal, if any, and under which name it is held."""

    cell: AccountCell
    claim: Claim

    def __call__(
        self, owned: Owned[Account], now: float
    ) -> tuple[Owned[Account], tuple[Refusal | Unknown | None, Term]]:
        cell = self.cell
        owned = swept(owned, now, cell.lapse) if owned.alone is None else cell.in_its_window(owned, now)
        term = cell.term
        if owned.alone is not None and not cell.heard:
            return owned, (Unknown(), term)
        account, refused = owned.value.reserve(self.claim, now, cell.limits)
        if refused is not None:
            return owned, (refused, term)
        return owned.holding(term.name, _held(self.claim))._replace(value=account), (None, term)


@dataclass(frozen=True, slots=True)
class Reopen:
    def __call__(self, owned: Owned[Account], now: float) -> tuple[Owned[Account], None]:
        return owned._replace(value=owned.value._replace(overrun=False)), None


class AccountCell(OwnedCell[Account]):
    def __init__(self, link: Link, budget: Budget, limits: Limits, held: NamedAccount) -> None:
        self.name = budget.name
        self.limits = limits
        self.heard = False
        """Whether the store has ever said what is spent."""
        self._shown = held
        self.ttl = _KEPT[budget.per] * 86_400.0
        super().__init__(link, f"budget:{budget.per or 'ever'}:{budget.name}", Account())

    def changed(self) -> None:
        self._shown.account = self.state.value

    def wanted(self) -> bool:
        return True  # What is left is looked at before a call, and divided when the store falls silent.

    def seen(self, stored: Owned[Account]) -> None:
        self.heard = True
        super().seen(stored)

    def encode_value(self, value: Account) -> dict[str, Any]:
        return {"account": snapshot.account_to(value)}

    def decode_value(self, value: Any) -> Account:
        return snapshot.account_of(value["account"])

    def give(self, value: Account, what: Claim, held: Held, now: float) -> tuple[Account, Settled | None]:
        return settle(value, self.name, self.limits, _claim(held), what, now)

    def late(self, owned: Owned[Account], what: Claim, held: Held, now: float) -> tuple[Owned[Account], Settled | None]:
        """Its estimate was charged when it lapsed. What it took beyond that is charged now, and closes the account."""
        claim = _claim(held)
        more = Claim(max(0, what.tokens - claim.tokens), max(0, (what.usd or 0) - (claim.usd or 0)))
        if more == NOTHING:
            return owned, None
        account, told = settle(owned.value, self.name, self.limits, NOTHING, more, now)
        return owned._replace(value=account._replace(overrun=True)), told

    def lapse(self, value: Account, held: Held, now: float) -> Account:
        """It is charged by its estimate."""
        claim = _claim(held)
        return value.settle(claim, claim, now, self.limits)[0]

    def release(self, value: Account, held: Held, now: float) -> Account:
        return value.settle(_claim(held), NOTHING, now, self.limits)[0]

    def used(self, before: tuple[Claim, bool] | None, what: Claim, held: Held) -> tuple[Claim, bool]:
        """What was charged in all, and whether a call took more than was reserved for it."""
        spent, overrun = before or (NOTHING, False)
        claim = _claim(held)
        usd = claim.usd if what.usd is None else what.usd
        _, over = Account().settle(claim, what, 0.0, self.limits._replace(per=None))
        return Claim(spent.tokens + what.tokens, (spent.usd or 0) + (usd or 0)), overrun or over is not None

    def owe(self, value: Account, used: tuple[Claim, bool] | None, held: Held, now: float) -> Account:
        spent, overrun = used or (NOTHING, False)
        account, _ = value.settle(NOTHING, spent, now, self.limits)
        claim = _claim(held)
        return account._replace(
            reserved_tokens=account.reserved_tokens + claim.tokens,
            reserved_usd=account.reserved_usd + (claim.usd or 0),
            overrun=account.overrun or overrun,
        )

    def share(self, value: Account, sharing: int) -> Account:
        """What is left for the others is set aside for them."""
        tokens, usd = self.limits.tokens, self.limits.usd
        left_tokens = 0 if tokens is None else max(0, int(tokens) - value.spent_tokens - value.reserved_tokens)
        left_usd = 0 if usd is None else max(0, usd - value.spent_usd - value.reserved_usd)
        return value._replace(
            reserved_tokens=value.reserved_tokens + left_tokens - left_tokens // sharing,
            reserved_usd=value.reserved_usd + left_usd - left_usd // sharing,
        )

    def in_its_window(self, owned: Owned[Account], now: float) -> Owned[Account]:
        """Alone: in a new window the parts are those of a whole limit."""
        before, alone = owned.value, owned.alone
        after = before.at(now, self.limits)
        if alone is None or after.starts == before.starts:
            return owned
        held = Held()
        for owner in owned.owners.values():
            held = held.plus(owner.held)
        claim = _claim(held)
        fresh = after._replace(reserved_tokens=claim.tokens, reserved_usd=claim.usd or 0)
        return owned._replace(value=self.share(fresh, alone.sharing))


def _held(claim: Claim) -> Held:
    return Held(claim.tokens, claim.usd or 0)


def _claim(held: Held) -> Claim:
    return Claim(int(held.first), int(held.second))


class StoreAccount(NamedAccount):
    """`account` is what is known of it here."""

    __slots__ = ("cell",)

    def __init__(self, budget: Budget, link: Link) -> None:
        super().__init__(budget)
        self.cell = AccountCell(link, budget, self.limits, self)


class SharedAccounts(BudgetAccounts):
    """The accounts that a store keeps, by name and window. A limit is each instance's own: another number for a name
    that the store knows is a change of the limit, and within one orchestrator an error."""

    def __init__(self, link: Link) -> None:
        super().__init__(link.now)
        self._link = link

    def ledger(self, tokens: float | None, cost_usd: float | None, budgets: Sequence[Budget]) -> Ledger:
        return StoreLedger(tokens, cost_usd, self, self.open(budgets))

    def reopen(self, name: str) -> None:
        """Blocks until the store knows."""
        account = self._accounts[name]
        assert isinstance(account, StoreAccount)
        account.cell.submit(Reopen()).result()

    def _made(self, budget: Budget) -> NamedAccount:
        made = StoreAccount(budget, self._link)
        self._link.add(made.cell)
        return made

    async def set_aside(self, held: Sequence[Any], claim: Claim) -> list[Term]:
        """From all of them, or from none: then it raises what the first that refuses has to say."""
        asked = [each.cell.submit(SetAside(each.cell, claim)) for each in held]
        try:
            answers = await asyncio.gather(*(asyncio.shield(asyncio.wrap_future(future)) for future in asked))
        except BaseException:
            for each, future in zip(held, asked, strict=True):
                future.add_done_callback(partial(_release, each.cell, claim))
            raise
        for each, (refused, _) in zip(held, answers, strict=True):
            if refused is not None:
                for other, future in zip(held, asked, strict=True):
                    _release(other.cell, claim, future)
                if isinstance(refused, Unknown):
                    name = each.budget.name
                    raise StoreUnavailable(
                        f"{self._link.at} does not answer, and has never said what is left of budget {name!r}"
                    )
                refuse(refused, each.budget.name)
        return [term for _, term in answers]


def _release(cell: AccountCell, claim: Claim, asked: Future[tuple[Any, Term]]) -> None:
    """Give back what was set aside, if it was."""
    refused, term = asked.result()
    if refused is None:
        cell.submit(Give(cell, term, NOTHING, _held(claim)))


class StoreLedger(Ledger):
    """A run's own account is here, those that it shares are in the store."""

    __slots__ = ("_held", "_store")

    def __init__(
        self, tokens: float | None, cost_usd: float | None, accounts: SharedAccounts, held: Sequence[Any]
    ) -> None:
        super().__init__(tokens, cost_usd)
        self._store = accounts
        self._held = held

    async def elsewhere(self, call: Call, next: Next[Any, Any]) -> Any:
        """Reserve, call, settle. A call that has ended waits until the store knows what it took."""
        worst = call.worst_case
        own = self.reserve(worst)
        try:
            terms = await self._store.set_aside(self._held, Claim.of(worst))
        except BaseException:
            own.settle(Amount())
            raise
        held = StoreReservation(self, own, Claim.of(worst), terms)
        try:
            result = await reserved(call, next, self, held)
        except Exception:
            await self._tell(call, held)
            raise
        await self._tell(call, held)
        return result

    def _left(self) -> tuple[float, float]:
        tokens, usd = super()._left()
        shared_tokens, shared_usd = self._store.left(self._held)
        return min(tokens, shared_tokens), min(usd, shared_usd)

    def charged(self, claim: Claim, terms: Sequence[Term], actual: Claim) -> list[Future[Settled | None]]:
        return [
            each.cell.submit(Give(each.cell, term, actual, _held(claim)))
            for each, term in zip(self._held, terms, strict=True)
        ]

    async def _tell(self, call: Call, held: StoreReservation) -> None:
        for future in held.charged:
            told = await asyncio.shield(asyncio.wrap_future(future))
            if told is not None:
                if told.overrun is not None:
                    tell(call, {told.name: told.overrun})
                self.exceeded = self.exceeded or told.exceeded


class StoreReservation(Reservation):
    """`charged`: what the store is asked to settle, once it is."""

    __slots__ = ("_own", "_terms", "charged")

    def __init__(self, ledger: StoreLedger, own: Reservation, claim: Claim, terms: Sequence[Term]) -> None:
        super().__init__(ledger, claim)
        self._own = own
        self._terms = terms
        self.charged: list[Future[Settled | None]] = []

    def settle(self, actual: Amount) -> dict[str | None, Overrun]:
        """Says at once who was overrun here; the store says so of its accounts when it has settled them."""
        if self.settled:
            return {}
        overruns = dict(self._own.settle(actual))
        self.settled = True
        assert isinstance(self._ledger, StoreLedger)
        self.charged = self._ledger.charged(self._claim, self._terms, Claim.of(actual))
        return overruns
