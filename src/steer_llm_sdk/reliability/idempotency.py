"""Idempotency: one key, one piece of work, however many callers; the work belongs to the key and not to a caller."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Awaitable, Coroutine
from functools import cached_property
from hashlib import sha256
from typing import Any, Generic, TypeVar, cast

from steer_llm_sdk.errors import BudgetExceeded, ConflictError, InFlight, OrchestratorError, StoreUnavailable
from steer_llm_sdk.reliability.deadline import (
    GRACE,
    Deadline,
    a_turn_is_due,
    has_answered,
    new_task,
    stop,
    too_late,
    turn,
    wake,
    watch,
    woken_by,
)
from steer_llm_sdk.reliability.stores import POLL, Claim, Store, open_store
from steer_llm_sdk.reliability.stores.memory import MemoryStore

R = TypeVar("R")
_log = logging.getLogger(__name__)

LEASE = 20.0
"""Seconds for which a key is held without a sign of life from its owner."""
PATIENCE = 2.0
"""Seconds that a store gets to answer, before it counts as down."""
AGAIN = 0.5
"""Seconds between two tries to write a result."""
ASK_AGAIN = 1.0
"""Seconds after which one who was told not to wait should ask again, at most."""
_behind: set[asyncio.Future[Any]] = set()
"""What goes on behind the back of callers who have their result, or have left."""


class IdempotencyManager:
    """Remembers finished runs for `ttl_seconds`; in memory, at most `max_entries` of them, or in `store`: a URL or what
    `open_store` made of it. A store that was opened here is closed by `aclose`.

    `get` and `store` are for callers who keep results of their own. A subclass with only these two is used as a plain
    cache of finished runs: without leases, so two processes may do the same work.
    """

    # What __init__ does not set is made when it is first used: a subclass with only `get` and `store` may have an
    # __init__ of its own that knows nothing of this one.
    ttl_seconds: float = 900
    max_entries: int = 1000
    _store: Store | None = None
    _opened = False

    def __init__(self, ttl_seconds: float = 900, max_entries: int = 1000, *, store: Store | str | None = None) -> None:
        if not ttl_seconds > 0:
            raise ValueError(f"ttl_seconds: {ttl_seconds!r} cannot be used; give a positive number of seconds")
        if max_entries < 1:
            raise ValueError(f"max_entries: {max_entries!r} cannot be used; give a whole number from 1")
        if store is not None and self._is_plain_cache():
            raise ValueError(f"store: {type(self).__name__} keeps results with its own get and store; leave it out")
        self.ttl_seconds = ttl_seconds
        self.max_entries = max_entries
        if not isinstance(store, (str, Store, type(None))):
            raise TypeError(f"store: expected a URL or a Store, got {type(store).__name__}")
        self._opened = isinstance(store, str)
        self._store = open_store(store) if isinstance(store, str) else store
        self.hangar = self._hangar()  # At once: two threads at their first runs would make one each.

    @cached_property
    def hangar(self) -> Hangar:
        return self._hangar()

    def _hangar(self) -> Hangar:
        if self._is_plain_cache():
            return Hangar(_PlainCache(self))
        return Hangar(MemoryStore(self.max_entries) if self._store is None else self._store)

    @property
    def claims(self) -> Store:
        return self.hangar.store

    @property
    def in_memory(self) -> bool:
        """No store was given: what is remembered is gone with this process."""
        return self._store is None

    @cached_property
    def _kept(self) -> OrderedDict[str, tuple[float, Any]]:
        return OrderedDict()

    async def get(self, key: str) -> Any:
        """The value kept under `key`, or None."""
        found = self._kept.get(key)
        if found is None:
            return None
        if time.monotonic() >= found[0]:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return found[1]

    async def store(self, key: str, value: Any) -> None:
        self._kept[key] = (time.monotonic() + self.ttl_seconds, value)
        self._kept.move_to_end(key)
        while len(self._kept) > self.max_entries:
            self._kept.popitem(last=False)

    async def aclose(self) -> None:
        """Stop work that no caller here waits for, let what is being written be written, and close the store."""
        here = asyncio.get_running_loop()
        for flight in list(self.hangar.flights.values()):
            if not flight.callers and flight.task.get_loop() is here:
                flight.closing = True
                await stop(flight.task)
        behind = [task for task in _behind if task.get_loop() is here]
        if behind:
            await asyncio.wait(behind, timeout=PATIENCE)
        if self._opened and self._store is not None:
            await self._store.aclose()

    def _is_plain_cache(self) -> bool:
        return type(self).get is not IdempotencyManager.get


class _PlainCache(Store):
    """Somebody's `get` and `store` as a store: every claim is ours unless there is a result."""

    def __init__(self, manager: IdempotencyManager) -> None:
        self._manager = manager
        self._fingerprints: dict[str, str] = {}

    def __repr__(self) -> str:
        return repr(self._manager)

    async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
        kept = await self._manager.get(key)
        if kept is None:
            self._fingerprints[key] = fingerprint
            return Claim("ours")
        if kept["fingerprint"] != fingerprint:
            return Claim("conflict")
        return Claim("settled", result=kept["output"].encode())

    async def renew(self, key: str, token: int, lease: float) -> bool:
        return True

    async def settle(self, key: str, token: int, result: bytes) -> bool:
        await self._manager.store(key, {"fingerprint": self._fingerprints.pop(key), "output": result.decode()})
        return True

    async def release(self, key: str, token: int) -> bool:
        self._fingerprints.pop(key, None)
        return True


