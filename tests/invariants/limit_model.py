"""Calls of two tenants that come to a rate limit: they go, wait, give up, end, or are sent away, and the server blocks.

The account is held to one of its own: the calls that went in any minute, those under way, and who came before whom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from invariants.explore import promise
from steer_llm_sdk.reliability import rate_limit
from steer_llm_sdk.reliability.rate_limit import Line, Queued, RateLimit, State, Waiter

TENANTS = "ab"
SECOND = 15.0
"""One tick: a quarter of the minute that a bucket holds."""
PAUSE = 2 * SECOND
KNOWN = {
    State: {"requests", "tokens", "max_concurrent", "running", "reserved", "blocked_until", "heard_at", "line"},
    Line: {"waiters", "round", "serial", "tokens", "soonest"},
    Waiter: {"turn", "serial", "tenant", "tokens", "latest"},
}


def unknown_fields() -> list[str]:
    return [f"{of.__name__}.{name}" for of, known in KNOWN.items() for name in of._fields if name not in known]


@dataclass(frozen=True, slots=True)
class World:
    """`went` are the times at which calls were let go, of the last minute. `waiting` by serial: tenant and end."""

    state: State
    now: float = 0.0
    running: int = 0
    went: tuple[float, ...] = ()
    waiting: tuple[tuple[int, str, float], ...] = ()
    blocked: float = -math.inf


class LimitModel:
    def __init__(self, name: str, cfg: RateLimit) -> None:
        self.name = name
        self._cfg = cfg

    def start(self) -> World:
        return World(State.of(self._cfg))

    # ── what can happen ──────────────────────────────────────────────────────────────────────────────────────────────

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        later = replace(world, now=world.now + SECOND)
        yield "time passes", self._advanced(later, "time passes")
        yield "time passes, and the timer is late", later
        for tenant in TENANTS:
            yield f"{tenant} calls", self._called(world, tenant)
        if world.running:
            for sent in (True, False):
                step = "a call ends" if sent else "a call was never sent"
                yield step, self._ended(world, sent, step)
        for serial, tenant, _ in world.waiting:
            rest = tuple(place for place in world.waiting if place[0] != serial)
            left = replace(world, state=rate_limit.withdraw(world.state, serial), waiting=rest)
            yield f"{tenant} gives up", self._advanced(left, f"{tenant} gives up")
        until = world.now + PAUSE
        blocked = replace(world, state=rate_limit.block(world.state, until), blocked=max(world.blocked, until))
        yield "the server wants a pause", self._advanced(blocked, "the server wants a pause")

    def _called(self, world: World, tenant: str) -> World:
        state = rate_limit.admit(world.state, 1.0, world.now)
        step = f"{tenant} calls"
        if state is not None:
            promise(not world.waiting, "nobody goes before those who wait", step)
            return self._gone(replace(world, state=state), step)
        latest = world.now + self._cfg.max_wait
        state, answer = rate_limit.enqueue(world.state, tenant, 1.0, latest, world.now, self._cfg)
        if not isinstance(answer, Queued):
            promise(state == world.state, "a refusal changes nothing", step)
            full = len(world.waiting) >= self._cfg.max_queue
            promise(answer.full == full, "it says whether the queue is full", step)
            return world
        promise(len(world.waiting) < self._cfg.max_queue, "no more wait than may", step)
        place = answer.waiter.serial, tenant, latest
        return self._advanced(replace(world, state=state, waiting=(*world.waiting, place)), step)

    def _ended(self, world: World, sent: bool, step: str) -> World:
        state = rate_limit.finish(world.state, 1.0, 1.0, sent)
        went = world.went if sent else world.went[:-1]
        return self._advanced(replace(world, state=state, running=world.running - 1, went=went), step)

    def _advanced(self, world: World, step: str) -> World:
        moved = rate_limit.advance(world.state, world.now)
        world = replace(world, state=moved.state)
        for waiter in moved.refused:
            promise(waiter.latest <= max(world.now, world.blocked), "nobody is sent away who could still go", step)
        gone = {waiter.serial for waiter in (*moved.granted, *moved.refused)}
        promise(gone <= {place[0] for place in world.waiting}, "only who waits can go", step)
        for waiter in moved.granted:
            earlier = [s for s, tenant, _ in world.waiting if tenant == waiter.tenant and s < waiter.serial]
            promise(set(earlier) <= gone, "a tenant's calls go in the order in which they came", step)
            world = self._gone(world, step)
        return replace(world, waiting=tuple(place for place in world.waiting if place[0] not in gone))

    def _gone(self, world: World, step: str) -> World:
        promise(world.now >= world.blocked, "nobody goes in a pause that the server wants", step)
        recent = tuple(at for at in world.went if world.now - at < 60.0)
        return replace(world, running=world.running + 1, went=(*recent, world.now))

    # ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────────

    def check(self, world: World) -> None:
        cfg, state = self._cfg, world.state
        promise(state.running == world.running, "what is under way is counted once")
        promise(cfg.max_concurrent is None or world.running <= cfg.max_concurrent, "no more at once than may")
        if cfg.requests_per_minute is not None:
            # A bucket that was full at the beginning of a minute holds it, and gains as much again until its end.
            most = 2 * cfg.requests_per_minute
            promise(len(world.went) <= most, f"no more than {most:g} calls in any minute")
            at_once = sum(at == world.now for at in world.went)
            promise(at_once <= cfg.requests_per_minute, "no more at once than one minute's worth")
        promise(
            [w.serial for w in sorted(state.line.waiters, key=lambda w: w.serial)] == [p[0] for p in world.waiting],
            "who waits has a place, and nobody else",
        )
        self._check_wake_up(world)

    def _check_wake_up(self, world: World) -> None:
        """Nobody waits for nothing: time alone, or the end of a call, moves the queue. No wake-up is lost."""
        if not world.waiting:
            return
        state, now = world.state, world.now
        for _ in range(2):  # The first may be for one who has left meanwhile.
            at = rate_limit.wake_at(state, now)
            promise(at < math.inf, "somebody waits, and a timer is set")
            now = max(at, now) + 1e-6
            moved = rate_limit.advance(state, now)
            if moved.granted or moved.refused:
                return
            state = moved.state
        promise(False, "when the timer goes off, somebody goes")

    def key(self, world: World) -> Any:
        state, now = world.state, world.now
        names = {place[0]: n for n, place in enumerate(world.waiting)}
        waiters = tuple(
            (w.turn - state.line.round, names.get(w.serial, -1), w.tenant, round(w.latest - now, 6))
            for w in state.line.waiters
        )
        buckets = tuple(None if b is None else round(b.level(now), 6) for b in (state.requests, state.tokens))
        return (
            buckets,
            state.running,
            max(state.blocked_until - now, 0.0),
            waiters,
            tuple(now - at for at in world.went if now - at < 60.0),
            max(world.blocked - now, 0.0),
        )


def limit_models() -> list[LimitModel]:
    few: dict[str, Any] = {"max_queue": 3, "max_wait": 60.0}
    return [
        LimitModel("rate limit, requests", RateLimit(requests_per_minute=2, **few)),
        LimitModel("rate limit, concurrency", RateLimit(max_concurrent=2, **few)),
        LimitModel("rate limit, all of them", RateLimit(requests_per_minute=4, max_concurrent=1, **few)),
    ]
