"""/v1/tools and /v1/plan: what there is, and what a request would go to."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from steer_llm_sdk.orchestration.planning import PlanRequest
from steer_llm_sdk.service.routes._shared import State


class PlanBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    request: Any
    budget: dict[str, float] | None = None


def add(app: FastAPI, state: State) -> None:
    orchestrator = state.orchestrator

    @app.get("/v1/tools", response_model=None)
    async def tools() -> dict[str, Any]:
        view = orchestrator.registry.planning_view()
        return {"tools": [tool.model_dump(mode="json") for tool in view.values()]}

    @app.post("/v1/plan", response_model=None)
    async def plan(body: PlanBody) -> dict[str, Any]:
        """Which tool the request would go to, and why. Nothing is run."""
        context = PlanRequest(budget=body.budget)
        decision = await orchestrator.planner.plan(body.request, orchestrator.registry.planning_view(), context)
        return decision.model_dump(mode="json")
