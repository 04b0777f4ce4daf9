"""parse_retry_after: every form that servers send, and never an exception."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.reliability.classify import classify, parse_retry_after

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def parsed(now: datetime = NOW, **headers: str) -> float | None:
    return parse_retry_after({name.replace("_", "-"): value for name, value in headers.items()}, now.timestamp())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("1.5", 1.5),
        (" 2 ", 2),
        ("1e1", 10),
        ("90", 90),
        ("7, 8", 8),
        ("8,7.5", 8),
        ("99999999999", 99999999999),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30),
        ("Sunday, 22-Nov-26 12:00:30 GMT", 30),
        ("Sun Nov 22 12:00:30 2026", 30),
        ("Sun, 22 Nov 2026 13:00:30 +0100", 30),
        ("Sun, 22 Nov 2026 11:59:00 GMT", 0),
        ("-1", None),
        ("-0.5", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("1e999", None),
        ("", None),
        ("soon", None),
        ("12 seconds", None),
        ("1_0", None),
        ("7, soon", None),
        ("7, -8", None),
        ("7,", None),
        ("1" + "0" * 400, None),
        ("0x10", None),
        ("--1", None),
        ("\x00", None),
        ("Sun, 99 Nov 2026 12:00:30 GMT", None),
        ("Sun, 22 Nov 99999 12:00:30 GMT", None),
        ("Sun, 22 Nov 2026 12:00:30 +9999", None),
    ],
)
def test_every_form_of_retry_after(text: str, seconds: float | None) -> None:
    assert parsed(retry_after=text) == seconds


@pytest.mark.parametrize(
    ("millis", "text", "seconds"),
    [
        ("2000", None, 2),
        ("1500.5", None, 1.5005),
        ("2000", "7", 2),
        ("soon", "7", 7),
        ("-5", "7", 7),
        ("nan", None, None),
    ],
)
def test_milliseconds_come_first_where_they_make_sense(millis: str, text: str | None, seconds: float | None) -> None:
    headers = {"retry_after_ms": millis} | ({} if text is None else {"retry_after": text})
    assert parsed(**headers) == seconds


def test_no_header_is_no_wish() -> None:
    assert parse_retry_after({}, 0.0) is None


@given(st.datetimes(datetime(1971, 1, 1), datetime(2900, 1, 1)), st.integers(-14, 14), st.integers(-(10**6), 10**6))
def test_a_date_is_read_in_any_zone(naive: datetime, zone: int, ahead: int) -> None:
    now = naive.replace(microsecond=0, tzinfo=UTC)
    then = (now + timedelta(seconds=ahead)).astimezone(timezone(timedelta(hours=zone)))
    assert parsed(now, retry_after=format_datetime(then)) == max(0, ahead)


@given(st.text() | st.from_regex(r"\A[A-Za-z]{3}, \d+ [A-Za-z]{3} \d+ \d+:\d+:\d+ (GMT|[+-]\d+)?\Z"), st.floats())
def test_no_text_and_no_clock_raise_or_make_a_bad_delay(text: str, now: float) -> None:
    for name in ("retry-after", "retry-after-ms"):
        delay = parse_retry_after({name: text}, now)
        assert delay is None or (math.isfinite(delay) and delay >= 0)


class Failed(Exception):
    """What a client raises: with the headers of the answer."""

    def __init__(self, headers: object) -> None:
        super().__init__("x")
        self.headers = headers


NAMES = st.sampled_from(["retry-after", "Retry-After", "RETRY-AFTER-MS", "x-should-retry", b"Retry-After", b"\xff"])
ODD = st.sampled_from(
    ["0", "-0", "-1", "1e308", "1e309", "nan", "inf", "7, 8", "7,", "", " ", "soon", "0x1", "1_0", "٣"]
)
VALUES = ODD | st.text() | st.binary() | st.floats() | st.integers() | st.none() | st.lists(st.text(), max_size=2)


@given(st.dictionaries(NAMES | st.text() | st.binary(), VALUES))
def test_whatever_the_headers_hold_the_delay_is_none_or_finite_and_the_wait_no_shorter(
    headers: dict[object, object],
) -> None:
    means = classify(Failed(headers))
    assert means.retry_after is None or (math.isfinite(means.retry_after) and means.retry_after >= 0)
    asked, policy = means.retry_after or 0.0, RetryPolicy()
    wait = policy.wait(means, 1, 0.5)
    assert (wait is None) is (asked > policy.max_delay)
    assert wait is None or wait >= asked


def test_headers_in_bytes_are_read() -> None:
    assert classify(Failed({b"Retry-After": b"7"})).retry_after == 7


@pytest.mark.parametrize("asked", [0.0, 0.3, 7.0, 59.9])
@given(st.integers(1, 12), st.floats(0, 1, exclude_max=True))
def test_no_attempt_comes_earlier_than_the_server_asked(asked: float, attempt: int, jitter: float) -> None:
    wait = RetryPolicy().wait(classify(Failed({"retry-after": str(asked)})), attempt, jitter)
    assert wait is not None
    assert wait >= asked


def test_a_delay_beyond_the_greatest_is_not_waited_for() -> None:
    assert RetryPolicy().wait(classify(Failed({"retry-after": "60.1"})), 1, 0.5) is None
