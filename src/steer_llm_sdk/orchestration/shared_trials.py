"""Trials of canaries that several processes make together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from steer_llm_sdk.orchestration.canaries import Seen, Trials
from steer_llm_sdk.orchestration.planning.shared_sums import SharedSums, sums_at
from steer_llm_sdk.reliability.stores.sums import SumStore


class SharedTrials(Trials, SharedSums):
    """No run waits for the store: what runs showed is told to it once a second at most, beside them."""

    def __init__(self, store: SumStore | str, space: str) -> None:
        Trials.__init__(self)
        SharedSums.__init__(self, sums_at(store), space, "what is seen of canaries")
        self._telling: asyncio.Task[None] | None = None

    def add(self, key: str, more: Seen) -> None:
        super().add(key, more)
        self._owe(key, more)
        now, telling = time.monotonic(), self._telling
        if self._is_due(now) and (telling is None or telling.done() or telling.get_loop().is_closed()):
            self._telling = asyncio.get_running_loop().create_task(self.catch_up(now))

    def _take(self, key: str, row: Sequence[float]) -> None:
        # Runs that ended while the store answered are not in its total.
        self._seen[key] = Seen(*row).plus(self._owed.get(key, Seen()))

    def forget(self, trial: str) -> None:
        """Nothing is: it is what all have seen."""

    async def aclose(self) -> None:
        await self.catch_up(time.monotonic(), at_once=True)
        await super().aclose()
