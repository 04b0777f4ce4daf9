"""An application meets everything that a provider can do to it, over real HTTP: the simulated server, in processes of
its own, and a few servers that speak no proper HTTP at all.

Each scenario says what the application must get, how often each provider may be asked (counted at the provider), and
how long it may take; every run must return by its deadline + 50 ms. Then defects are planted in the library, one at a
time, and the scenarios that concern them are met again; one of them must fail.

    sh scripts/prove crash-wall [--only WORDS]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from unittest.mock import patch

import httpx2

from steer_llm_sdk.errors import BudgetExceeded, NoEligibleTool
from steer_llm_sdk.orchestration import (
    OrchestrationConfig,
    OrchestrationOutput,
    ReliabilityConfig,
    ReliableOrchestrator,
    RuleBasedPlanner,
    ToolRegistry,
    base,
)
from steer_llm_sdk.orchestration.fallback import first_answer
from steer_llm_sdk.orchestration.planning import PlanningRule, RuleAction
from steer_llm_sdk.orchestration.tools import LLMTool
from steer_llm_sdk.providers._llm.client import _Call
from steer_llm_sdk.providers._llm.exchange import Exchange
from steer_llm_sdk.providers.models import Model
from steer_llm_sdk.providers.simulated import shipped_recording
from steer_llm_sdk.reliability import CircuitBreakerConfig, RetryPolicy
from steer_llm_sdk.reliability.circuit import HalfOpen
from steer_llm_sdk.reliability.circuit_breaker import Breaker
from steer_llm_sdk.reliability.retry import Retry

SLACK = 0.05
"""Seconds that a run may take beyond its deadline."""
PRIMARY, FALLBACK = "primary", "fallback"
LANES = 2
RECORDING = shipped_recording()
QUESTION = RECORDING.questions[0]
MODELS = {PRIMARY: RECORDING.models[0], FALLBACK: RECORDING.models[1]}


# ── the application ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Seen:
    """One run as the application saw it: who answered (else "failed", "late", "refused", "wrong: …"), in how long."""

    who: str
    seconds: float
    output: OrchestrationOutput | None = None


@dataclass(slots=True)
class App:
    """What an application builds: two models at two providers, a rule that says which is first, and the library."""

    orchestrator: ReliableOrchestrator
    options: OrchestrationConfig

    async def ask(self) -> Seen:
        began = time.monotonic()
        try:
            output = await self.orchestrator.run(QUESTION.text, options=self.options)
        except BudgetExceeded as error:
            return Seen("late" if error.budget_type == "time" else f"wrong: {error}", time.monotonic() - began)
        except NoEligibleTool:
            return Seen("refused", time.monotonic() - began)
        return Seen(_who(output), time.monotonic() - began, output)


def _who(output: OrchestrationOutput) -> str:
    if output.status != "succeeded":
        return output.status
    name = output.metadata["tool_name"]
    recorded = QUESTION.answers[MODELS[name]].text
    return name if output.content.split() == recorded.split() else f"wrong: not what the model of {name} said"


@contextlib.asynccontextmanager
async def application(scenario: Scenario, primary: Provider, fallback: Provider) -> AsyncIterator[App]:
    registry = ToolRegistry()
    urls = {PRIMARY: ("openai", f"{primary.base_url}/v1"), FALLBACK: ("anthropic", fallback.base_url)}
    for name, (wire, url) in urls.items():
        model = Model(f"{wire}:{MODELS[name]}", base_url=url)
        registry.register_tool(LLMTool(name, model, max_tokens=1000, chunk_timeout=scenario.chunk_timeout))
    others = [] if scenario.fallback is None else [FALLBACK]
    rule = PlanningRule(name="primary first", action=RuleAction(tool_name=PRIMARY, fallback_tools=others))
    async with ReliableOrchestrator(RuleBasedPlanner([rule]), scenario.config, registry=registry) as orchestrator:
        options = OrchestrationConfig(timeout_ms=scenario.timeout_ms, per_agent_timeout_ms=scenario.attempt_ms)
        yield App(orchestrator, options)


# ── the providers ────────────────────────────────────────────────────────────────────────────────────────────────────


class Provider(Protocol):
    base_url: str

    async def prepare(self, faults: Sequence[str]) -> None: ...
    async def requests(self) -> int: ...


class Simulated:
    """`steer-llm simulate` in a process of its own."""

    base_url = ""
    _control = ""

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "steer_llm_sdk.cli",
            "simulate",
            "--port",
            "0",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        while not (self.base_url and self._control):
            line = (await self._process.stdout.readline()).decode()
            if not line:
                raise RuntimeError("steer-llm simulate did not start")
            if found := re.match(r"Anthropic's format +(http\S+)", line):
                self.base_url = found[1]
            if found := re.match(r"Control +(http\S+)/__faults", line):
                self._control = found[1]
        self._http = httpx2.AsyncClient(trust_env=False, timeout=10)

    async def stop(self) -> None:
        await self._http.aclose()
        self._process.terminate()
        await self._process.wait()

    async def prepare(self, faults: Sequence[str]) -> None:
        answer = await self._http.put(f"{self._control}/__faults", json={"faults": list(faults)})
        answer.raise_for_status()
        (await self._http.delete(f"{self._control}/__calls")).raise_for_status()

    async def requests(self) -> int:
        return int((await self._http.get(f"{self._control}/__calls")).json()["requests"])


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Rude:
    """A server that reads a request and then does what `handler` says."""

    def __init__(self, handler: Handler) -> None:
        self._handler, self._count, self._writers = handler, 0, set[asyncio.StreamWriter]()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def prepare(self, faults: Sequence[str]) -> None:
        self._count = 0

    async def requests(self) -> int:
        return self._count

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            self._count += 1
            await self._handler(reader, writer)
        self._writers.discard(writer)
        writer.close()


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = (
    b'data: {"id":"1","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":"The"},"finish_reason":null}]}\n\n'
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def never_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """RST in the middle of the body."""
    writer.write(STREAM + _chunk(PIECE))
    await writer.drain()
    await asyncio.sleep(0.05)
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One byte a second, for ever: no limit between two bytes is ever exceeded."""
    writer.write(STREAM + _chunk(PIECE))
    while not writer.is_closing():
        writer.write(_chunk(b":"))
        await writer.drain()
        await asyncio.sleep(1)


