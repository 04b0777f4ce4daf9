"""What runs may spend, have spent, and have set aside for calls that are under way.

Before an attempt its worst case is reserved; afterwards the reservation becomes what was really used. So
spent + reserved <= limit holds at every instant, as long as no call takes more than its worst case. If one does, the
excess is charged in full, recorded, and the account admits nothing more: its reservations can no longer be believed.

`Account` is the whole mechanism: a value, and pure functions that make the next one. `Ledger` holds the account of one
run and reserves from it and from the shared accounts of `BudgetAccounts` together: from all of them, or from none.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn
from weakref import WeakValueDictionary

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest, ProviderError
from steer_llm_sdk.models.usage import Amount, tokens_of
from steer_llm_sdk.reliability._kept import Kept
from steer_llm_sdk.reliability.classify import classify
from steer_llm_sdk.reliability.deadline import attempt_left_behind

if TYPE_CHECKING:
    from steer_llm_sdk.reliability._pipeline import Call, Next

Period = Literal["minute", "hour", "day", "month"]

_SECONDS = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}
_PICO = 1_000_000_000_000
MOST = 1e15
"""The highest limit: up to here a float tells whole tokens apart."""


def is_amount(value: Any, most: float = MOST) -> bool:
    """Whether it can be a limit: a number above 0, and no more than `most`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 < value <= most


_new = tuple.__new__
"""Makes a named tuple in half the time that its own constructor takes; for the steps of every call."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit that several runs share: Budget("team-a", usd=50, per="day").

    `tokens` and `usd` are the most that all runs together may take, one of them at least; `per` says in which time:
    "minute", "hour", "day", "month", or None for ever. Windows are aligned to UTC (a day begins at midnight, a month on
    its first), not sliding: that is how providers bill, everybody can say when the next one begins, and an account
    needs a few numbers and no history. The price is that within one length of time that lies across a border twice the
    limit may be spent. What is under way at the border is charged to the window in which it ends.

    An orchestrator keeps one account for each name. InvalidRequest where a value cannot be used.
    """

    name: str
    tokens: int | None = field(default=None, kw_only=True)
    usd: float | None = field(default=None, kw_only=True)
    per: Period | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or len(self.name) > 512 or not self.name.strip():
            raise InvalidRequest("budget.name", self.name, "give 1 to 512 characters, not all of them blank")
        if self.tokens is None and self.usd is None:
            raise InvalidRequest("budget", self.name, "it limits nothing; give tokens, usd or both")
        for unit, value in (("tokens", self.tokens), ("usd", self.usd)):
            if value is not None and not is_amount(value):
                raise InvalidRequest(f"budget.{unit}", value, "give a positive finite number")
        if self.per is not None and self.per not in (*_SECONDS, "month"):
            raise InvalidRequest("budget.per", self.per, "give minute, hour, day or month, or None for ever")


# ── the mechanism ────────────────────────────────────────────────────────────────────────────────────────────────────


def picos(usd: float | None) -> int | None:
    """Whole trillionths of a dollar: unlike those of floats, their sums are exact. None for what is no price."""
    if not usd:  # Most calls: it saves the arithmetic of large integers.
        return None if usd is None else 0
    # It is rounded to the nearest, so that 0.1 + 0.2 is three tenths, and what is not greater does not become so.
    return round(usd * _PICO) if 0 < usd < math.inf else None


class Claim(NamedTuple):
    """What a call is reserved for, or is charged. `usd` in picos; None where nobody knows."""

    tokens: int = 0
    usd: int | None = 0

    @classmethod
    def of(cls, amount: Amount) -> Claim:
        tokens, usd = amount
        return _new(cls, (tokens if tokens > 0 else 0, picos(usd)))


class Limits(NamedTuple):
    """`usd` in picos. None is no limit, and for `per` no window."""

    tokens: float | None = None
    usd: int | None = None
    per: Period | None = None


class Refusal(NamedTuple):
    """Nothing was reserved. `kind` "price": a limit in USD, and nobody knows what the call costs at most.

    `actual` is what would have been spent and reserved. `overrun`: the account is closed, whatever it has left.
    `resets_in` in seconds; None without a window.
    """

    kind: Literal["tokens", "cost", "price"]
    limit: float
    actual: float
    resets_in: float | None
    overrun: bool = False


class Overrun(NamedTuple):
    """A call took more than was reserved for it. Amounts are tokens or USD by `kind`."""

    kind: Literal["tokens", "cost"]
    reserved: float
    actual: float


