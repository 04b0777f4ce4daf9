"""The circuit as a value, moved by pure functions of an event and the time: `admit` a call, `report` how it ended.

    closed --(too many failures)--> open --(its time)--> half-open --(successes)--> closed
                                     ^                      |
                                     +------(failure)-------+

A circuit has one lane for the whole provider and, where the evidence points at one part of it (one tool), a lane for
that part alone. Every permit carries the generation of the lane that admitted it; a report from an earlier generation
has no effect, so a late answer can neither close nor open a circuit that has moved on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from steer_llm_sdk.reliability.tally import Tally, Trip

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerConfig


class CircuitState(str, Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Outcome(Enum):
    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"
    """The call says nothing about the provider: cancelled, refused elsewhere, a mistake of the caller's."""


SUCCESS, FAILURE, NEUTRAL = Outcome  # A member costs more to look up than all that is done with it here.


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to send one call. `serial` tells the probes of one generation apart; 0 is no probe."""

    generation: int
    part: str | None = None
    serial: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """`retry_after` in seconds; None where nobody knows."""

    retry_after: float | None


# ── lanes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Closed:
    """`since` when. `relapses`: how many open times in succession lie behind it, if it opens before it was healthy."""

    generation: int
    since: float = 0.0
    relapses: int = 0

    def tripped(self, parts: frozenset[str], now: float, asked: float, cfg: CircuitBreakerConfig) -> Open:
        relapses = self.relapses if now - self.since < cfg.window_size else 0
        return Open(self.generation + 1, now + _open_time(relapses, asked, cfg), parts, relapses=relapses)


@dataclass(frozen=True, slots=True)
class Open:
    """`blamed` are the parts whose failures opened it. `early` is the early probe under way: (serial, lease end).

    `confirmed`: an early probe of another part has failed as well, so all parts are held to be down. `probed`: this
    open time has had an early probe; `panicked`: one because every provider was down, and it is to have no other.
    """

    generation: int
    until: float
    blamed: frozenset[str]
    early: tuple[int, float] | None = None
    confirmed: bool = False
    relapses: int = 0
    probed: bool = False
    panicked: bool = False

    def admits_early(self, part: str, now: float) -> bool:
        free = self.early is None or self.early[1] <= now
        alone = len(self.blamed) == 1 and part not in self.blamed
        return now < self.until and free and alone and not (self.confirmed or self.panicked)

    def admits_in_panic(self, now: float) -> bool:
        return now < self.until and not self.probed

    def half_open(self) -> HalfOpen:
        return HalfOpen(self.generation + 1, self.blamed, self.confirmed, relapses=self.relapses)


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """`probes` are those under way: (serial, lease end)."""

    generation: int
    blamed: frozenset[str]
    confirmed: bool = False
    successes: int = 0
    probes: tuple[tuple[int, float], ...] = ()
    relapses: int = 0

    def live(self, now: float) -> tuple[tuple[int, float], ...]:
        return tuple(p for p in self.probes if p[1] > now)

    def reported(
        self, permit: Permit, part: str, outcome: Outcome, now: float, cfg: CircuitBreakerConfig, asked: float
    ) -> Lane:
        if permit.serial not in (serial for serial, _ in self.probes):
            return self
        if outcome is FAILURE:
            blamed, relapses = self.blamed | {part}, self.relapses + 1
            until = now + _open_time(relapses, asked, cfg)
            confirmed = self.confirmed or len(blamed) > 1
            return Open(self.generation + 1, until, blamed, confirmed=confirmed, relapses=relapses)
        rest = replace(self, probes=tuple(p for p in self.probes if p[0] != permit.serial))
        return rest if outcome is NEUTRAL else rest.succeeded(now, cfg)

    def succeeded(self, now: float, cfg: CircuitBreakerConfig) -> HalfOpen | Closed:
        if self.successes + 1 >= cfg.success_threshold:
            return Closed(self.generation + 1, now, self.relapses + 1)
        return replace(self, successes=self.successes + 1)


Lane: TypeAlias = Closed | Open | HalfOpen


def _open_time(relapses: int, asked: float, cfg: CircuitBreakerConfig) -> float:
    """Seconds: `timeout` x `timeout_factor` for each relapse, or what the provider asked for if that is more."""
    try:
        escalated = cfg.timeout * cfg.timeout_factor**relapses
    except OverflowError:
        escalated = cfg.max_timeout
    return max(cfg.timeout, min(max(escalated, asked), cfg.max_timeout))


def _admit_probe(
    lane: Open | HalfOpen, serial: int, now: float, lease: float, cfg: CircuitBreakerConfig
) -> tuple[Lane, int] | Refusal:
    """A probe of a lane that is not closed: the lane with the probe under way, and the probe's generation."""
    if isinstance(lane, Open):
        if now < lane.until:
            return Refusal(lane.until - now)
        lane = lane.half_open()
    live = lane.live(now)
    if len(live) >= cfg.half_open_requests:
        return Refusal(max(0.0, min(end for _, end in live) - now))
    lane = replace(lane, probes=(*live, (serial, now + lease)))
    return lane, lane.generation


