"""The policies beside their reducers: any history of calls, outcomes, cancellations and time, in any order of tasks.

Hypothesis makes up the history and the seed of the loop. What a policy does must be what its reducer says, or what a
few lines of arithmetic say.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from contract.fake_call import FakeCall
from steer_llm_sdk.errors import BudgetExceeded, CircuitOpen, ConflictError, ProviderError
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.reliability import CircuitBreakerConfig, CircuitBreakerManager, IdempotencyManager, RetryPolicy
from steer_llm_sdk.reliability.budget import Ledger, Reserve
from steer_llm_sdk.reliability.circuit import Circuit, Outcome, Permit, Refusal
from steer_llm_sdk.reliability.circuit_breaker import Breaker
from steer_llm_sdk.reliability.deadline import Deadline
from steer_llm_sdk.reliability.idempotency import Hangar, Work, once
from steer_llm_sdk.reliability.retry import AttemptLimit, Retry
from steer_llm_sdk.reliability.stores import POLL
from steer_llm_sdk.reliability.stores.memory import MemoryStore
from steer_llm_sdk.testing import VirtualTimeLoop, run_in_virtual_time

SHORT = settings(max_examples=30, stateful_step_count=25, deadline=None)
WORST = Amount(5, 0.5)


@dataclass(kw_only=True)
class Call(FakeCall):
    worst_case: Amount = WORST


class InVirtualTime(RuleBasedStateMachine):
    """A loop of its own, with the order of tasks drawn from a seed."""

    loop: VirtualTimeLoop

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        self.loop = VirtualTimeLoop(seed)
        self.setup()

    def setup(self) -> None:
        raise NotImplementedError

    def teardown(self) -> None:
        self.finish()
        self.loop.close()

    def finish(self) -> None:
        """End what is under way."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.wait(asyncio.gather(*tasks, return_exceptions=True)) if tasks else None

    def task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # Seen, whoever asks.
        self.let_run()
        return task

    def let_run(self) -> None:
        for _ in range(6):
            self.wait(asyncio.sleep(0))

    def wait(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @property
    def now(self) -> float:
        return self.loop.time()


# ── breaker ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class UnderWay:
    task: asyncio.Task[Any]
    answer: asyncio.Future[Any]
    permit: Permit
    part: str
    call: Call


CONFIG = CircuitBreakerConfig(
    failure_threshold=3,
    success_threshold=2,
    timeout=4,
    half_open_requests=2,
    window_size=20,
    probe_lease=3,
    failure_rate_threshold=0.5,
    minimum_throughput=4,
    timeout_factor=2,
    max_timeout=10,
)
ENDS: dict[str, tuple[Any, Outcome]] = {
    "answers": ("x", Outcome.SUCCESS),
    "fails": (ProviderError("down", "p", 503), Outcome.FAILURE),
    "refuses": (ProviderError("bad", "p", 400), Outcome.NEUTRAL),
    "is busy": (ProviderError("busy", "p", 429), Outcome.NEUTRAL),
}


class BreakerBesideItsReducer(InVirtualTime):
    calls = Bundle("calls")

    def setup(self) -> None:
        self.breakers = CircuitBreakerManager(lambda name: CONFIG)
        self.policy = Breaker(self.breakers)
        self.circuit = Circuit()

    @rule(target=calls, part=st.sampled_from("ab"))
    def start(self, part: str) -> Any:
        self.circuit, said = self.circuit.admit(part, self.now, CONFIG)
        answer: asyncio.Future[Any] = self.loop.create_future()

        async def next(call: Call) -> Any:
            return await answer

        call = Call(part=part)
        task = self.task(self.policy(call, next))
        if isinstance(said, Refusal):
            assert isinstance(task.exception(), CircuitOpen)
            return None
        assert not task.done()
        return UnderWay(task, answer, said, part, call)

    @rule(call=consumes(calls), how=st.sampled_from(list(ENDS)))
    def end(self, call: Any, how: str) -> None:
        if call is None:
            return
        result, outcome = ENDS[how]
        if isinstance(result, Exception):
            call.answer.set_exception(result)
        else:
            call.answer.set_result(result)
        self._reported(call, outcome)
        assert call.task.exception() is (result if isinstance(result, Exception) else None)

    @rule(call=consumes(calls))
    def cancel(self, call: Any) -> None:
        if call is not None:
            call.task.cancel()
            self._reported(call, Outcome.NEUTRAL)
            assert call.task.cancelled()

    @rule(seconds=st.sampled_from((0.5, 1.0, 3.0, 10.0)))
    def pass_time(self, seconds: float) -> None:
        self.wait(asyncio.sleep(seconds))

    def _reported(self, call: UnderWay, outcome: Outcome) -> None:
        self.let_run()
        self.circuit = self.circuit.report(call.permit, call.part, outcome, self.now, CONFIG)

    @invariant()
    def the_states_are_the_same(self) -> None:
        breaker = self.breakers.get("p")
        if breaker is None:
            return

        async def states() -> list[Any]:  # A breaker outside of the loop would go by another clock.
            return [breaker.get_state(part) for part in (None, "a", "b")]

        assert self.wait(states()) == [self.circuit.state(self.now, part) for part in (None, "a", "b")]
        assert breaker.get_stats()["generation"] == self.circuit.generation


# ── reserve ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class ReserveBesideArithmetic(InVirtualTime):
    calls = Bundle("calls")

    def setup(self) -> None:
        self.ledger = Ledger(tokens=17)
        self.spent = self.reserved = 0

    @rule(target=calls)
    def start(self) -> Any:
        answer: asyncio.Future[Any] = self.loop.create_future()

        async def next(call: Call) -> Any:
            return await answer

        call = Call(ledger=self.ledger)
        task = self.task(Reserve()(call, next))
        if self.spent + self.reserved + WORST.tokens > 17:
            assert isinstance(task.exception(), BudgetExceeded)
            return None
        self.reserved += WORST.tokens
        return UnderWay(task, answer, Permit(0), "a", call)

    @rule(call=consumes(calls), used=st.integers(0, 5))
    def answers(self, call: Any, used: int) -> None:
        if call is not None:
            call.call.used = Amount(used, 0.0)
            call.answer.set_result("x")
            self._settled(used)

    @rule(call=consumes(calls), status=st.sampled_from((400, 503)))
    def refuses(self, call: Any, status: int) -> None:
        if call is not None:
            call.answer.set_exception(ProviderError("no", "p", status))
            self._settled(0)
            assert isinstance(call.task.exception(), ProviderError)

    @rule(call=consumes(calls))
    def cancel(self, call: Any) -> None:
        if call is not None:
            call.task.cancel()
            self._settled(WORST.tokens)

    def _settled(self, tokens: int) -> None:
        self.let_run()
        self.reserved -= WORST.tokens
        self.spent += tokens

    @invariant()
    def the_account_is_right(self) -> None:
        assert (self.ledger.spent_tokens, self.ledger.reserved_tokens) == (self.spent, self.reserved)
        assert self.spent + self.reserved <= 17


# ── once ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Text(Work[str]):
    def __init__(self, request: str, run: Callable[[Deadline], Coroutine[Any, Any, str]]) -> None:
        self.key = self.name = "k"
        self.mark = request
        self._run = run

    def run(self, deadline: Deadline) -> Coroutine[Any, Any, str]:
        return self._run(deadline)

    def dump(self, result: str) -> bytes:
        return result.encode()

    def load(self, kept: bytes) -> str:
        return kept.decode()

    def copy(self, result: str) -> str:
        return result


class OnceWithManyCallers(InVirtualTime):
    """One key, two requests, several managers with one store: callers come, wait so long, and leave."""

    callers = Bundle("callers")

    def setup(self) -> None:
        store = MemoryStore(clock=self.loop.time)
        self.managers = [IdempotencyManager() for _ in range(2)]
        for manager in self.managers:
            manager.hangar = Hangar(store)
        self.running: list[tuple[str, asyncio.Future[str]]] = []
        self.settled: tuple[str, str] | None = None
        self.most_running = self.made = 0

    @rule(
        target=callers, manager=st.integers(0, 1), request=st.sampled_from("FFG"), patience=st.sampled_from((None, 3.0))
    )
    def ask(self, manager: int, request: str, patience: float | None) -> Any:
        async def run(deadline: Deadline) -> str:
            answer: asyncio.Future[str] = self.loop.create_future()
            mine = (request, answer)
            self.running.append(mine)
            self.most_running = max(self.most_running, len(self.running))
            try:
                return await answer
            finally:
                self.running.remove(mine)

        work = Text(request, run)
        deadline = None if patience is None else Deadline(self.now + patience, patience * 1000)
        holder = self.settled[0] if self.settled else (self.running[0][0] if self.running else None)
        task = self.task(once(self.managers[manager], work, deadline))
        if self.settled is not None or holder not in (None, request):
            self.wait(asyncio.sleep(2 * POLL))  # It may have joined one who only looks at the store now and then.
        if holder not in (None, request):
            assert isinstance(task.exception(), ConflictError)
        elif self.settled is not None:
            assert task.result() == self.settled[1]
        return task

    @rule()
    def answer(self) -> None:
        if self.running:
            self.made += 1
            request, answer = self.running[0]
            answer.set_result(f"{request}{self.made}")
            self.settled = (request, f"{request}{self.made}")
            self.let_run()

    @rule()
    def fail(self) -> None:
        if self.running:
            self.running[0][1].set_exception(ProviderError("down", "p", 503))
            self.let_run()

    @rule(caller=callers)
    def leave(self, caller: Any) -> None:
        caller.cancel()
        self.let_run()

    @rule(seconds=st.sampled_from((0.1, 1.0, 8.0)))
    def pass_time(self, seconds: float) -> None:
        self.wait(asyncio.sleep(seconds))

    @invariant()
    def one_works_at_a_time_and_nobody_works_for_nobody(self) -> None:
        assert self.most_running <= 1
        waiting = [task for task in asyncio.all_tasks(self.loop) if not task.done()]
        assert waiting or not self.running

    def finish(self) -> None:
        super().finish()
        assert self.running == []


# ── retry ────────────────────────────────────────────────────────────────────────────────────────────────────────────

FATES = st.sampled_from(("answers", "503", "429", "429 asks", "400", "reset"))


@settings(max_examples=150, deadline=None)
@given(
    fates=st.lists(FATES, min_size=1, max_size=8),
    most=st.integers(1, 5),
    total=st.integers(1, 5),
    left=st.none() | st.floats(0.5, 12),
    jitter=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 100),
)
def test_retry_asks_as_often_and_when_it_should(
    fates: list[str], most: int, total: int, left: float | None, jitter: float, seed: int
) -> None:
    policy = RetryPolicy(max_attempts=most, initial_delay=1, max_delay=5, jitter_factor=0.5)
    made: list[tuple[float, str]] = []

    async def next(call: Call) -> str:
        call.attempts += 1
        call.sent += 1
        fate = fates[min(len(made), len(fates) - 1)]
        made.append((call.elapsed(), fate))
        await asyncio.sleep(0.25)
        return await _meet(fate)

    async def main() -> float:
        call = Call(max_attempts=most, deadline=None if left is None else Deadline(left, left * 1000))
        with contextlib.suppress(ProviderError, ConnectionResetError):
            await Retry(policy, limit=AttemptLimit(total), jitter=lambda: jitter)(call, next)
        return call.elapsed()

    ended = run_in_virtual_time(main(), seed=seed)
    # The same by arithmetic.
    expected, now = [], 0.0
    for n in range(1, 100):
        fate = fates[min(n - 1, len(fates) - 1)]
        expected.append((round(now, 6), fate))
        now += 0.25
        delay = min(2.0 ** (n - 1), 5) * (1 - 0.5 * jitter)
        if fate == "429 asks":
            delay = max(delay, 3 * (1 + 0.1 * jitter))
        if fate in ("answers", "400") or n >= min(most, total) or (left is not None and delay >= max(left - now, 0)):
            break
        now += delay
    assert [(round(at, 6), fate) for at, fate in made] == expected
    assert round(ended, 6) == round(now, 6), "nobody sleeps after the last attempt"


