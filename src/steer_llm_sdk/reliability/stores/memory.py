"""The store in memory: for one process, and the reference that the others are compared with."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from steer_llm_sdk.reliability.stores import Claim, Store

_new = tuple.__new__  # Makes a named tuple at half the time.


class Entry:
    """`until` is the end of the lease while the key is claimed, of the memory once `result` is there."""

    __slots__ = ("fingerprint", "result", "token", "ttl", "until")

    def __init__(self, fingerprint: str, token: int, ttl: float, until: float) -> None:
        self.fingerprint = fingerprint
        self.token = token
        self.ttl = ttl
        self.until = until
        self.result: bytes | None = None


class MemoryStore(Store):
    """`max_entries` bounds finished entries, the least recently used going first. Claims are never evicted.

    Any number of event loops and threads may use it: between the look at a key and the claim nobody comes.
    """

    def __init__(self, max_entries: int = 1000, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_entries = max_entries
        self._clock = clock
        # A run that is thrown away with its loop lets go wherever it is collected, be it under the lock.
        self._lock = threading.RLock()
        self._claimed: dict[str, Entry] = {}
        self._finished: OrderedDict[str, Entry] = OrderedDict()
        self._token = 0

    def __repr__(self) -> str:
        return "memory://"

    async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
        with self._lock:
            now = self._clock()
            if (entry := self._find(key, now)) is not None:
                if entry.fingerprint != fingerprint:
                    return Claim("conflict")
                if entry.result is not None:
                    self._finished.move_to_end(key)
                    return Claim("settled", entry.token, entry.result)
                if now < entry.until:
                    return Claim("theirs", left=entry.until - now)
            self._token = token = self._token + 1
            self._claimed[key] = Entry(fingerprint, token, ttl, now + lease)
            return _new(Claim, ("ours", token, None, 0.0))

    async def renew(self, key: str, token: int, lease: float) -> bool:
        with self._lock:
            entry = self._held(key, token)
            if entry is None:
                return False
            entry.until = self._clock() + lease
            return True

    async def settle(self, key: str, token: int, result: bytes) -> bool:
        with self._lock:
            entry = self._held(key, token)
            if entry is None:
                return False
            del self._claimed[key]
            entry.until, entry.result = self._clock() + entry.ttl, result
            self._finished[key] = entry
            if len(self._finished) > self._max_entries:
                self._finished.popitem(last=False)
            return True

    async def release(self, key: str, token: int) -> bool:
        with self._lock:
            entry = self._held(key, token)
            if entry is None:
                return False
            del self._claimed[key]
            return True

    def _held(self, key: str, token: int) -> Entry | None:
        entry = self._claimed.get(key)
        if entry is None or entry.token != token or self._clock() >= entry.until + entry.ttl:
            return None
        return entry

    def _find(self, key: str, now: float) -> Entry | None:
        finished = self._finished.get(key)
        if finished is not None and now >= finished.until:
            del self._finished[key]
            finished = None
        claimed = self._claimed.get(key)
        # A claim outlives its lease until somebody else takes it, for the fingerprint still guards the key; but not for
        # longer than a result would have been remembered.
        if claimed is not None and now >= claimed.until + claimed.ttl:
            del self._claimed[key]
            claimed = None
        return finished or claimed


def opened(url: str) -> Store:
    return MemoryStore()
