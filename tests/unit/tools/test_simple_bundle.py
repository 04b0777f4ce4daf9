"""SimpleBundleTool: a bundle of a plain function."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from steer_llm_sdk.errors import AllToolsFailed, BudgetExceeded
from steer_llm_sdk.orchestration import Orchestrator, ToolRegistry
from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool, resampled_words

TEXT = "the cat and the dog and the bird sat on the mat with the rat and the bat"


async def test_an_async_function_is_asked_once_per_seed() -> None:
    async def grade(request: Any, seed: int) -> dict[str, Any]:
        return {"grade": request["query"], "odd": seed % 2}

    bundle = await SimpleBundleTool(grade, name="grader").execute({"query": "A"}, {"k": 3})
    assert [replicate.data["odd"] for replicate in bundle.replicates] == [0, 1, 0]
    assert bundle.summary.consensus == {"grade": "A", "odd": 0}
    assert (bundle.meta.task, bundle.meta.seeds, bundle.cost_total_usd) == ("grader", [0, 1, 2], 0.0)


async def test_seeds_are_the_callers_or_made_from_the_seed_of_the_run() -> None:
    async def echo(request: Any, seed: int) -> int:
        return seed

    tool = SimpleBundleTool(echo)
    assert (await tool.execute("q", {"seeds": [5, 6, 7]})).meta.seeds == [5, 6, 7]
    assert (await tool.execute("q", {"seed": 2})).meta.seeds == [2000, 2001, 2002]


@pytest.mark.real_time
async def test_a_function_that_is_not_async_runs_beside_the_loop() -> None:
    def slow(request: Any, seed: int) -> int:
        time.sleep(0.005)
        return seed

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    bundle = await SimpleBundleTool(slow).execute("q")
    ticking.cancel()
    assert [replicate.data for replicate in bundle.replicates] == [0, 1, 2]
    assert ticks > 0


async def test_a_function_may_hand_back_something_to_wait_for() -> None:
    async def inner(seed: int) -> str:
        return "x"

    bundle = await SimpleBundleTool(lambda request, seed: inner(seed)).execute("q")
    assert bundle.summary.consensus == "x"


async def test_a_function_that_raises_makes_its_replicate_invalid() -> None:
    async def sometimes(request: Any, seed: int) -> str:
        if seed == 1:
            raise RuntimeError("no luck")
        return "ok"

    bundle = await SimpleBundleTool(sometimes).execute("q")
    assert bundle.replicates[1].quality.errors == ["RuntimeError: no luck"]
    assert (bundle.meta.k_completed, bundle.summary.support) == (2, pytest.approx(2 / 3))


async def test_what_is_no_json_makes_its_replicate_invalid() -> None:
    async def odd(request: Any, seed: int) -> Any:
        return float("nan") if seed == 0 else object() if seed == 1 else {"x": (1, 2)}

    bundle = await SimpleBundleTool(odd).execute("q")
    assert [replicate.quality.valid for replicate in bundle.replicates] == [False, False, True]
    assert bundle.replicates[2].data == {"x": [1, 2]}


async def test_a_function_that_always_raises_is_a_failure_with_every_cause() -> None:
    async def never(request: Any, seed: int) -> str:
        raise RuntimeError(f"no {seed}")

    with pytest.raises(AllToolsFailed, match="r1: no 0; r2: no 1; r3: no 2"):
        await SimpleBundleTool(never).execute("q")


async def test_a_function_that_is_over_its_budget_stops_the_bundle() -> None:
    async def spend(request: Any, seed: int) -> str:
        if seed:
            raise BudgetExceeded("cost", 1, 2)
        return "bought"

    bundle = await SimpleBundleTool(spend).execute("q", {"max_parallel": 1})
    assert (len(bundle.replicates), bundle.meta.early_stop_reason) == (1, "budget")


async def test_without_a_function_it_reads_halves_of_a_text() -> None:
    bundle = await SimpleBundleTool(options={"latency": "min"}).execute({"query": TEXT}, {"k": 10})
    assert bundle.summary.consensus["most_frequent_word"] == "the"
    assert bundle.summary.disagreements
    assert resampled_words(TEXT, 3) == resampled_words({"text": TEXT}, 3)


async def test_it_runs_under_an_orchestrator_as_it_is() -> None:
    registry = ToolRegistry()
    registry.register_tool(SimpleBundleTool())
    output = await Orchestrator(registry=registry).run(TEXT, "simple_bundle")
    assert output.status == "succeeded"
    assert output.content["evidence_bundle"]["meta"]["k_completed"] == 2
    assert output.content["evidence_bundle"]["meta"]["early_stop_reason"] == "decided"


async def test_a_text_without_words_is_refused_with_a_sentence() -> None:
    with pytest.raises(AllToolsFailed, match="there are no words in it"):
        await SimpleBundleTool().execute("?!")
