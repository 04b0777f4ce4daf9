"""How often a planner is told of runs that went well."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from contract.kit import registry
from steer_llm_sdk.orchestration import PlanDecision, ReliableOrchestrator, RuleBasedPlanner
from steer_llm_sdk.orchestration._observed import COUNTED, EVERY
from steer_llm_sdk.orchestration.planning.planner import Outcome
from steer_llm_sdk.testing import OK, ScriptedTool, VirtualTimeLoop


class Told(RuleBasedPlanner):
    def __init__(self) -> None:
        super().__init__()
        self.runs: list[int] = []

    def observe(self, request: Any, decision: PlanDecision, outcomes: Sequence[Outcome]) -> None:
        self.runs += [outcome.runs for outcome in outcomes]


class OfEach(Told):
    observes_every_run = True


async def runs(planner: Told, count: int) -> ReliableOrchestrator:
    runner = ReliableOrchestrator(planner, registry=registry(ScriptedTool("t", OK("x"))))
    await ask(runner, count)
    return runner


async def ask(runner: ReliableOrchestrator, count: int) -> None:
    for _ in range(count):
        assert (await runner.run("q")).status == "succeeded"


async def test_the_first_runs_are_told_one_by_one_then_one_at_a_time_stands_for_those_since() -> None:
    planner = Told()
    runner = await runs(planner, COUNTED + 10)
    assert planner.runs == [1] * COUNTED
    await asyncio.sleep(EVERY)
    await ask(runner, 3)
    assert planner.runs == [*[1] * COUNTED, 11]
    await asyncio.sleep(EVERY)
    await ask(runner, 1)
    assert planner.runs[COUNTED:] == [11, 3]


async def test_a_planner_that_says_so_is_told_of_each() -> None:
    planner = OfEach()
    await runs(planner, COUNTED + 10)
    assert planner.runs == [1] * (COUNTED + 10)


def test_another_loop_with_an_earlier_clock_does_not_keep_a_planner_from_being_told() -> None:
    planner = Told()
    later, earlier = VirtualTimeLoop(), VirtualTimeLoop()
    try:
        later.run_until_complete(asyncio.sleep(1000))
        runner = later.run_until_complete(runs(planner, COUNTED + 2))
        earlier.run_until_complete(ask(runner, 1))
    finally:
        later.close()
        earlier.close()
    assert planner.runs == [*[1] * COUNTED, 3]