class Work(ABC, Generic[R]):
    """A keyed piece of work; `name` is the key as the caller knows it, `mark` what tells it from other work with that
    key: a fingerprint, or what one is made of.
    """

    __slots__ = ("key", "mark", "name")
    key: str
    name: str
    mark: str | bytes

    @property
    def terms(self) -> Any:
        """The caller's own limits on the work, a budget."""
        return None

    @property
    def run_unprotected(self) -> bool:
        """It is done although the store is down."""
        return False

    @property
    def wait(self) -> bool:
        """False: InFlight where somebody does it already."""
        return True

    @property
    def fingerprint(self) -> str:
        """`mark` as a store may keep it, which nothing can be read out of."""
        mark = self.mark
        return mark if isinstance(mark, str) else sha256(mark).hexdigest()

    @abstractmethod
    def run(self, deadline: Deadline) -> Coroutine[Any, Any, R]:
        """Do it. The deadline is shared by all waiting callers; it moves when one joins."""

    @abstractmethod
    def dump(self, result: R) -> bytes | None:
        """The bytes to remember, or None where the result is not to be remembered."""

    @abstractmethod
    def load(self, kept: bytes) -> R:
        """What `dump` gave, read back."""

    @abstractmethod
    def copy(self, result: R) -> R:
        """A result of his own for one who joined."""

    def note(self, what: str, why: str, result: R | None) -> None:
        """Told, and then with the result once more, what the store did not do: that the run is "unprotected", or its
        result "not_remembered"."""


class Hangar:
    """What is under way for one manager, the store that has its keys, and what keeps their leases."""

    __slots__ = ("flights", "heart", "store")

    def __init__(self, store: Store) -> None:
        self.store = store
        self.flights: dict[str, Flight[Any]] = {}
        self.heart = Heart(store)


class Flight(Generic[R]):
    """Work under way and the callers who wait for it: how many, and those among them who have gone to sleep.

    `apart` is a copy of the result, made before any of several callers has the result to write in. `holds`: the key is
    ours, under `token`.
    """

    __slots__ = (
        "apart",
        "callers",
        "closing",
        "deadline",
        "holds",
        "loop",
        "task",
        "token",
        "waiting",
        "work",
    )
    task: asyncio.Task[R]
    token: int

    def __init__(self, work: Work[R], deadline: Deadline, loop: asyncio.AbstractEventLoop) -> None:
        self.work = work
        self.loop = loop
        self.deadline = deadline
        self.callers = 0
        self.waiting: list[asyncio.Future[None]] = []
        self.closing = False
        self.holds = False
        self.apart: R | None = None

    async def left(self, store: Store) -> None:
        """The last caller here is gone. The work goes on while callers elsewhere wait for it: on another event loop, or
        in another process."""
        if not self.holds or (type(store) is MemoryStore and not store.wanted_now(self.work.key, self.token)):
            self.closing = True  # Nobody may join work that is being cancelled.
            await stop(self.task)
        else:
            await watch(_go_on_behind(self._serve_others(store)), self.task.get_loop().time() + GRACE)

    async def _serve_others(self, store: Store) -> None:
        task, loop = self.task, self.task.get_loop()
        while not (self.callers or task.done()):
            seconds = await _patiently(store.wanted(self.work.key, self.token), 0.0)
            if self.callers or task.done():
                return
            if seconds <= 0:
                self.closing = True
                await stop(task)
                return
            until = loop.time() + seconds
            self.deadline.at = max(self.deadline.at, until)
            # In memory it is known who has left before his time; other stores keep the latest time that was said.
            await watch(task, min(until, loop.time() + POLL) if type(store) is MemoryStore else until)


