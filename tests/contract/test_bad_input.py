"""**Bad input.** What cannot be served is one clear error, with the field, what was given and what would do."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.contract.kit import Model, failed, plain, registry, reliable

from steer_llm_sdk import OrchestrationConfig, Orchestrator, ReliableOrchestrator, tool
from steer_llm_sdk.errors import InvalidRequest, OrchestratorError, ToolNotFound
from steer_llm_sdk.orchestration.tools import LLMBundleTool, LLMTool
from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.orchestration.tools.structured import OutputSchema
from steer_llm_sdk.orchestration.tools.text_analyzer import TextAnalyzer
from steer_llm_sdk.testing import OK, ScriptedTool

DEPTH = 10_000
LOST = "\ud800"
"""Half a character."""


def nested(inner: Any = 1) -> list[Any]:
    value = [inner]
    for _ in range(DEPTH):
        value = [value]
    return value


def nested_mapping() -> dict[str, Any]:
    value: dict[str, Any] = {"a": 1}
    for _ in range(DEPTH):
        value = {"a": value}
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class Mute:
    """It cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


class NeitherTrueNorFalse:
    """Like an array of several numbers."""

    def __bool__(self) -> bool:
        raise ValueError("ambiguous")


@tool
async def typed(number: int, texts: list[str] | None = None) -> int:
    return number


@pytest.fixture(params=[Orchestrator, ReliableOrchestrator])
def orchestrator(request: pytest.FixtureRequest) -> Any:
    tools = (
        ScriptedTool("plain"),
        LLMTool("ask", Model()),
        LLMBundleTool("bundle", Model()),
        SimpleBundleTool(),
        TextAnalyzer(),
        typed,
    )
    return request.param(registry=registry(*tools))


async def refusal(orchestrator: Any, request: Any, name: str, attempts: int = 0, **more: Any) -> str:
    """The one sentence, whether it was raised or returned after so many attempts."""
    try:
        output = await orchestrator.run(request, name, **more)
    except InvalidRequest as error:
        return str(error)
    error = failed(output)
    assert (error["type"], error["code"], error["is_retryable"]) == ("InvalidRequest", "validation", False)
    assert len(output.attempts) == attempts
    return str(error["message"])


def one_sentence(said: str, field: str) -> None:
    """What was given and what would do; or that nothing was, and what would."""
    if not said.startswith(f"{field} is missing; "):
        assert said.startswith(f"{field}: "), said
        assert " cannot be used; " in said
    assert "\n" not in said
    assert len(said) < 600


# requests


