"""Part 1, orchestrators: what a tool sees, what it may return, what comes back and what is raised."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import BaseModel, Field

from contract.kit import bundle, failed, plain, registry, reliable
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration import (
    BudgetExceeded,
    ConflictError,
    OrchestrationConfig,
    Orchestrator,
    OrchestratorError,
    ReliableOrchestrator,
    Tool,
    ToolExecutionError,
    ToolRegistry,
    get_global_registry,
)
from steer_llm_sdk.orchestration.strategies import StrategyTool, chain
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.testing import OK, ScriptedTool, err

BOTH = pytest.mark.parametrize("orchestrator", [plain, reliable])


# ── what the tool sees ───────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_a_str_request_reaches_the_tool_as_a_query(orchestrator: Any) -> None:
    tool = ScriptedTool("t")
    await orchestrator(tool).run("why?", "t")
    assert tool.calls[0].request == {"query": "why?"}


@BOTH
@pytest.mark.parametrize("request_", [{"a": [1]}, ["a"], 5, None, b"raw", True, ("a", 1)])
async def test_any_other_request_reaches_the_tool_as_it_is(orchestrator: Any, request_: Any) -> None:
    tool = ScriptedTool("t")
    await orchestrator(tool).run(request_, "t")
    assert tool.calls[0].request == request_
    assert type(tool.calls[0].request) is type(request_)


@dataclass
class Question:
    words: list[str]


class Ask(BaseModel):
    words: list[str]


class Writing(Tool):
    name = "writing"  # type: ignore[assignment]

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        for given in (request, options["of"]):
            (given["in"] if isinstance(given, dict) else given).words.append("written")
        return 1


@BOTH
@pytest.mark.parametrize("make", [Question, Ask.model_construct, lambda words: {"in": Question(words)}])
async def test_what_a_tool_writes_into_a_request_or_an_option_is_not_written_into_the_callers(
    orchestrator: Any, make: Any
) -> None:
    words: list[str] = ["mine"]
    sent = make(words=words)
    output = await orchestrator(Writing()).run(sent, "writing", {"of": sent})
    assert output.status == "succeeded"
    assert words == ["mine"]


@BOTH
async def test_the_tool_gets_the_callers_options_and_parallel_and_ids_and_nothing_else(orchestrator: Any) -> None:
    tool = ScriptedTool("t")
    output = await orchestrator(tool).run("q", "t", {"k": 3})
    seen = tool.calls[0].options
    assert seen == {
        "k": 3,
        "max_parallel": 10,
        "request_id": output.metadata["request_id"],
        "trace_id": output.metadata["trace_id"],
    }


@BOTH
async def test_budget_timeout_and_key_are_handed_on_where_they_are_set(orchestrator: Any) -> None:
    tool = ScriptedTool("t")
    options = OrchestrationConfig(budget={"tokens": 50}, timeout_ms=5000, idempotency_key="key", max_parallel=4)
    await orchestrator(tool).run("q", "t", None, options)
    seen = tool.calls[0].options
    assert (seen["global_budget"], seen["timeout_ms"], seen["idempotency_key"]) == ({"tokens": 50}, 5000, "key:t")
    assert seen["max_parallel"] == 4


@BOTH
async def test_options_may_be_given_as_a_mapping(orchestrator: Any) -> None:
    output = await orchestrator(ScriptedTool("t")).run("q", "t", None, {"request_id": "mine"})
    assert output.metadata["request_id"] == "mine"


@BOTH
async def test_options_may_be_of_a_class_of_the_callers_own(orchestrator: Any) -> None:
    class Ours(OrchestrationConfig):
        team: str = "a"

    output = await orchestrator(ScriptedTool("t")).run("q", "t", None, Ours(request_id="mine"))
    assert output.metadata["request_id"] == "mine"
    assert output != "mine"


@BOTH
async def test_what_such_a_class_has_by_default_holds(orchestrator: Any) -> None:
    class Ours(OrchestrationConfig):
        budget: dict[str, float] | None = Field(default_factory=lambda: {"tokens": 5})
        deterministic: bool = True

    tool = ScriptedTool("t", OK("x", usage={"total_tokens": 9}))
    with pytest.raises(BudgetExceeded):
        await orchestrator(tool).run("q", "t", None, Ours())
    assert tool.calls[0].options["seed"] == 0


@BOTH
async def test_a_request_id_is_made_where_there_is_none_and_is_the_trace_id_where_that_is_missing(
    orchestrator: Any,
) -> None:
    runner = orchestrator(ScriptedTool("t"))
    first, second = [(await runner.run("q", "t")).metadata for _ in range(2)]
    assert first["request_id"]
    assert first["request_id"] != second["request_id"]
    assert first["trace_id"] == first["request_id"]
    given = (await runner.run("q", "t", None, {"request_id": "r", "trace_id": "t"})).metadata
    assert (given["request_id"], given["trace_id"]) == ("r", "t")


# ── what a tool may return ───────────────────────────────────────────────────────────────────────────────────────────


class Report(BaseModel):
    content: dict[str, Any]
    usage: dict[str, int] = {}
    cost_usd: float | None = None
    metadata: dict[str, Any] = {}


class Note(BaseModel):
    text: str
    when: date


@dataclass
class Point:
    x: int


@BOTH
@pytest.mark.parametrize(
    ("returned", "content"),
    [
        ("text", "text"),
        ("", ""),
        (5, 5),
        (0, 0),
        (2.5, 2.5),
        (True, True),
        (False, False),
        (None, None),
        ([1, [2]], [1, [2]]),
        ([], []),
        ({}, {}),
        ({"a": {"b": None}}, {"a": {"b": None}}),
        ({"content": None}, None),
        ({"content": "x", "other": 1}, "x"),
        (OrderedDict(a=1), {"a": 1}),
        (MappingProxyType({"content": [1]}), [1]),
        (Report(content={"a": 1}), {"a": 1}),
        (Note(text="x", when=date(2026, 1, 2)), {"text": "x", "when": "2026-01-02"}),
        (Point(3), {"x": 3}),
        ((1, 2), [1, 2]),
        (Decimal("1.5"), "1.5"),
        ("\u202eright to left \U0001f600 \x00", "\u202eright to left \U0001f600 \x00"),
        (10**30, 10**30),
    ],
    ids=repr,
)
async def test_content_of_any_json_type_is_accepted(orchestrator: Any, returned: Any, content: Any) -> None:
    output = await orchestrator(ScriptedTool("t", OK(returned))).run("q", "t")
    assert output.status == "succeeded"
    assert output.content == content
    assert type(output.content) is type(content)
    assert "content_warning" not in output.metadata
    assert type(output).model_validate_json(output.model_dump_json()) == output


@BOTH
@pytest.mark.parametrize(
    ("returned", "content"),
    [
        (float("nan"), "nan"),
        ({"a": float("inf")}, {"a": "inf"}),
        ({1: "a"}, {"1": "a"}),
        ("half \ud800", "half ?"),
        ({"half \ud800": ["\udfff"]}, {"half ?": ["?"]}),
        (b"\xff", "b'\\xff'"),
    ],
    ids=ascii,
)
async def test_what_is_not_quite_json_is_kept_with_a_warning(orchestrator: Any, returned: Any, content: Any) -> None:
    output = await orchestrator(ScriptedTool("t", OK(returned))).run("q", "t")
    assert (output.status, output.content) == ("succeeded", content)
    assert "not all of it was JSON" in output.metadata["content_warning"]
    assert type(output).model_validate_json(output.model_dump_json()) == output


@BOTH
async def test_what_is_nested_without_end_is_kept_as_far_as_it_goes(orchestrator: Any) -> None:
    own: list[Any] = []
    own.append(own)
    deep: Any = "bottom"
    for _ in range(10_000):
        deep = [deep]
    for returned in (own, deep):
        output = await orchestrator(ScriptedTool("t", OK(returned))).run("q", "t")
        assert output.status == "succeeded"
        assert "(nested too deep)" in output.model_dump_json()


@BOTH
async def test_a_mapping_or_a_model_brings_usage_cost_and_metadata(orchestrator: Any) -> None:
    fields: dict[str, Any] = {
        "content": {"a": 1},
        "usage": {"total_tokens": 7},
        "cost_usd": 0.25,
        "metadata": {"model": "m"},
    }
    for returned in (fields, Report(**fields)):
        output = await orchestrator(ScriptedTool("t", OK(returned))).run("q", "t")
        assert (output.content, output.usage, output.cost_usd) == ({"a": 1}, {"total_tokens": 7}, 0.25)
        assert output.metadata["model"] == "m"
        assert output.cost_breakdown == {"t": 0.25}


@BOTH
@pytest.mark.parametrize(
    "nonsense",
    [
        {"usage": "many"},
        {"cost_usd": float("nan")},
        {"cost_usd": -1},
        {"cost_usd": "free"},
        {"cost_usd": True},
        {"cost_breakdown": {"m": "0.1 USD"}},
        {"cost_breakdown": {"m": float("inf")}},
        {"cost_breakdown": 5},
        {"metadata": ["m"]},
        {"usage": {"total_tokens": float("inf")}},
        {"usage": {"model": object()}},
        {"metadata": {1: object()}},
    ],
)
async def test_an_answer_is_not_lost_because_its_account_makes_no_sense(orchestrator: Any, nonsense: Any) -> None:
    output = await orchestrator(ScriptedTool("t", OK({"content": "paid", **nonsense}))).run("q", "t")
    assert (output.status, output.content) == ("succeeded", "paid")
    assert output.cost_usd is None
    assert type(output).model_validate_json(output.model_dump_json()) == output


@BOTH
@pytest.mark.parametrize(
    ("nonsense", "says"),
    [
        ({"cost_usd": float("nan")}, "left out: cost_usd: nan is no price; give USD as a finite number from 0"),
        ({"cost_usd": -5}, "left out: cost_usd: -5 is no price; give USD as a finite number from 0"),
        ({"cost_usd": "free"}, "left out: cost_usd: 'free' is no price; give USD as a finite number from 0"),
        ({"usage": "many"}, "left out: usage: 'many' is no mapping; give {'total_tokens': 12}"),
        ({"usage": [1], "cost_usd": True}, "left out: cost_usd: True is no price; give USD as a finite number from 0; "
         "usage: [1] is no mapping; give {'total_tokens': 12}"),
    ],
)  # fmt: skip
async def test_an_account_that_makes_no_sense_is_left_out_with_a_warning(
    orchestrator: Any, nonsense: Any, says: str
) -> None:
    output = await orchestrator(ScriptedTool("t", OK({"content": "paid", **nonsense}))).run("q", "t")
    assert output.metadata["account_warning"] == says
    assert (output.usage, output.cost_usd) == ({}, None)


@BOTH
@pytest.mark.parametrize("account", [{}, {"usage": None, "cost_usd": None}, {"usage": {}, "cost_usd": 0}])
async def test_an_account_that_makes_sense_or_is_not_there_is_no_reason_to_warn(
    orchestrator: Any, account: Any
) -> None:
    output = await orchestrator(ScriptedTool("t", OK({"content": "paid", **account}))).run("q", "t")
    assert "account_warning" not in output.metadata


@BOTH
async def test_a_bundle_becomes_content_usage_cost_and_bundle_meta(orchestrator: Any) -> None:
    made = bundle("a", "a", confidence=1.0, usage={"total_tokens": 9}, cost=0.5, model="m")
    output = await orchestrator(ScriptedTool("t", OK(made))).run("q", "t")
    assert output.status == "succeeded"
    assert list(output.content) == ["evidence_bundle"]
    assert set(output.content["evidence_bundle"]) == {"meta", "replicates", "summary"}
    assert (output.usage, output.cost_usd) == ({"total_tokens": 9}, 0.5)
    assert output.metadata["bundle_meta"]["k_completed"] == 2
    assert output.metadata["bundle_meta"] == output.content["evidence_bundle"]["meta"]
    assert output.evidence is not None
    assert output.evidence.summary.confidence == 1.0


# ── a tool that fails ────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_a_tool_that_fails_is_returned_and_not_raised(orchestrator: Any) -> None:
    output = await orchestrator(ScriptedTool("t", err(ValueError("no such page")))).run("q", "t")
    assert output.status == "failed"
    info = output.content["error"]
    assert (info["type"], info["message"], info["is_retryable"]) == ("ValueError", "no such page", False)
    assert info["code"] == "validation"
    assert output.errors == {"t": info}


@BOTH
@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        KeyError("x"),
        OrchestratorError("x"),
        ConflictError("other"),
        ToolExecutionError("t", KeyError("x")),
        ExceptionGroup("g", [ValueError("x")]),
        ProviderError("x", "p", status_code=400),
        AssertionError(),
        RecursionError("x"),
    ],
    ids=repr,
)
async def test_whatever_a_tool_raises_the_error_has_type_message_code_and_whether_to_retry(
    orchestrator: Any, error: Exception
) -> None:
    output = await orchestrator(ScriptedTool("t", err(error))).run("q", "t", None, {"retry_on_failure": False})
    info = failed(output)
    assert info["type"] == type(error).__name__
    assert info["message"]
    assert isinstance(info["code"], str)
    assert isinstance(info["is_retryable"], bool)


class Unreadable(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"{name}: no")


class NeverInitialised(ProviderError):
    def __init__(self) -> None:
        Exception.__init__(self, "raw")


class OfAnOddCategory(ProviderError):
    @property
    def category(self) -> Any:
        raise KeyError("category")


class Raising(Tool):
    """What it raises comes past no policy where it is composite."""

    name = "t"  # type: ignore[assignment]

    def __init__(self, error: Exception, composite: bool = False) -> None:
        self.error = error
        self.composite = composite

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        raise self.error


class Objecting(ScriptedTool):
    def validate_request(self, request: Any) -> None:
        raise Unreadable("z")


ODD = [
    (lambda: ProviderError("x", "p", status_code="503"), "ProviderError", "server_error"),  # type: ignore[arg-type]
    (lambda: ProviderError("x", "p", status_code="soon"), "ProviderError", "unknown"),  # type: ignore[arg-type]
    (lambda: ProviderError("x", "p", status_code=[]), "ProviderError", "unknown"),  # type: ignore[arg-type]
    (NeverInitialised, "NeverInitialised", "unknown"),
    (lambda: OfAnOddCategory("x", "p"), "OfAnOddCategory", "unknown"),
    (lambda: Unreadable("z"), "ToolExecutionError", "unknown"),
]


@BOTH
@pytest.mark.parametrize("options", [{}, {"budget": {"tokens": 100}}, {"idempotency_key": "k"}], ids=str)
@pytest.mark.parametrize(("error", "kind", "code"), ODD)
async def test_an_error_that_is_not_as_it_should_be_is_told_and_its_attempt_has_failed(
    orchestrator: Any, error: Any, kind: str, code: str, options: Any
) -> None:
    output = await orchestrator(Raising(error())).run("q", "t", None, {**options, "max_retries": 0})
    info = failed(output)
    assert (info["type"], info["code"]) == (kind, code)
    assert [(line["outcome"], line["error"]) for line in output.attempts] == [("failed", info)]


@BOTH
@pytest.mark.parametrize("tool", [lambda: Raising(Unreadable("z"), composite=True), lambda: Objecting("t")])
async def test_an_unreadable_error_is_a_failure_of_the_tool_wherever_it_comes_from(
    orchestrator: Any, tool: Any
) -> None:
    info = failed(await orchestrator(tool()).run("q", "t"))
    assert info["message"] == "Tool 't' failed: Unreadable: z (an exception that cannot be read)"


async def test_after_an_unreadable_error_the_fallback_is_tried() -> None:
    first = Raising(Unreadable("z"))
    first.capabilities = ["a"]
    output = await reliable(first, ScriptedTool("u", capabilities=["a"])).run("q")
    assert (output.status, output.metadata["tool_name"], list(output.errors)) == ("succeeded", "u", ["t"])


@BOTH
async def test_what_a_provider_said_is_part_of_the_error(orchestrator: Any) -> None:
    error = ProviderError("x", "acme", 400, request_id="req-7", code="bad_model")
    info = failed(await orchestrator(ScriptedTool("t", err(error))).run("q", "t"))
    expected = {"status_code": 400, "provider": "acme", "request_id": "req-7", "provider_code": "bad_model"}
    assert {name: info[name] for name in expected} == expected


@BOTH
async def test_an_error_that_cannot_be_told_is_a_failure_all_the_same(orchestrator: Any) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    odd = ProviderError("half \ud800", "p", 400, request_id=object(), code=object())  # type: ignore[arg-type]
    odd.usage = {"who": object()}
    for error in (Unspeakable(), odd):
        output = await orchestrator(ScriptedTool("t", err(error))).run("q", "t", None, {"idempotency_key": repr(error)})
        assert failed(output)["type"] == type(error).__name__
        assert type(output).model_validate_json(output.model_dump_json()) == output


@BOTH
async def test_a_tool_that_meets_a_cancellation_of_its_own_making_has_failed(orchestrator: Any) -> None:
    for options in ({}, {"timeout_ms": 1000}, {"per_agent_timeout_ms": 1000}, {"idempotency_key": "k"}):
        output = await orchestrator(ScriptedTool("t", err(asyncio.CancelledError))).run("q", "t", None, options)
        assert failed(output)["message"] == "Tool 't' failed: CancelledError"


# ── raised, not returned ─────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_an_unknown_tool_is_raised_as_orchestrator_error_and_value_error(orchestrator: Any) -> None:
    runner = orchestrator(ScriptedTool("known"))
    for kind in (OrchestratorError, ValueError):
        with pytest.raises(kind, match=r"Tool 'nobody' not found.*known"):
            await runner.run("q", "nobody")


async def test_no_tool_at_all_is_raised() -> None:
    tool = ScriptedTool("t")
    runner = reliable(tool)
    for kind in (OrchestratorError, ValueError):
        with pytest.raises(kind, match="No tools available"):
            await ReliableOrchestrator(registry=_empty()).run("q")
    assert (await runner.run("q")).content == "ok"


def _empty() -> ToolRegistry:
    """Nothing registered; what is installed is not planned over a caller's tool that has gone."""

    class Bare(ToolRegistry):
        def planning_view(self) -> Any:
            return MappingProxyType({})

    return Bare()