def _go_on_behind(work: Awaitable[R]) -> asyncio.Future[R]:
    task = asyncio.ensure_future(work)
    _behind.add(task)
    task.add_done_callback(_behind.discard)
    return task


async def once(manager: IdempotencyManager, work: Work[R], deadline: Deadline | None) -> R:
    """Do the work, or join those who do it, or return what it came to. Late if `deadline` comes first.

    Work that is begun here has `deadline` from then on, and moves it when a caller with more time joins.
    """
    loop, flights = asyncio.get_running_loop(), manager.hangar.flights
    at = math.inf if deadline is None else deadline.at
    while True:
        flight: Flight[R] | None = flights.get(work.key)
        leads = flight is None or flight.closing or flight.loop is not loop or flight.task.done()
        if flight is None or leads:
            # If there is one, it ends or runs on another loop: the store tells what becomes of it. One that is done and
            # still there was cancelled before its first step.
            flight = _begin(manager, work, deadline, loop)
        elif flight.work.mark != work.mark:
            raise ConflictError(work.name)
        elif not work.wait:
            raise InFlight(work.name, ASK_AGAIN)
        elif at > flight.deadline.at:
            flight.deadline.at = at
        task = flight.task
        if in_time := task.done():
            if a_turn_is_due(loop, task):
                await turn()
        else:
            flight.callers += 1
            try:
                await turn()
                if not task.done():  # Work that never waits needs no timer.
                    await woken_by(loop, at, flight.waiting)
                in_time = task.done()
            finally:
                flight.callers -= 1
                if not flight.callers and not in_time:
                    await flight.left(manager.hangar.store)
        if not in_time:
            raise too_late(task)
        if leads:
            return task.result()
        try:
            result = task.result()
        except BudgetExceeded:
            if flight.work.terms == work.terms:
                raise
        else:
            return work.copy(result if flight.apart is None else flight.apart)


def _begin(
    manager: IdempotencyManager, work: Work[R], deadline: Deadline | None, loop: asyncio.AbstractEventLoop
) -> Flight[R]:
    if deadline is None:
        deadline = Deadline(math.inf, math.inf, False)
    else:
        deadline.firm = False
    flight: Flight[R] = Flight(work, deadline, loop)
    flight.task = task = new_task(loop, _fly(manager, work, flight))
    if not task.done():  # It is, for work that never waits where a task takes its first step at once.
        manager.hangar.flights[work.key] = flight
    return flight


async def _fly(manager: IdempotencyManager, work: Work[R], flight: Flight[R]) -> R:
    """The claim; the work, with the key kept alive meanwhile, and settled or given back at the end; and word to all who
    wait."""
    hangar = manager.hangar
    store = hangar.store
    memory = store if type(store) is MemoryStore else None
    held = False
    if not hasattr(flight, "task"):  # Its first step is taken at once; who wants the key in that step is to find it.
        flight.task = cast("asyncio.Task[R]", asyncio.current_task())
        hangar.flights[work.key] = flight
    try:
        try:
            if memory is not None:
                claim = memory.claim_now(work.key, work.mark, LEASE, manager.ttl_seconds)
            else:
                claim = await _claimed(manager, work)
            if claim.kind != "ours":
                claim = await _waited_for(claim, manager, work, flight)
        except StoreUnavailable as error:
            result = await _without_store(work, flight, error)
        else:
            if claim.kind != "ours":
                assert claim.result is not None
                result = work.load(claim.result)
            else:
                flight.token = token = claim.token
                held = flight.holds = True
                hangar.heart.keep(flight)
                result = await work.run(flight.deadline)
                kept = _kept(work, result)
                if kept is not None:
                    held = False
                    if memory is not None:
                        settled: bool | None = memory.settle_now(work.key, token, kept)
                    else:
                        settled = await _settled(store, work.key, token, kept, flight.deadline)
                    if settled is None:
                        work.note("not_remembered", _UNTAKEN.format(store), result)
                    elif not settled:
                        result = await _too_late(manager, work, flight, result, kept)
        if flight.callers > 1:
            flight.apart = work.copy(result)
        return result
    finally:
        flight.holds = False
        hangar.heart.let_go(flight)
        try:
            if held:
                releasing = store.release(work.key, flight.token)
                await (_patiently(releasing, False) if memory is None else releasing)
        finally:
            if hangar.flights.get(work.key) is flight:
                # Another thread may have put its own there, and taken it out, since we looked.
                hangar.flights.pop(work.key, None)
            # A turn of the loop earlier than callbacks of the task would.
            for woken in flight.waiting:
                wake(woken)


