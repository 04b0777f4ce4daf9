"""Steps that depend on the clock or on chance."""

from __future__ import annotations

import asyncio

import pytest

from steer_llm_sdk.errors import ProviderError
from steer_llm_sdk.testing import OK, ScriptedTool, err, outage, run_in_virtual_time, sometimes


async def statuses(tool: ScriptedTool, count: int, gap: float) -> list[object]:
    """What each of so many calls came to, `gap` seconds apart."""
    said: list[object] = []
    for _ in range(count):
        try:
            said.append(await tool.execute("q"))
        except ProviderError as error:
            said.append(error.status_code)
        await asyncio.sleep(gap)
    return said


async def test_an_outage_is_over_at_its_end() -> None:
    assert await statuses(ScriptedTool("t", outage(10, 30)), 5, 10) == ["ok", 503, 503, "ok", "ok"]


async def test_outages_can_follow_one_another() -> None:
    tool = ScriptedTool("t", outage(0, 1, otherwise=outage(2, 3, err(429), otherwise=OK("fine"))))
    assert await statuses(tool, 4, 1) == [503, "fine", 429, "fine"]


async def test_what_began_before_an_outage_ends_as_it_began() -> None:
    tool = ScriptedTool("t", outage(1, 2, otherwise=OK("fine", after=1.5)))
    assert await tool.execute("q") == "fine"


def test_a_share_of_the_calls_is_met_and_the_same_ones_with_the_same_seed() -> None:
    def play(seed: int) -> list[object]:
        return run_in_virtual_time(statuses(ScriptedTool("t", sometimes(0.25, err(500))), 400, 0), seed=seed)

    assert play(1) == play(1) != play(2)
    assert 60 < play(1).count(500) < 140


async def test_none_and_all_are_shares() -> None:
    assert await statuses(ScriptedTool("t", sometimes(0)), 50, 0) == ["ok"] * 50
    assert await statuses(ScriptedTool("t", sometimes(1)), 50, 0) == [503] * 50


@pytest.mark.parametrize(("start", "end"), [(5, 5), (5, 4), (5, float("nan"))])
def test_an_outage_that_ends_before_it_starts_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=r"end: .* must be later than start=5"):
        outage(start, end)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        sometimes(share)