async def head_without_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while not writer.is_closing():
        writer.write(b"x-more: yes\r\n")
        await writer.drain()
        await asyncio.sleep(0.2)


async def no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x15\x03\x01\x00\x02\x02\x28 hello\r\n\r\n")
    await writer.drain()


async def too_short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Promises more bytes than it sends."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 5000\r\n\r\n" + PIECE)
    await writer.drain()


# ── the scenarios ────────────────────────────────────────────────────────────────────────────────────────────────────

Play = Callable[[App], Awaitable[list[Seen]]]


async def once(app: App) -> list[Seen]:
    return [await app.ask()]


def in_turn(count: int) -> Play:
    async def play(app: App) -> list[Seen]:
        return [await app.ask() for _ in range(count)]

    return play


def at_once(count: int) -> Play:
    async def play(app: App) -> list[Seen]:
        return list(await asyncio.gather(*(app.ask() for _ in range(count))))

    return play


def every_second(seconds: int) -> Play:
    async def play(app: App) -> list[Seen]:
        tasks = []
        for _ in range(seconds):
            tasks.append(asyncio.create_task(app.ask()))
            await asyncio.sleep(1)
        return list(await asyncio.gather(*tasks))

    return play


async def five_then_a_crowd(app: App) -> list[Seen]:
    """The circuit opens, its time passes, and then thirty callers are there at once."""
    app.options = app.options.model_copy(update={"retry_on_failure": False})
    first = await in_turn(5)(app)
    await asyncio.sleep(1.2)
    return first + await at_once(30)(app)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """`answers`: who may answer (or "failed", "late"), `last`: who the last run. `calls` and `fallback_calls`: fewest
    and most requests at each. `fallback` None: none is declared. `within`, `least`: seconds for each run."""

    name: str
    primary: Sequence[str] | Handler = ()
    fallback: Sequence[str] | None = ()
    answers: tuple[str, ...] = (FALLBACK,)
    last: str | None = None
    calls: tuple[int, int]
    fallback_calls: tuple[int, int] = (1, 1)
    play: Play = once
    timeout_ms: int = 20_000
    attempt_ms: int | None = None
    chunk_timeout: float | None = None
    within: float | None = None
    least: float = 0.0
    config: ReliabilityConfig | None = None
    long: bool = False
    from_outputs: bool = False
    """Count the attempts in the outputs: a server that refuses connections sees nothing of them."""


