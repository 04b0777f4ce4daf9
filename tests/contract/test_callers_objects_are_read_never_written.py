"""**The caller's objects are read, never written.**"""

from __future__ import annotations

import asyncio
import copy
import traceback
from typing import Any

import pytest

from contract.kit import Fixed, Model, bundle, plain, registry, reliable
from steer_llm_sdk import EventManager
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import OrchestrationConfig, PlanningRule, ReliableOrchestrator, RuleBasedPlanner
from steer_llm_sdk.orchestration.planning import RuleAction
from steer_llm_sdk.orchestration.tools import LLMBundleTool
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.testing import OK, ScriptedTool, err, stubborn

BOTH = pytest.mark.parametrize("orchestrator", [plain, reliable])


class Vandal(ScriptedTool):
    """Writes into everything it is given, each time it is asked. `seen` is what it was given before it wrote."""

    def __init__(self, name: str, *steps: Any, **kwargs: Any) -> None:
        super().__init__(name, *steps, **kwargs)
        self.seen: list[tuple[Any, Any]] = []

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        self.seen.append((copy.deepcopy(request), copy.deepcopy(options)))
        _wreck(request)
        _wreck(options)
        return await super().execute({}, {}, event_manager)


def _wreck(value: Any) -> None:
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _wreck(item)
    if isinstance(value, dict):
        value.clear()
        value["wrecked"] = True
    if isinstance(value, list):
        value.append("wrecked")


def given() -> dict[str, Any]:
    return {"query": "q", "context": {"pages": [1, {"n": 2}]}, "messages": [{"role": "user", "content": "x"}]}


@BOTH
@pytest.mark.parametrize(
    "options", [{}, {"timeout_ms": 500}, {"idempotency_key": "k"}, {"per_agent_timeout_ms": 500}, {"streaming": True}]
)
async def test_what_the_caller_was_handling_keeps_its_traceback_when_a_tool_fails(
    orchestrator: Any, options: Any
) -> None:
    async def handling(runner: Any) -> tuple[str, int, bool]:
        try:
            raise KeyError("the caller's own")
        except KeyError as own:
            output = await runner.run("q", "t", options=options)
            kept = [output._cause]
            for error in kept:
                kept += [link for link in (error.__cause__, error.__context__) if link is not None and link not in kept]
            return output.status, len(traceback.extract_tb(own.__traceback__)), own in kept

    assert await handling(orchestrator(ScriptedTool("t", err(400)))) == ("failed", 1, False)


@BOTH
@pytest.mark.parametrize("options", [None, {"timeout_ms": 500}, {"idempotency_key": "k"}])
async def test_request_and_tool_options_are_never_written_and_no_attempt_sees_what_another_wrote(
    orchestrator: Any, options: Any
) -> None:
    tool = Vandal("t", err(503), err(503), OK("x"))
    request, tool_options = given(), {"k": 3, "limits": {"fields": [1, 2]}}
    runner = reliable(tool, retry=RetryPolicy(initial_delay=0)) if orchestrator is reliable else plain(tool)
    await runner.run(request, "t", tool_options, {"max_retries": 2, **(options or {})})
    assert request == given()
    assert tool_options == {"k": 3, "limits": {"fields": [1, 2]}}
    assert len(tool.seen) >= 1
    assert all(seen == tool.seen[0] for seen in tool.seen)
    assert tool.seen[0][0] == given()


async def test_a_fallback_and_the_default_options_of_a_tool_are_not_touched_either() -> None:
    first = Vandal("first", err(400), default_options={"limits": {"a": [1]}})
    second = Vandal("second", OK("x"), default_options={"limits": {"a": [1]}})
    output = await reliable(first, second).run(given())
    assert output.metadata["tool_name"] == "second"
    assert second.seen[0][0] == given()
    assert (first.default_options, second.default_options) == ({"limits": {"a": [1]}}, {"limits": {"a": [1]}})


@BOTH
async def test_the_config_is_never_written(orchestrator: Any) -> None:
    def redactor(content: dict[str, Any]) -> dict[str, Any]:
        _wreck(content)
        return content

    fields: dict[str, Any] = {
        "budget": {"tokens": 1000, "ms": 60_000},
        "metadata": {"team": {"names": ["a"]}},
        "quality_requirements": {"min_confidence": 0.1},
        "idempotency_key": "k",
        "deterministic": True,
    }
    config = OrchestrationConfig(redactor_cb=redactor, **copy.deepcopy(fields))
    output = await orchestrator(Vandal("t")).run("q", "t", None, config, EventManager(on_create_event=lambda _: None))
    _wreck(output.metadata)
    assert config.model_dump(include=set(fields)) == fields
    assert config.model_fields_set == {*fields, "redactor_cb"}


@BOTH
async def test_a_mapping_of_options_is_never_written(orchestrator: Any) -> None:
    options = {"metadata": {"a": 1}, "budget": {"tokens": 5}}
    await orchestrator(Vandal("t")).run("q", "t", None, options)
    assert options == {"metadata": {"a": 1}, "budget": {"tokens": 5}}


async def test_what_a_planner_decided_is_never_written() -> None:
    planner = Fixed("t", "u", options={"limits": {"a": [1]}})
    before = planner.decision.model_copy(deep=True)
    tool = Vandal("t", err(400))
    for _ in range(2):
        output = await reliable(tool, Vandal("u"), planner=planner).run("q")
        _wreck(output.metadata)
    assert planner.decision == before
    assert tool.seen[0][1]["limits"] == tool.seen[1][1]["limits"] == {"a": [1]}


