"""The promises that every run of a whole system is held to. `simulate(seed)` plays one and says which it broke.

While it runs, every permit and every reservation is watched; afterwards what the callers got is compared with what the
providers saw.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from unittest.mock import patch

from invariants.scenario import LENGTH, TEAM, Scenario, drawn
from invariants.world import Ran, Sent, World, play
from steer_llm_sdk.errors import ConflictError
from steer_llm_sdk.reliability.budget import Ledger
from steer_llm_sdk.reliability.circuit import Circuit, HalfOpen, Open, Outcome
from steer_llm_sdk.reliability.circuit_breaker import CircuitBreaker
from steer_llm_sdk.reliability.retry_budget import RetryBudget
from steer_llm_sdk.reliability.stores.memory import MemoryStore
from steer_llm_sdk.testing import Deadlock, run_in_virtual_time

GRACE = 0.05
"""Seconds by which a run may come back after its deadline."""
TINY = 1e-6


@dataclass(frozen=True)
class Simulated:
    """`broken` is empty where every promise holds."""

    seed: int
    runs: int
    calls: int
    broken: tuple[str, ...]
    log: tuple[str, ...]


def simulate(seed: int) -> Simulated:
    """Play the scenario of a seed, in the order of events of that seed."""
    scenario = drawn(seed)
    watch = Watch()
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with watch.watching():
            world = run_in_virtual_time(play(scenario), seed=seed)
    except (Deadlock, TimeoutError):
        return Simulated(seed, 0, 0, ("a run never ends",), ())
    finally:
        logging.disable(level)
    broken = [*watch.broken, *watch.at_the_end(), *_afterwards(world)]
    return Simulated(seed, len(world.ran), len(world.sent), tuple(broken), tuple(world.log))


# ── while it runs ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Watch:
    broken: list[str] = field(default_factory=list)
    probes: dict[Any, dict[int, float]] = field(default_factory=dict)
    """Under way: by breaker, part and generation, then by serial: the end of the lease."""
    reserved: Counter[int] = field(default_factory=Counter)
    ledgers: dict[int, Ledger] = field(default_factory=dict)
    breakers: dict[int, CircuitBreaker] = field(default_factory=dict)
    budgets: dict[int, RetryBudget] = field(default_factory=dict)
    firsts: dict[Any, list[float]] = field(default_factory=dict)
    extras: dict[Any, list[float]] = field(default_factory=dict)

    @contextmanager
    def watching(self) -> Iterator[None]:
        with (
            patch.object(CircuitBreaker, "admit", self._admit(CircuitBreaker.admit)),
            patch.object(CircuitBreaker, "report", self._report(CircuitBreaker.report)),
            patch.object(Ledger, "reserve", self._reserve(Ledger.reserve)),
            patch.object(Ledger, "settle", self._settle(Ledger.settle)),
            patch.object(MemoryStore, "settle", self._write(MemoryStore.settle)),
            patch.object(RetryBudget, "first", self._first(RetryBudget.first)),
            patch.object(RetryBudget, "draw", self._draw(RetryBudget.draw)),
        ):
            yield

    def _say(self, what: str) -> None:
        self.broken.append(f"{what}, at {asyncio.get_running_loop().time():.4f}")

    def _admit(self, admit: Any) -> Any:
        def watched(breaker: CircuitBreaker, part: str, deadline: Any = None) -> Any:
            permit = admit(breaker, part, deadline)
            if not permit.serial:
                return permit
            now, lease = asyncio.get_running_loop().time(), breaker.config.lease
            within = deadline.remaining() if deadline is not None and deadline.firm else lease
            self.breakers[id(breaker)] = breaker
            lane = self.probes.setdefault((id(breaker), permit.part, permit.generation), {})
            lane[permit.serial] = now + min(lease, within)
            if sum(end > now for end in lane.values()) > breaker.config.half_open_requests:
                self._say(f"more live probes of {breaker.name} than {breaker.config.half_open_requests}")
            return permit

        return watched

    def _report(self, report: Any) -> Any:
        def watched(breaker: CircuitBreaker, permit: Any, part: str, outcome: Outcome, *rest: Any) -> Any:
            lane = self.probes.get((id(breaker), permit.part, permit.generation), {})
            if permit.serial and lane.pop(permit.serial, None) is None:
                self._say(f"a probe of {breaker.name} has reported twice")
            before, was = breaker._circuit, breaker.get_state()
            tally = before.tally.copy()
            said = report(breaker, permit, part, outcome, *rest)
            after = breaker._circuit
            own = before.whole if permit.part is None else before.narrowed.get(permit.part)
            stale = own is None or own.generation != permit.generation
            if stale and (after != before or after.tally != tally):
                self._say(f"a report from an earlier generation moved {breaker.name}")
            if permit.serial and permit.serial in _under_way(after):
                self._say(f"a probe of {breaker.name} has ended and keeps its place")
            if outcome is Outcome.NEUTRAL and (breaker.get_state() != was or after.tally != tally):
                self._say(f"a call that says nothing moved {breaker.name}")
            return said

        return watched

    def _reserve(self, reserve: Any) -> Any:
        def watched(ledger: Ledger, worst: Any) -> Any:
            self.ledgers[id(ledger)] = ledger
            held = reserve(ledger, worst)
            self.reserved[id(ledger)] += 1
            self._check(ledger)
            return held

        return watched

    def _settle(self, settle: Any) -> Any:
        def watched(ledger: Ledger, *given: Any) -> Any:
            overruns = settle(ledger, *given)
            self.reserved[id(ledger)] -= 1
            if overruns:
                self._say("a call that took no more than its worst case is told as more")
            self._check(ledger)
            return overruns

        return watched

    def _write(self, settle: Any) -> Any:
        async def watched(store: MemoryStore, key: str, token: int, result: bytes) -> bool:
            entry = store._claimed.get(key)
            done: bool = await settle(store, key, token, result)
            if done and (entry is None or entry.token != token):
                self._say(f"a zombie wrote to {key}")
            return done

        return watched

    def _first(self, first: Any) -> Any:
        def watched(budget: RetryBudget, target: str, *when: float) -> None:
            self.firsts.setdefault((id(budget), target), []).append(asyncio.get_running_loop().time())
            first(budget, target, *when)

        return watched

    def _draw(self, draw: Any) -> Any:
        """A slice of the window may have gone already, so the extra attempts are counted over nine tenths of it."""

        def watched(budget: RetryBudget, target: str) -> bool:
            allowed: bool = draw(budget, target)
            self.budgets[id(budget)] = budget  # It must outlive its id.
            key, now, cfg = (id(budget), target), asyncio.get_running_loop().time(), budget._config
            if allowed:
                extras = self.extras.setdefault(key, [])
                extras.append(now)
                firsts = sum(at > now - cfg.window for at in self.firsts.get(key, ()))
                if sum(at > now - 0.9 * cfg.window for at in extras) > cfg.minimum + cfg.ratio * firsts:
                    self._say(f"more extra attempts at {target} than the retry budget has")
            return allowed

        return watched

    def _check(self, ledger: Ledger) -> None:
        if ledger.tokens_left < 0 or ledger.cost_left < -TINY:
            self._say("spent + reserved > limit")

    def at_the_end(self) -> Iterator[str]:
        for (breaker_id, _, _), lane in self.probes.items():
            if lane:
                yield f"{len(lane)} permits of {self.breakers[breaker_id].name} were not given back"
        for ledger_id, left in self.reserved.items():
            ledger = self.ledgers[ledger_id]
            if left or ledger.reserved_tokens or abs(ledger.reserved_cost) > TINY:
                yield f"{left} reservations were not settled"


def _under_way(circuit: Circuit) -> set[int]:
    """The serials of the probes for which a place is kept."""
    lanes = (circuit.whole, *circuit.narrowed.values())
    early = {lane.early[0] for lane in lanes if isinstance(lane, Open) and lane.early is not None}
    return early | {serial for lane in lanes if isinstance(lane, HalfOpen) for serial, _ in lane.probes}


# ── afterwards ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _afterwards(world: World) -> Iterator[str]:
    sent_by: dict[int, list[Sent]] = {}
    for call in world.sent:
        sent_by.setdefault(call.run, []).append(call)
    for ran in world.ran:
        for what in _of_one_run(world.scenario, ran, sent_by.get(ran.plan.number, [])):
            yield f"run {ran.plan.number}: {what}"
    yield from _of_keys(world, sent_by)
    yield from (line for line in world.log if "not well again" in line)
    if world.left:
        yield f"{world.left} tasks were left behind"
    yield from _of_breakers(world)
    yield from _of_limits(world)
    yield from _of_the_team(world)


def _of_one_run(scenario: Scenario, ran: Ran, calls: list[Sent]) -> Iterator[str]:
    options, config = ran.plan.options, scenario.configs[ran.plan.orchestrator]
    keyed = "idempotency_key" in options
    timeout = options.get("timeout_ms", math.inf) / 1000
    if ran.end > ran.start + timeout + GRACE:
        yield f"came back {ran.end - ran.start - timeout:.3f} s after its deadline"
    after = ran.plan.cancel_after
    # Work in the caller's own task cannot be left behind, so there a deaf call holds whoever cancels it.
    held = not {"timeout_ms", "per_agent_timeout_ms", "idempotency_key"} & options.keys() and any(
        call.cancelled_at is not None and call.outcome != "cancelled" for call in calls
    )
    if after is not None and not held and ran.end > ran.start + after + GRACE:
        yield f"came back {ran.end - ran.start - after:.3f} s after it was cancelled"
    if len(calls) > config.max_total_attempts:
        yield f"{len(calls)} calls; at most {config.max_total_attempts}"
    most = 1 + options.get("max_retries", config.retry_policy.max_attempts - 1)
    if any(count > most for count in Counter(call.tool for call in calls).values()):
        yield f"more than {most} calls of one tool"
    if not keyed:  # The work of a key goes on while somebody waits for it.
        if any(call.start >= ran.start + timeout for call in calls):
            yield "an attempt started after the deadline"
        if after is not None and any(call.start > ran.start + after for call in calls):
            yield "an attempt started after it was cancelled"
        yield from _of_what_it_got(ran, calls)
    budget = options.get("budget", {})
    if sum(call.tokens for call in calls) > budget.get("tokens", math.inf):
        yield "more tokens were used than the budget has"
    if sum(call.cost_usd for call in calls) > budget.get("cost_usd", math.inf) + TINY:
        yield "more was spent than the budget has"
    if config.hedging is None:  # Hedges come beside each other, and not after what the server asked for.
        yield from _of_waits(calls, config.retry_policy.max_delay)


def _of_what_it_got(ran: Ran, calls: list[Sent]) -> Iterator[str]:
    answers = [f"answer {call.number}" for call in calls if call.outcome == "answered"]
    if ran.output is None:
        return
    if ran.output.status == "succeeded" and ran.output.content not in answers:
        yield "an answer that nobody gave it"
    if ran.output.status == "failed" and answers and not any(call.cancelled_at for call in calls):
        yield "an answer was paid for and lost"
    if len(ran.output.attempts) != len(calls):
        yield f"{len(ran.output.attempts)} attempts are told, {len(calls)} were made"
    usage = sum(call.tokens for call in calls if call.cancelled_at is None)
    if ran.output.usage.get("total_tokens", 0) < usage:
        yield "usage that was paid for is not told"


def _of_waits(calls: list[Sent], longest: float) -> Iterator[str]:
    for tool in {call.tool for call in calls}:
        for before, after in pairwise([call for call in calls if call.tool == tool]):
            if before.end is None or (before.cancelled_at is None and after.start < before.end):
                yield f"{tool} was asked twice at once"
            elif before.cancelled_at is None and before.outcome in ("400", "answered"):
                yield f"asked again after {before.outcome}"
            elif before.asked is not None and before.asked > longest:
                yield f"asked again where the server wants {before.asked:g} s, more than {longest:g}"
            elif before.asked is not None and after.start < before.end + before.asked - TINY:
                yield f"asked again {before.end + before.asked - after.start:.3f} s earlier than the server wants"


def _of_keys(world: World, sent_by: dict[int, list[Sent]]) -> Iterator[str]:
    """One piece of work for each key at a time, and none after an answer; one answer for all; one request for each."""
    by_key: dict[str, list[Ran]] = {}
    for ran in world.ran:
        if "idempotency_key" in ran.plan.options:
            by_key.setdefault(ran.plan.options["idempotency_key"], []).append(ran)
    for key, runs in by_key.items():
        good = [ran for ran in runs if ran.succeeded]
        if any(isinstance(ran.error, ConflictError) for ran in runs) and len({ran.plan.asks for ran in runs}) == 1:
            yield f"{key}: a conflict, though all ask the same"
        if world.scenario.store_faults:
            continue  # Such a store may forget; that no zombie writes to it is watched.
        if len({ran.plan.asks for ran in good}) > 1:
            yield f"{key}: two different requests were both answered"
        if len({repr(ran.output.content) for ran in good if ran.output is not None}) > 1:
            yield f"{key}: one key has two answers"
        yield from _of_work(key, [(ran, sent_by.get(ran.plan.number, [])) for ran in runs], good)


def _of_work(key: str, work: list[tuple[Ran, list[Sent]]], good: list[Ran]) -> Iterator[str]:
    # A deaf call goes on after it was cancelled; the work is over for the library then.
    spans = sorted(
        (call.start, call.cancelled_at or call.end or math.inf, ran.plan.number)
        for ran, calls in work
        for call in calls
    )
    for (_, end, one), (start, _, other) in pairwise(spans):
        if one != other and start < end - TINY:
            yield f"{key}: runs {one} and {other} work at the same time"
    # Work goes on while somebody waits for it, and no longer.
    waits = [(ran.start, ran.end + GRACE) for ran, _ in work]
    if any(not any(since <= start <= until for since, until in waits) for start, _, _ in spans):
        yield f"{key}: a call was made for nobody"
    first = min((ran.end for ran in good), default=math.inf)
    if any(start > first + TINY for start, _, _ in spans):
        yield f"{key}: work was done again after its answer was there"


def _of_breakers(world: World) -> Iterator[str]:
    for n, orchestrator in enumerate(world.orchestrators):
        for name, stats in orchestrator.breakers.items():
            calls = [call for call in world.sent if call.orchestrator == n and call.provider == name]
            blamed = [call for call in calls if call.outcome in ("503", "500", "reset", "silence")]
            timed_out = [call for call in calls if call.cancelled_at is not None]
            if not len(blamed) - len(timed_out) <= stats["failures"] <= len(blamed) + len(timed_out):
                yield f"breaker {name} of {n} counts {stats['failures']} failures, the provider {len(blamed)}"
            if sum(call.start < LENGTH for call in calls) and stats["state"] != "closed":
                yield f"breaker {name} of {n} is {stats['state']} though the provider is well"


def _of_limits(world: World) -> Iterator[str]:
    """At most so many calls at once, and in any minute no more than a full bucket and what it gains meanwhile."""
    for n, config in enumerate(world.scenario.configs):
        for name, limit in config.rate_limits.items():
            calls = [call for call in world.sent if call.orchestrator == n and call.provider == name]
            for call in calls:
                # Whoever is deaf to his cancellation is left behind, and no longer counted.
                at_once = sum(
                    other.start <= call.start < (other.cancelled_at or other.end or math.inf) for other in calls
                )
                if limit.max_concurrent is not None and at_once > limit.max_concurrent:
                    yield f"{at_once} calls of {n} to {name} at once at {call.start:.4f}; {limit.max_concurrent} may be"
            times = [call.start for call in calls]
            most = 2 * (limit.requests_per_minute or math.inf)
            if any(sum(start <= at < start + 60 for at in times) > most for start in times):
                yield f"more than {most:g} calls of {n} to {name} in a minute"


def _of_the_team(world: World) -> Iterator[str]:
    """What the runs with the shared budget have used, by the minute in which the calls ended."""
    members = {ran.plan.number for ran in world.ran if "budgets" in ran.plan.options}
    spent: Counter[int] = Counter()
    for call in world.sent:
        if call.run in members and call.end is not None:
            spent[int(call.end // 60)] += call.tokens
    for minute, tokens in spent.items():
        if tokens > (TEAM.tokens or 0):
            yield f"the team used {tokens} tokens in minute {minute}; it has {TEAM.tokens}"
