"""Three instances that share one circuit and call two tools of one provider, where anything may happen to a call.

It succeeds, fails, is cancelled, or its instance crashes: then the instance calls again, and what became of the lost
call is reported late or never.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from invariants.explore import promise
from steer_llm_sdk.reliability.circuit import (
    Circuit,
    CircuitState,
    Closed,
    HalfOpen,
    Open,
    Outcome,
    Permit,
    Refusal,
)
from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerConfig
from steer_llm_sdk.reliability.tally import SLICES, Counts, Rates, Streak, Tally

INSTANCES = 3
MOST_LOST = 2
ASKED = 4.0
"""Seconds for which a provider asks not to be called."""
MOST_RELAPSES = 3
"""More of them keep no circuit of `CONFIGS` open for longer."""
PARTS = "ab"
LABELS = {Outcome.SUCCESS: "succeeds", Outcome.FAILURE: "fails", Outcome.NEUTRAL: "is cancelled"}

KNOWN = {
    Circuit: {"whole", "narrowed", "tally", "recovered", "serial", "generation"},
    Closed: {"generation", "since", "relapses"},
    Open: {"generation", "until", "blamed", "early", "confirmed", "relapses", "probed", "panicked"},
    HalfOpen: {"generation", "blamed", "confirmed", "successes", "probes", "relapses"},
    Permit: {"generation", "part", "serial"},
    Tally: {"streak", "aside", "rates", "asked"},
    Streak: {"total", "spans"},
    Rates: {"newest", "whole", "parts", "ring"},
    Counts: {"calls", "failed", "slow"},
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
    panicked: int = -1
    """The generation that last had an early probe because every provider was down."""

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
        self._more: list[tuple[str, Outcome, dict[str, float]]] = []
        if cfg.slow_call_rate_threshold is not None:
            self._more.append(("succeeds late", Outcome.SUCCESS, {"took": cfg.slow_call_duration + 1}))
        if cfg.max_timeout > cfg.timeout:
            self._more.append(("fails and asks for a pause", Outcome.FAILURE, {"asked": ASKED}))
        # The longest that it stays open: as often as it relapses, and whatever the provider asks for.
        self._longest = max(cfg.timeout, cfg.max_timeout)

    def start(self) -> World:
        return World(Circuit())

    # ── what can happen ──────────────────────────────────────────────────────────────────────────────────────────────

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        yield "a second passes", replace(world, now=world.now + 1)
        if len(world.sent) < INSTANCES:
            for part in PARTS:
                yield f"{part} calls", self._admitted(world, part)
                if self._cfg.panic:
                    yield f"{part} calls while all are down", self._admitted(world, part, panic=True)
        for call in dict.fromkeys(world.sent):
            rest = _without(world.sent, call)
            for outcome, label in LABELS.items():
                yield f"{call} {label}", replace(self._reported(world, call, outcome), sent=rest)
            for label, outcome, more in self._more:
                yield f"{call} {label}", replace(self._reported(world, call, outcome, **more), sent=rest)
            if len(world.lost) < MOST_LOST:
                yield f"{call} is lost", replace(world, sent=rest, lost=(*world.lost, call))
        for call in dict.fromkeys(world.lost):
            rest = _without(world.lost, call)
            for outcome in (Outcome.SUCCESS, Outcome.FAILURE):
                label = f"lost {call} {LABELS[outcome]} late"
                yield label, replace(self._reported(world, call, outcome), lost=rest)

    def _admitted(self, world: World, part: str, panic: bool = False) -> World:
        circuit, answer = world.circuit.admit(part, world.now, self._cfg, panic=panic)
        if isinstance(answer, Refusal):
            promise(circuit == world.circuit, "a refusal changes nothing", f"{part} calls")
            promise((answer.retry_after or 0) >= 0, "a refusal says when to come again", f"{part} calls")
            return world
        lease = None if answer.serial == 0 else world.now + self._cfg.lease
        after = replace(world, circuit=circuit, sent=(*world.sent, Sent(answer, part, lease)))
        if not (panic and isinstance(circuit.whole, Open) and circuit.whole.panicked):
            return after
        once = world.panicked != answer.generation
        promise(once, "one early probe in an open time, however long all are down", f"{part} calls while all are down")
        return replace(after, panicked=answer.generation)

    def _reported(self, world: World, call: Sent, outcome: Outcome, took: float = 0.0, asked: float = 0.0) -> World:
        before, now = world.circuit, world.now
        after = before.report(call.permit, call.part, outcome, now, self._cfg, took=took, asked=asked)
        step = f"{call} {LABELS[outcome]}"
        own = before.whole if call.permit.part is None else before.narrowed.get(call.permit.part)
        if own is None or own.generation != call.permit.generation:
            promise(after == before, "a report from an earlier generation has no effect", step)
        if outcome is Outcome.NEUTRAL:
            promise(_health(after) == _health(before), "a cancelled call changes no health", step)
        promise(after.generation >= before.generation, "generations only grow", step)
        moved = type(after.whole) is not type(before.whole)
        grown = after.whole.generation > before.whole.generation
        promise(grown or not moved, "every change of state begins a new generation", step)
        for lane in (after.whole, *after.narrowed.values()):
            if isinstance(lane, Open):
                promise(lane.until - now <= self._longest, f"it is open for {self._longest:g} s at most", step)
        opened = isinstance(after.whole, Open) and after.whole.generation != before.whole.generation
        if opened and asked:
            promise(after.whole.until - now >= min(asked, self._longest), "a pause that was asked for is kept", step)
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
        if (
            isinstance(whole, Open)
            and not (whole.confirmed or whole.panicked)
            and not live.get((None, whole.generation))
        ):
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
        soon = 2 * (self._longest + cfg.lease + cfg.success_threshold + 1)
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
        return circuit, calls, lost, world.panicked == world.circuit.whole.generation

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
            tuple((part, self._lane_key(lane, now, names)) for part, lane in sorted(circuit.recovered.items())),
            self._tally_key(circuit.tally, now),
        )

    def _lane_key(self, lane: Any, now: float, names: dict[int, int]) -> tuple[Any, ...]:
        def probe(of: tuple[int, float]) -> tuple[int, float]:
            return names.setdefault(of[0], len(names)), max(of[1] - now, 0.0)

        relapses = min(lane.relapses, MOST_RELAPSES)
        if isinstance(lane, Closed):
            since = max(lane.since - now, -self._cfg.window_size) if relapses else 0.0
            return "closed", relapses, since
        blamed = tuple(sorted(lane.blamed))
        if isinstance(lane, Open):
            early = None if lane.early is None else probe(lane.early)
            told = lane.confirmed, lane.probed, lane.panicked
            return "open", relapses, max(lane.until - now, 0.0), blamed, early, told
        return "half-open", relapses, blamed, lane.confirmed, lane.successes, tuple(probe(of) for of in lane.probes)

    def _tally_key(self, tally: Tally, now: float) -> tuple[Any, ...]:
        aside = tuple((part, self._streak_key(streak, now)) for part, streak in sorted(tally.aside.items()))
        asked = tuple((part, max(until - now, 0.0)) for part, until in sorted(tally.asked.items()))
        return self._streak_key(tally.streak, now), aside, asked, tally.rates and self._rates_key(tally.rates, now)

    def _streak_key(self, streak: Streak, now: float) -> tuple[Any, ...]:
        """What is out of date but not yet dropped counts as dropped; what is counted and in no span would show."""
        spans = [(at - now, tuple(sorted(counts.items()))) for at, counts in streak.spans]
        total = streak.total - sum(sum(counts.values()) for _, counts in streak.spans)
        return total, tuple(span for span in spans if -span[0] <= self._cfg.window_size)

    def _rates_key(self, rates: Rates, now: float) -> tuple[Any, ...]:
        """The slices by their age, and what is counted but in none of them, which should be nothing."""
        newest = int(now * SLICES / self._cfg.window_size)
        ring, left = [], rates.whole.copy()
        for number in range(rates.newest - SLICES + 1, rates.newest + 1):
            counted = rates.ring[number % SLICES]
            for counts in counted.values():
                left.take_out(counts)
            if counted and newest - number < SLICES:
                ring.append((newest - number, tuple((part, *_plain(c)) for part, c in sorted(counted.items()))))
        return tuple(ring), _plain(left)


def _plain(counts: Counts) -> tuple[int, int, int]:
    return counts.calls, counts.failed, counts.slow


def _without(calls: tuple[Sent, ...], call: Sent) -> tuple[Sent, ...]:
    place = calls.index(call)
    return calls[:place] + calls[place + 1 :]


def _health(circuit: Circuit) -> object:
    """All that a call that says nothing must leave alone: everything but the probes under way."""

    def lane(of: Any) -> object:
        if isinstance(of, Open):
            return replace(of, early=None)
        return replace(of, probes=()) if isinstance(of, HalfOpen) else of

    return lane(circuit.whole), {part: lane(of) for part, of in circuit.narrowed.items()}, circuit.tally


def config(**given: Any) -> CircuitBreakerConfig:
    small = {"failure_threshold": 2, "success_threshold": 1, "timeout": 2, "half_open_requests": 1, "window_size": 3}
    return CircuitBreakerConfig(**{**small, "probe_lease": 1, "max_timeout": 2, **given})


CONFIGS = {
    "one probe, one success": config(),
    "two probes, one success": config(half_open_requests=2),
    "one probe, two successes": config(success_threshold=2),
    "two probes, two successes": config(half_open_requests=2, success_threshold=2, probe_lease=2),
    "a lease longer than the open time": config(failure_threshold=1, timeout=1, probe_lease=3),
    "opens longer each time, and as asked": config(timeout=1, timeout_factor=2, max_timeout=4),
    "a share of failures": config(
        failure_threshold=99, failure_rate_threshold=0.5, minimum_throughput=2, window_size=SLICES
    ),
    "a share of slow calls": config(
        slow_call_rate_threshold=0.6, slow_call_duration=5, minimum_throughput=2, window_size=SLICES
    ),
    "panic": config(failure_threshold=1, panic=True),
}


def circuit_models() -> list[CircuitModel]:
    return [CircuitModel(f"circuit, {name}", cfg) for name, cfg in CONFIGS.items()]
