"""A circuit that several instances share: the steps that move it, and how one instance goes on alone and comes back.

Pure. What a step does to the circuit is what `reliability.circuit` does to it in memory.

An instance that goes on alone gives every lane a new generation, and its probes serials, of a range that the store
never uses. So no permit of that time can be taken for one of the store's, and what was admitted before the parting
counts on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from steer_llm_sdk.reliability.circuit import Circuit, CircuitState, Closed, Lane, Outcome, Permit, Refusal
from steer_llm_sdk.reliability.circuit_breaker import BreakerMode
from steer_llm_sdk.reliability.shared import snapshot

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerConfig

APART = 1 << 40
"""The first generation and serial of an instance that has parted for the first time."""
MOST_REMEMBERED = 256
"""So many reports, the latest, are brought to the store by an instance that comes back."""


class Alone(NamedTuple):
    """What an instance without a store remembers: the generations of its lanes, by part and by what they were in the
    store, and what was reported of calls that the store's circuit would know."""

    generations: Mapping[tuple[str | None, int], int]
    reports: tuple[Report, ...] = ()


class Shared(NamedTuple):
    """What stands in the store. `mode` is that of an operator, None: each instance has its own. `alone` is never in the
    store."""

    circuit: Circuit
    mode: BreakerMode | None = None
    alone: Alone | None = None


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Admission:
    """Asks for a permit. See Circuit.admit."""

    part: str
    cfg: CircuitBreakerConfig
    within: float | None = None
    panic: bool = False

    def __call__(self, shared: Shared, now: float) -> tuple[Shared, Permit | Refusal]:
        if shared.mode is BreakerMode.FORCED_OPEN:
            return shared, Refusal(None)
        circuit, answer = shared.circuit.admit(self.part, now, self.cfg, within=self.within, panic=self.panic)
        return (shared if circuit is shared.circuit else shared._replace(circuit=circuit)), answer


@dataclass(frozen=True, slots=True)
class Report:
    """Says how a call ended, `at` the store's time, and is answered with the state where it has changed it. See
    Circuit.report."""

    permit: Permit
    part: str
    outcome: Outcome
    at: float
    cfg: CircuitBreakerConfig
    took: float = 0.0
    asked: float = 0.0

    def __call__(self, shared: Shared, now: float) -> tuple[Shared, CircuitState | None]:
        before, permit, alone = shared.circuit, self.permit, shared.alone
        if alone is not None:
            generation = alone.generations.get((permit.part, permit.generation), permit.generation)
            permit = replace(permit, generation=generation)
            alone = _remembered(alone, self, generation)
        after = before.report(permit, self.part, self.outcome, self.at, self.cfg, took=self.took, asked=self.asked)
        changed = after.generations(self.part) != before.generations(self.part)
        return shared._replace(circuit=after, alone=alone), after.state(now, self.part) if changed else None


def _remembered(alone: Alone, report: Report, generation: int) -> Alone:
    """With the report, of a call that the store's circuit would have admitted as well."""
    stored = next((ours for (_, ours), here in alone.generations.items() if here == generation), None)
    if stored is None or report.permit.serial >= APART:
        return alone
    report = replace(report, permit=replace(report.permit, generation=stored))
    return alone._replace(reports=(*alone.reports[1 - MOST_REMEMBERED :], report))


@dataclass(frozen=True, slots=True)
class Reset:
    """Closed, with nothing remembered, and `mode` from now on."""

    mode: BreakerMode | None = None

    def __call__(self, shared: Shared, now: float) -> tuple[Shared, None]:
        circuit = shared.circuit
        generation = circuit.generation + 1
        return Shared(Circuit(Closed(generation), serial=circuit.serial, generation=generation), self.mode), None


@dataclass(frozen=True, slots=True)
class SetMode:
    mode: BreakerMode | None

    def __call__(self, shared: Shared, now: float) -> tuple[Shared, None]:
        return shared._replace(mode=self.mode), None


# ── apart and together ───────────────────────────────────────────────────────────────────────────────────────────────


def parted(shared: Shared, time: int) -> Shared:
    """The circuit of an instance that goes on alone, for the `time`th time."""
    circuit = shared.circuit
    # The whole comes last: then whatever moves it, or cuts a part off, makes the generation of the circuit grow.
    lanes: list[tuple[str | None, Lane]] = [*circuit.narrowed.items(), (None, circuit.whole)]
    generations = {(part, lane.generation): APART * time + n for n, (part, lane) in enumerate(lanes)}
    whole = replace(circuit.whole, generation=generations[None, circuit.whole.generation])
    narrowed = {
        part: replace(lane, generation=generations[part, lane.generation]) for part, lane in circuit.narrowed.items()
    }
    serial = APART * time + circuit.serial
    local = replace(circuit, whole=whole, narrowed=narrowed, serial=serial, generation=whole.generation)
    return shared._replace(circuit=local, alone=Alone(generations))


def rejoined(stored: Shared, local: Shared, now: float) -> Shared:
    """What stands in the store after what happened to one that was alone.

    What was reported there meanwhile is reported here: whether it opens the circuit, the store's decides. Where the
    circuit opened there and is closed again, the failures that opened it are over.
    """
    alone = local.alone
    if alone is None:
        return stored
    circuit = local.circuit
    moved = circuit.generation > max(alone.generations.values())
    if moved and isinstance(circuit.whole, Closed) and not circuit.narrowed:
        return stored
    for report in alone.reports:
        stored, _ = report(stored, now)
    return stored


# ── as text ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def encoded(shared: Shared) -> str:
    mode = None if shared.mode is None else shared.mode.value
    return snapshot.written({"mode": mode, "circuit": snapshot.circuit_to(shared.circuit)})


def decoded(text: str) -> Shared:
    return snapshot.read(text, _shared_of)


def _shared_of(value: Any) -> Shared:
    mode = value["mode"]
    return Shared(snapshot.circuit_of(value["circuit"]), None if mode is None else BreakerMode(mode))