@BOTH
async def test_a_budget_that_was_exceeded_is_raised(orchestrator: Any) -> None:
    runner = orchestrator(ScriptedTool("t", OK("x", usage={"total_tokens": 500})))
    with pytest.raises(BudgetExceeded, match="tokens budget exceeded: 500 > 10") as caught:
        await runner.run("q", "t", None, {"budget": {"tokens": 10}})
    assert (caught.value.budget_type, caught.value.limit, caught.value.actual) == ("tokens", 10, 500)
    assert caught.value.affected_agents == ["t"]


@BOTH
async def test_a_conflict_is_raised_with_the_key_on_it(orchestrator: Any) -> None:
    runner = orchestrator(ScriptedTool("t"))
    await runner.run("q", "t", None, {"idempotency_key": "k"})
    with pytest.raises(ConflictError, match="used with different request") as caught:
        await runner.run("another", "t", None, {"idempotency_key": "k"})
    assert (caught.value.idempotency_key, caught.value.key) == ("k", "k")


async def test_an_orchestrator_that_plans_nothing_says_that_it_needs_a_name() -> None:
    with pytest.raises(ValueError, match=r"tool_name.*ReliableOrchestrator"):
        await plain(ScriptedTool("t")).run("q")


@BOTH
@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"tool_options": 5}, "tool_options"),
        ({"tool_options": [("k", 3)]}, "tool_options"),
        ({"tool_name": 5}, "tool_name"),
        ({"options": 5}, "options"),
        ({"options": {"timeout": 5}}, "options.timeout"),
        ({"options": {"timeout_ms": "soon"}}, "options.timeout_ms"),
        ({"options": {"budget": {"dollars": 5}}}, "options.budget"),
    ],
)
async def test_what_cannot_be_served_is_one_error_that_names_the_field(
    orchestrator: Any, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(OrchestratorError) as caught:
        await orchestrator(ScriptedTool("t")).run("q", **{"tool_name": "t", **arguments})
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).startswith(f"{field}: ")


