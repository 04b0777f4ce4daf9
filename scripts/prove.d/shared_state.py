"""Eight processes share breakers, limits and budgets through a real server, and hammer one provider.

    sh scripts/prove shared-state [--only WORDS] [--rounds N] [--pause SECONDS]

What is measured is what the provider saw, and what an onlooker read in the store meanwhile. Then defects are planted in
the processes, one at a time: the check that it is meant for must fail. Only this machine is used.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from servers import PostgresServer, RedisServer, Server
from shared_kit import until
from steer_llm_sdk import Budget
from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability import CircuitBreakerConfig, RateLimit, RetryPolicy
from steer_llm_sdk.reliability.shared import board, budgets, cell, link, owners, redis
from steer_llm_sdk.reliability.shared.circuit import Admission
from steer_llm_sdk.reliability.shared.state import SharedState

PROCESSES = 8
CALLERS = 50
THRESHOLD = 5
OPEN_FOR = 0.6
PROBE_LEASE = 2.0
LEASE = 2.0
"""Seconds, where a process crashes; the default of 30 would only make the proof longer."""
ESTIMATE, LIMIT = 0.02, 1.0
TRIP_SEEN, FORCED_SEEN = 0.1, 1.0
PICO = 10**12
TEAM = Budget("team", usd=LIMIT)
LARGE = Budget("large", usd=1e6)
CONFIG = CircuitBreakerConfig(
    failure_threshold=THRESHOLD, timeout=OPEN_FOR, half_open_requests=1, success_threshold=1, probe_lease=PROBE_LEASE
)

# ── planted in the processes ─────────────────────────────────────────────────────────────────────────────────────────

PLANTED: dict[str, tuple[str, Callable[[], None]]] = {}
"""By name: the check that must notice it, and what plants it."""


def planted(check: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def note(defect: Callable[[], None]) -> Callable[[], None]:
        PLANTED[defect.__name__.replace("_", " ")] = (check, defect)
        return defect

    return note


def _write_whatever_stands_there() -> None:
    whole = redis.RedisBoard.swap

    async def swap(self: Any, key: str, version: int, *given: Any, **more: Any) -> Any:
        (entry,), _ = await self.read([(key, -1)])
        return await whole(self, key, entry.version, *given, **more)

    redis.RedisBoard.swap = swap  # type: ignore[method-assign]


@planted("recovery")
def a_trip_is_read_changed_and_written() -> None:
    _write_whatever_stands_there()


@planted("budget")
def a_budget_is_read_changed_and_written() -> None:
    _write_whatever_stands_there()


@planted("recovery")
def a_probe_is_admitted_by_what_is_known_here() -> None:
    whole = cell.Cell._make

    async def make(self: Any, pending: Any) -> None:
        if any(isinstance(step, Admission) for step, _ in pending):
            self._alone(pending)
        else:
            await whole(self, pending)

    cell.Cell._make = make  # type: ignore[method-assign]


@planted("trip")
def a_trip_is_told_to_nobody() -> None:
    link.Link._hear = lambda self, key, entry: None  # type: ignore[method-assign]


@planted("forced")
def an_operator_is_heard_when_something_fails() -> None:
    link.Link._hear = lambda self, key, entry: None  # type: ignore[method-assign]
    link.REFRESH = 3600.0


@planted("lost probe")
def a_lost_probe_keeps_its_place() -> None:
    from steer_llm_sdk.reliability.circuit import HalfOpen

    HalfOpen.live = lambda self, now: self.probes  # type: ignore[method-assign]


@planted("crash")
def what_a_crashed_instance_had_reserved_is_given_to_others() -> None:
    budgets.AccountCell.lapse = budgets.AccountCell.release  # type: ignore[method-assign]


@planted("crash")
def what_a_crashed_instance_had_reserved_stays_reserved() -> None:
    owners.swept = lambda owned, now, lapse: owned
    budgets.swept = owners.swept  # type: ignore[attr-defined]


@planted("pause")
def a_silent_store_is_waited_for() -> None:
    SharedState.__init__.__kwdefaults__["patience"] = 6.0


@planted("pause")
def what_was_spent_without_the_store_is_forgotten() -> None:
    owners.OwnedCell.rejoined = lambda self, stored, now: stored  # type: ignore[method-assign]


# ── a process ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Ask(Tool):
    """Asks the provider of the parent, which says whether it works and what it cost."""

    name = "ask"
    provider = "acme"

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    def worst_case(self, request: Any, options: Any) -> Amount:
        return Amount(100, ESTIMATE)

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"call\n")
        line = await reader.readline()
        self._free.append((reader, writer))
        answer = json.loads(line)
        if not answer["ok"]:
            raise ProviderError("down", "acme", status_code=503)
        return {"content": "x", "cost_usd": answer["cost"], "usage": {"total_tokens": 10}}


class Worker:
    """Does what the parent says, a line of JSON at a time."""

    def __init__(self, url: str, provider: int) -> None:
        self.opened: list[float] = []
        registry = ToolRegistry()
        registry.register_tool(Ask(provider))
        breaker = CONFIG.model_copy(update={"on_open": lambda breaker: self.opened.append(time.monotonic())})
        self.config = ReliabilityConfig(
            retry_policy=RetryPolicy(max_attempts=1),
            circuit_breaker_configs={"default": breaker},
            rate_limits={"acme": RateLimit(max_concurrent=1000)},
            retry_budget=None,
            silence_timeout=None,
        )
        self.orchestrator = ReliableOrchestrator(None, self.config, registry=registry, shared=SharedState(url))

    async def one(self, budget: Budget | None, log: list[tuple[float, float, str]]) -> str:
        began = time.monotonic()
        try:
            output = await self.orchestrator.run("q", "ask", None, {"budgets": [budget]} if budget else None)
            end = "ok" if output.status == "succeeded" else str((output.errors or {})["ask"]["type"])
        except BudgetExceeded:
            end = "exceeded"
        log.append((began, time.monotonic(), end))
        return end

    async def calls(self, callers: int, each: int, budget: str, at: float, until: float) -> Any:
        """So many callers make so many calls each, or as many as there is time for."""
        log: list[tuple[float, float, str]] = []
        named = {"team": TEAM, "large": LARGE}.get(budget)
        await asyncio.sleep(max(0.0, at - time.monotonic()))

        async def caller() -> None:
            made = 0
            while made < each and (not until or time.monotonic() < until):
                made += 1
                await self.one(named, log)

        await asyncio.gather(*(caller() for _ in range(callers)))
        return log

    async def seen(self, within: float, **state: str) -> Any:
        """When the circuit was first seen in that state here, on the clock of the machine; None: not in time."""
        wanted = [state["state"]] if "state" in state else ["open", "half_open"]
        breaker = self.orchestrator.executor.breakers.get_or_create("acme")
        end = time.monotonic() + within
        while time.monotonic() < end:
            if breaker.get_state().value in wanted:
                return time.monotonic()
            await asyncio.sleep(0.001)
        return None

    async def trips(self) -> Any:
        found, self.opened = self.opened, []
        return found

    async def reset(self) -> Any:
        await asyncio.to_thread(self.orchestrator.executor.breakers.get_or_create("acme").reset)

    async def up(self) -> Any:
        cells = self.orchestrator.executor.shared.link.cells  # type: ignore[union-attr]
        return not any(each.alone for each in cells)


async def work(url: str, provider: int, control: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", control)
    worker = Worker(url, provider)
    while line := await reader.readline():
        asked = json.loads(line)
        answer = await getattr(worker, asked.pop("do"))(**asked)
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()


# ── the parent ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Provider:
    """Counts what it is asked. Money in trillionths of a dollar; what is under way counts with its estimate."""

    works: bool = True
    takes: float = 0.0
    calls: list[float] = field(default_factory=list)
    under_way: int = 0
    most: int = 0
    spent: int = 0
    most_spent: int = 0
    first_answer: float | None = None
    dice: random.Random = field(default_factory=lambda: random.Random(1))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while await reader.readline():
                self.calls.append(time.monotonic())
                self.under_way += 1
                self.most = max(self.most, self.under_way)
                self.most_spent = max(self.most_spent, self.spent + self.under_way * round(ESTIMATE * PICO))
                works = self.works
                await asyncio.sleep(self.takes)
                cost = round(self.dice.uniform(0, ESTIMATE), 4) if works else 0.0
                self.under_way -= 1
                self.spent += round(cost * PICO)
                self.first_answer = self.first_answer or time.monotonic()
                writer.write(json.dumps({"ok": works, "cost": cost}).encode() + b"\n")
        writer.close()

    def forget(self) -> None:
        self.calls, self.first_answer, self.most = [], None, self.under_way


class Child:
    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process, self._reader, self._writer = process, reader, writer

    async def do(self, what: str, **given: Any) -> Any:
        self._writer.write(json.dumps({"do": what, **given}).encode() + b"\n")
        line = await self._reader.readline()
        if not line:
            raise RuntimeError("a process has died")
        return json.loads(line)

    async def calls(
        self, callers: int = 1, each: int = 1, budget: str = "", at: float = 0.0, until: float = 0.0
    ) -> Any:
        return await self.do("calls", callers=callers, each=each, budget=budget, at=at, until=until)


@dataclass
class Scene:
    url: str
    server: Server
    provider: Provider
    children: list[Child]

    async def all(self, do: Callable[[Child], Awaitable[Any]]) -> list[Any]:
        return list(await asyncio.gather(*(do(child) for child in self.children)))

    async def tripped(self) -> None:
        """The provider fails until everybody's circuit is open."""
        self.provider.works, self.provider.takes = False, 0.0
        await self.children[0].calls(each=THRESHOLD)
        # On a busy machine its open time may be over before everybody has looked.
        seen = await self.all(lambda child: child.do("seen", within=10.0))
        if None in seen:
            raise Failed("not every process has seen the trip within 10 s")

    async def account(self, name: str) -> dict[str, Any]:
        onlooker = board.open_board(self.url)
        ((entry,), _) = await onlooker.read([(f"budget:ever:{name}", -1)])
        await onlooker.aclose()
        found: dict[str, Any] = json.loads(entry.text)["account"] if entry and entry.text else {}
        return found


