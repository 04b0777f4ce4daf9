"""A durable run comes to what a plain one comes to, with the same events, also where a crash lies in the middle."""

from __future__ import annotations

from typing import Any

import pytest

from durable.kit import CASES, STEADY_CASES, Case, Crash, MemoryRunner, calls_of, timeless, timeless_error, unordered
from steer_llm_sdk.durable import DurableOrchestrator


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_output_errors_and_events_are_those_of_a_plain_run(case: Case) -> None:
    plain = await case.run(case.plain())
    async with case.durable(MemoryRunner()) as orchestrator:
        assert await case.run(orchestrator) == plain


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_keyed_run_is_the_same_and_so_is_its_replay(case: Case) -> None:
    plain = case.plain()
    runner = MemoryRunner()
    async with case.durable(runner) as orchestrator:
        for _ in range(3):
            assert await case.run(orchestrator, idempotency_key="k") == await case.run(plain, idempotency_key="k")


async def result(orchestrator: DurableOrchestrator, run_id: str) -> Any:
    try:
        return timeless(await orchestrator.result(run_id))
    except Exception as error:
        return timeless_error(error)


@pytest.mark.parametrize("case", STEADY_CASES, ids=lambda case: case.name)
async def test_a_crash_at_any_step_changes_nothing_but_the_calls_that_were_under_way(case: Case) -> None:
    """Killed at the beginning of its first step, at its end, at the beginning of the second, and so on to the end. The
    second process is new, and the world outside is the same."""
    plain = case.plain()
    outcome, _ = await case.run(plain)
    once = calls_of(plain.registry)
    for moment in range(100):
        runner = MemoryRunner(dies_at=moment)
        async with case.durable(runner) as first:
            try:
                await case.run(first)
                break
            except Crash:
                recorded, tools = [*runner.recorded], first.registry
        lost = calls_of(tools) - _calls_in(runner, recorded)
        runner.dies_at = None
        async with case.durable(runner, registry=tools) as second:
            (run_id,) = runner.runs
            await runner.go_on(run_id)
            assert unordered(await result(second, run_id)) == unordered(outcome), f"died at {moment}"
        assert calls_of(tools) == once + lost, f"died at {moment}"
        assert runner.recorded[: len(recorded)] == recorded
    assert moment >= 1


def _calls_in(runner: MemoryRunner, recorded: list[str]) -> int:
    (kept,) = runner.runs.values()
    return sum(len(kept.steps[name].get("lines", ())) for name in recorded)
