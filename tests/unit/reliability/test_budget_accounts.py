"""Shared budgets: windows, and reservations from all accounts or from none, whatever the order and however many."""

from __future__ import annotations

import math
import random
import threading
import time
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
    excess,
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


NAME, POSITIVE = "give 1 to 512 characters, not all of them blank", "give a positive finite number"


@pytest.mark.parametrize(
    ("fields", "field", "given", "remedy"),
    [
        ({"name": ""}, "budget.name", "", NAME),
        ({"name": "  "}, "budget.name", "  ", NAME),
        ({"name": "n" * 513}, "budget.name", "n" * 513, NAME),
        ({"name": 7}, "budget.name", 7, NAME),
        ({}, "budget", "team", "it limits nothing; give tokens, usd or both"),
        ({"usd": 0}, "budget.usd", 0, POSITIVE),
        ({"usd": -1}, "budget.usd", -1, POSITIVE),
        ({"usd": 1.001e15}, "budget.usd", 1.001e15, POSITIVE),
        ({"usd": float("inf")}, "budget.usd", float("inf"), POSITIVE),
        ({"usd": "50"}, "budget.usd", "50", POSITIVE),
        ({"usd": True}, "budget.usd", True, POSITIVE),
        ({"tokens": 0}, "budget.tokens", 0, POSITIVE),
        ({"tokens": 5, "usd": -1}, "budget.usd", -1, POSITIVE),
        ({"usd": 1, "per": "week"}, "budget.per", "week", "give minute, hour, day or month, or None for ever"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_with_its_field_and_a_way_out(
    fields: dict[str, Any], field: str, given: object, remedy: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Budget(**{"name": "team", **fields})
    assert (caught.value.field, caught.value.given, caught.value.remedy) == (field, given, remedy)


def test_a_budget_of_no_number_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="usd"):
        Budget("team", usd=float("nan"))


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "n", "tokens": 1},
        {"name": "n" * 512, "usd": 0.001},
        {"name": "team", "usd": 1e15},
        *({"name": "team", "usd": 1, "per": per} for per in ("minute", "hour", "day", "month", None)),
    ],
)
def test_a_budget_that_can_be_kept_is_taken_as_it_is(fields: dict[str, Any]) -> None:
    budget = Budget(**fields)
    assert {name: getattr(budget, name) for name in fields} == fields


# ── amounts ──────────────────────────────────────────────────────────────────────────────────────────────────────────

USD = 10**12
"""In picos."""