class Failed(Exception):
    """What was promised does not hold."""


@asynccontextmanager
async def scene(server: Server, plant: str, lease: float) -> AsyncIterator[Scene]:
    provider = Provider()
    children: list[Child] = []
    arrived: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    serving = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    control = await asyncio.start_server(lambda r, w: arrived.put_nowait((r, w)), "127.0.0.1", 0)
    ports = [str(each.sockets[0].getsockname()[1]) for each in (serving, control)]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(PROCESSES):
            command = [sys.executable, __file__, "--worker", server.url, *ports, str(lease), plant]
            started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))  # noqa: ASYNC220
            children.append(Child(started[-1], *await asyncio.wait_for(arrived.get(), 300)))
        found = Scene(server.url, server, provider, children)
        await found.all(lambda child: child.calls(budget="large"))
        provider.forget()
        provider.spent = provider.most_spent = 0
        yield found
    finally:
        for process in started:
            process.kill()
            process.wait()
        serving.close()
        control.close()


async def recovery(found: Scene, rounds: int) -> str:
    """Everybody calls at once when the open time is over: the provider is asked once, until it has answered."""
    probes = []
    for _ in range(rounds):
        await found.tripped()
        opened = time.monotonic()
        found.provider.forget()
        found.provider.works, found.provider.takes = True, 0.3
        await found.all(lambda child: child.calls(callers=CALLERS, at=opened + OPEN_FOR + 0.02))  # noqa: B023
        answer = found.provider.first_answer or 0.0
        probes.append(sum(called < answer for called in found.provider.calls))
        await found.all(lambda child: child.do("seen", state="closed", within=5.0))
    told = f"{rounds} rounds of {PROCESSES} x {CALLERS} callers: {min(probes)} to {max(probes)} probes in each"
    if set(probes) != {1}:
        raise Failed(told)
    return told


