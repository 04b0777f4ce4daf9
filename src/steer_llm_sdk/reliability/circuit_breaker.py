"""The circuit breaker: what keeps the time for a circuit, holds it, tells of its changes, and puts it round a call.

The circuit itself, with all the rules, is a value: see `circuit`. What it counts while it is closed is in `tally`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from steer_llm_sdk.errors import CircuitOpen, ErrorCategory
from steer_llm_sdk.reliability._kept import Kept
from steer_llm_sdk.reliability.circuit import (
    FAILURE,
    NEUTRAL,
    SUCCESS,
    Circuit,
    CircuitState,
    Closed,
    HalfOpen,
    Lane,
    Open,
    Outcome,
    Permit,
    Refusal,
)
from steer_llm_sdk.reliability.classify import ErrorClassification, classify
from steer_llm_sdk.reliability.deadline import Deadline

if TYPE_CHECKING:
    from steer_llm_sdk.reliability._pipeline import Call, Next

R = TypeVar("R")
_log = logging.getLogger(__name__)


class BreakerMode(str, Enum):
    """Who decides: the circuit (`auto`); nobody, for it refuses all or none; nobody, but the circuit says what it would
    have done (`observe_only`)."""

    AUTO = "auto"
    FORCED_OPEN = "forced_open"
    FORCED_CLOSED = "forced_closed"
    OBSERVE_ONLY = "observe_only"


class CircuitBreakerConfig(BaseModel):
    """Times in seconds, shares from 0 to 1. The circuit opens at the first of these:

    - `failure_threshold` failures in a row, none older than `window_size`;
    - of at least `minimum_throughput` calls within `window_size`, a share of `failure_rate_threshold` has failed;
    - or a share of `slow_call_rate_threshold` has taken longer than `slow_call_duration` from when it was sent.

    Only a failed or a slow call opens it. A slow one is no successful probe, where slow calls count.

    After `timeout` it lets `half_open_requests` probes through at a time and closes after `success_threshold` of them.
    Each time it opens again before it has been closed for `window_size`, it stays open `timeout_factor` times longer.
    A failure that came with Retry-After keeps it open at least that long. Neither makes it more than `max_timeout`,
    unless `timeout` is. A probe that never reports frees its place after `probe_lease` (default: `timeout`, or 60 where
    that is 0), or when its run is out of time. A rate limit says nothing about health, so 429 counts only with
    `count_rate_limits`.

    `scope`: one circuit for a provider, or one for each of its models. `panic`: when the circuits of all providers, at
    least two, are open, this one admits one early probe in each open time. The callbacks get the breaker; they may be
    sync or async.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    failure_threshold: int = Field(default=5, ge=1)
    success_threshold: int = Field(default=2, ge=1)
    timeout: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    half_open_requests: int = Field(default=3, ge=1)
    window_size: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    probe_lease: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    count_rate_limits: bool = False
    failure_rate_threshold: float | None = Field(default=None, gt=0, le=1)
    slow_call_rate_threshold: float | None = Field(default=None, gt=0, le=1)
    slow_call_duration: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    minimum_throughput: int = Field(default=20, ge=1)
    timeout_factor: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    max_timeout: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    mode: BreakerMode = BreakerMode.AUTO
    scope: Literal["provider", "model"] = "provider"
    panic: bool = False
    on_open: Callable[[CircuitBreaker], Any] | None = None
    on_close: Callable[[CircuitBreaker], Any] | None = None
    on_half_open: Callable[[CircuitBreaker], Any] | None = None

    @property
    def lease(self) -> float:
        # A lease of no time would admit every caller as a probe.
        return self.probe_lease or self.timeout or 60.0


UNCOUNTED = Permit(-1)
"""For a call that is sent whatever the circuit says. It is of no generation, so how the call ends changes nothing."""


