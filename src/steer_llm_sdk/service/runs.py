"""The runs that this service knows: those under way, with their events, and those that have ended, in SQLite."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.models.events import StreamEvent
from steer_llm_sdk.orchestration._result import as_json, describe_error
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.service.problems import Problem, problem_of
from steer_llm_sdk.streaming.manager import EventManager

R = TypeVar("R")

MOST_RUNS = 10_000
"""Ended runs that are kept; the oldest go first."""
MOST_EVENTS = 2_000
"""Events of one run that are kept; those that come after are counted, and their number stands at the end."""
MOST_RUNNING = 1_000
"""Runs under way that nobody waits for; one more is refused with 503."""

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS run (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, created REAL NOT NULL, state TEXT NOT NULL,
    tool TEXT, record TEXT NOT NULL, events TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS run_by_time ON run (tenant, created);
"""


@dataclass(slots=True)
class Run:
    """`state`: running, then succeeded, partial or failed (as the output says), cancelled, or error: it raised.

    `changed` is replaced each time that something new is to be seen.
    """

    id: str
    tenant: str
    request: Any
    created: float
    state: str = "running"
    tool: str | None = None
    output: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    dropped: int = 0
    task: asyncio.Task[OrchestrationOutput] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> bool:
        return self.state != "running"

    def shown(self) -> dict[str, Any]:
        """What GET answers: the output once it is there, with the run's own id and state beside it."""
        told = {"id": self.id, "state": self.state, "created": self.created, "tool": self.tool}
        if self.error is not None:
            told["error"] = self.error
        return {**(self.output or {}), **told}

    def tell(self, event: Mapping[str, Any]) -> None:
        if len(self.events) < MOST_EVENTS or event["type"] in ("complete", "error"):
            self.events.append({"id": len(self.events) + 1, **event})
        else:
            self.dropped += 1
        self.wake()

    def wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def follow(self, after: int) -> AsyncIterator[dict[str, Any]]:
        """Its events from the one after number `after`, until its end."""
        while True:
            changed = self.changed
            for event in self.events[max(after, 0) :]:
                after = event["id"]
                yield event
            if self.over:
                return
            await changed.wait()


