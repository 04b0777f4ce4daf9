"""A provider that answers when a test lets it, so that what is under way stands still meanwhile."""

from __future__ import annotations

import asyncio
import math

from steer_llm_sdk.providers.simulated import SimulatedServer
from steer_llm_sdk.testing import SimulatedProvider


class HeldProvider(SimulatedProvider):
    """Answers the first `let` requests, and the next ones when that is raised. `asked` is how many it got, answered or
    not; one whose client has left keeps its number."""

    def __init__(self, let: float = math.inf) -> None:
        super().__init__()
        self.let = let
        self.asked = 0
        self._server = SimulatedServer(faults="slow", sleep=self._held, on_call=self.calls.append)

    def let_all(self) -> None:
        self.let = math.inf

    async def _held(self, _seconds: float) -> None:
        self.asked += 1
        number = self.asked
        while number > self.let:
            await asyncio.sleep(0.005)