class Account(NamedTuple):
    """What is spent in the window from `starts` to `ends` (seconds since the epoch) and reserved now; USD in picos.

    `overrun`: a call of this window took more than was reserved for it, so nothing more is admitted until the next.
    """

    spent_tokens: int = 0
    spent_usd: int = 0
    reserved_tokens: int = 0
    reserved_usd: int = 0
    overrun: bool = False
    starts: float = -math.inf
    ends: float = -math.inf

    def at(self, now: float, limits: Limits) -> Account:
        """The account as it is at `now`: a new window begins with nothing spent. Reservations stay until they end.

        Where the clock was put back, the window moves and what is spent stays: nobody spends a limit twice by that.
        """
        if limits.per is None or self.starts <= now < self.ends:
            return self
        starts, ends = window(limits.per, now)
        if now < self.starts:
            return self._replace(starts=starts, ends=ends)
        return Account(0, 0, self.reserved_tokens, self.reserved_usd, False, starts, ends)

    def reserve(self, claim: Claim, now: float, limits: Limits) -> tuple[Account, Refusal | None]:
        """Set `claim` aside, if it fits."""
        most_tokens, most_usd, per = limits
        if per is not None and not self.starts <= now < self.ends:
            self = self.at(now, limits)
        spent_tokens, spent_usd, reserved_tokens, reserved_usd, overrun, starts, ends = self
        tokens, usd = claim
        reserved_tokens += tokens
        reserved_usd += usd or 0
        if (
            overrun
            or (most_tokens is not None and spent_tokens + reserved_tokens > most_tokens)
            or (most_usd is not None and (usd is None or spent_usd + reserved_usd > most_usd))
        ):
            refused = self._refusal(claim, now, limits)
            if refused is not None:
                return self, refused
        return _new(Account, (spent_tokens, spent_usd, reserved_tokens, reserved_usd, overrun, starts, ends)), None

    def settle(self, claim: Claim, actual: Claim, now: float, limits: Limits) -> tuple[Account, Overrun | None]:
        """Turn a reservation into what was used. An unknown cost is charged as it was reserved.

        A reservation of nothing promised nothing, so whatever is charged is no overrun of it.
        """
        if limits.per is not None and not self.starts <= now < self.ends:
            self = self.at(now, limits)
        spent_tokens, spent_usd, reserved_tokens, reserved_usd, overrun, starts, ends = self
        tokens, reserved = claim[0], claim[1] or 0
        used, usd = actual
        if usd is None:
            usd = reserved
        over = None
        if limits.tokens is not None and used > tokens > 0:
            over = Overrun("tokens", tokens, used)
        elif limits.usd is not None and usd > reserved > 0:
            over = Overrun("cost", reserved / _PICO, usd / _PICO)
        overrun = overrun or over is not None
        spent_tokens, spent_usd = spent_tokens + used, spent_usd + usd
        reserved_tokens, reserved_usd = reserved_tokens - tokens, reserved_usd - reserved
        return _new(Account, (spent_tokens, spent_usd, reserved_tokens, reserved_usd, overrun, starts, ends)), over

    def excess(self, limits: Limits) -> tuple[Literal["tokens", "cost"], float, float] | None:
        """Which limit the spending has passed, the limit, and what is spent; None where none is passed."""
        if limits.tokens is not None and self.spent_tokens > limits.tokens:
            return "tokens", limits.tokens, self.spent_tokens
        if limits.usd is not None and self.spent_usd > limits.usd:
            return "cost", limits.usd / _PICO, self.spent_usd / _PICO
        return None

    def left(self, limits: Limits) -> tuple[float, float]:
        """Tokens and USD that may still be reserved; infinite without a limit."""
        if self.overrun:
            return 0.0, 0.0
        tokens = math.inf if limits.tokens is None else limits.tokens - self.spent_tokens - self.reserved_tokens
        usd = math.inf if limits.usd is None else (limits.usd - self.spent_usd - self.reserved_usd) / _PICO
        return tokens, usd

    def resets_in(self, now: float, limits: Limits) -> float | None:
        """Seconds until the next window; None without windows."""
        return None if limits.per is None else max(0.0, self.ends - now)

    def _refusal(self, claim: Claim, now: float, limits: Limits) -> Refusal | None:
        tokens = self.spent_tokens + self.reserved_tokens + claim.tokens
        usd = self.spent_usd + self.reserved_usd + (claim.usd or 0)
        resets_in = self.resets_in(now, limits)
        past = self.excess(limits)
        if past is not None:
            return Refusal(*past, resets_in, self.overrun)
        if limits.tokens is not None and (self.overrun or tokens > limits.tokens):
            return Refusal("tokens", limits.tokens, tokens, resets_in, self.overrun)
        if limits.usd is None:
            return None
        if claim.usd is None:
            return Refusal("price", limits.usd / _PICO, math.nan, resets_in)
        if self.overrun or usd > limits.usd:
            return Refusal("cost", limits.usd / _PICO, usd / _PICO, resets_in, self.overrun)
        return None