async def look(manager: IdempotencyManager, work: Work[Any]) -> Claim:
    """What the key is to this work, before anybody begins it: "ours" says that nobody has it. Raises StoreUnavailable,
    unless the work is done without a store then. A store can only be asked for the key itself: it gets it back."""
    flight = manager.hangar.flights.get(work.key)
    if flight is not None and not flight.task.done():
        return Claim("theirs" if flight.work.mark == work.mark else "conflict")
    try:
        claim = await _claimed(manager, work)
    except StoreUnavailable:
        if work.run_unprotected:
            return Claim("ours")
        raise
    if claim.kind == "ours":
        await _go_on_behind(_quietly(manager.claims.release(work.key, claim.token)))
    return claim


async def _waited_for(claim: Claim, manager: IdempotencyManager, work: Work[R], flight: Flight[R]) -> Claim:
    """The key, or what it was settled with, after a wait where somebody else has it."""
    store = manager.claims
    while claim.kind == "theirs":
        if not work.wait:
            raise InFlight(work.name, min(ASK_AGAIN, max(claim.left, GRACE)))
        # Announced anew each time: the key may have another owner, and our flight a later deadline.
        seconds = max(0.0, flight.deadline.at - asyncio.get_running_loop().time())
        async with store.watch(work.key, seconds) as changed:
            claim = await _claimed(manager, work)
            if claim.kind == "theirs":
                await changed(max(claim.left, GRACE))
    if claim.kind == "conflict":
        raise ConflictError(work.name)
    return claim


async def _claimed(manager: IdempotencyManager, work: Work[R]) -> Claim:
    """Raises StoreUnavailable also where the store says nothing, or what nobody knows."""
    store = manager.claims
    # Not awaited itself: a claim that is given up may have been granted, and is then given back.
    ttl = manager.ttl_seconds
    # What stays in this process may be the request itself; what leaves it is a fingerprint.
    asking = _go_on_behind(
        store.claim(work.key, work.mark, LEASE, ttl)
        if type(store) is MemoryStore
        else store.claim(work.key, work.fingerprint, LEASE, ttl)
    )
    try:
        await watch(asking, asking.get_loop().time() + PATIENCE)
        if asking.done():
            return _answer_of(asking, store)
        raise StoreUnavailable(f"{store!r} did not answer within {PATIENCE:g} s")
    except BaseException:
        if type(store) is _PlainCache:
            asking.cancel()
        asking.add_done_callback(lambda asked: _give_back(store, work.key, asked))
        raise


def _answer_of(asked: asyncio.Future[Claim], store: Store) -> Claim:
    try:
        return asked.result()
    except OrchestratorError:
        raise
    except Exception as error:
        raise StoreUnavailable(f"{store!r} did not answer: {type(error).__name__}") from error


def _give_back(store: Store, key: str, asked: asyncio.Future[Claim]) -> None:
    if not asked.cancelled() and asked.exception() is None and asked.result().kind == "ours":
        _go_on_behind(_quietly(store.release(key, asked.result().token)))


async def _without_store(work: Work[R], flight: Flight[R], error: StoreUnavailable) -> R:
    if not work.run_unprotected:
        raise StoreUnavailable(
            f'The run was not started: {error}; on_store_down="run_unprotected" starts it all the same'
        ) from (error.__cause__ or error)
    _log.warning("the run is unprotected: %s", error)
    work.note("unprotected", str(error), None)
    result = await work.run(flight.deadline)
    work.note("unprotected", str(error), result)
    return result


