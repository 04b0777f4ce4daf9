"""Shared budgets: windows, and reservations from all accounts or from none, whatever the order and however many."""

from __future__ import annotations

import random
import threading
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.reliability.budget import (
    Account,
    Budget,
    BudgetAccounts,
    Claim,
    Ledger,
    Limits,
    Reservation,
    picos,
    window,
)


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# ── the value ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "  "}, "name"),
        ({"name": 7}, "name"),
        ({}, "budget"),
        ({"usd": 0}, "usd"),
        ({"usd": -1}, "usd"),
        ({"usd": float("nan")}, "usd"),
        ({"usd": float("inf")}, "usd"),
        ({"usd": "50"}, "usd"),
        ({"usd": True}, "usd"),
        ({"tokens": 0}, "tokens"),
        ({"usd": 1, "per": "week"}, "per"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_by_the_name_of_its_field(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        Budget(**{"name": "team", **given})


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("per", "now", "starts", "ends"),
    [
        ("minute", "2026-03-01T10:59:59.9", "2026-03-01T10:59:00", "2026-03-01T11:00:00"),
        ("hour", "2026-03-01T10:59:59.9", "2026-03-01T10:00:00", "2026-03-01T11:00:00"),
        ("day", "2026-03-01T00:00:00", "2026-03-01T00:00:00", "2026-03-02T00:00:00"),
        ("month", "2028-02-29T23:59:59", "2028-02-01T00:00:00", "2028-03-01T00:00:00"),
        ("month", "2026-12-31T23:59:59", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        ("month", "2026-01-01T00:00:00", "2026-01-01T00:00:00", "2026-02-01T00:00:00"),
    ],
)
def test_a_window_is_aligned_to_utc(per: Any, now: str, starts: str, ends: str) -> None:
    assert window(per, at(now)) == (at(starts), at(ends))


@given(st.sampled_from(["minute", "hour", "day", "month"]), st.floats(0, 4e9))
def test_every_instant_lies_in_one_window_and_the_next_begins_where_it_ends(per: Any, now: float) -> None:
    starts, ends = window(per, now)
    assert starts <= now < ends
    assert window(per, starts) == (starts, ends)
    assert window(per, ends)[0] == ends


DAY = Limits(tokens=100, per="day")


def test_a_new_window_begins_with_nothing_spent_and_what_is_under_way_is_charged_to_it() -> None:
    account, _ = Account().reserve(Claim(60), at("2026-03-01T23:00"), DAY)
    account, _ = account.settle(Claim(60), Claim(50), at("2026-03-01T23:10"), DAY)
    account, refused = account.reserve(Claim(40), at("2026-03-01T23:30"), DAY)
    assert refused is None
    _, refused = account.reserve(Claim(20), at("2026-03-01T23:59"), DAY)
    assert refused is not None
    assert (refused.actual, refused.resets_in) == (110, 60)
    account, refused = account.reserve(Claim(60), at("2026-03-02T00:00"), DAY)
    assert refused is None
    assert (account.spent_tokens, account.reserved_tokens) == (0, 100)
    account, _ = account.settle(Claim(40), Claim(30), at("2026-03-02T00:01"), DAY)
    assert (account.spent_tokens, account.reserved_tokens) == (30, 60)


def test_an_overrun_closes_its_window_and_not_the_next() -> None:
    account, _ = Account().reserve(Claim(10), at("2026-03-01T12:00"), DAY)
    account, overrun = account.settle(Claim(10), Claim(11), at("2026-03-01T12:01"), DAY)
    assert overrun == ("tokens", 10, 11)
    _, refused = account.reserve(Claim(1), at("2026-03-01T23:59"), DAY)
    assert refused is not None
    assert refused.overrun
    _, refused = account.reserve(Claim(100), at("2026-03-02T00:00"), DAY)
    assert refused is None


def test_a_clock_that_is_put_back_gives_nothing_back() -> None:
    account, _ = Account().reserve(Claim(90), at("2026-03-05T12:00"), DAY)
    account, _ = account.settle(Claim(90), Claim(90), at("2026-03-05T12:00"), DAY)
    account, refused = account.reserve(Claim(20), at("2026-03-01T12:00"), DAY)
    assert refused is not None
    assert refused.resets_in == 12 * 3600
    _, refused = account.reserve(Claim(20), at("2026-03-02T00:00"), DAY)
    assert refused is None


def test_without_a_window_nothing_starts_anew() -> None:
    account, refused = Account(spent_tokens=100).reserve(Claim(1), 1e12, Limits(tokens=100))
    assert refused is not None
    assert refused.resets_in is None
    assert account.spent_tokens == 100


# ── accounts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_is_one_account_and_other_numbers_are_refused() -> None:
    accounts = BudgetAccounts()
    (first,) = accounts.open([Budget("team", usd=50, per="day")])
    assert accounts.open([Budget("team", usd=50, per="day")]) == (first,)
    with pytest.raises(InvalidRequest, match="its name is taken by Budget") as caught:
        accounts.open([Budget("other", usd=1), Budget("team", usd=60, per="day")])
    assert "usd=50" in str(caught.value)
    assert list(accounts.view()) == ["team"], "nothing half-opened"


def test_what_one_account_refuses_is_reserved_from_none() -> None:
    accounts = BudgetAccounts()
    shared = accounts.open([Budget("big", usd=100), Budget("small", usd=1), Budget("count", tokens=10)])
    ledger = Ledger(tokens=1000, accounts=accounts, shared=shared)
    before = accounts.view()
    with pytest.raises(BudgetExceeded, match="cost budget 'small' exceeded: 2 > 1") as caught:
        ledger.reserve(Amount(5, 2.0))
    assert (caught.value.budget, caught.value.resets_in) == ("small", None)
    with pytest.raises(BudgetExceeded, match="tokens budget 'count' exceeded: 11 > 10"):
        ledger.reserve(Amount(11, 0.5))
    with pytest.raises(InvalidRequest, match=r"budgets\.big\.usd"):
        ledger.reserve(Amount(5, None))
    with pytest.raises(BudgetExceeded, match="tokens budget exceeded"):
        ledger.reserve(Amount(1001, 0.5))
    assert accounts.view() == before
    assert (ledger.reserved_tokens, ledger.reserved_cost) == (0, 0)
    assert (ledger.tokens_left, ledger.cost_left) == (10, 1)


def test_the_view_says_limit_spent_reserved_and_when_it_starts_anew() -> None:
    clock = Clock(at("2026-03-01T23:00"))
    accounts = BudgetAccounts(clock)
    ledger = Ledger(accounts=accounts, shared=accounts.open([Budget("team", usd=50, per="day")]))
    ledger.reserve(Amount(10, 1.5)).settle(Amount(8, 1.25))
    ledger.reserve(Amount(10, 1.5))
    seen = {
        "limit": {"tokens": None, "usd": 50},
        "spent": {"tokens": 8, "usd": 1.25},
        "reserved": {"tokens": 10, "usd": 1.5},
        "resets_in": 3600,
        "overrun": False,
    }
    assert accounts.view() == {"team": seen}
    clock.now += 3600
    assert accounts.view() == {"team": {**seen, "spent": {"tokens": 0, "usd": 0}, "resets_in": 86400}}


def test_an_overrun_of_a_shared_budget_stops_everybody_until_it_is_opened_again() -> None:
    accounts = BudgetAccounts()
    shared = accounts.open([Budget("team", tokens=1000), Budget("dollars", usd=10)])
    one, other = (Ledger(accounts=accounts, shared=shared) for _ in range(2))
    assert one.reserve(Amount(10, 0.1)).settle(Amount(20, 0.1)) == {"team": ("tokens", 10, 20)}
    with pytest.raises(BudgetExceeded, match="tokens budget 'team' closed: a call took more than was reserved"):
        other.reserve(Amount(1, 0.0))
    assert {name: account["overrun"] for name, account in accounts.view().items()} == {"team": True, "dollars": False}
    assert one.exceeded is None, "the limit was not passed"
    accounts.reopen("team")
    other.reserve(Amount(1, 0.0))
    assert accounts.view()["team"]["spent"]["tokens"] == 20
    with pytest.raises(KeyError):
        accounts.reopen("nobody")


def test_the_run_that_takes_a_budget_beyond_its_limit_is_told_and_the_others_are_not() -> None:
    accounts = BudgetAccounts(Clock(30))
    shared = accounts.open([Budget("team", tokens=100, per="minute")])
    guilty, innocent = (Ledger(accounts=accounts, shared=shared) for _ in range(2))
    under_way, other = guilty.reserve(Amount(10)), innocent.reserve(Amount(10))
    under_way.settle(Amount(110))
    other.settle(Amount(10))
    assert str(guilty.exceeded) == "tokens budget 'team' exceeded: 110 > 100; it starts anew in 30 s"
    assert innocent.exceeded is None


def test_threads_that_share_a_budget_never_pass_it() -> None:
    accounts = BudgetAccounts()
    shared = accounts.open([Budget("team", tokens=1000), Budget("all", tokens=700)])
    admitted: list[int] = []

    def work(seed: int) -> None:
        ledger, dice = Ledger(accounts=accounts, shared=shared), random.Random(seed)
        for _ in range(300):
            try:
                held = ledger.reserve(Amount(dice.randint(1, 9)))
            except BudgetExceeded:
                continue
            held.settle(Amount(1))
            admitted.append(1)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    view = accounts.view()
    assert [view[name]["spent"]["tokens"] for name in ("team", "all")] == [len(admitted)] * 2
    assert [view[name]["reserved"]["tokens"] for name in ("team", "all")] == [0, 0]
    assert 690 <= len(admitted) <= 700


# ── any order of everything ──────────────────────────────────────────────────────────────────────────────────────────


class Held(NamedTuple):
    reservation: Reservation
    worst: Amount
    names: tuple[str, ...]


class SharedByRuns(RuleBasedStateMachine):
    """Three runs, two shared budgets, one of them by the hour; no call takes more than was reserved for it."""

    open = Bundle("open")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock(at("2026-03-01T12:00"))
        self.accounts = BudgetAccounts(self.clock)
        self.budgets = {
            "hourly": Budget("hourly", tokens=1000, usd=1.0, per="hour"),
            "ever": Budget("ever", tokens=3000),
        }
        each = [("hourly",), ("ever",), ("hourly", "ever")]
        self.runs = [
            (Ledger(1500, None, self.accounts, self.accounts.open([self.budgets[n] for n in names])), names)
            for names in each
        ]
        self.reserved: list[Held] = []
        self.spent = {name: Claim() for name in self.budgets}

    @rule(target=open, run=st.integers(0, 2), tokens=st.integers(0, 700), cost=st.floats(0, 0.7))
    def reserve(self, run: int, tokens: int, cost: float) -> Any:
        ledger, names = self.runs[run]
        before = self.accounts.view()
        worst = Amount(tokens, cost)
        room = picos(ledger.cost_left)  # None: infinite
        if tokens > ledger.tokens_left or (room is not None and Claim.of(worst).usd > room):
            with pytest.raises(BudgetExceeded):
                ledger.reserve(worst)
            assert self.accounts.view() == before
            return multiple()
        held = Held(ledger.reserve(worst), worst, names)
        self.reserved.append(held)
        return held

    @rule(held=consumes(open), share=st.floats(0, 1), times=st.integers(1, 2))
    def settle(self, held: Held, share: float, times: int) -> None:
        actual = Amount(int(held.worst.tokens * share), (held.worst.cost_usd or 0) * share)
        for _ in range(times):
            held.reservation.settle(actual)
        self.reserved.remove(held)
        for name in held.names:
            spent, more = self.spent[name], Claim.of(actual)
            self.spent[name] = Claim(spent.tokens + more.tokens, (spent.usd or 0) + (more.usd or 0))

    @rule(seconds=st.sampled_from([1, 600, 3600, 90_000]))
    def time_passes(self, seconds: float) -> None:
        before = window("hour", self.clock.now)
        self.clock.now += seconds
        if window("hour", self.clock.now) != before:
            self.spent["hourly"] = Claim()

    @invariant()
    def spent_and_reserved_stay_within_every_limit(self) -> None:
        for name, account in self.accounts.view().items():
            budget = self.budgets[name]
            assert account["spent"]["tokens"] + account["reserved"]["tokens"] <= budget.tokens
            if budget.usd is not None:
                assert picos(account["spent"]["usd"] + account["reserved"]["usd"]) <= picos(budget.usd)

    @invariant()
    def the_sums_are_those_of_all_settlements_of_the_window_and_all_open_reservations(self) -> None:
        for name, account in self.accounts.view().items():
            held = [each.worst for each in self.reserved if name in each.names]
            assert account["spent"]["tokens"] == self.spent[name].tokens
            assert picos(account["spent"]["usd"]) == self.spent[name].usd
            assert account["reserved"]["tokens"] == sum(worst.tokens for worst in held)
            assert picos(account["reserved"]["usd"]) == sum(picos(worst.cost_usd) or 0 for worst in held)


TestSharedByRuns = SharedByRuns.TestCase


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(0, 200)),
        min_size=1,
        max_size=12,
    )
)
def test_what_passes_a_limit_was_under_way_when_the_first_call_took_too_much(calls: list[tuple[int, int]]) -> None:
    """One call at a time: after the first that takes more than was reserved, nobody is admitted."""
    account, limits, lied = Account(), Limits(tokens=300), False
    for worst, actual in calls:
        account, refused = account.reserve(Claim(worst), 0.0, limits)
        assert not (lied and refused is None)
        if refused is None:
            before = account.spent_tokens
            account, overrun = account.settle(Claim(worst), Claim(actual), 0.0, limits)
            assert account.spent_tokens == before + actual, "charged in full"
            assert (overrun is not None) == (actual > worst)
            lied = lied or actual > worst
    assert account.overrun is lied
    assert lied or account.spent_tokens <= 300
    assert account.reserved_tokens == 0
