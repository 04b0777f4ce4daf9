"""Breakers whose circuits are shared: what one instance finds out of a provider, all of them know.

A closed circuit admits from what is known here, with no way to the store. Only a probe asks there, for it may be one of
so many among all instances. A failure is reported at once and the call ends when the store has it; successes go
together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from steer_llm_sdk.errors import CircuitOpen
from steer_llm_sdk.reliability.circuit import FAILURE, NEUTRAL, SUCCESS, CircuitState, Lane, Outcome, Permit, Refusal
from steer_llm_sdk.reliability.circuit_breaker import (
    UNCOUNTED,
    Breaker,
    BreakerMode,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerManager,
)
from steer_llm_sdk.reliability.classify import classify
from steer_llm_sdk.reliability.shared.cell import Cell
from steer_llm_sdk.reliability.shared.circuit import (
    Admission,
    Report,
    Reset,
    SetMode,
    Shared,
    decoded,
    encoded,
    parted,
    rejoined,
)
from steer_llm_sdk.reliability.shared.link import Link

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from steer_llm_sdk.reliability._pipeline import Call, Next
    from steer_llm_sdk.reliability.deadline import Deadline

R = TypeVar("R")

KIND = "breaker:"
TOGETHER = 0.05
"""Seconds that a success waits for others, to be reported with them."""


class CircuitCell(Cell[Shared]):
    """`adopt` is told each circuit that the provider has."""

    def __init__(self, link: Link, name: str, adopt: Callable[[Shared], None], state: Shared) -> None:
        super().__init__(link, KIND + name, state)
        self._adopt_circuit = adopt
        self._partings = 0

    def encode(self, state: Shared) -> str:
        return encoded(state)

    def decode(self, text: str) -> Shared:
        return decoded(text)

    def changed(self) -> None:
        self._adopt_circuit(self.state)

    def parted(self, state: Shared) -> Shared:
        self._partings += 1
        return parted(state, self._partings)

    def rejoined(self, stored: Shared, now: float) -> Shared:
        return rejoined(stored, self.state, now)

    def keep(self) -> None:
        if self.version == 0:  # The store has lost it: so that whoever lists the breakers finds it.
            self.submit(as_it_is)


def as_it_is(shared: Shared, now: float) -> tuple[Shared, None]:
    return shared, None


class SharedCircuitBreaker(CircuitBreaker):
    """Its circuit is that of all instances. `take` and `ended` are `admit` and `report` for who can await; those two
    block for as long as the store takes to answer."""

    def __init__(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        *,
        link: Link,
        on_change: Callable[[CircuitBreaker], None] | None = None,
        all_open: Callable[[], bool] | None = None,
    ) -> None:
        self.link = link
        self._home = _running_loop()
        self._known = False
        """Whether the store has said how it stands; until then nobody goes unasked."""
        super().__init__(name, config, on_change=on_change, all_open=all_open)
        self._cell = CircuitCell(link, name, self._adopt, Shared(self._circuit))
        link.add(self._cell)

    async def call(self, func: Callable[[], Awaitable[R]]) -> R:
        permit = self.free or await self.take(self.name)
        sent = asyncio.get_running_loop().time() if self.times_calls else None
        try:
            result = await func()
        except Exception as error:
            outcome, asked = self.verdict(classify(error))
            await self.ended(permit, self.name, outcome, sent, asked)
            raise
        except BaseException:
            self.report(permit, self.name, NEUTRAL)
            raise
        await self.ended(permit, self.name, SUCCESS, sent)
        return result

    async def take(self, part: str, deadline: Deadline | None = None) -> Permit:
        """A permit, to be reported exactly once; CircuitOpen otherwise. A probe's is given by the store."""
        if not self._known:
            await asyncio.shield(asyncio.wrap_future(self._cell.submit(as_it_is)))
            self._begin()
        permit, step = self._decide(part, deadline)
        if step is None:
            return permit
        asked = self._cell.submit(step)
        try:
            answer = await asyncio.shield(asyncio.wrap_future(asked))
        except asyncio.CancelledError:
            asked.add_done_callback(lambda given: self._give_back(given, part))
            raise
        return self._granted(answer)

    def admit(self, part: str, deadline: Deadline | None = None) -> Permit:
        if not self._known:
            self._cell.submit(as_it_is).result()
            self._begin()
        permit, step = self._decide(part, deadline)
        return permit if step is None else self._granted(self._cell.submit(step).result())

    async def ended(
        self, permit: Permit, part: str, outcome: Outcome, sent: float | None = None, asked: float = 0.0
    ) -> CircuitState | None:
        """Say how a call ended; it returns when the store knows, of a failure and of a probe."""
        told = self._tell_store(permit, part, outcome, sent, asked)
        if told is None or (outcome is SUCCESS and permit.serial == 0):
            return None
        return await asyncio.shield(asyncio.wrap_future(told))

    def report(
        self, permit: Permit, part: str, outcome: Outcome, sent: float | None = None, asked: float = 0.0
    ) -> CircuitState | None:
        """Does not wait, and so cannot say what came of it."""
        self._tell_store(permit, part, outcome, sent, asked)
        return None

    def set_mode(self, mode: BreakerMode) -> None:
        """For all instances."""
        super().set_mode(mode)
        self._cell.submit(SetMode(BreakerMode(mode))).result()

    def reset(self) -> None:
        """For all instances. Closed, with nothing remembered. Calls under way report to nobody."""
        self._cell.submit(Reset(self._cell.state.mode)).result()

    def get_stats(self) -> dict[str, Any]:
        """`store`: whose circuit it is; `alone`: the store does not answer, and this instance goes on by itself."""
        return {**super().get_stats(), "store": self.link.at, "alone": self._cell.alone}

    def _begin(self) -> None:
        with self._lock:
            self._known = True
            self._note()

    def _free(self) -> Permit | None:
        return super()._free() if self._known else None

    def _decide(self, part: str, deadline: Deadline | None) -> tuple[Permit, Admission | None]:
        """A permit; or, where the store has to give it, how it is asked."""
        free = self.free
        if free is not None:
            return free, None
        within = deadline.remaining() if deadline is not None and deadline.firm else None
        with self._lock:
            moved, answer = self._ask(part, within)
            if isinstance(answer, Refusal) or moved is self._circuit:
                return self._granted(answer), None
            panic = self._panics(self._time())
        return UNCOUNTED, Admission(part, self.config, within, panic)

    def _granted(self, answer: Permit | Refusal) -> Permit:
        if isinstance(answer, Permit):
            return answer
        with self._lock:
            self._refusals += 1
            if self._mode is BreakerMode.OBSERVE_ONLY:
                return UNCOUNTED
        raise CircuitOpen(self.name, answer.retry_after)

    def _give_back(self, given: Future[Permit | Refusal], part: str) -> None:
        """Who asked was cancelled before he had it."""
        permit = given.result()
        if isinstance(permit, Permit):
            self.report(permit, part, NEUTRAL)

    def _tell_store(
        self, permit: Permit, part: str, outcome: Outcome, sent: float | None, asked: float
    ) -> Future[CircuitState | None] | None:
        """None where it would change nothing."""
        probe = permit.serial != 0
        if outcome is SUCCESS:
            self._successes += 1
            tally = self._circuit.tally
            if not (probe or self._rates or tally.streak.total or part in tally.aside):
                return None
        elif outcome is FAILURE:
            self._failures += 1
        if permit is UNCOUNTED or (outcome is NEUTRAL and not probe):
            return None
        took = 0.0 if sent is None else asyncio.get_running_loop().time() - sent
        now = self._told_at = self._time()
        report = Report(permit, part, outcome, now, self.config, took, asked)
        return self._cell.submit(report, TOGETHER if outcome is SUCCESS and not probe else 0.0)

    def _time(self) -> float:
        return self.link.now()

    def _adopt(self, shared: Shared) -> None:
        with self._lock:
            self._mode = self.config.mode if shared.mode is None else shared.mode
            self._move(shared.circuit)

    def _tell(self, lane: Lane) -> None:
        """Callbacks are the caller's, and run in his loop."""
        if self._home is None:
            super()._tell(lane)
        elif not self._home.is_closed():
            self._home.call_soon_threadsafe(super()._tell, lane)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class SharedBreakers(CircuitBreakerManager):
    def __init__(self, link: Link, config_for: Callable[[str], CircuitBreakerConfig] | None = None) -> None:
        super().__init__(config_for)
        self.link = link

    def policy(self) -> Breaker:
        return SharedBreaker(self)

    def _made(self, name: str, config: CircuitBreakerConfig) -> CircuitBreaker:
        return SharedCircuitBreaker(name, config, link=self.link, on_change=self._note, all_open=self._all_open)


