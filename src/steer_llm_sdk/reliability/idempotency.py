"""Idempotency: one key, one piece of work, however many callers; the work belongs to the key and not to a caller."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from steer_llm_sdk.errors import BudgetExceeded, ConflictError, StoreUnavailable
from steer_llm_sdk.reliability.deadline import GRACE, Deadline, Late, stop, wake, watch
from steer_llm_sdk.reliability.stores import POLL, Claim, IdempotencyStore
from steer_llm_sdk.reliability.stores.memory import MemoryStore

R = TypeVar("R")
_log = logging.getLogger(__name__)

LEASE = 20.0
"""Seconds for which a key is held without a sign of life from its owner."""
PATIENCE = 2.0
"""Seconds that a store gets to answer, before it counts as down."""
_writing: set[asyncio.Task[bool]] = set()


class IdempotencyManager:
    """Remembers finished runs for `ttl_seconds`, at most `max_entries` of them.

    `get` and `store` are for callers who keep results of their own. A subclass with only these two is used as a plain
    cache of finished runs: without leases, so two processes may do the same work.
    """

    # What __init__ does not set is made when it is first used: a subclass with only `get` and `store` may have an
    # __init__ of its own that knows nothing of this one.
    ttl_seconds: float = 900
    max_entries: int = 1000

    def __init__(self, ttl_seconds: float = 900, max_entries: int = 1000) -> None:
        if not ttl_seconds > 0:
            raise ValueError(f"ttl_seconds: {ttl_seconds!r} cannot be used; give a positive number of seconds")
        if max_entries < 1:
            raise ValueError(f"max_entries: {max_entries!r} cannot be used; give a whole number from 1")
        self.ttl_seconds = ttl_seconds
        self.max_entries = max_entries

    @cached_property
    def flights(self) -> dict[str, Flight[Any]]:
        return {}

    @cached_property
    def claims(self) -> IdempotencyStore:
        return _PlainCache(self) if self._is_plain_cache() else MemoryStore(self.max_entries)

    @cached_property
    def heart(self) -> Heart:
        return Heart(self.claims)

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

    def _is_plain_cache(self) -> bool:
        return type(self).get is not IdempotencyManager.get


class _PlainCache:
    """Somebody's `get` and `store` as a store: every claim is ours unless there is a result."""

    def __init__(self, manager: IdempotencyManager) -> None:
        self._manager = manager
        self._fingerprints: dict[str, str] = {}

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


@dataclass(slots=True)
class Work(Generic[R]):
    """A keyed piece of work; `name` is the key as the caller knows it.

    `run` gets the deadline that all waiting callers share; it moves when one joins.
    `dump` gives the bytes to remember, or None where the result is not to be remembered; `load` reads them back;
    `copy` makes the one who joins a result of his own. `terms` are the caller's own limits on the work, a budget.
    """

    key: str
    name: str
    fingerprint: str
    run: Callable[[Deadline], Coroutine[Any, Any, R]]
    dump: Callable[[R], bytes | None]
    load: Callable[[bytes], R]
    copy: Callable[[R], R]
    terms: Any = None
    run_unprotected: bool = False


class Flight(Generic[R]):
    """Work under way and the callers who wait for it.

    `apart` is a copy of the result, made before any of several callers has the result to write in.
    """

    def __init__(self, fingerprint: str, terms: Any, deadline: Deadline) -> None:
        self.fingerprint = fingerprint
        self.terms = terms
        self.deadline = deadline
        self.callers: list[asyncio.Future[None]] = []
        self.closing = False
        self.task: asyncio.Task[R]
        self.apart: R | None = None

    async def wait(self, deadline: Deadline | None) -> R:
        """Wait for the work until `deadline`, then Late. The last to leave takes the work along."""
        task = self.task
        in_time = task.done()
        if not in_time:
            loop = task.get_loop()
            woken: asyncio.Future[None] = loop.create_future()
            self.callers.append(woken)
            at = math.inf if deadline is None else deadline.at
            if at > self.deadline.at:
                self.deadline.at = at
            timer = None if deadline is None else loop.call_at(at, wake, woken)
            try:
                await woken
                in_time = task.done()
            finally:
                if timer is not None:
                    timer.cancel()
                self.callers.remove(woken)
                if not self.callers and not task.done():
                    self.closing = True  # Nobody may join work that is being cancelled.
                    await stop(task)
        if in_time:
            return task.result()
        finished = task.done() and not task.cancelled() and task.exception() is None
        raise Late(True, task.result()) if finished else Late


async def once(manager: IdempotencyManager, work: Work[R], deadline: Deadline | None) -> R:
    """Do the work, or join those who do it, or return what it came to. Late if `deadline` comes first."""
    while True:
        flight: Flight[R] | None = manager.flights.get(work.key)
        if flight is None or flight.closing or flight.task.get_loop() is not asyncio.get_running_loop():
            # If there is one, it ends or runs on another loop: the store tells what becomes of it.
            return await _begin(manager, work, deadline).wait(deadline)
        if flight.fingerprint != work.fingerprint:
            raise ConflictError(work.name)
        try:
            result = await flight.wait(deadline)
        except BudgetExceeded:
            if flight.terms == work.terms:
                raise
        else:
            return work.copy(result if flight.apart is None else flight.apart)