@pytest.mark.parametrize("name", ["ask", "bundle"])
@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (None, "request"),
        (5, "request"),
        (math.nan, "request"),
        (b"bytes", "request"),
        (Mute(), "request"),
        (nested(), "request"),
        ({}, "request"),
        ("", "query"),
        (" \n\t", "query"),
        (f"a{LOST}b", "query"),
        ({"query": 5}, "query"),
        ({"query": nested("x")}, "query"),
        ({"query": "x", "table": math.nan}, "table"),
        ({"query": "x", "table": [math.inf]}, "table"),
        ({"query": "x", "table": nested()}, "table"),
        ({"query": "x", "table": nested_mapping()}, "table"),
        ({"query": "x", "table": endless()}, "table"),
        ({"query": "x", "table": 10**5000}, "table"),
        ({"query": "x", "table": f"a{LOST}"}, "table"),
        ({"query": "x", "table": Mute()}, "table"),
        ({"messages": "x"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": nested()}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", 5: 1}]}, "messages[0].5"),
        ({"messages": [{"role": "god", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": LOST}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": LOST}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
    ],
)
async def test_a_request_that_no_model_can_be_asked_names_its_field(
    orchestrator: Any, name: str, request_: Any, field: str
) -> None:
    one_sentence(await refusal(orchestrator, request_, name), field)


@pytest.mark.parametrize(
    ("name", "request_", "field"),
    [
        ("text_analyzer", nested(), "request"),
        ("text_analyzer", "", "query"),
        ("text_analyzer", "\x00\x00", "query"),
        ("text_analyzer", {"text": 5}, "text"),
        ("text_analyzer", {}, "text"),
        ("typed", nested(), "request"),
        ("typed", {"number": math.nan}, "number"),
        ("typed", {"number": nested()}, "number"),
        ("typed", {"number": "5"}, "number"),
        ("typed", {"number": 1, "texts": [1]}, "texts.0"),
        ("typed", {"number": 1, "colour": "red"}, "colour"),
        ("typed", {}, "number"),
    ],
)
async def test_a_request_that_a_tool_cannot_serve_names_its_field(
    orchestrator: Any, name: str, request_: Any, field: str
) -> None:
    one_sentence(await refusal(orchestrator, request_, name), field)


@pytest.mark.parametrize(
    "request_",
    [
        math.nan,
        nested(),
        {"query": "x", "table": nested_mapping()},
        endless(),
        {1},
        b"x",
        Mute(),
        {Mute(): 1},
        [10**5000],
        f"a{LOST}",
        NeitherTrueNorFalse(),
    ],
)
async def test_a_request_with_a_key_must_be_json(orchestrator: Any, request_: Any) -> None:
    said = await refusal(orchestrator, request_, "plain", options={"idempotency_key": "k"})
    one_sentence(said, "request")
    assert "with an idempotency_key a request must be JSON" in said


@pytest.mark.parametrize(
    "text", ["x" * 10_000_000, "a\x00b", "😀" * 1000, "\u202eשלם\u2066", "\ufeffmark", "\x1b[31mred"]
)
async def test_a_text_of_any_kind_and_length_reaches_the_model_as_it_is(text: str) -> None:
    model = Model()
    async with ReliableOrchestrator(registry=registry(LLMTool("ask", model))) as orchestrator:
        output = await orchestrator.run(text, "ask")
    assert output.status == "succeeded"
    assert model.requests[0].messages[-1].content == text


async def test_a_text_of_ten_megabytes_is_counted(orchestrator: Any) -> None:
    output = await orchestrator.run("word " * 2_000_000, "text_analyzer")
    assert output.content["counts"]["words"] == 2_000_000


# options


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (5, "options"),
        ([], "options"),
        ("fast", "options"),
        ({"colour": "red"}, "options.colour"),
        ({5: 1}, "options.5"),
        ({"timeout_ms": 99}, "options.timeout_ms"),
        ({"timeout_ms": math.nan}, "options.timeout_ms"),
        ({"timeout_ms": math.inf}, "options.timeout_ms"),
        ({"timeout_ms": 10**400}, "options.timeout_ms"),
        ({"max_parallel": 0}, "options.max_parallel"),
        ({"max_parallel": 21}, "options.max_parallel"),
        ({"max_retries": 6}, "options.max_retries"),
        ({"budget": 5}, "options.budget"),
        ({"budget": {"euros": 1}}, "options.budget"),
        ({"budget": {"tokens": math.nan}}, "options.budget"),
        ({"budget": {"tokens": -1}}, "options.budget"),
        ({"budget": {"tokens": True}}, "options.budget"),
        ({"idempotency_key": " "}, "options.idempotency_key"),
        ({"idempotency_key": "x" * 513}, "options.idempotency_key"),
        ({"idempotency_key": LOST}, "options.idempotency_key"),
        ({"redactor_cb": "print"}, "options.redactor_cb"),
        ({"metadata": [1]}, "options.metadata"),
    ],
)
async def test_an_option_that_cannot_be_used_is_refused_by_name(orchestrator: Any, options: Any, field: str) -> None:
    one_sentence(await refusal(orchestrator, "x", "plain", options=options), field)


async def test_an_unknown_option_lists_those_there_are(orchestrator: Any) -> None:
    said = await refusal(orchestrator, "x", "plain", options={"colour": "red"})
    assert all(name in said for name in OrchestrationConfig.model_fields)


@pytest.mark.parametrize("name", ["ask", "bundle", "text_analyzer"])
@pytest.mark.parametrize(
    ("tool_options", "field"),
    [
        (5, "tool_options"),
        ([("k", 1)], "tool_options"),
        ({"colour": nested()}, "colour"),
        ({"temperature": math.nan}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": "first"}, "seed"),
        ({"model": "gpt-4o"}, "model"),
        ({"model": 5}, "model"),
        ({"model": "recorded:nobody"}, "model"),
        ({"timeout_ms": -1}, "timeout_ms"),
    ],
)
async def test_a_tool_option_that_cannot_be_used_is_refused_by_name(
    orchestrator: Any, name: str, tool_options: Any, field: str
) -> None:
    if name == "text_analyzer" and field == "model" and isinstance(tool_options["model"], int):
        tool_options = {"model": [5]}
    one_sentence(await refusal(orchestrator, "some text", name, tool_options=tool_options), field)


@pytest.mark.parametrize("name", ["bundle", "simple_bundle"])
@pytest.mark.parametrize(
    ("tool_options", "field"),
    [
        ({"k": 1}, "k"),
        ({"k": 10**9}, "k"),
        ({"k": math.nan}, "k"),
        ({"k": 3, "seeds": [1]}, "seeds"),
        ({"seeds": ["first"]}, "seeds.0"),
        ({"epsilon": 2}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"bundle_limits": {"max_words": 1}}, "bundle_limits"),
        ({"bundle_limits": {"max_bytes": -1}}, "bundle_limits"),
        ({"per_replicate_budget": {"tokens": 0}}, "per_replicate_budget"),
        ({"schema_uri": 5}, "schema_uri"),
    ],
)
async def test_an_option_of_a_bundle_that_cannot_be_used_is_refused_by_name(
    orchestrator: Any, name: str, tool_options: Mapping[str, Any], field: str
) -> None:
    attempts = 0 if name == "bundle" else 1  # The example makes no calls of its own: asking it is the attempt.
    one_sentence(await refusal(orchestrator, "x", name, attempts, tool_options=tool_options), field)


