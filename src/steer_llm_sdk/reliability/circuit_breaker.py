"""The circuit breaker: states are values, moved by pure functions; the thin part at the bottom keeps time and tells.

    closed --(failures reach the threshold)--> open --(timeout)--> half-open --(successes)--> closed
                                                ^                     |
                                                +------(failure)------+

A circuit has one lane for the whole provider and, where the evidence points at one part of it (one tool), a lane for
that part alone. Every permit carries the generation of the lane that admitted it; a report from an earlier generation
has no effect, so a late answer can neither close nor open a circuit that has moved on.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from steer_llm_sdk.errors import CircuitOpen, ErrorCategory
from steer_llm_sdk.reliability.classify import classify

if TYPE_CHECKING:
    from steer_llm_sdk.reliability._pipeline import Call, Next

R = TypeVar("R")
_log = logging.getLogger(__name__)


class CircuitState(str, Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitBreakerConfig(BaseModel):
    """Times in seconds. A circuit opens after `failure_threshold` failures in a row, none older than `window_size`.

    After `timeout` it lets `half_open_requests` probes through at a time and closes after `success_threshold` of them.
    A probe that never reports frees its place after `probe_lease` (default: `timeout`, or 60 where that is 0). A rate
    limit says nothing about health, so 429 counts only with `count_rate_limits`. The callbacks get the breaker; they
    may be sync or async.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    failure_threshold: int = Field(default=5, ge=1)
    success_threshold: int = Field(default=2, ge=1)
    timeout: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    half_open_requests: int = Field(default=3, ge=1)
    window_size: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    probe_lease: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    count_rate_limits: bool = False
    on_open: Callable[[CircuitBreaker], Any] | None = None
    on_close: Callable[[CircuitBreaker], Any] | None = None
    on_half_open: Callable[[CircuitBreaker], Any] | None = None

    @property
    def lease(self) -> float:
        # A lease of no time would admit every caller as a probe.
        return self.probe_lease or self.timeout or 60.0


class Outcome(Enum):
    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"
    """The call says nothing about the provider: cancelled, refused elsewhere, a mistake of the caller's."""


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to send one call. `serial` tells the probes of one generation apart."""

    generation: int
    part: str | None = None
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    retry_after: float


# ── lanes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Closed:
    """`failures` holds (time, part) since the last success, oldest first, fewer than the threshold."""

    generation: int
    failures: tuple[tuple[float, str], ...] = ()

    def failed(self, part: str, now: float, cfg: CircuitBreakerConfig) -> Closed | Open:
        recent = tuple(f for f in self.failures if now - f[0] <= cfg.window_size)
        failures = (*recent, (now, part))
        if len(failures) < cfg.failure_threshold:
            return replace(self, failures=failures)
        return Open(self.generation + 1, now + cfg.timeout, frozenset(p for _, p in failures))


@dataclass(frozen=True, slots=True)
class Open:
    """`blamed` are the parts whose failures opened it. `early` is the probe of another part: (serial, lease end).

    `confirmed`: an early probe has failed as well, so all parts are held to be down.
    """

    generation: int
    until: float
    blamed: frozenset[str]
    early: tuple[int, float] | None = None
    confirmed: bool = False

    def admits_early(self, part: str, now: float) -> bool:
        free = self.early is None or self.early[1] <= now
        return now < self.until and free and not self.confirmed and len(self.blamed) == 1 and part not in self.blamed


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """`probes` are those under way: (serial, lease end)."""

    generation: int
    blamed: frozenset[str]
    confirmed: bool = False
    successes: int = 0
    probes: tuple[tuple[int, float], ...] = ()

    def live(self, now: float) -> tuple[tuple[int, float], ...]:
        return tuple(p for p in self.probes if p[1] > now)

    def without(self, serial: int) -> HalfOpen:
        return replace(self, probes=tuple(p for p in self.probes if p[0] != serial))

    def reported(self, permit: Permit, part: str, outcome: Outcome, now: float, cfg: CircuitBreakerConfig) -> Lane:
        if permit.serial not in (serial for serial, _ in self.probes):
            return self
        if outcome is Outcome.FAILURE:
            blamed = self.blamed | {part}
            return Open(self.generation + 1, now + cfg.timeout, blamed, confirmed=self.confirmed or len(blamed) > 1)
        rest = self.without(permit.serial)
        if outcome is Outcome.NEUTRAL:
            return rest
        if rest.successes + 1 >= cfg.success_threshold:
            return Closed(self.generation + 1)
        return replace(rest, successes=rest.successes + 1)


Lane: TypeAlias = Closed | Open | HalfOpen


def _admit_probe(
    lane: Open | HalfOpen, serial: int, now: float, cfg: CircuitBreakerConfig
) -> tuple[Lane, int] | Refusal:
    """A probe of a lane that is not closed: the lane with the probe under way, and the probe's generation."""
    if isinstance(lane, Open):
        if now < lane.until:
            return Refusal(lane.until - now)
        lane = HalfOpen(lane.generation + 1, lane.blamed, lane.confirmed)
    live = lane.live(now)
    if len(live) >= cfg.half_open_requests:
        return Refusal(max(0.0, min(end for _, end in live) - now))
    lane = replace(lane, probes=(*live, (serial, now + cfg.lease)))
    return lane, lane.generation


