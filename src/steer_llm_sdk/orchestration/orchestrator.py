"""Orchestrator: one named tool, with deadline, budget, replay and events; no planner, no breaker, no fallback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.errors import MISSING, InvalidRequest
from steer_llm_sdk.orchestration._call import Run
from steer_llm_sdk.orchestration.base import BaseOrchestrator, Plan
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.reliability import Asked


class Orchestrator(BaseOrchestrator):
    """Runs the tool that the caller names. A call is tried once, or `max_retries` + 1 times where that is set."""

    async def _plan(self, run: Run) -> Plan:
        raise InvalidRequest("tool_name", MISSING, "name a tool, or use ReliableOrchestrator, which plans")

    def _asks(self, given: Mapping[str, Any]) -> Asked:
        retry = bool(given["max_retries"]) and given["retry_on_failure"]
        reserve = given["budget"] is not None or bool(given["budgets"])
        return retry, False, reserve, given["per_agent_timeout_ms"] is not None

    def _max_attempts(self, options: OrchestrationConfig) -> int:
        return 1 + (options.max_retries or 0)


if not TYPE_CHECKING:
    __getattr__ = looked_up(__name__)  # Says what a renamed name is called now.
