"""Whatever a shared value has become, another process reads the same from its text."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.reliability import rate_limit, retry_budget
from steer_llm_sdk.reliability.budget import Account, Claim, Limits
from steer_llm_sdk.reliability.circuit import Circuit, Outcome, Permit
from steer_llm_sdk.reliability.circuit_breaker import BreakerMode, CircuitBreakerConfig
from steer_llm_sdk.reliability.rate_limit import RateLimit, State
from steer_llm_sdk.reliability.retry_budget import RetryBudgetConfig, Window
from steer_llm_sdk.reliability.shared import snapshot
from steer_llm_sdk.reliability.shared.circuit import APART, Shared, decoded, encoded, parted
from steer_llm_sdk.reliability.shared.snapshot import Unreadable

RATED = CircuitBreakerConfig(
    failure_threshold=2,
    half_open_requests=2,
    timeout=2,
    timeout_factor=2,
    probe_lease=3,
    window_size=8,
    failure_rate_threshold=0.5,
    slow_call_rate_threshold=0.9,
    slow_call_duration=1,
    minimum_throughput=4,
)
EVENTS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(Outcome), st.floats(0, 4), st.floats(0, 3), st.integers(0, 4)),
    max_size=40,
)


@given(EVENTS, st.sampled_from([None, *BreakerMode]))
def test_a_circuit_is_read_as_it_was_written_and_goes_on_in_the_same_way(events: Any, mode: Any) -> None:
    circuit, now = Circuit(), 1.7e9
    sent: list[tuple[Permit, str]] = []
    for part, outcome, passed, took, kept in events:
        now += passed
        circuit, answer = circuit.admit(part, now, RATED, panic=kept == 4)
        if isinstance(answer, Permit):
            sent.append((answer, part))
        if len(sent) > kept:
            permit, of = sent.pop(0)
            circuit = circuit.report(permit, of, outcome, now, RATED, took=took, asked=passed)
        shared = Shared(circuit, mode)
        assert decoded(encoded(shared)) == shared
        circuit = decoded(encoded(shared)).circuit


@given(EVENTS)
def test_a_circuit_that_parts_is_the_same_but_for_its_generations(events: Any) -> None:
    circuit, now = Circuit(), 0.0
    for part, outcome, passed, took, _ in events:
        now += passed
        circuit, answer = circuit.admit(part, now, RATED)
        if isinstance(answer, Permit):
            circuit = circuit.report(answer, part, outcome, now, RATED, took=took)
    local = parted(Shared(circuit), 3)
    assert local.alone is not None
    assert [local.circuit.state(now, part) for part in (None, *"abc")] == [
        circuit.state(now, part) for part in (None, *"abc")
    ]
    here = [local.circuit.whole, *local.circuit.narrowed.values()]
    assert all(3 * APART <= lane.generation <= local.circuit.generation for lane in here)
    assert len({lane.generation for lane in here}) == len(here)


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 500), st.booleans()), max_size=20))
def test_a_limit_is_read_as_it_was_written(events: Any) -> None:
    state, now = State.of(RateLimit(requests_per_minute=30, tokens_per_minute=1000, max_concurrent=3)), 1.7e9
    for passed, tokens, ends in events:
        now += passed
        state = rate_limit.admit(state, tokens, now) or rate_limit.block(state, now + passed)
        if ends and state.running:
            state = rate_limit.finish(state, state.reserved / state.running, tokens, passed > 1)
        assert snapshot.limit_of(json.loads(json.dumps(snapshot.limit_to(state)))) == state
    unlimited = State.of(RateLimit())
    assert snapshot.limit_of(json.loads(json.dumps(snapshot.limit_to(unlimited)))) == unlimited


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=30))
def test_a_retry_window_is_read_as_it_was_written(events: Any) -> None:
    window, now, cfg = Window(), 1.7e9, RetryBudgetConfig()
    for passed, extra in events:
        now += passed
        window = retry_budget.draw(window, now, cfg)[0] if extra else retry_budget.first(window, now, cfg)
        assert snapshot.window_of(json.loads(json.dumps(snapshot.window_to(window)))) == window


@given(st.lists(st.tuples(st.floats(0, 5000), st.integers(0, 99), st.integers(0, 10**15)), max_size=20))
def test_an_account_is_read_as_it_was_written(events: Any) -> None:
    for limits in (Limits(500, 10**16), Limits(500, None, "hour")):
        account, now = Account(), 1.7e9
        for passed, tokens, usd in events:
            now += passed
            account, _ = account.reserve(Claim(tokens, usd), now, limits)
            assert snapshot.account_of(json.loads(json.dumps(snapshot.account_to(account)))) == account
    assert Account().starts == -math.inf


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format":2,"circuit":null}', "of format 2, and this release reads 1: upgrade it here"),
        ("not JSON", "no snapshot of this library"),
        ("[]", "no snapshot of this library"),
        ('{"format":1}', "no snapshot of this library"),
        ('{"format":1,"mode":"other","circuit":{}}', "no snapshot of this library"),
    ],
)
def test_what_cannot_be_read_is_said_and_not_guessed(text: str, says: str) -> None:
    with pytest.raises(Unreadable, match=says):
        decoded(text)
