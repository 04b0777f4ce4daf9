"""What the page of a run draws."""

from __future__ import annotations

import re
from typing import Any

import pytest

from steer_llm_sdk.service import view
from steer_llm_sdk.service.runs import Run, told


def drawn(*lines: dict[str, Any], events: tuple[dict[str, Any], ...] = ()) -> str:
    line = {"provider": "p", "attempt": 1, "outcome": "succeeded"}
    output = {"per_agent": {"t": {"timeline": [line | each for each in lines]}}}
    return view.waterfall(Run("r", "t", "x", 0.0, state="succeeded", output=output, events=list(map(told, events))))


@pytest.mark.parametrize("elapsed", [0.0, 0.4, 99.0])
def test_an_attempt_at_the_very_end_is_drawn_within_its_box(elapsed: float) -> None:
    shown = drawn({"started_ms": 0.0, "elapsed_ms": 1000.0}, {"started_ms": 1000.0 - elapsed, "elapsed_ms": elapsed})
    boxes = re.findall(r'viewBox="0 0 100 8".*?x="([\d.]+)" width="([\d.]+)"', shown)
    assert len(boxes) == 2
    assert all(float(x) + float(width) <= 100 and float(width) >= 1 for x, width in boxes)


@pytest.mark.parametrize(
    ("data", "said"), [({"replicate_id": "r1"}, "replicate r1 begins"), ({"i": 0}, "a replicate begins")]
)
def test_a_replicate_is_named_where_it_has_a_name(data: dict[str, Any], said: str) -> None:
    delta = {"event_type": "replicate_started", "data": data}
    assert said in drawn(events=({"id": 1, "type": "delta", "delta": delta, "at_ms": 1.0},))
