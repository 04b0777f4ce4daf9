"""Two instances that share one circuit through a store; anything may happen to a call and to the way to the store.

Requests and answers are lost, what is told comes late or never, the store is silent for a while. The cells and the
steps are the real ones (`shared_model`); only the line is chosen here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from invariants.circuit_model import LABELS, CircuitModel, Sent, config
from invariants.explore import promise
from shared_model import Line, ModelLink, Store, look, make
from steer_llm_sdk.reliability.circuit import Circuit, CircuitState, Closed, Outcome, Permit, Refusal
from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerConfig
from steer_llm_sdk.reliability.shared.board import Entry
from steer_llm_sdk.reliability.shared.breaker import CircuitCell
from steer_llm_sdk.reliability.shared.circuit import APART, Admission, Report, Shared, decoded

INSTANCES = 2
MOST_SENT = 2
MOST_FAULTS = 1
"""Answers that are lost; and as often the store is silent."""
FRESH = Shared(Circuit())
EMPTY = Entry(0, None)


@dataclass(frozen=True, slots=True)
class Instance:
    """What a cell knows, as a value."""

    state: Shared = FRESH
    joint: Shared = FRESH
    version: int = 0
    alone: bool = False
    partings: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    by: int
    sent: Sent

    def __str__(self) -> str:
        return f"{self.by}'s {self.sent}"


@dataclass(frozen=True, slots=True)
class World:
    instances: tuple[Instance, ...]
    entry: Entry = EMPTY
    told: Entry = EMPTY
    """What stood there before: somebody may hear of it only now."""
    now: float = 0.0
    silent: bool = False
    faults: int = 0
    silences: int = 0
    calls: tuple[Call, ...] = ()
    lost: tuple[Call, ...] = ()

    @property
    def stored(self) -> Shared:
        return FRESH if self.entry.text is None else decoded(self.entry.text)


class SharingModel:
    def __init__(self, name: str, cfg: CircuitBreakerConfig, parts: str = "a") -> None:
        self.name = name
        self._cfg = cfg
        self._parts = parts
        self._keys = CircuitModel(name, cfg)
        self._alive: set[Any] = set()

    def start(self) -> World:
        return World((Instance(),) * INSTANCES)

    # ── what can happen ──────────────────────────────────────────────────────────────────────────────────────────────

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        yield "a second passes", replace(world, now=world.now + 1)
        if world.silent:
            yield "the store answers again", replace(world, silent=False)
        elif world.silences < MOST_FAULTS:
            yield "the store is silent", replace(world, silent=True, silences=world.silences + 1)
        for by in range(INSTANCES):
            yield from self._heard(world, by)
            if len(world.calls) < MOST_SENT:
                for part in self._parts:
                    for line in self._lines(world):
                        label = f"{by} calls {part}{_told(line)}"
                        yield label, self._admitted(world, by, part, line, label)
        for call in dict.fromkeys(world.calls):
            rest = replace(world, calls=_without(world.calls, call))
            for outcome, label in LABELS.items():
                for line in self._lines(world):
                    step = f"{call} {label}{_told(line)}"
                    yield step, self._reported(rest, call, outcome, line, step)
            if len(world.lost) < 1:
                yield f"{call} is lost", replace(rest, lost=(call,))
        for call in world.lost:
            rest = replace(world, lost=())
            for outcome in (Outcome.SUCCESS, Outcome.FAILURE):
                step = f"lost {call} {LABELS[outcome]} late"
                yield step, self._reported(rest, call, outcome, self._lines(world)[0], step)

    def _lines(self, world: World) -> tuple[Line, ...]:
        if world.silent:
            return ("request lost",)
        return ("good", "answer lost") if world.faults < MOST_FAULTS else ("good",)

    def _heard(self, world: World, by: int) -> Iterator[tuple[str, World]]:
        for line in self._lines(world):
            label = f"{by} looks{_told(line)}"
            yield label, self._looked(world, by, line, label)
        if world.told.text is not None:
            cell, _ = _cell(world, by)
            cell.hear(world.told)
            label = f"{by} hears of it late"
            promise(cell.version >= world.instances[by].version, "what is known never goes back", label)
            yield label, _with(world, by, cell)

    def _looked(self, world: World, by: int, line: Line, label: str) -> World:
        before = world.instances[by]
        cell, store = _cell(world, by)
        look(cell, line=line)
        after = _with(world, by, cell, store, line)
        if line != "good":
            return after
        promise(not cell.alone and cell.state == after.stored, "who looks knows what stands in the store", label)
        untouched = (
            before.alone and before.version == world.entry.version and isinstance(before.joint.circuit.whole, Closed)
        )
        if untouched and not isinstance(before.state.circuit.whole, Closed):
            opened = not isinstance(after.stored.circuit.whole, Closed)
            promise(opened, "what failed here alone opens a circuit that nobody has touched since", label)
        return after

    def _admitted(self, world: World, by: int, part: str, line: Line, label: str) -> World:
        """As `SharedCircuitBreaker.take`: what is known here answers, unless it would be a probe."""
        cell, store = _cell(world, by)
        known = cell.state.circuit
        moved, answer = known.admit(part, world.now, self._cfg)
        after = world
        if isinstance(answer, Permit) and moved is not known:
            ((answer),) = make(cell, Admission(part, self._cfg), line=line)
            after = _with(world, by, cell, store, line)
            if line == "good" and not world.instances[by].alone:
                asked = world.stored.circuit.admit(part, world.now, self._cfg)
                promise((after.stored.circuit, answer) == asked, "the table moves what stands in the store", label)
        if isinstance(answer, Refusal):
            return after
        lease = None if answer.serial == 0 else world.now + self._cfg.lease
        return replace(after, calls=(*after.calls, Call(by, Sent(answer, part, lease))))

    def _reported(self, world: World, call: Call, outcome: Outcome, line: Line, label: str) -> World:
        """As `SharedCircuitBreaker._tell_store`."""
        permit, part = call.sent.permit, call.sent.part
        cell, store = _cell(world, call.by)
        tally = cell.state.circuit.tally
        clean = not (tally.streak.total or part in tally.aside)
        if permit.serial == 0 and (outcome is Outcome.NEUTRAL or (outcome is Outcome.SUCCESS and clean)):
            return world
        make(cell, Report(permit, part, outcome, world.now, self._cfg), line=line)
        after = _with(world, call.by, cell, store, line)
        if line == "good" and not world.instances[call.by].alone:
            before = world.stored.circuit
            moved = before.report(permit, part, outcome, world.now, self._cfg)
            promise(after.stored.circuit == moved, "the table moves what stands in the store", label)
            own = before.whole if permit.part is None else before.narrowed.get(permit.part)
            if own is None or own.generation != permit.generation:
                promise(moved == before, "a report from an earlier generation has no effect", label)
        return after

    # ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────────

    def check(self, world: World) -> None:
        self._check_probes(world)
        stored = world.stored
        for each in world.instances:
            if each.alone:
                here = each.state.circuit
                promise(here.whole.generation >= APART, "who is alone counts in generations of its own")
                promise(here.serial >= APART, "who is alone numbers its probes on its own")
                continue
            promise(each.version <= world.entry.version, "nobody knows what never was")
            if each.version == world.entry.version and each.version:
                promise(each.state == stored, "one version is one state")
        promise(stored.circuit.generation < APART, "a generation of one that is alone never comes into the store")
        key = self._keys._circuit_key(stored.circuit, world.now, {})
        if key not in self._alive:
            self._check_way_back(world)
            self._alive.add(key)

    def _check_probes(self, world: World) -> None:
        live: dict[Any, int] = {}
        for call in (*world.calls, *world.lost):
            permit, lease = call.sent.permit, call.sent.lease
            if lease is not None and world.now < lease:
                alone = call.by if permit.generation >= APART else None
                lane = alone, permit.part, permit.generation
                live[lane] = live.get(lane, 0) + 1
        most = self._cfg.half_open_requests
        promise(all(count <= most for count in live.values()), f"at most {most} live probes in a generation")

    def _check_way_back(self, world: World) -> None:
        """When the store answers and every probe does, somebody gets through, and the circuit closes."""
        cell, store = _cell(replace(world, silent=False), 0)
        look(cell)
        end = world.now + 2 * (self._cfg.timeout + self._cfg.lease + self._cfg.success_threshold + 1)
        while store.now <= end:
            ((answer),) = make(cell, Admission("a", self._cfg))
            if isinstance(answer, Permit):
                make(cell, Report(answer, "a", Outcome.SUCCESS, store.now, self._cfg))
            if cell.state.circuit.state(store.now, "a") is CircuitState.CLOSED:
                return
            store.now += 1
        promise(False, "there is a way back")

    # ── which worlds are alike ───────────────────────────────────────────────────────────────────────────────────────

    def key(self, world: World) -> Any:
        """Times count from now, versions from the store's."""
        names: dict[int, int] = {}
        newest = world.entry.version
        calls = [sorted(_call_key(call, world.now) for call in calls) for calls in (world.calls, world.lost)]
        told = world.told.text is not None and (
            newest - world.told.version,
            self._state_key(decoded(world.told.text), world.now, names),
        )
        return (
            self._state_key(world.stored, world.now, names),
            newest > 0,
            told,
            tuple(self._instance_key(each, world, names) for each in world.instances),
            (world.silent, world.faults, world.silences),
            tuple(map(tuple, calls)),
        )

    def _instance_key(self, each: Instance, world: World, names: dict[int, int]) -> tuple[Any, ...]:
        known = self._state_key(each.state, world.now, names)
        joint = self._state_key(each.joint, world.now, names) if each.alone else ()
        return world.entry.version - each.version, each.alone, each.partings, known, joint

    def _state_key(self, shared: Shared, now: float, names: dict[int, int]) -> tuple[Any, ...]:
        circuit = shared.circuit
        generations = circuit.whole.generation, tuple(lane.generation for _, lane in sorted(circuit.narrowed.items()))
        alone: tuple[Any, ...] = ()
        if shared.alone is not None:
            reports = tuple(
                (r.permit.generation, r.permit.serial, r.part, r.outcome.value, r.at - now)
                for r in shared.alone.reports
            )
            named = tuple(sorted((part or "", *rest) for (part, *rest), _ in shared.alone.generations.items()))
            alone = named, reports
        return self._keys._circuit_key(circuit, now, names), generations, circuit.generation, circuit.serial, alone


