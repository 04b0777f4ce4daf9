"""What several processes learned, as one."""

from __future__ import annotations

from collections.abc import Sequence

from steer_llm_sdk.errors import StoreUnavailable
from steer_llm_sdk.orchestration.planning.beliefs import NO_COSTS, Beliefs, Line, Seen
from steer_llm_sdk.orchestration.planning.shared_sums import SharedSums
from steer_llm_sdk.reliability.stores.sums import SumStore

REMEMBERED = 7 * 86_400.0
"""Seconds that a decision may wait for its feedback."""
_BUDGET = "budget"


class SharedBeliefs(SharedSums):
    """Writes go to the store and are believed here at once. While it does not answer, planning goes on with what is
    known here; only a shared budget is not spent without it."""

    def __init__(self, store: SumStore, space: str, beliefs: Beliefs) -> None:
        super().__init__(store, space, "what is learned")
        self._beliefs = beliefs
        self.used = 0.0
        """USD of the shared budget that are spent or reserved, when it was last looked at."""

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

    async def keep(self, decision_id: str, packed: bytes) -> None:
        try:
            await self._answered(self._store.keep, self._space, decision_id, packed, REMEMBERED)
        except StoreUnavailable:
            return  # Its feedback will be understood here and nowhere else.

    async def kept(self, decision_id: str) -> bytes | None:
        return await self._answered(self._store.kept, self._space, decision_id)


def _cell(cell: tuple[str, str]) -> str:
    return f"cell\x1f{cell[0]}\x1f{cell[1]}"