def window(per: Period, now: float) -> tuple[float, float]:
    """The window of UTC that `now` lies in, in seconds since the epoch: its start, and its end, which is not in it."""
    if per != "month":
        starts = now // _SECONDS[per] * _SECONDS[per]
        return starts, starts + _SECONDS[per]
    first = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return first.timestamp(), (first + timedelta(days=32)).replace(day=1).timestamp()


def excess(
    token_limit: float | None, cost_limit: float | None, tokens: int, cost_usd: float
) -> tuple[str, float, float] | None:
    """Which limit is passed, the limit, and the amount that passes it; None where none is."""
    if token_limit is not None and tokens > token_limit:
        return "tokens", token_limit, tokens
    if cost_limit is None:
        return None
    return Account(spent_usd=picos(cost_usd) or 0).excess(Limits(usd=picos(cost_limit)))


_EMPTY = Account()


# ── what holds it ────────────────────────────────────────────────────────────────────────────────────────────────────


class NamedAccount:
    """One shared account and its limits."""

    __slots__ = ("__weakref__", "account", "budget", "limits")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.limits = Limits(budget.tokens, picos(budget.usd), budget.per)
        self.account = _EMPTY


class Settled(NamedTuple):
    """What a settlement came to. `exceeded`: it took the account beyond its limit."""

    name: str
    overrun: Overrun | None
    exceeded: BudgetExceeded | None = None


def settle(
    before: Account, name: str, limits: Limits, claim: Claim, actual: Claim, now: float
) -> tuple[Account, Settled | None]:
    """The account of a shared budget after a settlement, and what is to be told of it; None where nothing is."""
    after, overrun = before.settle(claim, actual, now, limits)
    past = after.excess(limits)
    if past is None and overrun is None:
        return after, None
    if past is None or before.at(now, limits).excess(limits) is not None:
        return after, None if overrun is None else Settled(name, overrun)
    resets_in = after.resets_in(now, limits)
    return after, Settled(name, overrun, BudgetExceeded(*past, budget=name, resets_in=resets_in))


