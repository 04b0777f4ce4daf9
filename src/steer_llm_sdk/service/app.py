"""The HTTP service: runs, tools, plans, breakers, budgets, health."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import FrameType

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from steer_llm_sdk import __version__
from steer_llm_sdk.durable import DurableOrchestrator
from steer_llm_sdk.errors import InvalidRequest, OrchestratorError, ProviderError
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.providers.models import MODEL_VARIABLE, Model, configured_model
from steer_llm_sdk.reliability.idempotency import IdempotencyManager
from steer_llm_sdk.service._described import described
from steer_llm_sdk.service._engine import DurableEngine, Hosted
from steer_llm_sdk.service.chat import Chat
from steer_llm_sdk.service.guard import Guard, Limits, as_problem, refused
from steer_llm_sdk.service.keys import KeyRing
from steer_llm_sdk.service.problems import Problem, problem_of
from steer_llm_sdk.service.routes import chat as of_chat
from steer_llm_sdk.service.routes import control, health, pages, planning
from steer_llm_sdk.service.routes import runs as of_runs
from steer_llm_sdk.service.routes._shared import JSON_TYPE, State, Straight
from steer_llm_sdk.service.runs import RunBook

DRAIN = 10.0
"""Seconds that runs under way get when the service stops."""

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "testserver"})


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
    DurableOrchestrator outlive their process; those of another one are then interrupted. An orchestrator that remembers
    keyed runs in memory gets a store in that file; one with a store of its own keeps it. `drain`: seconds that runs
    under way get when the service stops; the server that it runs in must give its requests as many.

    `keys` None: no key is asked for, and only names of this machine are answered unless `hosts` has others. `simulated`
    lets `recorded:` models answer. `models`: what the names stand for that clients of /v1/chat/completions and
    /v1/messages use.
    """
    named = configured_model() or ""
    if not simulated and named.startswith("recorded:"):
        raise InvalidRequest(MODEL_VARIABLE, named, "name a real model, or simulate: --simulated, simulated=True")
    durable = orchestrator if isinstance(orchestrator, DurableOrchestrator) else None
    if durable is None and runs.startswith(("postgresql://", "postgres://")):
        raise InvalidRequest("runs", "postgresql://…", "a database keeps the runs of a DurableOrchestrator: --durable")
    book = RunBook(runs, None if durable is None else DurableEngine(durable))
    if durable is None and runs != ":memory:":
        _remember_in(runs, orchestrator)
    remembered = orchestrator.idempotency_manager
    if durable is not None:
        durable.host = Hosted(durable, book)
        if runs != ":memory:":
            # What it remembers itself is in its engine, where answers of chat completions are not.
            remembered = IdempotencyManager(store=runs if "://" in runs else f"sqlite:///{runs}")
    chat = Chat(orchestrator, models or {}, simulated, remembered)
    state = State(orchestrator, book, chat, simulated, keys is not None)

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
    app.openapi = lambda: described(app)  # type: ignore[method-assign]  # the way that FastAPI names
    for kind in (OrchestratorError, ProviderError, Problem, Exception):
        app.add_exception_handler(kind, as_problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    for about in (of_runs, of_chat, planning, control, pages, health):
        about.add(app, state)
    answered = hosts if hosts is not None or keys is not None else _LOCAL_NAMES
    app.add_middleware(Straight, ways=state.ways, handlers=app.exception_handlers)
    app.add_middleware(Guard, keys=keys, limits=limits or Limits(), hosts=answered)
    return app


def _remember_in(runs: str, orchestrator: ReliableOrchestrator) -> None:
    """Keyed runs, which it would remember in the memory of this process, beside the others: for all processes."""
    manager = orchestrator.idempotency_manager
    if type(manager) is IdempotencyManager and manager.in_memory:
        kept = IdempotencyManager(manager.ttl_seconds, manager.max_entries, store=f"sqlite:///{runs}")
        orchestrator.idempotency_manager = kept


def _warm(chat: Chat) -> None:
    """Make what is made when it is first used, which would take the first caller a twentieth of a second."""
    OrchestrationConfig()
    OrchestrationOutput(content=None, elapsed_ms=0).model_dump(mode="json")
    chat.client()


@contextmanager
def _told_to_stop(state: State) -> Iterator[None]:
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


async def _invalid(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with a body or a parameter, by its name."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":  # Its place is a character, which is no name of a field.
        why = f"body: it is no JSON from character {first['loc'][-1]} on ({first['ctx']['error']}); send a JSON object"
        return refused(request, Problem(400, why, error="InvalidRequest", field="body"))
    place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    known = {"extra_forbidden": "there is no such field; leave it out", "missing": "it is needed; give it"}
    if place == "body" and first["type"] != "missing" and not JSON_TYPE.match(request.headers.get("content-type", "")):
        known[first["type"]] = "send JSON, as Content-Type: application/json"  # Else nobody reads it as JSON.
    why = f"{place}: {known.get(first['type'], first['msg'])}"
    return refused(request, Problem(400, why, error="InvalidRequest", field=place))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:  # Of several routes at one path Starlette names the methods of the first.
        matching = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
        headers["Allow"] = ", ".join(sorted(set().union(*(route.methods or () for route in matching))))
    return refused(request, Problem(error.status_code, str(error.detail), headers))


__all__ = ["Limits", "create_app", "problem_of"]
