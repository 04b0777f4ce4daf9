"""DBOS as the engine: what it does is used as it is, by its public interface; what it leaves open is closed here.

It leaves open: the steps of a run come in any order (they are found by name, not by number), nobody picks up the runs
of a dead process (heartbeats, takeover), values are pickled (they are JSON here), and a SQLite file is not in WAL mode.
A process that was taken for dead and is not cannot write any more: DBOS gives each execution of a run a token.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from dbos import (
    DBOS,
    DBOSClient,
    DBOSConfig,
    DBOSPortableJSONSerializer,
    PortableWorkflowError,
    SetWorkflowAttributes,
    SetWorkflowID,
    StepReservation,
    WorkflowHandleAsync,
    WorkflowStatus,
)
from dbos import error as engine_errors

from steer_llm_sdk.durable._heart import Heart
from steer_llm_sdk.durable._records import Json
from steer_llm_sdk.durable._tables import HELD_AT_MOST, Keys, Store, Worker, Workers
from steer_llm_sdk.durable.queues import QueueLimits
from steer_llm_sdk.durable.runner import CarryOut, Claim, RunInfo, State
from steer_llm_sdk.errors import InvalidRequest, OrchestratorError, StoreUnavailable

R = TypeVar("R")
_log = logging.getLogger(__name__)

APPLICATION = "steer-llm"
QUEUE = "steer"
"""The queue of runs that belong to no provider's queue; that of a provider is "steer.NAME", and "steer@WORKER" that of
a process which carries out nothing but what its own callers wait for."""
POLL = 0.05
"""Seconds between two looks at a run that somebody else carries out."""
LOOK = 0.25
"""Seconds between two looks into a queue."""
MOST_DEATHS = 10
"""A run that was at work in so many processes when they died is not tried again: it may be what kills them."""
TIDY_AT_ONCE = 100

_CANCELLED = (
    engine_errors.DBOSAwaitedWorkflowCancelledError,
    engine_errors.DBOSAwaitedWorkflowMaxRecoveryAttemptsExceeded,
)
_STATES: Mapping[str, State] = {
    "DELAYED": "waiting",
    "ENQUEUED": "waiting",
    "PENDING": "running",
    "SUCCESS": "finished",
    "CANCELLED": "cancelled",
    "ERROR": "broken",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "broken",
}


class _Handed(logging.Handler):
    """What the engine logs goes the way of what this library logs, and not to a console of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.handle(record)


_engine_log = logging.getLogger("dbos")
if not _engine_log.handlers:
    _engine_log.addHandler(_Handed())
    _engine_log.propagate = False


class _Process:
    """DBOS is one for the whole process, and so is what it carries out."""

    lock = threading.Lock()
    runner: DbosRunner | None = None


@DBOS.workflow(name="steer.run", max_recovery_attempts=None)
async def _workflow(asked: Json) -> Json:
    runner, run_id = _Process.runner, DBOS.workflow_id
    assert runner is not None
    assert run_id is not None
    return await runner.carry_out(run_id, asked)


class _Steps:
    """The steps of a run by name, on top of steps by number: what is recorded keeps its number, whatever order the
    names come in this time, and what is new gets numbers that nobody has."""

    def __init__(self, numbers: Mapping[str, int], bought: Mapping[str, Json]) -> None:
        self.bought = bought
        self._numbers = numbers
        self._held: dict[int, StepReservation] = {}
        last = max(numbers.values(), default=-1)
        while last >= 0:
            held = DBOS.reserve_step()
            self._held[held.step_id] = held
            if held.step_id >= last:
                break

    def place_of(self, name: str) -> StepReservation:
        number = self._numbers.get(name)
        return DBOS.reserve_step() if number is None else self._held.pop(number)


_steps: ContextVar[_Steps | None] = ContextVar("steer_llm_sdk.steps", default=None)
_begun_here: ContextVar[str | None] = ContextVar("steer_llm_sdk.begun_here", default=None)
"""The id of a run that is new: nothing can be recorded of it yet."""


