"""Who holds how much of a shared account, on lease: so that what a crashed instance held does not stay held for ever.

    an instance: an owner, on lease --(renewed with all that it does, and every RENEW seconds)--> ...
                                    --(it crashed, or was away for LEASE)--> what it held lapses

An owner holds sums, not each call: an account is as large as there are instances, whatever the traffic. Whoever is
first to look after a lease has ended lets it lapse; in the store's time, so that no clock but one counts. Who comes
back after his lease has ended is another owner, and what he held before is no longer his to give.

Pure, but for `OwnedCell`, which knows who we are.
"""

from __future__ import annotations

import math
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from steer_llm_sdk.reliability.shared import snapshot
from steer_llm_sdk.reliability.shared.cell import Cell, Step

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.shared.link import Link

V = TypeVar("V")
H = TypeVar("H")

LEASE = 30.0
"""Seconds, in the store's time, after which an instance that says nothing has crashed."""
RENEW = LEASE / 6
_NOTHING = 1e-6
"""Sums of fractions do not always come to 0."""


class Held(NamedTuple):
    """Two sums: calls and tokens, or tokens and trillionths of a dollar."""

    first: float = 0
    second: float = 0

    def plus(self, other: Held) -> Held:
        return Held(self.first + other.first, self.second + other.second)

    def minus(self, other: Held) -> Held:
        return Held(self.first - other.first, self.second - other.second)


class Owner(NamedTuple):
    """`batch` is the number of the last of its changes that the store has made."""

    until: float
    batch: int = 0
    held: Held = Held()


NOBODY = Owner(math.inf)


class Given(NamedTuple):
    """Something that was held is given back, by `owner`; `batch`: where the store may have made this already."""

    owner: str
    what: Any
    held: Held
    batch: int | None = None


class Alone(NamedTuple):
    """What an instance without a store remembers: who it is meanwhile, how many share, what it gave back of what it
    held before, and what it `used` of its own. `before`: what it may have told the store already; it has, if the store
    knows its owner or a later one."""

    owner: str
    sharing: int
    gives: tuple[Given, ...] = ()
    used: Any = None
    before: Alone | None = None

    def times(self) -> list[Alone]:
        """From the first on."""
        return [*([] if self.before is None else self.before.times()), self]


class Owned(NamedTuple, Generic[V]):
    value: V
    owners: Mapping[str, Owner] = {}
    alone: Alone | None = None

    def holding(self, owner: str, held: Held) -> Owned[V]:
        """With so much more in the hands of an owner. The lease of a new one begins when it is `stamped`."""
        known = self.owners.get(owner, NOBODY)
        return self._replace(owners={**self.owners, owner: known._replace(held=known.held.plus(held))})


def instances(owners: Iterable[str]) -> int:
    return len({owner.partition(":")[0] for owner in owners})


def swept(owned: Owned[V], now: float, lapse: Callable[[V, Held, float], V]) -> Owned[V]:
    """Without the owners whose lease is over, and with what becomes of what they held."""
    if all(owner.until > now for owner in owned.owners.values()):
        return owned
    value = owned.value
    for owner in owned.owners.values():
        if owner.until <= now:
            value = lapse(value, owner.held, now)
    return owned._replace(value=value, owners={n: owner for n, owner in owned.owners.items() if owner.until > now})


@dataclass(slots=True)
class Term:
    """We, as an owner. `lapsed`: we were away for longer than our lease, and hold nothing under this name.

    `known`: the store has it.
    """

    name: str
    known: bool = False
    lapsed: bool = False


@dataclass(slots=True)
class Give(Generic[V]):
    """A step that gives something back; `what` says what became of it. `batch`: where the store may have made it."""

    cell: OwnedCell[V]
    term: Term
    what: Any
    held: Held
    batch: int | None = field(default=None)

    def __call__(self, owned: Owned[V], now: float) -> tuple[Owned[V], Any]:
        cell, name, alone = self.cell, self.term.name, owned.alone
        if alone is None:
            owned = swept(owned, now, cell.lapse)
        if self.term.lapsed or (alone is None and name not in owned.owners):
            return cell.late(owned, self.what, self.held, now)
        value, answer = cell.give(owned.value, self.what, self.held, now)
        if alone is not None:
            if name == alone.owner:
                alone = alone._replace(used=cell.used(alone.used, self.what, self.held))
            else:
                alone = alone._replace(gives=(*alone.gives, Given(name, self.what, self.held, self.batch)))
        given = owned.holding(name, Held().minus(self.held))
        return given._replace(value=value, alone=alone), answer


def rejoined(
    stored: Owned[V],
    local: Owned[V],
    ours: Iterable[str],
    now: float,
    *,
    give: Callable[[V, Any, Held, float], tuple[V, Any]],
    release: Callable[[V, Held, float], V],
    owe: Callable[[V, Any, Held, float], V],
) -> Owned[V]:
    """What stands in the store after what happened to one that was alone.

    What it held there and has given back, it gives back there, once; what it held there and the store counts more of,
    was asked for and never had; what it used alone it owes.
    """
    assert local.alone is not None
    value, owners = stored.value, dict(stored.owners)
    times = local.alone.times()
    # They were told in order, and a name that holds nothing any more is dropped when the next one is told.
    known_times = [number for number, alone in enumerate(times) if alone.owner in stored.owners]
    for number, alone in enumerate(times):
        if known_times and number <= known_times[-1]:
            continue
        for given in alone.gives:
            known = owners.get(given.owner)
            if known is None or (given.batch is not None and known.batch >= given.batch):
                continue
            value, _ = give(value, given.what, given.held, now)
            owners[given.owner] = known._replace(held=known.held.minus(given.held))
        held = local.owners.get(alone.owner, NOBODY).held
        for later in times[number + 1 :]:
            for given in later.gives:
                if given.owner == alone.owner:
                    held = held.plus(given.held)
        value = owe(value, alone.used, held, now)
        owners[alone.owner] = Owner(math.inf, 0, held)
    for name in ours:
        if (known := owners.get(name)) is not None:
            truth = local.owners.get(name, NOBODY).held
            value = release(value, known.held.minus(truth), now)
            owners[name] = known._replace(held=truth)
    return Owned(value, owners)