class CircuitBreaker:
    """A circuit, a clock and callbacks. `part` names who is calling within what the breaker protects.

    `free` is the one permit that all calls share while nothing is amiss, which is nearly always; None where the circuit
    has to be asked.
    """

    def __init__(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        *,
        on_change: Callable[[CircuitBreaker], None] | None = None,
        all_open: Callable[[], bool] | None = None,
    ) -> None:
        self.name = name
        self.config = cfg = config or CircuitBreakerConfig()
        self.of_provider = cfg.scope == "provider"
        self.times_calls = cfg.slow_call_rate_threshold is not None
        self._rates = self.times_calls or cfg.failure_rate_threshold is not None
        self._on_change = on_change
        self._all_open = all_open if cfg.panic else None
        self._mode = cfg.mode
        self._circuit = Circuit()
        # Orchestrators may be shared by threads. Callbacks run under it, so it lets its own thread in again.
        self._lock = threading.RLock()
        self.free: Permit | None = self._free()
        self._successes = self._failures = self._refusals = 0
        self._told_at = -math.inf
        self._callbacks: set[asyncio.Task[Any]] = set()

    async def call(self, func: Callable[[], Awaitable[R]]) -> R:
        """Await `func()` if the circuit admits it, else raise CircuitOpen."""
        permit = self.admit(self.name)
        sent = _now() if self.times_calls else None
        outcome, asked = NEUTRAL, 0.0
        try:
            result = await func()
            outcome = SUCCESS
            return result
        except Exception as error:
            outcome, asked = self.verdict(classify(error))
            raise
        finally:
            self.report(permit, self.name, outcome, sent, asked)

    def admit(self, part: str, deadline: Deadline | None = None) -> Permit:
        """A permit, to be reported exactly once; CircuitOpen otherwise.

        A probe's lease ends with the deadline: then its run has given it up, even if the probe will not stop.
        """
        free = self.free
        if free is not None:
            return free
        # A deadline that may yet move does not end a lease: its run would go on without one.
        within = deadline.remaining() if deadline is not None and deadline.firm else None
        with self._lock:
            moved, answer = self._ask(part, within)
            if isinstance(answer, Permit):
                if moved is not self._circuit:
                    self._move(moved)
                return answer
            self._refusals += 1
            if self._mode is BreakerMode.OBSERVE_ONLY:
                return UNCOUNTED
        raise CircuitOpen(self.name, answer.retry_after)

    def check(self, part: str) -> None:
        """Raise CircuitOpen where `admit` would, and take no permit: for who would else have to wait first."""
        if self.free is not None or self._mode is BreakerMode.OBSERVE_ONLY:
            return
        with self._lock:
            _, answer = self._ask(part, None)
            if isinstance(answer, Permit):
                return
            self._refusals += 1
        raise CircuitOpen(self.name, answer.retry_after)

    def would_admit(self, part: str) -> bool:
        """Whether a call would be admitted now; nothing is taken or counted."""
        if self.free is not None or self._mode is BreakerMode.OBSERVE_ONLY:
            return True
        with self._lock:
            return isinstance(self._ask(part, None)[1], Permit)

    def report(
        self, permit: Permit, part: str, outcome: Outcome, sent: float | None = None, asked: float = 0.0
    ) -> CircuitState | None:
        """Say how a call ended. Returns the state of the circuit where this report has changed it, else None.

        `sent`: when, on the clock of the loop; None where nobody measures. `asked`: for how many seconds a provider
        that failed asked not to be called.
        """
        circuit = self._circuit
        if outcome is SUCCESS:
            self._successes += 1
            tally = circuit.tally
            if permit is self.free and not (self._rates or tally.streak.total or part in tally.aside):
                return None
        elif outcome is FAILURE:
            self._failures += 1
        now = self._told_at = self._time()
        took = 0.0 if sent is None else now - sent
        with self._lock:
            circuit = self._circuit
            moved = circuit.record(permit, part, outcome, now, self.config, took, asked)
            if moved is circuit:
                return None
            self._move(moved)
        changed = moved.generations(part) != circuit.generations(part)
        return moved.state(now, part) if changed else None

    def judge(self, error: BaseException) -> Outcome:
        """Whether an error speaks about the provider."""
        return self.verdict(classify(error))[0]

    def verdict(self, means: ErrorClassification) -> tuple[Outcome, float]:
        """Whether an error speaks about the provider, and for how many seconds it asks not to be called."""
        counted = means.blames_provider or (
            self.config.count_rate_limits and means.category is ErrorCategory.RATE_LIMIT and not means.refused
        )
        return FAILURE if counted else NEUTRAL, means.retry_after or 0.0

    @property
    def mode(self) -> BreakerMode:
        return self._mode

    def set_mode(self, mode: BreakerMode) -> None:
        """Take the decision from the circuit, or give it back. What the circuit knows is kept meanwhile."""
        with self._lock:
            self._mode = BreakerMode(mode)
            self._note()

    def get_state(self, part: str | None = None) -> CircuitState:
        """What a call would meet now, of the provider or of one part; an open circuit that would admit it as a probe
        counts as half-open."""
        forced = _FORCED.get(self._mode)
        if forced is not None:
            return forced
        now = self._time()
        state = self._circuit.state(now, part)
        if state is CircuitState.OPEN and self._panics(now):
            return CircuitState.HALF_OPEN
        return state

    def get_stats(self) -> dict[str, Any]:
        """name, state, mode, what the circuit alone would say (`observed`), generation, counts since the start, and the
        parts that are cut off alone. While it only observes, `refusals` are those there would have been."""
        now, circuit = self._time(), self._circuit
        return {
            "name": self.name,
            "state": self.get_state().value,
            "mode": self._mode.value,
            "observed": circuit.state(now).value,
            "generation": circuit.generation,
            "successes": self._successes,
            "failures": self._failures,
            "refusals": self._refusals,
            "narrowed": {part: circuit.state(now, part).value for part in circuit.narrowed},
        }

    @property
    def all_closed(self) -> bool:
        """It refuses nobody: closed with no part cut off, or not asked."""
        return self.free is not None or self._mode is BreakerMode.OBSERVE_ONLY

    @property
    def refuses_all(self) -> bool:
        """Open: forced, or of itself with its time not yet over."""
        if self._mode is BreakerMode.AUTO:
            return self._circuit.state(self._time()) is CircuitState.OPEN
        return self._mode is BreakerMode.FORCED_OPEN

    @property
    def is_open(self) -> bool:
        return self.get_state() is CircuitState.OPEN

    @property
    def is_closed(self) -> bool:
        return self.get_state() is CircuitState.CLOSED

    @property
    def is_half_open(self) -> bool:
        return self.get_state() is CircuitState.HALF_OPEN

    @property
    def idle(self) -> bool:
        """It is as good as new: closed, in its first mode, and told nothing that would count for a whole window."""
        closed = isinstance(self._circuit.whole, Closed) and not self._circuit.narrowed
        return closed and self._mode is self.config.mode and self._time() - self._told_at > self.config.window_size

    def reset(self) -> None:
        """Closed, with nothing remembered. Calls under way report to nobody. The mode stays."""
        with self._lock:
            generation = self._circuit.generation + 1
            self._move(Circuit(Closed(generation), serial=self._circuit.serial, generation=generation))

    def _time(self) -> float:
        return _now()

    def _ask(self, part: str, within: float | None) -> tuple[Circuit, Permit | Refusal]:
        if self._mode is BreakerMode.FORCED_OPEN:
            return self._circuit, Refusal(None)
        now = self._time()
        return self._circuit.admit(part, now, self.config, within=within, panic=self._panics(now))

    def _panics(self, now: float) -> bool:
        whole = self._circuit.whole
        return (
            self._all_open is not None and isinstance(whole, Open) and whole.admits_in_panic(now) and self._all_open()
        )

    def _free(self) -> Permit | None:
        if self._mode is BreakerMode.FORCED_CLOSED:
            return UNCOUNTED
        circuit = self._circuit
        closed = isinstance(circuit.whole, Closed) and not circuit.narrowed
        return Permit(circuit.whole.generation) if closed and self._mode is not BreakerMode.FORCED_OPEN else None

    def _note(self) -> None:
        self.free = self._free()
        if self._on_change is not None:
            self._on_change(self)

    def _move(self, circuit: Circuit) -> None:
        before, self._circuit = self._circuit.whole, circuit
        self._note()
        if type(circuit.whole) is not type(before):
            self._tell(circuit.whole)

    def _tell(self, lane: Lane) -> None:
        callback = {Open: self.config.on_open, Closed: self.config.on_close, HalfOpen: self.config.on_half_open}[
            type(lane)
        ]
        if callback is None:
            return
        try:
            result = callback(self)
        except Exception:
            _log.exception("a callback of circuit breaker %s failed", self.name)
            return
        if inspect.isawaitable(result):
            self._await_beside(result)

    def _await_beside(self, result: Awaitable[Any]) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # reset() from outside: there is nothing that could await it
            if inspect.iscoroutine(result):
                result.close()
            _log.warning("an async callback of circuit breaker %s is left out: no event loop is running", self.name)
            return
        task = loop.create_task(_logged(result, self.name))
        self._callbacks.add(task)
        task.add_done_callback(self._callbacks.discard)

    def __repr__(self) -> str:
        return f"CircuitBreaker({self.name!r}, {self._circuit.whole})"