# ── the circuit ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Circuit:
    """A provider's lane, the lanes of parts that failed alone, and each part's failures since its own last success.

    `serial` numbers the probes. A part's lane takes its generations from where the whole stands, so that none of them
    is ever used twice.
    """

    whole: Lane = Closed(0)
    narrowed: Mapping[str, Open | HalfOpen] = field(default_factory=dict)
    streaks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    serial: int = 1
    generation: int = 0

    def admit(self, part: str, now: float, cfg: CircuitBreakerConfig) -> tuple[Circuit, Permit | Refusal]:
        whole = self.whole
        if isinstance(whole, Closed):
            return self._admit_part(part, now, cfg) if part in self.narrowed else (self, Permit(whole.generation))
        if part not in self.narrowed and isinstance(whole, Open) and whole.admits_early(part, now):
            early = replace(whole, early=(self.serial, now + cfg.lease))
            return replace(self, whole=early, serial=self.serial + 1), Permit(whole.generation, serial=self.serial)
        admitted = _admit_probe(whole, self.serial, now, cfg)
        if isinstance(admitted, Refusal):
            return self, admitted
        lane, generation = admitted
        return self._with_whole(lane), Permit(generation, serial=self.serial)

    def report(self, permit: Permit, part: str, outcome: Outcome, now: float, cfg: CircuitBreakerConfig) -> Circuit:
        """The circuit after a call has ended. Pure; a permit of an earlier generation changes nothing."""
        if permit.part is not None:
            return self._report_part(permit, outcome, now, cfg)
        whole = self.whole
        if permit.generation != whole.generation:
            return self
        if isinstance(whole, Closed):
            return self._report_closed(whole, part, outcome, now, cfg)
        if isinstance(whole, Open):
            return self._report_early(whole, permit, outcome)
        lane = whole.reported(permit, part, outcome, now, cfg)
        return self if lane is whole else self._with_whole(lane)

    def state(self, now: float, part: str | None = None) -> CircuitState:
        """As an observer would put it: half-open as soon as the next call, where given of that part, will probe."""
        own = None if part is None else self.narrowed.get(part)
        whole = _state_of(self.whole, now, part if own is None else None)
        states = [whole] if own is None else [whole, _state_of(own, now, None)]
        return next((s for s in (CircuitState.OPEN, CircuitState.HALF_OPEN) if s in states), CircuitState.CLOSED)

    def generations(self, part: str) -> tuple[int, int | None]:
        """Of the whole and of the part's own lane; another value means that one of them has moved on."""
        own = self.narrowed.get(part)
        return self.whole.generation, None if own is None else own.generation

    def _report_closed(
        self, whole: Closed, part: str, outcome: Outcome, now: float, cfg: CircuitBreakerConfig
    ) -> Circuit:
        if outcome is Outcome.NEUTRAL or part in self.narrowed:
            return self
        if outcome is Outcome.SUCCESS:
            return self._healthy(whole, part)
        lane = whole.failed(part, now, cfg)
        if isinstance(lane, Open):
            return replace(self._with_whole(lane), streaks={})
        recent = tuple(at for at in self.streaks.get(part, ()) if now - at <= cfg.window_size)
        streak = (*recent, now)
        if len(streak) < cfg.failure_threshold:
            return replace(self, whole=lane, streaks={**self.streaks, part: streak})
        # What the part failed alone is no evidence against the others.
        others = replace(whole, failures=tuple(failure for failure in whole.failures if failure[1] != part))
        return replace(self, whole=others, streaks=_without(self.streaks, part))._narrow(part, now + cfg.timeout)

    def _healthy(self, whole: Closed, part: str) -> Circuit:
        if not whole.failures and part not in self.streaks:
            return self
        return replace(self, whole=replace(whole, failures=()), streaks=_without(self.streaks, part))

    def _report_early(self, whole: Open, permit: Permit, outcome: Outcome) -> Circuit:
        if whole.early is None or whole.early[0] != permit.serial:
            return self
        if outcome is Outcome.SUCCESS:
            (culprit,) = whole.blamed
            return self._with_whole(Closed(whole.generation + 1))._narrow(culprit, whole.until)
        return replace(self, whole=replace(whole, early=None, confirmed=outcome is Outcome.FAILURE))

    def _admit_part(self, part: str, now: float, cfg: CircuitBreakerConfig) -> tuple[Circuit, Permit | Refusal]:
        """A part with a lane of its own probes that lane, once the provider as a whole is closed."""
        admitted = _admit_probe(self.narrowed[part], self.serial, now, cfg)
        if isinstance(admitted, Refusal):
            return self, admitted
        lane, generation = admitted
        return self._with_part(part, lane), Permit(generation, part, self.serial)

    def _report_part(self, permit: Permit, outcome: Outcome, now: float, cfg: CircuitBreakerConfig) -> Circuit:
        assert permit.part is not None
        lane = self.narrowed.get(permit.part)
        if not isinstance(lane, HalfOpen) or lane.generation != permit.generation:
            return self
        moved = lane.reported(permit, permit.part, outcome, now, cfg)
        return self if moved is lane else self._with_part(permit.part, moved)

    def _with_whole(self, lane: Lane) -> Circuit:
        return replace(self, whole=lane, serial=self.serial + 1, generation=max(self.generation, lane.generation))

    def _with_part(self, part: str, lane: Lane) -> Circuit:
        generation = max(self.generation, lane.generation)
        kept = _without(self.narrowed, part) if isinstance(lane, Closed) else {**self.narrowed, part: lane}
        return replace(self, narrowed=kept, serial=self.serial + 1, generation=generation)

    def _narrow(self, part: str, until: float) -> Circuit:
        generation = self.generation + 1
        lane = Open(generation, until, frozenset((part,)), confirmed=True)
        return replace(self, narrowed={**self.narrowed, part: lane}, generation=generation)