async def test_what_a_rule_says_is_never_written() -> None:
    rule = PlanningRule("r", action=RuleAction("t", {"limits": {"a": [1]}}))
    tool = Vandal("t")
    runner = ReliableOrchestrator(RuleBasedPlanner([rule]), registry=registry(tool))
    for _ in range(2):
        await runner.run("q")
    assert [options["limits"] for _, options in tool.seen] == [{"a": [1]}, {"a": [1]}]
    assert rule.action is not None
    assert rule.action.tool_options == {"limits": {"a": [1]}}


@BOTH
@pytest.mark.parametrize("content", [{"a": {"b": [1]}}, bundle("x", "y", confidence=0.5)], ids=["mapping", "bundle"])
async def test_a_remembered_output_is_never_written(orchestrator: Any, content: Any) -> None:
    runner = orchestrator(ScriptedTool("t", OK(content, metadata={"own": {"x": 1}})))
    options = {"idempotency_key": "k"}
    first = await runner.run("q", "t", None, options)
    kept = first.model_copy(deep=True)
    for _ in range(3):
        output = await runner.run("q", "t", None, options)
        assert output == kept
        for part in (output.content, output.metadata, output.per_agent, output.usage):
            _wreck(part)
    for part in (first.content, first.metadata, first.per_agent):
        _wreck(part)
    assert await runner.run("q", "t", None, options) == kept


@BOTH
async def test_what_a_tool_returned_is_not_shared_with_the_output(orchestrator: Any) -> None:
    kept = {"content": {"pages": [1]}, "usage": {"total_tokens": 1, "d": {"x": 1}}, "metadata": {"own": {"y": 1}}}
    output = await orchestrator(ScriptedTool("t", OK(kept))).run("q", "t")
    for part in (output.content, output.metadata, output.usage, output.per_agent):
        _wreck(part)
    assert kept == {
        "content": {"pages": [1]},
        "usage": {"total_tokens": 1, "d": {"x": 1}},
        "metadata": {"own": {"y": 1}},
    }


@BOTH
async def test_no_two_parts_of_an_output_are_one_object(orchestrator: Any) -> None:
    usage = {"total_tokens": 3, "details": {"cached": 1}}
    output = await orchestrator(ScriptedTool("t", OK("x", usage=usage))).run("q", "t")
    _wreck(output.usage)
    assert output.per_agent["t"]["usage"] == usage
    refused = await orchestrator(ScriptedTool("t", err(400))).run("q", "t")
    _wreck(refused.content)
    assert refused.errors is not None
    assert refused.errors["t"]["code"] == "validation"
    both = await reliable(ScriptedTool("t", err(400)), ScriptedTool("u", err(400))).run("q")
    _wreck(both.content)
    assert both.errors is not None
    assert [info["code"] for info in both.errors.values()] == ["validation"] * 2


@BOTH
async def test_no_two_outputs_share_what_says_which_fields_are_set(orchestrator: Any) -> None:
    runner = orchestrator(ScriptedTool("t"))
    (await runner.run("q", "t")).model_fields_set.clear()
    assert (await runner.run("q", "t")).model_dump(exclude_unset=True)["content"] == "ok"


@BOTH
async def test_what_a_tool_estimates_from_is_not_the_callers_object(orchestrator: Any) -> None:
    class Estimates(Vandal):
        def worst_case(self, request: Any, options: Any) -> Amount:
            _wreck(request)
            _wreck(options)
            return Amount(1)

    request, tool_options = given(), {"limits": {"fields": [1]}}
    output = await orchestrator(Estimates("t")).run(request, "t", tool_options, {"budget": {"tokens": 10}})
    assert output.status == "succeeded"
    assert request == given()
    assert tool_options == {"limits": {"fields": [1]}}


@BOTH
async def test_one_config_may_be_shared_by_any_number_of_runs_and_each_gets_its_own_request_id(
    orchestrator: Any,
) -> None:
    config = OrchestrationConfig(timeout_ms=5000, metadata={"a": 1})
    tool = ScriptedTool("t", OK("x", after=1))
    runner = orchestrator(tool)
    outputs = await asyncio.gather(*(runner.run(f"q{n}", "t", None, config) for n in range(50)))
    ids = {output.metadata["request_id"] for output in outputs}
    assert len(ids) == 50
    assert {call.options["request_id"] for call in tool.calls} == ids
    assert (config.request_id, config.trace_id) == (None, None)


@BOTH
async def test_a_finished_output_is_not_written_by_work_that_was_left_behind(orchestrator: Any) -> None:
    """Two replicates of three are deaf to their cancellation; they end, and try again, long after the run."""

    class Deaf(Model):
        async def request(self, request: Any, on_text: Any = None) -> Any:
            if len(self.requests) > 0:
                self.requests.append(request)
                await ScriptedTool("deaf", stubborn(30)).execute("q")
                raise ProviderError("down", "p", 503)
            return await super().request(request, on_text)

    tool = LLMBundleTool("t", Deaf(), k=3)
    output = await orchestrator(tool).run("q", "t", None, {"timeout_ms": 1000, "max_retries": 2})
    assert output.status == "partial"
    finished = output.model_copy(deep=True)
    await asyncio.sleep(1000)
    assert output == finished
