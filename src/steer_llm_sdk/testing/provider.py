"""A provider to test against: the recorded answers over real HTTP on this machine, with faults that can be switched."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from steer_llm_sdk.providers import simulated

if TYPE_CHECKING:
    from steer_llm_sdk.providers.simulated.faults import Fault
    from steer_llm_sdk.providers.simulated.server import Call

__all__ = ["SimulatedProvider"]

R = TypeVar("R")

PATIENCE = 10.0
"""Seconds that the server gets to start, to switch its faults and to stop."""


class SimulatedProvider:
    """`steer-llm simulate` in a thread of its own, so that it serves tests with an event loop and without one.

        with SimulatedProvider("503:first=2") as provider:
            model = Model("openai:demo", base_url=provider.base_url + "/v1")

    `base_url` is for Anthropic's clients as it is, for OpenAI's with "/v1" behind it; any API key is accepted. `calls`
    lists the requests in the order in which they were answered: number, model, status, fault. Time is real here.
    """

    def __init__(self, *faults: str | Fault, seed: int = 0) -> None:
        self.calls: list[Call] = []
        self._server = simulated.SimulatedServer(faults=faults, seed=seed, on_call=self.calls.append)
        self._started: Future[str] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="simulated-provider", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        self.base_url = self._started.result(PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)

    def set_faults(self, *faults: str | Fault, seed: int = 0) -> None:
        """Put these in the place of those before; none is a provider without faults. Numbers and times start again.

        Raises InvalidRequest for one that cannot be read, and changes nothing then.
        """
        self._there(self._server.set_faults(faults, seed))

    def _there(self, work: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with self._server:
                self._started.set_result(self._server.base_url)
                await self._stop.wait()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)  # raised where the provider was entered