class DbosRunner:
    """A Runner. `works` False: it carries out what its own callers execute, and nothing for others. `keep` is how many
    seconds a run is kept after it has ended."""

    def __init__(
        self,
        store: Store,
        *,
        version: str,
        heartbeat: float,
        queues: Mapping[str, QueueLimits],
        works: bool,
        keep: float,
    ) -> None:
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self._store = store
        self._version = version
        self._heartbeat = heartbeat
        self._queues = queues
        self._works = works
        self._keep = keep
        self._own_queue = _queue_of(self.worker)
        self._keys, self._workers = Keys(store), Workers(store)
        self._carry_out: CarryOut | None = None
        self._heart: Heart | None = None
        self._outside: DBOSClient | None = None
        self._launched = False

    async def open(self, carry_out: CarryOut) -> None:
        self._carry_out = carry_out
        with _Process.lock:
            if _Process.runner is not None:
                raise OrchestratorError(
                    "this process has a DurableOrchestrator at work already; close that one first, or share it"
                )
            _Process.runner = self
        try:
            await asyncio.to_thread(self._prepare)
            # On the loop, and quick: where it is launched is where it carries out the runs that it takes over, and a
            # tool may hold what belongs to a loop.
            self._launch()
            await asyncio.to_thread(self._register)
        except BaseException as error:
            await self.close()
            if isinstance(error, OrchestratorError) or not isinstance(error, Exception):
                raise
            raise _unavailable(self._store, error) from error

    async def close(self) -> None:
        loop = asyncio.get_running_loop()
        # The threads of the loop are those of DBOS, which end here.
        with ThreadPoolExecutor(1) as thread:
            try:
                await loop.run_in_executor(thread, self._let_go)
            finally:
                with _Process.lock:
                    if _Process.runner is self:
                        _Process.runner = None
        loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))

    def now(self) -> float:
        return time.time()

    async def claim(self, key: str, fingerprint: str) -> Claim:
        return await asyncio.to_thread(self._keys.claim, key, fingerprint, self._keep)

    async def renew(self, key: str, generation: int) -> Claim:
        return await asyncio.to_thread(self._keys.renew, key, generation)

    async def execute(self, run_id: str, asked: Json, about: Json) -> Json | None:
        token = _begun_here.set(run_id)
        try:
            with SetWorkflowID(run_id), SetWorkflowAttributes(about):
                return await _workflow(asked)
        except _CANCELLED:
            return None
        finally:
            _begun_here.reset(token)

    async def enqueue(self, run_id: str, asked: Json, about: Json, queue: str | None) -> None:
        name = _queue_of_provider(queue) if queue is not None and queue in self._queues else QUEUE
        with SetWorkflowID(run_id), SetWorkflowAttributes(about):
            await DBOS.enqueue_workflow_async(name, _workflow, asked)

    async def step(self, name: str, work: Callable[[], Awaitable[Json]]) -> Json:
        steps = _steps.get()
        assert steps is not None, "a step belongs to a run"
        bought = steps.bought.get(name)
        if bought is not None:
            return bought

        async def once() -> Json:
            return await work()

        # Preemptible: a run that is cancelled from outside stops its calls, and not only at the next one.
        return await steps.place_of(name).run_async({"name": name, "preemptible": True}, once)

    async def wait(self, run_id: str) -> Json | None:
        handle: WorkflowHandleAsync[Json] = await DBOS.retrieve_workflow_async(run_id)
        fetching = None if self._works else asyncio.create_task(self._fetch(run_id))
        try:
            return await handle.get_result(polling_interval_sec=POLL)
        except _CANCELLED:
            return None
        except PortableWorkflowError as error:
            raise OrchestratorError(f"the run {run_id} broke off: {error}") from error
        finally:
            if fetching is not None:
                fetching.cancel()

    async def _fetch(self, run_id: str) -> None:
        """Where a run that somebody waits for here lies in the common queue, carry it out: there may be no worker."""
        while True:
            known = await DBOS.get_workflow_status_async(run_id)
            if known is not None and known.status == "ENQUEUED" and known.queue_name == QUEUE:
                await DBOS.resume_workflow_async(run_id, queue_name=self._own_queue)
            await asyncio.sleep(LOOK)

    async def info(self, run_id: str) -> RunInfo | None:
        found = await DBOS.get_workflow_status_async(run_id)
        return None if found is None else _info(found)

    async def list(self, state: State | None = None, limit: int = 100) -> Sequence[RunInfo]:
        found = await DBOS.list_workflows_async(
            status=_named(state), limit=limit, sort_desc=True, load_input=False, load_output=False
        )
        return [_info(one) for one in found]

    async def steps(self, run_id: str) -> Mapping[str, Json]:
        found = await DBOS.list_workflow_steps_async(run_id)
        return {step["function_name"]: step["output"] for step in found if step["output"] is not None}

    async def cancel(self, run_id: str, why: str) -> None:
        await DBOS.update_workflow_attributes_async(run_id, {"cancelled": why}, merge=True)
        await DBOS.cancel_workflow_async(run_id)

    async def resume(self, run_id: str) -> None:
        await DBOS.resume_workflow_async(run_id, queue_name=QUEUE)

    # ── inside of a run ──────────────────────────────────────────────────────────────────────────────────────────────

    async def carry_out(self, run_id: str, asked: Json) -> Json:
        assert self._carry_out is not None
        bought: dict[str, Json] = {}
        for earlier in asked.get("continues", ()):
            steps = await _outside(self.steps(earlier))
            # What failed then may be tried again; what was bought is not bought twice.
            bought = {**{name: step for name, step in steps.items() if "error" not in step}, **bought}
        numbers = {} if _begun_here.get() == run_id else await _outside(_numbers_of(run_id))
        token = _steps.set(_Steps(numbers, bought))
        try:
            return await self._carry_out(run_id, asked)
        finally:
            _steps.reset(token)

    # ── life of the process ──────────────────────────────────────────────────────────────────────────────────────────

    def _prepare(self) -> None:
        self._store.prepare()
        self._heart = Heart(
            self._workers, self.worker, self._version, self._heartbeat, self._at_work, self._adopt, self._tidy_up
        )
        self._heart.start_beating()  # Before anything can be begun in its name: whoever begins is watched.
        DBOS.migrate(self._store.url)
        # Not as the engine asks, which waits up to 90 s until it tries a store again that was gone.
        self._outside = _client(self._store)

    def _launch(self) -> None:
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": self._store.url,
            "serializer": DBOSPortableJSONSerializer(),
            "executor_id": self.worker,
            "application_version": self._version,
            "log_level": "ERROR",
            "notification_listener_polling_interval_sec": LOOK,
            "run_migrations": False,
            "sys_db_idle_transaction_timeout_sec": HELD_AT_MOST,
        }
        DBOS(config=config)
        # Whoever hands runs in says the limits too: the first worker that comes would take them all otherwise.
        DBOS.listen_queues(list(self._limits()) if self._works else [self._own_queue])
        DBOS.launch()
        self._launched = True

    def _limits(self) -> Mapping[str, QueueLimits]:
        limits = {_queue_of_provider(name): limits for name, limits in self._queues.items()}
        return {QUEUE: QueueLimits(), **limits}

    def _register(self) -> None:
        own = {} if self._works else {self._own_queue: QueueLimits()}
        for name, limits in {**self._limits(), **own}.items():
            DBOS.register_queue(
                name,
                global_concurrency=limits.concurrency,
                worker_concurrency=limits.worker_concurrency,
                limiter=None if limits.rate is None else {"limit": limits.rate, "period": limits.per},
                polling_interval_sec=LOOK,
                # Whoever was told nothing of limits changes none.
                on_conflict="always_update" if limits != QueueLimits() else "never_update",
            )
        assert self._heart is not None
        self._heart.start_watching()

    def _let_go(self) -> None:
        if self._heart is not None:
            self._heart.stop()
        try:
            DBOS.destroy()
            if self._launched:
                self._hand_over()
        finally:
            if self._outside is not None:
                self._outside.destroy()
            self._keys.close()
            self._workers.close()

    def _hand_over(self) -> None:
        """What this process has begun and not finished goes on elsewhere, at once."""
        try:
            engine = self._engine
            _resume(engine, _of_worker(engine, self.worker))
            engine.delete_queue(self._own_queue)
            self._workers.forget(self.worker)
        except Exception as error:
            kind = type(error).__name__
            _log.warning("the runs of worker %s are not handed over but taken over later: %s", self.worker, kind)

    @property
    def _engine(self) -> DBOSClient:
        assert self._outside is not None
        return self._outside

    def _at_work(self) -> set[str]:
        running = self._engine.list_workflows(status="PENDING", load_input=False, load_output=False)
        return {run.executor_id for run in running if run.executor_id is not None}

    def _adopt(self, dead: str) -> int:
        engine = self._engine
        found = _of_worker(engine, dead)
        going_on = []
        for run in found:
            deaths = (run.attributes or {}).get("deaths", 0) + 1
            known = {"deaths": deaths} if deaths < MOST_DEATHS else {"deaths": deaths, "cancelled": "given up"}
            engine.update_workflow_attributes(run.workflow_id, known, merge=True)
            if deaths < MOST_DEATHS:
                going_on.append(run)
            else:
                _log.error("run %s was at work in %d processes that died, and is given up", run.workflow_id, deaths)
                engine.cancel_workflow(run.workflow_id)
        _resume(engine, going_on)
        if not found:
            engine.delete_queue(_queue_of(dead))
        return len(found)

    def _tidy_up(self) -> None:
        before = datetime.fromtimestamp(time.time() - self._keep, UTC).isoformat()
        ended = self._engine.list_workflows(
            status=["SUCCESS", "ERROR", "CANCELLED"],
            completed_before=before,
            limit=TIDY_AT_ONCE,
            load_input=False,
            load_output=False,
        )
        if ended:
            self._engine.delete_workflows([run.workflow_id for run in ended])


