"""What several processes learned, as one: sums in a store, and a copy of them here that is brought up to date."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from steer_llm_sdk.orchestration.planning.beliefs import NO_COSTS, Beliefs, Line, Seen
from steer_llm_sdk.reliability.stores.sums import SumStore

EVERY = 1.0
"""Seconds between two looks at what the others have added."""
REMEMBERED = 7 * 86_400.0
"""Seconds that a decision may wait for its feedback."""
_BUDGET = "budget"


class SharedBeliefs:
    """Writes go to the store and are believed here at once; what others wrote comes with `catch_up`. The totals of the
    store then take the place of what is here, so nothing is counted twice."""

    def __init__(self, store: SumStore, space: str, beliefs: Beliefs) -> None:
        self._store = store
        self._space = space
        self._beliefs = beliefs
        self._mark = 0
        self._looked: float | None = None
        self._looking = asyncio.Lock()
        self._writing = 0
        self._forgotten: dict[str, tuple[float, ...]] = {}
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
            self._mark, rows = await self._store.since(self._space, self._mark)
            for key, row in rows.items():
                self._take(key, row)

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
        rows: dict[str, Sequence[float]] = {_cell(cell): more, **self._forgotten}
        if _cell(cell) in self._forgotten:
            rows[_cell(cell)] = [a + b for a, b in zip(more, self._forgotten[_cell(cell)], strict=True)]
        self._forgotten = {}
        if line is not None:
            rows[f"line\x1f{arm}"] = line
        if spent:
            rows[f"{_BUDGET}\x1f"] = (spent,)
        self._writing += 1
        try:
            await self._store.add(self._space, rows)
        finally:
            self._writing -= 1

    def forget(self, cell: tuple[str, str], was: Seen, becomes: Seen) -> None:
        """What is taken away from the cell goes out with the next write."""
        self._forgotten[_cell(cell)] = tuple(new - old for new, old in zip(becomes, was, strict=True))

    async def reserve(self, amount: float, limit: float) -> bool:
        return await self._store.add_within(self._space, f"{_BUDGET}\x1f", amount, limit)

    async def free(self, amount: float) -> None:
        await self._store.add(self._space, {f"{_BUDGET}\x1f": (-amount,)})

    async def keep(self, decision_id: str, packed: bytes) -> None:
        await self._store.keep(self._space, decision_id, packed, REMEMBERED)

    async def kept(self, decision_id: str) -> bytes | None:
        return await self._store.kept(self._space, decision_id)


def _cell(cell: tuple[str, str]) -> str:
    return f"cell\x1f{cell[0]}\x1f{cell[1]}"