# ── metadata ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_metadata_has_the_tool_the_ids_and_the_budget_and_then_the_tools_own(orchestrator: Any) -> None:
    tool = ScriptedTool("t", OK("x", metadata={"model": "m"}), version="2.1")
    output = await orchestrator(tool).run("q", "t", None, {"budget": {"tokens": 10}, "request_id": "r"})
    assert output.metadata == {
        "tool_name": "t",
        "tool_version": "2.1",
        "trace_id": "r",
        "request_id": "r",
        "budget": {"tokens": 10},
        "model": "m",
    }


@BOTH
async def test_a_tools_own_metadata_may_not_overwrite_ours(orchestrator: Any) -> None:
    lies = dict.fromkeys(("tool_name", "tool_version", "trace_id", "request_id", "budget", "user"), "a lie")
    tool = ScriptedTool("t", OK("x", metadata={**lies, "own": 1}))
    output = await orchestrator(tool).run("q", "t", None, {"metadata": {"team": "a"}})
    assert "a lie" not in output.metadata.values()
    assert (output.metadata["own"], output.metadata["user"]) == (1, {"team": "a"})


@BOTH
async def test_metadata_of_a_failed_run_names_the_tool_that_failed(orchestrator: Any) -> None:
    output = await orchestrator(ScriptedTool("t", err(400), version="3.0")).run("q", "t")
    assert (output.metadata["tool_name"], output.metadata["tool_version"]) == ("t", "3.0")