class RunBook:
    """`path` of the SQLite file; ":memory:" for nothing that is kept. `starts` puts a request on its way."""

    def __init__(self, path: str, most_runs: int = MOST_RUNS, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._most_runs = most_runs
        self._clock = clock
        self.on_end: Callable[[Mapping[str, Any]], None] | None = None
        self._running: dict[str, Run] = {}
        # SQLite is asked by one thread, so that a slow disk holds up no run.
        self._thread = ThreadPoolExecutor(1, "steer-runs")
        self._db: sqlite3.Connection | None = None

    async def open(self) -> None:
        await self._do(self._connect)

    async def close(self, drain: float = 0.0) -> None:
        """What is under way gets `drain` seconds, and is then cancelled."""
        tasks = [run.task for run in self._running.values() if run.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=drain)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1.0)
        await self._do(self._disconnect)
        self._thread.shutdown(wait=False)

    def start(
        self,
        run_id: str,
        tenant: str,
        request: Any,
        work: Callable[[EventManager], Awaitable[OrchestrationOutput]],
    ) -> Run:
        """Begin a run that goes on whether or not anybody waits for it."""
        if len(self._running) >= MOST_RUNNING:
            raise Problem(503, f"{MOST_RUNNING} runs are under way", {"Retry-After": "1"})
        run = Run(run_id, tenant, request, self._clock())
        self._running[run_id] = run
        run.task = asyncio.create_task(self._carried_out(run, work))
        run.task.add_done_callback(_seen)
        return run

    async def get(self, tenant: str, run_id: str) -> Run:
        """404 for a run that is not there, or another tenant's: which of both is nobody's business."""
        run = self._running.get(run_id) or await self._do(self._read, run_id)
        if run is None or run.tenant != tenant:
            raise Problem(404, "there is no such run")
        return run

    async def latest(self, tenant: str, count: int = 50) -> list[Run]:
        """The newest first."""
        running = [run for run in self._running.values() if run.tenant == tenant]
        ended = await self._do(self._read_latest, tenant, count)
        # One that ended in between is in both.
        each = {run.id: run for run in [*ended, *running]}.values()
        return sorted(each, key=lambda run: -run.created)[:count]

    def cancel(self, run: Run) -> None:
        if run.task is not None:
            run.task.cancel()

    @property
    def under_way(self) -> int:
        return len(self._running)

    async def _carried_out(
        self, run: Run, work: Callable[[EventManager], Awaitable[OrchestrationOutput]]
    ) -> OrchestrationOutput:
        try:
            output = await work(EventManager(on_create_event=lambda event: self._heard(run, event)))
            run.output, run.state = output.model_dump(mode="json"), output.status
            run.tool = output.metadata.get("tool_name")
            if self.on_end is not None and not output.replayed:
                self.on_end(run.output)
            return output
        except asyncio.CancelledError:
            run.state = "cancelled"
            raise
        except Exception as error:
            run.state, run.error = "error", {**describe_error(error), "status": problem_of(error).status}
            if isinstance(error, BudgetExceeded) and error.output is not None:
                run.output = error.output.model_dump(mode="json")
            raise
        finally:
            if run.dropped:
                run.events.append({"id": len(run.events) + 1, "type": "dropped", "data": {"events": run.dropped}})
            run.wake()
            await asyncio.shield(self._ended(run))

    async def _ended(self, run: Run) -> None:
        try:
            await self._do(self._write, run)
        finally:
            self._running.pop(run.id, None)

    def _heard(self, run: Run, event: StreamEvent) -> None:
        run.tell(told(event))
        if run.tool is None and event.metadata.get("tool_name"):
            run.tool = str(event.metadata["tool_name"])

    # ── in the thread ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _do(self, work: Callable[..., R], *given: Any) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)

    def _connect(self) -> None:
        self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5.0)
        self._db.executescript(_SCHEMA)

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _write(self, run: Run) -> None:
        assert self._db is not None
        record = json.dumps({"request": as_json(run.request)[0], "output": run.output, "error": run.error})
        self._db.execute(
            "INSERT OR REPLACE INTO run VALUES (?, ?, ?, ?, ?, ?, ?)",
            (run.id, run.tenant, run.created, run.state, run.tool, record, json.dumps(run.events)),
        )
        self._db.execute(
            "DELETE FROM run WHERE id IN (SELECT id FROM run ORDER BY created DESC LIMIT -1 OFFSET ?)",
            (self._most_runs,),
        )

    def _read(self, run_id: str) -> Run | None:
        assert self._db is not None
        row = self._db.execute("SELECT * FROM run WHERE id = ?", (run_id,)).fetchone()
        return None if row is None else _run_of(row)

    def _read_latest(self, tenant: str, count: int) -> list[Run]:
        assert self._db is not None
        rows = self._db.execute(
            "SELECT * FROM run WHERE tenant = ? ORDER BY created DESC LIMIT ?", (tenant, count)
        ).fetchall()
        return [_run_of(row) for row in rows]


def _run_of(row: tuple[Any, ...]) -> Run:
    run_id, tenant, created, state, tool, record, events = row
    told = json.loads(record)
    return Run(
        run_id,
        tenant,
        told["request"],
        created,
        state,
        tool,
        told["output"],
        told["error"],
        json.loads(events),
    )


def told(event: StreamEvent) -> dict[str, Any]:
    """An event as JSON."""
    plain = {name: value for name, value in asdict(event).items() if name != "error"}
    if event.PAYLOAD == "error":
        error = getattr(event, "error", None)
        plain["error"] = describe_error(error) if isinstance(error, BaseException) else error
    return {name: as_json(value)[0] for name, value in plain.items()}


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
