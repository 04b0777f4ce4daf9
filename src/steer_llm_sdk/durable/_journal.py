"""The journal of one run: each call to the outside, and the plan, is a step that is recorded when it has ended.

A run that is carried out again, because its process died, goes the same way through the same code. Where it comes to a
call that is recorded, it gets what that call gave, with its lines of the timeline and what it used, and no policy is
asked: neither an open breaker nor a rate limit may come between a run and what it has paid for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from steer_llm_sdk.durable._records import Json, Unrecordable, dump_error, dump_result, load_error, load_result
from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.models.usage import Amount, tokens_of
from steer_llm_sdk.orchestration._call import Attempt, Call, Run, Spent, Usage, replicate
from steer_llm_sdk.reliability._pipeline import Next

_log = logging.getLogger(__name__)

Step = Callable[[str, Callable[[], Awaitable[Json]]], Awaitable[Json]]
"""`Runner.step`."""

journal_of_run: ContextVar[Journal | None] = ContextVar("steer_llm_sdk.journal", default=None)
"""That of the run which the running code belongs to."""
_heard: ContextVar[_Heard | None] = ContextVar("steer_llm_sdk.journal.heard", default=None)
"""What is noted of the call under way. Whatever is called within it belongs to it."""


async def record_call(call: Call, next: Next[Call, Any], /) -> Any:
    """The policy, outermost: a call of a durable run is a step of it."""
    journal = journal_of_run.get()
    if journal is None or journal.run is not call.run or _heard.get() is not None:
        return await next(call)
    return await journal.call(call, next)


class _Heard:
    """The lines and the usage of one call, among those of the whole run."""

    def __init__(self) -> None:
        self.lines: list[Attempt] = []
        self.spending: list[tuple[str, Usage]] = []

    def dump(self) -> Json:
        spending = [[tool, dict(spent.usage), spent.cost_usd] for tool, spent in self.spending]
        return {"lines": [dict(line) for line in self.lines], "spending": spending}


class _Timeline(list[Attempt]):
    """The timeline of a run that knows which call a line belongs to."""

    def append(self, line: Attempt) -> None:
        super().append(line)
        if (heard := _heard.get()) is not None:
            heard.lines.append(line)


class _HeardRun(Run):
    """A run whose spending knows which call it belongs to, as its timeline does."""

    @property
    def spending(self) -> tuple[tuple[str, Usage], ...]:
        return self._spending

    @spending.setter
    def spending(self, spending: tuple[tuple[str, Usage], ...]) -> None:
        if (heard := _heard.get()) is not None:
            heard.spending += spending[len(self._spending) :]
        self._spending = spending

    _spending: tuple[tuple[str, Usage], ...] = ()


class Journal:
    """`ends`, on the clock of the loop, is when nothing new is sent any more; what is recorded is still given back."""

    def __init__(self, run_id: str, run: Run, step: Step, ends: float = math.inf) -> None:
        self.run_id = run_id
        self.run = run
        self._step = step
        self._ends = ends
        self._calls: dict[str, int] = {}
        run.timeline = _Timeline()
        run.__class__ = _HeardRun  # The flow has made it, for runs of any kind.

    async def call(self, call: Call, next: Next[Call, Any]) -> Any:
        return await self._recorded(self._name_of(call), call, next)

    async def once(self, name: str, make: Callable[[], Awaitable[Json]]) -> Json:
        """What `make` gave the first time."""
        return await self._step(name, make)

    def _name_of(self, call: Call) -> str:
        """Who asks whom, for which replicate, for the how many-th time. The order in which the replicates come does
        not matter; that in which the calls of one replicate, or of a tool without replicates, begin does."""
        asker, part, slot = f"{call.tool}@{call.version}", call.part, replicate.get()
        place = "/".join(piece for piece in (asker, slot, "" if part == call.tool else part) if piece)
        number = self._calls[place] = self._calls.get(place, 0) + 1
        return f"{place}#{number}"

    async def _recorded(self, name: str, call: Call, next: Next[Call, Any]) -> Any:
        live = _Live()

        async def work() -> Json:
            return await live.listen(call, next if self.run.clock() < self._ends else _too_late)

        record = await self._step(name, work)
        if live.ended:
            return live.outcome()
        if record.get("opaque"):
            _log.warning("step %s gave what could not be recorded, and is carried out again", name)
            return await self._recorded(f"{name}+", call, next)
        self._restore(record)
        if "error" in record:
            raise load_error(record["error"])
        return load_result(record["result"])

    def _restore(self, record: Json) -> None:
        run = self.run
        list.extend(run.timeline, record["lines"])
        run.timeline.sort(key=_began)
        spending = [(tool, Spent(usage, cost)) for tool, usage, cost in record["spending"]]
        run.spending = (*run.spending, *spending)
        if run.ledger is not None:
            for _, spent in spending:
                run.ledger.recharge(Amount(tokens_of(spent.usage), spent.cost_usd))


async def _too_late(call: Call) -> Any:
    assert call.deadline is not None
    raise BudgetExceeded("time", call.deadline.limit_ms, call.elapsed() * 1000)


def _began(line: Attempt) -> float:
    return line["started_ms"]


class _Live:
    """A call that is made here and now: its outcome is handed on as it is, and not as it is recorded."""

    def __init__(self) -> None:
        self.ended = False
        self._result: Any = None
        self._error: Exception | None = None

    async def listen(self, call: Call, next: Next[Call, Any]) -> Json:
        heard = _Heard()
        token = _heard.set(heard)
        try:
            self._result = await next(call)
        except Exception as error:
            self._error = error
        finally:
            _heard.reset(token)
        self.ended = True
        if self._error is not None:
            return {"error": dump_error(self._error), **heard.dump()}
        try:
            return {"result": dump_result(self._result), **heard.dump()}
        except Unrecordable as error:
            _log.warning("the call of '%s' cannot be recorded: %s", call.tool, error)
            return {"opaque": True}

    def outcome(self) -> Any:
        if self._error is None:
            return self._result
        try:
            raise self._error
        finally:
            self._error = None  # Its traceback holds this frame.
