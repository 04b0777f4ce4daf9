"""Everything that can happen to the reducers, breadth first, and every way in which a provider can answer one run.

A circuit shared by three instances that call two tools, with lost and late calls, in several configurations; an
account with three attempts at once; a rate limit with two tenants; a retry budget; the claims of an idempotency key
with zombies; the bound on attempts; a circuit that two instances share through a store, over a line that loses requests
and answers. Then defects are planted in the reducers, in memory, one at a time: each must break
a promise.

    sh scripts/prove explore [--depth N] [--states N]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from invariants import account_model, defects, limit_model, retry_budget_model
from invariants.account_model import account_models
from invariants.attempts_model import WAYS
from invariants.circuit_model import circuit_models, unknown_fields
from invariants.claim_model import ClaimModel
from invariants.explore import LEAST_DEPTH, Broken, Exploration, Explored
from invariants.limit_model import limit_models
from invariants.retry_budget_model import retry_budget_models
from invariants.sharing_model import SharingModel, sharing_models
from steer_llm_sdk.reliability import circuit as breaker
from steer_llm_sdk.reliability import rate_limit, retry_budget
from steer_llm_sdk.reliability.budget import Account, Claim
from steer_llm_sdk.reliability.circuit import Circuit, HalfOpen, Open, Outcome
from steer_llm_sdk.reliability.rate_limit import Line
from steer_llm_sdk.reliability.retry import Retry, RetryPolicy
from steer_llm_sdk.reliability.shared import breaker as shared_breaker
from steer_llm_sdk.reliability.shared import cell as shared_cell
from steer_llm_sdk.reliability.shared import circuit as shared_circuit
from steer_llm_sdk.reliability.stores.memory import MemoryStore

PLANTED_DEPTH = 12
PLANTED_STATES = 6_000
SHARED_DEPTH = 7
"""Of what two instances may do there are ten times as many worlds at each step."""

# ── planted defects ──────────────────────────────────────────────────────────────────────────────────────────────────

Defect = Callable[[], Any]
DEFECTS: dict[str, tuple[str, Defect]] = {}
"""By name: which model must notice it, and what plants it."""


def planted(model: str) -> Callable[[Defect], Defect]:
    def note(defect: Defect) -> Defect:
        DEFECTS[defect.__name__.replace("_", " ")] = (model, defect)
        return defect

    return note


@planted("circuit")
def a_stale_report_counts() -> Any:
    whole = Circuit.report

    def report(self: Circuit, permit: Any, *rest: Any, **more: Any) -> Circuit:
        own = self.whole if permit.part is None else self.narrowed.get(permit.part, self.whole)
        return whole(self, replace(permit, generation=own.generation), *rest, **more)

    return patch.object(Circuit, "report", report)


@planted("circuit")
def a_report_finds_its_lane_by_state_and_not_by_generation() -> Any:
    whole = Circuit.report

    def report(self: Circuit, permit: Any, *rest: Any, **more: Any) -> Circuit:
        if permit.part is None and isinstance(self.whole, HalfOpen) and permit.serial and self.whole.probes:
            permit = replace(permit, generation=self.whole.generation, serial=self.whole.probes[0][0])
        return whole(self, permit, *rest, **more)

    return patch.object(Circuit, "report", report)


@planted("circuit")
def a_cancelled_probe_keeps_its_place() -> Any:
    whole = HalfOpen.reported

    def reported(self: HalfOpen, permit: Any, part: str, outcome: Outcome, *rest: Any) -> Any:
        return self if outcome is Outcome.NEUTRAL else whole(self, permit, part, outcome, *rest)

    return patch.object(HalfOpen, "reported", reported)


@planted("circuit")
def a_cancelled_early_probe_keeps_its_place() -> Any:
    whole = Circuit._report_early

    def reported(self: Circuit, lane: Any, permit: Any, part: str, outcome: Outcome, *rest: Any) -> Circuit:
        return self if outcome is Outcome.NEUTRAL else whole(self, lane, permit, part, outcome, *rest)

    return patch.object(Circuit, "_report_early", reported)


@planted("circuit")
def a_cancelled_probe_closes_the_circuit() -> Any:
    whole = HalfOpen.reported

    def reported(self: HalfOpen, permit: Any, part: str, outcome: Outcome, *rest: Any) -> Any:
        return whole(self, permit, part, Outcome.SUCCESS if outcome is Outcome.NEUTRAL else outcome, *rest)

    return patch.object(HalfOpen, "reported", reported)


@planted("circuit")
def a_cancelled_call_counts_as_a_failure() -> Any:
    whole = Circuit.report

    def report(self: Circuit, permit: Any, part: str, outcome: Outcome, *rest: Any, **more: Any) -> Circuit:
        return whole(self, permit, part, Outcome.FAILURE if outcome is Outcome.NEUTRAL else outcome, *rest, **more)

    return patch.object(Circuit, "report", report)


@planted("circuit")
def a_lost_probe_blocks_for_ever() -> Any:
    return patch.object(HalfOpen, "live", lambda self, now: self.probes)


@planted("circuit")
def an_open_circuit_never_probes() -> Any:
    whole = breaker._admit_probe

    def admit(lane: Any, *rest: Any) -> Any:
        return breaker.Refusal(1.0) if isinstance(lane, Open) else whole(lane, *rest)

    return patch.object(breaker, "_admit_probe", admit)


@planted("circuit")
def a_refused_call_still_takes_a_place() -> Any:
    whole = Circuit.admit

    def admit(self: Circuit, part: str, now: float, cfg: Any, **more: Any) -> Any:
        after, answer = whole(self, part, now, cfg, **more)
        if isinstance(answer, breaker.Refusal) and isinstance(after.whole, HalfOpen):
            after = replace(after, whole=replace(after.whole, probes=(*after.whole.probes, (-1, now + 99))))
        return after, answer

    return patch.object(Circuit, "admit", admit)


@planted("opens longer")
def an_open_time_has_no_end_to_its_growth() -> Any:
    return patch.object(breaker, "_open_time", lambda relapses, asked, cfg: cfg.timeout * 2.0**relapses + asked)


@planted("opens longer")
def a_pause_that_was_asked_for_is_forgotten() -> Any:
    return patch.object(breaker, "_open_time", lambda relapses, asked, cfg: cfg.timeout)


@planted("panic")
def panic_admits_again_and_again() -> Any:
    return patch.object(Open, "admits_in_panic", lambda self, now: now < self.until)


@planted("budget")
def what_is_reserved_is_not_set_aside() -> Any:
    """Check, then spend."""
    whole = Account.reserve

    def reserve(self: Account, claim: Claim, now: float, limits: Any) -> Any:
        after, refused = whole(self, claim, now, limits)
        return after._replace(reserved_tokens=self.reserved_tokens, reserved_usd=self.reserved_usd), refused

    return patch.object(Account, "reserve", reserve)


@planted("budget")
def a_settlement_gives_nothing_back() -> Any:
    whole = Account.settle

    def settle(self: Account, claim: Claim, *rest: Any) -> Any:
        after, over = whole(self, claim, *rest)
        return after._replace(reserved_tokens=self.reserved_tokens), over

    return patch.object(Account, "settle", settle)


@planted("budget")
def an_unknown_cost_is_charged_as_nothing() -> Any:
    whole = Account.settle

    def settle(self: Account, claim: Claim, actual: Claim, *rest: Any) -> Any:
        return whole(self, claim, actual._replace(usd=actual.usd or 0), *rest)

    return patch.object(Account, "settle", settle)


@planted("budget")
def more_than_was_reserved_is_cut_to_what_was_reserved() -> Any:
    whole = Account.settle

    def settle(self: Account, claim: Claim, actual: Claim, *rest: Any) -> Any:
        return whole(self, claim, actual._replace(tokens=min(actual.tokens, claim.tokens)), *rest)

    return patch.object(Account, "settle", settle)


@planted("budget")
def an_overrun_stops_nothing() -> Any:
    whole = Account.settle

    def settle(self: Account, *given: Any) -> Any:
        after, over = whole(self, *given)
        return after._replace(overrun=False), over

    return patch.object(Account, "settle", settle)


@planted("by the minute")
def a_new_window_forgets_what_is_under_way() -> Any:
    whole = Account.at

    def at(self: Account, now: float, limits: Any) -> Account:
        after = whole(self, now, limits)
        return after if after.starts == self.starts else after._replace(reserved_tokens=0)

    return patch.object(Account, "at", at)


@planted("rate limit")
def who_comes_goes_before_those_who_wait() -> Any:
    whole = rate_limit.admit

    def admit(state: Any, tokens: float, now: float) -> Any:
        after = whole(state._replace(line=Line()), tokens, now)
        return None if after is None else after._replace(line=state.line)

    return patch.object(rate_limit, "admit", admit)


@planted("rate limit")
def a_pause_that_the_server_wants_is_forgotten() -> Any:
    return patch.object(rate_limit, "block", lambda state, until: state)


@planted("rate limit")
def one_who_gives_up_keeps_his_place() -> Any:
    return patch.object(rate_limit, "withdraw", lambda state, serial: state)


@planted("rate limit")
def a_wake_up_is_lost() -> Any:
    whole = rate_limit.wake_at
    return patch.object(rate_limit, "wake_at", lambda state, now: whole(state, now) if state.requests else math.inf)


@planted("retry budget")
def what_is_too_old_still_counts() -> Any:
    return patch.object(
        retry_budget, "_moved", lambda window, at: ((), window.older_firsts + window.firsts, window.older_extras)
    )


@planted("claims")
def a_zombie_gives_the_key_back() -> Any:
    whole = MemoryStore.release

    async def release(self: MemoryStore, key: str, token: int) -> bool:
        entry = self._claimed.get(key)
        return await whole(self, key, token if entry is None else entry.token)

    return patch.object(MemoryStore, "release", release)


@planted("claims")
def a_token_is_given_twice() -> Any:
    whole = MemoryStore.claim

    async def claim(self: MemoryStore, *given: Any) -> Any:
        self._token = 0
        return await whole(self, *given)

    return patch.object(MemoryStore, "claim", claim)


@planted("claims")
def another_request_is_told_to_wait_where_it_is_a_conflict() -> Any:
    whole = MemoryStore.claim

    async def claim(self: MemoryStore, key: str, fingerprint: str, lease: float, ttl: float) -> Any:
        entry = self._claimed.get(key)
        return await whole(self, key, fingerprint if entry is None else entry.fingerprint, lease, ttl)

    return patch.object(MemoryStore, "claim", claim)


@planted("attempts")
def a_retry_sleeps_after_the_last_attempt() -> Any:
    whole = Retry._delay

    def delay(self: Retry, call: Any, error: Any, waited: float) -> float | None:
        found = whole(self, call, error, waited)
        return 1.0 if found is None and self._policy.allows(error) and call.attempts == call.max_attempts else found

    return patch.object(Retry, "_delay", delay)


@planted("attempts")
def an_invalid_request_is_retried() -> Any:
    return patch.object(RetryPolicy, "allows", lambda self, error: True)


@planted("shared circuit")
def who_was_slower_writes_what_he_had() -> Any:
    def lose(self: Any, tried: int, entry: Any) -> None:
        self.version = entry.version

    return patch.object(shared_cell.Cell, "_lose", lose)


@planted("shared circuit")
def what_is_told_late_is_believed() -> Any:
    return patch.object(shared_cell, "newer", lambda known, entry: entry.text is not None)


@planted("shared circuit")
def who_is_alone_counts_as_the_store_does() -> Any:
    def parted(shared: Any, time: int) -> Any:
        return shared._replace(alone=shared_circuit.Alone({}))

    return patch.object(shared_breaker, "parted", parted)


@planted("shared circuit")
def who_comes_back_overwrites_what_stands_there() -> Any:
    return patch.object(shared_breaker, "rejoined", lambda stored, local, now: local._replace(alone=None))


@planted("shared circuit")
def what_failed_while_alone_is_forgotten() -> Any:
    return patch.object(shared_breaker, "rejoined", lambda stored, local, now: stored)


@planted("shared circuit")
def a_probe_of_one_that_is_alone_answers_for_the_stores() -> Any:
    whole = shared_breaker.parted

    def parted(shared: Any, time: int) -> Any:
        local = whole(shared, time)
        return local._replace(circuit=replace(local.circuit, serial=shared.circuit.serial))

    return patch.object(shared_breaker, "parted", parted)


@planted("shared circuit")
def a_probe_is_admitted_by_who_knows_of_no_other() -> Any:
    whole = shared_cell.Cell._make

    async def make(self: Any, pending: Any) -> None:
        if any(isinstance(step, shared_circuit.Admission) for step, _ in pending):
            self._alone(pending)
        else:
            await whole(self, pending)

    return patch.object(shared_cell.Cell, "_make", make)


for model, defect in (
    ("circuit", defects.half_open_admits_everybody),
    ("rate limit", defects.the_end_of_a_call_frees_no_place),
    ("retry budget", defects.a_retry_budget_never_refuses),
    ("claims", defects.a_key_that_is_held_is_taken),
    ("claims", defects.a_zombie_settles),
    ("attempts", defects.the_bound_on_all_attempts_is_forgotten),
    ("attempts", defects.what_the_server_asked_for_is_ignored),
):
    planted(model)(defect)


# ── the search ───────────────────────────────────────────────────────────────────────────────────────────────────────


def models() -> list[Any]:
    found = [*circuit_models(), *account_models(), *limit_models(), *retry_budget_models(), ClaimModel()]
    return [*found, *sharing_models()]


def search(depth: int, states: int | None, only: str = "") -> Iterator[Explored]:
    return (
        Exploration(model).run(depth, states, SHARED_DEPTH if isinstance(model, SharingModel) else LEAST_DEPTH)
        for model in models()
        if only in model.name
    )


def ways(only: str = "") -> Mapping[str, int | str]:
    found: dict[str, int | str] = {}
    for name, count in WAYS.items():
        try:
            found[name] = count() if only in name else 0
        except Broken as broken:
            found[name] = f"{broken} ({'; '.join(broken.__notes__)})"
    return found


def noticed(model: str) -> str | None:
    """The first promise that is broken now."""
    if model == "attempts":
        return next((text for text in ways().values() if isinstance(text, str)), None)
    return next(
        (found.broken for found in search(PLANTED_DEPTH, PLANTED_STATES, model) if found.broken is not None), None
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--depth", type=int, default=60, help="steps; a model that has no more worlds stops by itself")
    options.add_argument("--states", type=int, default=30_000, help="a level that is begun beyond so many is the last")
    given = options.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    started = time.monotonic()
    known = (account_model, limit_model, retry_budget_model)
    holds = not unknown_fields() and not any(model.unknown_fields() for model in known)
    print(f"{'model':<52}{'states':>9}{'steps':>10}{'depth':>7}")
    for found in search(given.depth, given.states):
        print(f"{found.name:<52}{found.states:>9}{found.steps:>10}{found.depth:>7}  {found.broken or 'all hold'}")
        for step in found.way:
            print(f"    {step}")
        holds = holds and found.broken is None
    for name, count in ways().items():
        print(f"{name:<52}{count:>9} ways")
        holds = holds and isinstance(count, int)
    print(f"in {time.monotonic() - started:.0f} s\n")
    caught = 0
    for name, (model, defect) in DEFECTS.items():
        with defect():
            broken = noticed(model)
        caught += broken is not None
        print(f"planted: {name}: {broken or 'NOT NOTICED'}")
    print(f"caught/planted: {caught}/{len(DEFECTS)}")
    return 0 if holds and caught == len(DEFECTS) else 1


if __name__ == "__main__":
    sys.exit(main())
