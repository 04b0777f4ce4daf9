"""A good answer, over either wire format, comes back with everything the provider said of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from canned import OK_OPENAI, Answer, Canned, adapter_at, asking, chunk, event, message_start, stream, text_block

from steer_llm_sdk.providers.base import ModelAdapter, ModelRequest
from steer_llm_sdk.providers.models import Model, Price, resolve_model
from steer_llm_sdk.providers.simulated import SimulatedServer

Start = Callable[[Answer], Awaitable[Canned]]


async def test_the_pieces_are_the_text(adapter: ModelAdapter, question: ModelRequest) -> None:
    pieces: list[str] = []
    reply = await adapter.request(question, pieces.append)
    assert "".join(pieces) == reply.text
    assert len(pieces) > 1
    assert '"answer": ' in reply.text


async def test_a_reply_says_who_answered_and_at_what_cost(adapter: ModelAdapter, question: ModelRequest) -> None:
    reply = await adapter.request(question)
    assert adapter.name.endswith(reply.model)
    assert reply.usage["input_tokens"] > 0
    assert reply.usage["total_tokens"] == reply.usage["input_tokens"] + reply.usage["output_tokens"]
    assert reply.finish_reason == "stop"
    assert reply.request_id is not None
    assert reply.request_id.startswith("req_")
    assert reply.ignored == ()


async def test_a_recorded_answer_is_marked_and_priced_as_its_maker_does(
    adapter: ModelAdapter, question: ModelRequest, wire: str
) -> None:
    reply = await adapter.request(question)
    assert (reply.simulated, reply.local) == (True, False)
    usd = {"openai": (5.0, 15.0), "anthropic": (0.25, 1.25)}[wire]
    expected = (reply.usage["input_tokens"] * usd[0] + reply.usage["output_tokens"] * usd[1]) / 1e6
    assert reply.cost_usd == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "model", "usd"),
    [
        ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13", (5.0, 15.0)),
        ("claude-3-haiku-20240307", "claude-3-haiku-20240307", (0.25, 1.25)),
        ("o1-mini-2024-09-12", "o1-mini-2024-09-12", (1.1, 4.4)),
        ("demo", "gpt-4o-mini-2024-07-18", (0.15, 0.6)),
    ],
)
async def test_recorded_models_answer_by_name_without_any_key(
    name: str, model: str, usd: tuple[float, float], question: ModelRequest
) -> None:
    """`usd` is the list price per million tokens. The seed picks one of the models of `demo`."""
    adapter = resolve_model(f"recorded:{name}")
    reply = await adapter.request(replace(question, seed=4))
    await adapter.aclose()
    assert (reply.simulated, reply.model, adapter.target) == (True, model, "recorded")
    expected = (reply.usage["input_tokens"] * usd[0] + reply.usage["output_tokens"] * usd[1]) / 1e6
    assert reply.cost_usd == pytest.approx(expected)


async def test_a_model_without_a_list_price_costs_none_not_nothing(question: ModelRequest) -> None:
    adapter = resolve_model("recorded:Athene-70B")
    reply = await adapter.request(question)
    await adapter.aclose()
    assert reply.usage["total_tokens"] > 0
    assert reply.cost_usd is None


async def test_usage_tells_what_the_cache_served_and_what_was_thought(canned: Start) -> None:
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 200,
        "total_tokens": 1200,
        "prompt_tokens_details": {"cached_tokens": 400},
        "completion_tokens_details": {"reasoning_tokens": 150},
    }
    server = await canned(stream(chunk({"content": "yes"}), chunk({}, "stop", usage=usage), b"data: [DONE]\n\n"))
    adapter = adapter_at(server.url, "openai")
    reply = await adapter.request(asking())
    await adapter.aclose()
    assert reply.usage == {
        "input_tokens": 1000,
        "output_tokens": 200,
        "total_tokens": 1200,
        "cache_read_tokens": 400,
        "reasoning_tokens": 150,
    }


async def test_anthropics_input_includes_what_the_cache_read_and_wrote(canned: Start) -> None:
    server = await canned(
        stream(
            message_start(cache_read_input_tokens=400, cache_creation_input_tokens=50),
            text_block("yes"),
            event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 3}),
            event("message_stop"),
        )
    )
    adapter = adapter_at(server.url, "anthropic")
    reply = await adapter.request(asking())
    await adapter.aclose()
    assert reply.usage == {
        "input_tokens": 460,
        "output_tokens": 3,
        "total_tokens": 463,
        "cache_read_tokens": 400,
        "cache_write_tokens": 50,
    }


async def test_usage_that_is_not_reported_is_empty_and_its_cost_unknown(canned: Start) -> None:
    server = await canned(stream(*OK_OPENAI))
    adapter = adapter_at(server.url, "openai", price=Price(input=1.0, output=2.0))
    reply = await adapter.request(asking())
    await adapter.aclose()
    assert (reply.usage, reply.cost_usd) == ({}, None)


async def test_a_declared_price_wins_over_the_list(
    simulated: SimulatedServer, wire: str, question: ModelRequest
) -> None:
    adapter = adapter_at(simulated.base_url, wire, price=Price(input=1000.0, output=0.0))
    reply = await adapter.request(question)
    await adapter.aclose()
    assert reply.cost_usd == reply.usage["input_tokens"] / 1000


async def test_a_server_on_this_machine_is_local_and_has_no_list_price(canned: Start) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    server = await canned(stream(chunk({"content": "yes"}), chunk({}, "stop", usage=usage)))
    adapter = resolve_model(Model("ollama:gpt-4o", base_url=f"{server.url}/v1"))
    reply = await adapter.request(asking())
    await adapter.aclose()
    assert (reply.local, reply.simulated, reply.cost_usd) == (True, False, None)


async def test_an_answer_cut_at_its_limit_is_an_answer_that_says_so(
    adapter: ModelAdapter, question: ModelRequest
) -> None:
    reply = await adapter.request(replace(question, max_tokens=5))
    assert reply.finish_reason == "length"
    assert len(reply.text) <= 20


async def test_thoughts_are_not_part_of_the_text(canned: Start) -> None:
    server = await canned(stream(chunk({"reasoning_content": "hmm"}), chunk({"content": "yes"}), chunk({}, "stop")))
    adapter = adapter_at(server.url, "openai")
    reply = await adapter.request(asking())
    await adapter.aclose()
    assert reply.text == "yes"


async def test_a_finish_reason_is_end_enough_and_so_is_an_end_marker(canned: Start) -> None:
    for last in (chunk({}, "stop"), b"data: [DONE]\n\n"):
        server = await canned(stream(chunk({"content": "yes"}), last))
        adapter = adapter_at(server.url, "openai")
        assert (await adapter.request(asking())).text == "yes"
        await adapter.aclose()


async def test_what_on_text_raises_is_passed_on_as_it_is(adapter: ModelAdapter, question: ModelRequest) -> None:
    def stop(text: str) -> None:
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        await adapter.request(question, stop)
    assert (await adapter.request(question)).text


async def test_a_timeout_of_on_text_is_no_timeout_of_the_provider(
    adapter: ModelAdapter, question: ModelRequest
) -> None:
    def late(text: str) -> None:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        await adapter.request(question, late)


async def test_preparing_sends_nothing(canned: Start) -> None:
    server = await canned(stream(*OK_OPENAI))
    adapter = adapter_at(server.url, "openai")
    await adapter.prepare()
    await adapter.prepare()
    assert server.connections == 0
    assert (await adapter.request(asking())).text == "yes"
    await adapter.aclose()


async def test_many_at_once_do_not_mix(question: ModelRequest) -> None:
    names = ["gpt-4o-2024-05-13", "claude-3-haiku-20240307", "Athene-70B"]
    adapters = [resolve_model(f"recorded:{name}") for name in names]
    replies = await asyncio.gather(*(adapter.request(question) for adapter in adapters * 5))
    for adapter in adapters:
        await adapter.aclose()
    assert [reply.model for reply in replies] == names * 5
    assert len({reply.request_id for reply in replies}) == 15


@pytest.mark.parametrize(
    ("model", "other"), [("recorded:demo", "anthropic"), ("recorded:claude-3-5-sonnet-20240620", "openai")]
)
def test_only_the_library_whose_format_a_model_speaks_is_loaded(model: str, other: str) -> None:
    """Each takes about a second, which is the longest part of a short command."""
    program = f"""
import asyncio, sys
from steer_llm_sdk.providers.base import Message, ModelRequest
from steer_llm_sdk.providers.models import resolve_model
reply = asyncio.run(resolve_model({model!r}).request(ModelRequest(messages=[Message("user", "crux-test-#24")])))
print(bool(reply.text), {other!r} in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "False"]