class SharedBreaker(Breaker):
    """The policy. While the store does not answer, each call says so with an event `store_down`."""

    def __init__(self, breakers: SharedBreakers) -> None:
        super().__init__(breakers)
        self._link = breakers.link

    async def __call__(self, call: Call, next: Next[Any, Any], /) -> Any:
        breaker = self.breakers.of_call(call)
        assert isinstance(breaker, SharedCircuitBreaker)
        if not self._link.up:
            call.emit("store_down", {"store": self._link.at})
        permit = breaker.free
        if permit is None:
            permit = await breaker.take(call.part, call.deadline)
            if permit is UNCOUNTED:
                self.tell(call, breaker, CircuitState.OPEN, would_refuse=True)
        sent = asyncio.get_running_loop().time() if breaker.times_calls else None
        try:
            result = await next(call)
        except Exception as error:
            outcome, asked = self._verdict(call, breaker, error)
            await self._end(call, breaker, permit, outcome, sent, asked)
            raise
        except BaseException as error:  # Whoever is cancelled waits for nobody.
            outcome, asked = self._verdict(call, breaker, error)
            breaker.report(permit, call.part, outcome, sent, asked)
            raise
        await self._end(call, breaker, permit, SUCCESS, sent)
        return result

    async def _end(
        self,
        call: Call,
        breaker: SharedCircuitBreaker,
        permit: Permit,
        outcome: Outcome,
        sent: float | None,
        asked: float = 0.0,
    ) -> None:
        changed = await breaker.ended(permit, call.part, outcome, sent, asked)
        if changed is not None:
            self.tell(call, breaker, changed)
