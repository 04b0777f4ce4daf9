"""A local server that speaks OpenAI's chat completions and Anthropic's messages, with faults on request.

What is real about a recorded answer is its text and the model that gave it. Made up, because the recording has none:
ids, token counts (`_wire.estimate_tokens`: four bytes of text are a token, and each message has four more), rate limit
headers, and pace (a stream comes as fast as it can). Any API key is accepted. Each answer carries `x-simulated`.

Control, on the same port and on `control_url`, which answers also while that port refuses connections:

    GET    /__faults    {"faults": ["503:rate=0.2"], "seed": 0}
    PUT    /__faults    the same; request numbers and times start again
    GET    /__calls     {"requests": 3, "upstream": 2, "calls": [{"model", "status", "fault", "count"}, …]}
    DELETE /__calls     start counting again
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.simulated._carry_out import Exchange, carry_out
from steer_llm_sdk.providers.simulated._http import BadRequest, HttpConnection, HttpRequest, HttpResponse
from steer_llm_sdk.providers.simulated._meter import Meter, Reading
from steer_llm_sdk.providers.simulated._pace import Sleep, first_of, wait
from steer_llm_sdk.providers.simulated._wire import ApiError, dump
from steer_llm_sdk.providers.simulated.faults import Fault, FaultPlan, decide, next_change, refusing
from steer_llm_sdk.providers.simulated.sources import RECORDING, upstream_named
from steer_llm_sdk.providers.simulated.upstream import JSON, OPENAI, Upstream, error_response, wire_of

_log = logging.getLogger(__name__)

Faults: TypeAlias = str | Fault | Iterable[str | Fault]


@dataclass(frozen=True, slots=True)
class CallCount:
    """`status` None: the client got none. `fault` None: none was due."""

    model: str | None
    status: int | None
    fault: str | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, once it is known what the client gets. `number` counts from 1 since the faults were put in place.

    `status` None: it gets none. `fault` None: none was due.
    """

    number: int
    model: str | None
    status: int | None
    fault: str | None