# tools


@pytest.mark.parametrize("name", ["nobody", "", "\x1b[2J", "x" * 10_000])
async def test_an_unknown_tool_is_named_with_those_there_are(orchestrator: Any, name: str) -> None:
    with pytest.raises(ToolNotFound, match=r"not found\. Available tools: .*plain"):
        await orchestrator.run("x", name)


@pytest.mark.parametrize("name", [5, ["plain"], b"plain"])
async def test_a_tool_name_that_is_no_text_is_refused(orchestrator: Any, name: Any) -> None:
    with pytest.raises(OrchestratorError, match="tool_name: "):
        await orchestrator.run("x", name)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: LLMTool("t", "gpt-4o"), "model"),
        (lambda: LLMTool("t", ""), "model"),
        (lambda: LLMTool("t", []), "model"),
        (lambda: LLMTool("t", 5), "model"),  # type: ignore[arg-type]
        (lambda: LLMTool("t", "openai:gpt-5-mini"), "model"),
        (lambda: LLMTool("t", Model(), temperature=math.nan), "temperature"),
        (lambda: LLMTool("t", Model(), max_tokens=0), "max_tokens"),
        (lambda: LLMTool("t", Model(), output_type=object()), "output_type"),
        (lambda: LLMBundleTool("t", Model(), k=1), "k"),
        (lambda: LLMBundleTool("t", Model(), k=11), "k"),
        (lambda: LLMBundleTool("t", Model(), fields="answer"), "fields"),
        (lambda: LLMBundleTool("t", Model(), fields=["a..b"]), "fields"),
    ],
)
def test_a_tool_that_cannot_be_made_says_why_when_it_is_made(make: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make()
    one_sentence(str(caught.value), field)


# schemas


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strng"},
        {"type": "string", "pattern": "("},
        {"minimum": math.nan},
        {"properties": nested_mapping()},
        {"enum": [nested()]},
        {"$ref": "#/$defs/missing"},
        {"$ref": "other.json"},
        {"const": 10**5000},
        {5: 1},
    ],
)
def test_a_schema_that_is_none_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        OutputSchema.of(schema)
    one_sentence(str(caught.value), "output_type")


@pytest.mark.real_time
async def test_no_schema_is_fetched_and_no_file_is_read(tmp_path: Path) -> None:
    """A server that counts, and a pipe into which nobody writes: reading it would never end."""
    asked = 0

    def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.close()

    os.mkfifo(tmp_path / "schema.json")
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/schema.json"
        for uri in (url, (tmp_path / "schema.json").as_uri(), str(tmp_path / "schema.json")):
            with pytest.raises(InvalidRequest, match="is not followed; put the definition into the schema"):
                OutputSchema.of({"$ref": uri})
            async with ReliableOrchestrator(registry=registry(LLMBundleTool("b", Model()))) as orchestrator:
                output = await orchestrator.run("x", "b", {"k": 2, "schema_uri": uri})
            assert output.evidence is not None
            assert output.evidence.meta.schema_uri == uri
    assert asked == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_confidence", 2),
        ("min_quality", float("nan")),
        ("min_quality", "high"),
        ("max_latency_ms", -1),
        ("max_latency_ms", "fast"),
        ("max_latency_ms", True),
        ("max_cost_usd", float("inf")),
        ("max_cost_usd", [1]),
    ],
)
@pytest.mark.parametrize("make", [plain, reliable])
async def test_a_requirement_that_is_no_number_is_refused_and_not_passed_over(make: Any, name: str, value: Any) -> None:
    tool = ScriptedTool("t", OK())
    with pytest.raises(InvalidRequest, match=f"options.quality_requirements: .*for '{name}' give a number from 0"):
        await make(tool).run("q", "t", options={"quality_requirements": {name: value}})
    assert tool.calls == []


@pytest.mark.parametrize(
    ("request_", "tool_options", "said"),
    [
        (LOST, None, r"request: \{'query': '.ud800'\} cannot be used; it holds a lone surrogate"),
        ("q", {"a": LOST}, r"tool_options: \{'a': '.ud800'\} cannot be used; it holds a lone surrogate"),
        ("q", {"a": math.nan}, "tool_options: nan cannot be used; nan is no JSON number"),
        ("q", {"a": nested()}, "tool_options: .* cannot be used; it is nested more than 200 deep"),
    ],
)
async def test_of_a_keyed_run_the_part_that_is_no_json_is_named(request_: Any, tool_options: Any, said: str) -> None:
    tool = ScriptedTool("t", OK())
    with pytest.raises(InvalidRequest, match=said):
        await reliable(tool).run(request_, "t", tool_options, {"idempotency_key": "k"})
    assert tool.calls == []
