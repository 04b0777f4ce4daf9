"""What providers say of their limits, in the forms in which they say it."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.models.quota import Quota, RateLimitStatus, parse_rate_limit

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC).timestamp()

OPENAI = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-reset-tokens": "6m0s",
}
ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "4000",
    "anthropic-ratelimit-requests-remaining": "3999",
    "anthropic-ratelimit-requests-reset": "2026-03-01T12:00:15Z",
    "anthropic-ratelimit-tokens-limit": "480000",
    "anthropic-ratelimit-tokens-remaining": "470000",
    "anthropic-ratelimit-tokens-reset": "2026-03-01T12:00:02Z",
    "anthropic-ratelimit-input-tokens-limit": "400000",
    "anthropic-ratelimit-input-tokens-remaining": "395000",
    "anthropic-ratelimit-input-tokens-reset": "2026-03-01T12:00:01Z",
    "anthropic-ratelimit-output-tokens-limit": "80000",
    "anthropic-ratelimit-output-tokens-remaining": "75000",
    "anthropic-ratelimit-output-tokens-reset": "2026-03-01T12:00:04Z",
}


def parsed(headers: dict[str, str]) -> RateLimitStatus | None:
    return parse_rate_limit(headers, NOW, 7.0)


def reset_of(text: str) -> float | None:
    status = parsed({**OPENAI, "x-ratelimit-reset-requests": text})
    assert status is not None
    assert status.requests is not None
    return status.requests.reset


def without(headers: dict[str, str], *parts: str) -> dict[str, str]:
    return {name: value for name, value in headers.items() if not any(part in name for part in parts)}


def test_openais_headers() -> None:
    assert parsed(OPENAI) == RateLimitStatus(7.0, Quota(60, 59, 1), Quota(150000, 149984, 360))


def test_anthropics_headers() -> None:
    assert parsed(ANTHROPIC) == RateLimitStatus(7.0, Quota(4000, 3999, 15), Quota(480000, 470000, 2))


def test_where_only_input_and_output_are_told_apart_the_one_of_which_less_is_left_counts() -> None:
    status = parsed(without(ANTHROPIC, "ratelimit-tokens"))
    assert status is not None
    assert status.tokens == Quota(80000, 75000, 4)


def test_a_limit_per_day_with_a_fraction_of_a_second() -> None:
    """Some servers of OpenAI's format count requests per day and tokens per minute."""
    headers = {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-remaining-requests": "14370",
        "x-ratelimit-reset-requests": "2m59.56s",
        "x-ratelimit-limit-tokens": "18000",
        "x-ratelimit-remaining-tokens": "17997",
        "x-ratelimit-reset-tokens": "7.66s",
    }
    status = parsed(headers)
    assert status is not None
    assert status == RateLimitStatus(7.0, Quota(14400, 14370, pytest.approx(179.56)), Quota(18000, 17997, 7.66))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("20ms", 0.02),
        ("6m0s", 360),
        ("1h30m0s", 5400),
        ("1m0.5s", 60.5),
        ("250µs", 0.00025),
        ("0s", 0),
        ("1d2h", 93600),
        ("12", 12),
        ("0.25", 0.25),
        ("2026-03-01T12:00:30Z", 30),
        ("2026-03-01T12:00:30.5+00:00", 30.5),
        ("2026-03-01T14:00:30+02:00", 30),
        ("2026-03-01T11:59:00Z", 0),
    ],
)
def test_a_reset_is_a_duration_or_a_time(text: str, seconds: float) -> None:
    assert reset_of(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "1s later", "-1s", "1x", "s", "1.s", "nan", "inf", "-3", "1e400", "9999999999", "٣s"),
        *("0000-00-00T00:00:00Z", "2026-13-01T00:00:00Z", "9999-12-31T23:59:59Z", "9" * 5000, "9" * 5000 + "s"),
    ],
)
def test_a_reset_that_makes_no_sense_is_left_out(text: str) -> None:
    assert reset_of(text) is None


@pytest.mark.parametrize("value", ["", "many", "-1", "nan", "inf", "0", "9" * 5000])
def test_a_limit_that_makes_no_sense_is_left_out_with_what_belongs_to_it(value: str) -> None:
    status = parsed({**OPENAI, "x-ratelimit-limit-requests": value})
    assert status is not None
    assert (status.requests, status.tokens) == (None, Quota(150000, 149984, 360))


def test_a_rest_without_a_limit_says_nothing_and_one_above_it_is_the_limit() -> None:
    assert parsed(without(OPENAI, "limit-requests", "limit-tokens")) is None
    status = parsed({**OPENAI, "x-ratelimit-remaining-requests": "900"})
    assert status is not None
    assert status.requests == Quota(60, 60, 1)


def test_an_answer_without_such_headers_says_nothing() -> None:
    assert parsed({"content-type": "text/event-stream", "x-request-id": "r"}) is None


# ── differential: written as the providers write them, read back ────────────────────────────────────────────────────


def as_go_writes_it(nanos: int) -> str:
    """A duration in the form of Go's time.Duration, in which OpenAI's servers write it."""
    if nanos < 1_000_000_000:
        for unit, size in (("ms", 1_000_000), ("µs", 1000), ("ns", 1)):
            if nanos >= size:
                return f"{_decimal(Fraction(nanos, size))}{unit}"
        return "0s"
    hours, rest = divmod(nanos, 3_600_000_000_000)
    minutes, rest = divmod(rest, 60_000_000_000)
    seconds = f"{_decimal(Fraction(rest, 1_000_000_000))}s"
    return f"{hours}h{minutes}m{seconds}" if hours else f"{minutes}m{seconds}" if minutes else seconds


def _decimal(number: Fraction) -> str:
    return f"{float(number):.9f}".rstrip("0").rstrip(".")


@given(st.integers(0, 30 * 86_400 * 10**9))
def test_a_duration_is_read_as_it_was_meant(nanos: int) -> None:
    assert reset_of(as_go_writes_it(nanos)) == pytest.approx(nanos / 1e9, abs=1e-6)


@given(st.integers(0, 3600), st.sampled_from(["Z", "+00:00"]))
def test_a_time_is_read_as_it_was_meant(seconds: int, zone: str) -> None:
    text = datetime.fromtimestamp(NOW + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + zone
    status = parsed({**ANTHROPIC, "anthropic-ratelimit-requests-reset": text})
    assert status is not None
    assert status.requests == Quota(4000, 3999, seconds)


@given(
    st.dictionaries(
        st.sampled_from([*OPENAI, *ANTHROPIC]),
        st.text() | st.floats().map(str) | st.integers().map(str) | st.none() | st.binary() | st.integers(),
    )
)
def test_whatever_the_headers_are_it_never_raises_and_what_it_says_makes_sense(headers: dict[str, Any]) -> None:
    status = parse_rate_limit(headers, NOW, 0.0)
    if status is not None:
        for quota in (quota for quota in (status.requests, status.tokens) if quota is not None):
            assert 0 <= quota.remaining <= quota.limit < math.inf
            assert quota.limit > 0
            assert quota.reset is None or 0 <= quota.reset < math.inf


@pytest.mark.parametrize("limit", ["0", "5e-324", "0.5", "-1", "nan", "inf"])
def test_what_lets_nothing_through_is_no_limit(limit: str) -> None:
    headers = {"x-ratelimit-limit-requests": limit, "x-ratelimit-remaining-requests": "0"}
    assert parse_rate_limit(headers, 0.0, 0.0) is None