class OwnedCell(Cell[Owned[V]]):
    """An account with owners. `term` is what we take under."""

    told = False

    def __init__(self, link: Link, key: str, value: V) -> None:
        super().__init__(link, key, Owned(value))
        self._instance = uuid.uuid4().hex[:12]
        self._terms: dict[str, Term] = {}
        self._names = 0
        self._batch = 0
        self._renewed = 0.0
        self.term = self._next_term()

    # ── what a kind of account says of itself ────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def encode_value(self, value: V) -> dict[str, Any]: ...

    @abstractmethod
    def decode_value(self, value: Any) -> V: ...

    @abstractmethod
    def give(self, value: V, what: Any, held: Held, now: float) -> tuple[V, Any]:
        """Give back what was held; `what` says what became of it."""

    @abstractmethod
    def late(self, owned: Owned[V], what: Any, held: Held, now: float) -> tuple[Owned[V], Any]:
        """Give back what has lapsed since."""

    @abstractmethod
    def lapse(self, value: V, held: Held, now: float) -> V:
        """What becomes of what a crashed instance held."""

    @abstractmethod
    def release(self, value: V, held: Held, now: float) -> V:
        """Give back what was asked for and never used."""

    @abstractmethod
    def used(self, before: Any, what: Any, held: Held) -> Any:
        """What this instance has used alone, with this."""

    @abstractmethod
    def owe(self, value: V, used: Any, held: Held, now: float) -> V:
        """With what an instance used alone, and what it holds."""

    @abstractmethod
    def share(self, value: V, sharing: int) -> V:
        """What one of so many instances may go on with alone."""

    # ── the cell ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def encode(self, state: Owned[V]) -> str:
        owners = {name: [owner.until, owner.batch, *owner.held] for name, owner in state.owners.items()}
        return snapshot.written({**self.encode_value(state.value), "owners": owners})

    def decode(self, text: str) -> Owned[V]:
        return snapshot.read(text, self._decoded)

    def _decoded(self, value: Any) -> Owned[V]:
        owners = {name: Owner(of[0], of[1], Held(of[2], of[3])) for name, of in value["owners"].items()}
        return Owned(self.decode_value(value), owners)

    def stamped(self, moved: Owned[V], now: float) -> Owned[V]:
        """With our leases renewed, and without the names of ours that hold nothing any more."""
        self._renewed = now
        owners = {}
        for name, owner in moved.owners.items():
            if name not in self._terms:
                owners[name] = owner
            elif name == self.term.name or max(map(abs, owner.held)) > _NOTHING:
                owners[name] = owner._replace(until=now + LEASE, batch=self._batch)
        owners.setdefault(self.term.name, Owner(now + LEASE, self._batch))
        return moved._replace(owners=owners)

    def seen(self, stored: Owned[V]) -> None:
        for name, term in list(self._terms.items()):
            if name in stored.owners:
                term.known = True
            elif term.known:
                term.lapsed = True
                del self._terms[name]
        if self.term.lapsed:
            self.term = self._next_term()

    def begin(self) -> None:
        self._batch += 1

    def unsure(self, steps: list[Step[Owned[V], Any]]) -> None:
        for step in steps:
            if isinstance(step, Give):
                step.batch = self._batch

    def parted(self, state: Owned[V]) -> Owned[V]:
        sharing = max(1, instances({*state.owners, self.term.name}))
        self.term = self._next_term()
        return Owned(self.share(state.value, sharing), state.owners, Alone(self.term.name, sharing))

    def part_again(self) -> None:
        alone = self.state.alone
        assert alone is not None
        self.term = self._next_term()
        self.state = self.state._replace(alone=Alone(self.term.name, alone.sharing, before=alone))

    def rejoined(self, stored: Owned[V], now: float) -> Owned[V]:
        stored = swept(stored, now, self.lapse)
        return rejoined(stored, self.state, list(self._terms), now, give=self.give, release=self.release, owe=self.owe)

    def keep(self) -> None:
        if not self.alone and self.link.now() - self._renewed > RENEW:
            self.submit(self._renew)

    def _renew(self, owned: Owned[V], now: float) -> tuple[Owned[V], None]:
        """A change of its own: `stamped` alone is no reason to write."""
        owned = swept(owned, now, self.lapse)
        known = owned.owners.get(self.term.name, NOBODY)
        return owned._replace(owners={**owned.owners, self.term.name: known._replace(until=now + LEASE)}), None

    def _next_term(self) -> Term:
        self._names += 1
        term = Term(f"{self._instance}:{self._names}")
        self._terms[term.name] = term
        return term
