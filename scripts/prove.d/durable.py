"""Durable runs under kill -9: workers that are killed and paused in the middle of bundles, on SQLite and PostgreSQL.

Three workers carry out bundles of five replicates against the simulated provider, over real HTTP. Again and again one
of them is killed, or stopped for longer than its heartbeat and let go on. Afterwards every run that was accepted has
ended once, with five replicates; each of them is recorded once; and the provider was asked no more often than there are
replicates and calls that were under way in a process when it was killed or stopped.

    sh scripts/prove durable [--kills N] [--seed N]     so many kills on each store, and the planted defects
    sh scripts/prove durable --only sqlite|postgres|defects
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import mmap
import os
import random
import re
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests/integration/durable"))


from durable_process import bundle

from servers import PostgresServer
from steer_llm_sdk.durable import DurableOrchestrator, QueueLimits, RunInfo, _dbos, _heart, _journal, _tables
from steer_llm_sdk.durable.runner import Claim
from steer_llm_sdk.errors import ConflictError
from steer_llm_sdk.orchestration import PlanDecision, Planner, ReliabilityConfig, ToolRegistry
from steer_llm_sdk.providers.simulated import shipped_recording
from steer_llm_sdk.reliability import RetryPolicy

HEARTBEAT = 5.0
K, PARALLEL, AT_ONCE, WORKERS = 5, 2, 2, 3
SLOW = "slow:seconds=0.25"
QUESTION = shipped_recording().questions[3].text
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

    _journal.Journal.once = once  # type: ignore[method-assign]


def steps_are_found_by_their_order() -> None:
    _dbos._Steps.place_of = lambda self, name: _dbos.DBOS.reserve_step()  # type: ignore[method-assign]


def nobody_takes_over() -> None:
    _heart.Heart._look = lambda self: None  # type: ignore[method-assign]


def values_are_pickled() -> None:
    from dbos._serialization import DefaultSerializer

    _dbos.DBOSPortableJSONSerializer = DefaultSerializer  # type: ignore[misc, assignment]


def any_request_has_the_key() -> None:
    def claim(self: Any, key: str, fingerprint: str, keep: float) -> Claim:
        return Claim(fingerprint, whole(self, key, fingerprint, keep).generation)

    whole = _tables.Keys.claim
    _tables.Keys.claim = claim  # type: ignore[method-assign]
    _dbos._info = _without_fingerprint(_dbos._info)


def _without_fingerprint(whole: Callable[[Any], RunInfo]) -> Callable[[Any], RunInfo]:
    class Any_(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            return True

    def info(found: Any) -> RunInfo:
        made = whole(found)
        made.about["fingerprint"] = Any_()  # type: ignore[index]
        return made

    return info


def a_worker_is_dead_at_once() -> None:
    whole = _tables.Workers.beat

    def beat(self: Any, worker: str, heartbeat: float, *rest: Any) -> None:
        whole(self, worker, 0.01, *rest)

    _tables.Workers.beat = beat  # type: ignore[method-assign]


DEFECTS = {
    defect.__name__: defect
    for defect in (
        calls_are_not_recorded,
        the_plan_is_made_anew,
        steps_are_found_by_their_order,
        nobody_takes_over,
        a_worker_is_dead_at_once,
        values_are_pickled,
        any_request_has_the_key,
    )
}


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


async def serve(store: str, base_url: str, counts: str) -> None:
    durable = orchestrator(store, base_url, works=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    original = durable._dbos

    def dbos(given: Any) -> Any:
        runner = original(given)
        counted(runner, Counts(Path(counts)))
        return runner

    durable._dbos = dbos  # type: ignore[method-assign]
    runner = await durable.started()
    sys.stdout.write(runner.worker + "\n")
    sys.stdout.flush()
    await stop.wait()
    await durable.aclose(drain=5)


class Worker:
    def __init__(self, store: str, base_url: str, home: Path, number: int, defect: str | None) -> None:
        path = home / f"counts-{number}"
        self.counts = Counts(path, new=True)
        self.struck = False
        """Whether it was killed or stopped: only then may a call be lost."""
        order = {"store": store, "base_url": base_url, "counts": str(path), "defect": defect}
        self._child = subprocess.Popen(
            [sys.executable, __file__, "--serve", json.dumps(order)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._name: str | None = None

    async def name(self) -> str:
        if self._name is None:
            assert self._child.stdout is not None
            self._name = (await asyncio.to_thread(self._child.stdout.readline)).strip()
        return self._name

    def send(self, how: signal.Signals) -> None:
        self._child.send_signal(how)

    def end(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(15)
        self._child.kill()
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()


@contextlib.contextmanager
def provider() -> Iterator[tuple[str, str]]:
    """`steer-llm simulate` as a process of its own: its base URL, and where it counts."""
    command = [sys.executable, "-u", "-m", "steer_llm_sdk.cli", "simulate", "--port", "0", "--fault", SLOW]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    try:
        found: dict[str, str] = {}
        while "Control" not in found:
            if match := re.match(r"(OpenAI's format|Control) +(http://[^/]+)", child.stdout.readline()):
                found[match[1]] = match[2]
        yield found["OpenAI's format"], f"{found['Control']}/__calls"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def asked(calls_url: str) -> int:
    with urllib.request.urlopen(calls_url, timeout=10) as answer:
        count: int = json.load(answer)["requests"]
        return count


# ── a trial ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Trial:
    """What happened, and what is wrong with it."""

    kills: int = 0
    pauses: int = 0
    runs: int = 0
    taken_over: int = 0
    replicates: int = 0
    calls: int = 0
    lost: int = 0
    takeovers: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


async def trial(store: str, strikes: int, seed: int, defect: str | None) -> Trial:
    chance, seen = random.Random(seed), Trial()
    if defect is not None:
        DEFECTS[defect]()
    with tempfile.TemporaryDirectory() as home, provider() as (base_url, calls_url):
        workers: list[Worker] = []

        def begin() -> Worker:
            workers.append(Worker(store, base_url, Path(home), len(workers), defect))
            return workers[-1]

        durable = orchestrator(store, base_url, works=False)
        runner = await durable.started()
        living = [begin() for _ in range(WORKERS)]
        ids: list[str] = []
        watching: list[asyncio.Task[None]] = []
        try:
            end = time.monotonic() + 60 + 15 * strikes
            while seen.kills + seen.pauses < strikes and time.monotonic() < end:
                under_way = [run for run in await runner.list(limit=1000) if run.state in ("waiting", "running")]
                for _ in range(WORKERS * AT_ONCE + 1 - len(under_way)):
                    key = f"key-{len(ids)}"
                    given = {"tool_options": {"max_parallel": PARALLEL}, "options": {"idempotency_key": key}}
                    ids.append(await durable.submit(QUESTION, **given))
                await asyncio.sleep(chance.uniform(0.3, 1.5))
                at_work = {run.worker for run in await runner.list("running")}
                struck = [one for one in living if await one.name() in at_work and not one.struck]
                if not struck:
                    continue
                victim = chance.choice(struck)
                victim.struck = True
                if chance.random() < 0.2:
                    seen.pauses += 1
                    victim.send(signal.SIGSTOP)
                    watching.append(asyncio.create_task(_go_on_later(victim)))
                else:
                    seen.kills += 1
                    victim.send(signal.SIGKILL)
                watching.append(asyncio.create_task(_taken_over(runner, await victim.name(), seen)))
                living.remove(victim)
                living.append(begin())
            await asyncio.gather(*watching)
            for _ in range(round(PATIENCE / 0.2)):
                if not await _unfinished(runner):
                    break
                await asyncio.sleep(0.2)
        finally:
            for worker in workers:
                worker.send(signal.SIGTERM)
            for worker in workers:
                await asyncio.to_thread(worker.end)
        if seen.kills + seen.pauses < strikes:
            seen.wrong.append(f"only {seen.kills + seen.pauses} of {strikes} times was a worker at work")
        seen.runs = len(ids)
        seen.calls = asked(calls_url)
        await _verify(durable, ids, workers, seen)
        if asked(calls_url) != seen.calls:
            seen.wrong.append("a replay asked the provider")
        await durable.aclose()
    return seen


async def _unfinished(runner: Any) -> bool:
    return any(run.state != "finished" for run in await runner.list(limit=10_000))


async def _go_on_later(worker: Worker) -> None:
    await asyncio.sleep(2 * HEARTBEAT)
    worker.send(signal.SIGCONT)


async def _taken_over(runner: Any, worker: str, seen: Trial) -> None:
    """Wait until every run that it had is somebody else's, and note how long that took for each."""
    struck = time.monotonic()
    orphans = {run.id for run in await runner.list("running", 1000) if run.worker == worker}
    while orphans and time.monotonic() < struck + PATIENCE:
        await asyncio.sleep(0.1)
        mine = {run.id for run in await runner.list("running", 1000) if run.worker == worker}
        waiting = {run.id for run in await runner.list("waiting", 1000)}
        for run_id in orphans - mine - waiting:
            seen.takeovers.append(time.monotonic() - struck)
            orphans.discard(run_id)
        orphans &= mine | waiting
    if orphans:
        seen.wrong.append(f"{len(orphans)} runs of a dead worker were taken over by nobody")


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