class BudgetAccounts:
    """The accounts of shared budgets, by name. An orchestrator has its own, unless it is given one to share.

    An account is kept as long as something is spent or reserved in its window: for ever, where it has no window.
    `clock` gives seconds since the epoch; windows follow it. Any number of event loops and threads may use it.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: dict[str, NamedAccount] = Kept(self._is_as_new)
        # Those that were forgotten while a run has them.
        self._known: WeakValueDictionary[str, NamedAccount] = WeakValueDictionary()
        self._last: tuple[Sequence[Budget], tuple[NamedAccount, ...]] = ((), ())

    def open(self, budgets: Sequence[Budget]) -> tuple[NamedAccount, ...]:
        """The accounts of these budgets. InvalidRequest where a name is known with other numbers."""
        # Runs come with the budgets of the run before, in a tuple that each may have made anew; an account stays.
        last, opened = self._last
        if budgets == last:
            return opened
        with self._lock:
            for budget in budgets:
                known = self._known.get(budget.name)
                if known is not None and known.budget != budget:
                    raise InvalidRequest(
                        "budgets", budget, f"its name is taken by {known.budget}; give the same numbers or another name"
                    )
            opened = tuple(self._known.get(budget.name) or self._made(budget) for budget in budgets)
            for each in opened:
                self._known[each.budget.name] = each
                self._accounts.setdefault(each.budget.name, each)
        if type(budgets) is tuple:
            self._last = budgets, opened
        return opened

    def ledger(self, tokens: float | None, cost_usd: float | None, budgets: Sequence[Budget]) -> Ledger:
        """Of a run with limits of its own, which draws on these budgets too."""
        return Ledger(tokens, cost_usd, self, self.open(budgets))

    def view(self) -> dict[str, dict[str, Any]]:
        """Of each budget: `limit`, `spent` and `reserved` as {"tokens", "usd"}, `resets_in` in seconds (None for ever),
        and `overrun`: it is closed because a call took more than was reserved for it."""
        with self._lock:
            now = self._clock()
            return {name: _shown(held, now) for name, held in self._accounts.items()}

    def reopen(self, name: str) -> None:
        """Admit again after an overrun, before the window is over; what is spent stays. KeyError: no such budget."""
        with self._lock:
            held = self._accounts[name]
            held.account = held.account._replace(overrun=False)

    def reserve(self, held: Sequence[NamedAccount], claim: Claim) -> None:
        """From all of them, or from none: then it raises what the first that refuses has to say."""
        with self._lock:
            now = self._clock()
            moved = []
            for each in held:
                account, refused = each.account.reserve(claim, now, each.limits)
                if refused is not None:
                    refuse(refused, each.budget.name)
                moved.append(account)
            for each, account in zip(held, moved, strict=True):
                each.account = account
                if each.budget.name not in self._accounts:
                    self._accounts[each.budget.name] = each

    def settle(self, held: Sequence[NamedAccount], claim: Claim, actual: Claim) -> list[Settled]:
        """What is to be told of it, of those of which something is."""
        told: list[Settled] = []
        with self._lock:
            now = self._clock()
            for each in held:
                each.account, settled = settle(each.account, each.budget.name, each.limits, claim, actual, now)
                if settled is not None:
                    told.append(settled)
        return told

    def _is_as_new(self, held: NamedAccount) -> bool:
        account = held.account.at(self._clock(), held.limits)
        return not (account.spent_tokens or account.spent_usd or account.reserved_tokens or account.reserved_usd)

    def _made(self, budget: Budget) -> NamedAccount:
        return NamedAccount(budget)

    def left(self, held: Sequence[NamedAccount]) -> tuple[float, float]:
        """Tokens and USD that all of them have left."""
        with self._lock:
            now = self._clock()
            rooms = [each.account.at(now, each.limits).left(each.limits) for each in held]
        return min(tokens for tokens, _ in rooms), min(usd for _, usd in rooms)


def _shown(held: NamedAccount, now: float) -> dict[str, Any]:
    budget, account = held.budget, held.account.at(now, held.limits)
    return {
        "limit": {"tokens": budget.tokens, "usd": budget.usd},
        "spent": {"tokens": account.spent_tokens, "usd": account.spent_usd / _PICO},
        "reserved": {"tokens": account.reserved_tokens, "usd": account.reserved_usd / _PICO},
        "resets_in": account.resets_in(now, held.limits),
        "overrun": account.overrun,
    }


class Ledger:
    """What one run is charged to: an account of its own, and those that it shares with other runs.

    `tokens` and `cost_usd` are its own limits; None is no limit. `exceeded` is the first shared budget that a call of
    this run took beyond its limit, as a BudgetExceeded to raise when the work is done.
    """

    __slots__ = ("_account", "_accounts", "_limits", "_shared", "exceeded")

    elsewhere: Callable[[Call, Next[Any, Any]], Coroutine[Any, Any, Any]] | None = None
    """What puts the reservation round a call, where an account is in a store, which takes time to answer."""

    def __init__(
        self,
        tokens: float | None = None,
        cost_usd: float | None = None,
        accounts: BudgetAccounts | None = None,
        shared: Sequence[NamedAccount] = (),
    ) -> None:
        self._limits: Limits = _new(Limits, (tokens, picos(cost_usd), None))
        self._account = _EMPTY
        self._accounts = accounts
        self._shared = shared
        self.exceeded: BudgetExceeded | None = None

    @property
    def spent_tokens(self) -> int:
        return self._account.spent_tokens

    @property
    def spent_cost(self) -> float:
        return self._account.spent_usd / _PICO

    @property
    def reserved_tokens(self) -> int:
        return self._account.reserved_tokens

    @property
    def reserved_cost(self) -> float:
        return self._account.reserved_usd / _PICO

    @property
    def overrun(self) -> bool:
        """A call took more than was reserved for it; nothing more is admitted."""
        return self._account.overrun

    @property
    def tokens_left(self) -> float:
        """What may still be reserved, from the shared budgets too; infinite without a limit."""
        return self._left()[0]

    @property
    def cost_left(self) -> float:
        return self._left()[1]

    def reserve(self, worst: Amount) -> Reservation:
        """Set `worst` aside in every account. BudgetExceeded, with nothing set aside in any, where one has too little;
        InvalidRequest where USD are limited and nobody knows the price."""
        claim = Claim.of(worst)
        account, refused = self._account.reserve(claim, 0.0, self._limits)
        if refused is not None:
            refuse(refused)
        if self._accounts is not None:
            self._accounts.reserve(self._shared, claim)
        self._account = account
        return Reservation(self, claim)

    def settle(self, claim: Claim, amount: Amount) -> dict[str | None, Overrun]:
        """Once for each reservation, which sees to that. Who was overrun: a shared budget by its name, the run's own
        under None."""
        actual = Claim.of(amount)
        self._account, over = self._account.settle(claim, actual, 0.0, self._limits)
        overruns: dict[str | None, Overrun] = {} if over is None else {None: over}
        accounts = self._accounts
        if accounts is not None and (told := accounts.settle(self._shared, claim, actual)):
            for name, overrun, exceeded in told:
                if overrun is not None:
                    overruns[name] = overrun
                self.exceeded = self.exceeded or exceeded
        return overruns

    def recharge(self, amount: Amount) -> None:
        """Charge the run's own account for what was paid before: the shared budgets were charged then."""
        self._account, _ = self._account.settle(Claim(), Claim.of(amount), 0.0, self._limits)

    def _left(self) -> tuple[float, float]:
        tokens, usd = self._account.left(self._limits)
        if self._accounts is None:
            return tokens, usd
        shared_tokens, shared_usd = self._accounts.left(self._shared)
        return min(tokens, shared_tokens), min(usd, shared_usd)