def alone(name: str, primary: Any, **more: Any) -> Scenario:
    return Scenario(name=name, primary=primary, fallback=None, fallback_calls=(0, 0), **more)


def served(name: str, *primary: str, calls: int, **more: Any) -> Scenario:
    """The primary answers after all."""
    return Scenario(name=name, primary=primary, answers=(PRIMARY,), calls=(calls, calls), fallback_calls=(0, 0), **more)


OUTAGE, PLAYED = "outage:from=5,to=65", 75
QUICK = CircuitBreakerConfig(timeout=1.0, half_open_requests=1, success_threshold=1)
PASSING, FINAL = ("408", "500", "502", "503", "504", "529"), ("400", "401", "403", "404", "409", "413", "422")
SCENARIOS: Sequence[Scenario] = (
    served("nothing is wrong", calls=1),
    *(Scenario(name=f"{s} for ever", primary=(s,), calls=(3, 3), within=6) for s in PASSING),
    *(Scenario(name=f"{s}: no use", primary=(s,), calls=(1, 1), within=1) for s in FINAL),
    Scenario(name="quota used up", primary=("quota",), calls=(1, 1), within=1),
    Scenario(name="503 that says: do not retry", primary=("503:should-retry=false",), calls=(1, 1), within=1),
    served("503 once", "503:first=1", calls=2, within=3),
    served("429, Retry-After: 2", "429:first=1,retry-after=2", calls=2, least=2, within=4),
    served("429, Retry-After: 1.5", "429:first=1,retry-after=1.5", calls=2, least=1.5, within=3.5),
    served("429, Retry-After-Ms: 1700", "429:first=1,retry-after-ms=1700", calls=2, least=1.7, within=3.7),
    served("429, Retry-After: a date", "429:first=1,retry-after=date+3", calls=2, least=2, within=5),
    Scenario(name="429, Retry-After beyond the deadline", primary=("429:retry-after=30",), calls=(1, 1), within=1),
    alone("the same without a fallback", ("429:retry-after=30",), answers=("failed",), calls=(1, 1), within=1),
    *(
        Scenario(name=f"{kind} for ever", primary=(kind,), calls=(3, 3), within=6)
        for kind in ("drop", "reset", "no-end", "malformed", "html", "empty", "wrong-type", "error-event")
    ),
    Scenario(name="connection refused", primary=("refuse",), calls=(0, 0), within=6),
    served("slow, but honest", "slow:seconds=2", calls=1, least=2, within=3),
    Scenario(
        name="stops in mid-stream, chunk_timeout=1",
        primary=("stall",),
        chunk_timeout=1,
        calls=(3, 3),
        timeout_ms=12_000,
        within=10,
    ),
    alone("stops in mid-stream, deadline 2 s", ("stall",), answers=("late",), calls=(1, 1), timeout_ms=2_000),
    alone("says nothing, deadline 2 s", ("silence",), answers=("late",), calls=(1, 1), timeout_ms=2_000),
    Scenario(name="says nothing, 1 s per attempt", primary=("silence",), attempt_ms=1_000, calls=(3, 3), within=9),
    alone("accepts and never answers, deadline 2 s", never_answers, answers=("late",), calls=(1, 1), timeout_ms=2_000),
    alone(
        "a byte a second for ever, deadline 4 s",
        drips,
        answers=("late",),
        calls=(1, 1),
        timeout_ms=4_000,
        chunk_timeout=2,
    ),
    alone("a head without end, deadline 2 s", head_without_end, answers=("late",), calls=(1, 1), timeout_ms=2_000),
    Scenario(name="RST in mid-body", primary=resets, calls=(3, 3), within=6),
    Scenario(name="bytes that are no HTTP", primary=no_http, calls=(3, 3), within=6),
    Scenario(name="shorter than promised", primary=too_short, calls=(3, 3), within=6),
    alone("503 for ever, deadline 1.5 s", ("503",), answers=("failed",), calls=(1, 2), timeout_ms=1_500),
    served(
        "500 and 200 by turns, 6 runs", *(f"500:after={2 * n},first=1" for n in range(6)), calls=12, play=in_turn(6)
    ),
    Scenario(
        name="one in five fails, 40 runs at once",
        primary=("503:rate=0.2",),
        answers=(PRIMARY, FALLBACK),
        calls=(40, 80),
        fallback_calls=(0, 40),
        play=at_once(40),
        within=8,
    ),
    Scenario(
        name="both down, 4 runs",
        primary=("503",),
        fallback=("529",),
        answers=("failed", "refused"),
        calls=(1, 5),
        fallback_calls=(1, 3),
        last="refused",
        play=in_turn(4),
        within=8,
    ),
    Scenario(
        name="both down, 1 run",
        primary=("500",),
        fallback=("drop",),
        answers=("failed",),
        calls=(1, 3),
        fallback_calls=(1, 3),
        within=8,
    ),
    Scenario(
        name="circuit's time is up, 30 callers",
        primary=("503:first=5", "slow:seconds=1"),
        answers=(PRIMARY, FALLBACK),
        calls=(6, 6),
        fallback_calls=(34, 34),
        play=five_then_a_crowd,
        within=8,
        config=ReliabilityConfig(circuit_breaker_configs={"openai": QUICK}),
    ),
    Scenario(
        name="says nothing, default settings",
        primary=("silence",),
        calls=(1, 1),
        timeout_ms=12_000,
        least=9,
        within=11,
        long=True,
    ),
    alone(
        "first byte after 12 s, no fallback",
        ("slow:seconds=12",),
        answers=(PRIMARY,),
        calls=(1, 1),
        least=12,
        within=13,
        long=True,
    ),
    Scenario(
        name="60 s outage: 503",
        primary=(OUTAGE,),
        answers=(PRIMARY, FALLBACK),
        last=PRIMARY,
        calls=(1, 5),
        fallback_calls=(50, 65),
        play=every_second(PLAYED),
        within=6,
        long=True,
        from_outputs=True,
    ),
    Scenario(
        name="60 s outage: refused",
        primary=(f"{OUTAGE},as=refuse",),
        answers=(PRIMARY, FALLBACK),
        last=PRIMARY,
        calls=(1, 5),
        fallback_calls=(50, 65),
        play=every_second(PLAYED),
        within=6,
        long=True,
        from_outputs=True,
    ),
)


