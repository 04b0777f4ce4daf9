"""DurableOrchestrator: a ReliableOrchestrator whose runs outlive the process that began them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote
from uuid import uuid4

from steer_llm_sdk.durable._extra import engine
from steer_llm_sdk.durable._journal import Journal, journal_of_run, record_call
from steer_llm_sdk.durable._records import (
    Json,
    dump_error,
    dump_output,
    dump_raised,
    is_final,
    is_json,
    load_ended,
    load_error,
)
from steer_llm_sdk.durable._tables import Store, Worker, Workers
from steer_llm_sdk.durable.queues import QueueLimits
from steer_llm_sdk.durable.runner import Claim, Runner
from steer_llm_sdk.errors import ConflictError, InvalidRequest, OrchestratorError, StoreUnavailable
from steer_llm_sdk.models.events import StreamErrorEvent
from steer_llm_sdk.orchestration._call import Run
from steer_llm_sdk.orchestration._result import describe_error
from steer_llm_sdk.orchestration.base import Plan, exceeded_by, tell_end
from steer_llm_sdk.orchestration.fallback import ToolCall
from steer_llm_sdk.orchestration.models.evidence_bundle import json_value
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.planning.planner import Planner
from steer_llm_sdk.orchestration.reliability import ReliabilityConfig
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator, shared_at
from steer_llm_sdk.orchestration.replay import fingerprint_of, key_of
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry
from steer_llm_sdk.reliability.budget import BudgetAccounts
from steer_llm_sdk.reliability.deadline import Deadline, Late, until
from steer_llm_sdk.reliability.idempotency import IdempotencyManager
from steer_llm_sdk.streaming.manager import EventManager

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.shared.state import SharedState

_log = logging.getLogger(__name__)

FORMAT = 1
"""Of what is recorded. A run of another format is not carried out."""
A_WEEK = 7 * 86_400.0
LEFT = "left by its caller"
REREAD = 2.0
"""Seconds in which a run whose time is up is read back."""
STOPPING = 5.0
"""Seconds that what is under way gets to stop."""


class RunCancelled(OrchestratorError):
    """The run was cancelled from outside, or given up after too many processes had died of it. `run_id` names it."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"the run {run_id} was cancelled; send it again, or resume it, to go on from what it has")
        self.run_id = run_id


