"""RetryPolicy: the arithmetic of waiting, apart from any waiting."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.errors import ErrorCategory, ProviderError
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.reliability.classify import ErrorClassification, classify

JITTER = st.floats(0, 1, exclude_max=True)
POLICIES = st.builds(
    RetryPolicy,
    initial_delay=st.floats(0, 1e6),
    max_delay=st.floats(0, 1e6),
    backoff_factor=st.floats(1, 1e300),
    jitter_factor=st.floats(0, 1),
    exponential_backoff=st.booleans(),
)


def rate_limit(retry_after: float | None) -> ErrorClassification:
    return classify(ProviderError("slow down", "p", status_code=429, retry_after=retry_after))


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 1), (2, 2), (3, 4), (4, 8), (7, 60), (8, 60), (1000, 60)])
def test_without_jitter_the_delays_double_up_to_the_cap(attempt: int, seconds: float) -> None:
    assert RetryPolicy(jitter_factor=0).delay(attempt, 0.7) == seconds


def test_without_exponential_backoff_every_delay_is_the_first() -> None:
    policy = RetryPolicy(exponential_backoff=False, jitter_factor=0, initial_delay=3)
    assert [policy.delay(attempt, 0) for attempt in (1, 2, 9)] == [3, 3, 3]


@given(POLICIES, st.integers(1, 10**6), JITTER)
def test_a_delay_lies_between_the_jittered_and_the_whole_exponential_one(
    policy: RetryPolicy, attempt: int, jitter: float
) -> None:
    whole = policy.delay(attempt, 0)
    assert 0 <= whole <= policy.max_delay
    delay = policy.delay(attempt, jitter)
    assert whole * (1 - policy.jitter_factor) <= delay <= whole
    assert math.isfinite(delay)


@given(POLICIES, st.integers(1, 200), JITTER)
def test_with_the_same_jitter_no_delay_is_shorter_than_the_one_before(
    policy: RetryPolicy, attempt: int, jitter: float
) -> None:
    assert policy.delay(attempt + 1, jitter) >= policy.delay(attempt, jitter)


@given(st.integers(1, 6), JITTER, JITTER)
def test_with_the_default_policy_successive_delays_never_shrink(attempt: int, one: float, other: float) -> None:
    """The ranges of two successive delays touch and do not overlap, below the cap."""
    policy = RetryPolicy()
    if policy.delay(attempt + 1, 0) < policy.max_delay:
        assert policy.delay(attempt + 1, other) >= policy.delay(attempt, one)


def test_at_the_cap_a_thousand_clients_do_not_fall_into_step() -> None:
    chance = random.Random(7)
    policy = RetryPolicy()
    delays = [policy.delay(50, chance.random()) for _ in range(1000)]
    assert min(delays) >= 30
    assert max(delays) <= 60
    slots: dict[int, int] = {}
    for delay in delays:
        slots[int(delay * 10)] = slots.get(int(delay * 10), 0) + 1
    assert max(slots.values()) <= 30
    assert len({round(delay, 6) for delay in delays}) > 990


@given(st.floats(0, 60), st.integers(1, 20), JITTER)
def test_no_wait_is_shorter_than_the_server_asked(asked: float, attempt: int, jitter: float) -> None:
    policy = RetryPolicy()
    wait = policy.wait(rate_limit(asked), attempt, jitter)
    assert wait is not None
    assert wait >= asked
    assert wait >= policy.delay(attempt, jitter)
    assert wait <= max(asked * 1.1, policy.delay(attempt, jitter))


def test_what_the_server_asked_is_jittered_too() -> None:
    policy = RetryPolicy(initial_delay=0)
    assert len({policy.wait(rate_limit(20), 1, n / 10) for n in range(10)}) == 10


@pytest.mark.parametrize(("asked", "waits"), [(60, True), (60.001, False), (1e308, False)])
def test_a_server_that_asks_for_more_than_max_delay_is_not_waited_for(asked: float, waits: bool) -> None:
    assert (RetryPolicy().wait(rate_limit(asked), 1, 0.5) is not None) is waits


def test_the_servers_wish_can_be_ignored() -> None:
    policy = RetryPolicy(respect_retry_after=False, jitter_factor=0)
    assert policy.wait(rate_limit(50), 1, 0) == 1
    assert policy.wait(rate_limit(5000), 1, 0) == 1


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, -math.inf, None, "soon", True, 10**400])
def test_a_wish_that_makes_no_sense_is_ignored(bad: Any) -> None:
    assert RetryPolicy(jitter_factor=0).wait(rate_limit(bad), 1, 0) == 1


def test_a_category_has_a_longest_delay_of_its_own() -> None:
    policy = RetryPolicy(jitter_factor=0, by_category={ErrorCategory.RATE_LIMIT: {"max_delay": 5}})  # type: ignore[dict-item]
    assert [policy.delay(9, 0, category) for category in (ErrorCategory.RATE_LIMIT, ErrorCategory.NETWORK)] == [5, 60]
    assert [policy.wait(rate_limit(asked), 1, 0) for asked in (5, 5.001)] == [5, None]
    assert policy.wait(classify(ProviderError("busy", "p", 503, retry_after=50)), 1, 0) == 50


SWITCHES = {
    ErrorCategory.TIMEOUT: "retry_on_timeout",
    ErrorCategory.RATE_LIMIT: "retry_on_rate_limit",
    ErrorCategory.SERVER_ERROR: "retry_on_server_error",
    ErrorCategory.BAD_RESPONSE: "retry_on_server_error",
    ErrorCategory.NETWORK: "retry_on_network_error",
}


@pytest.mark.parametrize("category", ErrorCategory)
def test_the_categories_with_a_switch_are_retried_until_it_is_off(category: ErrorCategory) -> None:
    assert RetryPolicy().should_retry_category(category) is (category in SWITCHES)
    if category in SWITCHES:
        assert not RetryPolicy(**{SWITCHES[category]: False}).should_retry_category(category)


@pytest.mark.parametrize(
    ("status", "declared", "policy", "allowed"),
    [
        (503, None, {}, True),
        (503, False, {}, False),
        (503, True, {}, True),
        (503, True, {"retry_on_server_error": False}, False),
        (429, None, {"retry_on_rate_limit": False}, False),
        (408, None, {"retry_on_timeout": False}, False),
        (400, None, {}, False),
        (400, True, {}, True),
        (401, True, {}, True),
        (409, None, {}, False),
    ],
)
def test_what_an_error_says_of_itself_is_believed_within_what_the_policy_allows(
    status: int, declared: bool | None, policy: dict[str, bool], allowed: bool
) -> None:
    error = ProviderError("x", "p", status_code=status)
    error.is_retryable = declared
    assert RetryPolicy(**policy).allows(classify(error)) is allowed


def test_a_conflict_is_retried_where_the_server_said_when() -> None:
    assert RetryPolicy().allows(classify(ProviderError("x", "p", status_code=409, retry_after=1)))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"max_attempts": 3, "by_category": {"rate_limit": {"max_attempts": 4}}},
            r"by_category\['rate_limit'\].max_attempts: 4 is more than max_attempts = 3",
        ),
        (
            {"retry_on_rate_limit": False, "by_category": {"rate_limit": {"initial_delay": 5}}},
            r"by_category\['rate_limit'\]: errors of this category are not retried",
        ),
    ],
)
def test_what_a_category_is_given_for_nothing_is_refused_by_its_name(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RetryPolicy(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_attempts": 0},
        {"initial_delay": -1},
        {"max_delay": math.nan},
        {"backoff_factor": 0.5},
        {"jitter_factor": 1.5},
        {"max_total_delay": math.inf},
        {"max_retries": 3},
    ],
)
def test_a_policy_that_cannot_be_used_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        RetryPolicy(**fields)
