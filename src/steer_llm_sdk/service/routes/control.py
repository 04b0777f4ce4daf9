"""/v1/breakers and /v1/budgets: what keeps calls back."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.reliability.circuit_breaker import BreakerMode
from steer_llm_sdk.service.guard import Caller
from steer_llm_sdk.service.problems import Problem
from steer_llm_sdk.service.routes._shared import Known, State

_MODES = {"open": BreakerMode.FORCED_OPEN, "close": BreakerMode.FORCED_CLOSED, "auto": BreakerMode.AUTO}


class BreakerBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    action: Literal["open", "close", "auto", "reset"]


def add(app: FastAPI, state: State) -> None:
    orchestrator = state.orchestrator

    @app.get("/v1/breakers", response_model=None)
    async def breakers() -> dict[str, Any]:
        return {"breakers": orchestrator.executor.breakers.get_all_stats()}

    @app.post("/v1/breakers/{name:path}", response_model=None)
    async def force(name: str, body: BreakerBody, caller: Known) -> dict[str, Any]:
        """open, close: whatever the circuit says. auto: as it says. reset: closed, with nothing remembered."""
        return await force_breaker(orchestrator, name, body.action, caller)

    @app.get("/v1/budgets", response_model=None)
    async def budgets(caller: Known) -> dict[str, Any]:
        """The shared budgets of the tenant."""
        mine = f"{caller.tenant}/"
        accounts = orchestrator.budgets
        return {
            "budgets": {name.removeprefix(mine): dict(each) for name, each in accounts.items() if name.startswith(mine)}
        }


async def force_breaker(orchestrator: ReliableOrchestrator, name: str, action: str, caller: Caller) -> dict[str, Any]:
    if not caller.admin:
        raise Problem(403, "this key may not force breakers; it needs admin = true")
    breaker = orchestrator.executor.breakers.get(name)
    if breaker is None:
        raise Problem(404, "there is no such breaker; a provider has one from its first call on")
    if action == "reset":
        breaker.reset()
        breaker.set_mode(BreakerMode.AUTO)
    else:
        breaker.set_mode(_MODES[action])
    return breaker.get_stats()