class _Here:
    """A run that is carried out in the task of its caller, who gets what comes of it as it is."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.output: OrchestrationOutput | None = None
        self.raised: Exception | None = None


_here: ContextVar[_Here | None] = ContextVar("steer_llm_sdk.durable.here", default=None)


class Host(Protocol):
    """Who wants to know which runs this process carries out. Unset, nobody does."""

    def began(self, run_id: str, request_id: str) -> None:
        """A run is carried out for a caller here, under this id."""
        ...

    async def carry(self, run_id: str, asked: Json, work: Callable[[EventManager], Awaitable[Json]]) -> Json:
        """Carry out, by `work`, a run that nobody waits for here; what it gives is how the run ended."""
        ...


class DurableOrchestrator(ReliableOrchestrator):
    """Runs the same requests as a ReliableOrchestrator and comes to the same outputs; every call to the outside, and
    the plan, is recorded in `store` when it has ended.

        async with DurableOrchestrator("sqlite:///steer.db") as orchestrator:
            output = await orchestrator.run("Why?", options={"idempotency_key": "order-17"})

    When the process dies, another one that has the same tools in the same versions goes on with its runs: at most two
    `heartbeat` seconds later, and nothing is bought again that had been recorded. A request that comes again with its
    key joins its run, or is answered with the output. Requests, options and results must be JSON.

    `store`: `sqlite:///file.db` for the processes of one machine; `postgresql://user@host/database` for many machines,
    whose breakers, rate limits, retry budgets and budgets are then shared there as well, unless `shared` says where; or
    a Runner, where the engine is not to be DBOS. The options that follow are those of DBOS. `queues` limits, by
    provider, the runs that were handed in by `submit`; "default" serves the other providers, and runs whose tool the
    planner chooses. `works` False: the process carries out what its own callers wait for, and nothing for others. A run
    is kept for `keep` seconds after its end. A process has one DurableOrchestrator on DBOS at a time.
    """

    def __init__(
        self,
        store: str | Runner,
        planner: Planner | None = None,
        reliability_config: ReliabilityConfig | None = None,
        *,
        registry: ToolRegistry | None = None,
        budget_accounts: BudgetAccounts | None = None,
        shared: SharedState | None = None,
        heartbeat: float = 5.0,
        queues: Mapping[str, QueueLimits] | None = None,
        works: bool = True,
        keep: float = A_WEEK,
    ) -> None:
        kept_in = Store.of(store) if isinstance(store, str) else store
        opened = (
            shared_at(kept_in.url) if shared is None and isinstance(kept_in, Store) and kept_in.path is None else None
        )
        super().__init__(
            planner,
            reliability_config,
            IdempotencyManager(),  # For callers of this process; what outlives it is in the engine.
            registry=registry,
            budget_accounts=budget_accounts,
            shared=opened or shared,
        )
        self._opened = opened
        if not 0.2 <= heartbeat <= 3600:
            raise InvalidRequest("heartbeat", heartbeat, "give seconds, from 0.2 to 3600")
        if not keep > 0:
            raise InvalidRequest("keep", keep, "give a positive number of seconds")
        self.executor.outermost = (record_call,)
        self._store = kept_in
        self.heartbeat = heartbeat
        self.queues = dict(queues or {})
        self.works = works
        self.keep = keep
        self.host: Host | None = None
        self._engine: Runner | None = None
        self._runner: Runner | None = None
        self._starting = asyncio.Lock()
        self._closing = False
        self._for_callers: set[asyncio.Task[Any]] = set()
        self._for_others: set[asyncio.Task[Any]] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def application_version(self) -> str:
        """Of the tools that are registered, by name and version: a run is carried on by the same version only."""
        tools = self.registry.identities()
        return f"steer-{FORMAT}-{hashlib.sha256(json.dumps(tools).encode()).hexdigest()[:12]}"

    async def __aenter__(self) -> DurableOrchestrator:
        await self.started()
        return self

    async def started(self) -> Runner:
        """The engine. It is started when it is first needed; a tool that is registered later is in no version."""
        if self._runner is None:
            async with self._starting:
                if self._runner is None:
                    # The engine may carry on with a run of somebody else before it says that it is open.
                    self._engine = self._dbos(self._store) if isinstance(self._store, Store) else self._store
                    await self._engine.open(self._carry_on)
                    self._runner = self._engine
        return self._runner

    async def aclose(self, drain: float = 0.0) -> None:
        """Stop. Runs of others get `drain` seconds to end, and none begins; what is not finished then, or is carried
        out here for a caller, goes on in another process."""
        self._closing = True
        if drain and self._for_others:
            await asyncio.wait([*self._for_others], timeout=drain)
        if self._leaving:
            await asyncio.wait([*self._leaving], timeout=STOPPING)
        runner, self._runner = self._runner, None
        for task in (*self._for_callers, *self._for_others):
            task.cancel()
        if self._for_callers or self._for_others:
            await asyncio.wait([*self._for_callers, *self._for_others], timeout=STOPPING)
        if runner is not None:
            await runner.close()
        self._closing = False
        await super().aclose()

    # ── runs that are handed in ──────────────────────────────────────────────────────────────────────────────────────

    async def submit(
        self,
        request: Any,
        tool_name: str | None = None,
        tool_options: Mapping[str, Any] | None = None,
        options: OrchestrationConfig | Mapping[str, Any] | None = None,
    ) -> str:
        """Hand a run to whichever worker comes first, and get its id; `result` waits for it. It waits in the queue of
        its tool's provider, if `queues` has one of that name and the tool is named, and else in that of all others; its
        deadline runs meanwhile.

        The arguments are those of `run`. With an idempotency_key that is known, it is the id of the run there is.
        """
        runner = await self.started()
        run = self._accept(request, tool_name, tool_options, options, None)
        queue = None if tool_name is None else self._find(tool_name, run).targets[0][0].partition("@")[0]
        asked = _asked(run, runner.now())
        if run.options.idempotency_key is None:
            run_id = _unkeyed(run)
            await runner.enqueue(run_id, asked, _about(run, None), queue)
            return run_id
        mark = fingerprint_of(run)
        key = await self._claimed(runner, run, mark)
        while True:
            run_id = _run_id(run, key.generation)
            known = await runner.info(run_id)
            if known is None:
                asked["continues"] = await _earlier(runner, run, key, mark)
                await runner.enqueue(run_id, asked, _about(run, mark), queue)
                return run_id
            if known.about.get("fingerprint") == mark and known.state in ("waiting", "running"):
                return run_id
            if known.about.get("fingerprint") == mark and known.ended is not None and self._final(known.ended):
                return run_id
            key = await runner.renew(key_of(run), key.generation)

    async def result(self, run_id: str) -> OrchestrationOutput:
        """Wait for a run that was handed in; what `run` would have raised, this raises. RunCancelled where it was."""
        runner = await self.started()
        known = await runner.info(run_id)
        if known is None or known.asked is None:
            raise InvalidRequest("run_id", run_id, "no run of that id is in the store")
        ended = await runner.wait(run_id)
        if ended is None:
            raise RunCancelled(run_id)
        return self.came_to(known.asked, ended)

    def came_to(self, asked: Json, ended: Json) -> OrchestrationOutput:
        """The output of a run as it was recorded, for whoever handed it in; or raises what `run` would have raised."""
        output = load_ended(ended)
        output.replayed = False
        return self._within_budget(self._rebuilt(asked), output)

    async def living(self) -> set[str] | None:
        """The workers of the store that live; None where its engine is another one, and does not say."""
        if not isinstance(self._store, Store):
            return None
        return {worker.id for worker in await asyncio.to_thread(_workers_of, self._store)}

    # ── one run ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _work(self, run: Run, plan: Plan | None = None) -> OrchestrationOutput:
        # Within a run, and so within one of its steps, another run is a part of it.
        if journal_of_run.get() is not None:
            return await super()._work(run, plan)
        runner = await self.started()
        task = asyncio.current_task()
        assert task is not None
        self._for_callers.add(task)
        try:
            if run.options.idempotency_key is None:
                return await self._execute(runner, run, _unkeyed(run), None, [])
            return await self._keyed_run(runner, run)
        except asyncio.CancelledError:
            if self._runner is runner:
                raise
            task.uncancel()
            raise OrchestratorError("the orchestrator was closed; the run goes on in another process") from None
        finally:
            self._for_callers.discard(task)

    async def _keyed_run(self, runner: Runner, run: Run) -> OrchestrationOutput:
        """Begin the run of this key, or join it, or return what it came to. One that was cut off is begun again with
        what it has bought; of one that failed and may be tried again nothing is kept."""
        mark = fingerprint_of(run)
        key = await self._claimed(runner, run, mark)
        while True:
            run_id = _run_id(run, key.generation)
            known = await runner.info(run_id)
            if known is None:
                continues = await _earlier(runner, run, key, mark)
                return await self._execute(runner, run, run_id, mark, continues)
            ended = known.ended
            if known.about.get("fingerprint") == mark:
                if known.state in ("waiting", "running"):
                    ended = await runner.wait(run_id)
                    if ended is not None:
                        return load_ended(ended)
                    await _require_left(runner, run_id)
                elif ended is not None and self._final(ended):
                    return load_ended(ended)
            key = await runner.renew(key_of(run), key.generation)

    async def _claimed(self, runner: Runner, run: Run, mark: str) -> Claim:
        """ConflictError where the key belongs to another request, before the engine is asked for anything."""
        try:
            key = await runner.claim(key_of(run), mark)
        except Exception as error:
            raise StoreUnavailable(
                f"the store of the runs did not answer ({type(error).__name__}), so the run was not started"
            ) from error
        if key.fingerprint != mark:
            assert run.options.idempotency_key is not None
            raise ConflictError(run.options.idempotency_key)
        return key

    def _final(self, ended: Json) -> bool:
        return is_final(ended, self.executor.config.remember_failures)

    async def _execute(
        self, runner: Runner, run: Run, run_id: str, mark: str | None, continues: list[str]
    ) -> OrchestrationOutput:
        here = _Here(run)
        token = _here.set(here)
        try:
            ended = await runner.execute(
                run_id, {**_asked(run, runner.now()), "continues": continues}, _about(run, mark)
            )
        except asyncio.CancelledError:
            self._leave(runner, run_id)
            raise
        finally:
            _here.reset(token)
        if ended is None:
            raise RunCancelled(run_id)
        if here.raised is not None:
            raise here.raised
        return load_ended(ended) if here.output is None else here.output

    def _leave(self, runner: Runner, run_id: str) -> None:
        """The caller is gone, or his time was up, and nobody else here waits: the run is ended, and keeps what it has.
        Where the orchestrator is being closed the run goes on elsewhere instead."""
        if self._runner is None:
            return
        task = asyncio.get_running_loop().create_task(self._left(runner, run_id))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _left(self, runner: Runner, run_id: str) -> None:
        """Say so until the store has it: a run that nobody carries out would be taken for one that is under way."""
        while self._runner is runner:
            try:
                await runner.cancel(run_id, LEFT)
                return
            except Exception as error:
                _log.warning("the run %s could not be ended yet: %r", run_id, error)
                await asyncio.sleep(1)

    async def _carry_on(self, run_id: str, asked: Json) -> Json:
        """What the engine carries out: here for a caller, or for nobody in particular after its process has died."""
        here, host = _here.get(), self.host
        if here is None and host is not None:
            return await host.carry(
                run_id, asked, lambda events: self._for_another(run_id, self._rebuilt(asked, events))
            )
        if here is None:
            return await self._for_another(run_id, self._rebuilt(asked))
        if host is not None:
            host.began(run_id, here.run.request_id)
        ended, here.output, here.raised = await self._journaled(run_id, here.run, super()._work(here.run), math.inf)
        return ended

    async def _for_another(self, run_id: str, run: Run) -> Json:
        task = asyncio.current_task()
        assert task is not None
        self._for_others.add(task)
        try:
            if self._closing:  # It is cancelled in a moment, and goes on elsewhere.
                await asyncio.get_running_loop().create_future()
            ended, output, raised = await self._in_its_time(run_id, run)
            if run.events is not None:
                if output is not None:
                    tell_end(run.events, output)
                elif raised is not None:
                    run.events.tell(StreamErrorEvent(describe_error(raised)))
            return ended
        finally:
            self._for_others.discard(task)

    async def _journaled(
        self, run_id: str, run: Run, work: Coroutine[Any, Any, OrchestrationOutput], ends: float
    ) -> tuple[Json, OrchestrationOutput | None, Exception | None]:
        assert self._engine is not None
        token = journal_of_run.set(Journal(run_id, run, self._engine.step, ends))
        try:
            output = await work
        except Exception as error:
            return dump_raised(error), None, error
        finally:
            journal_of_run.reset(token)
        return dump_output(output), output, None

    def _rebuilt(self, asked: Json, events: EventManager | None = None) -> Run:
        """The run as it was accepted: it began when it began, and its deadline is where it was."""
        if asked["format"] != FORMAT:
            raise OrchestratorError(f"the run was recorded in format {asked['format']}; this version reads {FORMAT}")
        run = self._accept(asked["request"], asked["tool_name"], asked["tool_options"], asked["options"], events)
        assert self._engine is not None
        ago = max(self._engine.now() - asked["began"], 0.0)
        run.started -= ago
        if asked["limit_ms"] is not None:
            run.deadline = Deadline(run.started + asked["limit_ms"] / 1000, asked["limit_ms"])
        return run

    async def _in_its_time(self, run_id: str, run: Run) -> tuple[Json, OrchestrationOutput | None, Exception | None]:
        """Where the time is up already, no call is made any more, and REREAD seconds are left to read what there is."""
        deadline = run.deadline
        if deadline is None:
            return await self._journaled(run_id, run, super()._work(run), math.inf)
        ends, deadline.at = deadline.at, max(deadline.at, run.clock() + REREAD)
        return await self._journaled(run_id, run, self._cut_off(run, deadline), ends)

    async def _cut_off(self, run: Run, deadline: Deadline) -> OrchestrationOutput:
        try:
            return await until(deadline.at, super()._work(run))
        except Late as late:
            raise exceeded_by(late, run, deadline) from None

    # ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _plan_at_once(self, run: Run) -> Plan | None:
        journal = journal_of_run.get()
        return None if journal is not None and journal.run is run else super()._plan_at_once(run)

    async def _plan(self, run: Run) -> Plan:
        """A step: a run that goes on elsewhere goes on with the plan it had."""
        journal = journal_of_run.get()
        if journal is None or journal.run is not run:
            return await super()._plan(run)
        made: list[Plan] = []

        async def make() -> Json:
            try:
                plan = super(DurableOrchestrator, self)._plan_at_once(run)
                plan = await super(DurableOrchestrator, self)._plan(run) if plan is None else plan
                record = _dump_plan(plan)
            except Exception as error:
                return {"error": dump_error(error)}
            made.append(plan)
            return record

        record = await journal.once("plan", make)
        if "error" in record:
            raise load_error(record["error"])
        plan = made[0] if made else self._load_plan(record, run)
        return plan if run.options.idempotency_key is not None else _keyed_by(journal.run_id, plan)

    def _load_plan(self, record: Json, run: Run) -> Plan:
        steps = tuple(ToolCall.of(self._tool(run, *named), planned) for *named, planned in record["steps"])
        shown = record["shown"]
        return Plan(steps, None if shown is None else lambda: json.loads(json.dumps(shown)))

    def _tool(self, run: Run, name: str, version: str) -> Tool:
        """In the version that was planned, where there are several."""
        return self.registry.get_tool(name, version) or self._find(name, run)

    def _dbos(self, store: Store) -> Runner:
        runner: Runner = engine().DbosRunner(
            store,
            version=self.application_version,
            heartbeat=self.heartbeat,
            queues=self.queues,
            works=self.works,
            keep=self.keep,
        )
        return runner


def _workers_of(store: Store) -> list[Worker]:
    workers = Workers(store)
    try:
        return workers.all()
    finally:
        workers.close()


async def _require_left(runner: Runner, run_id: str) -> None:
    """RunCancelled, unless it was only left by a caller who had less time, or less patience."""
    known = await runner.info(run_id)
    if known is not None and known.about.get("cancelled") != LEFT:
        raise RunCancelled(run_id)


# ── what is written down when a run is accepted ──────────────────────────────────────────────────────────────────────


def _asked(run: Run, now: float) -> Json:
    config = run.options
    sent = config.model_dump(exclude={"redactor_cb", "budgets"}, exclude_unset=True)
    budgets = [{"name": one.name, "tokens": one.tokens, "usd": one.usd, "per": one.per} for one in config.budgets]
    ids = {"request_id": run.request_id, "trace_id": run.trace_id}
    return {
        "format": FORMAT,
        "request": _plain("request", run.request),
        "tool_name": run.tool_name,
        "tool_options": _plain("tool_options", {**run.tool_options}),
        "options": _plain("options", {**sent, **ids, **({"budgets": budgets} if budgets else {})}),
        "began": now - (run.clock() - run.started),
        "limit_ms": config.limit_ms,
    }


def _plain(name: str, value: Any) -> Any:
    try:
        return json_value(value)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            name, value, f"{error}; what a durable run is asked must be JSON, so that another process can go on with it"
        ) from None


def _about(run: Run, mark: str | None) -> Json:
    key = run.options.idempotency_key
    return {"tenant": run.options.tenant, "key": key, "tool": run.tool_name, "fingerprint": mark}


def _run_id(run: Run, generation: int) -> str:
    """Tenant and key; a number where it is not the first run of the key. Two never collide: tenants are quoted."""
    if generation == 1:
        return key_of(run)
    return f"{quote(run.options.tenant, safe='')}#{generation}:{run.options.idempotency_key}"


def _unkeyed(run: Run) -> str:
    return f"{quote(run.options.tenant, safe='')}#run:{uuid4().hex}"


async def _earlier(runner: Runner, run: Run, key: Claim, mark: str) -> list[str]:
    """The runs that this one goes on from, with all that they have bought: those of its key that were cut off."""
    if key.generation == 1:
        return []
    before = _run_id(run, key.generation - 1)
    known = await runner.info(before)
    if known is None or known.asked is None or known.state != "cancelled" or known.about.get("fingerprint") != mark:
        return []
    return [before, *known.asked.get("continues", ())]


def _keyed_by(run_id: str, plan: Plan) -> Plan:
    """A call that is made again, because its process died, has the name that it had: a provider which heeds
    Idempotency-Key does not do it twice. A run with a key of its caller has its names from that."""
    steps = (
        replace(step, planned={**step.planned, "idempotency_key": f"{run_id}:{step.tool.name}"}) for step in plan.steps
    )
    return replace(plan, steps=tuple(steps))


def _dump_plan(plan: Plan) -> Json:
    if plan.strategy is not None:
        raise InvalidRequest(
            "execution_strategy", "of several tools", 'a durable run carries out "single" only; plan that'
        )
    for step in plan.steps:
        if not is_json(dict(step.planned)):
            raise InvalidRequest(
                "plan.tool_options", step.planned, "what a durable run is planned with must be JSON, to be recorded"
            )
    shown = None if plan.shown is None else json_value(plan.shown())
    return {"steps": [[step.tool.name, step.tool.version, dict(step.planned)] for step in plan.steps], "shown": shown}