async def trip(found: Scene, rounds: int) -> str:
    """How long after the first process the last one knows that the circuit has opened."""
    late = []
    for _ in range(rounds):
        await found.all(lambda child: child.do("trips"))
        await found.tripped()
        await asyncio.sleep(0.3)
        times = [time for times in await found.all(lambda child: child.do("trips")) for time in times[:1]]
        late.append(max(times) - min(times))
        await found.children[0].do("reset")
        await found.all(lambda child: child.do("seen", state="closed", within=5.0))
    told = f"{rounds} trips, seen by all after {_ms(statistics.median(late))} in the median, {_ms(max(late))} at most"
    # The machine may be busy with something else for once: half of them tell of the mechanism.
    if statistics.median(late) > TRIP_SEEN:
        raise Failed(told)
    return told


async def dead(found: Scene, rounds: int) -> str:
    """400 calls to a provider that is down."""
    found.provider.forget()
    found.provider.works, found.provider.takes = False, 0.01
    callers, each = 5, 10
    ends = await found.all(lambda child: child.calls(callers=callers, each=each))
    made = sum(len(log) for log in ends)
    asked = len(found.provider.calls)
    most = THRESHOLD + PROCESSES * callers
    told = (
        f"{made} calls, of which {asked} came to the provider; {THRESHOLD} + {PROCESSES * callers} callers allow {most}"
    )
    if asked > most:
        raise Failed(told)
    return told