async def _logged(result: Awaitable[Any], name: str) -> None:
    try:
        await result
    except Exception:
        _log.exception("a callback of circuit breaker %s failed", name)


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


_FORCED = {
    BreakerMode.FORCED_OPEN: CircuitState.OPEN,
    BreakerMode.FORCED_CLOSED: CircuitState.CLOSED,
    BreakerMode.OBSERVE_ONLY: CircuitState.CLOSED,
}


class CircuitBreakerManager:
    """The breakers of one orchestrator, by what they protect: "provider", or "provider/model" where each model has its
    own. `all_closed`: every circuit is closed with no part cut off; known without looking at them."""

    def __init__(self, config_for: Callable[[str], CircuitBreakerConfig] | None = None) -> None:
        self._config_for = config_for or (lambda name: CircuitBreakerConfig())
        self._breakers: dict[str, CircuitBreaker] = Kept(lambda breaker: breaker.idle, self._forget_models)
        self._not_closed: set[str] = set()
        self.all_closed = True
        self._configs: dict[str, CircuitBreakerConfig] = {}
        self._of_model: dict[tuple[str, str], CircuitBreaker] = {}
        self._of_part: dict[tuple[str, str], CircuitBreaker] = {}

    def policy(self) -> Breaker:
        """What puts them round a call."""
        return Breaker(self)

    def get_or_create(self, name: str, config: CircuitBreakerConfig | None = None) -> CircuitBreaker:
        breaker = self._breakers.get(name)
        if breaker is None:
            breaker = self._breakers[name] = self._made(name, config or self._config_for(name))
            self._note(breaker)
        return breaker

    def _made(self, name: str, config: CircuitBreakerConfig) -> CircuitBreaker:
        return CircuitBreaker(name, config, on_change=self._note, all_open=self._all_open)

    def of_call(self, call: Call) -> CircuitBreaker:
        """The breaker that a call has to pass."""
        target = call.target
        breaker = self._breakers.get(target)
        if breaker is not None and breaker.of_provider:
            return breaker
        config = self._configs.get(target)
        if config is None:
            config = self._configs[target] = self._config_for(target)
        if config.scope == "provider" or call.model is None:
            return self.get_or_create(target, config)
        return self._of_model_of(target, call.model, call.part, config)

    def of_part(self, target: str, part: str) -> CircuitBreaker | None:
        """The breaker of a provider or, where each model has its own, that of the model which that part last called."""
        return self._of_part.get((target, part)) or self._breakers.get(target)

    def check(self, call: Call) -> None:
        """Raise CircuitOpen if the breaker of this call would refuse it now, and take no permit."""
        self.of_call(call).check(call.part)

    def get(self, name: str) -> CircuitBreaker | None:
        return self._breakers.get(name)

    def get_all_stats(self) -> dict[str, dict[str, Any]]:
        # Copied at once: another thread may meet a provider that is new.
        return {name: breaker.get_stats() for name, breaker in list(self._breakers.items())}

    def reset_all(self) -> None:
        for breaker in list(self._breakers.values()):
            breaker.reset()

    @property
    def unwell(self) -> set[str]:
        """The providers of which a circuit is not closed, or has a part cut off."""
        names = set(self._not_closed)
        return names | {target for (target, _), breaker in list(self._of_model.items()) if breaker.name in names}

    @property
    def known(self) -> tuple[int, int]:
        """Changes when a circuit, or a part that has one, becomes known."""
        return len(self._breakers), len(self._of_part)

    def _of_model_of(self, target: str, model: str, part: str, config: CircuitBreakerConfig) -> CircuitBreaker:
        breaker = self._of_model.get((target, model))
        if breaker is None:
            breaker = self._of_model[target, model] = self.get_or_create(f"{target}/{model}", config)
        self._of_part[target, part] = breaker
        return breaker

    def _forget_models(self) -> None:
        self._configs.clear()
        for known in (self._of_model, self._of_part):
            for key, breaker in list(known.items()):
                if self._breakers.get(breaker.name) is not breaker:
                    known.pop(key, None)

    def _all_open(self) -> bool:
        """Every provider, of at least two, refuses all its calls: those it has had, of a circuit for each model."""
        if len(self._not_closed) < len(self._breakers):
            return False
        own = {breaker.name: target for (target, _), breaker in list(self._of_model.items())}
        breakers = list(self._breakers.values())
        providers = {own.get(breaker.name, breaker.name) for breaker in breakers}
        return len(providers) > 1 and all(breaker.refuses_all for breaker in breakers)

    def _note(self, breaker: CircuitBreaker) -> None:
        (self._not_closed.discard if breaker.all_closed else self._not_closed.add)(breaker.name)
        self.all_closed = not self._not_closed


