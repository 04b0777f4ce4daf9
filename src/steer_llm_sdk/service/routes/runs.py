"""/v1/runs: begun, shown, followed, cancelled."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from contextlib import aclosing, suppress
from random import getrandbits
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.base import config_of
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.service._json import written
from steer_llm_sdk.service._keyed import keyed
from steer_llm_sdk.service._shelf import Told
from steer_llm_sdk.service.guard import Caller, until_left, watched
from steer_llm_sdk.service.problems import Problem
from steer_llm_sdk.service.routes._shared import JSON_TYPE, Known, State, asking, run_id_of
from steer_llm_sdk.service.runs import Run, RunBook, Work
from steer_llm_sdk.streaming.manager import EventManager
from steer_llm_sdk.telemetry._spans import below_caller


class RunBody(BaseModel):
    """A run. `options` are those of OrchestrationConfig; the tenant is that of the API key."""

    model_config = ConfigDict(extra="forbid")

    request: Any
    tool_name: str | None = None
    tool_options: dict[str, Any] | None = None
    options: dict[str, Any] = Field(default_factory=dict)


_READ = ("prefer", "idempotency-key", "traceparent")
"""Headers that a run is begun by."""


def _body(request: Request) -> RunBody:
    """What FastAPI would make of the body, with the same errors, in a tenth of a run less."""
    said: bytes = request.state.body
    if not said:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}])
    if not JSON_TYPE.match(request.headers.get("content-type", "")):
        raise Problem(400, "body: send JSON, as Content-Type: application/json", error="InvalidRequest", field="body")
    try:
        # From attributes, as FastAPI does: the error for what is no object is then the same.
        return RunBody.model_validate(json.loads(said), from_attributes=True)
    except json.JSONDecodeError as error:
        place = {"type": "json_invalid", "loc": ("body", error.pos), "ctx": {"error": error.msg}}
        raise RequestValidationError([place]) from None
    except ValidationError as error:
        wrong = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        raise RequestValidationError(wrong) from None
    except ValueError:
        raise Problem(400, "body: it is no UTF-8", error="InvalidRequest", field="body") from None


def _header(name: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string"}}


_DESCRIBED = {
    "parameters": [_header(name) for name in _READ],
    "requestBody": {"required": True, "content": {"application/json": {"schema": RunBody.model_json_schema()}}},
}


def add(app: FastAPI, state: State) -> None:
    orchestrator, book = state.orchestrator, state.book

    @app.post("/v1/runs", response_model=None, openapi_extra=_DESCRIBED)
    async def run(request: Request) -> Response:
        """Run a request. With `Prefer: respond-async` the answer is 202 and the id of the run."""
        caller, body = asking(request), _body(request)
        prefer, idempotency_key, traceparent = map(request.headers.get, _READ)
        options = _options(body.options, caller, idempotency_key, traceparent)
        _refuse_recordings(state, body.request, body.tool_options)
        # Looked at before anything is accepted: what cannot be run has no id.
        config = config_of(options)
        run_id, size = str(config.request_id), len(request.state.body)

        async def work(events: EventManager) -> OrchestrationOutput:
            return await orchestrator.run(body.request, body.tool_name, body.tool_options, config, events)

        if body.tool_name is not None:
            orchestrator.registry.resolve(body.tool_name)
        book.require_room()
        where = {"Location": f"/v1/runs/{run_id}"}
        with below_caller({} if traceparent is None else {"traceparent": traceparent}):
            if prefer is not None and _prefers_async(request.headers.getlist("prefer")):
                accepted, known = await _accepted(state, body, config, work, size)
                replayed = {"Idempotent-Replayed": "true"} if known else {}
                told = {"id": accepted.id, "state": accepted.state, "events": f"/v1/runs/{accepted.id}/events"}
                where = {"Location": f"/v1/runs/{accepted.id}", "Preference-Applied": "respond-async"}
                return JSONResponse(told, 202, {**where, **replayed})
            if config.idempotency_key is None:
                begun = book.new(run_id, caller.tenant, body.request, size)
                output = await _carried_out(book, begun, work, request)
            else:
                begun = book.start(run_id, caller.tenant, body.request, work, size)
                output = await _waited(begun)
        replayed = {"Idempotent-Replayed": "true"} if output.replayed else {}
        told = output.model_dump(mode="json") if begun.output is None else begun.output
        said = written(told | {"id": run_id})
        return Response(said, headers={**where, **replayed}, media_type="application/json")

    state.ways["POST", "/v1/runs"] = run

    @app.get("/v1/runs", response_model=None)
    async def latest(caller: Known, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> dict[str, Any]:
        """The newest runs of the tenant."""
        return {"runs": [{**each.shown(), "content": None} for each in await book.latest(caller.tenant, limit)]}

    @app.get("/v1/runs/{run_id}", response_model=None)
    async def show(run_id: str, caller: Known) -> dict[str, Any]:
        return (await book.get(caller.tenant, run_id_of(run_id))).shown()

    @app.get("/v1/runs/{run_id}/events", response_model=None)
    async def events(run_id: str, caller: Known, last_event_id: Annotated[str | None, Header()] = None) -> Response:
        """The events of a run as they come, those before `Last-Event-ID` left out."""
        found = await book.get(caller.tenant, run_id_of(run_id))
        after = int(last_event_id) if last_event_id is not None and re.fullmatch("[0-9]{1,9}", last_event_id) else 0
        return _Followed(book, found, after)

    async def followed(request: Request) -> Response:
        return await events(request.path_params["run_id"], asking(request), request.headers.get("last-event-id"))

    state.ways["GET", "/v1/runs/{run_id}/events"] = followed

    @app.delete("/v1/runs/{run_id}", response_model=None)
    async def cancel(run_id: str, caller: Known) -> Response:
        """Cancel a run. 204 where it had ended already."""
        found = await book.get(caller.tenant, run_id_of(run_id))
        if found.over:
            return Response(status_code=204)
        await book.cancel(found)
        return JSONResponse({"id": found.id, "state": "cancelling"}, 202)


_PREFERENCES = re.compile(r'(?:"(?:\\.|[^"\\])*"?|[^,"])+')


def _prefers_async(headers: list[str]) -> bool:
    """RFC 7240: preferences stand between commas, their names are in letters of either case, and parameters come behind
    a semicolon."""
    names = (each.partition(";")[0].strip().lower() for each in _PREFERENCES.findall(",".join(headers)))
    return "respond-async" in names


def _options(given: Mapping[str, Any], caller: Caller, key: str | None, traceparent: str | None) -> dict[str, Any]:
    """The options of a run. What belongs to the tenant is not the caller's to say."""
    options = dict(given)
    if options.pop("tenant", caller.tenant) != caller.tenant:
        raise Problem(403, "options.tenant: it is that of the API key; leave it out", field="options.tenant")
    for name in ("redactor_cb", "request_id"):
        if options.get(name) is not None:
            raise _invalid(f"options.{name}", "it cannot be given over HTTP; leave it out")
    if key is not None:
        if options.get("idempotency_key") not in (None, key):
            raise _invalid("options.idempotency_key", "the header Idempotency-Key says something else; give one")
        options["idempotency_key"] = key
    for budget in options.get("budgets") or ():
        if isinstance(budget, dict) and isinstance(budget.get("name"), str):
            budget["name"] = f"{caller.tenant}/{budget['name']}"
    trace = re.match(r"^00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$", traceparent or "")
    if trace is not None:
        options.setdefault("trace_id", trace[1])
    return {**options, "tenant": caller.tenant, "request_id": f"{getrandbits(128):032x}"}