def _without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in mapping.items() if k != key}


def _state_of(lane: Lane, now: float, part: str | None) -> CircuitState:
    if isinstance(lane, Closed):
        return CircuitState.CLOSED
    if isinstance(lane, HalfOpen) or now >= lane.until or (part is not None and lane.admits_early(part, now)):
        return CircuitState.HALF_OPEN
    return CircuitState.OPEN


# ── the thin part ────────────────────────────────────────────────────────────────────────────────────────────────────


class CircuitBreaker:
    """A circuit, a clock and callbacks. `part` names who is calling within what the breaker protects."""

    def __init__(
        self,
        name: str,
        config: CircuitBreakerConfig | None = None,
        *,
        on_change: Callable[[CircuitBreaker], None] | None = None,
    ) -> None:
        self.name = name
        self._on_change = on_change
        self.config = config or CircuitBreakerConfig()
        self._circuit = Circuit()
        # Orchestrators may be shared by threads. Callbacks run under it, so it lets its own thread in again.
        self._lock = threading.RLock()
        self._closed_permit = Permit(0)
        self._counts = {"successes": 0, "failures": 0, "refusals": 0}
        self._callbacks: set[asyncio.Task[Any]] = set()

    async def call(self, func: Callable[[], Awaitable[R]]) -> R:
        """Await `func()` if the circuit admits it, else raise CircuitOpen."""
        permit = self.admit(self.name)
        outcome = Outcome.NEUTRAL
        try:
            result = await func()
            outcome = Outcome.SUCCESS
            return result
        except Exception as error:
            outcome = self.judge(error)
            raise
        finally:
            self.report(permit, self.name, outcome)

    def admit(self, part: str) -> Permit:
        """A permit, to be reported exactly once; CircuitOpen otherwise."""
        if self.all_closed:  # Nearly every call: one shared permit, and no state is made anew.
            return self._closed_permit
        with self._lock:
            moved, answer = self._circuit.admit(part, _now(), self.config)
            self._move(moved)
        if isinstance(answer, Refusal):
            self._counts["refusals"] += 1
            raise CircuitOpen(self.name, answer.retry_after)
        return answer

    def report(self, permit: Permit, part: str, outcome: Outcome) -> CircuitState | None:
        """Say how a call ended. Returns the state of the circuit where this report has changed it, else None."""
        if outcome is not Outcome.NEUTRAL:
            self._counts["successes" if outcome is Outcome.SUCCESS else "failures"] += 1
        circuit = self._circuit
        if outcome is Outcome.SUCCESS and not circuit.streaks and permit is self._closed_permit:
            whole = circuit.whole
            if type(whole) is Closed and not whole.failures:
                return None
        now = _now()
        with self._lock:
            circuit = self._circuit
            moved = circuit.report(permit, part, outcome, now, self.config)
            self._move(moved)
        changed = moved.generations(part) != circuit.generations(part)
        return moved.state(now, part) if changed else None

    def judge(self, error: BaseException) -> Outcome:
        """Whether an error speaks about the provider."""
        means = classify(error)
        counted = means.blames_provider or (
            self.config.count_rate_limits and means.category is ErrorCategory.RATE_LIMIT and not means.refused
        )
        return Outcome.FAILURE if counted else Outcome.NEUTRAL

    def get_state(self, part: str | None = None) -> CircuitState:
        """The state now, of the provider or of one part; an open circuit whose time is up counts as half-open."""
        return self._circuit.state(_now(), part)

    def get_stats(self) -> dict[str, Any]:
        """name, state, generation, counts since the start, and the parts that are cut off alone."""
        now = _now()
        return {
            "name": self.name,
            "state": self.get_state().value,
            "generation": self._circuit.generation,
            **self._counts,
            "narrowed": {part: self._circuit.state(now, part).value for part in self._circuit.narrowed},
        }

    @property
    def all_closed(self) -> bool:
        """Closed, with no part cut off."""
        return type(self._circuit.whole) is Closed and not self._circuit.narrowed

    @property
    def is_open(self) -> bool:
        return self.get_state() is CircuitState.OPEN

    @property
    def is_closed(self) -> bool:
        return self.get_state() is CircuitState.CLOSED

    @property
    def is_half_open(self) -> bool:
        return self.get_state() is CircuitState.HALF_OPEN

    def reset(self) -> None:
        """Closed, with nothing remembered. Calls under way report to nobody."""
        with self._lock:
            generation = self._circuit.generation + 1
            self._move(Circuit(Closed(generation), serial=self._circuit.serial, generation=generation))

    def _move(self, circuit: Circuit) -> None:
        before, self._circuit = self._circuit.whole, circuit
        if self._on_change is not None:
            self._on_change(self)
        if circuit.whole.generation != before.generation:
            self._closed_permit = Permit(circuit.whole.generation)
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


