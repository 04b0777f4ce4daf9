"""The store in memory: for one process, and the reference that the others are compared with."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from steer_llm_sdk.reliability.stores import POLL, Changed, Claim, Store

_new = tuple.__new__  # Makes a named tuple at half the time.


class Claimed(NamedTuple):
    """`until` is the end of the lease. `fingerprint` may be a request that is short enough to be compared itself."""

    fingerprint: str | bytes
    token: int
    ttl: float
    until: float


class Finished(NamedTuple):
    """`until` is the end of the memory."""

    fingerprint: str | bytes
    token: int
    result: bytes
    until: float


class MemoryStore(Store):
    """`max_entries` bounds finished entries, the least recently used going first. Claims are never evicted.

    Any number of event loops and threads may use it: between the look at a key and the claim nobody comes.
    """

    def __init__(self, max_entries: int = 1000, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_entries = max_entries
        self._clock = clock
        # A run that is thrown away with its loop lets go wherever it is collected, be it under the lock.
        self._lock = threading.RLock()
        self._claimed: dict[str, Claimed] = {}
        self._finished: OrderedDict[str, Finished] = OrderedDict()
        self._token = 0
        self._wanted: dict[str, list[float]] = {}
        """By key: until when each of those waits who are on another event loop than the owner."""

    def __repr__(self) -> str:
        return "memory://"

    async def claim(self, key: str, fingerprint: str | bytes, lease: float, ttl: float) -> Claim:
        return self.claim_now(key, fingerprint, lease, ttl)

    async def renew(self, key: str, token: int, lease: float) -> bool:
        with self._lock:
            held, now = self._claimed.get(key), self._clock()
            if held is None or held.token != token or now >= held.until + held.ttl:
                return False
            self._claimed[key] = held._replace(until=now + lease)
            return True

    async def settle(self, key: str, token: int, result: bytes) -> bool:
        return self.settle_now(key, token, result)

    async def release(self, key: str, token: int) -> bool:
        with self._lock:
            held = self._claimed.get(key)
            if held is None or held.token != token or self._clock() >= held.until + held.ttl:
                return False
            del self._claimed[key]
            return True

    @asynccontextmanager
    async def watch(self, key: str, seconds: float) -> AsyncIterator[Changed]:
        until = self._clock() + seconds
        with self._lock:
            self._wanted.setdefault(key, []).append(until)
        try:
            yield lambda most: asyncio.sleep(min(most, POLL))
        finally:
            with self._lock:
                waiting = self._wanted[key]
                waiting.remove(until)
                if not waiting:
                    del self._wanted[key]

    async def wanted(self, key: str, token: int) -> float:
        return self.wanted_now(key, token)

    def wanted_now(self, key: str, token: int) -> float:
        """`wanted`, which has nothing to wait for."""
        with self._lock:
            waiting, held = self._wanted.get(key), self._claimed.get(key)
            if not waiting or held is None or held.token != token:
                return 0.0
            return max(0.0, max(waiting) - self._clock())

    def claim_now(self, key: str, fingerprint: str | bytes, lease: float, ttl: float) -> Claim:
        """`claim`, which has nothing to wait for."""
        clock, claimed = self._clock, self._claimed
        with self._lock:
            now = clock()
            if key in claimed or key in self._finished:
                known = self._known(key, fingerprint, now)
                if known is not None:
                    return known
            self._token = token = self._token + 1
            claimed[key] = _new(Claimed, (fingerprint, token, ttl, now + lease))
            return _new(Claim, ("ours", token, None, 0.0))

    def settle_now(self, key: str, token: int, result: bytes) -> bool:
        """`settle`, which has nothing to wait for."""
        clock, claimed, finished = self._clock, self._claimed, self._finished
        with self._lock:
            held, now = claimed.get(key), clock()
            if held is None:
                return False
            fingerprint, holder, ttl, until = held
            if holder != token or now >= until + ttl:
                return False
            del claimed[key]
            finished[key] = _new(Finished, (fingerprint, token, result, now + ttl))
            if len(finished) > self._max_entries:
                finished.popitem(last=False)
            return True

    def _known(self, key: str, fingerprint: str | bytes, now: float) -> Claim | None:
        """What there is to say of a key to one who claims it; None where he may have it."""
        finished = self._finished.get(key)
        if finished is not None:
            if now < finished.until:
                if finished.fingerprint != fingerprint:
                    return Claim("conflict")
                self._finished.move_to_end(key)
                return Claim("settled", finished.token, finished.result)
            del self._finished[key]
        claimed = self._claimed.get(key)
        # A claim outlives its lease until somebody else takes it, for the fingerprint still guards the key; but not for
        # longer than a result would have been remembered.
        if claimed is None or now >= claimed.until + claimed.ttl:
            return None
        if claimed.fingerprint != fingerprint:
            return Claim("conflict")
        return Claim("theirs", left=claimed.until - now) if now < claimed.until else None


def opened(url: str) -> Store:
    return MemoryStore()
