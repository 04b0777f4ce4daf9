"""Sums that several processes add to, in a store, and a copy of them here that is brought up to date."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import ParamSpec, TypeVar

from steer_llm_sdk.errors import InvalidRequest, StoreUnavailable
from steer_llm_sdk.reliability.stores.sums import SumStore, open_sums, total

EVERY = 1.0
"""Seconds between two looks at what the others have added."""
PATIENCE = 1.0
"""Seconds that the store gets to answer; it answers in half a millisecond."""
ALONE = 5.0
"""Seconds after which one that did not answer is asked again."""
_log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


class SharedSums(ABC):
    """What is added here is owed to the store until it is paid; what others added comes with `catch_up`. The totals of
    the store then take the place of what is here, so nothing is counted twice. While the store does not answer, what is
    known here is gone on with. `what` it is that is shared is told by a warning.
    """

    def __init__(self, store: SumStore, space: str, what: str) -> None:
        self._store = store
        self._space = space
        self._what = what
        self._mark = 0
        self._looked: float | None = None
        self._looking = asyncio.Lock()
        self._writing = 0
        self._owed: dict[str, Sequence[float]] = {}
        self._down_until: float | None = None

    @abstractmethod
    def _take(self, key: str, row: Sequence[float]) -> None:
        """Believe a total of the store."""

    def _is_due(self, now: float) -> bool:
        return self._looked is None or now - self._looked >= EVERY

    async def catch_up(self, now: float, at_once: bool = False) -> None:
        if not at_once and not self._is_due(now):
            return
        async with self._looking:
            self._looked = now
            if self._writing and not at_once:
                self._looked = None  # A total that lacks what is being written would undo it here for a moment.
                return
            try:
                if self._owed:
                    await self._pay()
                self._mark, rows = await self._answered(self._store.since, self._space, self._mark)
            except StoreUnavailable:
                return
            for key, row in rows.items():
                self._take(key, row)

    async def _answered(self, ask: Callable[P, Awaitable[R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """What the store says; StoreUnavailable at once for a while after it said nothing."""
        if self._down_until is not None and time.monotonic() < self._down_until:
            raise StoreUnavailable(f"the store of {self._what} did not answer a moment ago")
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await ask(*args, **kwargs)
        except (StoreUnavailable, TimeoutError) as error:
            if self._down_until is None:
                _log.warning("%s is not shared: %s", self._what, str(error) or "its store does not answer")
            self._down_until = time.monotonic() + ALONE
            if isinstance(error, StoreUnavailable):
                raise
            raise StoreUnavailable(f"the store of {self._what} did not answer within {PATIENCE:g} s") from None
        self._down_until = None
        return answer

    def _owe(self, key: str, more: Sequence[float]) -> None:
        self._owed[key] = total(self._owed.get(key), more)

    async def _pay(self) -> None:
        owed, self._owed = self._owed, {}
        self._writing += 1
        try:
            await self._answered(self._store.add, self._space, owed)
        except BaseException:
            # Whether it was written nobody knows. Told twice a run counts double; a budget errs on the safe side.
            for key, more in owed.items():
                self._owe(key, more)
            raise
        finally:
            self._writing -= 1

    async def aclose(self) -> None:
        with suppress(StoreUnavailable):
            if self._owed:
                await self._pay()
        await self._store.aclose()


def sums_at(given: SumStore | str) -> SumStore:
    if isinstance(given, str):
        return open_sums(given)
    if not hasattr(given, "add_within"):
        raise InvalidRequest("store", given, "give the URL of the store, or a SumStore such as open_sums(url)")
    return given
