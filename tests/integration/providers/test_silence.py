"""Time limits: what each one bounds, and what becomes of connections when a call is given up."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from canned import OK_ANTHROPIC, OK_OPENAI, RECORDED, Answer, Canned, adapter_at, asking, model_at

from steer_llm_sdk.errors import ConnectionFailed, ProviderTimeout
from steer_llm_sdk.orchestration.tools import LLMBundleTool, LLMTool
from steer_llm_sdk.providers.base import ModelAdapter, ModelRequest
from steer_llm_sdk.providers.models import resolve_model
from steer_llm_sdk.providers.simulated import SimulatedServer

Start = Callable[[Answer], Awaitable[Canned]]
EVENTS = {"openai": OK_OPENAI, "anthropic": OK_ANTHROPIC}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


async def overdue(adapter: ModelAdapter, request: ModelRequest) -> ProviderTimeout:
    started = time.monotonic()
    with pytest.raises(ProviderTimeout) as caught:
        await adapter.request(request)
    assert time.monotonic() - started < 5.0
    assert caught.value.is_retryable
    return caught.value


async def warm(adapter: ModelAdapter, simulated: SimulatedServer, question: ModelRequest) -> None:
    """The first request of a process takes longer than the limits of these tests."""
    await simulated.set_faults()
    await adapter.request(question)


async def test_silence_before_the_first_byte_is_bounded(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    await warm(adapter, simulated, question)
    for fault in ("silence", "slow", "stall:chunks=0"):
        await simulated.set_faults(fault)
        error = await overdue(adapter, replace(question, first_byte_timeout=0.1))
        assert "no byte for 0.1 s (first_byte_timeout)" in str(error)


async def test_silence_between_two_bytes_is_bounded(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    await warm(adapter, simulated, question)
    for chunks in (1, 5):
        await simulated.set_faults(f"stall:chunks={chunks}")
        error = await overdue(adapter, replace(question, chunk_timeout=0.1))
        assert "no byte for 0.1 s (chunk_timeout)" in str(error)


async def test_the_whole_call_is_bounded(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    await warm(adapter, simulated, question)
    for fault in ("silence", "stall", "stall:chunks=5"):
        await simulated.set_faults(fault)
        error = await overdue(adapter, replace(question, timeout=0.1))
        assert "no complete answer within 0.1 s (timeout)" in str(error)


def dripping(wire: str, pause: float, keep_alives: int) -> Answer:
    """The answer after so many comments, with a pause before each."""

    async def answer(_: Canned, writer: asyncio.StreamWriter) -> bool:
        writer.write(HEAD)
        for _number in range(keep_alives):
            await asyncio.sleep(pause)
            writer.write(b": still thinking\n\n")
        writer.write(b"".join(EVENTS[wire]))
        await writer.drain()
        return False

    return answer


async def test_a_server_that_says_it_is_thinking_is_not_silent(canned: Start, wire: str) -> None:
    server = await canned(dripping(wire, 0.02, keep_alives=10))
    adapter = adapter_at(server.url, wire)
    reply = await adapter.request(asking(first_byte_timeout=5.0, chunk_timeout=0.15))
    await adapter.aclose()
    assert reply.text == "yes"


async def test_headers_alone_are_no_first_byte(canned: Start, wire: str) -> None:
    async def answer(server: Canned, writer: asyncio.StreamWriter) -> bool:
        writer.write(HEAD)
        await writer.drain()
        return await server.left.wait()

    server = await canned(answer)
    adapter = adapter_at(server.url, wire)
    error = await overdue(adapter, asking(first_byte_timeout=0.1, chunk_timeout=0.01))
    await adapter.aclose()
    assert "(first_byte_timeout)" in str(error)


@pytest.mark.parametrize(
    "request_", [asking(first_byte_timeout=0.1), replace(asking(), timeout=0.1)], ids=["silence", "timeout"]
)
async def test_a_call_that_is_given_up_closes_its_connection(canned: Start, wire: str, request_: ModelRequest) -> None:
    async def answer(server: Canned, writer: asyncio.StreamWriter) -> bool:
        return await server.left.wait()

    server = await canned(answer)
    adapter = adapter_at(server.url, wire)
    await overdue(adapter, request_)
    async with asyncio.timeout(5):
        await server.left.wait()
    await adapter.aclose()


@pytest.mark.parametrize("begun", [False, True])
async def test_a_cancelled_call_closes_its_connection_and_is_cancelled(canned: Start, wire: str, begun: bool) -> None:
    asked = asyncio.Event()

    async def answer(server: Canned, writer: asyncio.StreamWriter) -> bool:
        if begun:
            writer.write(HEAD + EVENTS[wire][0])
            await writer.drain()
        asked.set()
        return await server.left.wait()

    server = await canned(answer)
    adapter = adapter_at(server.url, wire)
    call = asyncio.create_task(adapter.request(asking()))
    await asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(5):
        await server.left.wait()
    await adapter.aclose()


RECORDINGS = [f"recorded:{name}" for name in RECORDED.values()]


@pytest.mark.parametrize("name", RECORDINGS)
def test_one_adapter_serves_several_runs_in_a_row(name: str, question: ModelRequest) -> None:
    adapter = resolve_model(name)

    async def ask_twice() -> list[str]:
        return [(await adapter.request(question)).text for _ in range(2)]

    texts = [text for _ in range(4) for text in asyncio.run(ask_twice())]
    assert len(texts) == 8
    assert len(set(texts)) == 1


@pytest.mark.parametrize("name", RECORDINGS)
def test_one_adapter_serves_two_threads_at_once(name: str, question: ModelRequest) -> None:
    adapter = resolve_model(name)

    def run(_: int) -> str:
        return asyncio.run(adapter.request(question)).text

    with ThreadPoolExecutor(2) as threads:
        assert len(set(threads.map(run, range(6)))) == 1


def test_a_loop_that_ended_is_forgotten(question: ModelRequest) -> None:
    adapter = resolve_model(RECORDINGS[0])
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def ask() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await adapter.request(question)

    for _ in range(3):
        asyncio.run(ask())
    gc.collect()
    assert [loop() is None for loop in loops[:2]] == [True, True]


async def test_a_closed_adapter_opens_again_when_asked(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    await adapter.request(question)
    await adapter.aclose()
    await adapter.aclose()
    assert (await adapter.request(question)).text


def keeping_open(wire: str) -> Answer:
    """The answer, on a connection that stays open for the next request."""
    body = b"".join(EVENTS[wire])
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def answer(server: Canned, writer: asyncio.StreamWriter) -> bool:
        writer.write(head + body)
        await writer.drain()
        return True

    return answer


async def test_connections_are_kept_between_calls(canned: Start, wire: str) -> None:
    server = await canned(keeping_open(wire))
    adapter = adapter_at(server.url, wire)
    for _ in range(3):
        await adapter.request(asking())
    await adapter.aclose()
    assert (len(server.seen), server.connections) == (3, 1)


@pytest.mark.parametrize("kind", [LLMTool, LLMBundleTool])
async def test_a_tool_closes_the_connections_of_the_models_it_made(
    canned: Start, wire: str, kind: type[LLMTool] | type[LLMBundleTool]
) -> None:
    server = await canned(keeping_open(wire))
    tool = kind("t", model_at(server.url, wire))
    await tool.execute("Is it?")
    open_connections = set(server.serving)
    assert open_connections
    await tool.aclose()
    async with asyncio.timeout(5):
        await asyncio.gather(*open_connections)
    assert server.serving == set()


async def test_a_connection_that_cannot_be_made_is_no_timeout_of_the_answer(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    await simulated.set_faults("refuse")
    with pytest.raises(ConnectionFailed):
        await adapter.request(replace(question, timeout=5.0, first_byte_timeout=4.0))


async def test_closing_lets_a_request_under_way_finish_and_closes_its_connection_then(canned: Start, wire: str) -> None:
    asked, closed = asyncio.Event(), asyncio.Event()

    async def answer(server: Canned, writer: asyncio.StreamWriter) -> bool:
        if len(server.seen) == 1:
            asked.set()
            await closed.wait()
        return await keeping_open(wire)(server, writer)

    server = await canned(answer)
    adapter = adapter_at(server.url, wire)
    call = asyncio.create_task(adapter.request(asking()))
    await asked.wait()
    await adapter.aclose()
    assert (await adapter.request(asking())).text == "yes"
    closed.set()
    assert (await call).text == "yes"
    assert (len(server.seen), server.connections) == (2, 2)
    await adapter.aclose()
    async with asyncio.timeout(5):
        await asyncio.gather(*server.serving)
    assert server.serving == set()


async def test_the_price_list_is_read_before_a_worst_case_is_asked_for() -> None:
    program = (
        "import asyncio, sys; from steer_llm_sdk.providers.models import resolve_model; "
        "asyncio.run(resolve_model('ollama:m').prepare()); print('genai_prices.data' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0].split() == [b"True"]
