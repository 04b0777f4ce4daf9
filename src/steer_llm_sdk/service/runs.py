"""The runs that this service knows: those that this process carries out, those of other processes, and the ended ones.

Other processes of the service know of a run what is in the table: its row, written before it is accepted or once it is
older than TICK, and its events so far. They ask there for its end, and write there that it is to be cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import uuid4

import orjson

from steer_llm_sdk.errors import BudgetExceeded, ConflictError, OrchestratorError, StoreUnavailable
from steer_llm_sdk.models.events import StreamEvent
from steer_llm_sdk.orchestration._result import as_json, describe_error
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.service._json import written
from steer_llm_sdk.service._keyed import Keyed
from steer_llm_sdk.service._owners import FileOwners, NoOwners
from steer_llm_sdk.service._shelf import Hasty, News, Row, Shelf, Told
from steer_llm_sdk.service.problems import Problem, problem_of
from steer_llm_sdk.streaming.manager import KINDS, EventManager, RunEvents

R = TypeVar("R")
Work = Callable[[EventManager], Awaitable[OrchestrationOutput]]
_log = logging.getLogger(__name__)

MOST_RUNS = 10_000
"""Ended runs that are kept; the oldest go first."""
MOST_EVENTS = 2_000
"""Events of one run that are kept; those that come after are counted, and their number stands at the end."""
MOST_RUNNING = 1_000
"""Runs under way in this process that were not handed to an engine; one more is refused with 503."""
TICK = 0.2
"""Seconds between two looks at what other processes want to know, and want of us."""
SWEEP = 2.0
"""Seconds between two looks for runs whose process has died."""
PRUNE = 5.0
"""Seconds between two looks for runs that are too many. Many at a time would keep others from writing."""
KEEP_ALIVE = 15.0
"""Seconds of silence after which who follows a run is told that it goes on."""
AGAIN = 1.0
AT_ONCE = 4
"""Ends in one turn of the loop that are written there."""
LARGE = 16_384
"""Bytes of a request from which on a run is written down by the thread."""
LOOKED_AT = 100
"""Runs of others, at most, that are looked at in one sweep."""
GIVEN_UP = 60.0
"""Seconds after which a run that no engine knows, and whose process has died, is held to be lost: an engine that knows
it has given it to another process long before."""
INTERRUPTED = (
    "the process that carried this run out ended before the run did; what it had asked of a provider may have been "
    "billed; send the request again to have it run"
)


@dataclass(slots=True)
class Run:
    """`state`: running, then succeeded, partial or failed (as the output says), cancelled, error: it raised, or
    interrupted: its process ended before it did.

    `began` is on the clock of the loop, None where another process carries it out. `engine` is what it is called by the
    engine that it was handed to. `changes` counts how often something new was to be seen.
    """

    id: str
    tenant: str
    request: Any
    created: float
    state: str = "running"
    tool: str | None = None
    output: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    events: list[Told] = field(default_factory=list)
    dropped: int = 0
    began: float | None = None
    owner: str = ""
    engine: str | None = None
    task: asyncio.Task[Any] | None = None
    """Of which the run is all, or a part."""
    size: int = 0
    """Bytes of its request, as far as they are known."""
    cancelled: bool = False
    stopped: bool = False
    """Cancelled by the service, which had no more time for it."""
    row_told: tuple[str | None, str | None] | None = None
    """The tool and the engine that stand in its row; None: it has none yet."""
    events_told: int = 0
    """Events that are in the table."""
    live: bool = False
    """Events of it may be in the table: they were told there, or are about to be."""
    left: bool = False
    """Nobody here carries it out any more, and it goes on elsewhere."""
    changes: int = 0
    waiting: list[asyncio.Future[bool]] = field(default_factory=list)
    """Of those who follow it and have seen all there is: done at the next change."""

    @property
    def over(self) -> bool:
        return self.state != "running"

    @property
    def large(self) -> bool:
        """Its request takes longer to write down than the loop may stand still."""
        return self.size > LARGE

    def shown(self) -> dict[str, Any]:
        """What GET answers: the output once it is there, with the run's own id and state beside it."""
        told = {"id": self.id, "state": self.state, "created": self.created, "tool": self.tool}
        if self.error is not None:
            told["error"] = self.error
        return {**(self.output or {}), **told}

    def hear(self, event: StreamEvent) -> None:
        # Beside the attempts of the run, which are on this clock too: the time of day may be set meanwhile.
        at = 0.0 if self.began is None else asyncio.get_running_loop().time() - self.began
        ours = type(event) in KINDS
        all_of_it = event.__dict__ if ours else {each.name: getattr(event, each.name) for each in fields(event)}
        self.tell({**all_of_it, "at_ms": round(at * 1e6) / 1000})
        if self.tool is None and event.metadata.get("tool_name"):
            self.tool = str(event.metadata["tool_name"])

    def tell(self, event: Mapping[str, Any]) -> None:
        if len(self.events) < MOST_EVENTS or event["type"] in ("complete", "error"):
            self.events.append(told({"id": len(self.events) + 1, **event}))
        else:
            self.dropped += 1
        self.wake()

    def wake(self) -> None:
        self.changes += 1
        if self.waiting:
            waiting, self.waiting = self.waiting, []
            for each in waiting:
                if not each.done():
                    each.set_result(True)

    def row(self) -> Row:
        record = {"request": as_json(self.request)[0], "output": self.output, "error": self.error}
        events = f"[{','.join([event.said for event in self.events])}]" if self.over else "[]"
        return Row(
            self.id,
            self.tenant,
            self.created,
            self.state,
            self.tool,
            self.owner,
            self.engine,
            written(record),
            events,
            live=self.live or self.task is None,
        )

    def news(self) -> News:
        """What is not in the table yet, and goes there now."""
        self.live = True
        row = None if self.row_told == (self.tool, self.engine) else self.row()
        return News(self.id, row, self.events[self.events_told :])

    def has_told(self, news: News) -> None:
        if news.row is not None:
            self.row_told = news.row.tool, news.row.engine
        self.events_told += len(news.events)

    def take(self, row: Row) -> None:
        """Become what the table says."""
        record = json.loads(row.record)
        self.state, self.tool, self.owner, self.created = row.state, row.tool or self.tool, row.owner, row.created
        self.engine = row.engine or self.engine
        self.request, self.output, self.error = record["request"], record["output"], record["error"]
        if self.over:
            self.events = [Told(event["id"], event["type"], written(event)) for event in json.loads(row.events)]
        self.wake()

    def end(self, output: OrchestrationOutput) -> None:
        self.output, self.state = output.model_dump(mode="json"), output.status
        self.tool = output.metadata.get("tool_name") or self.tool

    def fail(self, error: Exception) -> None:
        self.state, self.error = "error", {**describe_error(error), "status": problem_of(error).status}
        if isinstance(error, BudgetExceeded) and error.output is not None:
            self.output = error.output.model_dump(mode="json")

    def interrupt(self) -> None:
        self.state = "interrupted"
        self.error = {"type": "Interrupted", "message": INTERRUPTED, "is_retryable": True, "status": 503}