async def forced(found: Scene, rounds: int) -> str:
    """`steer-llm breakers open` and `close`, until every process does as it is told."""
    late = []
    steer = [sys.executable, "-m", "steer_llm_sdk.cli", "breakers"]
    for verb, state in (("open", "open"), ("close", "closed")):
        watching = [asyncio.create_task(child.do("seen", state=state, within=30.0)) for child in found.children]
        done = await asyncio.create_subprocess_exec(
            *steer, verb, "acme", "--store", found.url, stdout=subprocess.DEVNULL
        )
        await done.wait()
        returned = time.monotonic()
        seen = [await each for each in watching]
        late.append(max(30.0 if at is None else max(0.0, at - returned) for at in seen))
    told = (
        f"open {_ms(late[0])}, close {_ms(late[1])} after the command had ended, for the last of {PROCESSES} processes"
    )
    if max(late) > FORCED_SEEN:
        raise Failed(told)
    return told


async def lost_probe(found: Scene, rounds: int) -> str:
    """The process that has the probe is killed: another is let through when the lease is over, and not before."""
    await found.tripped()
    found.provider.forget()
    found.provider.works, found.provider.takes = True, 3600.0
    await asyncio.sleep(OPEN_FOR)
    holder, *others = found.children
    probing = asyncio.create_task(holder.calls())
    await until(lambda: bool(found.provider.calls))
    began = time.monotonic()
    holder.process.send_signal(signal.SIGKILL)
    with contextlib.suppress(RuntimeError, ConnectionError):
        await probing
    found.children = others
    found.provider.takes = 0.0
    ends: list[Any] = []
    while time.monotonic() < began + PROBE_LEASE + 2.0 and "ok" not in ends:
        ends = [log[0][2] for log in await found.all(lambda child: child.calls())]
        await asyncio.sleep(0.02)
    took = time.monotonic() - began
    told = f"the next probe after {took:.2f} s, with a lease of {PROBE_LEASE:g} s"
    if "ok" not in ends or took < PROBE_LEASE - 0.1:
        raise Failed(told)
    return told


async def budget(found: Scene, rounds: int) -> str:
    """USD 1.00 for all: by what the provider sees, and by what an onlooker reads in the store."""
    found.provider.takes = 0.01
    over = asyncio.Event()
    looking = asyncio.create_task(_onlooker(found, over))
    ends = await found.all(lambda child: child.calls(callers=10, each=30, budget="team"))
    over.set()
    looks, most_there = await looking
    succeeded = sum(end == "ok" for log in ends for *_, end in log)
    account = await found.account("team")
    made = sum(map(len, ends))
    told = (
        f"{succeeded} of {made} calls paid; at most {_usd(found.provider.most_spent)} spent or under way at the "
        f"provider, {_usd(most_there)} spent or reserved in the store ({looks} looks); "
        f"{_usd(account['spent_usd'])} at the end"
    )
    limit = round(LIMIT * PICO)
    exact = (account["spent_usd"], account["reserved_usd"]) == (found.provider.spent, 0)
    if found.provider.most_spent > limit or most_there > limit or not exact:
        raise Failed(f"{told}, and {_usd(found.provider.spent)} by the provider")
    return told


async def _onlooker(found: Scene, over: asyncio.Event) -> tuple[int, int]:
    looks = most = 0
    onlooker = board.open_board(found.url)
    while not over.is_set():
        ((entry,), _) = await onlooker.read([("budget:ever:team", -1)])
        if entry is not None and entry.text is not None:
            account = json.loads(entry.text)["account"]
            most = max(most, account["spent_usd"] + account["reserved_usd"])
            looks += 1
        await asyncio.sleep(0)
    await onlooker.aclose()
    return looks, most


async def crash(found: Scene, rounds: int) -> str:
    """A process is killed with calls under way: they are charged by their estimate when its lease is over."""
    found.provider.takes = 3600.0
    victim, *others = found.children
    dying = asyncio.create_task(victim.calls(callers=10, budget="team"))
    await until(lambda: len(found.provider.calls) >= 10)
    victim.process.send_signal(signal.SIGKILL)
    with contextlib.suppress(RuntimeError, ConnectionError):
        await dying
    found.children, found.provider.takes = others, 0.0
    held = await found.account("team")
    await asyncio.sleep(LEASE + 0.5)
    await found.children[0].calls(each=1, budget="team")
    account = await found.account("team")
    owed = 10 * round(ESTIMATE * PICO) + found.provider.spent
    told = (
        f"{_usd(held['reserved_usd'])} reserved when it was killed; {LEASE + 0.5:g} s later "
        f"{_usd(account['spent_usd'])} spent, {_usd(account['reserved_usd'])} reserved"
    )
    if (account["spent_usd"], account["reserved_usd"]) != (owed, 0):
        raise Failed(f"{told}; {_usd(owed)} would be right")
    return told


