"""Three instances that want the same key: they hold it, lose it, come back as zombies, and ask with another request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from invariants.explore import promise
from steer_llm_sdk.reliability.stores import Claim
from steer_llm_sdk.reliability.stores.memory import Claimed, Finished, MemoryStore

R = TypeVar("R")
INSTANCES = 3
LEASE, TTL = 2.0, 3.0
PRINTS = "FG"
"""Fingerprints: two different requests under one key."""
KEY = "k"


@dataclass(frozen=True, slots=True)
class Owner:
    """The last claim that was granted, as the outside sees it. `free`: it was given back or settled."""

    token: int
    print: str
    lease: float
    free: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """`held` are the tokens that instances believe to be theirs. `kept` is what was settled: result, print, end."""

    claimed: tuple[tuple[str, Claimed], ...] = ()
    finished: tuple[tuple[str, Finished], ...] = ()
    token: int = 0
    now: float = 0.0
    held: tuple[int, ...] = ()
    owner: Owner | None = None
    kept: tuple[bytes, str, float] | None = None


class ClaimModel:
    name = "idempotency claims"

    def start(self) -> World:
        return World()

    # ── what can happen ──────────────────────────────────────────────────────────────────────────────────────────────

    def steps(self, world: World) -> Iterator[tuple[str, World]]:
        yield "a second passes", replace(world, now=world.now + 1)
        if len(world.held) < INSTANCES:
            for print_ in PRINTS:
                yield f"{print_} claims", self._claim(world, print_)
        for token in world.held:
            rest = tuple(other for other in world.held if other != token)
            yield f"{token} renews", self._write(world, token, "renew", LEASE)
            yield f"{token} settles", replace(self._write(world, token, "settle", b"by %d" % token), held=rest)
            yield f"{token} gives back", replace(self._write(world, token, "release"), held=rest)
            yield f"{token} crashes", replace(world, held=rest)

    def _claim(self, world: World, print_: str) -> World:
        store = _store(world)
        claim: Claim = _now(store.claim(KEY, print_, LEASE, TTL))
        step = f"{print_} claims"
        owner, kept, now = world.owner, world.kept, world.now
        if kept is not None and now < kept[2]:
            if print_ == kept[1]:
                promise(claim.kind == "settled" and claim.result == kept[0], "what was settled is replayed", step)
            else:
                promise(claim.kind == "conflict", "another request under a settled key is a conflict", step)
        elif owner is not None and not owner.free and now < owner.lease:
            wanted = "theirs" if print_ == owner.print else "conflict"
            promise(claim.kind == wanted, f"a key that is held is {wanted} to {print_}, not {claim.kind}", step)
        elif owner is not None and not owner.free and print_ != owner.print and now < owner.lease + TTL:
            promise(claim.kind == "conflict", "a lost claim still guards its key against another request", step)
        else:
            promise(claim.kind == "ours", f"a key that nobody holds can be had, it is {claim.kind}", step)
        if claim.kind != "ours":
            return _with(world, store)
        promise(claim.token > world.token, "every token is newer than all before it", step)
        return replace(
            _with(world, store),
            held=(*world.held, claim.token),
            owner=Owner(claim.token, print_, now + LEASE),
            kept=None,
        )

    def _write(self, world: World, token: int, action: str, *given: Any) -> World:
        store = _store(world)
        done: bool = _now(getattr(store, action)(KEY, token, *given))
        owner, step = world.owner, f"{token} {action}s"
        after = _with(world, store)
        if owner is None or owner.token != token or owner.free:
            promise(not done, "a stale token cannot write", step)
            promise((after.claimed, after.finished) == (world.claimed, world.finished), "and changes nothing", step)
            return after
        # Nobody else has taken the key, so an owner whose lease has run out may still write, unless he is forgotten.
        if not done:
            promise(world.now >= owner.lease + TTL, "the owner can write", step)
            return replace(after, owner=replace(owner, free=True))
        if action == "renew":
            return replace(after, owner=replace(owner, lease=world.now + LEASE))
        kept = (given[0], owner.print, world.now + TTL) if action == "settle" else None
        return replace(after, owner=replace(owner, free=True), kept=kept)

    # ── what must hold ───────────────────────────────────────────────────────────────────────────────────────────────

    def check(self, world: World) -> None:
        promise(len(world.claimed) <= 1, "one key has at most one owner")
        for _, entry in world.claimed:
            last = world.owner is not None and entry.token == world.owner.token
            promise(last, "the last who was granted is the owner")
        if world.kept is not None and world.now < world.kept[2]:
            promise([entry.result for _, entry in world.finished] == [world.kept[0]], "what was settled is kept")

    def key(self, world: World) -> Any:
        def entries(of: Iterable[tuple[str, Claimed | Finished]]) -> Any:
            return tuple((e.fingerprint, world.token - e.token, max(e.until - world.now, -TTL)) for _, e in of)

        owner, kept = world.owner, world.kept
        return (
            entries(world.claimed),
            entries(world.finished),
            tuple(sorted(min(world.token - token, INSTANCES) for token in world.held)),
            owner and (world.token - owner.token, owner.print, max(owner.lease - world.now, -TTL), owner.free),
            kept and (kept[1], max(kept[2] - world.now, 0.0)),
        )


def _store(world: World) -> MemoryStore:
    store = MemoryStore(clock=lambda: world.now)
    store._claimed = dict(world.claimed)
    store._finished = OrderedDict(world.finished)
    store._token = world.token
    return store


def _with(world: World, store: MemoryStore) -> World:
    return replace(
        world, claimed=tuple(store._claimed.items()), finished=tuple(store._finished.items()), token=store._token
    )


def _now(action: Coroutine[Any, Any, R]) -> R:
    """The memory store answers at once."""
    try:
        action.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the memory store waited")