class _Wait:
    """For the next change of a run, again and again: False after KEEP_ALIVE without one. A timer is set once in that
    time, and not for each event."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._next: asyncio.Future[bool] | None = None
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> asyncio.Future[bool]:
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(KEEP_ALIVE, self._look)
        self._next = self._loop.create_future()
        self._run.waiting.append(self._next)
        return self._next

    def _look(self) -> None:
        left = self._since + KEEP_ALIVE - self._loop.time()
        self._timer = None
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._next is not None and not self._next.done():
            self._forget()
            self._next.set_result(False)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._forget()

    def _forget(self) -> None:
        if self._next in self._run.waiting:
            self._run.waiting.remove(self._next)


class Engine(Protocol):
    """What carries runs on when their process has died."""

    async def owners(self) -> set[str] | None:
        """The processes that live, as `owner` names them; None where nobody knows."""
        ...

    async def outcome(self, engine_id: str) -> OrchestrationOutput | str | None:
        """What a run came to; raises what it raised. "cancelled", or None: it is under way."""
        ...

    async def cancel(self, engine_id: str) -> None: ...


class _Heard(EventManager):
    """The events of one run, for the book. Its time begins where that of its attempts does: when its events are asked
    for; `ago` seconds earlier where it goes on from elsewhere. None of them is dropped: the book does nothing that
    takes time, whatever the clock says."""

    allowance = math.inf
    copies = False

    def __init__(self, run: Run, ago: float = 0.0) -> None:
        super().__init__(on_create_event=run.hear)
        self._run = run
        self._ago = ago

    def for_run(self, *given: Any, **named: Any) -> RunEvents:
        self._run.began = asyncio.get_running_loop().time() - self._ago
        return super().for_run(*given, **named)


class _Seen(NamedTuple):
    """What one look at the table came to: whom to cancel; and of the runs that are followed here those that have ended,
    None where nobody knows of one any more, and what is new of the others."""

    stopped: list[str]
    ended: dict[str, Row | None]
    events: dict[str, list[Told]]


class RunBook:
    """`where` as in Shelf. `engine` None: a run whose process dies is interrupted."""

    def __init__(
        self,
        where: str,
        engine: Engine | None = None,
        most_runs: int = MOST_RUNS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._shelf = Shelf(where)
        self._hasty = None if where == ":memory:" or self._shelf.on_server else Hasty(where)
        self._engine = engine
        self._most_runs = most_runs
        self._clock = clock
        self._owners = NoOwners() if engine is not None or where == ":memory:" else FileOwners(where)
        self.owner = uuid4().hex
        self.on_end: Callable[[Mapping[str, Any]], None] | None = None
        self.stopping = False
        self._running: dict[str, Run] = {}
        self._followed: dict[str, tuple[Run, int]] = {}
        self._alone = where == ":memory:"
        self._in_turn = 0
        """Ends so far in this turn of the loop."""
        self._asked = 0
        """How much the thread has to do."""
        self._ending: list[tuple[Run, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        # The table is asked by one thread, so that a slow disk holds up no run.
        self._thread = ThreadPoolExecutor(1, "steer-runs")
        self._open = asyncio.Event()

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self, owner: str | None = None) -> None:
        """`owner`: what this process is called by the engine."""
        self.owner = owner or self.owner
        await self._do(self._owners.open, self.owner)
        await self._do(self._shelf.open)
        if self._hasty is not None:
            await self._do(self._hasty.open)
        self._open.set()
        await self._sweep()
        self._ticking = asyncio.create_task(self._tick())

    async def drain(self, seconds: float) -> None:
        """What is under way here for callers, or was accepted here, gets so long to end. Nothing new is accepted."""
        self.stopping = True
        tasks = [run.task for run in self._running.values() if run.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def close(self) -> None:
        """What is still under way is interrupted, unless the engine has it."""
        self.stopping = True
        tasks = []
        for run in self._running.values():
            if run.task is not None and not run.over:
                run.stopped = True
                run.task.cancel()
                tasks.append(run.task)
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.wait([self._ticking])
        if self._writing is not None:
            await asyncio.wait([self._writing])
        await self._do(self._shelf.close)
        if self._hasty is not None:
            await self._do(self._hasty.close)
        await self._do(self._owners.close)
        self._thread.shutdown(wait=False)

    # ── runs that begin here ─────────────────────────────────────────────────────────────────────────────────────────

    def start(self, run_id: str, tenant: str, request: Any, work: Work, size: int = 0) -> Run:
        """Begin a run that goes on whether or not anybody waits for it."""
        run = self.new(run_id, tenant, request, size)
        self._begin(run, work)
        return run

    def new(self, run_id: str, tenant: str, request: Any, size: int = 0) -> Run:
        """A run for `carry_out`. `size`: bytes of its request."""
        self.require_room()
        run = self._running[run_id] = Run(run_id, tenant, request, self._clock(), owner=self.owner, size=size)
        return run

    async def carry_out(self, run: Run, work: Work) -> OrchestrationOutput:
        """Carry out a run in the task that calls this; another one would take two turns of the loop. To cancel the run
        is to cancel this task, which then gets CancelledError with the run over; where the task was meant, the run
        goes with it."""
        run.task = asyncio.current_task()
        return await self._carried_out(run, work)

    async def accept(
        self, run_id: str, tenant: str, request: Any, work: Work, keyed: Keyed | None = None, size: int = 0
    ) -> Run:
        """The same, written down first: whatever becomes of this process, the run ends. One with a key that is under
        way is given instead; ConflictError where it is of another request."""
        run = self.new(run_id, tenant, request, size)
        try:
            row = await self._do(run.row) if run.large else run.row()
            if keyed is None:
                await self._do(self._shelf.accept, [row])
            else:
                known, mark = await self._do(self._shelf.accept_keyed, row, keyed.key, keyed.fingerprint)
                if mark != keyed.fingerprint:
                    raise ConflictError(keyed.name)
                if known != run_id:
                    self._running.pop(run_id, None)
                    return await self.get(tenant, known)
            run.row_told = row.tool, row.engine
        except BaseException:
            self._running.pop(run_id, None)
            raise
        self._begin(run, work)
        return run

    async def handed_in(
        self, run_id: str, tenant: str, request: Any, tool: str | None, engine_id: str, *, keyed: bool = False
    ) -> Run:
        """Write down a run that the engine has: some process or other carries it out, and has perhaps done so. Where it
        has a key it may be known: then it is the one that was accepted first."""
        run = Run(run_id, tenant, request, self._clock(), tool=tool, owner="", engine=engine_id)
        if not keyed:
            await self._do(self._shelf.accept, [run.row()])
        elif (known := await self._do(self._shelf.accept_once, run.row())) != run_id:
            return await self.get(tenant, known)
        return run

    def require_room(self) -> None:
        if self.stopping:
            raise Problem(503, "the service is being stopped", {"Retry-After": "1"})
        if len(self._running) >= MOST_RUNNING:
            raise Problem(503, f"{MOST_RUNNING} runs are under way", {"Retry-After": "1"})

    def _begin(self, run: Run, work: Work) -> None:
        run.task = asyncio.create_task(self._carried_out(run, work))
        run.task.add_done_callback(_seen)

    async def _carried_out(self, run: Run, work: Work) -> OrchestrationOutput:
        goes_on = False
        run.began = asyncio.get_running_loop().time()
        try:
            output = await work(_Heard(run))
            run.end(output)
            if self.on_end is not None and not output.replayed:
                assert run.output is not None
                self.on_end(run.output)
            return output
        except asyncio.CancelledError:
            goes_on = self._goes_on(run)
            if self.stopping and not run.cancelled:
                run.interrupt()
            else:
                run.state = "cancelled"
            raise
        except Exception as error:
            goes_on = self._goes_on(run)
            run.fail(error)
            raise
        finally:
            if goes_on:
                self._leave(run)
            else:
                await asyncio.shield(self._ended(run))

    def _goes_on(self, run: Run) -> bool:
        """Whether another process goes on with it: this one is being stopped, and the engine has it."""
        return self.stopping and not run.cancelled and run.engine is not None and self._engine is not None

    # ── runs that the engine gives us ────────────────────────────────────────────────────────────────────────────────

    def known_as(self, run_id: str, engine_id: str) -> None:
        """A run that began here is called that by the engine."""
        run = self._running.get(run_id)
        if run is not None:
            run.engine = engine_id

    async def carry(
        self,
        run: Run,
        began: float,
        work: Callable[[EventManager], Awaitable[R]],
        came_to: Callable[[R], OrchestrationOutput],
    ) -> R:
        """Carry out a run of the engine that began `began` seconds ago. Where `work` is broken off, it goes on
        elsewhere, or the engine knows why it ended."""
        await self._open.wait()
        run.owner = self.owner
        known, events = await self._do(self._shelf.take, run.row())
        run.take(known)
        if not run.over:
            run.events = events
            self._running[run.id] = run
        run.row_told, run.events_told, run.size = (known.tool, known.engine), len(events), len(known.record)
        try:
            gave = await work(_Heard(run, began))
        except BaseException:
            self._leave(run)
            with contextlib.suppress(RuntimeError):  # The thread may have ended.
                self._thread.submit(self._shelf.leave, run.id, self.owner)
            raise
        if not run.over:
            self._settle(run, lambda: came_to(gave))
            if self.on_end is not None and run.output is not None:
                self.on_end(run.output)
            await asyncio.shield(self._ended(run))
        return gave

    def _leave(self, run: Run) -> None:
        self._running.pop(run.id, None)
        run.left = True
        run.wake()

    def _settle(self, run: Run, came_to: Callable[[], OrchestrationOutput]) -> None:
        try:
            run.end(came_to())
        except Exception as error:
            run.fail(error)

    # ── any run ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def get(self, tenant: str, run_id: str) -> Run:
        """404 for a run that is not there, or another tenant's: which of both is nobody's business."""
        run = self._running.get(run_id)
        if run is None and run_id in self._followed:
            run = self._followed[run_id][0]
        run = run or await self._do(self._read, run_id)
        if run is None or run.tenant != tenant:
            raise Problem(404, "there is no such run")
        return run

    async def latest(self, tenant: str, count: int = 50) -> list[Run]:
        """The newest first."""
        running = [run for run in self._running.values() if run.tenant == tenant]
        rows = await self._do(self._shelf.latest, tenant, count)
        # One that ended in between is in both.
        each = {run.id: run for run in [*map(_run_of, rows), *running]}.values()
        return sorted(each, key=lambda run: -run.created)[:count]

    async def follow(self, run: Run, after: int) -> AsyncGenerator[list[Told], None]:
        """Its events from the one after number `after`, those at once that are there, until its end, whichever process
        carries it out; an empty list after KEEP_ALIVE without any. In the end `run` says how it ended."""
        source = run
        while True:
            with self._following(source) as source, contextlib.closing(_Wait(source)) as wait:
                ended = False
                while not ended:
                    # All three as they stand now: what comes while the reader is busy is looked at in the next round.
                    changes, ended, events = source.changes, source.over or source.left, source.events[max(after, 0) :]
                    if events:
                        after = events[-1].id
                        yield events
                    if not ended and changes == source.changes and not await wait():
                        yield []
            if source.over:
                run.state, run.error = source.state, source.error
                return
            # It was here, and goes on elsewhere.
            source = await self.get(run.tenant, run.id)

    @contextlib.contextmanager
    def _following(self, run: Run) -> Iterator[Run]:
        """Of a run that another process carries out there is one here for all who follow it, which is kept up to
        date."""
        if run.over or run.id in self._running:
            # It may have been begun here since `run` was read from the table, which hears nothing of it.
            yield run if run.over else self._running[run.id]
            return
        shared, readers = self._followed.get(run.id, (run, 0))
        self._followed[run.id] = shared, readers + 1
        try:
            yield shared
        finally:
            _, readers = self._followed.pop(run.id)
            if readers > 1:
                self._followed[run.id] = shared, readers - 1

    async def cancel(self, run: Run) -> None:
        """Here at once; where another process has it, within a moment."""
        if run.over:
            return
        if run.task is not None:
            run.cancelled = True
            run.task.cancel()
        elif run.engine is not None and self._engine is not None:
            await self._engine.cancel(run.engine)
            self._running.pop(run.id, None)
            await self._look_up(run)
        else:
            await self._do(self._shelf.stop, run.id)

    def let_go(self, run: Run) -> None:
        """Its caller has gone. Where he had to, since the service stops, the run has its time to end."""
        if run.task is not None and not (self.stopping or run.over):
            run.cancelled = True
            run.task.cancel()

    @property
    def under_way(self) -> int:
        return len(self._running)

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ended(self, run: Run) -> asyncio.Future[None]:
        """Write down how a run ended; what is returned says when that is done. Where the thread has nothing to do it is
        done here and now, in a tenth of the time that it takes to wake it and be woken by it. All that end while
        something is written are written together after it."""
        if run.dropped:
            run.events.append(told({"id": len(run.events) + 1, "type": "dropped", "data": {"events": run.dropped}}))
            run.dropped = 0
        known: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if (hasty := self._free(run)) is not None and (stands := hasty.end_now(run.row)) is not None:
            self._written_down(run, *stands)
            known.set_result(None)
            return known
        self._ending.append((run, known))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return known

    def _free(self, run: Run) -> Hasty | None:
        """By which an end may be written in the loop; None where the thread has something to do, or where it is one of
        a crowd that ends in this turn, which the thread writes in one transaction."""
        if self._hasty is None or self._asked or self._writing is not None or run.large or not self._hasty.may():
            return None
        if not self._in_turn:
            asyncio.get_running_loop().call_soon(self._turned)
        self._in_turn += 1
        return self._hasty if self._in_turn <= AT_ONCE else None

    def _turned(self) -> None:
        self._in_turn = 0

    async def _write(self) -> None:
        try:
            while self._ending:
                batch, self._ending = self._ending, []
                runs = [run for run, _ in batch]
                try:
                    stands = await self._do(self._write_ends, runs)
                except StoreUnavailable as error:
                    # Whoever waits gets what there is. It is written down once that can be done.
                    _log.warning("%d ended runs could not be written down yet: %s", len(batch), error)
                    self._ending = [*batch, *self._ending][-MOST_RUNS:]
                    stands = [None] * len(batch)
                for (run, known), row in zip(batch, stands, strict=True):
                    self._written_down(run, row)
                    if not known.done():
                        known.set_result(None)
                if self._ending and self._ending[0] is batch[0]:
                    if self.stopping:
                        return
                    await asyncio.sleep(AGAIN)
        finally:
            self._writing = None

    def _written_down(self, run: Run, stands: Row | None) -> None:
        """How it ended is in the table; `stands` where that is another end."""
        if stands is not None:
            run.take(stands)
        self._running.pop(run.id, None)
        run.wake()

    def _write_ends(self, runs: list[Run]) -> list[Row | None]:
        return self._shelf.end([run.row() for run in runs])

    async def _look_up(self, run: Run) -> None:
        """Write down how a run of the engine ended, where nobody who carried it out could."""
        assert self._engine is not None
        assert run.engine is not None
        if run.over or run.id in self._running:
            return
        try:
            came_to = await self._engine.outcome(run.engine)
        except StoreUnavailable:
            raise
        except Exception as error:
            run.fail(error)
        else:
            if came_to is None:
                return
            if isinstance(came_to, str):
                run.state = came_to
            else:
                run.end(came_to)
        run.events = await self._do(self._shelf.live, run.id)
        await self._ended(run)

    # ── what others want ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        next_sweep, next_prune = loop.time() + SWEEP, loop.time() + PRUNE
        while True:
            await asyncio.sleep(TICK)
            try:
                await self._look()
                if loop.time() >= next_sweep:
                    next_sweep = loop.time() + SWEEP
                    await self._sweep()
                if loop.time() >= next_prune:
                    next_prune = loop.time() + PRUNE
                    await self._do(self._shelf.prune, self._most_runs)
            except Exception:
                _log.warning("the table of runs could not be looked at", exc_info=True)

    async def _look(self) -> None:
        young = self._clock() - TICK
        followed = {run_id: len(run.events) for run_id, (run, _) in self._followed.items()}
        if self._alone or not (self._running or followed):
            return
        news = [
            (run, run.news())
            for run in self._running.values()
            if not run.over and run.created < young and (run.row_told is None or len(run.events) > run.events_told)
        ]
        seen = await self._do(self._looked, [new for _, new in news], followed)
        for run, new in news:
            run.has_told(new)
        for run_id in seen.stopped:
            if run_id in self._running:
                await self.cancel(self._running[run_id])
        for run_id, row in seen.ended.items():
            if run_id in self._followed:
                _end_as(self._followed[run_id][0], row)
        for run_id, events in seen.events.items():
            if run_id in self._followed:
                _hear_of(self._followed[run_id][0], events)

    def _looked(self, news: list[News], followed: Mapping[str, int]) -> _Seen:
        shelf = self._shelf
        if news:
            shelf.tell(news)
        running = shelf.running(followed)
        ended = {run_id: shelf.get(run_id) for run_id in followed if run_id not in running}
        return _Seen(shelf.stopped(self.owner), ended, shelf.later({run_id: followed[run_id] for run_id in running}))

    async def _sweep(self) -> None:
        """Runs whose process has died, or which have ended while nobody was there to write it down."""
        if self._engine is None:
            await self._do(self._interrupt_orphans)
            return
        rows = await self._do(self._shelf.under_way_elsewhere, self.owner, LOOKED_AT)
        if not rows:
            return
        living, now = await self._engine.owners(), self._clock()
        for run in map(_run_of, rows):
            if run.engine is not None:
                await self._look_up(run)
            elif living is not None and run.owner not in living and run.created < now - GIVEN_UP:
                run.interrupt()
                await self._ended(run)

    def _interrupt_orphans(self) -> None:
        shelf = self._shelf
        for owner in shelf.owners():
            if owner == self.owner or self._owners.lives(owner):
                continue
            found = [_run_of(row) for row in shelf.of_owner(owner)]
            for run in found:
                run.events = shelf.live(run.id)
                run.interrupt()
            shelf.end([run.row() for run in found])
            if found:
                _log.warning("%d runs of a process that has died are interrupted", len(found))

    # ── in the thread ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _do(self, work: Callable[..., R], *given: Any) -> R:
        self._asked += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *given)
        except (OrchestratorError, Problem):
            raise
        except Exception as error:
            # By type only: what a database says may quote its URL.
            raise StoreUnavailable(f"the table of runs did not answer ({type(error).__name__})") from error
        finally:
            self._asked -= 1

    def _read(self, run_id: str) -> Run | None:
        row = self._shelf.get(run_id)
        if row is None:
            return None
        run = _run_of(row)
        if not run.over:
            run.events = self._shelf.live(run_id)
        return run


def _run_of(row: Row) -> Run:
    run = Run(row.id, row.tenant, None, row.created)
    run.take(row)
    return run


def _end_as(run: Run, row: Row | None) -> None:
    if row is None:
        run.state = "forgotten"
        run.wake()
    elif row.state != "running":
        run.take(row)


def _hear_of(run: Run, events: list[Told]) -> None:
    if not run.over:
        run.events += [event for event in events if event.id > len(run.events)]
        run.wake()


_AS_IT_IS = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
_SHALLOW = 100
"""Brackets, at most, of an event that is surely not nested too deep to be written."""


def told(event: Mapping[str, Any]) -> Told:
    """An event, written down once and for all. What is plain JSON, as nearly all of them are, the encoder tells in a
    tenth of the time that looking at it takes. What it writes as null may have been NaN, so then it is looked at."""
    try:
        said = orjson.dumps(event, option=_AS_IT_IS)
        if b"null" not in said and said.count(b"{") + said.count(b"[") <= _SHALLOW:
            return Told(event["id"], event["type"], said.decode())
    except TypeError:
        pass
    plain = {name: _plain(value) for name, value in event.items()}
    return Told(plain["id"], plain["type"], written(plain))


def _plain(value: Any) -> Any:
    return describe_error(value) if isinstance(value, BaseException) else as_json(value)[0]


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