@dataclass(slots=True)
class Row:
    """What came of a scenario; `wrong` says in which way it was not what it should be."""

    scenario: Scenario
    seen: list[Seen]
    calls: int
    fallback_calls: int
    wrong: list[str] = field(default_factory=list)


async def meet(scenario: Scenario, primary: Provider, fallback: Provider) -> Row:
    await primary.prepare(scenario.primary if not callable(scenario.primary) else ())
    await fallback.prepare(scenario.fallback or ())
    async with application(scenario, primary, fallback) as app:
        seen = await scenario.play(app)
    row = Row(scenario, seen, await _asked(scenario, primary, seen), await fallback.requests())
    _judge(row)
    return row


async def _asked(scenario: Scenario, primary: Provider, seen: Sequence[Seen]) -> int:
    """Requests at the primary; of an outage those that met it, which all failed."""
    if not scenario.from_outputs:
        return await primary.requests()
    attempts = [line for one in seen if one.output is not None for line in one.output.attempts]
    return sum(line["tool"] == PRIMARY and line["outcome"] != "succeeded" for line in attempts)


def _judge(row: Row) -> None:
    scenario, seen = row.scenario, row.seen
    others = sorted({one.who for one in seen} - set(scenario.answers))
    if others:
        row.wrong.append(f"answered by {', '.join(others)}")
    if scenario.last is not None and seen[-1].who != scenario.last:
        row.wrong.append(f"the last run: {seen[-1].who}")
    for name, count, (least, most) in (
        ("calls", row.calls, scenario.calls),
        ("fallback calls", row.fallback_calls, scenario.fallback_calls),
    ):
        if not least <= count <= most:
            row.wrong.append(f"{count} {name}")
    slowest, fastest = max(one.seconds for one in seen), min(one.seconds for one in seen)
    if slowest > scenario.timeout_ms / 1000 + SLACK:
        row.wrong.append(f"{slowest:.3f} s: after the deadline")
    elif scenario.within is not None and slowest > scenario.within:
        row.wrong.append(f"{slowest:.2f} s: too slow")
    if fastest < scenario.least:
        row.wrong.append(f"{fastest:.2f} s: too early")


