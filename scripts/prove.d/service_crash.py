"""The service under kill -9: two processes on one table of runs, of which one is killed again and again under load.

Callers send runs to both with `Prefer: respond-async`, ask at the other process how they are, follow the events of some
with Last-Event-ID from process to process, and cancel some at the process that has not got them. Now and then a process
is stopped for a while instead, and goes on. Afterwards, for each run that was answered with 202:

- it has ended, and the table went from "running" to an end once (a trigger counts);
- whoever asked, at whichever process, was never told of another end, nor that there is no such run;
- without the durable engine it has succeeded, or was cancelled by its caller, or is interrupted and its process was
  killed; with it none is interrupted;
- what it says it did is what the tool did;
- who followed it got its events numbered 1, 2, 3 … and its end.

    sh scripts/prove service-crash [--kills N] [--seed N]    so many kills for each table, and the defects
    sh scripts/prove service-crash --only plain|durable|postgres|defects
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import httpx2

from servers import PostgresServer
from steer_llm_sdk.durable import DurableOrchestrator
from steer_llm_sdk.orchestration import ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.service import _owners, _shelf, runs

HEARTBEAT = 2.0
RATE = 30
"""Runs a second that are sent."""
PATIENCE, SHORT = 60.0, 20.0
"""Seconds that the last runs get to end when nobody is killed any more; less where a defect is planted."""
ENDED = ("succeeded", "cancelled", "interrupted")


# ── planted defects ──────────────────────────────────────────────────────────────────────────────────────────────────


def accepted_before_it_is_written() -> None:
    async def accept(self: Any, run_id: str, tenant: str, request: Any, work: Any) -> Any:
        return self.start(run_id, tenant, request, work)

    runs.RunBook.accept = accept  # type: ignore[method-assign]  # the defect


def nobody_looks_for_orphans() -> None:
    async def sweep(self: Any) -> None:
        pass

    runs.RunBook._sweep = sweep  # type: ignore[method-assign]  # the defect


def who_is_slow_is_taken_for_dead() -> None:
    def lives(self: Any, owner: str) -> bool:
        return False

    _owners.FileOwners.lives = lives  # type: ignore[method-assign]  # the defect


def a_cancel_reaches_only_its_own_process() -> None:
    _shelf.Shelf.stop = lambda self, run_id: None  # type: ignore[method-assign]  # the defect


def the_last_end_wins() -> None:
    whole = _shelf.Shelf._insert

    def insert(self: Any, row: Any, known: str) -> Any:
        return whole(self, row, known.replace("WHERE steer_runs.state = 'running' RETURNING id", "RETURNING id"))

    _shelf.Shelf._insert = insert  # type: ignore[method-assign]  # the defect


def handed_to_the_engine_and_not_written_down() -> None:
    async def handed_in(
        self: Any, run_id: str, tenant: str, request: Any, tool: Any, engine_id: str, *, keyed: bool = False
    ) -> Any:
        return runs.Run(run_id, tenant, request, self._clock(), tool=tool, owner="", engine=engine_id)

    runs.RunBook.handed_in = handed_in  # type: ignore[method-assign]  # the defect


def written_down_and_not_handed_to_the_engine() -> None:
    async def submit(self: Any, *_: Any) -> str:
        return f"lost-{uuid.uuid4().hex}"

    DurableOrchestrator.submit = submit  # type: ignore[method-assign]  # the defect


def who_follows_at_the_other_process_hears_nothing() -> None:
    runs._hear_of = lambda run, events: None
    runs._end_as = lambda run, row: None


DEFECTS = {
    "plain": (
        accepted_before_it_is_written,
        nobody_looks_for_orphans,
        who_is_slow_is_taken_for_dead,
        a_cancel_reaches_only_its_own_process,
        who_follows_at_the_other_process_hears_nothing,
    ),
    "durable": (
        the_last_end_wins,
        handed_to_the_engine_and_not_written_down,
        written_down_and_not_handed_to_the_engine,
    ),
}
_BY_NAME = {defect.__name__: defect for defects in DEFECTS.values() for defect in defects}


# ── a process of the service ─────────────────────────────────────────────────────────────────────────────────────────


class Effect(Tool):
    """Work whose end is on record, in a file that no kill can undo."""

    name = "effect"

    def __init__(self, log: str) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        value = uuid.uuid4().hex
        await asyncio.sleep(request["seconds"])
        os.write(self._log, f"{options['request_id']} {value}\n".encode())
        return value


def serve(port: int, table: str, log: str, durable: bool, defect: str | None) -> None:
    import uvicorn

    from steer_llm_sdk.service import create_app
    from steer_llm_sdk.service._server import PatientProtocol

    logging.disable(logging.WARNING)
    if defect is not None:
        _BY_NAME[defect]()
    registry = ToolRegistry()
    registry.register_tool(Effect(log))
    orchestrator: ReliableOrchestrator
    if durable:
        engine = table if "://" in table else f"sqlite:///{table}.durable"
        orchestrator = DurableOrchestrator(engine, registry=registry, heartbeat=HEARTBEAT)
    else:
        orchestrator = ReliableOrchestrator(registry=registry)
    app = create_app(orchestrator, runs=table)
    config = uvicorn.Config(
        app, port=port, log_level="critical", http=PatientProtocol, ws="none", timeout_graceful_shutdown=10
    )
    uvicorn.Server(config).run()


class Process:
    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self.url = f"http://127.0.0.1:{order['port']}"
        self.begin()

    def begin(self) -> None:
        self.up = False
        self.child = subprocess.Popen(
            [sys.executable, __file__, "--serve", json.dumps(self._order)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def ready(self, client: httpx2.AsyncClient) -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with contextlib.suppress(httpx2.HTTPError):
                if (await client.get(f"{self.url}/readyz")).status_code == 200:
                    self.up = True
                    return
            await asyncio.sleep(0.1)
        raise RuntimeError("a process of the service did not come up")

    def kill(self) -> None:
        self.up = False
        self.child.kill()
        self.child.wait()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# ── a trial ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Trial:
    """What happened, and what is wrong with it."""

    kills: int = 0
    stops: int = 0
    accepted: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    followed: int = 0
    moved: int = 0
    cancels: int = 0
    wrong: list[str] = field(default_factory=list)
    broke: bool = False
    """It came to no end, which says nothing of a defect."""


class Callers:
    def __init__(
        self, processes: list[Process], client: httpx2.AsyncClient, chance: random.Random, seen: Trial, patience: float
    ) -> None:
        self._processes = processes
        self._client = client
        self._chance = chance
        self._seen = seen
        self._patience = patience
        self.accepted: dict[str, str] = {}
        """Where each run was accepted: at this process, in this life of it."""
        self.cancelled: set[str] = set()
        self.killed: set[str] = set()
        self.told: dict[str, dict[str, Any]] = {}
        self.going = True

    def life(self, process: Process) -> str:
        return f"{process.url} {process.child.pid}"

    def one_that_is_up(self) -> Process | None:
        up = [process for process in self._processes if process.up]
        return self._chance.choice(up) if up else None

    def other(self, than: Process) -> Process:
        return next((one for one in self._processes if one is not than and one.up), than)

    async def send(self) -> None:
        """One run after the other, at RATE; each has a task of its own that looks after it."""
        tasks: set[asyncio.Task[None]] = set()
        while self.going:
            await asyncio.sleep(1 / RATE)
            process = self.one_that_is_up()
            if process is not None and len(tasks) < 300:
                task = asyncio.create_task(self._one(process))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)

    async def _one(self, process: Process) -> None:
        kind = self._chance.choices(("plain", "follow", "cancel"), (0.8, 0.15, 0.05))[0]
        seconds = 120.0 if kind == "cancel" else self._chance.uniform(0.05, 1.5)
        life = self.life(process)
        body = {"request": {"seconds": seconds}, "tool_name": "effect"}
        try:
            answer = await self._client.post(f"{process.url}/v1/runs", json=body, headers={"Prefer": "respond-async"})
        except httpx2.HTTPError:
            return
        if answer.status_code != 202:
            return
        run_id = answer.json()["id"]
        self.accepted[run_id] = life
        await self._ask(self.other(process), run_id)
        if kind == "cancel":
            await self._cancel(process, run_id)
        elif kind == "follow":
            try:
                async with asyncio.timeout(self._patience):
                    await self._follow(process, run_id)
            except TimeoutError:
                shown = await self._ask(self.one_that_is_up() or process, run_id) or {}
                self._seen.wrong.append(f"{run_id}: its events did not come to an end; it is {shown.get('state')}")

    async def _ask(self, process: Process, run_id: str) -> dict[str, Any] | None:
        try:
            answer = await self._client.get(f"{process.url}/v1/runs/{run_id}")
        except httpx2.HTTPError:
            return None
        if answer.status_code == 503:
            return None
        if answer.status_code != 200:
            self._seen.wrong.append(f"{run_id} was accepted, and asked for it was {answer.status_code}")
            return None
        shown: dict[str, Any] = answer.json()
        if shown["state"] != "running":
            end = {"state": shown["state"], "content": shown.get("content")}
            first = self.told.setdefault(run_id, end)
            if first != end:
                self._seen.wrong.append(f"{run_id} was told to have ended as {first}, and then as {end}")
        return shown

    async def _cancel(self, process: Process, run_id: str) -> None:
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        self.cancelled.add(run_id)
        began = time.monotonic()
        while time.monotonic() < began + self._patience:
            at = self.other(process)
            with contextlib.suppress(httpx2.HTTPError):
                answer = await self._client.delete(f"{at.url}/v1/runs/{run_id}")
                if answer.status_code == 204:
                    self._seen.cancels += 1
                    return
            await asyncio.sleep(0.25)
        self._seen.wrong.append(f"{run_id} was not cancelled for {self._patience:g} s")

    async def _follow(self, process: Process, run_id: str) -> None:
        """Its events, at the other process first; where that one is gone, go on at whichever there is."""
        at, last = self.other(process), 0
        while True:
            try:
                headers = {"Last-Event-ID": str(last)}
                async with self._client.stream("GET", f"{at.url}/v1/runs/{run_id}/events", headers=headers) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("id: "):
                            if int(line[4:]) != last + 1:
                                self._seen.wrong.append(f"{run_id}: event {line[4:]} came after {last}")
                                return
                            last += 1
                        elif line == "event: end":
                            self._seen.followed += 1
                            return
            except httpx2.HTTPError:
                self._seen.moved += 1
            await asyncio.sleep(0.1)
            at = self.one_that_is_up() or at

    async def settle(self) -> None:
        """Ask for each run until it has ended, at either process."""
        end = time.monotonic() + self._patience
        waiting = [run_id for run_id in self.accepted if run_id not in self.told]
        while waiting and time.monotonic() < end:
            for run_id in waiting:
                await self._ask(self._chance.choice(self._processes), run_id)
            waiting = [run_id for run_id in waiting if run_id not in self.told]
            await asyncio.sleep(0.2)
        for process in self._processes:
            for run_id in self._chance.sample(sorted(self.accepted), min(50, len(self.accepted))):
                await self._ask(process, run_id)


async def trial(table: str, durable: bool, strikes: int, seed: int, defect: str | None) -> Trial:
    chance, seen = random.Random(seed), Trial()
    with tempfile.TemporaryDirectory() as home:
        log = f"{home}/log"
        order = {"table": table, "log": log, "durable": durable, "defect": defect}
        processes = [Process({**order, "port": free_port()}) for _ in range(2)]
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        no_tls = ssl.create_default_context()
        try:
            async with httpx2.AsyncClient(timeout=15, limits=limits, verify=no_tls) as client:
                await asyncio.gather(*(process.ready(client) for process in processes))
                counting(table)
                callers = Callers(processes, client, chance, seen, PATIENCE if defect is None else SHORT)
                sending = asyncio.create_task(callers.send())
                stopped: list[asyncio.Task[None]] = []
                for number in range(strikes):
                    await asyncio.sleep(chance.uniform(1.0, 2.5))
                    victim = processes[number % 2]
                    if number % 4 == 3 or (durable and number % 4 == 1):
                        seen.stops += 1
                        stopped.append(asyncio.create_task(paused(victim, 3 * HEARTBEAT if durable else 1.5)))
                        await stopped[-1]
                    else:
                        seen.kills += 1
                        callers.killed.add(callers.life(victim))
                        victim.kill()
                        victim.begin()
                        await victim.ready(client)
                callers.going = False
                await sending
                await callers.settle()
        finally:
            for process in processes:
                process.child.send_signal(signal.SIGTERM)
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.child.wait(30)
                process.kill()
        verify(table, Path(log), durable, callers, seen)
    return seen


async def paused(process: Process, seconds: float) -> None:
    process.up = False
    process.child.send_signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    process.child.send_signal(signal.SIGCONT)
    process.up = True


# ── what is there afterwards ─────────────────────────────────────────────────────────────────────────────────────────

_COUNTING = {
    "sqlite": """