def tried(store: str, strikes: int, seed: int, defect: str | None = None) -> Trial:
    """A trial in a process of its own, in which a defect may be planted."""
    order = json.dumps({"store": store, "strikes": strikes, "seed": seed, "defect": defect})
    done = subprocess.run(
        [sys.executable, __file__, "--trial", order], capture_output=True, text=True, timeout=600 + 20 * strikes
    )
    if done.returncode:
        return Trial(wrong=[f"the trial broke off: {done.stderr.strip().splitlines()[-1:]}"])
    return Trial(**json.loads(done.stdout.splitlines()[-1]))


def shown(name: str, seen: Trial) -> str:
    times = sorted(seen.takeovers) or [0.0]
    return (
        f"| {name} | {seen.kills} | {seen.pauses} | {seen.runs} | {seen.taken_over} | {seen.replicates} | {seen.lost} "
        f"| {seen.calls} | {statistics.median(times):.1f} | {times[-1]:.1f} | {len(seen.wrong)} |"
    )


HEAD = (
    "| store | kills | pauses | runs | of them taken over | replicates | calls under way at a strike "
    "| provider's calls | takeover p50 s | max s | wrong |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def stores(only: str | None) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as home:
        if only in (None, "sqlite"):
            yield "SQLite", f"sqlite:///{home}/runs.db"
    if only in (None, "postgres"):
        with PostgresServer() as server:
            yield "PostgreSQL", server.url


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("sqlite", "postgres", "defects"))
    parser.add_argument("--defect", choices=DEFECTS, action="append")
    parser.add_argument("--serve")
    parser.add_argument("--trial")
    chosen = parser.parse_args()
    if chosen.serve:
        order = json.loads(chosen.serve)
        defect = order.pop("defect")
        if defect is not None:
            DEFECTS[defect]()
        asyncio.run(serve(**order))
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
        for name, store in stores(chosen.only):
            seen = tried(store, chosen.kills, chosen.seed)
            print(shown(name, seen), flush=True)
            for problem in seen.wrong[:20]:
                print(f"  WRONG: {problem}")
            wrong += len(seen.wrong)
    if chosen.only in (None, "defects"):
        planted = chosen.defect or list(DEFECTS)
        caught = 0
        print()
        for number, defect in enumerate(planted):
            with tempfile.TemporaryDirectory() as home:
                seen = tried(f"sqlite:///{home}/runs.db", 3, chosen.seed + number, defect)
            caught += bool(seen.wrong)
            print(f"{defect.replace('_', ' ')}: {seen.wrong[0] if seen.wrong else 'NOT CAUGHT'}", flush=True)
        print(f"\ncaught/planted: {caught}/{len(planted)}")
        wrong += len(planted) - caught
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