class Breaker:
    """The policy. The permit is taken when the call is sent and given back whatever ends the call."""

    def __init__(self, breakers: CircuitBreakerManager) -> None:
        self.breakers = breakers

    async def __call__(self, call: Call, next: Next[Any, Any], /) -> Any:
        breaker = self.breakers.of_call(call)
        permit = breaker.free
        if permit is None:
            permit = breaker.admit(call.part, call.deadline)
            if permit is UNCOUNTED:
                self.tell(call, breaker, CircuitState.OPEN, would_refuse=True)
        sent = _now() if breaker.times_calls else None
        try:
            result = await next(call)
        except BaseException as error:
            self.failed(call, breaker, permit, error, sent)
            raise
        if (changed := breaker.report(permit, call.part, SUCCESS, sent)) is not None:
            self.tell(call, breaker, changed)
        return result

    def failed(
        self, call: Call, breaker: CircuitBreaker, permit: Permit, error: BaseException, sent: float | None
    ) -> None:
        """Give the permit back: also what ends a call without saying anything about the provider does."""
        outcome, asked = self._verdict(call, breaker, error)
        if (changed := breaker.report(permit, call.part, outcome, sent, asked)) is not None:
            self.tell(call, breaker, changed)

    @staticmethod
    def _verdict(call: Call, breaker: CircuitBreaker, error: BaseException) -> tuple[Outcome, float]:
        if isinstance(error, Exception):
            return breaker.verdict(classify(error))
        if isinstance(error, asyncio.CancelledError) and call.life is not None and call.life.timed_out:
            # Stopped because another answered while it had not given a byte in all its time: that is a timeout.
            return FAILURE, 0.0
        return NEUTRAL, 0.0

    @staticmethod
    def tell(call: Call, breaker: CircuitBreaker, state: CircuitState, **more: Any) -> None:
        if breaker.config.scope == "model":
            more["model"] = call.model
        if breaker.mode is not BreakerMode.AUTO:
            more["mode"] = breaker.mode.value
        call.emit("circuit_breaker", {"provider": call.target, "part": call.part, "state": state.value, **more})