_UNTAKEN = "{!r} did not take the result in time; it is tried for a while yet"


async def _too_late(manager: IdempotencyManager, work: Work[R], flight: Flight[R], result: R, kept: bytes) -> R:
    """The key was taken from us while we worked, or our result was written and the answer lost: all who ask for the key
    get the one result that stands, our caller too."""
    token = flight.token
    try:
        claim = await _waited_for(await _claimed(manager, work), manager, work, flight)
        if claim.kind == "settled":
            assert claim.result is not None
            if claim.token == token:
                return result
            _log.warning("key %r was taken over meanwhile: its caller gets the result of the other run", work.name)
            return work.load(claim.result)
        flight.token = claim.token
        if await _settled(manager.claims, work.key, flight.token, kept, flight.deadline):
            return result
        why = _UNTAKEN.format(manager.claims)
    except asyncio.CancelledError:
        return result  # It is late, and was paid for.
    except OrchestratorError as error:
        why = str(error)
    work.note("not_remembered", why, result)
    return result


def _kept(work: Work[R], result: R) -> bytes | None:
    """What is to be remembered. A result that cannot be was still paid for, and the caller gets it."""
    try:
        return work.dump(result)
    except ValueError as error:
        _log.warning("a result cannot be remembered: %s", error)
        return None


async def _settled(store: Store, key: str, token: int, kept: bytes, deadline: Deadline) -> bool | None:
    """False: the token is stale. None: nobody knows yet. A store that is slow, or comes back, is written to when the
    caller has his result, which he gets in time."""
    first: asyncio.Future[bool] = _go_on_behind(store.settle(key, token, kept))
    end = min(first.get_loop().time() + PATIENCE, deadline.at - GRACE)
    try:
        await watch(first, end)
    except asyncio.CancelledError:
        _go_on_behind(_written(first, store, key, token, kept))
        raise
    if has_answered(first):
        return first.result()
    again = _go_on_behind(_written(first, store, key, token, kept))
    await watch(again, end)
    return again.result() if again.done() else None


async def _written(first: Awaitable[bool], store: Store, key: str, token: int, kept: bytes) -> bool | None:
    """As long as the lease may last, for a result is not paid for twice because its store was started anew."""
    loop = asyncio.get_running_loop()
    end = loop.time() + LEASE
    writing = first
    while True:
        try:
            return await writing
        except Exception as error:
            _log.warning("a result could not be written: %r", error)
            if loop.time() + AGAIN > end:
                return None
        await asyncio.sleep(AGAIN)
        writing = store.settle(key, token, kept)


async def _patiently(action: Awaitable[R], otherwise: R) -> R:
    try:
        async with asyncio.timeout(PATIENCE):
            return await action
    except Exception as error:
        _log.warning("the store of idempotency keys did not answer: %r", error)
        return otherwise


async def _quietly(action: Awaitable[bool]) -> bool:
    try:
        return await action
    except Exception as error:
        _log.warning("the store of idempotency keys did not answer: %r", error)
        return False


class Heart:
    """Renews the leases of all claims of a manager at a third of their length. One timer, and none without claims."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._flights: set[Flight[Any]] = set()
        self._timers: dict[asyncio.AbstractEventLoop, asyncio.TimerHandle] = {}
        self._beats: set[asyncio.Task[bool]] = set()

    def keep(self, flight: Flight[Any]) -> None:
        loop = flight.loop
        self._flights.add(flight)
        if loop not in self._timers:
            self._timers = {other: timer for other, timer in list(self._timers.items()) if not other.is_closed()}
            self._timers[loop] = loop.call_later(LEASE / 3, self._renew, loop)

    def let_go(self, flight: Flight[Any]) -> None:
        self._flights.discard(flight)

    def _renew(self, loop: asyncio.AbstractEventLoop) -> None:
        mine = [flight for flight in list(self._flights) if flight.loop is loop]
        if not mine:
            self._timers.pop(loop, None)
            return
        self._timers[loop] = loop.call_later(LEASE / 3, self._renew, loop)
        for flight in mine:
            beat = loop.create_task(_quietly(self._store.renew(flight.work.key, flight.token, LEASE)))
            self._beats.add(beat)
            beat.add_done_callback(self._beats.discard)
