"""**Every option does something.** One test per cell of the table; without the option the run comes out otherwise."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from contract.kit import STEADY, Fixed, Model, bundle, calls, failed, now, plain, registry, reliable
from steer_llm_sdk import Budget, EventManager
from steer_llm_sdk.models.events import StreamEvent
from steer_llm_sdk.orchestration import BudgetExceeded, OrchestrationConfig, ReliableOrchestrator, RuleBasedPlanner
from steer_llm_sdk.orchestration.tools import LLMBundleTool, LLMTool
from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.reliability import CircuitBreakerConfig
from steer_llm_sdk.testing import HANG, OK, RecordedEvents, ScriptedTool, err

BOTH = pytest.mark.parametrize("orchestrator", [plain, reliable])


async def once(orchestrator: Any, tool: Any, options: dict[str, Any] | None = None, **run: Any) -> Any:
    return await orchestrator(tool).run("q", tool.name, options=options, **run)


def test_there_is_no_option_without_a_test_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in OrchestrationConfig.model_fields if f'"{name}"' not in source] == []


# ── max_parallel ─────────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_max_parallel_is_handed_to_the_tool(orchestrator: Any) -> None:
    tool = ScriptedTool("t")
    await once(orchestrator, tool, {"max_parallel": 7})
    assert tool.calls[0].options["max_parallel"] == 7


@BOTH
@pytest.mark.parametrize(("at_once", "seconds"), [(1, 6), (2, 3), (6, 1)])
async def test_max_parallel_bounds_replicates(orchestrator: Any, at_once: int, seconds: float) -> None:
    model = Model(after=1)
    tool = LLMBundleTool("t", model, k=6, options={"latency": "min"})
    output = await once(orchestrator, tool, {"max_parallel": at_once})
    assert (output.status, model.most_running, now()) == ("succeeded", at_once, seconds)


@BOTH
async def test_max_parallel_of_the_caller_goes_before_the_plans_and_the_tools(orchestrator: Any) -> None:
    tool = ScriptedTool("t", default_options={"max_parallel": 3})
    await once(orchestrator, tool)
    await once(orchestrator, tool, {"max_parallel": 7})
    assert [call.options["max_parallel"] for call in tool.calls] == [3, 7]


# ── budget, timeout_ms, streaming, ids, redactor_cb, metadata ────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize(
    ("budget", "step"),
    [
        ({"tokens": 10}, OK("x", usage={"total_tokens": 11})),
        ({"cost_usd": 0.1}, OK("x", cost_usd=0.2)),
        ({"ms": 500}, OK("x", after=1)),
    ],
)
async def test_budget_is_a_limit(orchestrator: Any, budget: dict[str, float], step: Any) -> None:
    assert (await once(orchestrator, ScriptedTool("t", step))).content == "x"
    with pytest.raises(BudgetExceeded):
        await once(orchestrator, ScriptedTool("t", step), {"budget": budget})


@BOTH
async def test_budgets_are_limits_for_all_runs_together(orchestrator: Any) -> None:
    tool = ScriptedTool("t", OK("x", cost_usd=0.4), resource_requirements={"estimated_cost_per_run": 0.4})
    runner = orchestrator(tool)
    for _ in range(2):
        await runner.run("q", "t", options={"budgets": [Budget("team", usd=1)]})
    with pytest.raises(BudgetExceeded, match="cost budget 'team' exceeded"):
        await runner.run("q", "t", options={"budgets": [Budget("team", usd=1)]})
    assert (await runner.run("q", "t")).content == "x"


@BOTH
async def test_timeout_ms_is_a_deadline(orchestrator: Any) -> None:
    assert (await once(orchestrator, ScriptedTool("t", OK(after=1)))).status == "succeeded"
    with pytest.raises(BudgetExceeded):
        await once(orchestrator, ScriptedTool("t", OK(after=1)), {"timeout_ms": 500})


@BOTH
async def test_streaming_is_handed_to_the_tool(orchestrator: Any) -> None:
    tool = ScriptedTool("t")
    await once(orchestrator, tool, {"streaming": True})
    await once(orchestrator, tool)
    assert [call.options.get("streaming") for call in tool.calls] == [True, None]


@BOTH
async def test_streaming_shows_the_text_of_a_model_as_it_comes(orchestrator: Any) -> None:
    class Talks(Model):
        async def request(self, request: Any, on_text: Any = None) -> Any:
            for piece in ("y", "es"):
                if on_text is not None:
                    on_text(piece)
            return await super().request(request, on_text)

    for streaming, text in ((True, "yes"), (False, "")):
        events = RecordedEvents()
        await once(orchestrator, LLMTool("t", Talks()), {"streaming": streaming}, event_manager=events)
        assert events.text == text


@BOTH
async def test_trace_id_and_request_id_are_in_output_events_and_what_the_tool_gets(orchestrator: Any) -> None:
    tool, events = ScriptedTool("t", OK("x", usage={"total_tokens": 1})), RecordedEvents()
    output = await once(orchestrator, tool, {"trace_id": "T", "request_id": "R"}, event_manager=events)
    assert (output.metadata["trace_id"], output.metadata["request_id"]) == ("T", "R")
    assert (tool.calls[0].options["trace_id"], tool.calls[0].options["request_id"]) == ("T", "R")
    assert {(event.metadata["trace_id"], event.request_id) for event in events.all} == {("T", "R")}


@BOTH
async def test_redactor_cb_is_called_on_each_payload_and_each_metadata(orchestrator: Any) -> None:
    asked: list[dict[str, Any]] = []

    def redactor(content: dict[str, Any]) -> dict[str, Any]:
        asked.append(dict(content))
        return {key: "***" if value == "secret" else value for key, value in content.items()}

    told: list[StreamEvent] = []
    tool = ScriptedTool("t", OK("x", usage={"key": "secret"}))
    await once(
        orchestrator,
        tool,
        {"redactor_cb": redactor, "trace_id": "secret"},
        event_manager=EventManager(on_create_event=told.append),
    )
    assert [event.type for event in told] == ["start", "usage", "complete"]
    assert "secret" not in repr(told)
    assert {"key": "secret"} in asked
    assert len(asked) == 4  # three metadata, one payload


@BOTH
async def test_metadata_is_copied_into_events_and_output_under_user(orchestrator: Any) -> None:
    events = RecordedEvents()
    output = await once(orchestrator, ScriptedTool("t"), {"metadata": {"team": "a"}}, event_manager=events)
    assert output.metadata["user"] == {"team": "a"}
    assert [event.metadata["user"] for event in events.all] == [{"team": "a"}] * len(events.all)
    assert "user" not in (await once(orchestrator, ScriptedTool("t"))).metadata


@BOTH
async def test_metadata_that_was_put_into_the_options_in_place_is_copied_too(orchestrator: Any) -> None:
    options = OrchestrationConfig()
    options.metadata["team"] = "a"
    output = await orchestrator(ScriptedTool("t")).run("q", "t", None, options)
    assert output.metadata["user"] == {"team": "a"}


# ── per_agent_timeout_ms ─────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_per_agent_timeout_ms_bounds_each_call_of_the_tool(orchestrator: Any) -> None:
    info = failed(
        await once(orchestrator, ScriptedTool("t", HANG), {"per_agent_timeout_ms": 500, "retry_on_failure": False})
    )
    assert (info["type"], info["code"], now()) == ("ProviderTimeout", "timeout", 0.5)


async def test_per_agent_timeout_ms_bounds_each_attempt() -> None:
    tool = ScriptedTool("t", HANG, OK(after=0.4))
    output = await once(reliable, tool, {"per_agent_timeout_ms": 500})
    assert (output.status, now()) == ("succeeded", 0.5 + 1 + 0.4)


@BOTH
async def test_per_agent_timeout_ms_bounds_each_replicate(orchestrator: Any) -> None:
    class Uneven(Model):
        async def request(self, request: Any, on_text: Any = None) -> Any:
            self.after = 3600.0 if not self.requests else 0.1
            return await super().request(request, on_text)

    model = Uneven()
    output = await once(
        orchestrator,
        LLMBundleTool("t", model, k=3, options={"latency": "min"}),
        {"per_agent_timeout_ms": 500, "retry_on_failure": False},
    )
    assert (output.status, model.cancelled, now()) == ("partial", 1, 0.5)


# ── deterministic ────────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_deterministic_gives_the_tool_a_fixed_seed_and_temperature_0(orchestrator: Any) -> None:
    tool = ScriptedTool("t")
    for options in ({"deterministic": True}, {"deterministic": True}, {}):
        await once(orchestrator, tool, options)
    seen = [(call.options.get("seed"), call.options.get("temperature")) for call in tool.calls]
    assert seen[0] == seen[1]
    assert isinstance(seen[0][0], int)
    assert seen[0][1] == 0
    assert seen[2] == (None, None)


@BOTH
async def test_deterministic_keeps_the_callers_seed(orchestrator: Any) -> None:
    tool = ScriptedTool("t")
    await once(orchestrator, tool, {"deterministic": True}, tool_options={"seed": 7})
    assert tool.calls[0].options["seed"] == 7


@BOTH
async def test_deterministic_reaches_the_model_and_the_output_says_what_it_cannot_take(orchestrator: Any) -> None:
    model = Model()
    model.ignores = ("seed",)
    output = await once(orchestrator, LLMTool("t", model), {"deterministic": True})
    assert model.requests[0].temperature == 0
    assert model.requests[0].seed is not None
    assert output.metadata["ignored"] == ["seed"]


@BOTH
async def test_deterministic_makes_a_bundle_repeat_itself(orchestrator: Any) -> None:
    async def answer(request: Any, seed: int) -> int:
        return seed

    tool = SimpleBundleTool(answer, name="t")
    outputs = [await once(orchestrator, tool, {"deterministic": True}) for _ in range(2)]
    answers = [[r.data for r in output.evidence.replicates] for output in outputs]
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 3


# ── retry_on_failure, max_retries ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("orchestrator", "options", "attempts"),
    [
        (plain, {}, 1),
        (plain, {"max_retries": 0}, 1),
        (plain, {"max_retries": 1}, 2),
        (plain, {"max_retries": 5}, 6),
        (plain, {"max_retries": 5, "retry_on_failure": False}, 1),
        (reliable, {}, 3),
        (reliable, {"retry_on_failure": False}, 1),
        (reliable, {"max_retries": 5, "retry_on_failure": False}, 1),
        (reliable, {"max_retries": 0}, 1),
        (reliable, {"max_retries": 1}, 2),
        (reliable, {"max_retries": 3}, 4),
    ],
)
async def test_max_retries_n_makes_at_most_n_and_one_attempts_and_retry_on_failure_false_makes_one(
    orchestrator: Any, options: dict[str, Any], attempts: int
) -> None:
    tool = ScriptedTool("t", err(429, retry_after=0))
    output = await once(orchestrator, tool, options)
    assert (output.status, len(tool.calls), output.per_agent["t"]["attempts"]) == ("failed", attempts, attempts)


@pytest.mark.parametrize("orchestrator", [plain, reliable])
async def test_max_retries_stops_at_the_first_success(orchestrator: Any) -> None:
    tool = ScriptedTool("t", err(503), OK("x"))
    output = await once(orchestrator, tool, {"max_retries": 5})
    assert (output.status, len(tool.calls)) == ("succeeded", 2)


async def test_max_retries_unset_means_the_retry_policy_decides() -> None:
    tool = ScriptedTool("t", err(429, retry_after=0))
    runner = reliable(tool, retry=STEADY.model_copy(update={"max_attempts": 5}))
    await runner.run("q", "t")
    assert len(tool.calls) == 5


# ── enable_circuit_breaker, enable_fallback ──────────────────────────────────────────────────────────────────────────

BREAKER = CircuitBreakerConfig(failure_threshold=1)


@pytest.mark.parametrize(("enabled", "called"), [(True, 1), (False, 3)])
async def test_enable_circuit_breaker(enabled: bool, called: int) -> None:
    tool = ScriptedTool("t", err(503))
    runner = reliable(tool, breaker=BREAKER)
    for _ in range(3):
        await runner.run("q", "t", None, {"enable_circuit_breaker": enabled, "max_retries": 0})
    assert len(tool.calls) == called


@pytest.mark.parametrize(("options", "config", "called"), [({}, {}, [1, 1]), ({"enable_fallback": False}, {}, [1, 0])])
async def test_enable_fallback(options: Any, config: Any, called: list[int]) -> None:
    first, second = ScriptedTool("first", err(400)), ScriptedTool("second")
    await reliable(first, second, **config).run("q", None, None, options)
    assert calls(first, second) == called


async def test_enable_fallback_can_be_switched_off_for_the_whole_orchestrator() -> None:
    first, second = ScriptedTool("first", err(400)), ScriptedTool("second")
    await reliable(first, second, enable_fallback=False).run("q")
    assert calls(first, second) == [1, 0]


async def test_an_orchestrator_that_plans_nothing_has_neither_breaker_nor_fallback_to_switch() -> None:
    for options in ({}, {"enable_circuit_breaker": False, "enable_fallback": False}):
        tool = ScriptedTool("t", err(503))
        runner = plain(tool, ScriptedTool("u"))
        for _ in range(8):
            assert failed(await runner.run("q", "t", None, options))["status_code"] == 503
        assert len(tool.calls) == 8


# ── idempotency_key, tenant ──────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_idempotency_key(orchestrator: Any) -> None:
    tool = ScriptedTool("t")
    runner = orchestrator(tool)
    for options in ({"idempotency_key": "k"}, {"idempotency_key": "k"}, {}, {}):
        await runner.run("q", "t", None, options)
    assert len(tool.calls) == 3


@BOTH
async def test_tenant_scopes_the_key(orchestrator: Any) -> None:
    tool = ScriptedTool("t")
    runner = orchestrator(tool)
    for tenant in ("a", "b", "a"):
        await runner.run(f"of {tenant}", "t", None, {"idempotency_key": "k", "tenant": tenant})
    assert len(tool.calls) == 2


# ── quality_requirements ─────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_quality_requirements_are_recorded_in_metadata(orchestrator: Any) -> None:
    output = await once(orchestrator, ScriptedTool("t"), {"quality_requirements": {"min_quality": 0.5}})
    assert output.metadata["quality_requirements"] == {"min_quality": 0.5}


async def test_quality_requirements_reach_the_planner() -> None:
    planner = Fixed("t")
    wanted = {"min_quality": 0.9, "max_latency_ms": 500, "min_confidence": 0.1}
    await reliable(ScriptedTool("t"), planner=planner).run("q", None, None, {"quality_requirements": wanted})
    (context,) = planner.asked
    assert context is not None
    assert context.quality_requirements == wanted


async def test_a_bundle_below_min_confidence_is_not_acceptable_and_the_fallback_is_tried() -> None:
    first = ScriptedTool("first", OK(bundle("a", "b", confidence=0.4)))
    second = ScriptedTool("second", OK(bundle("c", "c", confidence=0.9)))
    runner = reliable(first, second)
    wanted = {"quality_requirements": {"min_confidence": 0.8}}
    output = await runner.run("q", None, None, wanted)
    assert (output.metadata["tool_name"], output.status) == ("second", "succeeded")
    assert "0.40" in output.errors["first"]["message"]
    assert (await runner.run("q")).metadata["tool_name"] == "first"


async def test_max_latency_ms_passes_over_a_tool_that_declares_to_take_longer() -> None:
    slow = ScriptedTool("slow", resource_requirements={"estimated_duration_ms": 5000})
    quick = ScriptedTool("quick", resource_requirements={"estimated_duration_ms": 50})
    runner = ReliableOrchestrator(RuleBasedPlanner(), registry=registry(slow, quick))
    output = await runner.run("q", None, None, {"quality_requirements": {"max_latency_ms": 1000}})
    assert output.metadata["tool_name"] == "quick"
    assert (await runner.run("q")).metadata["tool_name"] == "slow"


@pytest.mark.parametrize("wanted", [-0.1, 1.1, "high", True])
async def test_a_min_confidence_that_cannot_be_met_or_read_is_refused(wanted: Any) -> None:
    tool = ScriptedTool("t")
    with pytest.raises(ValueError, match="min_confidence"):
        await reliable(tool).run("q", "t", None, {"quality_requirements": {"min_confidence": wanted}})
    assert tool.calls == []


async def test_options_do_not_cost_time_of_their_own() -> None:
    await once(reliable, ScriptedTool("t"), {"timeout_ms": 1000, "per_agent_timeout_ms": 1000, "idempotency_key": "k"})
    assert now() == 0
    await asyncio.sleep(0)
