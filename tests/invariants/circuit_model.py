"""Three instances that share one circuit and call two tools of one provider, where anything may happen to a call.

It succeeds, fails, is cancelled, or its instance crashes: then the instance calls again, and what became of the lost
call is reported late or never.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from invariants.explore import promise
from steer_llm_sdk.reliability.circuit_breaker import (
    Circuit,
    CircuitBreakerConfig,
    CircuitState,
    Closed,
    HalfOpen,
    Open,
    Outcome,
    Permit,
    Refusal,
)

INSTANCES = 3
MOST_LOST = 2
PARTS = "ab"
LABELS = {Outcome.SUCCESS: "succeeds", Outcome.FAILURE: "fails", Outcome.NEUTRAL: "is cancelled"}

KNOWN = {
    Circuit: {"whole", "narrowed", "streaks", "serial", "generation"},
    Closed: {"generation", "failures"},
    Open: {"generation", "until", "blamed", "early", "confirmed"},
    HalfOpen: {"generation", "blamed", "confirmed", "successes", "probes"},
    Permit: {"generation", "part", "serial"},
}
"""What `CircuitModel.key` reads. A field that it does not know would let it take two different worlds for one."""


def unknown_fields() -> list[str]:
    return [f"{of.__name__}.{f.name}" for of, known in KNOWN.items() for f in fields(of) if f.name not in known]


@dataclass(frozen=True, slots=True)
class Sent:
    """A call under way, or lost. `lease` is the end of its probe's lease, None where it is no probe."""

    permit: Permit
    part: str
    lease: float | None

    def __str__(self) -> str:
        return f"{'probe' if self.lease else 'call'} of {self.part}"


@dataclass(frozen=True, slots=True)
class World:
    circuit: Circuit
    now: float = 0.0
    sent: tuple[Sent, ...] = ()
    lost: tuple[Sent, ...] = ()

    def live_probes(self) -> dict[tuple[str | None, int], int]:
        """By the lane and generation that admitted them: those whose lease has not ended and who have not reported."""
        live: dict[tuple[str | None, int], int] = {}
        for call in (*self.sent, *self.lost):
            if call.lease is not None and self.now < call.lease:
                lane = call.permit.part, call.permit.generation
                live[lane] = live.get(lane, 0) + 1
        return live


