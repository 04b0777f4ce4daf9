"""Durable runs under kill -9: workers that are killed and paused in the middle of bundles, on SQLite and PostgreSQL,
where the server is killed as well.

Three workers carry out bundles of five replicates against `steer-llm simulate`, over real HTTP. Again and again one of
them is killed, or stopped for longer than its heartbeat and let go on. Afterwards every run that was accepted has
ended once, with five replicates; each of them is recorded once; and the provider was asked no more often than there are
replicates and calls that were under way in a process when it was killed or stopped.

A run of a worker that was struck must be with the others, or in their queue, within two heartbeats. What does not count
is time in which nobody can take over: the last worker that had taken it died too, no process had a turn, there was no
server, or a process was stopped in the middle of a write, whose lock on the SQLite file it then keeps. The last is said
apart (`with the lock`); each takeover that comes too late is printed with what happened in the meantime.

    sh scripts/prove durable [--kills N] [--seed N]     so many kills on each store, and the planted defects
    sh scripts/prove durable --only sqlite|postgres|defects
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import mmap
import os
import random
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests/integration/durable"))

from durable_process import bundle, simulated

from servers import PostgresServer
from steer_llm_sdk.durable import DurableOrchestrator, QueueLimits, RunInfo, _dbos, _heart, _journal, _tables
from steer_llm_sdk.durable.runner import Claim
from steer_llm_sdk.errors import ConflictError
from steer_llm_sdk.orchestration import PlanDecision, Planner, ReliabilityConfig, ToolRegistry
from steer_llm_sdk.providers.simulated import shipped_recording
from steer_llm_sdk.reliability import RetryPolicy

T = TypeVar("T")
HEARTBEAT = 5.0
K, PARALLEL, AT_ONCE, WORKERS = 5, 2, 2, 3
SLOW = "slow:seconds=0.25"
QUESTION = shipped_recording().questions[3].text
ROUNDS = 5
"""A defect shows by chance; so often it is looked for."""
KILLS_OF_SERVER = 12
"""Kills of workers between two of the server."""
STILL = 0.7
"""Seconds between two looks, after which no process had a turn, or there was no server."""
WRITE_LOCK = 120
"""The byte of the file's shared memory that a process has locked while it writes (SQLite, WAL-index format)."""
PATIENCE = 8 * HEARTBEAT
"""Seconds that the last runs get to end when nobody is killed any more."""


class EitherOne(Planner):
    """Whichever tool the process has drawn: a run that were planned again elsewhere would begin anew with the other."""

    async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
        return PlanDecision(selected_tool=f"facts{os.getpid() % 2}", tool_options={}, reasoning="drawn")


def orchestrator(store: str, base_url: str, *, works: bool) -> DurableOrchestrator:
    registry = ToolRegistry()
    for number in range(2):
        registry.register_tool(bundle(f"facts{number}", base_url))
    config = ReliabilityConfig(retry_policy=RetryPolicy(initial_delay=0.02, max_delay=0.1))
    return DurableOrchestrator(
        store,
        EitherOne(),
        config,
        registry=registry,
        heartbeat=HEARTBEAT,
        works=works,
        queues={"default": QueueLimits(worker_concurrency=AT_ONCE)},
    )


# ── planted defects ──────────────────────────────────────────────────────────────────────────────────────────────────


def calls_are_not_recorded() -> None:
    async def through(call: Any, next: Any, /) -> Any:
        return await next(call)

    _journal.record_call.__code__ = through.__code__


def the_plan_is_made_anew() -> None:
    async def once(self: Any, name: str, make: Any) -> Any:
        return await make()

    _journal.Journal.once = once  # type: ignore[method-assign]  # the defect


def steps_are_found_by_their_order() -> None:
    _dbos._Steps.place_of = lambda self, name: _dbos.DBOS.reserve_step()  # type: ignore[method-assign]  # the defect


def nobody_takes_over() -> None:
    _heart.Heart.look = lambda self: None  # type: ignore[method-assign]  # the defect


def values_are_pickled() -> None:
    from dbos._serialization import DefaultSerializer

    _dbos.DBOSPortableJSONSerializer = DefaultSerializer  # type: ignore[misc, assignment]  # the defect