@BOTH
async def test_per_agent_has_one_entry_per_tool_that_was_tried(orchestrator: Any) -> None:
    output = await orchestrator(ScriptedTool("t", OK("x", usage={"total_tokens": 2}, cost_usd=0.5))).run("q", "t")
    (entry,) = output.per_agent.values()
    assert list(output.per_agent) == ["t"]
    assert (entry["attempts"], entry["usage"], entry["cost_usd"]) == (1, {"total_tokens": 2}, 0.5)


# ── validate_request ─────────────────────────────────────────────────────────────────────────────────────────────────


class Strict(ScriptedTool):
    def __init__(self, name: str, error: Exception, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.error = error

    def validate_request(self, request: Any) -> None:
        raise self.error


@BOTH
async def test_validate_request_is_called_for_every_tool_before_it_is_asked(orchestrator: Any) -> None:
    tool = Strict("t", ValueError("query: give at least one word"))
    info = failed(await orchestrator(tool).run("", "t"))
    assert (info["type"], info["code"], info["message"]) == (
        "ValueError",
        "validation",
        "query: give at least one word",
    )
    assert tool.calls == []


@BOTH
async def test_a_validation_that_nobody_would_await_fails_a_tool_that_was_never_registered(orchestrator: Any) -> None:
    class Later(ScriptedTool):
        async def validate_request(self, request: Any) -> None:  # type: ignore[override]
            raise ValueError("never seen")

    with pytest.raises(InvalidRequest, match=r"^Tool 'in' validate_request: .*; nobody awaits it; write def, and not"):
        ToolRegistry().register_tool(Later("in"))
    inside = Later("in")
    output = await orchestrator(StrategyTool("t", chain(inside))).run("q", "t")
    assert failed(output)["message"] == "Tool 'in' validate_request: nobody awaits it; write def, and not async def"
    assert inside.calls == []


@BOTH
async def test_a_validation_that_breaks_is_a_failure_of_the_tool(orchestrator: Any) -> None:
    info = failed(await orchestrator(Strict("t", KeyError("x"))).run("q", "t"))
    assert info["type"] == "KeyError"


# ── the registry ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_registry_refuses_what_is_no_tool_what_has_no_name_and_what_is_there() -> None:
    made = registry(ScriptedTool("t"))
    with pytest.raises(TypeError):
        made.register_tool("t")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name"):
        made.register_tool(ScriptedTool(" "))
    with pytest.raises(ValueError, match="already registered"):
        made.register_tool(ScriptedTool("t"))
    made.register_tool(ScriptedTool("t", version="2.0.0"))


def test_the_highest_version_is_found_unless_one_is_asked_for() -> None:
    made = registry(*(ScriptedTool("t", version=version) for version in ("1.9.0", "1.10.0", "draft", "1.10.0rc1")))
    found = made.get_tool("t")
    assert found is not None
    assert found.version == "1.10.0"
    assert [getattr(made.get_tool("t", version), "version", None) for version in ("1.9.0", "draft", "7")] == [
        "1.9.0",
        "draft",
        None,
    ]


def test_a_registry_lists_describes_and_forgets() -> None:
    made = registry(
        ScriptedTool("b", provider="p", capabilities=["qa"], description="d"),
        ScriptedTool("a"),
        ScriptedTool("a", version="2.0.0"),
    )
    assert list(made.list_tools()) == ["b", "a"]
    assert made.list_tools()["b"]["version"] == "1.0.0"
    described = made.get_tool_metadata("b")
    assert described is not None
    assert (described["description"], described["capabilities"], described["provider"]) == ("d", ["qa"], "p")
    assert made.get_tool_metadata("nobody") is None
    assert [made.has_tool(name) for name in ("a", "b", "nobody")] == [True, True, False]
    assert made.unregister_tool("a", "2.0.0")
    assert made.list_tools()["a"]["version"] == "1.0.0"
    assert [made.unregister_tool("a"), made.unregister_tool("a"), made.has_tool("a")] == [True, False, False]
    made.clear()
    assert (made.list_tools(), len(made)) == ({}, 0)


async def test_clearing_the_dictionary_of_tools_by_hand_clears_the_registry() -> None:
    made = registry(ScriptedTool("t", OK("old")))
    runner = ReliableOrchestrator(registry=made)
    assert (await runner.run("q")).content == "old"
    made._tools.clear()
    assert not made.has_tool("t")
    made.register_tool(ScriptedTool("u", OK("new")))
    assert (await runner.run("q")).content == "new"


async def test_the_global_registry_serves_both_orchestrators() -> None:
    get_global_registry().register_tool(ScriptedTool("everywhere"))
    try:
        for runner in (Orchestrator(), ReliableOrchestrator()):
            assert (await runner.run("q", "everywhere")).content == "ok"
    finally:
        get_global_registry().unregister_tool("everywhere")


def test_a_tool_that_is_registered_again_takes_the_place_of_the_first_where_that_is_said() -> None:
    first, second, other = ScriptedTool("t"), ScriptedTool("t"), ScriptedTool("t", version="0.9")
    tools = registry(first, other)
    assert tools.planning_view()["t"].version == "1.0.0"
    tools.register_tool(second, replace=True)
    assert tools.get_tool("t") is second
    assert tools.get_tool("t", "0.9") is other
    with pytest.raises(ValueError, match="already registered; register it with replace=True"):
        tools.register_tool(first)


async def test_evidence_has_the_totals_of_the_output() -> None:
    class Once(ScriptedTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            return bundle("x", "x", usage={"total_tokens": 7}, cost=0.25)

    output = await plain(Once("t")).run("q", "t")
    assert output.evidence is not None
    assert (output.evidence.usage_total, output.evidence.cost_total_usd) == ({"total_tokens": 7}, 0.25)
    output.evidence.usage_total["total_tokens"] = 8
    assert output.usage == {"total_tokens": 7}
