"""Which limit is whose."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from contract.kit import failed, reliable
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import ReliabilityConfig
from steer_llm_sdk.reliability import RateLimit
from steer_llm_sdk.testing import OK, ScriptedTool

ONE, TWO, THREE = (RateLimit(requests_per_minute=n, max_queue=0) for n in (1, 2, 3))
ALONE = {"max_retries": 0}


@pytest.mark.parametrize(
    ("target", "limit"),
    [("openai", ONE), ("openai@http://a/v1", TWO), ("openai@http://b/v1", ONE), ("xai", THREE)],
)
def test_an_endpoint_has_its_own_limit_else_its_providers_else_the_default(target: str, limit: RateLimit) -> None:
    config = ReliabilityConfig(rate_limits={"openai": ONE, "openai@http://a/v1": TWO, "default": THREE})
    assert config.limit_for(target) is limit


def test_a_provider_that_is_not_named_is_not_limited_unless_limits_are_learned() -> None:
    assert ReliabilityConfig(rate_limits={"openai": ONE}).limit_for("xai") is None
    assert ReliabilityConfig(rate_limits={"openai": ONE}, learn_rate_limits=True).limit_for("xai") == RateLimit()


async def test_the_default_is_for_each_provider_and_not_for_all_together() -> None:
    tools = [ScriptedTool(name, provider=name) for name in "ab"]
    runner = reliable(*tools, rate_limits={"default": ONE})
    outputs = [await runner.run("q", name, None, ALONE) for name in "abab"]
    assert [output.status for output in outputs] == ["succeeded", "succeeded", "failed", "failed"]
    assert failed(outputs[3])["type"] == "QueueFull"


async def test_an_orchestrator_knows_nothing_of_what_another_has_sent() -> None:
    for _ in range(2):
        runner = reliable(ScriptedTool("a"), rate_limits={"a": ONE})
        assert (await runner.run("q", "a", None, ALONE)).status == "succeeded"


class Sized(ScriptedTool):
    """Says that it may take 60 tokens."""

    def worst_case(self, request: Any, options: Any) -> Amount:
        return Amount(60)


@pytest.mark.parametrize("budget", [None, {"tokens": 1000}], ids=["without budget", "with a budget"])
async def test_what_a_tool_says_that_it_may_take_is_reserved(budget: dict[str, int] | None) -> None:
    tool = Sized("a", OK("x", usage={"total_tokens": 15}, after=1))
    runner = reliable(tool, rate_limits={"a": RateLimit(tokens_per_minute=60)})
    outputs = await asyncio.gather(*(runner.run("q", "a", None, {"budget": budget}) for _ in range(2)))
    # 60 of 60 are reserved; at 1 there are the one that came in and 45 that came back, and the 14 missing take 14 s.
    assert [output.attempts[0].get("queued_ms", 0) for output in outputs] == [0, 15_000]


@pytest.mark.parametrize(
    "field",
    [
        {"requests_per_minute": 0},
        {"tokens_per_minute": -1},
        {"tokens_per_minute": float("inf")},
        {"max_concurrent": 0},
        {"max_queue": -1},
        {"max_wait": float("nan")},
        {"per_second": 1},
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RateLimit(**field)