class CircuitBreakerManager:
    """The breakers of one orchestrator, by what they protect."""

    def __init__(self, config_for: Callable[[str], CircuitBreakerConfig] | None = None) -> None:
        self._config_for = config_for or (lambda name: CircuitBreakerConfig())
        self._breakers: dict[str, CircuitBreaker] = {}
        self._not_closed: set[str] = set()

    def get_or_create(self, name: str, config: CircuitBreakerConfig | None = None) -> CircuitBreaker:
        breaker = self._breakers.get(name)
        if breaker is None:
            breaker = CircuitBreaker(name, config or self._config_for(name), on_change=self._note)
            self._breakers[name] = breaker
        return breaker

    def get(self, name: str) -> CircuitBreaker | None:
        return self._breakers.get(name)

    def get_all_stats(self) -> dict[str, dict[str, Any]]:
        return {name: breaker.get_stats() for name, breaker in self._breakers.items()}

    def reset_all(self) -> None:
        for breaker in self._breakers.values():
            breaker.reset()

    @property
    def all_closed(self) -> bool:
        """Whether every circuit is closed with no part cut off; known without looking at them."""
        return not self._not_closed

    def _note(self, breaker: CircuitBreaker) -> None:
        (self._not_closed.discard if breaker.all_closed else self._not_closed.add)(breaker.name)


class Breaker:
    """The policy. The permit is taken when the call is sent and given back whatever ends the call."""

    def __init__(self, breakers: CircuitBreakerManager) -> None:
        self._breakers = breakers

    async def __call__(self, call: Call, next: Next[Any, Any], /) -> Any:
        breaker = self._breakers.get_or_create(call.target)
        permit = breaker.admit(call.part)
        outcome = Outcome.NEUTRAL
        try:
            result = await next(call)
            outcome = Outcome.SUCCESS
            return result
        except Exception as error:
            outcome = breaker.judge(error)
            raise
        finally:
            changed = breaker.report(permit, call.part, outcome)
            if changed is not None:
                call.emit("circuit_breaker", {"provider": call.target, "part": call.part, "state": changed.value})
