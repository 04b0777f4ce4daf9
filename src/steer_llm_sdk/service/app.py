"""The HTTP service: runs, tools, plans, breakers, budgets, health."""

from __future__ import annotations

import asyncio
import json
import math
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from random import getrandbits
from types import FrameType
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from steer_llm_sdk import __version__
from steer_llm_sdk.durable import DurableOrchestrator
from steer_llm_sdk.errors import InvalidRequest, OrchestratorError, ProviderError
from steer_llm_sdk.orchestration.base import config_of
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.planning import PlanRequest
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.providers.models import MODEL_VARIABLE, Model, configured_model
from steer_llm_sdk.reliability.circuit_breaker import BreakerMode
from steer_llm_sdk.reliability.idempotency import IdempotencyManager
from steer_llm_sdk.service import view
from steer_llm_sdk.service._engine import DurableEngine, Hosted
from steer_llm_sdk.service._json import written
from steer_llm_sdk.service.chat import Chat
from steer_llm_sdk.service.formats import ANTHROPIC, OPENAI
from steer_llm_sdk.service.guard import Caller, Guard, Limits, as_problem, until_gone
from steer_llm_sdk.service.keys import KeyRing
from steer_llm_sdk.service.metrics import Scrape
from steer_llm_sdk.service.problems import Problem, problem_of
from steer_llm_sdk.service.runs import Run, RunBook
from steer_llm_sdk.streaming.manager import EventManager
from steer_llm_sdk.telemetry._spans import below_caller

DRAIN = 10.0
"""Seconds that runs under way get when the service stops."""

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "testserver"})


class RunBody(BaseModel):
    """A run. `options` are those of OrchestrationConfig; the tenant is that of the API key."""

    model_config = ConfigDict(extra="forbid")

    request: Any
    tool_name: str | None = None
    tool_options: dict[str, Any] | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class PlanBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    request: Any
    budget: dict[str, float] | None = None


class BreakerBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    action: Literal["open", "close", "auto", "reset"]


_MODES = {"open": BreakerMode.FORCED_OPEN, "close": BreakerMode.FORCED_CLOSED, "auto": BreakerMode.AUTO}