async def pause(found: Scene, seconds: float) -> str:
    """The server is silent for a while: no call fails, none waits but in the first 250 ms, and nothing is forgotten."""
    found.provider.takes = 0.05
    before_it = (await found.account("large"))["spent_usd"]
    began = time.monotonic()
    stop = began + 3 + seconds + 3
    load = [asyncio.create_task(child.calls(each=10**9, budget="large", until=stop)) for child in found.children]
    await asyncio.sleep(3)
    found.server.pause()
    silent = time.monotonic()
    try:
        await asyncio.sleep(seconds)
    finally:
        found.server.resume()
    log = [entry for each in load for entry in await each]
    while not all(await found.all(lambda child: child.do("up"))):  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    normal = [ended - started for started, ended, _ in log if ended < silent and started > began + 0.5]
    # A call that was under way when it fell silent may have had to wait as well.
    later = [ended - started for started, ended, _ in log if started > silent + 0.25]
    failed = [end for *_, end in log if end != "ok"]
    before, after = _p99(normal), _p99(later)
    longest = max(ended - silent for started, ended, _ in log if started <= silent + 0.25 and ended > silent)
    account = await found.account("large")
    forgotten = found.provider.spent - (account["spent_usd"] - before_it)
    told = (
        f"{seconds:g} s silent under {len(log)} calls: {len(failed)} failed; p99 {_ms(before)} before, {_ms(after)} "
        f"after the first 250 ms; those under way then ended within {_ms(longest)}; "
        f"{_usd(abs(forgotten))} of {_usd(found.provider.spent)} USD wrong afterwards"
    )
    if failed or after > 2 * before or longest > 0.25 + 2 * before or forgotten:
        raise Failed(told)
    return told


def _p99(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


def _usd(picos: float) -> str:
    return f"{picos / PICO:.4f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


CHECKS: dict[str, Callable[[Scene, Any], Awaitable[str]]] = {
    "recovery": recovery,
    "trip": trip,
    "dead provider": dead,
    "forced": forced,
    "lost probe": lost_probe,
    "budget": budget,
    "crash": crash,
    "pause": pause,
}


async def check(
    name: str, make: type[RedisServer] | type[PostgresServer], amount: Any, plant: str = ""
) -> tuple[bool, str]:
    # The server ends with the thread that started it, which is this one.
    with make() as server:
        try:
            async with scene(server, plant, LEASE if name == "crash" else owners.LEASE) as found:
                return True, await CHECKS[name](found, amount)
        except (Failed, RuntimeError) as failed:
            return False, str(failed)


async def prove(only: str, rounds: int, seconds: float) -> int:
    holds = True
    stores: list[tuple[str, type[RedisServer] | type[PostgresServer]]] = [
        ("Redis", RedisServer),
        ("PostgreSQL", PostgresServer),
    ]
    for store, make in stores:
        for name in CHECKS:
            if only and only not in name:
                continue
            well, told = await check(name, make, seconds if name == "pause" else rounds)
            holds = holds and well
            print(f"{store:<11}{name:<14}{'holds' if well else 'BROKEN':<8}{told}")
    caught = planted_now = 0
    for defect, (name, _) in PLANTED.items():
        if only and only not in name:
            continue
        well, told = await check(name, RedisServer, 4.0 if name == "pause" else 5, defect)
        planted_now += 1
        caught += not well
        print(f"planted: {defect}: {'NOT NOTICED, ' if well else ''}{told}")
    print(f"caught/planted: {caught}/{planted_now}")
    return 0 if holds and caught == planted_now else 1


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        url, provider, control, lease, plant = sys.argv[2:]
        owners.LEASE, owners.RENEW = float(lease), float(lease) / 8
        if plant:
            PLANTED[plant][1]()
        asyncio.run(work(url, int(provider), int(control)))
        return 0
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="the checks whose name has this in it")
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--pause", type=float, default=10.0, help="seconds for which the server is silent")
    given = options.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return asyncio.run(prove(given.only, given.rounds, given.pause))


if __name__ == "__main__":
    sys.exit(main())
