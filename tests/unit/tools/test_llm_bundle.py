"""LLMBundleTool: k answers, what they agree on, and an honest account of those that failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, model_validator
from scripted_model import USAGE, Say, ScriptedModel, callers_with_one_key

from steer_llm_sdk.errors import AllToolsFailed, BudgetExceeded, InvalidRequest, ProviderError
from steer_llm_sdk.orchestration import (
    EvidenceBundle,
    OrchestrationOutput,
    ReliabilityConfig,
    ReliableOrchestrator,
    ToolRegistry,
)
from steer_llm_sdk.orchestration.tools import LLMBundleTool
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.testing import RecordedEvents

DOWN = ProviderError("down", "test", status_code=503)


class Verdict(BaseModel):
    answer: int
    why: str = ""


def tool(*steps: Any, k: int = 3, output_type: Any = None, **given: Any) -> tuple[LLMBundleTool, ScriptedModel]:
    model = ScriptedModel(*steps)
    """All k are asked for at once, unless `options` say otherwise."""
    options = given.pop("options", {"latency": "min"})
    return LLMBundleTool("b", model, output_type=output_type, k=k, options=options, **given), model


async def run(bundle_tool: LLMBundleTool, attempts: int = 1, **given: Any) -> OrchestrationOutput:
    registry = ToolRegistry()
    registry.register_tool(bundle_tool)
    config = ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=attempts))
    return await ReliableOrchestrator(registry=registry, reliability_config=config).run("Why?", "b", **given)


def evidence(output: OrchestrationOutput) -> EvidenceBundle:
    assert output.evidence is not None
    return output.evidence


@pytest.mark.parametrize("silence_timeout", [None, 10.0], ids=["in turn", "beside"])
async def test_five_answers_come_from_the_next_model_in_ten_calls_where_the_first_is_down_for_ever(
    silence_timeout: float | None,
) -> None:
    first = ScriptedModel(DOWN, name="a:model", target="a")
    second = ScriptedModel("yes", name="b:model", target="b")
    registry = ToolRegistry()
    registry.register_tool(LLMBundleTool("b", [first, second], k=5, options={"latency": "min"}))
    config = ReliabilityConfig(silence_timeout=silence_timeout)
    output = await ReliableOrchestrator(registry=registry, reliability_config=config).run("Why?", "b")
    assert (output.status, evidence(output).meta.k_completed) == ("succeeded", 5)
    assert (len(first.requests), len(second.requests), len(output.attempts)) == (5, 5, 10)


async def test_what_answers_at_once_leaves_to_the_others_is_theirs_to_try_again_with() -> None:
    """Four of five answer at the first call, so six calls are left, and one is kept for the next model."""
    quick, slow = Say(text="yes", after=0.1), Say(fail=DOWN, after=0.2)
    first = ScriptedModel(*[quick] * 4, slow, DOWN, "yes", name="a:model", target="a")
    second = ScriptedModel("no", name="b:model", target="b")
    registry = ToolRegistry()
    registry.register_tool(LLMBundleTool("b", [first, second], k=5, options={"latency": "min"}))
    output = await ReliableOrchestrator(registry=registry).run("Why?", "b")
    assert (output.status, len(first.requests), len(second.requests)) == ("succeeded", 7, 0)


# What comes back.


async def test_k_replicates_and_what_they_agree_on() -> None:
    made, model = tool("yes", "no", "yes")
    bundle = await made.execute("Why?")
    assert [replicate.id for replicate in bundle.replicates] == ["r1", "r2", "r3"]
    assert [replicate.data for replicate in bundle.replicates] == ["yes", "no", "yes"]
    assert (bundle.summary.consensus, bundle.summary.support) == ("yes", pytest.approx(2 / 3))
    assert bundle.summary.disagreements[0].replicate_ids == ["r1", "r2", "r3"]
    meta = bundle.meta
    assert (meta.task, meta.k, meta.k_completed, meta.model, meta.early_stopped) == ("b", 3, 3, "test:model", False)
    assert bundle.usage_total == {name: 3 * count for name, count in USAGE.items()}
    assert (bundle.cost_total_usd, bundle.cost_breakdown) == (pytest.approx(0.03), {"test:model": pytest.approx(0.03)})
    assert len(model.requests) == 3


async def test_the_run_reports_the_bundle_as_content() -> None:
    output = await run(tool("yes")[0])
    assert (output.status, output.usage["total_tokens"], output.cost_usd) == ("succeeded", 45, pytest.approx(0.03))
    assert output.metadata["bundle_meta"]["k"] == 3
    assert evidence(output).summary.support == 1.0


async def test_the_task_is_the_requests_type_where_it_has_one() -> None:
    made, _ = tool("yes")
    assert (await made.execute({"query": "Why?", "type": "grading"})).meta.task == "grading"


async def test_structured_answers_are_compared_by_the_fields_that_are_named() -> None:
    answers = [{"answer": 1, "why": "a"}, {"answer": 2, "why": "b"}, {"answer": 2, "why": "c"}]
    made, _ = tool(*answers, output_type=Verdict, fields=["answer"])
    summary = (await made.execute("Why?")).summary
    assert summary.consensus == {"answer": 2, "why": "b"}
    assert summary.support == pytest.approx(2 / 3)


class Span(BaseModel):
    start: int
    end: int

    @model_validator(mode="after")
    def _check_order(self) -> Span:
        if self.start >= self.end:
            raise ValueError("a span ends after its start")
        return self


async def test_a_mix_that_the_form_refuses_is_replaced_by_a_real_answer_that_is_named() -> None:
    said = [{"start": start, "end": end} for start, end in [(3, 5), (3, 4), (3, 6), (1, 2), (0, 2)]]
    made, _ = tool(*said, k=5, output_type=Span)
    bundle = await made.execute("Why?")
    assert (bundle.summary.consensus, bundle.metadata["consensus_from"]) == ({"start": 3, "end": 4}, "r2")


async def test_each_replicate_has_its_own_seed_and_idempotency_key() -> None:
    made, model = tool("yes")
    bundle = await made.execute("Why?", {"idempotency_key": "k:b"})
    assert bundle.meta.seeds == [request.seed for request in model.requests] == [0, 1, 2]
    assert [request.idempotency_key for request in model.requests] == ["k:b:r1", "k:b:r2", "k:b:r3"]


async def test_seeds_are_the_callers_or_made_from_the_callers_seed() -> None:
    made, model = tool("yes", k=2)
    await made.execute("Why?", {"seeds": [7, 8, 9]})
    await made.execute("Why?", {"seed": 5})
    assert [request.seed for request in model.requests] == [7, 8, 5000, 5001]


async def test_a_deterministic_run_has_fixed_seeds_and_temperature_0() -> None:
    made, model = tool("yes", temperature=0.9)
    await run(made, options={"deterministic": True})
    assert [(request.seed, request.temperature) for request in model.requests] == [(0, 0), (1, 0), (2, 0)]


async def test_an_unknown_price_makes_the_total_unknown_and_keeps_what_is_known() -> None:
    made, _ = tool("yes", Say(text="yes", reply={"cost_usd": None}), "yes")
    bundle = await made.execute("Why?")
    assert (bundle.cost_total_usd, bundle.cost_breakdown) == (None, {"test:model": pytest.approx(0.02)})


async def test_what_answered_and_what_was_ignored_is_noted_once() -> None:
    made, _ = tool(Say(text="yes", reply={"simulated": True, "ignored": ("seed",), "request_id": None}))
    notes = (await made.execute("Why?")).metadata
    assert (notes["simulated"], notes["ignored"]) == (True, ["seed"])
    assert notes.keys() == {"simulated", "ignored", "stopping"}


async def test_the_model_of_a_replicate_is_the_one_that_answered() -> None:
    made, _ = tool(*(Say(text="x", reply={"model": name}) for name in ("m1", "m2", "m1")))
    bundle = await made.execute("Why?")
    assert [replicate.model for replicate in bundle.replicates] == ["m1", "m2", "m1"]
    assert bundle.cost_breakdown == {"m1": pytest.approx(0.02), "m2": pytest.approx(0.01)}


async def test_an_invalid_replicate_has_the_model_that_gave_it_and_counts_among_its_answers() -> None:
    bad = [Say(text="{}", reply={"model": "m2"})] * 2
    good = [Say(text='{"answer": 1}', reply={"model": name}) for name in ("m1", "m3")]
    made, _ = tool(good[0], *bad, good[1], output_type=Verdict, options={"max_parallel": 1})
    bundle = await made.execute("Why?")
    assert [replicate.model for replicate in bundle.replicates] == ["m1", "m2", "m3"]
    models = bundle.summary.models or {}
    assert {name: (each.valid, each.replicates) for name, each in models.items()} == {
        "m1": (1, 1),
        "m2": (0, 1),
        "m3": (1, 1),
    }


async def test_of_models_that_did_not_answer_only_a_single_one_can_be_named() -> None:
    made, _ = tool("yes", DOWN, "yes")
    bundle = await made.execute("Why?")
    assert [replicate.model for replicate in bundle.replicates] == ["test:model"] * 3
    first, second = ScriptedModel("yes", DOWN, name="a:m"), ScriptedModel(DOWN, name="b:m")
    bundle = await LLMBundleTool("b", [first, second], options={"latency": "min"}).execute("Why?", {"k": 2})
    assert sorted(str(replicate.model) for replicate in bundle.replicates) == ["None", "a:m"]


# Replicates that fail.


CUT_OFF = Say(text="Once", reply={"finish_reason": "length"})


async def test_a_text_that_was_cut_off_is_invalid_and_does_not_vote() -> None:
    made, _ = tool(CUT_OFF, CUT_OFF, "yes", "yes", k=4, max_tokens=1)
    bundle = await made.execute("Why?")
    assert (bundle.summary.consensus, bundle.summary.support, bundle.meta.k_completed) == ("yes", 0.5, 2)
    assert [r.quality.errors for r in bundle.replicates[:2]] == [
        ["InvalidOutput: the answer was cut off at max_tokens = 1"]
    ] * 2


async def test_a_whole_value_votes_though_what_followed_it_was_cut_off() -> None:
    whole = Say(text='{"answer": 1}', reply={"finish_reason": "length"})
    bundle = await tool(whole, k=2, output_type=Verdict)[0].execute("Why?")
    assert bundle.meta.k_completed == 2


async def test_a_failed_replicate_is_invalid_and_the_run_is_partial() -> None:
    made, _ = tool("yes", DOWN, "yes")
    output = await run(made)
    bundle = evidence(output)
    assert (output.status, bundle.meta.k_completed) == ("partial", 2)
    assert [(r.id, r.data, r.quality.valid) for r in bundle.replicates] == [
        ("r1", "yes", True),
        ("r2", None, False),
        ("r3", "yes", True),
    ]
    assert bundle.replicates[1].quality.errors == ["ProviderError: down"]
    assert bundle.summary.support == pytest.approx(2 / 3)


async def test_one_valid_answer_alone_is_no_consensus() -> None:
    made, _ = tool("yes", DOWN, DOWN)
    bundle = evidence(await run(made))
    assert (bundle.meta.k_completed, bundle.summary.consensus, bundle.summary.confidence) == (1, None, None)


async def test_all_replicates_failing_is_a_failure_with_every_cause() -> None:
    made, _ = tool(DOWN, ProviderError("no", "test", status_code=400), DOWN)
    with pytest.raises(AllToolsFailed) as caught:
        await made.execute("Why?")
    assert {name: str(error) for name, error in caught.value.failures.items()} == {
        "r1": "down",
        "r2": "no",
        "r3": "down",
    }
    output = await run(tool(DOWN)[0])
    assert (output.status, output.evidence, output.content["error"]["is_retryable"]) == ("failed", None, True)


async def test_each_replicate_is_retried_by_itself() -> None:
    made, model = tool(DOWN, "yes", "yes", "yes")
    output = await run(made, attempts=2)
    assert (output.status, len(model.requests)) == ("succeeded", 4)


async def test_a_replicate_that_does_not_validate_is_repaired_with_a_warning_or_invalid_with_its_cost() -> None:
    second, third = [{"answer": "x"}, {"answer": 1}], [{"answer": "y"}, {"answer": "z"}]
    made, model = tool({"answer": 1}, *second, *third, output_type=Verdict)
    bundle = await made.execute("Why?")
    assert len(model.requests) == 5
    assert [replicate.quality.valid for replicate in bundle.replicates] == [True, True, False]
    assert bundle.replicates[1].quality.warnings == ["the first answer did not have the form asked for"]
    assert bundle.replicates[2].quality.errors[0].startswith("InvalidOutput: test:model gave no usable answer")
    assert [replicate.usage["total_tokens"] for replicate in bundle.replicates] == [15, 30, 30]
    assert bundle.cost_total_usd == pytest.approx(0.05)


async def test_a_replicate_falls_back_to_the_next_model_by_itself() -> None:
    first = ScriptedModel("yes", DOWN, "yes", name="a:m")
    second = ScriptedModel("yes", name="b:m")
    bundle = await LLMBundleTool("b", [first, second], options={"latency": "min"}).execute("Why?")
    assert [replicate.model for replicate in bundle.replicates] == ["a:m", "b:m", "a:m"]
    assert bundle.replicates[1].quality.warnings == ["a:m was asked first: down"]
    assert bundle.meta.model == "a:m, b:m"


async def test_a_model_that_cancels_itself_makes_its_replicate_invalid() -> None:
    made, _ = tool("yes", Say(fail=asyncio.CancelledError()), "yes")
    bundle = await made.execute("Why?")
    assert bundle.replicates[1].quality.errors == ["OrchestratorError: the answer was cancelled from within"]


# Parallel, bounded, cancellable.


async def test_replicates_run_at_once_up_to_max_parallel() -> None:
    made, model = tool(Say(after=1), k=6)
    await made.execute("Why?", {"max_parallel": 2})
    assert (model.most_running, model.at) == (2, [0, 0, 1, 1, 2, 2])


async def test_the_runs_max_parallel_bounds_the_replicates() -> None:
    made, model = tool(Say(after=1), k=4)
    await run(made, options={"max_parallel": 1})
    assert model.most_running == 1


async def test_the_bundle_does_not_depend_on_who_finishes_first() -> None:
    made, _ = tool(Say(text="a", after=3), Say(text="b", after=2), Say(text="b", after=1))
    bundle = await made.execute("Why?")
    assert [(replicate.id, replicate.elapsed_ms) for replicate in bundle.replicates] == [
        ("r1", 3000),
        ("r2", 2000),
        ("r3", 1000),
    ]
    assert bundle.meta.total_elapsed_ms == 3000


@pytest.mark.parametrize("moment", [0.0, 0.5, 1.5, 2.5])
async def test_cancelled_it_cancels_every_child_and_waits_for_it(moment: float) -> None:
    made, model = tool(Say(after=1), k=5)
    events = RecordedEvents()
    task = asyncio.create_task(made.execute("Why?", {"max_parallel": 2}, events))
    await asyncio.sleep(moment)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (model.running, len(asyncio.all_tasks())) == (0, 1)
    assert events.types[-1] == "cancelled"


@pytest.mark.parametrize(
    ("limit", "calls"), [({"max_total_attempts": 2}, 10), ({"max_total_attempts": 13}, 13), ({}, 20)]
)
async def test_a_run_asks_for_k_answers_when_it_counts_its_attempts(limit: dict[str, int], calls: int) -> None:
    made, model = tool(DOWN, k=10)
    registry = ToolRegistry()
    registry.register_tool(made)
    config = ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=2), **limit)
    await ReliableOrchestrator(registry=registry, reliability_config=config).run(
        "Why?", "b", options={"enable_circuit_breaker": False}
    )
    assert len(model.requests) == calls


# Deadlines.


async def test_shortly_before_the_deadline_what_there_is_is_reported() -> None:
    made, model = tool("yes", "yes", Say(text="no", after=60))
    output = await run(made, options={"timeout_ms": 1000})
    bundle = evidence(output)
    assert (output.status, output.elapsed_ms < 1000) == ("partial", True)
    meta = bundle.meta
    assert (meta.early_stopped, meta.early_stop_reason, meta.k_completed) == (True, "deadline", 2)
    assert (bundle.summary.consensus, bundle.summary.support) == ("yes", 1.0)
    assert (output.metadata["cancelled"], model.cancelled) == (["r3"], 1)


async def test_no_more_are_started_when_the_deadline_is_near() -> None:
    made, model = tool(Say(text="yes", after=0.4), k=5)
    output = await run(made, options={"timeout_ms": 1000, "max_parallel": 1})
    assert (len(model.requests), evidence(output).meta.k_completed) == (3, 2)


async def test_a_first_answer_in_the_last_moment_is_still_reported() -> None:
    made, _ = tool(Say(text="yes", after=0.99), Say(after=60), Say(after=60))
    output = await run(made, options={"timeout_ms": 1000})
    assert (output.status, evidence(output).meta.k_completed) == ("partial", 1)


async def test_without_a_valid_replicate_the_deadline_of_the_run_speaks() -> None:
    made, model = tool(Say(after=60))
    with pytest.raises(BudgetExceeded, match="time budget exceeded"):
        await run(made, options={"timeout_ms": 1000})
    assert model.cancelled == 3


async def test_outside_of_a_run_timeout_ms_is_the_deadline() -> None:
    made, _ = tool("yes", Say(after=60))
    bundle = await made.execute("Why?", {"timeout_ms": 1000})
    assert (bundle.meta.k_completed, bundle.meta.early_stop_reason) == (1, "deadline")
    slow, model = tool(Say(after=60))
    with pytest.raises(TimeoutError, match="no valid replicate within timeout_ms = 1000"):
        await slow.execute("Why?", {"timeout_ms": 1000})
    assert model.running == 0


async def test_a_limit_of_the_tool_alone_is_a_failure_of_the_tool() -> None:
    made, _ = tool(Say(after=60))
    output = await run(made, tool_options={"timeout_ms": 1000}, options={"budget": {"ms": 9000}})
    assert (output.status, output.content["error"]["type"], output.elapsed_ms) == ("failed", "TimeoutError", 1000)


@pytest.mark.parametrize("joins_after", [0.0, 0.1])
async def test_of_callers_with_one_key_each_waits_as_long_as_it_said(joins_after: float) -> None:
    made, model = tool(Say(after=0.8))
    callers = [(0.0, 300), (joins_after, 5000), (joins_after, 5000)]
    assert await callers_with_one_key(made, *callers) == ["late", "succeeded", "succeeded"]
    assert [request.timeout for request in model.requests] == [None] * 3


async def test_what_there_is_is_not_reported_early_while_a_caller_with_the_key_has_time() -> None:
    made, model = tool(Say(after=0.1), Say(after=0.2), Say(after=0.8))
    assert await callers_with_one_key(made, (0.0, 500), (0.3, 5000)) == ["late", "succeeded"]
    assert (len(model.requests), model.cancelled) == (3, 0)


async def test_of_callers_with_one_key_the_last_deadline_cuts_the_bundle() -> None:
    made, model = tool(Say(after=0.1), Say(after=60))
    assert await callers_with_one_key(made, (0.0, 500), (0.3, 1000)) == ["late", "partial"]
    assert (len(model.requests), model.cancelled) == (3, 2)


async def test_a_child_that_is_deaf_to_cancellation_does_not_hold_the_bundle() -> None:
    class Deaf(ScriptedModel):
        async def _play(self, step: Say, on_text: Any) -> Any:
            while step.after:
                try:
                    return await super()._play(step, on_text)
                except asyncio.CancelledError:
                    step = Say(text="late", after=5)
            return await super()._play(step, on_text)

    made = LLMBundleTool("b", Deaf("yes", "yes", Say(after=60)), options={"latency": "min"})
    started = asyncio.get_running_loop().time()
    bundle = await made.execute("Why?", {"timeout_ms": 1000})
    assert asyncio.get_running_loop().time() - started <= 1.0
    assert bundle.meta.k_completed == 2


# Budgets.


async def test_over_the_runs_budget_no_more_are_started_and_what_there_is_is_reported() -> None:
    made, model = tool(Say(text="yes", after=1), k=5, max_tokens=30)
    events = RecordedEvents()
    output = await run(made, options={"budget": {"tokens": 100}}, event_manager=events)
    meta = evidence(output).meta
    assert (output.status, len(model.requests)) == ("partial", 2)
    assert (meta.k_completed, meta.early_stopped, meta.early_stop_reason) == (2, True, "budget")
    assert "no more replicates are started: tokens budget exceeded" in events.data("warning")[0]["message"]


async def test_one_after_the_other_more_fit_into_the_same_budget() -> None:
    made, model = tool("yes", k=5, max_tokens=30)
    await run(made, options={"budget": {"tokens": 100}, "max_parallel": 1})
    assert len(model.requests) == 5


async def test_a_budget_that_allows_not_even_one_replicate_is_raised() -> None:
    made, model = tool("yes", max_tokens=500)
    with pytest.raises(BudgetExceeded, match="tokens budget exceeded: 510 > 100"):
        await run(made, options={"budget": {"tokens": 100}})
    assert model.requests == []


async def test_every_request_has_the_time_limits_of_the_tool_or_of_the_call() -> None:
    made, model = tool("yes", k=2, first_byte_timeout=2.5, chunk_timeout=0.5)
    await made.execute("Why?")
    await made.execute("Why?", {"chunk_timeout": 4})
    limits = [(request.first_byte_timeout, request.chunk_timeout) for request in model.requests]
    assert limits == [(2.5, 0.5), (2.5, 0.5), (2.5, 4), (2.5, 4)]


async def test_the_replicates_share_the_budget_where_nobody_set_max_tokens() -> None:
    made, model = tool(Say(text="yes", after=1))
    output = await run(made, options={"budget": {"tokens": 200}})
    assert (output.status, [request.max_tokens for request in model.requests]) == ("succeeded", [56, 57, 57])


async def test_what_the_first_did_not_use_is_there_for_the_others() -> None:
    made, model = tool("yes")
    await run(made, options={"budget": {"tokens": 200}, "max_parallel": 1})
    assert [request.max_tokens for request in model.requests] == [56, 82, None]


async def test_a_repair_beyond_the_budget_is_an_invalid_replicate_that_was_paid_for() -> None:
    made, model = tool({"answer": 1}, {"answer": "x"}, k=2, output_type=Verdict, max_tokens=40)
    output = await run(made, options={"budget": {"tokens": 100}, "max_parallel": 1})
    bundle = evidence(output)
    assert len(model.requests) == 3
    assert [replicate.quality.valid for replicate in bundle.replicates] == [True, False]
    made, model = tool({"answer": 1}, {"answer": "x"}, k=3, output_type=Verdict, max_tokens=40)
    output = await run(made, options={"budget": {"tokens": 79}, "max_parallel": 1})
    bundle = evidence(output)
    assert (len(model.requests), bundle.meta.early_stop_reason) == (2, "budget")
    assert [replicate.quality.errors for replicate in bundle.replicates] == [
        [],
        ["BudgetExceeded: tokens budget exceeded: 80 > 79"],
    ]
    assert output.usage["total_tokens"] == 30


async def test_per_replicate_budget_stops_one_replicate_and_not_the_run() -> None:
    made, model = tool({"answer": "x"}, {"answer": 1}, {"answer": 1}, k=3, output_type=Verdict, max_tokens=20)
    options = {"per_replicate_budget": {"tokens": 40}}
    bundle = await made.execute("Why?", options)
    assert len(model.requests) == 3
    assert [replicate.quality.valid for replicate in bundle.replicates] == [False, True, True]
    assert "tokens budget exceeded: 45 > 40" in bundle.replicates[0].quality.errors[0]
    assert bundle.meta.early_stopped is False


async def test_per_replicate_budget_holds_for_all_attempts_of_a_replicate() -> None:
    made, model = tool(TimeoutError("billed?"), "yes", k=2, max_tokens=5)
    options = {"per_replicate_budget": {"tokens": 20}}
    output = await run(made, attempts=3, tool_options=options, options={"max_parallel": 1})
    assert (output.status, len(model.requests)) == ("partial", 2)
    refused, answered = evidence(output).replicates
    assert refused.quality.errors == ["ReplicateBudgetExceeded: tokens budget exceeded: 30 > 20"]
    assert answered.quality.valid


async def test_a_retry_that_the_replicates_budget_allows_is_made() -> None:
    made, model = tool(TimeoutError("billed?"), "yes", "yes", k=2, max_tokens=5)
    options = {"per_replicate_budget": {"tokens": 30}}
    output = await run(made, attempts=3, tool_options=options, options={"max_parallel": 1})
    assert (output.status, len(model.requests)) == ("succeeded", 3)


async def test_a_replicate_that_its_budget_does_not_allow_at_all_is_no_attempt() -> None:
    made, model = tool("yes", k=2, max_tokens=5)
    output = await run(made, tool_options={"per_replicate_budget": {"tokens": 14}})
    assert (output.status, output.attempts, model.requests) == ("failed", [], [])


async def test_per_replicate_time_bounds_a_replicate_with_its_repair() -> None:
    made, model = tool(Say(text="yes", after=1), Say(text="yes", after=3), Say(text="yes", after=1))
    bundle = await made.execute("Why?", {"per_replicate_budget": {"ms": 2000}})
    assert [replicate.quality.valid for replicate in bundle.replicates] == [True, False, True]
    assert "time budget exceeded: 2000 ms > 2000 ms" in bundle.replicates[1].quality.errors[0]
    assert (model.cancelled, bundle.cost_total_usd) == (1, None)


# Events.


async def test_the_events_tell_the_bundle_as_it_grows() -> None:
    made, _ = tool(Say(text="a", after=1), Say(text="a", after=2), Say(text="b", after=3))
    events = RecordedEvents()
    await run(made, event_manager=events)
    assert events.types == [
        "start",
        "bundle_started",
        *["replicate_started"] * 3,
        "replicate_done",
        "replicate_done",
        "partial_summary",
        "replicate_done",
        "bundle_ready",
        "usage",
        "complete",
    ]
    (started,) = events.data("bundle_started")
    assert (started["k"], started["seeds"], started["model"], started["max_parallel"]) == (
        3,
        [0, 1, 2],
        "test:model",
        10,
    )
    first = events.data("replicate_done")[0]
    assert (first["replicate_id"], first["valid"], first["data"], first["cost_usd"]) == ("r1", True, "a", 0.01)
    (partial,) = events.data("partial_summary")
    assert (partial["completed"], partial["consensus"], partial["confidence_is"]) == (2, "a", "stability")
    assert partial["stability"] == partial["confidence"] == pytest.approx(0.875)
    (ready,) = events.data("bundle_ready")
    assert (ready["completed"], ready["k"], ready["disagreements"]) == (3, 3, ["$"])


async def test_a_cut_at_the_deadline_is_told() -> None:
    made, _ = tool("yes", Say(after=60))
    events = RecordedEvents()
    await run(made, options={"timeout_ms": 1000}, event_manager=events)
    assert events.data("timeout") == [{"completed": 1, "k": 3}]


async def test_a_warning_about_a_replicate_names_it() -> None:
    made, _ = tool("no form", {"answer": 1}, k=2, output_type=Verdict)
    events = RecordedEvents()
    await made.execute("Why?", {"max_parallel": 1}, events)
    expected = {"replicate_id": "r1", "message": "the first answer did not have the form asked for"}
    assert events.data("warning") == [expected]


# Options and construction.


async def test_bundle_limits_bound_what_is_reported() -> None:
    made, _ = tool({"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 3, "b": 2}, output_type={"type": "object"})
    summary = (await made.execute("Why?", {"bundle_limits": {"max_diffs": 1, "max_fields": 1}})).summary
    assert (summary.truncated, len(summary.disagreements), len(summary.distributions or {})) == (True, 1, 1)


async def test_the_callers_k_goes_before_the_tools() -> None:
    made, model = tool("yes", k=2)
    output = await run(made, tool_options={"k": 4, "schema_uri": "urn:x"})
    assert len(model.requests) == 4
    assert evidence(output).meta.schema_uri == "urn:x"


async def test_an_option_may_name_other_models() -> None:
    made, own = tool("own")
    bundle = await made.execute("Why?", {"model": [ScriptedModel(DOWN, name="a:m"), ScriptedModel("x", name="b:m")]})
    assert (own.requests, bundle.meta.model) == ([], "a:m, b:m")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"kk": 3}, "kk"),
        ({"k": 1}, "k"),
        ({"k": 11}, "k"),
        ({"temperature": "hot"}, "temperature"),
        ({"per_replicate_budget": {"euros": 1}}, "per_replicate_budget"),
        ({"seeds": [1]}, "seeds"),
        ({"model": "nothing"}, "model"),
    ],
)
async def test_an_option_that_cannot_be_used_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    made, model = tool("yes")
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        await made.execute("Why?", options)
    assert model.requests == []


async def test_a_higher_ceiling_is_the_tools_to_declare() -> None:
    made, model = tool("yes", k=12, max_k=20)
    assert (await made.execute("Why?")).meta.k_completed == 12
    assert len(model.requests) == 12


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"k": 1}, "k"),
        ({"k": 11}, "k"),
        ({"fields": "answer"}, "fields"),
        ({"fields": []}, "fields"),
        ({"fields": ["a..b"]}, "fields"),
        ({"output_type": 5}, "output_type"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"chunk_timeout": -1}, "chunk_timeout"),
    ],
)
def test_what_it_cannot_be_made_of_is_refused_by_name(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        LLMBundleTool("b", ScriptedModel(), **given)


def test_it_declares_whom_it_asks_and_what_it_does() -> None:
    made, _ = tool("yes", k=4)
    assert (made.provider, made.targets, made.default_options) == ("test", (("test", "b"),), {"k": 4, "latency": "min"})
    assert (made.supports_streaming, made.supports_early_stop, made.composite) == (True, True, True)


async def test_a_request_that_cannot_be_served_is_refused_before_anything_is_sent() -> None:
    made, model = tool("yes")
    with pytest.raises(InvalidRequest, match=r"^query: "):
        await made.execute({"query": ""})
    with pytest.raises(InvalidRequest, match=r"^query: "):
        made.validate_request({"query": ""})
    assert model.requests == []
