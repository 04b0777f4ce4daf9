"""Cancellation at every await: whatever is interrupted, no permit, reservation, claim or task is left behind.

A run is stepped through: each time any of its tasks is about to wait, that is one place. The same run is then made anew
for each of these places, and its caller is cancelled just there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from contract.kit import STEADY, Fixed, reliable
from steer_llm_sdk import EventManager
from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import OrchestrationOutput, PlanDecision, ReliableOrchestrator
from steer_llm_sdk.orchestration._call import current_scope, protected
from steer_llm_sdk.orchestration.strategies import Calibration, StrategyTool, cascade, chain, merge, quorum, race
from steer_llm_sdk.reliability import CircuitBreakerConfig, ErrorClassifier, HedgingPolicy, RateLimit
from steer_llm_sdk.reliability.budget import Budget, Ledger
from steer_llm_sdk.testing import OK, ScriptedTool, err, run_in_virtual_time, stubborn


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that tells each time it waits."""

    def __init__(self, inner: Coroutine[Any, Any, Any], waits: Callable[[], None]) -> None:
        self.inner, self.waits = inner, waits

    def send(self, value: Any) -> Any:
        waited_for = self.inner.send(value)
        self.waits()
        return waited_for

    def throw(self, *args: Any) -> Any:
        waited_for = self.inner.throw(*args)
        self.waits()
        return waited_for

    def close(self) -> None:
        self.inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.inner.__await__()


