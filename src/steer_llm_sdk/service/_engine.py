"""Runs that the durable engine carries out: what the service asks of it, and what it tells the service."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from steer_llm_sdk.durable import DurableOrchestrator, RunCancelled
from steer_llm_sdk.errors import OrchestratorError
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.service.runs import Run, RunBook
from steer_llm_sdk.streaming.manager import EventManager

BY_CALLER = "cancelled over HTTP"
LEFT = "left by its caller"


class DurableEngine:
    """The engine of a DurableOrchestrator, as a RunBook knows it."""

    def __init__(self, orchestrator: DurableOrchestrator) -> None:
        self._orchestrator = orchestrator

    async def owners(self) -> set[str] | None:
        return await self._orchestrator.living()

    async def outcome(self, engine_id: str) -> OrchestrationOutput | str | None:
        known = await (await self._orchestrator.started()).info(engine_id)
        if known is None:
            raise OrchestratorError("the engine does not know this run any more")
        if known.state in ("waiting", "running"):
            return None
        if known.state == "cancelled" and known.about.get("cancelled") in (BY_CALLER, LEFT, None):
            return "cancelled"
        if known.state != "finished" or known.asked is None or known.ended is None:
            raise RunCancelled(engine_id)
        return self._orchestrator.came_to(known.asked, known.ended)

    async def cancel(self, engine_id: str) -> None:
        await (await self._orchestrator.started()).cancel(engine_id, BY_CALLER)


class Hosted:
    """The Host of a DurableOrchestrator: what it carries out is in the book."""

    def __init__(self, orchestrator: DurableOrchestrator, book: RunBook) -> None:
        self._orchestrator = orchestrator
        self._book = book

    def began(self, run_id: str, request_id: str) -> None:
        self._book.known_as(request_id, run_id)

    async def carry(
        self,
        run_id: str,
        asked: dict[str, Any],
        work: Callable[[EventManager], Awaitable[dict[str, Any]]],
    ) -> dict[str, Any]:
        options = asked["options"]
        run = Run(
            options["request_id"],
            options.get("tenant", "default"),
            asked["request"],
            asked["began"],
            tool=asked["tool_name"],
            engine=run_id,
        )

        def came_to(ended: dict[str, Any]) -> OrchestrationOutput:
            return self._orchestrator.came_to(asked, ended)

        return await self._book.carry(run, max(time.time() - asked["began"], 0.0), work, came_to)
