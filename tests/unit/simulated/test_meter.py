"""The simulated server's own rate limit."""

from __future__ import annotations

import pytest

from steer_llm_sdk.providers.simulated._meter import Meter


def test_a_minutes_worth_goes_at_once_and_then_one_whenever_one_is_there_again() -> None:
    meter = Meter(60, 0.0)
    assert [meter.take(0.0).wait for _ in range(60)] == [0.0] * 60
    refused = meter.take(0.25)
    assert (refused.limit, refused.remaining, refused.wait) == (60, 0, pytest.approx(0.75, abs=1e-4))
    assert meter.take(1.0).wait == 0.0
    assert meter.take(1.0).reset == pytest.approx(60)
    assert meter.take(3600.0).remaining == 59