class DbosRuns:
    """The runs of a store as seen from outside: this process carries out none of them. Close it when done."""

    def __init__(self, store: Store) -> None:
        if store.path is not None and not Path(store.path).exists():
            raise InvalidRequest("store", store.shown, "there is no such file; the first durable run makes it")
        self._store = store
        self._workers = Workers(store)
        try:
            self._client = _client(store)
            self.list(limit=1)
        except Exception as error:
            raise _unavailable(store, error) from error

    def close(self) -> None:
        self._client.destroy()
        self._workers.close()

    def workers(self) -> Sequence[Worker]:
        return self._workers.all()

    def info(self, run_id: str) -> RunInfo | None:
        """With what was asked and how it ended."""
        found = self._client.list_workflows(workflow_ids=[run_id])
        return _info(found[0]) if found else None

    def list(self, state: State | None = None, limit: int = 100) -> Sequence[RunInfo]:
        """The latest, newest first."""
        found = self._client.list_workflows(
            status=_named(state), limit=limit, sort_desc=True, load_input=False, load_output=False
        )
        return [_info(one) for one in found]

    def steps(self, run_id: str) -> Mapping[str, Json]:
        """What is recorded of it, by name, in the order in which it began."""
        found = sorted(self._client.list_workflow_steps(run_id), key=lambda step: step["function_id"])
        return {step["function_name"]: step["output"] for step in found if step["output"] is not None}

    def cancel(self, run_id: str, why: str = "cancelled by hand") -> None:
        self._store.require_subseconds()
        self._client.update_workflow_attributes(run_id, {"cancelled": why}, merge=True)
        self._client.cancel_workflow(run_id)

    def resume(self, run_id: str) -> None:
        self._store.require_subseconds()
        self._client.resume_workflow(run_id, queue_name=QUEUE)


