"""What the routes share: the state of the application, who asks, and what a run is called."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from steer_llm_sdk.durable import DurableOrchestrator
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.service import view
from steer_llm_sdk.service.chat import Chat
from steer_llm_sdk.service.guard import Caller
from steer_llm_sdk.service.metrics import Scrape
from steer_llm_sdk.service.problems import Problem
from steer_llm_sdk.service.runs import RunBook

Endpoint = Callable[[Request], Awaitable[Response]]


class Straight:
    """Takes a request whose method and path are in `ways` straight to what answers it; `app` has all others. FastAPI's
    own way, which looks at every route and opens three stacks of what is to be closed, takes it a tenth of a run, and
    each event of one who follows a run would go back through all of it.

    `handlers` of the application answer what an endpoint raises, by its class or the nearest one above.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        ways: Mapping[tuple[str, str], Endpoint],
        handlers: Mapping[Any, Callable[[Request, Any], Any]],
    ) -> None:
        self._app = app
        self._ways = ways
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._way(scope) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except Exception as error:
            handle = next(self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers)
            response = await handle(request, error)
        await response(scope, receive, send)

    def _way(self, scope: Scope) -> Endpoint | None:
        method, path = scope["method"], scope["path"]
        endpoint = self._ways.get((method, path))
        if endpoint is None and (of_a_run := _OF_A_RUN.match(path)) is not None:
            endpoint = self._ways.get((method, "/v1/runs/{run_id}" + path[of_a_run.end() :]))
            if endpoint is not None:
                scope["path_params"] = of_a_run.groupdict()
        return endpoint


JSON_TYPE = re.compile(r"application/(?:[\w.-]+\+)?json[ \t]*(?:;|$)", re.IGNORECASE)
_OF_A_RUN = re.compile("/v1/runs/(?P<run_id>[^/]+)")


class State:
    """`keyed`: an API key is asked for."""

    def __init__(
        self, orchestrator: ReliableOrchestrator, book: RunBook, chat: Chat, simulated: bool, keyed: bool
    ) -> None:
        self.orchestrator = orchestrator
        self.durable = orchestrator if isinstance(orchestrator, DurableOrchestrator) else None
        self.chat = chat
        self.scrape = Scrape(orchestrator, chat.orchestrator)
        self.weather = view.Weather()
        book.on_end = self.weather.note
        self.book = book
        self.simulated = simulated
        self.keyed = keyed
        self.ways: dict[tuple[str, str], Endpoint] = {}
        """What Straight answers, by method and path; the id of a run stands in it as {run_id}."""
        self.ready = False
        self.stopped_at = math.inf

    def stop(self) -> None:
        """Nothing new is accepted; what is under way has its time to end, counted from the first time that this is
        called."""
        self.stopped_at = min(self.stopped_at, time.monotonic())
        self.ready = False
        self.book.stopping = True


async def caller_of(request: Request) -> Caller:  # async: another one is sent to a thread, for each request
    return asking(request)


def asking(request: Request) -> Caller:
    """Who asks. For what Straight answers, to which FastAPI hands no parameters."""
    caller: Caller = request.state.caller
    return caller


Known = Annotated[Caller, Depends(caller_of)]
_ID = re.compile(r"^[A-Za-z0-9._-]{1,128}$")


def run_id_of(run_id: str) -> str:
    if not _ID.match(run_id):
        raise Problem(404, "there is no such run")
    return run_id