def _invalid(field: str, why: str) -> Problem:
    return Problem(400, f"{field}: {why}", error="InvalidRequest", field=field)


def _refuse_recordings(state: State, *given: Any) -> None:
    """An answer from a recording is no answer, unless the service says that it simulates."""
    if state.simulated:
        return
    for options in given:
        model = options.get("model") if isinstance(options, Mapping) else None
        for name in model if isinstance(model, list) else [model]:
            if isinstance(name, str) and name.strip().startswith("recorded:"):
                raise InvalidRequest("model", name, "this service answers from no recording; start it with --simulated")


async def _accepted(
    state: State, body: RunBody, config: OrchestrationConfig, work: Work, size: int
) -> tuple[Run, bool]:
    """A run that nobody waits for, and whether it, or what it comes to, was there before. `size` of its request."""
    run_id, tenant, book, durable = str(config.request_id), config.tenant, state.book, state.durable
    with_key = config.idempotency_key is not None
    if durable is not None:
        engine_id = await durable.submit(body.request, body.tool_name, body.tool_options, config)
        run = await book.handed_in(run_id, tenant, body.request, body.tool_name, engine_id, keyed=with_key)
        return run, run.id != run_id
    if not with_key:
        return await book.accept(run_id, tenant, body.request, work, size=size), False
    key = await keyed(state.orchestrator, body.request, body.tool_name, body.tool_options, config)
    if key.run is not None:
        with suppress(Problem):  # It may be no run of this table's, or not there any more.
            return await book.get(tenant, key.run), True
    run = await book.accept(run_id, tenant, body.request, work, key, size)
    return run, run.id != run_id or key.kind != "ours"


async def _carried_out(book: RunBook, run: Run, work: Work, request: Request) -> OrchestrationOutput:
    """Carry out a run that nobody else can wait for. Who goes away takes it along."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    with watched(request.receive, lambda: book.let_go(run)):
        try:
            output = await book.carry_out(run, work)
        except asyncio.CancelledError:
            if not (run.cancelled or run.stopped) or task.uncancel() > before:
                raise  # It was this request that was to end, and not the run alone.
            raise _cut_off(run) from None
    if run.cancelled and task.cancelling() > before:  # The tool would not be.
        task.uncancel()
    return output


async def _waited(run: Run) -> OrchestrationOutput:
    """Wait for a run with a key: somebody may come back for it, whoever goes away."""
    assert run.task is not None
    await asyncio.wait({run.task})
    if run.task.cancelled():
        raise _cut_off(run)
    output: OrchestrationOutput = run.task.result()
    return output


def _cut_off(run: Run) -> Problem:
    if run.state == "interrupted":
        why = "the service was stopped before the run ended"
        return Problem(503, why, {"Retry-After": "1"}, error="Interrupted")
    return Problem(409, "the run was cancelled", error="Cancelled")


class _Followed(Response):
    """The events of a run as they come, for one reader, to the end of the run or his. (Starlette's own way takes a task
    more, and a group of them.)"""

    def __init__(self, book: RunBook, run: Run, after: int) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self._book, self._run, self._after = book, run, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with until_left(receive), suppress(OSError):  # So a server may say that the reader has gone.
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._follow(send)

    async def _follow(self, send: Send) -> None:
        async with aclosing(self._book.follow(self._run, self._after)) as found:
            async for events in found:
                # A comment, so that no proxy closes a stream that is silent.
                said = "".join(map(_framed, events)) or ": waiting\n\n"
                await send({"type": "http.response.body", "body": said.encode(), "more_body": True})
        end = written({"state": self._run.state, "error": self._run.error})
        said = f"event: end\ndata: {end}\n\n"
        await send({"type": "http.response.body", "body": said.encode(), "more_body": False})


def _framed(event: Told) -> str:
    return f"id: {event.id}\nevent: {event.type}\ndata: {event.said}\n\n"