def _call_key(call: Call, now: float) -> tuple[Any, ...]:
    permit, lease = call.sent.permit, call.sent.lease
    left = -1.0 if lease is None else max(lease - now, 0.0)
    return call.by, call.sent.part, permit.part or "", permit.generation, permit.serial, left


def _cell(world: World, by: int) -> tuple[CircuitCell, Store]:
    """The real cell of an instance, and the store as it is."""
    each = world.instances[by]
    store = Store(world.entry, world.now)
    link: Any = ModelLink(store)
    cell = link.cell = CircuitCell(link, "acme", lambda shared: None, each.state)
    cell.joint, cell.version, cell.alone, cell._partings = each.joint, each.version, each.alone, each.partings
    return cell, store


def _with(world: World, by: int, cell: CircuitCell, store: Store | None = None, line: Line = "good") -> World:
    """The world after a cell has done something."""
    after = Instance(cell.state, cell.joint, cell.version, cell.alone, cell._partings)
    entry = world.entry if store is None else store.entry
    return replace(
        world,
        instances=(*world.instances[:by], after, *world.instances[by + 1 :]),
        entry=entry,
        told=world.entry if entry.version != world.entry.version else world.told,
        faults=world.faults + (line == "answer lost"),
    )


def _without(calls: tuple[Call, ...], call: Call) -> tuple[Call, ...]:
    place = calls.index(call)
    return calls[:place] + calls[place + 1 :]


def _told(line: Line) -> str:
    return "" if line == "good" else f" ({line})"


def sharing_models() -> list[SharingModel]:
    return [
        SharingModel("shared circuit, one probe", config(failure_threshold=2)),
        SharingModel("shared circuit, opens at once", config(failure_threshold=1)),
        SharingModel("shared circuit, two parts", config(failure_threshold=1), "ab"),
        SharingModel(
            "shared circuit, two probes", config(failure_threshold=1, half_open_requests=2, success_threshold=2)
        ),
    ]
