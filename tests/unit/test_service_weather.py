"""What the page of providers draws."""

from __future__ import annotations

import pytest

from steer_llm_sdk.service import view


def test_each_attempt_stands_at_its_own_end_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view.time, "time", lambda: 1000.0)
    weather = view.Weather()
    late = {"provider": "p", "started_ms": 500.0, "elapsed_ms": 400.0, "outcome": "succeeded"}
    early = {"provider": "p", "started_ms": 0.0, "elapsed_ms": 300.0, "outcome": "failed"}
    for lines in ([late], [early]):
        weather.note({"elapsed_ms": 1000.0, "per_agent": {"t": {"timeline": lines}}})
    latency, errors = weather.plots("p")
    assert latency["times"] == pytest.approx([999.3, 999.9])
    assert (latency["values"], errors["values"]) == ([300.0, 400.0], [100.0, 50.0])