def _client(store: Store) -> DBOSClient:
    level = _engine_log.level
    _engine_log.setLevel(logging.CRITICAL)  # What goes wrong is raised, and need not be logged as well.
    try:
        return DBOSClient(
            system_database_url=store.url,
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
            retry_connection_errors=False,
            sys_db_idle_transaction_timeout_sec=HELD_AT_MOST,
        )
    finally:
        _engine_log.setLevel(level)


def _unavailable(store: Store, error: Exception) -> StoreUnavailable:
    """By type only: what a database says may quote the URL, and a password in it."""
    why = type(error).__name__
    if store.is_of_a_service:
        why = "it was made by steer-llm serve without --durable, and only the service shows the runs in it"
    return StoreUnavailable(f"{store.shown} cannot be used as a store of runs ({why})")


def _queue_of_provider(name: str) -> str:
    return QUEUE if name == "default" else f"{QUEUE}.{name}"


def _queue_of(worker: str) -> str:
    return f"{QUEUE}@{worker}"


def _of_worker(engine: DBOSClient, worker: str) -> Sequence[WorkflowStatus]:
    """What the worker has under way, or has taken for itself."""
    ask = partial(engine.list_workflows, load_input=False, load_output=False)
    return [*ask(status="PENDING", executor_id=worker), *ask(status="ENQUEUED", queue_name=_queue_of(worker))]


def _resume(engine: DBOSClient, runs: Sequence[WorkflowStatus]) -> None:
    """Each into the queue that it came from, whose limits go on to hold; what a process had for itself, to all."""
    queues: dict[str, list[str]] = {}
    for run in runs:
        own = run.queue_name is None or run.queue_name.startswith(_queue_of(""))
        queues.setdefault(QUEUE if own else str(run.queue_name), []).append(run.workflow_id)
    for queue, ids in queues.items():
        engine.resume_workflows(ids, queue_name=queue)


async def _outside(work: Coroutine[Any, Any, R]) -> R:
    """Ask the engine as from outside of the run, where asking is no step of it."""
    return await asyncio.get_running_loop().create_task(work, context=contextvars.Context())


async def _numbers_of(run_id: str) -> Mapping[str, int]:
    found = await DBOS.list_workflow_steps_async(run_id, load_output=False)
    return {step["function_name"]: step["function_id"] for step in found}


def _named(state: State | None) -> list[str] | None:
    return None if state is None else [name for name, known in _STATES.items() if known == state]


def _info(found: WorkflowStatus) -> RunInfo:
    given = found.input["args"] if isinstance(found.input, dict) else ()
    return RunInfo(
        id=found.workflow_id,
        state=_STATES[found.status],
        about=found.attributes or {},
        created=(found.created_at or 0) / 1000,
        finished=None if found.completed_at is None else found.completed_at / 1000,
        worker=found.executor_id,
        version=found.app_version,
        queue=found.queue_name,
        asked=given[0] if given else None,
        ended=found.output if isinstance(found.output, dict) else None,
    )
