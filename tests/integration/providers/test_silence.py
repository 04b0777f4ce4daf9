"""Time limits: what each one bounds, and what becomes of connections when a call is given up."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from canned import OK_ANTHROPIC, OK_OPENAI, RECORDED, Answer, Canned, adapter_at, asking

from steer_llm_sdk.errors import ConnectionFailed, ProviderTimeout
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


async def test_connections_are_kept_between_calls(canned: Start, wire: str) -> None:
    body = b"".join(EVENTS[wire])
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def answer(server: Canned, writer: asyncio.StreamWriter) -> bool:
        writer.write(head + body)
        await writer.drain()
        return True

    server = await canned(answer)
    adapter = adapter_at(server.url, wire)
    for _ in range(3):
        await adapter.request(asking())
    await adapter.aclose()
    assert (len(server.seen), server.connections) == (3, 1)


async def test_a_connection_that_cannot_be_made_is_no_timeout_of_the_answer(
    simulated: SimulatedServer, adapter: ModelAdapter, question: ModelRequest
) -> None:
    await simulated.set_faults("refuse")
    with pytest.raises(ConnectionFailed):
        await adapter.request(replace(question, timeout=5.0, first_byte_timeout=4.0))
