from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scripted_model import Say, ScriptedModel

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.orchestration.tools.text_analyzer import MOST_READ, NO_MODEL, TextAnalyzer
from steer_llm_sdk.providers.base import ModelRequest
from steer_llm_sdk.providers.models import Model

SENTENCES = [
    "The circuit breaker keeps a failing service from being called again and again.",
    "When a provider answers with errors, the breaker counts them one by one.",
    "After five failures in a row the circuit opens, and every further call is refused at once.",
    "Somebody in the next room was humming a tune from long ago.",
    "After a minute the breaker lets a few probes through to the service.",
    "If they succeed the circuit closes; if one fails, the circuit opens again.",
    "A retry without a breaker hammers a service that is down.",
    "Outside it rained, and nobody minded.",
]
PAGE = "\n".join(f"{sentence[:-1]} ({number})." for number in range(5) for sentence in SENTENCES)
ANSWER = {
    "summary": "Breakers protect services.",
    "key_points": ["They open."],
    "sentiment": "neutral",
    "tone": "factual",
    "topics": ["reliability"],
}


class CountingModel(ScriptedModel):
    """Reserves a token for each three bytes, as the adapters do, and 0.001 USD for a thousand tokens."""

    def worst_case(self, request: ModelRequest) -> Amount:
        size = sum(len(str(message.content).encode()) for message in request.messages) + len(json.dumps(request.schema))
        tokens = (
            size // 3 + 1 + 8 * len(request.messages) + (4096 if request.max_tokens is None else request.max_tokens)
        )
        return Amount(tokens, tokens / 1_000_000)


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STEER_MODEL", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def analyzer() -> AsyncIterator[TextAnalyzer]:
    made = TextAnalyzer(look_at={})
    yield made
    await made.aclose()


def registry(tool: TextAnalyzer) -> ToolRegistry:
    made = ToolRegistry()
    made.register_tool(tool)
    return made


# Requests


def test_it_is_called_text_analyzer_and_says_what_it_can_do(analyzer: TextAnalyzer) -> None:
    assert (analyzer.name, tuple(analyzer.capabilities), analyzer.composite) == (
        "text_analyzer",
        ("analysis", "text"),
        True,
    )
    assert analyzer.description