def any_request_has_the_key() -> None:
    def claim(self: Any, key: str, fingerprint: str, keep: float) -> Claim:
        return Claim(fingerprint, whole(self, key, fingerprint, keep).generation)

    whole = _tables.Keys.claim
    _tables.Keys.claim = claim  # type: ignore[method-assign]  # the defect
    _dbos._info = _without_fingerprint(_dbos._info)


def _without_fingerprint(whole: Callable[[Any], RunInfo]) -> Callable[[Any], RunInfo]:
    class Any_(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            return True

    def info(found: Any) -> RunInfo:
        made = whole(found)
        made.about["fingerprint"] = Any_()  # type: ignore[index]  # what was read is a dict
        return made

    return info


def a_worker_is_dead_at_once() -> None:
    whole = _tables.Workers.beat

    def beat(self: Any, worker: str, heartbeat: float, *rest: Any) -> None:
        whole(self, worker, 0.01, *rest)

    _tables.Workers.beat = beat  # type: ignore[method-assign]  # the defect


def all_workers_have_one_name() -> None:
    whole = _dbos.DbosRunner.__init__

    def init(self: Any, *given: Any, **more: Any) -> None:
        whole(self, *given, **more)
        self.worker = "worker"
        self._own_queue = _dbos._queue_of(self.worker)

    _dbos.DbosRunner.__init__ = init  # type: ignore[method-assign]  # the defect


DEFECTS = {
    defect.__name__: (defect, sign)
    for defect, sign in (
        (calls_are_not_recorded, "calls recorded and not"),
        (the_plan_is_made_anew, "calls recorded and not"),
        (steps_are_found_by_their_order, "calls recorded and not"),
        (nobody_takes_over, "taken over by nobody"),
        (a_worker_is_dead_at_once, "lost in workers that nobody struck"),
        (all_workers_have_one_name, "lost in workers that nobody struck|taken over by nobody"),
        (values_are_pickled, "is a pickle"),
        (any_request_has_the_key, "another request got the key"),
    )
}
"""With what must be said where it is planted: a machine that is too busy is not what catches it."""


# ── a worker ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Counts:
    """Two numbers that outlive the process which counts: calls that it began, and those of them that it recorded."""

    def __init__(self, path: Path, *, new: bool = False) -> None:
        if new:
            path.write_bytes(bytes(16))
        with path.open("r+b") as file:
            self._held = mmap.mmap(file.fileno(), 16)

    def add(self, place: int) -> None:
        (count,) = struct.unpack_from("q", self._held, 8 * place)
        struct.pack_into("q", self._held, 8 * place, count + 1)

    @property
    def under_way(self) -> int:
        began, recorded = struct.unpack("qq", self._held[:])
        return int(began - recorded)


def counted(runner: Any, counts: Counts) -> None:
    whole = runner.step

    async def step(name: str, work: Any) -> Any:
        made = False

        async def once() -> Any:
            nonlocal made
            if name != "plan":
                made = True
                counts.add(0)
            return await work()

        record = await whole(name, once)
        if made:
            counts.add(1)
        return record

    runner.step = step


async def serve(store: str, base_url: str, counts: str, called: str) -> None:
    durable = orchestrator(store, base_url, works=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    original = durable._dbos

    def dbos(given: Any) -> Any:
        runner = original(given)
        counted(runner, Counts(Path(counts)))
        return runner

    durable._dbos = dbos  # type: ignore[method-assign]  # so that its calls are counted
    runner = await durable.started()
    Path(called).write_text(runner.worker)  # noqa: ASYNC240 - once, before anything is under way
    await stop.wait()
    await durable.aclose(drain=5)


def nursery() -> None:
    """Fork a worker for each line of JSON, and say its pid: it need not load anything any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            defect = order.pop("defect")
            if defect is not None:
                DEFECTS[defect][0]()
            try:
                asyncio.run(serve(**order))
            finally:
                os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


class Nursery:
    def __init__(self, home: Path, store: str, base_url: str, defect: str | None) -> None:
        self._home, self._order = home, {"store": store, "base_url": base_url, "defect": defect}
        self._child = subprocess.Popen(
            [sys.executable, __file__, "--nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.born: list[Worker] = []

    def begin(self) -> Worker:
        counts, called = self._home / f"counts-{len(self.born)}", self._home / f"name-{len(self.born)}"
        made = Counts(counts, new=True)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps({**self._order, "counts": str(counts), "called": str(called)}) + "\n")
        self._child.stdin.flush()
        self.born.append(Worker(int(self._child.stdout.readline()), made, called))
        return self.born[-1]

    async def end(self) -> None:
        """Tell all to stop; who has not within 15 s is killed."""
        for worker in self.born:
            worker.send(signal.SIGTERM)
        end = time.monotonic() + 15
        while any(worker.send(0) for worker in self.born) and time.monotonic() < end:  # noqa: ASYNC110 - processes set no event
            await asyncio.sleep(0.1)
        self._child.communicate()


class Worker:
    def __init__(self, pid: int, counts: Counts, called: Path) -> None:
        self.counts, self._pid, self._called = counts, pid, called
        self.struck = False
        """Whether it was killed or stopped: only then may a call be lost."""

    @property
    def name(self) -> str | None:
        return self._called.read_text() or None if self._called.exists() else None

    def stop(self) -> bool:
        """Stop it; whether it has the lock now with which one writes into a SQLite file."""
        self.send(signal.SIGSTOP)
        with contextlib.suppress(OSError):
            while Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                time.sleep(0.001)
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line]
        return any(
            (kind, pid) == ("WRITE", str(self._pid)) and int(first) <= WRITE_LOCK <= int(last)
            for _, _, _, kind, pid, _, first, last in held
            if last != "EOF"
        )

    def send(self, how: int) -> bool:
        """False where it is gone."""
        try:
            os.kill(self._pid, how)
        except ProcessLookupError:
            return False
        return True


# ── a trial ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Trial:
    """What happened, and what is wrong with it."""

    kills: int = 0
    pauses: int = 0
    with_lock: int = 0
    servers_killed: int = 0
    stood_still: int = 0
    runs: int = 0
    taken_over: int = 0
    replicates: int = 0
    calls: int = 0
    lost: int = 0
    takeovers: list[float] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Orphan:
    """A run of a worker that was struck; `since` is moved on while nobody can take it over."""

    worker: str
    since: float
    meanwhile: list[str] = field(default_factory=list)


async def trial(kind: str, kills: int, seed: int, defect: str | None) -> Trial:
    with tempfile.TemporaryDirectory() as home, contextlib.ExitStack() as stack:
        server = stack.enter_context(PostgresServer()) if kind == "postgres" else None
        store = f"sqlite:///{home}/runs.db" if server is None else server.url
        base_url, asked = stack.enter_context(simulated("--fault", SLOW))
        workers = Nursery(Path(home), store, base_url, defect)
        if defect is not None:
            DEFECTS[defect][0]()
        return await Strikes(server, workers, asked, random.Random(seed)).trial(
            orchestrator(store, base_url, works=False), kills
        )


async def in_the_end(ask: Callable[[], Awaitable[T]]) -> T:
    """What the store answers, also where it was killed and is there again in a moment."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return await ask()
        except Exception:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)


class Strikes:
    def __init__(
        self, server: PostgresServer | None, workers: Nursery, asked: Callable[[], int], chance: random.Random
    ) -> None:
        self.server, self.workers, self.asked, self.chance = server, workers, asked, chance
        self.seen = Trial()
        self.ids: list[str] = []
        self.orphans: dict[str, Orphan] = {}
        self.running: dict[str, str | None] = {}
        """Runs under way and whose they are, when last looked at; `waiting` are those in queues."""
        self.waiting: set[str] = set()

    async def trial(self, durable: DurableOrchestrator, kills: int) -> Trial:
        seen = self.seen
        runner: Any = await in_the_end(durable.started)
        self.workers_of_store = _tables.Workers(runner._store)
        living = [self.workers.begin() for _ in range(WORKERS)]
        later: list[asyncio.Task[None]] = []
        watching = asyncio.create_task(self.watch(runner))
        try:
            end = time.monotonic() + 60 + 15 * kills
            while seen.kills < kills and time.monotonic() < end:
                # One that met a server which was down when it began has given up.
                living = [one if one.send(0) else self.workers.begin() for one in living]
                await self.submit(durable, {one.name for one in living})
                await asyncio.sleep(self.chance.uniform(0.3, 1.3))
                at_work = set(self.running.values())
                victims = [one for one in living if one.name in at_work]
                if not victims:
                    continue
                victim = self.chance.choice(victims)
                living.remove(victim)
                if pausing := self.strike(victim):
                    later.append(asyncio.create_task(pausing))
                elif self.server is not None and seen.kills % KILLS_OF_SERVER == 0:
                    self.kill_the_server()
                living.append(self.workers.begin())
            await asyncio.gather(*later)
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end and await in_the_end(lambda: self.unfinished(runner)):  # noqa: ASYNC110 - a table sets no event
                await asyncio.sleep(0.5)
        finally:
            watching.cancel()
            await self.workers.end()
        if seen.kills < kills:
            seen.wrong.append(f"only {seen.kills} of {kills} times was a worker at work")
        if self.orphans:
            seen.wrong.append(f"{len(self.orphans)} runs of a dead worker were taken over by nobody")
        seen.runs, seen.calls = len(self.ids), self.asked()
        await _verify(durable, self.ids, self.workers.born, seen)
        if self.asked() != seen.calls:
            seen.wrong.append("a replay asked the provider")
        await durable.aclose()
        return seen

    async def submit(self, durable: DurableOrchestrator, living: set[str | None]) -> None:
        """There is always more to do than the living can."""
        at_work = sum(worker in living for worker in self.running.values())
        for _ in range(WORKERS * AT_ONCE + 1 - at_work - len(self.waiting)):
            options = {"idempotency_key": f"key-{len(self.ids)}"}
            given: dict[str, Any] = {"tool_options": {"max_parallel": PARALLEL}, "options": options}
            self.ids.append(await in_the_end(lambda: durable.submit(QUESTION, **given)))  # noqa: B023 - asked before the next turn
            self.waiting.add(self.ids[-1])

    def strike(self, victim: Worker) -> Any:
        """Kill it; or stop it, and give what lets it go on later."""
        victim.struck = True
        pausing = self.chance.random() < 0.2
        locked = pausing and victim.stop()
        if not pausing:
            victim.send(signal.SIGKILL)
        now, name = time.monotonic(), victim.name
        assert name is not None
        self.orphans |= {run: Orphan(name, now) for run, worker in self.running.items() if worker == name}
        self.happens(f"{name} {'stopped' if pausing else 'killed'}{' with the lock' if locked else ''}")
        taken = self.taken_by(name)
        for orphan in self.orphans.values():
            if orphan.worker in taken:
                orphan.since = now  # Whoever was to take it over is dead as well.
        if pausing:
            self.seen.pauses += 1
            self.seen.with_lock += locked
            return self.go_on_later(victim, now if locked else None)
        self.seen.kills += 1
        return None

    def taken_by(self, taker: str) -> set[str]:
        query = "SELECT id FROM steer_workers WHERE taken_by = ?"
        with contextlib.suppress(Exception), self.workers_of_store._transaction() as ask:
            return {name for (name,) in ask(query, taker)}
        with self.workers_of_store._transaction() as ask:  # The server was killed since, and the connection with it.
            return {name for (name,) in ask(query, taker)}

    def happens(self, what: str) -> None:
        for orphan in self.orphans.values():
            orphan.meanwhile.append(f"{time.monotonic() - orphan.since:.1f} s: {what}")

    async def go_on_later(self, worker: Worker, locked_since: float | None) -> None:
        """For a second; then it is told to end, so that those which come after it have room."""
        await asyncio.sleep(2 * HEARTBEAT)
        if locked_since is not None:
            for orphan in self.orphans.values():
                orphan.since += time.monotonic() - max(orphan.since, locked_since)
        worker.send(signal.SIGCONT)
        await asyncio.sleep(1)
        worker.send(signal.SIGTERM)

    def kill_the_server(self) -> None:
        assert self.server is not None
        self.happens("the server killed")
        self.server.kill()
        time.sleep(self.chance.uniform(0, 0.5))
        self.server.start()
        self.seen.servers_killed += 1

    async def watch(self, runner: Any) -> None:
        """See whose the runs are, and how long it takes until that of a worker which was struck is given to the others:
        it is another's, or waits in their queue."""
        last = time.monotonic()
        while True:
            with contextlib.suppress(Exception):
                await self.look(runner)
            await asyncio.sleep(0.15)
            still, last = time.monotonic() - last, time.monotonic()
            if still > STILL:
                self.stood_still(still)

    def stood_still(self, seconds: float) -> None:
        """As a whole: nobody had a turn. After so long, whoever is first now takes all others for dead."""
        self.happens(f"nobody had a turn for {seconds:.1f} s")
        for orphan in self.orphans.values():
            orphan.since += seconds
        if seconds > HEARTBEAT / 2:
            self.seen.stood_still += 1
            for worker in self.workers.born:
                worker.struck = True

    async def look(self, runner: Any) -> None:
        began = time.monotonic()
        waiting = {run.id for run in await runner.list("waiting", 1000)}
        running = {run.id: run.worker for run in await runner.list("running", 1000)}
        self.waiting, self.running = waiting, running
        for run_id, orphan in list(self.orphans.items()):
            if orphan.since < began and running.get(run_id) != orphan.worker:
                self.seen.takeovers.append(time.monotonic() - orphan.since)
                if self.seen.takeovers[-1] > 2 * HEARTBEAT:
                    self.seen.late.append(
                        f"{run_id} after {self.seen.takeovers[-1]:.1f} s; {', '.join(orphan.meanwhile)}"
                    )
                del self.orphans[run_id]

    async def unfinished(self, runner: Any) -> bool:
        await self.look(runner)
        return bool(self.waiting or self.running)


async def _verify(durable: DurableOrchestrator, ids: list[str], workers: list[Worker], seen: Trial) -> None:
    runner = await durable.started()
    known = {run.id: run for run in await runner.list(limit=10_000)}
    if sorted(known) != sorted(ids):
        seen.wrong.append(f"{len(ids)} runs were accepted and {len(known)} are there")
    for run_id in ids:
        run = await runner.info(run_id)
        problem = "is not there" if run is None else _problem(run)
        steps = [name for name in await runner.steps(run_id) if name != "plan"]
        seen.replicates += len(steps)
        if problem is None and len(steps) != K:
            problem = f"has {len(steps)} calls recorded and not {K}"
        if problem is not None:
            seen.wrong.append(f"{run_id} {problem}")
    seen.taken_over = sum("deaths" in run.about for run in known.values())
    seen.lost = sum(worker.counts.under_way for worker in workers if worker.struck)
    kept = sum(worker.counts.under_way for worker in workers if not worker.struck)
    if kept:
        seen.wrong.append(f"{kept} calls were lost in workers that nobody struck")
    if seen.calls > seen.replicates + seen.lost:
        seen.wrong.append(f"{seen.calls} calls for {seen.replicates} replicates and {seen.lost} under way at a strike")
    late = [took for took in seen.takeovers if took > 2 * HEARTBEAT]
    if late:
        seen.wrong.append(f"{len(late)} takeovers took more than two heartbeats, up to {max(late):.1f} s")
    await _verify_the_key(durable, ids, seen)
    if _pickled(durable):
        seen.wrong.append("something in the store is a pickle")


def _problem(run: RunInfo) -> str | None:
    if run.state != "finished" or run.ended is None:
        return f"is {run.state}"
    output = run.ended.get("output")
    if output is None:
        return f"raised {run.ended['raised']['type']}: {run.ended['raised']['message']}"
    if output["status"] != "succeeded" or output["per_agent"][output["metadata"]["tool_name"]]["attempts"] != K:
        return f"came to {output['status']}"
    return None


async def _verify_the_key(durable: DurableOrchestrator, ids: list[str], seen: Trial) -> None:
    """A finished run is replayed, and another request does not get its key. Of neither key this process knows more than
    the store does."""
    for run_id, question in ((ids[0], QUESTION), (ids[-1], "Another question?")):
        options = {"idempotency_key": run_id.partition(":")[2], "timeout_ms": 20_000}
        try:
            output = await durable.run(question, None, {"max_parallel": PARALLEL}, options)
        except ConflictError:
            if question == QUESTION:
                seen.wrong.append("a replay was a conflict")
        except Exception as error:
            seen.wrong.append(f"a replay raised {error!r}")
        else:
            if question != QUESTION:
                seen.wrong.append("another request got the key")
            elif not output.replayed:
                seen.wrong.append("a finished run was not replayed")


def _pickled(durable: DurableOrchestrator) -> bool:
    store: Any = durable._store
    query = "SELECT count(*) FROM {}operation_outputs WHERE serialization <> 'portable_json'"
    if store.path is None:
        import psycopg

        with psycopg.connect(store.url) as connection:
            row = connection.execute(query.format("dbos.")).fetchone()
    else:
        import sqlite3

        with contextlib.closing(sqlite3.connect(store.path)) as file:
            row = file.execute(query.format("")).fetchone()
    return bool(row and row[0])


# ── the proof ────────────────────────────────────────────────────────────────────────────────────────────────────────


def tried(kind: str, kills: int, seed: int, defect: str | None = None) -> Trial:
    """A trial in a process of its own, in which a defect may be planted."""
    order = json.dumps({"kind": kind, "kills": kills, "seed": seed, "defect": defect})
    done = subprocess.run(
        [sys.executable, __file__, "--trial", order], capture_output=True, text=True, timeout=600 + 20 * kills
    )
    if done.returncode:
        return Trial(wrong=[f"the trial broke off: {done.stderr.strip().splitlines()[-1:]}"])
    return Trial(**json.loads(done.stdout.splitlines()[-1]))


def shown(name: str, seen: Trial, took: float) -> str:
    times = sorted(seen.takeovers) or [0.0]
    struck = (seen.kills, seen.pauses, seen.with_lock, seen.servers_killed)
    cells = (name, *struck, seen.runs, seen.taken_over, seen.replicates, seen.lost)
    late = (f"{statistics.median(times):.1f}", f"{times[-1]:.1f}", f"{took:.0f}", len(seen.wrong))
    return "| " + " | ".join(map(str, (*cells, seen.calls, *late))) + " |"


HEAD = (
    "| store | kills | pauses | with the lock | server killed | runs | of them taken over | replicates "
    "| calls under way at a strike | provider's calls | takeover p50 s | max s | s | wrong |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)
STORES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of workers, for each store")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("sqlite", "postgres", "defects"))
    parser.add_argument("--defect", choices=DEFECTS, action="append")
    parser.add_argument("--nursery", action="store_true")
    parser.add_argument("--trial")
    chosen = parser.parse_args()
    if chosen.nursery:
        nursery()
        return 0
    if chosen.trial:
        seen = asyncio.run(trial(**json.loads(chosen.trial)))
        print(json.dumps(vars(seen)))
        return 0
    return prove(chosen)


def prove(chosen: argparse.Namespace) -> int:
    wrong = 0
    if chosen.only != "defects":
        print(f"heartbeat {HEARTBEAT:g} s, {WORKERS} workers of {AT_ONCE} runs, bundles of {K}, {PARALLEL} at a time\n")
        print(HEAD, flush=True)
        kills = 0
        for kind, name in STORES.items():
            if chosen.only not in (None, kind):
                continue
            began = time.monotonic()
            seen = tried(kind, chosen.kills, chosen.seed)
            kills += seen.kills + seen.servers_killed
            print(shown(name, seen, time.monotonic() - began), flush=True)
            if seen.stood_still:
                print(f"  the machine stood still {seen.stood_still} times")
            for late in seen.late[:20]:
                print(f"  late: {late}")
            for problem in seen.wrong[:20]:
                print(f"  WRONG: {problem}")
            wrong += len(seen.wrong)
        print(f"\n{kills} kills")
    if chosen.only in (None, "defects"):
        planted = chosen.defect or list(DEFECTS)
        caught = 0
        print()
        for number, defect in enumerate(planted):
            signs, found, rounds = DEFECTS[defect][1].split("|"), "", 0
            while not found and rounds < ROUNDS:
                rounds += 1
                seen = tried("sqlite", 3, chosen.seed + number + 100 * rounds, defect)
                found = next((problem for problem in seen.wrong if any(sign in problem for sign in signs)), "")
            caught += bool(found)
            says = f"{found} (round {rounds})" if found else "NOT CAUGHT"
            print(f"{defect.replace('_', ' ')}: {says}", flush=True)
        print(f"\ncaught/planted: {caught}/{len(planted)}")
        wrong += len(planted) - caught
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