# ── all of them ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Wall:
    """The server processes, one pair for each lane; a long scenario has a pair of its own."""

    def __init__(self, longest: int) -> None:
        self._pairs: asyncio.Queue[tuple[Simulated, Simulated]] = asyncio.Queue()
        self._count = LANES + longest
        self._all: list[Simulated] = []

    async def __aenter__(self) -> Wall:
        self._all = [Simulated() for _ in range(2 * self._count)]
        await asyncio.gather(*(server.start() for server in self._all))
        for number in range(self._count):
            self._pairs.put_nowait((self._all[2 * number], self._all[2 * number + 1]))
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(server.stop() for server in self._all))

    async def meet_all(self, scenarios: Sequence[Scenario]) -> list[Row]:
        lanes = asyncio.Semaphore(LANES)

        async def one(scenario: Scenario) -> Row:
            async with contextlib.nullcontext() if scenario.long else lanes:
                return await self._meet(scenario)

        long_first = sorted(scenarios, key=lambda scenario: not scenario.long)
        rows = await asyncio.gather(*map(one, long_first))
        return sorted(rows, key=lambda row: scenarios.index(row.scenario))

    async def _meet(self, scenario: Scenario) -> Row:
        primary, fallback = await self._pairs.get()
        try:
            if not callable(scenario.primary):
                return await meet(scenario, primary, fallback)
            rude = Rude(scenario.primary)
            await rude.start()
            try:
                return await meet(scenario, rude, fallback)
            finally:
                await rude.stop()
        finally:
            self._pairs.put_nowait((primary, fallback))


# ── planted defects ──────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def no_breaker() -> Iterator[None]:
    """A dead provider is asked again and again."""

    async def through(self: Breaker, call: Any, next: Any) -> Any:
        return await next(call)

    with patch.object(Breaker, "__call__", through):
        yield


@contextmanager
def retries_without_limit() -> Iterator[None]:
    """Whatever may be retried is retried until the deadline."""

    def delay(self: Retry, call: Any, error: Any, waited: float) -> float | None:
        return 0.1 if self._policy.allows(error) else None

    with patch.object(Retry, "_delay", delay):
        yield


@contextmanager
def every_error_is_retried() -> Iterator[None]:
    """A request that will never be served is sent three times."""
    with patch.object(RetryPolicy, "allows", lambda self, error: True):
        yield


@contextmanager
def retry_after_is_ignored() -> Iterator[None]:
    """The usual backoff, whatever the server asks for."""
    with patch.object(RetryPolicy, "wait", lambda self, error, attempt, jitter: self.delay(attempt, jitter)):
        yield


@contextmanager
def deadlines_are_not_kept() -> Iterator[None]:
    """The run waits for its work to end by itself."""

    async def wait(at: float, work: Any) -> Any:
        return await work

    with patch.object(base, "until", wait):
        yield


@contextmanager
def sleeps_past_the_deadline() -> Iterator[None]:
    """A retry waits without a look at what is left."""
    honest = Retry._delay

    def delay(self: Retry, call: Any, *rest: Any) -> float | None:
        with patch.object(type(call), "deadline", None):
            return honest(self, call, *rest)

    with patch.object(Retry, "_delay", delay):
        yield


@contextmanager
def truncated_streams_pass() -> Iterator[None]:
    """A stream without finish reason and end marker is taken for a whole answer."""
    with patch.object(Exchange, "ended", property(lambda self: True)):
        yield


@contextmanager
def empty_answers_pass() -> Iterator[None]:
    """Whatever the stream held is an answer."""
    with patch.object(_Call, "_require_answer", lambda self, response: None):
        yield


@contextmanager
def no_fallback() -> Iterator[None]:
    """The first tool of a plan is the last."""
    with patch.object(base, "first_answer", lambda run, plan, wanted: first_answer(run, plan[:1], wanted)):
        yield