def _begin(manager: IdempotencyManager, work: Work[R], deadline: Deadline | None) -> Flight[R]:
    at, limit_ms = (math.inf, math.inf) if deadline is None else (deadline.at, deadline.limit_ms)
    flight: Flight[R] = Flight(work.fingerprint, work.terms, Deadline(at, limit_ms, firm=False))
    flight.task = asyncio.get_running_loop().create_task(_fly(manager, work, flight))
    if not flight.task.done():  # It is, for work of no time in a loop with an eager task factory.
        manager.flights[work.key] = flight
    return flight


async def _fly(manager: IdempotencyManager, work: Work[R], flight: Flight[R]) -> R:
    try:
        result = await _lead(manager, work, flight)
        if len(flight.callers) > 1:
            flight.apart = work.copy(result)
        return result
    finally:
        if manager.flights.get(work.key) is flight:
            del manager.flights[work.key]
        # A turn of the loop earlier than callbacks of the task would.
        for woken in flight.callers:
            wake(woken)


async def _lead(manager: IdempotencyManager, work: Work[R], flight: Flight[R]) -> R:
    store = manager.claims
    while True:
        try:
            claim = await _in_patience(store, store.claim(work.key, work.fingerprint, LEASE, manager.ttl_seconds))
        except Exception as error:
            return await _without_store(work, flight, error)
        if claim.kind == "conflict":
            raise ConflictError(work.name)
        if claim.kind == "settled":
            assert claim.result is not None
            return work.load(claim.result)
        if claim.kind == "ours":
            return await _own(manager, claim.token, work, flight)
        await asyncio.sleep(POLL)


async def _without_store(work: Work[R], flight: Flight[R], error: Exception) -> R:
    if not work.run_unprotected:
        raise StoreUnavailable(
            f"The store of idempotency keys did not answer ({type(error).__name__}), so the run was not started; "
            'on_store_down="run_unprotected" starts it all the same'
        ) from error
    _log.warning("the store of idempotency keys did not answer (%s): the run is unprotected", type(error).__name__)
    return await work.run(flight.deadline)


async def _own(manager: IdempotencyManager, token: int, work: Work[R], flight: Flight[R]) -> R:
    """Run the work with the key in hand: kept alive meanwhile, settled or given back at the end."""
    store, heart = manager.claims, manager.heart
    heart.keep(work.key, token)
    remembered = False
    try:
        result = await work.run(flight.deadline)
        kept = _kept(work, result)
        if kept is not None:
            remembered = await _settle(store, work.key, token, kept, flight.deadline)
        return result
    finally:
        heart.let_go(work.key, token)
        if not remembered:
            await _quietly(_in_patience(store, store.release(work.key, token)))


def _kept(work: Work[R], result: R) -> bytes | None:
    """What is to be remembered. A result that cannot be was still paid for, and the caller gets it."""
    try:
        return work.dump(result)
    except ValueError as error:
        _log.warning("a result cannot be remembered: %s", error)
        return None


async def _settle(store: IdempotencyStore, key: str, token: int, kept: bytes, deadline: Deadline) -> bool:
    """A store that is slow to write goes on writing when the caller has his result, which he gets in time."""
    if isinstance(store, MemoryStore):
        return await store.settle(key, token, kept)
    task = asyncio.ensure_future(_quietly(store.settle(key, token, kept)))
    await watch(task, min(task.get_loop().time() + PATIENCE, deadline.at - GRACE))
    if task.done():
        return task.result()
    _writing.add(task)
    task.add_done_callback(_writing.discard)
    return True


async def _in_patience(store: IdempotencyStore, action: Awaitable[R]) -> R:
    """The memory store answers at once; any other gets PATIENCE and is then as good as down."""
    if isinstance(store, MemoryStore):
        return await action
    async with asyncio.timeout(PATIENCE):
        return await action


async def _quietly(action: Awaitable[bool]) -> bool:
    try:
        return await action
    except Exception as error:
        _log.warning("the store of idempotency keys did not answer: %r", error)
        return False


class Heart:
    """Renews the leases of all claims of a manager at a third of their length. One timer, and none without claims."""

    def __init__(self, store: IdempotencyStore) -> None:
        self._store = store
        self._claims: dict[tuple[str, int], asyncio.AbstractEventLoop] = {}
        self._timers: dict[asyncio.AbstractEventLoop, asyncio.TimerHandle] = {}
        self._beats: set[asyncio.Task[bool]] = set()

    def keep(self, key: str, token: int) -> None:
        loop = asyncio.get_running_loop()
        self._claims[key, token] = loop
        if loop not in self._timers:
            self._timers = {other: timer for other, timer in list(self._timers.items()) if not other.is_closed()}
            self._timers[loop] = loop.call_later(LEASE / 3, self._renew, loop)

    def let_go(self, key: str, token: int) -> None:
        self._claims.pop((key, token), None)

    def _renew(self, loop: asyncio.AbstractEventLoop) -> None:
        mine = [claim for claim, owner in list(self._claims.items()) if owner is loop]
        if not mine:
            self._timers.pop(loop, None)
            return
        self._timers[loop] = loop.call_later(LEASE / 3, self._renew, loop)
        for key, token in mine:
            beat = loop.create_task(_quietly(self._store.renew(key, token, LEASE)))
            self._beats.add(beat)
            beat.add_done_callback(self._beats.discard)