@pytest.mark.parametrize(
    "request_", ["Some text.", {"query": "Some text."}, {"text": "Some text.", "type": "analysis"}]
)
async def test_the_text_comes_alone_or_under_text_or_query(analyzer: TextAnalyzer, request_: Any) -> None:
    analyzer.validate_request(request_)
    assert (await analyzer.execute(request_))["content"]["counts"]["words"] == 2


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("", "query: '' cannot be used; there is nothing in it; give some text"),
        ({"text": " \n\t "}, r"text: ' \n\t ' cannot be used; there is nothing in it"),
        ({"text": "\x00\x00"}, r"text: '\x00\x00' cannot be used; there is nothing in it"),
        ({"query": 5}, "query: 5 cannot be used; give a text"),
        ({"text": b"bytes"}, "text: b'bytes' cannot be used; give a text; bytes are decoded first"),
        ({"text": ["a"]}, "text: ['a'] cannot be used; give a text"),
        ({}, "text is missing; give the text to analyse under `text` or `query`"),
        ({"text": None}, "text is missing"),
        ({"text": "a", "query": "b"}, "query: 'b' cannot be used; there is a `text` already"),
        (["a"], "request: ['a'] cannot be used; give a text, or a mapping"),
        (None, "request: None cannot be used"),
    ],
)
async def test_what_is_no_text_is_refused_with_a_sentence(analyzer: TextAnalyzer, request_: Any, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        analyzer.validate_request(request_)
    assert str(caught.value).startswith(message)
    with pytest.raises(InvalidRequest):
        await analyzer.execute(request_)


async def test_what_else_is_in_the_request_is_named_as_ignored(analyzer: TextAnalyzer) -> None:
    result = await analyzer.execute({"text": "A text.", "data": 1, "type": "analysis", "options": {}})
    assert result["metadata"]["ignored_keys"] == ["data"]


@pytest.mark.parametrize(
    ("options", "field"),
    [({"sentences": 0}, "sentences"), ({"key_phrases": "many"}, "key_phrases"), ({"colour": "red"}, "colour")],
)
async def test_an_option_that_cannot_be_used_is_named(
    analyzer: TextAnalyzer, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest, match=field):
        await analyzer.execute("A text.", options)


# Without a model


async def test_without_a_model_it_counts_here_and_says_that_no_model_was_called(analyzer: TextAnalyzer) -> None:
    result = await analyzer.execute(PAGE)
    content = result["content"]
    assert content["note"] == NO_MODEL
    assert "No language model was called" in NO_MODEL
    assert content["counts"]["characters"] == len(PAGE)
    assert content["readability"]["flesch_reading_ease"] > 50
    assert "Flesch" in content["readability"]["source"]
    assert "breaker" in content["key_phrases"]
    assert len(content["extract"]) == 3
    assert all(extract in PAGE for extract in content["extract"])
    assert result["metadata"] == {"local": True, "language_model": None}


async def test_counting_costs_nothing_and_claims_no_confidence(analyzer: TextAnalyzer) -> None:
    result = await analyzer.execute(PAGE)
    assert result["cost_usd"] == 0.0
    assert "usage" not in result
    assert "confidence" not in json.dumps(result)


async def test_no_readability_comes_with_the_reason(analyzer: TextAnalyzer) -> None:
    content = (await analyzer.execute("Zu kurz."))["content"]
    assert content["readability"] == {"flesch_reading_ease": None, "why": "fewer than 30 words"}


async def test_options_set_the_length_of_the_extract_and_of_the_list(analyzer: TextAnalyzer) -> None:
    content = (await analyzer.execute(PAGE, {"sentences": 1, "key_phrases": 2}))["content"]
    assert (len(content["extract"]), len(content["key_phrases"])) == (1, 2)


async def test_the_options_of_a_bundle_and_of_a_run_are_no_mistake(analyzer: TextAnalyzer) -> None:
    options = {"k": 3, "epsilon": 0.2, "max_parallel": 10, "seed": 1, "temperature": 0, "trace_id": "t"}
    assert (await analyzer.execute("A text.", options))["content"]["counts"]["words"] == 2


async def test_keys_are_named_and_never_used_or_shown(analyzer: TextAnalyzer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-123")
    result = await analyzer.execute("A text.")
    assert result["content"]["models"]["keys_found"] == ["OPENAI_API_KEY"]
    assert "STEER_MODEL" in result["content"]["models"]["to_use_one"]
    assert result["metadata"]["language_model"] is None
    assert "canary" not in json.dumps(result)


@pytest.mark.real_time
async def test_local_servers_are_found_and_named() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps({"data": [{"id": "llama3"}]}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with server:
        result = await TextAnalyzer(look_at={"ollama": url}).execute("A text.")
    found = [{"base_url": url, "models": ["ollama:llama3"]}]
    assert result["content"]["models"]["local_servers_found"] == found


@pytest.mark.real_time
async def test_ten_megabytes_are_read_while_the_loop_goes_on(analyzer: TextAnalyzer) -> None:
    text = (PAGE + "\n\n") * (10_000_000 // len(PAGE))
    longest, done = 0.0, False

    async def watch() -> None:
        nonlocal longest
        while not done:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            longest = max(longest, time.perf_counter() - before)

    watching = asyncio.create_task(watch())
    result = await analyzer.execute({"text": text})
    done = True
    await watching
    assert result["content"]["counts"]["characters"] == len(text)
    assert longest < 1.0


@pytest.mark.parametrize("text", ["🎉🎉", "‮שלום", "a\x00b", "x" * 30_000, "." * 30_000, json.loads('"\\ud800"')])
async def test_odd_texts_are_analysed_too(analyzer: TextAnalyzer, text: str) -> None:
    output = await ReliableOrchestrator(registry=registry(analyzer)).run({"text": text}, "text_analyzer")
    assert output.status == "succeeded"
    json.dumps(output.content).encode()


async def test_a_run_without_a_model_costs_nothing(analyzer: TextAnalyzer) -> None:
    output = await ReliableOrchestrator(registry=registry(analyzer)).run(
        {"type": "analysis", "query": "A text."}, options={"budget": {"tokens": 100, "cost_usd": 0.01}}
    )
    assert output.status == "succeeded"
    assert output.cost_usd == 0.0
    assert output.metadata["tool_name"] == "text_analyzer"
    assert output.metadata["local"] is True


# With a model


async def test_a_named_model_is_asked_once_for_an_analysis(analyzer: TextAnalyzer) -> None:
    model = CountingModel(ANSWER)
    result = await analyzer.execute({"text": PAGE}, {"model": model})
    assert result["content"] == ANSWER
    assert result["metadata"]["model"] == "test:model"
    assert result["metadata"]["read"] == {"characters": len(PAGE), "of": len(PAGE), "how": "the whole text"}
    assert "local" not in result["metadata"]
    assert (result["cost_usd"], result["usage"]["total_tokens"]) == (0.01, 15)
    assert model.said == [PAGE]
    assert model.requests[0].max_tokens is None
    assert model.requests[0].schema is not None


async def test_a_model_that_answers_in_another_form_is_asked_again(analyzer: TextAnalyzer) -> None:
    model = CountingModel({"summary": "only this"}, ANSWER)
    result = await analyzer.execute(PAGE, {"model": model})
    assert result["content"] == ANSWER
    assert result["metadata"]["repaired"] is True
    assert len(model.requests) == 2


async def test_a_page_under_a_thousand_tokens_succeeds(analyzer: TextAnalyzer) -> None:
    assert 2500 < len(PAGE) < 3500
    model = CountingModel(ANSWER)
    output = await ReliableOrchestrator(registry=registry(analyzer)).run(
        PAGE, "text_analyzer", {"model": model}, {"budget": {"tokens": 1000}}
    )
    assert output.status == "succeeded"
    assert output.content == ANSWER
    sent = model.requests[0]
    assert model.worst_case(sent).tokens <= 1000
    assert sent.max_tokens is not None
    assert sent.max_tokens >= 250
    read = output.metadata["read"]
    assert read["of"] == len(PAGE)
    assert 1000 < read["characters"] == len(model.said[0]) < len(PAGE)
    assert read["how"].startswith("the most central sentences")


async def test_what_is_left_out_are_the_least_central_sentences(analyzer: TextAnalyzer) -> None:
    model = CountingModel(ANSWER)
    await analyzer.execute(PAGE, {"model": model, "global_budget": {"tokens": 1000}})
    lines = model.said[0].splitlines()
    assert all(line in PAGE for line in lines)
    assert [PAGE.index(line) for line in lines] == sorted(PAGE.index(line) for line in lines)
    assert not any("humming" in line or "rained" in line for line in lines)


async def test_a_small_sum_of_money_is_kept_to_as_well(analyzer: TextAnalyzer) -> None:
    model = CountingModel(ANSWER, cost_usd=0.0005)
    output = await ReliableOrchestrator(registry=registry(analyzer)).run(
        PAGE, "text_analyzer", {"model": model}, {"budget": {"cost_usd": 0.0008}}
    )
    assert output.status == "succeeded"
    worst = model.worst_case(model.requests[0])
    assert worst.cost_usd is not None
    assert worst.cost_usd <= 0.0008
    assert output.metadata["read"]["characters"] < len(PAGE)


async def test_a_large_budget_leaves_the_text_whole(analyzer: TextAnalyzer) -> None:
    model = CountingModel(ANSWER)
    await analyzer.execute(PAGE, {"model": model, "global_budget": {"tokens": 50_000, "ms": 1000}})
    assert model.said == [PAGE]
    assert model.requests[0].max_tokens is None


async def test_the_callers_max_tokens_is_kept(analyzer: TextAnalyzer) -> None:
    model = CountingModel(ANSWER)
    await analyzer.execute(PAGE, {"model": model, "max_tokens": 100, "global_budget": {"tokens": 1000}})
    assert model.requests[0].max_tokens == 100
    assert model.worst_case(model.requests[0]).tokens <= 1000


async def test_one_endless_sentence_is_cut_to_what_fits(analyzer: TextAnalyzer) -> None:
    model = CountingModel(ANSWER)
    await analyzer.execute("x" * 5000, {"model": model, "global_budget": {"tokens": 600}})
    assert 64 <= len(model.said[0]) < 1000
    assert model.worst_case(model.requests[0]).tokens <= 600


async def test_a_text_without_words_is_cut_to_what_fits(analyzer: TextAnalyzer) -> None:
    model = CountingModel(ANSWER)
    await analyzer.execute("🎉" * 5000, {"model": model, "global_budget": {"tokens": 800}})
    assert model.worst_case(model.requests[0]).tokens <= 800
    assert set(model.said[0]) == {"🎉"}


async def test_a_budget_too_small_for_a_line_is_refused_with_the_numbers(analyzer: TextAnalyzer) -> None:
    model = CountingModel(ANSWER)
    with pytest.raises(BudgetExceeded, match="tokens budget exceeded"):
        await ReliableOrchestrator(registry=registry(analyzer)).run(
            PAGE, "text_analyzer", {"model": model}, {"budget": {"tokens": 50}}
        )
    assert model.requests == []


async def test_a_very_long_text_is_read_in_part_without_a_budget_too(analyzer: TextAnalyzer) -> None:
    model = CountingModel(ANSWER)
    text = "\n".join(f"Sentence number {number} is about breakers and number {number}." for number in range(5000))
    result = await analyzer.execute(text, {"model": model})
    assert MOST_READ * 0.9 < result["metadata"]["read"]["characters"] <= MOST_READ
    assert result["metadata"]["read"]["of"] == len(text)


async def test_a_list_of_models_is_tried_in_order_and_fits_all_of_them(analyzer: TextAnalyzer) -> None:
    first, second = CountingModel(Say(fail=RuntimeError("no"))), CountingModel(ANSWER, name="test:other")
    result = await analyzer.execute(PAGE, {"model": [first, second], "global_budget": {"tokens": 1000}})
    assert result["metadata"]["model"] == "test:other"
    assert first.said == second.said


async def test_what_no_wire_takes_does_not_reach_the_model(analyzer: TextAnalyzer) -> None:
    model = CountingModel(ANSWER)
    await analyzer.execute(json.loads('"half \\ud800 and\\u0000 NUL"'), {"model": model})
    assert model.said == ["half ? and  NUL"]


@pytest.mark.parametrize("model", ["gpt-5", "nowhere:gpt", 5, ["openai:"]])
async def test_a_model_that_cannot_be_named_so_is_refused(analyzer: TextAnalyzer, model: Any) -> None:
    with pytest.raises(InvalidRequest, match="model"):
        await analyzer.execute("A text.", {"model": model})


async def test_a_model_named_in_the_environment_is_used(
    analyzer: TextAnalyzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEER_MODEL", "openai:gpt-5-mini")
    with pytest.raises(InvalidRequest, match="OPENAI_API_KEY"):
        await analyzer.execute("A text.")
    assert list(analyzer.targets) == [("text_analyzer", "text_analyzer")]
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    assert list(analyzer.targets) == list(analyzer.targets) == [("openai", "text_analyzer")]


async def test_an_adapter_that_was_given_is_not_closed_here(analyzer: TextAnalyzer) -> None:
    model = CountingModel(ANSWER)
    await analyzer.execute(PAGE, {"model": model})
    await analyzer.aclose()
    assert model.closed == 0


@pytest.mark.real_time
async def test_a_page_goes_over_the_wire_and_comes_back_analysed(analyzer: TextAnalyzer) -> None:
    sent: list[dict[str, Any]] = []
    url, server = await _openai_like(sent)
    async with server:
        output = await ReliableOrchestrator(registry=registry(analyzer)).run(
            {"text": PAGE},
            "text_analyzer",
            {"model": Model("openai:gpt-4o-mini", base_url=url, api_key="sk-test")},
            {"budget": {"tokens": 1000}},
        )
        await analyzer.aclose()
    assert output.status == "succeeded", output.errors
    assert output.content == ANSWER
    assert output.usage["total_tokens"] == 520
    assert sent[0]["messages"][1]["content"] != PAGE
    assert len(sent) == 1


async def _openai_like(sent: list[dict[str, Any]]) -> tuple[str, asyncio.Server]:
    """A server that gives every chat completion the same answer, streamed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split("\r\n")[0])
        sent.append(json.loads(await reader.readexactly(length)))
        usage = {"prompt_tokens": 400, "completion_tokens": 120, "total_tokens": 520}
        events: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": json.dumps(ANSWER)}}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": usage},
        ]
        known = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-mini"}
        lines = [f"data: {json.dumps({**known, **event})}\n\n" for event in events]
        body = "".join([*lines, "data: [DONE]\n\n"]).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", server
