"""/healthz, /readyz, /metrics: whether it lives, whether it takes requests, what it counted."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Header
from starlette.responses import JSONResponse, Response

from steer_llm_sdk.service.problems import Problem
from steer_llm_sdk.service.routes._shared import Known, State


def add(app: FastAPI, state: State) -> None:
    book = state.book

    @app.get("/healthz", response_model=None)
    @app.head("/healthz", response_model=None, include_in_schema=False)
    async def alive() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", response_model=None)
    @app.head("/readyz", response_model=None, include_in_schema=False)
    async def ready() -> Response:
        told = {"status": "ready" if state.ready else "stopping", "runs": book.under_way}
        return JSONResponse(told, 200 if state.ready else 503)

    @app.get("/metrics", response_model=None)
    async def metrics(caller: Known, accept: Annotated[str, Header()] = "") -> Response:
        """The metrics of all tenants, for Prometheus; therefore it needs a key that is an admin's, where keys are."""
        if not caller.admin:
            raise Problem(403, "this key may not read the metrics of all tenants; it needs admin = true")
        return state.scrape.response(accept)