async def _meet(fate: str) -> str:
    match fate:
        case "answers":
            return "x"
        case "reset":
            raise ConnectionResetError
        case "429 asks":
            raise ProviderError("busy", "p", 429, retry_after=3.0)
    raise ProviderError("no", "p", int(fate))


@settings(max_examples=60, deadline=None)
@given(at=st.floats(0.01, 9), fates=st.lists(FATES, min_size=1, max_size=4), seed=st.integers(0, 100))
def test_a_retry_that_is_cancelled_at_any_time_ends_at_that_time_and_asks_nobody_after_it(
    at: float, fates: list[str], seed: int
) -> None:
    made: list[float] = []

    async def next(call: Call) -> str:
        call.attempts += 1
        call.sent += 1
        made.append(call.elapsed())
        await asyncio.sleep(0.25)
        return await _meet(fates[min(len(made), len(fates)) - 1])

    async def main() -> tuple[bool, float]:
        call = Call(max_attempts=9)
        run = asyncio.ensure_future(Retry(RetryPolicy(max_attempts=9, initial_delay=1))(call, next))
        asyncio.get_running_loop().call_later(at, run.cancel)
        await asyncio.wait({run})
        ended = call.elapsed()
        await asyncio.sleep(100)
        return run.cancelled(), ended

    cancelled, ended = run_in_virtual_time(main(), seed=seed)
    assert ended <= at + 1e-9
    assert cancelled is (ended >= at - 1e-9)
    assert all(when <= at for when in made)


TestBreaker = BreakerBesideItsReducer.TestCase
TestBreaker.settings = SHORT
TestReserve = ReserveBesideArithmetic.TestCase
TestReserve.settings = SHORT
TestOnce = OnceWithManyCallers.TestCase
TestOnce.settings = settings(SHORT, max_examples=25)