class CircuitModel:
    def __init__(self, name: str, cfg: CircuitBreakerConfig) -> None:
        self.name = name
        self._cfg = cfg
        self._alive: set[Any] = set()

    def start(self) -> World:
        return World(Circuit())

    # ── what can happen ──────────────────────────────────────────────────────────────────────────────────────────────

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        yield "a second passes", replace(world, now=world.now + 1)
        if len(world.sent) < INSTANCES:
            for part in PARTS:
                yield f"{part} calls", self._admitted(world, part)
        for call in dict.fromkeys(world.sent):
            rest = _without(world.sent, call)
            for outcome, label in LABELS.items():
                yield f"{call} {label}", replace(self._reported(world, call, outcome), sent=rest)
            if len(world.lost) < MOST_LOST:
                yield f"{call} is lost", replace(world, sent=rest, lost=(*world.lost, call))
        for call in dict.fromkeys(world.lost):
            rest = _without(world.lost, call)
            for outcome in (Outcome.SUCCESS, Outcome.FAILURE):
                label = f"lost {call} {LABELS[outcome]} late"
                yield label, replace(self._reported(world, call, outcome), lost=rest)

    def _admitted(self, world: World, part: str) -> World:
        circuit, answer = world.circuit.admit(part, world.now, self._cfg)
        if isinstance(answer, Refusal):
            promise(circuit == world.circuit, "a refusal changes nothing", f"{part} calls")
            promise(answer.retry_after >= 0, "a refusal says when to come again", f"{part} calls")
            return world
        lease = None if answer.serial == 0 else world.now + self._cfg.lease
        return replace(world, circuit=circuit, sent=(*world.sent, Sent(answer, part, lease)))

    def _reported(self, world: World, call: Sent, outcome: Outcome) -> World:
        before = world.circuit
        after = before.report(call.permit, call.part, outcome, world.now, self._cfg)
        step = f"{call} {LABELS[outcome]}"
        own = before.whole if call.permit.part is None else before.narrowed.get(call.permit.part)
        if own is None or own.generation != call.permit.generation:
            promise(after == before, "a report from an earlier generation has no effect", step)
        if outcome is Outcome.NEUTRAL:
            promise(_health(after) == _health(before), "a cancelled call changes no health", step)
        promise(after.generation >= before.generation, "generations only grow", step)
        return replace(world, circuit=after)

    # ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────────

    def check(self, world: World) -> None:
        live = world.live_probes()
        most = self._cfg.half_open_requests
        promise(all(count <= most for count in live.values()), f"at most {most} live probes in a generation")
        self._check_no_leak(world, live)
        key = self._circuit_key(world.circuit, world.now, {})
        if key not in self._alive:
            self._check_liveness(world)
            self._alive.add(key)

    def _check_no_leak(self, world: World, live: dict[tuple[str | None, int], int]) -> None:
        """A half-open lane with fewer live probes than it may have admits one, whatever became of those before."""
        circuit = world.circuit
        lanes: list[tuple[str | None, Any]] = [(None, circuit.whole), *circuit.narrowed.items()]
        for name, lane in lanes:
            if not isinstance(lane, HalfOpen) or live.get((name, lane.generation), 0) >= self._cfg.half_open_requests:
                continue
            if name is not None and not isinstance(circuit.whole, Closed):
                continue  # A part waits for the whole.
            _, answer = circuit.admit(name or "a", world.now, self._cfg)
            promise(
                isinstance(answer, Permit), "a permit that was given back, or whose lease has ended, is there again"
            )
        whole = circuit.whole
        if isinstance(whole, Open) and not whole.confirmed and not live.get((None, whole.generation)):
            others = [part for part in PARTS if part not in (*whole.blamed, *circuit.narrowed)]
            for part in others if len(whole.blamed) == 1 and world.now < whole.until else ():
                _, answer = circuit.admit(part, world.now, self._cfg)
                promise(isinstance(answer, Permit), f"an early probe of {part}, which nobody blames, is admitted")

    def _check_liveness(self, world: World) -> None:
        """All calls under way are lost, and the provider answers from now on: each tool is soon served as usual.

        Soon: the open time, a lease for the probes that were lost, and then one success after the other. The whole
        comes first, then the lane of the tool alone.
        """
        cfg = self._cfg
        soon = 2 * (cfg.timeout + cfg.lease + cfg.success_threshold + 1)
        for part in PARTS:
            circuit, now = world.circuit, world.now
            while now <= world.now + soon:
                circuit, answer = circuit.admit(part, now, cfg)
                if isinstance(answer, Permit):
                    circuit = circuit.report(answer, part, Outcome.SUCCESS, now, cfg)
                if circuit.state(now, part) is CircuitState.CLOSED:
                    break
                now += 1
            promise(circuit.state(now, part) is CircuitState.CLOSED, f"there is a way back for {part}")

    # ── which worlds are alike ───────────────────────────────────────────────────────────────────────────────────────

    def key(self, world: World) -> Any:
        """Times count from now; generations and serials only tell apart. The instances have no names."""
        names: dict[int, int] = {}
        circuit = self._circuit_key(world.circuit, world.now, names)
        calls = tuple(sorted(self._call_key(call, world, names) for call in world.sent))
        lost = tuple(sorted(self._call_key(call, world, names) for call in world.lost))
        return circuit, calls, lost

    def _call_key(self, call: Sent, world: World, names: dict[int, int]) -> tuple[Any, ...]:
        circuit, permit = world.circuit, call.permit
        own = circuit.whole if permit.part is None else circuit.narrowed.get(permit.part)
        # Generations only grow, so it counts by how much a permit is behind, and long ago is long ago.
        behind = -1 if own is None else min(own.generation - permit.generation, 3)
        lease = -1.0 if call.lease is None else max(call.lease - world.now, 0.0)
        return call.part, permit.part or "", behind, names.get(permit.serial, -1), lease

    def _circuit_key(self, circuit: Circuit, now: float, names: dict[int, int]) -> tuple[Any, ...]:
        return (
            self._lane_key(circuit.whole, now, names),
            tuple((part, self._lane_key(lane, now, names)) for part, lane in sorted(circuit.narrowed.items())),
            tuple((part, self._recent(ats, now)) for part, ats in sorted(circuit.streaks.items())),
        )

    def _lane_key(self, lane: Any, now: float, names: dict[int, int]) -> tuple[Any, ...]:
        def probe(of: tuple[int, float]) -> tuple[int, float]:
            return names.setdefault(of[0], len(names)), max(of[1] - now, 0.0)

        if isinstance(lane, Closed):
            return "closed", tuple((at - now, part) for at, part in lane.failures if now - at <= self._cfg.window_size)
        if isinstance(lane, Open):
            early = None if lane.early is None else probe(lane.early)
            return "open", max(lane.until - now, 0.0), tuple(sorted(lane.blamed)), early, lane.confirmed
        probes = tuple(probe(of) for of in lane.probes)
        return "half-open", tuple(sorted(lane.blamed)), lane.confirmed, lane.successes, probes

    def _recent(self, ats: tuple[float, ...], now: float) -> tuple[float, ...]:
        return tuple(at - now for at in ats if now - at <= self._cfg.window_size)


def _without(calls: tuple[Sent, ...], call: Sent) -> tuple[Sent, ...]:
    place = calls.index(call)
    return calls[:place] + calls[place + 1 :]


def _health(circuit: Circuit) -> object:
    """All that a call that says nothing must leave alone: everything but the probes under way."""

    def lane(of: Any) -> object:
        if isinstance(of, Open):
            return replace(of, early=None)
        return replace(of, probes=()) if isinstance(of, HalfOpen) else of

    return lane(circuit.whole), {part: lane(of) for part, of in circuit.narrowed.items()}, circuit.streaks


def config(**given: Any) -> CircuitBreakerConfig:
    small = {"failure_threshold": 2, "success_threshold": 1, "timeout": 2, "half_open_requests": 1, "window_size": 3}
    return CircuitBreakerConfig(**{**small, "probe_lease": 1, **given})


CONFIGS = {
    "one probe, one success": config(),
    "two probes, one success": config(half_open_requests=2),
    "one probe, two successes": config(success_threshold=2),
    "two probes, two successes": config(half_open_requests=2, success_threshold=2, probe_lease=2),
    "a lease longer than the open time": config(failure_threshold=1, timeout=1, probe_lease=3),
}


def circuit_models() -> list[CircuitModel]:
    return [CircuitModel(f"circuit, {name}", cfg) for name, cfg in CONFIGS.items()]