@pytest.mark.parametrize(
    ("usd", "whole"),
    [(0, 0), (0.5, USD // 2), (0.1 + 0.2, 300_000_000_000), (2e-13, 0), (7e-13, 1)]
    + [(what, None) for what in (None, -0.5, float("inf"), float("nan"))],
)
def test_an_amount_of_dollars_is_so_many_picos_or_unknown(usd: float | None, whole: int | None) -> None:
    assert picos(usd) == whole


def test_a_claim_has_no_negative_tokens() -> None:
    assert [Claim.of(Amount(tokens, 2.0)) for tokens in (-3, 0, 1)] == [(0, 2 * USD), (0, 2 * USD), (1, 2 * USD)]
    assert Claim.of(Amount(1, None)) == (1, None)


MINUTE = Limits(tokens=100, usd=2 * USD, per="minute")
HELD = Account(
    spent_tokens=10,
    spent_usd=USD // 2,
    reserved_tokens=20,
    reserved_usd=USD // 4,
    overrun=False,
    starts=60.0,
    ends=120.0,
)


@pytest.mark.parametrize("now", [60.0, 119.0])
def test_what_is_reserved_is_added_to_what_was(now: float) -> None:
    more = HELD._replace(reserved_tokens=90, reserved_usd=3 * USD // 2)
    assert HELD.reserve(Claim(70, 5 * USD // 4), now, MINUTE) == (more, None)
    assert HELD.reserve(Claim(70, None), now, MINUTE._replace(usd=None)) == (HELD._replace(reserved_tokens=90), None)


def test_an_account_that_is_closed_stays_so_where_only_the_other_unit_is_limited() -> None:
    shut = HELD._replace(overrun=True)
    assert shut.reserve(Claim(), 61, Limits(per="minute")) == (shut, None)


@pytest.mark.parametrize(
    ("changes", "claim", "limits", "refused"),
    [
        ({}, Claim(71, 0), MINUTE, ("tokens", 100, 101, 50, False)),
        ({}, Claim(71, 9 * USD), MINUTE, ("tokens", 100, 101, 50, False)),
        ({}, Claim(0, 3 * USD // 2), MINUTE, ("cost", 2, 2.25, 50, False)),
        ({}, Claim(70, 5 * USD // 4 + 1), MINUTE, ("cost", 2, 2 + 1e-12, 50, False)),
        ({"overrun": True}, Claim(1, 0), MINUTE, ("tokens", 100, 31, 50, True)),
        ({"overrun": True}, Claim(1, 0), MINUTE._replace(tokens=None), ("cost", 2, 0.75, 50, True)),
        ({"spent_tokens": 100}, Claim(1, 0), MINUTE, ("tokens", 100, 121, 50, False)),
        ({"spent_tokens": 101}, Claim(1, 0), MINUTE, ("tokens", 100, 101, 50, False)),
        ({"spent_tokens": 101, "overrun": True}, Claim(1, 0), MINUTE, ("tokens", 100, 101, 50, True)),
        ({"spent_usd": 3 * USD}, Claim(0, 0), MINUTE, ("cost", 2, 3, 50, False)),
        ({"spent_tokens": 101}, Claim(0, 0), MINUTE._replace(per=None), ("tokens", 100, 101, None, False)),
    ],
)
def test_a_refusal_has_the_limit_what_would_have_been_taken_and_when_it_starts_anew(
    changes: dict[str, Any], claim: Claim, limits: Limits, refused: tuple[Any, ...]
) -> None:
    account = HELD._replace(**changes)
    assert account.reserve(claim, 70.0, limits) == (account, refused)


def test_where_nobody_knows_the_price_the_refusal_has_no_sum() -> None:
    account, refused = HELD.reserve(Claim(1, None), 70.0, MINUTE)
    assert refused is not None
    assert account == HELD
    assert (refused.kind, refused.limit, refused.resets_in, refused.overrun) == ("price", 2, 50, False)
    assert math.isnan(refused.actual)


@pytest.mark.parametrize(
    ("claim", "actual", "limits", "over"),
    [
        (Claim(8, USD // 8), Claim(5, USD // 16), MINUTE, None),
        (Claim(8, USD // 8), Claim(8, USD // 8), MINUTE, None),
        (Claim(8, USD // 8), Claim(5, None), MINUTE, None),
        (Claim(8, USD // 8), Claim(9, USD // 4), MINUTE, ("tokens", 8, 9)),
        (Claim(8, USD // 8), Claim(8, USD // 4), MINUTE, ("cost", 0.125, 0.25)),
        (Claim(1, 1), Claim(2, 0), MINUTE, ("tokens", 1, 2)),
        (Claim(1, 1), Claim(1, 2), MINUTE, ("cost", 1e-12, 2e-12)),
        (Claim(0, 0), Claim(9, USD), MINUTE, None),
        (Claim(0, None), Claim(9, USD), MINUTE, None),
        (Claim(8, USD // 8), Claim(9, USD // 4), Limits(tokens=100, per="minute"), ("tokens", 8, 9)),
        (Claim(8, USD // 8), Claim(9, USD // 4), Limits(usd=2 * USD, per="minute"), ("cost", 0.125, 0.25)),
        (Claim(8, USD // 8), Claim(9, USD // 4), Limits(per="minute"), None),
    ],
)
def test_a_settlement_moves_what_was_reserved_to_what_is_spent(
    claim: Claim, actual: Claim, limits: Limits, over: tuple[Any, ...] | None
) -> None:
    reserved = claim.usd or 0
    settled = Account(
        spent_tokens=10 + actual.tokens,
        spent_usd=USD // 2 + (reserved if actual.usd is None else actual.usd),
        reserved_tokens=20 - claim.tokens,
        reserved_usd=USD // 4 - reserved,
        overrun=over is not None,
        starts=60.0,
        ends=120.0,
    )
    assert HELD.settle(claim, actual, 61.0, limits) == (settled, over)
    assert HELD._replace(overrun=True).settle(claim, actual, 61.0, limits)[0].overrun


def test_what_is_left_is_the_limit_without_what_is_spent_and_reserved() -> None:
    assert HELD.left(MINUTE) == (70, 1.25)
    assert HELD.left(Limits()) == (math.inf, math.inf)
    assert HELD._replace(overrun=True).left(MINUTE) == (0, 0)
    assert HELD._replace(overrun=True).left(Limits()) == (0, 0)


@pytest.mark.parametrize(
    ("limits", "tokens", "usd", "passed"),
    [
        ((100, 2.0), 100, 2.0, None),
        ((100, 2.0), 101, 2.0, ("tokens", 100, 101)),
        ((100, 2.0), 100, 2.5, ("cost", 2.0, 2.5)),
        ((100, 2.0), 101, 2.5, ("tokens", 100, 101)),
        ((None, 2.0), 10**9, 2.5, ("cost", 2.0, 2.5)),
        ((100, None), 101, 10.0**9, ("tokens", 100, 101)),
        ((None, None), 10**9, 10.0**9, None),
        ((0, 0.0), 1, 0.0, ("tokens", 0, 1)),
        ((0, 0.0), 0, 1e-12, ("cost", 0, 1e-12)),
        ((0, 0.0), 0, 0.0, None),
        ((100, 0.0), 0, math.nan, None),
    ],
)
def test_an_excess_has_the_limit_that_is_passed_and_what_passes_it(
    limits: tuple[float | None, float | None], tokens: int, usd: float, passed: tuple[str, float, float] | None
) -> None:
    assert excess(*limits, tokens, usd) == passed


@pytest.mark.parametrize(("now", "seconds"), [(60, 60), (119.5, 0.5), (120, 0), (130, 0)])
def test_the_next_window_is_so_many_seconds_away(now: float, seconds: float) -> None:
    assert HELD.resets_in(now, MINUTE) == seconds
    assert HELD.resets_in(now, MINUTE._replace(per=None)) is None


@pytest.mark.parametrize(
    ("now", "account"),
    [
        (60.0, HELD._replace(overrun=True)),
        (119.9, HELD._replace(overrun=True)),
        (120.0, Account(0, 0, 20, USD // 4, False, 120.0, 180.0)),
        (200.0, Account(0, 0, 20, USD // 4, False, 180.0, 240.0)),
        (59.9, HELD._replace(overrun=True, starts=0.0, ends=60.0)),
    ],
)
def test_a_window_goes_on_begins_anew_or_moves_back_with_what_is_spent(now: float, account: Account) -> None:
    assert HELD._replace(overrun=True).at(now, MINUTE) == account


# ── windows ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("per", "now", "starts", "ends"),
    [
        ("minute", "2026-03-01T10:59:59.9", "2026-03-01T10:59:00", "2026-03-01T11:00:00"),
        ("hour", "2026-03-01T10:59:59.9", "2026-03-01T10:00:00", "2026-03-01T11:00:00"),
        ("day", "2026-03-01T00:00:00", "2026-03-01T00:00:00", "2026-03-02T00:00:00"),
        ("month", "2028-02-29T23:59:59", "2028-02-01T00:00:00", "2028-03-01T00:00:00"),
        ("month", "2026-12-31T23:59:59.9", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        ("month", "2026-01-01T00:00:00", "2026-01-01T00:00:00", "2026-02-01T00:00:00"),
    ],
)
def test_a_window_is_aligned_to_utc(per: Any, now: str, starts: str, ends: str) -> None:
    assert window(per, at(now)) == (at(starts), at(ends))


def test_a_month_begins_in_utc_wherever_the_machine_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("TZ", "EAST-14")
            time.tzset()
            assert window("month", at("2026-03-31T12:00")) == (at("2026-03-01T00:00"), at("2026-04-01T00:00"))
    finally:
        time.tzset()


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


def test_a_call_that_ends_as_its_window_does_is_charged_to_the_next() -> None:
    account, _ = HELD.settle(Claim(20, USD // 4), Claim(5, 0), 120.0, MINUTE)
    assert account == Account(5, 0, 0, 0, False, 120.0, 180.0)


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