@contextmanager
def chunk_limits_are_ignored() -> Iterator[None]:
    """A stream may stop for as long as it likes."""
    with patch.object(Exchange, "of", lambda request: Exchange()):
        yield


@contextmanager
def every_caller_probes() -> Iterator[None]:
    """When an open circuit's time is up, all who wait are let through."""
    with patch.object(HalfOpen, "live", lambda self, now: ()):
        yield


@contextmanager
def silence_is_awaited() -> Iterator[None]:
    """A provider that says nothing holds up its fallback until the deadline."""
    with patch.object(base, "first_answer", lambda run, plan, wanted: _without_silence(run, plan, wanted)):
        yield


def _without_silence(run: Any, plan: Any, wanted: float | None) -> Any:
    run.policies = replace(run.policies, silence_timeout=None)
    return first_answer(run, plan, wanted)


DEFECTS: Sequence[tuple[Callable[[], Any], tuple[str, ...]]] = (
    (no_breaker, ("both down, 4 runs",)),
    (retries_without_limit, ("503 for ever", "both down, 1 run")),
    (every_error_is_retried, ("401: no use", "quota used up")),
    (retry_after_is_ignored, ("429, Retry-After: 2", "429, Retry-After beyond the deadline")),
    (deadlines_are_not_kept, ("says nothing, deadline 2 s", "a byte a second for ever, deadline 4 s")),
    (sleeps_past_the_deadline, ("503 for ever, deadline 1.5 s",)),
    (truncated_streams_pass, ("no-end for ever",)),
    (empty_answers_pass, ("empty for ever", "no-end for ever")),
    (no_fallback, ("500 for ever", "429, Retry-After beyond the deadline")),
    (chunk_limits_are_ignored, ("stops in mid-stream, chunk_timeout=1",)),
    (every_caller_probes, ("circuit's time is up, 30 callers",)),
    (silence_is_awaited, ("says nothing, default settings",)),
)
"""Each with the scenarios that it must spoil."""


async def plant(wall: Wall) -> int:
    """How many of the defects were caught."""
    caught = 0
    for defect, names in DEFECTS:
        with defect():
            rows = await wall.meet_all([scenario for scenario in SCENARIOS if scenario.name in names])
        wrong = {row.scenario.name: "; ".join(row.wrong) for row in rows if row.wrong}
        caught += bool(wrong)
        print(f"planted {defect.__name__}: {wrong or 'NOT NOTICED'}", flush=True)
    return caught


def show(rows: Sequence[Row]) -> None:
    head = ("scenario", "runs", "answered by", "calls", "≤", "fallback", "≤", "slowest s", "deadline", "")
    print("| " + " | ".join(head) + " |")
    print("| --- | ---: | --- |" + " ---: |" * 6 + " --- |")
    for row in rows:
        scenario, seen = row.scenario, row.seen
        who = ", ".join(dict.fromkeys(one.who for one in seen))
        cells = (
            scenario.name,
            len(seen),
            who,
            row.calls,
            scenario.calls[1],
            row.fallback_calls,
            scenario.fallback_calls[1],
            f"{max(one.seconds for one in seen):.2f}",
            f"{scenario.timeout_ms / 1000:g}",
            "; ".join(row.wrong) or "right",
        )
        print("| " + " | ".join(map(str, cells)) + " |")


async def prove(words: str) -> int:
    chosen = [scenario for scenario in SCENARIOS if words in scenario.name]
    async with Wall(longest=sum(scenario.long for scenario in chosen)) as wall:
        await wall.meet_all([SCENARIOS[0]])  # Loads the client libraries, which takes seconds.
        began = time.monotonic()
        rows = await wall.meet_all(chosen)
        show(rows)
        right = sum(not row.wrong for row in rows)
        print(f"\n{right} of {len(rows)} scenarios as they should be, in {time.monotonic() - began:.0f} s\n")
        if words:
            return 0 if right == len(rows) else 1
        caught = await plant(wall)
    print(f"caught/planted: {caught}/{len(DEFECTS)}")
    return 0 if right == len(rows) and caught == len(DEFECTS) else 1


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", metavar="WORDS", help="the scenarios with these words in their name")
    return asyncio.run(prove(options.parse_args().only))


if __name__ == "__main__":
    sys.exit(main())
