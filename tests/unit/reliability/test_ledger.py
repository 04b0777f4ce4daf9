"""The ledger: spent + reserved stays within the limit, and what goes in comes out."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from steer_llm_sdk.errors import BudgetExceeded, ConnectionFailed, InvalidRequest, ProviderError, ProviderTimeout
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.reliability.budget import Ledger, Overrun, Reservation, charge_of_failure, picos


class Held(NamedTuple):
    reservation: Reservation
    worst: Amount


class WithinReservations(RuleBasedStateMachine):
    """No call takes more than was reserved for it."""

    open = Bundle("open")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(tokens=1000, cost_usd=1.0)
        self.settled: list[Amount] = []
        self.reserved: list[Held] = []

    @rule(target=open, tokens=st.integers(0, 700), cost=st.floats(0, 0.7))
    def reserve(self, tokens: int, cost: float) -> Any:
        worst = Amount(tokens, cost)
        before = (self.ledger.tokens_left, self.ledger.cost_left)
        if tokens > before[0] or picos(cost) > picos(before[1]):
            with pytest.raises(BudgetExceeded) as refused:
                self.ledger.reserve(worst)
            assert refused.value.actual > refused.value.limit
            assert (self.ledger.tokens_left, self.ledger.cost_left) == before
            return multiple()
        held = Held(self.ledger.reserve(worst), worst)
        self.reserved.append(held)
        return held

    @rule(held=consumes(open), share=st.floats(0, 1), known=st.booleans(), times=st.integers(1, 3))
    def settle(self, held: Held, share: float, known: bool, times: int) -> None:
        """However often a reservation is settled, it is once."""
        worst = held.worst
        cost = (worst.cost_usd or 0.0) * share
        for _ in range(times):
            held.reservation.settle(Amount(int(worst.tokens * share), cost if known else None))
        self.reserved.remove(held)
        self.settled.append(Amount(int(worst.tokens * share), cost if known else worst.cost_usd))

    @invariant()
    def spent_and_reserved_stay_within_the_limit(self) -> None:
        ledger = self.ledger
        assert ledger.spent_tokens + ledger.reserved_tokens <= 1000
        assert picos(ledger.spent_cost + ledger.reserved_cost) <= picos(1.0)
        assert not ledger.overrun

    @invariant()
    def every_reservation_and_every_settlement_is_in_the_sums(self) -> None:
        ledger = self.ledger
        assert ledger.spent_tokens == sum(amount.tokens for amount in self.settled)
        assert ledger.reserved_tokens == sum(held.worst.tokens for held in self.reserved)
        assert picos(ledger.spent_cost) == sum(picos(amount.cost_usd) or 0 for amount in self.settled)
        assert picos(ledger.reserved_cost) == sum(picos(held.worst.cost_usd) or 0 for held in self.reserved)


TestWithinReservations = WithinReservations.TestCase


def test_a_thousand_cents_fit_into_ten_dollars() -> None:
    ledger = Ledger(cost_usd=10.0)
    for _ in range(1000):
        ledger.reserve(Amount(0, 0.01)).settle(Amount(0, 0.01))
    with pytest.raises(BudgetExceeded):
        ledger.reserve(Amount(0, 0.01))


@pytest.mark.parametrize(
    ("limits", "worst", "message"),
    [
        ({"tokens": 10}, Amount(11), "tokens budget exceeded: 11 > 10"),
        ({"cost_usd": 0.5}, Amount(0, 0.75), "cost budget exceeded: 0.75 > 0.5"),
        ({"tokens": 1234567}, Amount(7654321), "tokens budget exceeded: 7654321 > 1234567"),
    ],
)
def test_a_refusal_has_the_numbers_in_it(limits: dict[str, float], worst: Amount, message: str) -> None:
    with pytest.raises(BudgetExceeded) as caught:
        Ledger(**limits).reserve(worst)
    assert str(caught.value) == message


def test_a_refusal_counts_what_is_spent_and_set_aside() -> None:
    ledger = Ledger(tokens=100)
    ledger.reserve(Amount(30)).settle(Amount(20))
    ledger.reserve(Amount(50))
    with pytest.raises(BudgetExceeded) as caught:
        ledger.reserve(Amount(31))
    assert (caught.value.budget_type, caught.value.limit, caught.value.actual) == ("tokens", 100, 101)
    ledger.reserve(Amount(30))


@pytest.mark.parametrize(("limits", "excess"), [({"tokens": 10}, Amount(11)), ({"cost_usd": 1.0}, Amount(0, 1.5))])
def test_an_excess_is_charged_and_stops_even_what_costs_nothing(limits: Any, excess: Amount) -> None:
    ledger = Ledger(**limits)
    ledger.reserve(Amount()).settle(excess)
    assert (ledger.spent_tokens, ledger.spent_cost) == (excess.tokens, excess.cost_usd)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(Amount())


def test_exactly_the_limit_is_no_excess() -> None:
    ledger = Ledger(tokens=10, cost_usd=0.3)
    ledger.reserve(Amount(10, 0.1 + 0.2)).settle(Amount(10, 0.1 + 0.2))
    ledger.reserve(Amount())


@pytest.mark.parametrize(
    ("worst", "actual", "overrun"),
    [
        (Amount(10, 0.1), Amount(11, 0.1), Overrun("tokens", 10, 11)),
        (Amount(10, 0.1), Amount(10, 0.2), Overrun("cost", 0.1, 0.2)),
    ],
)
def test_a_call_that_takes_more_than_was_reserved_closes_the_account_far_below_its_limit(
    worst: Amount, actual: Amount, overrun: Overrun
) -> None:
    ledger = Ledger(tokens=1000, cost_usd=10.0)
    other = ledger.reserve(worst)
    assert ledger.reserve(worst).settle(actual) == {None: overrun}
    assert (ledger.overrun, ledger.tokens_left, ledger.cost_left) == (True, 0, 0)
    with pytest.raises(BudgetExceeded, match="tokens budget closed: a call took more than was reserved") as caught:
        ledger.reserve(Amount())
    assert caught.value.overrun
    assert other.settle(worst) == {}, "what is under way is charged all the same"
    assert ledger.spent_tokens == worst.tokens + actual.tokens


def test_a_limit_in_usd_does_not_mind_tokens_and_the_other_way_round() -> None:
    dollars, tokens = Ledger(cost_usd=1.0), Ledger(tokens=100)
    assert dollars.reserve(Amount(10, 0.1)).settle(Amount(20, 0.1)) == {}
    assert tokens.reserve(Amount(10, 0.1)).settle(Amount(10, 0.2)) == {}
    dollars.reserve(Amount(10**9, 0.9))
    tokens.reserve(Amount(90, 10.0**9))


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -1.0])
def test_what_is_no_price_is_an_unknown_one(price: float) -> None:
    ledger = Ledger(cost_usd=1.0)
    with pytest.raises(InvalidRequest, match="price of the model is unknown"):
        ledger.reserve(Amount(0, price))
    ledger.reserve(Amount(0, 0.4)).settle(Amount(0, price))
    assert (ledger.spent_cost, ledger.reserved_cost) == (0.4, 0)


def test_an_unknown_price_cannot_be_kept_below_a_limit() -> None:
    with pytest.raises(InvalidRequest, match="price of the model is unknown"):
        Ledger(cost_usd=1.0).reserve(Amount(5, None))
    Ledger(tokens=10).reserve(Amount(5, None))


def test_an_unknown_cost_is_charged_as_it_was_reserved() -> None:
    ledger = Ledger(cost_usd=1.0)
    ledger.reserve(Amount(0, 0.4)).settle(Amount(0, None))
    assert ledger.cost_left == pytest.approx(0.6)


@given(st.integers(0, 10**9), st.floats(0, 10**6))
def test_without_limits_everything_fits(tokens: int, cost: float) -> None:
    Ledger().reserve(Amount(tokens, cost))


WORST = Amount(100, 0.5)


@pytest.mark.parametrize(
    ("error", "charge"),
    [
        (ProviderTimeout("x", "p"), WORST),
        (ProviderTimeout("x", "p", usage={"total_tokens": 7}), Amount(7, None)),
        (ProviderError("x", "p", status_code=503), Amount()),
        (ProviderError("x", "p", status_code=400, usage={"total_tokens": 7}), Amount(7, None)),
        (ConnectionFailed("x", "p"), WORST),
        (ConnectionFailed("x", "p", sent=False), Amount()),
        (ConnectionResetError(), WORST),
        (ConnectionRefusedError(), Amount()),
        (ValueError("x"), Amount()),
    ],
    ids=repr,
)
def test_a_failure_is_charged_what_it_used_or_may_have_used(error: Exception, charge: Amount) -> None:
    assert charge_of_failure(error, WORST) == charge