class Places:
    """Counts the places of a run and cancels its caller at one of them, or at two in a row."""

    def __init__(self, cancel_at: int | None, times: int = 1) -> None:
        self.cancel_at = range(0) if cancel_at is None else range(cancel_at, cancel_at + times)
        self.seen = 0
        self.victim: asyncio.Task[Any] | None = None
        self.counting = False

    async def step(self, work: Coroutine[Any, Any, Any]) -> tuple[asyncio.Task[Any], set[asyncio.Task[Any]]]:
        """Let `work` run to its end; the task of it, and the tasks that were left."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(self._task)
        before = asyncio.all_tasks()
        self.counting = True
        self.victim = loop.create_task(work)
        await asyncio.wait({self.victim})
        self.counting = False
        loop.set_task_factory(None)
        for _ in range(3):
            await asyncio.sleep(0)
        return self.victim, asyncio.all_tasks() - before

    def _task(self, loop: Any, work: Any, **kwargs: Any) -> asyncio.Task[Any]:
        return asyncio.Task(_Stepped(work, self._waits), loop=loop, **kwargs)

    def _waits(self) -> None:
        if self.counting:
            if self.seen in self.cancel_at and self.victim is not None:
                self.victim.cancel()
            self.seen += 1


# ── the runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Watched(ScriptedTool):
    """Has a price, tells on the way, and keeps the accounts of the runs that asked it."""

    tells = True

    def __init__(self, name: str, *steps: Any, **kwargs: Any) -> None:
        super().__init__(name, *steps, **kwargs)
        self.ledgers: list[Ledger] = []

    def worst_case(self, request: Any, options: Any) -> Amount:
        return Amount(10, 0.1)

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        scope = current_scope()
        if scope is not None and scope.run.ledger is not None:
            self.ledgers.append(scope.run.ledger)
        if event_manager is not None and self.tells:
            await event_manager.emit_delta(StreamDeltaEvent("on the way"))
        return await super().execute(request, options, event_manager)


class Mute(Watched):
    """Gives no sign of life before it answers."""

    tells = False


class Fan(Watched):
    """Three calls at once, each under the policies."""

    composite = True

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        async def one(n: int) -> Any:
            return await protected(
                lambda: super(Fan, self).execute(request, options, event_manager),
                target="p",
                part=self.name,
                worst_case=Amount(10, 0.1),
            )

        async with asyncio.TaskGroup() as group:
            parts = [group.create_task(one(n)) for n in range(3)]
        return [part.result() for part in parts]


class SlowPlan(Fixed):
    async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
        await asyncio.sleep(0.1)
        return await super().plan(request, available_tools, context)


UNSURE = Calibration(bound=0.99, auroc=0.9, right_at_least=0.95, answers=300)
"""No answer of a cheap tool is sure enough: the next is asked."""
BREAKER = CircuitBreakerConfig(failure_threshold=9, success_threshold=1, half_open_requests=1, timeout=10)
EVERYTHING = {
    "timeout_ms": 60_000,
    "idempotency_key": "k",
    "per_agent_timeout_ms": 5000,
    "budget": {"tokens": 1000, "cost_usd": 10.0},
    "budgets": [Budget("team", tokens=10_000, usd=50, per="day"), Budget("all", usd=100)],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "bare": {},
    "deadline": {"timeout_ms": 60_000},
    "keyed": {"idempotency_key": "k"},
    "attempt timeout": {"per_agent_timeout_ms": 5000},
    "budget": {"budget": {"tokens": 1000, "cost_usd": 10.0}},
    "shared budget": {"budgets": [Budget("team", tokens=1000, usd=10)]},
    "everything": EVERYTHING,
}


def steps() -> tuple[Watched, Watched]:
    """A first tool that is tried three times and given up, and one that answers at the second attempt."""
    first = Watched("first", err(503, after=0.2), err(429, after=0.2), err(503, after=0.2), provider="p")
    second = Watched(
        "second", err(TimeoutError, after=0.2), OK("x", usage={"total_tokens": 3}, after=0.2), provider="q"
    )
    return first, second


async def slow_handler(_: Any) -> None:
    await asyncio.sleep(0.01)


class Scene:
    """An orchestrator, its tools, and what must hold of them after a run, however it ended."""

    def __init__(self, *tools: Watched, options: dict[str, Any], **fields: Any) -> None:
        self.tools = tools
        self.options = options
        self.runner: ReliableOrchestrator = reliable(
            *tools,
            planner=SlowPlan(*(tool.name for tool in tools)),
            breaker=BREAKER,
            retry=STEADY.model_copy(update={"initial_delay": 0.1}),
            **fields,
        )

    async def run(self) -> OrchestrationOutput:
        events = EventManager(on_create_event=slow_handler)
        return await self.runner.run("q", None, None, {**self.options, "max_retries": 2}, events)

    def check_nothing_is_left(self, left: set[asyncio.Task[Any]]) -> None:
        assert left == set()
        assert [tool.running for tool in self.tools] == [0] * len(self.tools)
        for ledger in (ledger for tool in self.tools for ledger in tool.ledgers):
            assert (ledger.reserved_tokens, round(ledger.reserved_cost, 9)) == (0, 0)
        assert [
            account["reserved"] for account in self.runner.budgets.values() if any(account["reserved"].values())
        ] == []

    async def check_the_key_is_settled_or_free(self) -> None:
        if "idempotency_key" in self.options:
            again = await asyncio.wait_for(self.run(), 60)
            assert again.content == "x"
            assert (await self.run()).replayed


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice in a row"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_that_is_cancelled_at_any_await_leaves_nothing_behind(name: str, times: int) -> None:
    async def attempt(place: int | None) -> int:
        scene = Scene(*steps(), options=OPTIONS[name])
        places = Places(place, times)
        task, left = await places.step(scene.run())
        assert place is not None if task.cancelled() else task.result().content == "x"
        await _left_to_end(left, times)
        scene.check_nothing_is_left(left)
        for stats in scene.runner.breakers.values():
            assert stats["state"] == "closed"
            assert stats["failures"] <= 3, "only the failures of the script count"
        await scene.check_the_key_is_settled_or_free()
        return places.seen

    _at_every_place(attempt, least=15)


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice in a row"])
@pytest.mark.parametrize("name", ["bare", "keyed", "everything"])
def test_two_at_once_that_are_cancelled_at_any_await_leave_nothing_behind(name: str, times: int) -> None:
    """The first is silent; beside it the second is hedged, and answers."""

    async def attempt(place: int | None) -> int:
        first = Mute("first", OK("slow", after=9), provider="p")
        slow = [OK("slow", usage={"total_tokens": 3}, after=9), OK("x", usage={"total_tokens": 3}, after=0.5)]
        second = Mute("second", *[OK("x", after=1)] * 3, *slow, provider="q")
        fields = {"silence_timeout": 2.0, "hedging": HedgingPolicy(min_samples=3, max_ratio=1.0)}
        scene = Scene(first, second, options={**OPTIONS[name], "per_agent_timeout_ms": 20_000}, **fields)
        for _ in range(3):
            await scene.runner.run("q", "second")
        places = Places(place, times)
        task, left = await places.step(scene.run())
        assert place is not None if task.cancelled() else task.result().content == "x"
        await _left_to_end(left, times)
        scene.check_nothing_is_left(left)
        for stats in scene.runner.breakers.values():
            assert stats["state"] == "closed"
            assert stats["failures"] <= 1, "only that of the silent one, where the other answered"
        assert len(second.calls) - 3 in (range(3) if task.cancelled() else {2})
        return places.seen

    _at_every_place(attempt, least=8)


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice in a row"])
def test_a_fan_of_calls_that_is_cancelled_at_any_await_leaves_nothing_behind(times: int) -> None:
    async def attempt(place: int | None) -> int:
        tool = Fan("first", err(503, after=0.1), OK("y", after=0.2), OK("y", after=0.3), OK("y", after=0.1))
        scene = Scene(tool, options=EVERYTHING)
        places = Places(place, times)
        _, left = await places.step(scene.run())
        await _left_to_end(left, times)
        scene.check_nothing_is_left(left)
        return places.seen

    _at_every_place(attempt, least=20)


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice in a row"])
@pytest.mark.parametrize(
    "made",
    [chain, race, merge, lambda *tools: quorum(2, *tools), lambda *tools: cascade(*tools, calibration=UNSURE)],
    ids=["chain", "race", "merge", "quorum", "cascade"],
)
def test_a_strategy_that_is_cancelled_at_any_await_leaves_nothing_behind(made: Any, times: int) -> None:
    async def attempt(place: int | None) -> int:
        first = Watched("first", err(503, after=0.1), OK("x", usage={"total_tokens": 3}, after=0.2), provider="p")
        second = Watched("second", OK("x", usage={"total_tokens": 3}, after=0.4), provider="q")
        scene = Scene(first, second, options=EVERYTHING)
        scene.runner.registry.register_tool(StrategyTool("both", made(first, second)))
        places = Places(place, times)
        task, left = await places.step(scene.runner.run("q", "both", None, {**EVERYTHING, "max_retries": 2}))
        assert place is not None if task.cancelled() else task.result().status != "failed"
        await _left_to_end(left, times)
        scene.check_nothing_is_left(left)
        return places.seen

    _at_every_place(attempt, least=10)


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice in a row"])
@pytest.mark.parametrize("learn", [False, True], ids=["configured", "learned too"])
def test_a_hedged_call_under_every_policy_that_is_cancelled_at_any_await_leaves_nothing_behind(
    learn: bool, times: int
) -> None:
    """Each attempt of the second holds a place, tokens and money. The first is silent, and stopped."""

    async def attempt(place: int | None) -> int:
        first = Mute("first", OK("slow", after=9), provider="p")
        slow = [OK("slow", usage={"total_tokens": 3}, after=9), OK("x", usage={"total_tokens": 3}, after=0.5)]
        second = Mute("second", *[OK("x", after=1)] * 3, *slow, provider="q")
        scene = Scene(
            *(first, second),
            options={**EVERYTHING, "per_agent_timeout_ms": 20_000},
            silence_timeout=2.0,
            hedging=HedgingPolicy(min_samples=3, max_ratio=1.0),
            rate_limits={"default": RateLimit(requests_per_minute=600, tokens_per_minute=10_000, max_concurrent=2)},
            learn_rate_limits=learn,
            error_classifier=ErrorClassifier(),
        )
        for _ in range(3):
            await scene.runner.run("q", "second")
        places = Places(place, times)
        task, left = await places.step(scene.run())
        assert place is not None if task.cancelled() else task.result().content == "x"
        await _left_to_end(left, times)
        scene.check_nothing_is_left(left)
        accounts = [limits for limits in (scene.runner.executor.limits, scene.runner.executor.learned_limits) if limits]
        gates = [gate for limits in accounts for gate in limits.gates.values() if gate is not None]
        assert len(gates) >= len(accounts)
        assert {
            (gate.state.running, round(gate.state.reserved, 6), len(gate.state.line.waiters)) for gate in gates
        } == {(0, 0, 0)}
        await scene.check_the_key_is_settled_or_free()
        return places.seen

    _at_every_place(attempt, least=15)


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["bare", "everything"])
def test_a_probe_that_is_cancelled_at_any_await_frees_its_permit_and_moves_no_circuit(options: dict[str, Any]) -> None:
    async def attempt(place: int | None) -> int:
        tool = Watched("first", *[err(503)] * 9, OK("x", after=0.2), provider="p")
        scene = Scene(tool, options=options)
        for _ in range(9):
            await scene.runner.run("q", "first", None, {"max_retries": 0})
        await asyncio.sleep(10)
        assert scene.runner.breakers["p"]["state"] == "half_open"
        places = Places(place)
        task, left = await places.step(scene.run())
        scene.check_nothing_is_left(left)
        state = scene.runner.breakers["p"]["state"]
        assert state != "open"
        assert task.cancelled() or state == "closed"
        if not tool.calls[9:]:
            assert state == "half_open"
        # The one permit of this half-open time is there again: the next call is a probe and not refused.
        output = await scene.runner.run("another", "first", None, {"max_retries": 0})
        assert output.content == "x"
        assert scene.runner.breakers["p"]["state"] == "closed"
        return places.seen

    _at_every_place(attempt, least=4)


@pytest.mark.parametrize("leader", [True, False], ids=["the leader", "one who joined"])
def test_one_of_two_duplicates_is_cancelled_at_any_await_and_the_work_is_done_once(leader: bool) -> None:
    async def attempt(place: int | None) -> int:
        tool = Watched("first", err(503, after=0.2), OK("x", after=0.2))
        scene = Scene(tool, options=EVERYTHING)
        places = Places(place)
        if leader:
            other = asyncio.create_task(_after(0.05, scene.run))
            task, _ = await places.step(scene.run())
            output = await other
        else:
            first = asyncio.create_task(scene.run())
            await asyncio.sleep(0.05)
            task, _ = await places.step(scene.run())
            output = await first
        assert place is not None if task.cancelled() else task.result().content == "x"
        assert output.content == "x"
        assert len(tool.calls) == 2
        return places.seen

    _at_every_place(attempt, least=2)


@pytest.mark.parametrize("name", ["deadline", "everything"])
def test_a_deaf_tool_whose_caller_is_cancelled_at_any_await_does_not_hold_him(name: str) -> None:
    async def attempt(place: int | None) -> int:
        tool = Watched("first", stubborn(5, OK("x")))
        scene = Scene(tool, options={**OPTIONS[name], "per_agent_timeout_ms": 60_000})
        places = Places(place)
        began = asyncio.get_running_loop().time()
        task, left = await places.step(scene.run())
        took = asyncio.get_running_loop().time() - began
        assert not task.cancelled() or took < 5.5
        if left:
            await asyncio.wait(left)
        scene.check_nothing_is_left(set())
        return places.seen

    _at_every_place(attempt, least=4)


@pytest.mark.parametrize("name", ["deadline", "everything"])
def test_a_run_whose_deadline_comes_at_any_time_is_back_in_time_and_leaves_nothing_behind(name: str) -> None:
    for ms in range(100, 2000, 13):

        async def attempt(ms: int = ms) -> None:
            scene = Scene(*steps(), options={**OPTIONS[name], "timeout_ms": ms})
            places = Places(None)
            task, left = await places.step(scene.run())
            error = task.exception()
            assert asyncio.get_running_loop().time() <= ms / 1000 + 0.05
            assert error is None or type(error).__name__ == "BudgetExceeded"
            scene.check_nothing_is_left(left)

        run_in_virtual_time(attempt())


@pytest.mark.parametrize("limit", [RateLimit(max_concurrent=1), RateLimit(requests_per_minute=60)], ids=str)
@pytest.mark.parametrize("learn", [False, True], ids=["configured", "learned too"])
def test_a_run_that_is_cancelled_at_any_await_under_a_rate_limit_leaves_no_place_taken(
    limit: RateLimit, learn: bool
) -> None:
    """It finds the one place taken, or the bucket empty, so that it has to wait before it is sent."""

    async def attempt(place: int | None) -> int:
        tool = Watched("first", err(503, after=0.2), OK("x", after=0.2), provider="p")
        other = Watched("other", OK("y", after=1), provider="p")
        scene = Scene(tool, other, options=EVERYTHING)
        scene.runner = reliable(tool, other, rate_limits={"p": limit}, learn_rate_limits=learn)
        others = [scene.runner.run("q", "other") for _ in range(60 if limit.requests_per_minute else 1)]
        busy = asyncio.gather(*others)
        await asyncio.sleep(0.5)
        places = Places(place)
        task, left = await places.step(scene.runner.run("q", "first", None, {**EVERYTHING, "max_retries": 2}))
        assert place is not None if task.cancelled() else task.result().content == "x"
        await busy
        scene.check_nothing_is_left(left)
        # Whatever was taken is there again: after a minute so many go at once as did at first.
        await asyncio.sleep(60)
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(scene.runner.run("again", "other") for _ in others))
        assert {call.at for call in other.calls[len(others) :]} == {began}
        return places.seen

    _at_every_place(attempt, least=6)


# ── the machinery ────────────────────────────────────────────────────────────────────────────────────────────────────


def _at_every_place(attempt: Callable[[int | None], Coroutine[Any, Any, int]], *, least: int) -> None:
    places = run_in_virtual_time(attempt(None))
    assert places >= least, f"only {places} places: this does not step through a run"
    for place in range(places):
        run_in_virtual_time(attempt(place))


async def _left_to_end(left: set[asyncio.Task[Any]], times: int) -> None:
    """One who is cancelled twice does not wait for what he cancelled: it ends by itself, at once."""
    if times > 1 and left:
        _, running = await asyncio.wait(left, timeout=0.02)
        left -= left - running


async def _after(seconds: float, make: Callable[[], Awaitable[Any]]) -> Any:
    await asyncio.sleep(seconds)
    return await make()