def create_app(
    orchestrator: ReliableOrchestrator,
    *,
    keys: KeyRing | None = None,
    runs: str = ":memory:",
    limits: Limits | None = None,
    hosts: frozenset[str] | None = None,
    models: Mapping[str, tuple[str | Model, ...]] | None = None,
    simulated: bool = False,
    drain: float = DRAIN,
) -> FastAPI:
    """The application, for any ASGI server. `runs` is the SQLite file that runs are kept in, or, where the orchestrator
    is a DurableOrchestrator, the URL of a PostgreSQL database. All processes of a service have the same one. Runs of a
    DurableOrchestrator outlive their process; those of another one are then interrupted. `drain`: seconds that runs
    under way get when the service stops.

    `keys` None: no key is asked for, and only names of this machine are answered unless `hosts` has others. `simulated`
    lets `recorded:` models answer. `models`: what the names stand for that clients of /v1/chat/completions and
    /v1/messages use.
    """
    named = configured_model() or ""
    if not simulated and named.startswith("recorded:"):
        raise InvalidRequest(MODEL_VARIABLE, named, "name a real model, or simulate: --simulated, simulated=True")
    durable = _durable(orchestrator)
    if durable is None and runs.startswith(("postgresql://", "postgres://")):
        raise InvalidRequest("runs", "postgresql://…", "a database keeps the runs of a DurableOrchestrator: --durable")
    book = RunBook(runs, None if durable is None else DurableEngine(durable))
    remembered = orchestrator.idempotency_manager
    if durable is not None:
        durable.host = Hosted(durable, book)
        if runs != ":memory:":
            # What it remembers itself is in its engine, where answers of chat completions are not.
            remembered = IdempotencyManager(store=runs if "://" in runs else f"sqlite:///{runs}")
    chat = Chat(orchestrator, models or {}, simulated, remembered)
    state = _State(orchestrator, book, chat, simulated)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        owner = None if durable is None else (await durable.started()).worker
        await book.open(owner)
        _warm(chat)
        with _told_to_stop(state):
            state.ready = True
            yield
        state.stop()

        def left() -> float:
            return max(0.0, state.stopped_at + drain - time.monotonic())

        await asyncio.gather(book.drain(left()), chat.aclose(left()))
        if durable is None:
            await book.close()
            await orchestrator.aclose()
        else:
            await durable.aclose(left())
            await book.close()
            if remembered is not orchestrator.idempotency_manager:
                await remembered.aclose()

    app = FastAPI(title="steer-llm", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.steer = state
    for kind in (OrchestratorError, ProviderError, Problem, Exception):
        app.add_exception_handler(kind, as_problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    _add_routes(app, state)
    answered = hosts if hosts is not None or keys is not None else _LOCAL_NAMES
    app.add_middleware(Guard, keys=keys, limits=limits or Limits(), hosts=answered)
    return app


class _State:
    def __init__(self, orchestrator: ReliableOrchestrator, book: RunBook, chat: Chat, simulated: bool) -> None:
        self.orchestrator = orchestrator
        self.chat = chat
        self.scrape = Scrape(orchestrator, chat.orchestrator)
        self.weather = view.Weather()
        book.on_end = self.weather.note
        self.book = book
        self.simulated = simulated
        self.ready = False
        self.stopped_at = math.inf

    def stop(self) -> None:
        """Nothing new is accepted; what is under way has its time to end, counted from the first time that this is
        called."""
        self.stopped_at = min(self.stopped_at, time.monotonic())
        self.ready = False
        self.book.stopping = True


def _warm(chat: Chat) -> None:
    """Make what is made when it is first used, which would take the first caller a twentieth of a second."""
    OrchestrationConfig()
    OrchestrationOutput(content=None, elapsed_ms=0).model_dump(mode="json")
    chat.client()


def _durable(orchestrator: ReliableOrchestrator) -> DurableOrchestrator | None:
    return orchestrator if isinstance(orchestrator, DurableOrchestrator) else None


@contextmanager
def _told_to_stop(state: _State) -> Iterator[None]:
    """A server that is told to stop first waits for its connections, and then says so to the application. That is to
    know it at once, so that it begins nothing more on connections that are still open."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {how: signal.getsignal(how) for how in (signal.SIGTERM, signal.SIGINT)}

    def handle(how: int, frame: FrameType | None) -> None:
        state.stop()
        handler = before[signal.Signals(how)]
        if callable(handler):
            handler(how, frame)

    for how, handler in before.items():
        if callable(handler):
            signal.signal(how, handle)
    try:
        yield
    finally:
        for how, handler in before.items():
            if callable(handler) and signal.getsignal(how) is handle:
                signal.signal(how, handler)


async def caller_of(request: Request) -> Caller:  # async: another one is sent to a thread, for each request
    caller: Caller = request.state.caller
    return caller


Known = Annotated[Caller, Depends(caller_of)]
_ID = re.compile(r"^[A-Za-z0-9._-]{1,128}$")


def _add_routes(app: FastAPI, state: _State) -> None:
    orchestrator, book = state.orchestrator, state.book

    @app.post("/v1/runs", response_model=None)
    async def run(
        body: RunBody,
        request: Request,
        caller: Known,
        prefer: Annotated[str, Header()] = "",
        idempotency_key: Annotated[str | None, Header()] = None,
        traceparent: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Run a request. With `Prefer: respond-async` the answer is 202 and the id of the run."""
        options = _options(body.options, caller, idempotency_key, traceparent)
        _refuse_recordings(state, body.request, body.tool_options)
        # Looked at before anything is accepted: what cannot be run has no id.
        config = config_of(options)
        run_id = str(config.request_id)

        async def work(events: EventManager) -> OrchestrationOutput:
            return await orchestrator.run(body.request, body.tool_name, body.tool_options, config, events)

        if body.tool_name is not None:
            orchestrator.registry.resolve(body.tool_name)
        book.require_room()
        where = {"Location": f"/v1/runs/{run_id}"}
        with below_caller({} if traceparent is None else {"traceparent": traceparent}):
            if "respond-async" in prefer:
                durable = _durable(orchestrator)
                if durable is None:
                    await book.accept(run_id, caller.tenant, body.request, work)
                else:
                    engine_id = await durable.submit(body.request, body.tool_name, body.tool_options, config)
                    await book.handed_in(run_id, caller.tenant, body.request, body.tool_name, engine_id)
                told = {"id": run_id, "state": "running", "events": f"/v1/runs/{run_id}/events"}
                return JSONResponse(told, 202, {**where, "Preference-Applied": "respond-async"})
            begun = book.start(run_id, caller.tenant, body.request, work)
        output = await _waited(book, begun, request, keyed=config.idempotency_key is not None)
        replayed = {"Idempotent-Replayed": "true"} if output.replayed else {}
        said = written(output.model_dump(mode="json") | {"id": run_id})
        return Response(said, headers={**where, **replayed}, media_type="application/json")

    @app.get("/v1/runs", response_model=None)
    async def latest(caller: Known, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> dict[str, Any]:
        """The newest runs of the tenant."""
        return {"runs": [{**each.shown(), "content": None} for each in await book.latest(caller.tenant, limit)]}

    @app.get("/v1/runs/{run_id}", response_model=None)
    async def show(run_id: str, caller: Known) -> dict[str, Any]:
        return (await book.get(caller.tenant, _run_id(run_id))).shown()

    @app.get("/v1/runs/{run_id}/events", response_model=None)
    async def events(
        run_id: str, caller: Known, last_event_id: Annotated[str | None, Header()] = None
    ) -> StreamingResponse:
        """The events of a run as they come, those before `Last-Event-ID` left out."""
        found = await book.get(caller.tenant, _run_id(run_id))
        after = int(last_event_id) if last_event_id is not None and re.fullmatch("[0-9]{1,9}", last_event_id) else 0
        return StreamingResponse(_sse(book, found, after), media_type="text/event-stream")

    @app.delete("/v1/runs/{run_id}", response_model=None)
    async def cancel(run_id: str, caller: Known) -> Response:
        """Cancel a run. 204 where it had ended already."""
        found = await book.get(caller.tenant, _run_id(run_id))
        if found.over:
            return Response(status_code=204)
        await book.cancel(found)
        return JSONResponse({"id": found.id, "state": "cancelling"}, 202)

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

    @app.get("/v1/breakers", response_model=None)
    async def breakers() -> dict[str, Any]:
        return {"breakers": orchestrator.executor.breakers.get_all_stats()}

    @app.post("/v1/breakers/{name:path}", response_model=None)
    async def force(name: str, body: BreakerBody, caller: Known) -> dict[str, Any]:
        """open, close: whatever the circuit says. auto: as it says. reset: closed, with nothing remembered."""
        return await _force(orchestrator, name, body.action, caller)

    @app.get("/v1/budgets", response_model=None)
    async def budgets(caller: Known) -> dict[str, Any]:
        """The shared budgets of the tenant."""
        mine = f"{caller.tenant}/"
        accounts = orchestrator.budgets
        return {
            "budgets": {name.removeprefix(mine): dict(each) for name, each in accounts.items() if name.startswith(mine)}
        }

    @app.post("/v1/chat/completions", response_model=None, openapi_extra=_passed_on("messages"))
    async def chat(request: Request, caller: Known) -> Response:
        """OpenAI's chat completions, under the policies."""
        book.require_room()
        return await state.chat.complete(OPENAI, request, caller)

    @app.post("/v1/messages", response_model=None, openapi_extra=_passed_on("messages", "max_tokens"))
    async def messages(request: Request, caller: Known) -> Response:
        """Anthropic's messages, under the policies."""
        book.require_room()
        return await state.chat.complete(ANTHROPIC, request, caller)

    @app.get("/v1/models", response_model=None)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": state.chat.models()}

    @app.get("/v1/models/{name:path}", response_model=None)
    async def model(name: str) -> dict[str, Any]:
        return state.chat.model(name)

    _add_view(app, state)

    @app.get("/healthz", response_model=None)
    async def alive() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", response_model=None)
    async def ready() -> Response:
        told = {"status": "ready" if state.ready else "stopping", "runs": book.under_way}
        return JSONResponse(told, 200 if state.ready else 503)

    @app.get("/metrics", response_model=None)
    async def metrics(caller: Known, accept: Annotated[str, Header()] = "") -> Response:
        """The metrics of all tenants, for Prometheus; therefore it needs a key that is an admin's, where keys are."""
        if not caller.admin:
            raise Problem(403, "this key may not read the metrics of all tenants; it needs admin = true")
        return state.scrape.response(accept)


def _passed_on(*needed: str) -> dict[str, Any]:
    """How a body is described that the service does not read: `model` and `stream` are looked at, the rest goes on."""
    known = {
        "model": {"type": "string"},
        "messages": {"type": "array", "items": {"type": "object"}},
        "stream": {"type": "boolean"},
        "max_tokens": {"type": "integer", "minimum": 1},
    }
    schema = {"type": "object", "required": ["model", *needed], "properties": known}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _add_view(app: FastAPI, state: _State) -> None:
    orchestrator, book = state.orchestrator, state.book

    @app.get("/", include_in_schema=False)
    async def runs_page() -> Response:
        return view.page("Runs", "/view/runs", "Runs")

    @app.get("/view/runs", include_in_schema=False)
    async def runs(caller: Known) -> Response:
        return view.fragment(view.runs_list(await book.latest(caller.tenant)))

    @app.get("/view/runs/{run_id}", include_in_schema=False)
    async def run_page(run_id: str) -> Response:
        return view.page(f"Run {_run_id(run_id)[:8]}", f"/view/runs/{run_id}/shown", "")

    @app.get("/view/runs/{run_id}/shown", include_in_schema=False)
    async def run_shown(run_id: str, caller: Known) -> Response:
        found = await book.get(caller.tenant, _run_id(run_id))
        return view.fragment(view.run_shown(found), last=found.over)

    @app.get("/view/runs/{run_id}/evidence", include_in_schema=False)
    async def evidence(run_id: str, caller: Known) -> Response:
        report = view.evidence(await book.get(caller.tenant, _run_id(run_id)))
        if report is None:
            raise Problem(404, "the run has no evidence bundle")
        return report

    @app.get("/view/providers", include_in_schema=False)
    async def providers_page() -> Response:
        return view.page("Providers", "/view/providers/shown", "Providers")

    @app.get("/view/providers/shown", include_in_schema=False)
    async def providers(caller: Known) -> Response:
        stats = orchestrator.executor.breakers.get_all_stats()
        return view.fragment(view.providers(stats, state.weather, caller.admin))

    @app.post("/view/providers/{action}", include_in_schema=False)
    async def force_from_view(action: Literal["open", "auto", "reset"], request: Request, caller: Known) -> Response:
        name = parse_qs((await request.body()).decode("utf-8", "replace")).get("name", [""])[0]
        await _force(orchestrator, name, action, caller)
        return Response(status_code=204)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        found = view.static(name)
        if found is None:
            raise Problem(404, "there is no such file")
        return found


async def _force(orchestrator: ReliableOrchestrator, name: str, action: str, caller: Caller) -> dict[str, Any]:
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


def _run_id(run_id: str) -> str:
    if not _ID.match(run_id):
        raise Problem(404, "there is no such run")
    return run_id


def _options(given: Mapping[str, Any], caller: Caller, key: str | None, traceparent: str | None) -> dict[str, Any]:
    """The options of a run. What belongs to the tenant is not the caller's to say."""
    options = dict(given)
    if options.pop("tenant", caller.tenant) != caller.tenant:
        raise Problem(403, "options.tenant: it is that of the API key; leave it out")
    for name in ("redactor_cb", "request_id"):
        if options.get(name) is not None:
            raise Problem(400, f"options.{name} cannot be given over HTTP; leave it out")
    if key is not None:
        if options.get("idempotency_key") not in (None, key):
            raise Problem(400, "options.idempotency_key: the header Idempotency-Key says something else; give one")
        options["idempotency_key"] = key
    for budget in options.get("budgets") or ():
        if isinstance(budget, dict) and isinstance(budget.get("name"), str):
            budget["name"] = f"{caller.tenant}/{budget['name']}"
    trace = re.match(r"^00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$", traceparent or "")
    if trace is not None:
        options.setdefault("trace_id", trace[1])
    return {**options, "tenant": caller.tenant, "request_id": f"{getrandbits(128):032x}"}


def _refuse_recordings(state: _State, *given: Any) -> None:
    """An answer from a recording is no answer, unless the service says that it simulates."""
    if state.simulated:
        return
    for options in given:
        model = options.get("model") if isinstance(options, Mapping) else None
        for name in model if isinstance(model, list) else [model]:
            if isinstance(name, str) and name.strip().startswith("recorded:"):
                raise InvalidRequest("model", name, "this service answers from no recording; start it with --simulated")


async def _waited(book: RunBook, run: Run, request: Request, *, keyed: bool) -> OrchestrationOutput:
    """Wait for a run. Who goes away takes it along, unless it has a key: then somebody may come back for it."""
    assert run.task is not None
    leaving = asyncio.ensure_future(until_gone(request.receive))
    try:
        either: set[asyncio.Future[Any]] = {run.task, leaving}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not (run.task.done() or keyed):
            book.let_go(run)
    if run.state == "interrupted":
        raise Problem(503, "the service was stopped before the run ended", {"Retry-After": "1"}, error="Interrupted")
    if not run.task.done() or run.task.cancelled():
        raise Problem(409, "the run was cancelled", error="Cancelled")
    return run.task.result()


async def _sse(book: RunBook, run: Run, after: int) -> AsyncIterator[bytes]:
    async with aclosing(book.follow(run, after)) as found:
        async for events in found:
            # A comment, so that no proxy closes a stream that is silent.
            yield "".join(map(_framed, events)).encode() or b": waiting\n\n"
    end = {"state": run.state, "error": run.error}
    yield f"event: end\ndata: {json.dumps(end)}\n\n".encode()


def _framed(event: Mapping[str, Any]) -> str:
    return f"id: {event['id']}\nevent: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"


async def _invalid(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a body or a parameter, by its name."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":  # Its place is a character, which is no name of a field.
        why = f"body: it is no JSON from character {first['loc'][-1]} on ({first['ctx']['error']}); send a JSON object"
        return Problem(400, why, error="InvalidRequest", field="body").response()
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    known = {"extra_forbidden": "there is no such field; leave it out", "missing": "it is needed; give it"}
    return Problem(
        400, f"{place}: {known.get(first['type'], first['msg'])}", error="InvalidRequest", field=place
    ).response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Problem(error.status_code, str(error.detail), error.headers).response()


__all__ = ["Limits", "create_app", "problem_of"]