class Reservation:
    """What is set aside for one call, until it is settled: once, whatever comes after."""

    __slots__ = ("_claim", "_ledger", "settled")

    def __init__(self, ledger: Ledger, claim: Claim) -> None:
        self._ledger = ledger
        self._claim = claim
        self.settled = False

    def settle(self, actual: Amount) -> Mapping[str | None, Overrun]:
        """Charge `actual` instead. See Ledger.settle."""
        if self.settled:
            return {}
        self.settled = True
        return self._ledger.settle(self._claim, actual)


def refuse(refused: Refusal, name: str | None = None) -> NoReturn:
    kind, limit, actual, resets_in, overrun = refused
    if kind == "price":
        raise InvalidRequest(
            "budget.cost_usd" if name is None else f"budgets.{name}.usd",
            limit,
            "the price of the model is unknown; declare one on the Model or the tool with price=Price(input=..., "
            "output=...), or drop the limit; list prices are those of a provider's own address",
        )
    raise BudgetExceeded(kind, limit, actual, budget=name, resets_in=resets_in, overrun=overrun)


# ── the policy ───────────────────────────────────────────────────────────────────────────────────────────────────────


def charge_of_failure(error: BaseException, worst: Amount) -> Amount:
    """What a failed call is charged: what it is known to have used, nothing if it was refused, else its worst case."""
    if isinstance(error, ProviderError) and error.usage:
        return Amount(tokens_of(error.usage), None)
    return worst if classify(error).maybe_billed else Amount()


class Reserve:
    """The policy: reserve, call, settle. Exactly one settlement for each reservation, whatever ends the call.

    An attempt that is left behind, because it is deaf to its cancellation, keeps its reservation until it ends.
    """

    def __call__(self, call: Call, next: Next[Any, Any], /) -> Coroutine[Any, Any, Any]:
        ledger = call.ledger
        if ledger is None:
            return next(call)
        return reserved(call, next, ledger) if ledger.elsewhere is None else ledger.elsewhere(call, next)


async def reserved(call: Call, next: Next[Any, Any], ledger: Ledger, held: Reservation | None = None) -> Any:
    """The call, for which something is set aside until it ends, or for longer where it is left behind; by now, where
    `held` says so."""
    worst = call.worst_case
    if held is None:
        held = ledger.reserve(worst)
    left: list[asyncio.Task[Any]] = []
    token = None
    if call.attempt_timeout is not None:  # Else nobody gives the attempt up.
        token = attempt_left_behind.set((call, left.append))
    actual: Amount = worst
    try:
        result = await next(call)
        actual = call.spent(result)
        return result
    except BaseException as error:
        actual = charge_of_failure(error, worst)
        raise
    finally:
        if token is not None:
            attempt_left_behind.reset(token)
        if left:
            left[0].add_done_callback(partial(_settle_late, call, held, worst))
        elif overruns := held.settle(actual):
            tell(call, overruns)


def tell(call: Call, overruns: Mapping[str | None, Overrun]) -> None:
    for name, over in overruns.items():
        call.emit("budget_overrun", {"budget": name, **over._asdict()})


def _settle_late(call: Call, held: Reservation, worst: Amount, task: asyncio.Task[Any]) -> None:
    """An attempt has ended that was left behind. It was sent, so only a usage that is known is less than the worst."""
    actual = worst
    try:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ProviderError) and error.usage:
            actual = charge_of_failure(error, worst)
        elif error is None and not task.cancelled():
            actual = call.spent(task.result())
    finally:
        tell(call, held.settle(actual))