# ── the circuit ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Circuit:
    """A provider's lane, the lanes of parts that failed alone, and what is counted while the provider is closed.

    `serial` numbers the probes. A part's lane takes its generations from where the whole stands, so that none of them
    is ever used twice. `recovered` are the parts whose own lane has closed, as long as the time of their next one
    depends on it.
    """

    whole: Lane = Closed(0)
    narrowed: Mapping[str, Open | HalfOpen] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    recovered: Mapping[str, Closed] = field(default_factory=dict)
    serial: int = 1
    generation: int = 0

    def admit(
        self, part: str, now: float, cfg: CircuitBreakerConfig, *, within: float | None = None, panic: bool = False
    ) -> tuple[Circuit, Permit | Refusal]:
        """`within`: seconds after which the caller gives the call up, whatever becomes of it; a probe's lease is no
        longer. `panic`: every provider is down, so that one early probe in each open time is worth its cost."""
        whole = self.whole
        lease = cfg.lease if within is None else min(cfg.lease, within)
        if isinstance(whole, Closed):
            return (
                self._admit_part(part, now, lease, cfg) if part in self.narrowed else (self, Permit(whole.generation))
            )
        if isinstance(whole, Open):
            early = part not in self.narrowed and whole.admits_early(part, now)
            if early or (panic and whole.admits_in_panic(now)):
                return self._admit_early(whole, now + lease, panicked=not early)
        admitted = _admit_probe(whole, self.serial, now, lease, cfg)
        if isinstance(admitted, Refusal):
            return self, admitted
        lane, generation = admitted
        return self._with_whole(lane), Permit(generation, serial=self.serial)

    def report(
        self,
        permit: Permit,
        part: str,
        outcome: Outcome,
        now: float,
        cfg: CircuitBreakerConfig,
        *,
        took: float = 0.0,
        asked: float = 0.0,
    ) -> Circuit:
        """The circuit after a call has ended. Pure; a permit of an earlier generation changes nothing.

        `took`: seconds since it was sent. `asked`: for how many seconds a provider that failed asked not to be called.
        """
        return replace(self, tally=self.tally.copy()).record(permit, part, outcome, now, cfg, took, asked)

    def record(
        self,
        permit: Permit,
        part: str,
        outcome: Outcome,
        now: float,
        cfg: CircuitBreakerConfig,
        took: float = 0.0,
        asked: float = 0.0,
    ) -> Circuit:
        """`report` for the circuit's only owner: the tally is counted on in place, so that no copy is made of it.

        Returns this very circuit unless a lane has moved.
        """
        whole = self.whole
        if type(whole) is Closed and permit.part is None:
            if permit.generation != whole.generation or outcome is NEUTRAL or part in self.narrowed:
                return self
            slow = took > cfg.slow_call_duration and cfg.slow_call_rate_threshold is not None
            if outcome is SUCCESS:
                trip = self.tally.succeeded(part, now, cfg, slow)
            else:
                trip = self.tally.failed(part, now, cfg, slow, asked)
            return self if trip is None else self._tripped(whole, trip, now, cfg)
        return self._record_probe(permit, part, outcome, now, cfg, took, asked)

    def _record_probe(
        self,
        permit: Permit,
        part: str,
        outcome: Outcome,
        now: float,
        cfg: CircuitBreakerConfig,
        took: float,
        asked: float,
    ) -> Circuit:
        whole = self.whole
        if outcome is SUCCESS and took > cfg.slow_call_duration and cfg.slow_call_rate_threshold is not None:
            outcome = FAILURE  # Where slow calls count, a slow answer is no sign of recovery.
        if permit.part is not None:
            return self._report_part(permit, outcome, now, cfg, asked)
        if permit.generation != whole.generation:  # Its serial would be in no lane either; this says why.
            return self
        if isinstance(whole, Open):
            return self._report_early(whole, permit, part, outcome, now, cfg, asked)
        assert isinstance(whole, HalfOpen)  # `record` keeps what a closed one is told to itself.
        lane = whole.reported(permit, part, outcome, now, cfg, asked)
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

    def _tripped(self, whole: Closed, trip: Trip, now: float, cfg: CircuitBreakerConfig) -> Circuit:
        asked = max(self.tally.asked.get(part, 0.0) for part in trip.parts) - now
        if not trip.alone:
            return replace(self._with_whole(whole.tripped(trip.parts, now, asked, cfg)), tally=Tally())
        (part,) = trip.parts
        self.tally.forget(part)
        lane = self.recovered.get(part, Closed(0)).tripped(trip.parts, now, asked, cfg)
        return self._narrow(part, lane.until, lane.relapses)

    def _admit_early(self, whole: Open, lease_end: float, *, panicked: bool) -> tuple[Circuit, Permit]:
        lane = replace(whole, early=(self.serial, lease_end), probed=True, panicked=panicked)
        return replace(self, whole=lane, serial=self.serial + 1), Permit(whole.generation, serial=self.serial)

    def _report_early(
        self,
        whole: Open,
        permit: Permit,
        part: str,
        outcome: Outcome,
        now: float,
        cfg: CircuitBreakerConfig,
        asked: float,
    ) -> Circuit:
        if whole.early is None or whole.early[0] != permit.serial:
            return self
        if outcome is NEUTRAL:
            return replace(self, whole=replace(whole, early=None))
        if outcome is FAILURE:
            blamed = whole.blamed | {part}
            until = max(whole.until, now + min(asked, cfg.max_timeout))
            confirmed = whole.confirmed or len(blamed) > 1
            return replace(self, whole=replace(whole, early=None, until=until, blamed=blamed, confirmed=confirmed))
        if whole.panicked:
            return self._with_whole(whole.half_open().succeeded(now, cfg))
        (culprit,) = whole.blamed
        return self._with_whole(Closed(whole.generation + 1, now))._narrow(culprit, whole.until, whole.relapses)

    def _admit_part(
        self, part: str, now: float, lease: float, cfg: CircuitBreakerConfig
    ) -> tuple[Circuit, Permit | Refusal]:
        """A part with a lane of its own probes that lane, once the provider as a whole is closed."""
        admitted = _admit_probe(self.narrowed[part], self.serial, now, lease, cfg)
        if isinstance(admitted, Refusal):
            return self, admitted
        lane, generation = admitted
        return self._with_part(part, lane, cfg), Permit(generation, part, self.serial)

    def _report_part(
        self, permit: Permit, outcome: Outcome, now: float, cfg: CircuitBreakerConfig, asked: float
    ) -> Circuit:
        assert permit.part is not None
        lane = self.narrowed.get(permit.part)
        if not isinstance(lane, HalfOpen) or lane.generation != permit.generation:
            return self
        moved = lane.reported(permit, permit.part, outcome, now, cfg, asked)
        return self if moved is lane else self._with_part(permit.part, moved, cfg)

    def _with_whole(self, lane: Lane) -> Circuit:
        return replace(self, whole=lane, serial=self.serial + 1, generation=max(self.generation, lane.generation))

    def _with_part(self, part: str, lane: Lane, cfg: CircuitBreakerConfig) -> Circuit:
        moved = replace(self, serial=self.serial + 1, generation=max(self.generation, lane.generation))
        if not isinstance(lane, Closed):
            return replace(moved, narrowed={**self.narrowed, part: lane})
        recovered = {**self.recovered, part: lane} if cfg.timeout_factor > 1 else self.recovered
        return replace(moved, narrowed=_without(self.narrowed, part), recovered=recovered)

    def _narrow(self, part: str, until: float, relapses: int) -> Circuit:
        generation = self.generation + 1
        lane = Open(generation, until, frozenset((part,)), confirmed=True, relapses=relapses)
        return replace(self, narrowed={**self.narrowed, part: lane}, generation=generation)


def _without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in mapping.items() if k != key}


def _state_of(lane: Lane, now: float, part: str | None) -> CircuitState:
    if isinstance(lane, Closed):
        return CircuitState.CLOSED
    if isinstance(lane, HalfOpen) or now >= lane.until or (part is not None and lane.admits_early(part, now)):
        return CircuitState.HALF_OPEN
    return CircuitState.OPEN