class _Switch(BaseModel):
    """The body of PUT /__faults."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    faults: list[str]
    seed: int = 0


class SimulatedServer:
    """Serves `upstream` over HTTP on `host` and `port` (0: any free one), under the `faults` that are switched on.

    The upstream may be named: "recording", an address, or a file of recorded traffic. It is closed with the server.

    `clock` gives seconds for `from` and `to`; `sleep` waits for what is slow. `on_call` is told of every request. Start
    and stop it with `async with`.

        async with SimulatedServer(faults="503:rate=0.2", seed=7) as server:
            client = openai.AsyncOpenAI(base_url=server.base_url + "/v1", api_key="any")
    """

    def __init__(
        self,
        upstream: Upstream | str = RECORDING,
        *,
        faults: Faults = (),
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
        on_call: Callable[[Call], None] | None = None,
    ) -> None:
        self._upstream = upstream_named(upstream) if isinstance(upstream, str) else upstream
        self._on_call = on_call
        self._host, self._port = host, port
        self._clock, self._sleep = clock, sleep
        self._plan = FaultPlan.of(faults, seed)
        self._since = clock()
        self._taken = 0
        self._meters: dict[Fault, Meter] = {}
        self._counts: Counter[tuple[str | None, int | None, str | None]] = Counter()
        self._asked = 0
        self._idle: set[HttpConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None
        self._listener: asyncio.Server | None = None
        self._control: asyncio.Server | None = None
        self._gatekeeper: asyncio.Task[None] | None = None
        self._gate, self._switched = asyncio.Lock(), asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Bind both ports and listen. OSError where the port is taken."""
        self._since = self._clock()
        try:
            self._socket = _bound(self._host, self._port)
            self._port = self._socket.getsockname()[1]
            control = _bound(self._host, 0)
            self._control = await asyncio.start_server(partial(self._serve, control_only=True), sock=control)
            await self._set_gate()
            self._gatekeeper = asyncio.create_task(self._keep_gate())
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Stop listening, end every connection, and close the upstream."""
        for listening in (self._control, self._listener, self._socket):
            if listening is not None:
                listening.close()
        self._control = self._listener = self._socket = None
        tasks = [*self._tasks] if self._gatekeeper is None else [self._gatekeeper, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._upstream.aclose()

    @property
    def port(self) -> int:
        return self._port

    @property
    def base_url(self) -> str:
        """For Anthropic's clients as it is; for OpenAI's with "/v1" behind it."""
        return _url(self._host, self._port)

    @property
    def control_url(self) -> str:
        """Where `/__faults` and `/__calls` answer even while the other port refuses. RuntimeError unless it runs."""
        if self._control is None:
            raise RuntimeError("the server does not run; start it with `async with`")
        return _url(self._host, self._control.sockets[0].getsockname()[1])

    @property
    def plan(self) -> FaultPlan:
        return self._plan

    async def set_faults(self, faults: Faults = (), seed: int | None = None) -> None:
        """Put another plan in place; numbers and times start again. Raises InvalidRequest, and changes nothing then."""
        self._plan = FaultPlan.of(faults, self._plan.seed if seed is None else seed)
        self._taken, self._since = 0, self._clock()
        self._meters.clear()
        await self._set_gate()
        self._switched.set()

    def calls(self) -> list[CallCount]:
        """How often each model got which status under which fault, in the order of their first time."""
        return [CallCount(*key, count) for key, count in self._counts.items()]

    @property
    def requests(self) -> int:
        """How many requests it took."""
        return sum(self._counts.values())

    @property
    def upstream_calls(self) -> int:
        """How many of them the upstream was asked."""
        return self._asked

    def forget_calls(self) -> None:
        self._counts.clear()
        self._asked = 0

    # The port is open unless a fault refuses connections.

    async def _keep_gate(self) -> None:
        while True:
            self._switched.clear()
            await self._set_gate()
            waits: list[Coroutine[Any, Any, object]] = [self._switched.wait()]
            if (change := next_change(self._plan, self._now())) is not None:
                waits.append(wait(self._sleep, change - self._now()))
            await first_of(*waits)

    async def _set_gate(self) -> None:
        async with self._gate:
            if self._refusing():
                for connection in self._shut():
                    await connection.close()
            elif self._listener is None and self._socket is not None:
                self._listener = await asyncio.start_server(
                    self._serve, sock=self._socket, backlog=1024, start_serving=False
                )
                await self._listener.start_serving()

    def _shut(self) -> list[HttpConnection]:
        """Stop listening but keep the port: bound to a socket that does not listen, it refuses.

        Connections that wait for a request are hung up and returned; one that is being answered ends by itself.
        """
        if self._listener is None:
            return []
        self._listener.close()
        self._listener = None
        self._socket = _bound(self._host, self._port)
        for connection in self._idle:
            connection.hang_up()
        return list(self._idle)

    def _refusing(self) -> bool:
        return refusing(self._plan, self._taken, self._now())

    def _now(self) -> float:
        return self._clock() - self._since

    # One connection, one request after the other.

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, control_only: bool = False
    ) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        connection = HttpConnection(reader, writer)
        try:
            await self._converse(connection, control_only)
        except ConnectionError:
            pass
        except asyncio.CancelledError:  # only `aclose` cancels it
            connection.abort()
        finally:
            self._tasks.discard(task)
            await connection.close()

    async def _converse(self, connection: HttpConnection, control_only: bool) -> None:
        try:
            while self._socket is not None and (request := await self._next(connection, control_only)) is not None:
                await self._take_safely(connection, request, control_only)
                if not connection.reusable or (self._listener is None and not control_only):
                    return
        except BadRequest as error:
            await _deliver(connection, error_response(OPENAI, ApiError(400, str(error)), "req_none"), keep_alive=False)

    async def _take_safely(self, connection: HttpConnection, request: HttpRequest, control_only: bool) -> None:
        """Answer with 500 if an unexpected error comes before the answer; after it has begun, break it off."""
        try:
            await self._take(connection, request, control_only)
        except ConnectionError:
            raise
        except Exception as error:
            _log.exception("A %s could not be answered", request.method)
            if not connection.unanswered:
                raise ConnectionAbortedError("the answer broke off") from error
            failed = ApiError(500, f"The server could not answer: {type(error).__name__}")
            await _deliver(connection, error_response(wire_of(request), failed, "req_none"), keep_alive=False)

    async def _next(self, connection: HttpConnection, control_only: bool) -> HttpRequest | None:
        if not control_only:
            self._idle.add(connection)
        try:
            return await connection.read_request()
        finally:
            self._idle.discard(connection)

    async def _take(self, connection: HttpConnection, request: HttpRequest, control_only: bool) -> None:
        if request.path.startswith("/__"):
            await _deliver(connection, await self._obey(request))
        elif control_only:
            error = ApiError(404, f"Only the control of the server is here; models answer at {self.base_url}")
            await _deliver(connection, error_response(wire_of(request), error, "req_none"))
        elif request.method == "POST":
            await self._answer(connection, request)
        else:
            await self._pass(connection, request)

    async def _pass(self, connection: HttpConnection, request: HttpRequest) -> None:
        """Answer a request that is not a POST: it is not counted and meets no fault."""
        async with self._responses(request, "req_none") as respond:
            await _deliver(connection, await respond())

    async def _answer(self, connection: HttpConnection, request: HttpRequest) -> None:
        self._taken += 1
        plan, number = self._plan, self._taken
        model, stream = _peek(request)
        fault = decide(plan, number, plan.chance(number), self._now(), model)
        if self._refusing():
            self._shut()
        note = partial(self._count, number, model, None if fault is None else fault.kind)
        request_id = "req_" + hashlib.sha256(f"{plan.seed}/{number}".encode()).hexdigest()[:24]
        async with self._responses(request, request_id) as respond:
            exchange = Exchange(
                connection=connection,
                wire=wire_of(request),
                model=model,
                stream=stream,
                request_id=request_id,
                respond=partial(self._ask, respond, note),
                note=note,
                sleep=self._sleep,
                take=self._take_from,
                last=self._listener is None,
            )
            await (exchange.deliver(await exchange.respond()) if fault is None else carry_out(fault, exchange))

    def _take_from(self, fault: Fault) -> Reading:
        now = self._now()
        return self._meters.setdefault(fault, Meter(fault.requests, now)).take(now)

    async def _ask(
        self, respond: Callable[[], Awaitable[HttpResponse]], note: Callable[[int | None], None]
    ) -> HttpResponse:
        self._asked += 1
        try:
            return await respond()
        except ConnectionError:
            note(None)
            raise

    def _count(self, number: int, model: str | None, fault: str | None, status: int | None) -> None:
        self._counts[model, status, fault] += 1
        if self._on_call is not None:
            self._on_call(Call(number=number, model=model, status=status, fault=fault))

    @contextlib.asynccontextmanager
    async def _responses(
        self, request: HttpRequest, request_id: str
    ) -> AsyncIterator[Callable[[], Awaitable[HttpResponse]]]:
        """Gives a function that asks the upstream. Its responses are closed at the end."""
        answered: list[HttpResponse] = []

        async def respond() -> HttpResponse:
            try:
                answered.append(await self._upstream.respond(request))
            except ApiError as error:
                answered.append(error_response(wire_of(request), error, request_id))
            return answered[-1]

        try:
            yield respond
        finally:
            for response in answered:
                if response.close is not None:
                    await response.close()

    # Control.

    async def _obey(self, request: HttpRequest) -> HttpResponse:
        match request.method, request.path:
            case "GET", "/__faults":
                return self._faults_now()
            case "PUT", "/__faults":
                return await self._switch(request)
            case "GET", "/__calls":
                return _json(200, {**self._totals(), "calls": [asdict(row) for row in self.calls()]})
            case "DELETE", "/__calls":
                self.forget_calls()
                return _json(200, self._totals())
        return _json(404, {"error": "there are GET and PUT /__faults, GET and DELETE /__calls"})

    async def _switch(self, request: HttpRequest) -> HttpResponse:
        try:
            switch = _Switch.model_validate_json(request.body)
            await self.set_faults(switch.faults, switch.seed)
        except ValidationError as error:
            first = error.errors()[0]
            return _json(400, {"error": f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"})
        except InvalidRequest as error:
            return _json(400, {"error": str(error), "field": error.field})
        return self._faults_now()

    def _faults_now(self) -> HttpResponse:
        return _json(200, {"faults": [str(fault) for fault in self._plan.faults], "seed": self._plan.seed})

    def _totals(self) -> dict[str, int]:
        return {"requests": self.requests, "upstream": self.upstream_calls}


async def _deliver(connection: HttpConnection, response: HttpResponse, *, keep_alive: bool = True) -> None:
    length = len(response.body) if isinstance(response.body, bytes) else None
    await connection.start(response.status, response.headers, length=length, keep_alive=keep_alive)
    await connection.send_all(response.body)


def _json(status: int, value: object) -> HttpResponse:
    return HttpResponse(status=status, headers=(JSON,), body=dump(value))


def _peek(request: HttpRequest) -> tuple[str | None, bool]:
    """The model that is asked, and whether for a stream; (None, False) where the body does not say."""
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        return None, False
    if not isinstance(body, dict):
        return None, False
    model = body.get("model")
    return model if isinstance(model, str) else None, body.get("stream") is True


def _bound(host: str, port: int) -> socket.socket:
    # The protocol by name: asyncio switches off Nagle's delays (40 ms per answer) only where it reads TCP there.
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _url(host: str, port: int) -> str:
    """Where a client on this machine finds it: a server on every address is found on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
