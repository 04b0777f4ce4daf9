"""LLMTool: one question, one model or the next one, one repair."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest
from pydantic import BaseModel
from scripted_model import USAGE, Say, ScriptedModel, callers_with_one_key

from steer_llm_sdk.errors import (
    AllToolsFailed,
    BudgetExceeded,
    CircuitOpen,
    InvalidOutput,
    InvalidRequest,
    ProviderError,
    RequestRejected,
)
from steer_llm_sdk.orchestration import (
    OrchestrationOutput,
    Orchestrator,
    ReliabilityConfig,
    ReliableOrchestrator,
    ToolRegistry,
)
from steer_llm_sdk.orchestration.tools import LLMTool, _model_tool
from steer_llm_sdk.providers.models import Model
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.reliability.classify import classify
from steer_llm_sdk.testing import RecordedEvents


class Fact(BaseModel):
    name: str
    year: int


GOOD = {"name": "Ada", "year": 1815}
BAD = {"name": "Ada", "year": "long ago"}
DOWN = ProviderError("down", "test", status_code=503)


async def run(tool: LLMTool, request: Any = "Who?", attempts: int = 3, **given: Any) -> OrchestrationOutput:
    registry = ToolRegistry()
    registry.register_tool(tool)
    config = ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=attempts))
    orchestrator = ReliableOrchestrator(registry=registry, reliability_config=config)
    return await orchestrator.run(request, tool.name, **given)


# What is asked and what comes back.


async def test_text_comes_back_with_usage_cost_and_who_answered() -> None:
    answer = await LLMTool("t", ScriptedModel("Ada"), "Be brief.").execute("Who?")
    assert answer == {
        "content": "Ada",
        "usage": USAGE,
        "cost_usd": 0.01,
        "metadata": {"model": "test:model", "finish_reason": "stop", "provider_request_ids": ["req-1"]},
    }


async def test_the_model_gets_instructions_schema_and_settings() -> None:
    model = ScriptedModel(GOOD)
    tool = LLMTool(
        "t", model, "Be brief.", Fact, max_tokens=50, temperature=0.3, first_byte_timeout=2.5, chunk_timeout=0.5
    )
    await tool.execute({"query": "Who?"}, {"seed": 7})
    (asked,) = model.requests
    assert [message.role for message in asked.messages] == ["system", "user"]
    assert asked.schema == Fact.model_json_schema()
    assert (asked.max_tokens, asked.temperature, asked.seed, asked.timeout) == (50, 0.3, 7, None)
    assert (asked.first_byte_timeout, asked.chunk_timeout) == (2.5, 0.5)


async def test_without_settings_a_request_has_none() -> None:
    model = ScriptedModel()
    await LLMTool("t", model).execute("q")
    (asked,) = model.requests
    assert (asked.max_tokens, asked.temperature, asked.first_byte_timeout, asked.chunk_timeout) == (None,) * 4


async def test_an_option_goes_before_what_the_tool_was_made_with() -> None:
    model = ScriptedModel()
    tool = LLMTool("t", model, max_tokens=50, temperature=0.3, first_byte_timeout=30, chunk_timeout=30)
    limits = {"first_byte_timeout": 2, "chunk_timeout": 1}
    await tool.execute("q", {"max_tokens": 9, "temperature": 0, "idempotency_key": "k:t", **limits})
    (asked,) = model.requests
    assert (asked.max_tokens, asked.temperature, asked.idempotency_key) == (9, 0, "k:t")
    assert (asked.first_byte_timeout, asked.chunk_timeout) == (2, 1)


async def test_an_option_may_name_another_model() -> None:
    own, other = ScriptedModel("own"), ScriptedModel("other", name="test:other")
    assert (await LLMTool("t", own).execute("q", {"model": other}))["content"] == "other"
    assert (own.requests, len(other.requests)) == ([], 1)


async def test_a_deterministic_run_asks_at_temperature_0_with_a_seed_and_says_what_was_ignored() -> None:
    model = ScriptedModel(Say(text="ok", reply={"ignored": ("seed",)}))
    output = await run(LLMTool("t", model, temperature=0.9), options={"deterministic": True})
    assert (model.requests[0].temperature, model.requests[0].seed) == (0, 0)
    assert output.metadata["ignored"] == ["seed"]


async def test_a_recording_and_a_local_server_say_what_they_are() -> None:
    model = ScriptedModel(Say(reply={"simulated": True}), Say(reply={"local": True}))
    tool = LLMTool("t", model)
    first, second = [(await tool.execute("q"))["metadata"] for _ in range(2)]
    assert (first.get("simulated"), first.get("local")) == (True, None)
    assert (second.get("simulated"), second.get("local")) == (None, True)


async def test_an_unknown_price_is_none_and_never_0() -> None:
    assert (await LLMTool("t", ScriptedModel(cost_usd=None)).execute("q"))["cost_usd"] is None


async def test_an_answer_cut_off_at_max_tokens_says_so() -> None:
    model = ScriptedModel(Say(text="Once upon", reply={"finish_reason": "length"}))
    metadata = (await LLMTool("t", model, max_tokens=3).execute("q"))["metadata"]
    assert metadata["warnings"] == ["the answer was cut off at max_tokens = 3"]
    assert metadata["truncated"] is True


async def test_a_run_whose_text_was_cut_off_is_partial() -> None:
    model = ScriptedModel(Say(text="Once upon", reply={"finish_reason": "length"}))
    output = await run(LLMTool("t", model, max_tokens=3))
    assert (output.status, output.content) == ("partial", "Once upon")


async def test_the_options_of_a_bundle_are_none_of_its_business() -> None:
    output = await run(LLMTool("t", ScriptedModel()), tool_options={"k": 5, "epsilon": 0.1, "max_parallel": 2})
    assert output.status == "succeeded"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temprature": 0}, "temprature"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"first_byte_timeout": 0}, "first_byte_timeout"),
        ({"chunk_timeout": float("inf")}, "chunk_timeout"),
        ({"seed": "x"}, "seed"),
        ({"model": 5}, "model"),
        ({"model": []}, "model"),
        ({"model": "nothing"}, "model"),
    ],
)
async def test_an_option_that_cannot_be_used_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    model = ScriptedModel()
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        await LLMTool("t", model).execute("q", options)
    assert model.requests == []


async def test_a_request_that_cannot_be_served_is_refused_before_anything_is_sent() -> None:
    model = ScriptedModel()
    output = await run(LLMTool("t", model), {"messages": [{"role": "tool", "content": "x"}]})
    assert (output.status, model.requests) == ("failed", [])
    assert output.content["error"]["message"].startswith("messages[0].role: 'tool' cannot be used")


# Repair.


async def test_an_answer_that_does_not_validate_gets_one_repair_that_carries_the_error() -> None:
    model = ScriptedModel(BAD, GOOD)
    answer = await LLMTool("t", model, output_type=Fact).execute("Who?", {"idempotency_key": "k"})
    first, second = model.requests
    assert answer["content"] == GOOD
    assert [message.role for message in second.messages] == ["user", "assistant", "user"]
    assert "year: Input should be a valid integer" in model.said[1]
    assert (second.schema, second.idempotency_key) == (first.schema, "k:repair")
    assert answer["metadata"]["repaired"] is True


async def test_the_repair_is_counted_and_charged() -> None:
    output = await run(LLMTool("t", ScriptedModel(BAD, GOOD), output_type=Fact))
    assert output.usage == {name: 2 * count for name, count in USAGE.items()}
    assert output.cost_usd == pytest.approx(0.02)
    assert output.per_agent["t"]["attempts"] == 2


async def test_after_one_repair_it_is_a_typed_failure_that_keeps_what_was_said() -> None:
    model = ScriptedModel(BAD)
    with pytest.raises(InvalidOutput, match="gave no usable answer, asked twice: the JSON does not fit") as caught:
        await LLMTool("t", model, output_type=Fact).execute("Who?")
    assert len(model.requests) == 2
    assert '"long ago"' in caught.value.answer
    assert not caught.value.is_retryable


async def test_an_invalid_answer_is_not_retried_by_the_run() -> None:
    model = ScriptedModel(BAD)
    output = await run(LLMTool("t", model, output_type=Fact))
    assert (output.status, len(model.requests)) == ("failed", 2)
    assert output.content["error"]["type"] == "InvalidOutput"
    assert output.usage["total_tokens"] == 30


async def test_an_empty_answer_is_no_answer_and_not_repeated_to_the_model() -> None:
    model = ScriptedModel("  ", "Ada")
    answer = await LLMTool("t", model).execute("Who?")
    assert answer["content"] == "Ada"
    assert [message.role for message in model.requests[1].messages] == ["user", "user"]


async def test_a_truncated_answer_that_is_no_json_says_why() -> None:
    model = ScriptedModel(Say(text='{"name": "A', reply={"finish_reason": "length"}))
    with pytest.raises(InvalidOutput, match="cut off at max_tokens = 4; not valid JSON"):
        await LLMTool("t", model, output_type=Fact, max_tokens=4).execute("Who?")
    assert "cut off at max_tokens = 4" in model.said[1]


async def test_what_a_failed_request_used_is_counted_at_an_unknown_price() -> None:
    broken = ProviderError("the stream broke", "a", usage={"total_tokens": 7})
    a, b = models(broken, "fine")
    answer = await LLMTool("t", [a, b]).execute("q")
    assert (answer["usage"]["total_tokens"], answer["cost_usd"]) == (22, None)


async def test_an_unpriced_repair_makes_the_whole_unpriced() -> None:
    model = ScriptedModel(Say(text=BAD, reply={"cost_usd": None}), GOOD)
    assert (await LLMTool("t", model, output_type=Fact).execute("Who?"))["cost_usd"] is None


# Policies stand round each request.


async def test_each_request_is_retried_by_itself() -> None:
    model = ScriptedModel(DOWN, BAD, DOWN, GOOD)
    output = await run(LLMTool("t", model, output_type=Fact))
    assert (output.status, len(model.requests)) == ("succeeded", 4)
    assert [line["outcome"] for line in output.attempts] == ["failed", "succeeded", "failed", "succeeded"]


async def test_a_single_model_that_stays_down_is_the_error_itself() -> None:
    output = await run(LLMTool("t", ScriptedModel(DOWN)), attempts=2)
    assert output.content["error"]["status_code"] == 503


async def test_max_tokens_is_what_the_budget_leaves_where_nobody_set_it() -> None:
    model = ScriptedModel(tokens_out=16_000)
    output = await run(LLMTool("t", model), options={"budget": {"tokens": 200}})
    assert (output.status, model.requests[0].max_tokens) == ("succeeded", 190)
    model = ScriptedModel(tokens_out=16_000, cost_usd=0.01)
    await run(LLMTool("t", model), options={"budget": {"cost_usd": 0.01}})
    assert model.requests[0].max_tokens == 990


async def test_a_model_without_a_price_is_fitted_to_the_tokens_alone() -> None:
    model = ScriptedModel(tokens_out=16_000, cost_usd=None)
    await run(LLMTool("t", model), options={"budget": {"tokens": 200}})
    assert model.requests[0].max_tokens == 190


async def test_max_tokens_that_somebody_set_is_not_lowered() -> None:
    model = ScriptedModel()
    with pytest.raises(BudgetExceeded, match="tokens budget exceeded: 510 > 200"):
        await run(LLMTool("t", model, max_tokens=500), options={"budget": {"tokens": 200}})
    assert model.requests == []


async def test_a_repair_must_fit_into_what_the_first_answer_left() -> None:
    model = ScriptedModel(BAD, GOOD, tokens_out=500)
    await run(LLMTool("t", model, output_type=Fact), options={"budget": {"tokens": 100}})
    assert [request.max_tokens for request in model.requests] == [90, 75]


async def test_the_models_timeout_is_the_time_left_and_the_deadline_speaks_first() -> None:
    model = ScriptedModel(DOWN, Say(after=60))
    with pytest.raises(BudgetExceeded, match="time budget exceeded"):
        await run(LLMTool("t", model), options={"timeout_ms": 3000})
    assert [request.timeout for request in model.requests] == [pytest.approx(3.1 - at) for at in model.at]
    assert model.cancelled == 1


async def test_a_timeout_of_the_tool_alone_is_a_failure_of_the_tool() -> None:
    model = ScriptedModel(Say(after=60))
    with pytest.raises(TimeoutError, match="no answer within timeout_ms = 1500"):
        await LLMTool("t", model).execute("q", {"timeout_ms": 1500})
    output = await run(LLMTool("t", model), tool_options={"timeout_ms": 1500}, options={"budget": {"ms": 9000}})
    assert (output.status, output.content["error"]["code"], model.cancelled) == ("failed", "timeout", 2)


@pytest.mark.parametrize("joins_after", [0.0, 0.1])
async def test_of_callers_with_one_key_each_waits_as_long_as_it_said(joins_after: float) -> None:
    model = ScriptedModel(Say(after=0.8))
    callers = [(0.0, 300), (joins_after, 5000), (joins_after, 5000)]
    assert await callers_with_one_key(LLMTool("t", model), *callers) == ["late", "succeeded", "succeeded"]
    assert [request.timeout for request in model.requests] == [None]


async def test_the_last_of_callers_with_one_key_takes_the_request_along() -> None:
    model = ScriptedModel(Say(after=60))
    assert await callers_with_one_key(LLMTool("t", model), (0.0, 300), (0.1, 500)) == ["late", "late"]
    assert (len(model.requests), model.cancelled) == (1, 1)


async def test_a_limit_of_the_tool_alone_holds_for_all_callers_with_one_key() -> None:
    model = ScriptedModel(Say(after=60))

    class Careful(LLMTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            return await super().execute(request, {**(options or {}), "timeout_ms": 1500}, event_manager)

    callers = [(0.0, 1000), (0.1, 5000)]
    assert await callers_with_one_key(Careful("t", model), *callers) == ["late", "failed"]
    assert model.cancelled == 1


async def test_a_timeout_of_the_models_own_library_is_not_taken_for_the_tools() -> None:
    with pytest.raises(TimeoutError, match="the library's"):
        await LLMTool("t", ScriptedModel(TimeoutError("the library's"))).execute("q", {"timeout_ms": 1500})


async def test_a_per_agent_timeout_bounds_each_attempt() -> None:
    model = ScriptedModel(Say(after=60), "ok")
    output = await run(LLMTool("t", model), options={"per_agent_timeout_ms": 500})
    assert (output.status, len(model.requests)) == ("succeeded", 2)


# A list of models.


def models(*steps: Any) -> list[ScriptedModel]:
    return [ScriptedModel(step, name=f"{name}:m", target=name) for name, step in zip("abc", steps, strict=False)]


async def test_the_next_model_is_asked_when_one_fails_and_what_failed_is_kept() -> None:
    a, b = models(RequestRejected("no images", "a"), "fine")
    answer = await LLMTool("t", [a, b]).execute("q")
    assert answer["content"] == "fine"
    assert answer["metadata"]["model"] == "b:m"
    assert answer["metadata"]["failed_models"] == {"a:m": "no images"}


async def test_a_model_that_cannot_keep_the_form_is_followed_by_one_that_can_and_both_are_paid_for() -> None:
    a, b = models(BAD, GOOD)
    answer = await LLMTool("t", [a, b], output_type=Fact).execute("q")
    assert (answer["content"], len(a.requests), len(b.requests)) == (GOOD, 2, 1)
    assert answer["usage"]["total_tokens"] == 45
    assert answer["cost_usd"] == pytest.approx(0.03)


async def test_all_models_failing_is_one_error_with_every_cause_in_order() -> None:
    tool = LLMTool("t", models(DOWN, RequestRejected("no", "b")))
    with pytest.raises(AllToolsFailed) as caught:
        await tool.execute("q")
    assert list(caught.value.failures) == ["a:m", "b:m"]
    assert classify(caught.value).is_retryable


async def test_models_of_one_name_with_several_keys_are_told_apart() -> None:
    pair = [ScriptedModel(DOWN), ScriptedModel(DOWN)]
    tool = LLMTool("t", pair)
    assert tool.targets == (("test", "t[test:model#1]"), ("test", "t[test:model#2]"))
    with pytest.raises(AllToolsFailed) as caught:
        await tool.execute("q")
    assert list(caught.value.failures) == ["t[test:model#1]", "t[test:model#2]"]


async def test_a_budget_ends_it_whatever_models_are_left() -> None:
    a, b = models(DOWN, "fine")
    with pytest.raises(BudgetExceeded):
        await run(LLMTool("t", [a, b], max_tokens=500), options={"budget": {"tokens": 100}})
    assert b.requests == []


async def test_a_model_without_a_price_gives_way_to_one_with_it_under_a_cost_budget() -> None:
    a, b = ScriptedModel(cost_usd=None, name="a:m"), ScriptedModel("fine", name="b:m")
    output = await run(LLMTool("t", [a, b]), options={"budget": {"cost_usd": 1.0}})
    assert (output.content, a.requests) == ("fine", [])
    assert "the price of the model is unknown" in output.metadata["failed_models"]["a:m"]


async def test_a_run_that_has_used_up_its_attempts_asks_no_further_model() -> None:
    a, b, c = models(DOWN, DOWN, "fine")
    registry = ToolRegistry()
    registry.register_tool(LLMTool("t", [a, b, c]))
    config = ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=1), max_total_attempts=1)
    output = await ReliableOrchestrator(registry=registry, reliability_config=config).run("q", "t")
    assert (output.status, len(a.requests), b.requests, c.requests) == ("failed", 1, [], [])


async def test_an_open_circuit_is_answered_by_the_next_model() -> None:
    a, b = models(DOWN, "fine")
    registry = ToolRegistry()
    registry.register_tool(LLMTool("t", [a, b]))
    config = ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=1))
    orchestrator = ReliableOrchestrator(registry=registry, reliability_config=config)
    outputs = [await orchestrator.run("q", "t") for _ in range(7)]
    assert {output.content for output in outputs} == {"fine"}
    assert len(a.requests) < 7
    assert CircuitOpen("a").message in outputs[-1].metadata["failed_models"]["a:m"]


async def test_cancellation_passes_at_once_and_no_other_model_is_asked() -> None:
    a, b = models(Say(after=60), "fine")
    task = asyncio.create_task(LLMTool("t", [a, b]).execute("q"))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (a.cancelled, b.requests) == (1, [])


async def test_another_models_call_has_another_idempotency_key() -> None:
    a, b = models(DOWN, "fine")
    await LLMTool("t", [a, b]).execute("q", {"idempotency_key": "k"})
    assert [model.requests[0].idempotency_key for model in (a, b)] == ["k", "k:m2"]


async def test_tenants_that_use_one_key_send_two() -> None:
    (model,) = models("fine")
    tool = LLMTool("t", model)
    for tenant in ("default", "a:b"):
        await run(tool, options={"idempotency_key": "k", "tenant": tenant})
    assert [request.idempotency_key for request in model.requests] == ["k:t", "a%3Ab:k:t"]


# Streaming.


async def test_text_is_shown_as_it_comes() -> None:
    model = ScriptedModel(Say(text="Ada", pieces=("A", "da")))
    events = RecordedEvents()
    await run(LLMTool("t", model), options={"streaming": True}, event_manager=events)
    deltas = [event for event in events.all if event.type == "delta"]
    assert events.text == "Ada"
    assert [(event.provider, event.model) for event in deltas] == [("test", "test:model")] * 2
    assert [event.chunk_index for event in deltas] == [0, 1]  # type: ignore[attr-defined]


async def test_without_streaming_no_text_is_shown() -> None:
    events = RecordedEvents()
    await run(LLMTool("t", ScriptedModel(Say(text="Ada", pieces=("A", "da")))), event_manager=events)
    assert events.text == ""


async def test_an_attempt_that_begins_anew_says_so_first() -> None:
    model = ScriptedModel(Say(pieces=("wro", "ng"), fail=DOWN), Say(text="right", pieces=("right",)))
    events = RecordedEvents()
    await run(LLMTool("t", model), options={"streaming": True}, event_manager=events)
    assert events.types == ["start", "delta", "delta", "retry_attempt", "restart", "delta", "usage", "complete"]
    assert events.data("restart") == [{"model": "test:model", "chunks": 2}]


async def test_a_repair_and_another_model_begin_anew_too() -> None:
    a = ScriptedModel(Say(text="no", pieces=("no",)), name="a:m")
    b = ScriptedModel(Say(text=GOOD, pieces=("{...}",)), name="b:m")
    events = RecordedEvents()
    await LLMTool("t", [a, b], output_type=Fact).execute("q", {"streaming": True}, events)
    assert events.types == ["delta", "restart", "delta", "restart", "delta"]
    assert [event.is_json for event in events.all] == [True, False, True, False, True]  # type: ignore[attr-defined]


async def test_nothing_shown_is_nothing_to_take_back() -> None:
    events = RecordedEvents()
    model = ScriptedModel(DOWN, Say(text="x", pieces=("x",)))
    await run(LLMTool("t", model), options={"streaming": True}, event_manager=events)
    assert "restart" not in events.types


# The tool itself.


EXAMPLES = [line.strip() for line in (inspect.getdoc(LLMTool) or "").splitlines() if line.startswith("    ")]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_in_its_docstring_make_a_tool(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "sk-test")
    assert isinstance(eval(example, {"LLMTool": LLMTool, "Model": Model, "Facts": Fact}), LLMTool)


def test_its_docstring_has_three_examples() -> None:
    assert len(EXAMPLES) == 3


def test_it_declares_whom_it_asks() -> None:
    a, b = models("x", "y")
    tool = LLMTool("t", [a, b], version="2.0.0", description="d", capabilities=["c"])
    assert (tool.provider, tool.supported_models) == ("a", ("a:m", "b:m"))
    assert tool.targets == (("a", "t[a:m]"), ("b", "t[b:m]"))
    assert (tool.version, tool.description, tool.capabilities) == ("2.0.0", "d", ("c",))
    assert LLMTool("t", a).targets == (("a", "t"),)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: LLMTool("t", []), "model"),
        (lambda: LLMTool("t", 5), "model"),  # type: ignore[arg-type]
        (lambda: LLMTool("t", "gpt-5"), "model"),
        (lambda: LLMTool("t", ScriptedModel(), output_type=5), "output_type"),
        (lambda: LLMTool("t", ScriptedModel(), max_tokens=0), "max_tokens"),
        (lambda: LLMTool("t", ScriptedModel(), temperature=-1), "temperature"),
        (lambda: LLMTool("t", ScriptedModel(), first_byte_timeout=-1), "first_byte_timeout"),
        (lambda: LLMTool("t", ScriptedModel(), chunk_timeout=0), "chunk_timeout"),
    ],
)
def test_what_it_cannot_be_made_of_is_refused_by_name(make: Any, field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        make()


async def test_it_does_not_close_what_it_was_given() -> None:
    given = ScriptedModel()
    await LLMTool("t", [given, "recorded:demo", "recorded:demo"]).aclose()
    assert given.closed == 0


async def test_of_the_models_that_options_named_the_latest_keep_their_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: dict[str, list[ScriptedModel]] = {}

    class Stuck(ScriptedModel):
        async def aclose(self) -> None:
            await super().aclose()
            if self is made["test:1"][0]:
                raise OSError("stuck")

    def resolve(spec: str) -> ScriptedModel:
        made.setdefault(spec, []).append(Stuck(name=spec))
        return made[spec][-1]

    monkeypatch.setattr(_model_tool, "resolve_model", resolve)
    tool = LLMTool("t", "test:own")
    for n in range(_model_tool.KEPT + 1):
        await tool.execute({"query": "q"}, {"model": f"test:{n}"})
        await tool.execute({"query": "q"}, {"model": "test:0"})
    await asyncio.sleep(0.1)
    closed = [name for name, models in made.items() if models[0].closed]
    assert closed == ["test:1"]
    assert "could not be closed: OSError('stuck')" in caplog.text
    await tool.execute({"query": "q"}, {"model": "test:1"})
    assert len(made["test:1"]) == 2
    await tool.aclose()
    assert {name: models[-1].closed for name, models in made.items()} == dict.fromkeys(made, 1)


async def test_the_plain_orchestrator_runs_it_too() -> None:
    registry = ToolRegistry()
    registry.register_tool(LLMTool("t", ScriptedModel(GOOD), output_type=Fact))
    output = await Orchestrator(registry=registry).run({"query": "Who?"}, "t")
    assert (output.content, output.status, output.cost_usd) == (GOOD, "succeeded", 0.01)