CREATE TABLE ends (id TEXT, state TEXT);
CREATE TRIGGER ended AFTER UPDATE OF state ON steer_runs WHEN new.state <> 'running'
    BEGIN INSERT INTO ends VALUES (new.id, new.state); END;
CREATE TRIGGER born_ended AFTER INSERT ON steer_runs WHEN new.state <> 'running'
    BEGIN INSERT INTO ends VALUES (new.id, new.state); END;
""",
    "postgres": """
CREATE TABLE ends (id TEXT, state TEXT);
CREATE FUNCTION count_end() RETURNS trigger AS $$ BEGIN INSERT INTO ends VALUES (new.id, new.state); RETURN new; END $$
    LANGUAGE plpgsql;
CREATE TRIGGER ended AFTER INSERT OR UPDATE OF state ON steer_runs FOR EACH ROW WHEN (new.state <> 'running')
    EXECUTE FUNCTION count_end();
""",
}


@contextlib.contextmanager
def opened(table: str) -> Iterator[Any]:
    if "://" in table:
        import psycopg

        with psycopg.connect(table, autocommit=True) as connection:
            yield connection
    else:
        with contextlib.closing(sqlite3.connect(table, isolation_level=None, timeout=30)) as connection:
            yield connection


def counting(table: str) -> None:
    with opened(table) as connection:
        if "://" in table:
            connection.execute(_COUNTING["postgres"])
        else:
            connection.executescript(_COUNTING["sqlite"])


def verify(table: str, log: Path, durable: bool, callers: Callers, seen: Trial) -> None:
    with opened(table) as connection:
        ends: defaultdict[str, list[str]] = defaultdict(list)
        for run_id, state in connection.execute("SELECT id, state FROM ends").fetchall():
            ends[run_id].append(state)
        rows = connection.execute("SELECT id, state, record FROM steer_runs").fetchall()
    known = {run_id: (state, json.loads(record)) for run_id, state, record in rows}
    did: defaultdict[str, list[str]] = defaultdict(list)
    for line in log.read_text().splitlines():
        run_id, value = line.split()
        did[run_id].append(value)
    seen.accepted = len(callers.accepted)
    seen.ends = dict(Counter(state for run_id, (state, _) in known.items() if run_id in callers.accepted))
    for run_id, life in callers.accepted.items():
        state, record = known.get(run_id, ("missing", {}))
        problem = None
        if len(ends[run_id]) != 1:
            problem = f"ended {len(ends[run_id])} times: {ends[run_id]}"
        elif state not in ENDED:
            problem = f"is {state}: {record.get('error')}"
        elif state == "interrupted" and (durable or life not in callers.killed):
            problem = "is interrupted, though " + ("the engine has it" if durable else "its process was not killed")
        elif state == "cancelled" and run_id not in callers.cancelled:
            problem = "is cancelled, which nobody wanted"
        elif state == "succeeded" and record["output"]["content"] not in did[run_id]:
            problem = "says that it did what was not done"
        elif not durable and len(did[run_id]) > 1:
            problem = f"was done {len(did[run_id])} times"
        elif callers.told.get(run_id, {"state": None})["state"] not in (state, None):
            problem = f"is {state}, and a caller was told {callers.told[run_id]['state']}"
        if problem is not None:
            seen.wrong.append(f"{run_id} {problem}")
    if not durable and seen.kills and not seen.ends.get("interrupted"):
        seen.wrong.append("no kill struck a run")


# ── the proof ────────────────────────────────────────────────────────────────────────────────────────────────────────


def tried(table: str, durable: bool, strikes: int, seed: int, defect: str | None = None) -> Trial:
    """A trial in a process of its own."""
    order = json.dumps({"table": table, "durable": durable, "strikes": strikes, "seed": seed, "defect": defect})
    done = subprocess.run(
        [sys.executable, __file__, "--trial", order], capture_output=True, text=True, timeout=600 + 60 * strikes
    )
    if done.returncode:
        return Trial(broke=True, wrong=[f"the trial broke off: {done.stderr.strip().splitlines()[-1:]}"])
    return Trial(**json.loads(done.stdout.splitlines()[-1]))


HEAD = (
    "| table | kills | stops | accepted | succeeded | cancelled | interrupted | followed to an end | moved | wrong |"
    "\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def shown(name: str, seen: Trial) -> str:
    ends = " | ".join(str(seen.ends.get(state, 0)) for state in ENDED)
    return (
        f"| {name} | {seen.kills} | {seen.stops} | {seen.accepted} | {ends} | {seen.followed} | {seen.moved} "
        f"| {len(seen.wrong)} |"
    )


def tables(only: str | None) -> Iterator[tuple[str, str, bool]]:
    with tempfile.TemporaryDirectory() as home:
        if only in (None, "plain"):
            yield "SQLite", f"{home}/plain.db", False
        if only in (None, "durable"):
            yield "SQLite, durable", f"{home}/durable.db", True
    if only in (None, "postgres"):
        with PostgresServer() as server:
            yield "PostgreSQL, durable", server.url, True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("plain", "durable", "postgres", "defects"))
    parser.add_argument("--defect", choices=_BY_NAME, action="append")
    parser.add_argument("--serve")
    parser.add_argument("--trial")
    chosen = parser.parse_args()
    if chosen.serve:
        serve(**json.loads(chosen.serve))
        return 0
    if chosen.trial:
        print(json.dumps(vars(asyncio.run(trial(**json.loads(chosen.trial))))))
        return 0
    return prove(chosen)


def prove(chosen: argparse.Namespace) -> int:
    wrong = 0
    if chosen.only != "defects":
        print(f"two processes, {RATE} runs a second, heartbeat {HEARTBEAT:g} s\n")
        print(HEAD, flush=True)
        for name, table, durable in tables(chosen.only):
            seen = tried(table, durable, chosen.kills, chosen.seed)
            print(shown(name, seen), flush=True)
            for problem in seen.wrong[:20]:
                print(f"  WRONG: {problem}")
            wrong += len(seen.wrong)
    if chosen.only in (None, "defects"):
        planted = [(kind, defect.__name__) for kind, defects in DEFECTS.items() for defect in defects]
        planted = [one for one in planted if not chosen.defect or one[1] in chosen.defect]
        caught = 0
        print()
        for number, (kind, defect) in enumerate(planted):
            with tempfile.TemporaryDirectory() as home:
                seen = tried(f"{home}/runs.db", kind == "durable", 4, chosen.seed + number, defect)
            caught += bool(seen.wrong) and not seen.broke
            print(f"{defect.replace('_', ' ')}: {seen.wrong[0] if seen.wrong else 'NOT CAUGHT'}", flush=True)
        print(f"\ncaught/planted: {caught}/{len(planted)}")
        wrong += len(planted) - caught
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
