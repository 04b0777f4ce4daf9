"""The web view, and the files that its pages load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from starlette.responses import Response

from steer_llm_sdk.service import view
from steer_llm_sdk.service.guard import Caller
from steer_llm_sdk.service.problems import Problem
from steer_llm_sdk.service.routes._shared import Known, State, run_id_of
from steer_llm_sdk.service.routes.control import force_breaker
from steer_llm_sdk.service.runs import Run


def add(app: FastAPI, state: State) -> None:
    orchestrator, book = state.orchestrator, state.book

    keyed = state.keyed

    async def shown(request: Request, run_id: str, caller: Caller, show: Callable[[Run], Response]) -> Response:
        """A page of ours, which asks by htmx, is answered in words where there is no such run: a 404 would stand on the
        browser's console."""
        try:
            return show(await book.get(caller.tenant, run_id_of(run_id)))
        except Problem as problem:
            if problem.status != 404 or "hx-request" not in request.headers:
                raise
            return view.gone()

    async def require(run_id: str, caller: Caller) -> None:
        """Where no key is asked for, the page itself can say that there is no such run."""
        run_id_of(run_id)
        if not keyed:
            await book.get(caller.tenant, run_id)

    @app.get("/", include_in_schema=False)
    async def runs_page() -> Response:
        return view.page("Runs", "/view/runs", "Runs", keyed)

    @app.get("/view/runs", include_in_schema=False)
    async def runs(caller: Known) -> Response:
        return view.fragment(view.runs_list(await book.latest(caller.tenant)))

    @app.get("/view/runs/{run_id}", include_in_schema=False)
    async def run_page(run_id: str, caller: Known) -> Response:
        await require(run_id, caller)
        return view.page(f"Run {run_id[:8]}", f"/view/runs/{run_id}/shown", "", keyed)

    @app.get("/view/runs/{run_id}/shown", include_in_schema=False)
    async def run_shown(run_id: str, request: Request, caller: Known) -> Response:
        return await shown(request, run_id, caller, lambda run: view.fragment(view.run_shown(run), last=run.over))

    @app.get("/view/runs/{run_id}/evidence", include_in_schema=False)
    async def evidence_page(run_id: str, caller: Known) -> Response:
        await require(run_id, caller)
        return view.page(f"Evidence of run {run_id[:8]}", f"/view/runs/{run_id}/evidence/shown", "", keyed, report=True)

    @app.get("/view/runs/{run_id}/evidence/shown", include_in_schema=False)
    async def evidence_shown(run_id: str, request: Request, caller: Known) -> Response:
        def show(run: Run) -> Response:
            report = view.evidence(run)
            if report is None:
                raise Problem(404, "the run has no evidence bundle")
            return view.fragment(report, last=True)

        return await shown(request, run_id, caller, show)

    @app.get("/view/providers", include_in_schema=False)
    async def providers_page() -> Response:
        return view.page("Providers", "/view/providers/shown", "Providers", keyed)

    @app.get("/view/providers/shown", include_in_schema=False)
    async def providers(caller: Known) -> Response:
        stats = orchestrator.executor.breakers.get_all_stats()
        return view.fragment(view.providers(stats, state.weather, caller.admin))

    @app.post("/view/providers/{action}", include_in_schema=False)
    async def force_from_view(action: Literal["open", "auto", "reset"], request: Request, caller: Known) -> Response:
        name = parse_qs((await request.body()).decode("utf-8", "replace")).get("name", [""])[0]
        await force_breaker(orchestrator, name, action, caller)
        return Response(status_code=204)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        found = view.static(name)
        if found is None:
            raise Problem(404, "there is no such file")
        return found
