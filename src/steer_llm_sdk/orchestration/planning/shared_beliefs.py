"""What several processes learned, as one: sums in a store, and a copy of them here that is brought up to date."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import ParamSpec, TypeVar

from steer_llm_sdk.errors import StoreUnavailable
from steer_llm_sdk.orchestration.planning.beliefs import NO_COSTS, Beliefs, Line, Seen
from steer_llm_sdk.reliability.stores.sums import SumStore, total

EVERY = 1.0
"""Seconds between two looks at what the others have added."""
REMEMBERED = 7 * 86_400.0
"""Seconds that a decision may wait for its feedback."""
PATIENCE = 1.0
"""Seconds that the store gets to answer; it answers in half a millisecond."""
ALONE = 5.0
"""Seconds after which one that did not answer is asked again."""
_BUDGET = "budget"
_log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


class SharedBeliefs:
    """Writes go to the store and are believed here at once; what others wrote comes with `catch_up`. The totals of the
    store then take the place of what is here, so nothing is counted twice.

    While the store does not answer, planning goes on with what is known here, and what is learned is owed to it. Only
    a shared budget is not spent without it.
    """

    def __init__(self, store: SumStore, space: str, beliefs: Beliefs) -> None:
        self._store = store
        self._space = space
        self._beliefs = beliefs
        self._mark = 0
        self._looked: float | None = None
        self._looking = asyncio.Lock()
        self._writing = 0
        self._owed: dict[str, Sequence[float]] = {}
        self._down_until: float | None = None
        self.used = 0.0
        """USD of the shared budget that are spent or reserved, when it was last looked at."""

    async def catch_up(self, now: float, at_once: bool = False) -> None:
        if self._looked is not None and not at_once and now - self._looked < EVERY:
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
            raise StoreUnavailable("the store of what is learned did not answer a moment ago")
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await ask(*args, **kwargs)
        except (StoreUnavailable, TimeoutError) as error:
            if self._down_until is None:
                _log.warning("what is learned is not shared: %s", str(error) or "its store does not answer")
            self._down_until = time.monotonic() + ALONE
            if isinstance(error, StoreUnavailable):
                raise
            raise StoreUnavailable(f"the store of what is learned did not answer within {PATIENCE:g} s") from None
        self._down_until = None
        return answer

    def _take(self, key: str, row: Sequence[float]) -> None:
        kind, _, rest = key.partition("\x1f")
        beliefs = self._beliefs
        if kind == "cell":
            task, _, arm = rest.rpartition("\x1f")
            # Two that forgot the same at once took it away twice: there is less than nothing to know.
            beliefs.replace((task, arm), Seen(*row) if row[0] >= 0 else Seen())
        elif kind == "line":
            beliefs.lines[rest] = Line(*row) if row[0] > 0 else NO_COSTS
        elif kind == _BUDGET:
            self.used = row[0]

    async def add(self, cell: tuple[str, str], arm: str, more: Seen, line: Line | None, spent: float) -> None:
        self._owe(_cell(cell), more)
        if line is not None:
            self._owe(f"line\x1f{arm}", line)
        if spent:
            self._owe(f"{_BUDGET}\x1f", (spent,))
        try:
            await self._pay()
        except StoreUnavailable:
            return  # It is owed until it answers again.

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

    def forget(self, cell: tuple[str, str], was: Seen, becomes: Seen) -> None:
        """What is taken away from the cell goes out with the next write."""
        self._owe(_cell(cell), [new - old for new, old in zip(becomes, was, strict=True)])

    async def reserve(self, amount: float, limit: float) -> bool:
        """StoreUnavailable where it does not answer: nobody knows what the others spend."""
        return await self._answered(self._store.add_within, self._space, f"{_BUDGET}\x1f", amount, limit)

    async def free(self, amount: float) -> None:
        self._owe(f"{_BUDGET}\x1f", (-amount,))
        try:
            await self._pay()
        except StoreUnavailable:
            return

    async def aclose(self) -> None:
        with suppress(StoreUnavailable):
            if self._owed:
                await self._pay()
        await self._store.aclose()

    async def keep(self, decision_id: str, packed: bytes) -> None:
        try:
            await self._answered(self._store.keep, self._space, decision_id, packed, REMEMBERED)
        except StoreUnavailable:
            return  # Its feedback will be understood here and nowhere else.

    async def kept(self, decision_id: str) -> bytes | None:
        return await self._answered(self._store.kept, self._space, decision_id)


def _cell(cell: tuple[str, str]) -> str:
    return f"cell\x1f{cell[0]}\x1f{cell[1]}"
