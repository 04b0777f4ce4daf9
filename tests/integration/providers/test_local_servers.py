"""What is found on this machine: servers that list models, asked over real HTTP."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

import pytest
from canned import Answer, Canned, raw

from steer_llm_sdk.providers.discover import LocalServer, found_keys, local_servers, price_table_date
from steer_llm_sdk.providers.simulated import SimulatedServer, shipped_recording

Start = Callable[[Answer], Awaitable[Canned]]
LIST = b'{"object": "list", "data": [{"id": "qwen3:8b"}, {"id": "llama3.2"}]}'


async def test_a_server_is_found_with_its_models(canned: Start) -> None:
    server = await canned(raw("200 OK", "application/json", LIST))
    at = {"ollama": f"{server.url}/v1"}
    assert await local_servers(timeout=5.0, at=at) == [LocalServer("ollama", at["ollama"], ("qwen3:8b", "llama3.2"))]
    assert server.seen[0].path == "/v1/models"


async def test_a_chunked_list_is_read_too(canned: Start) -> None:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (LIST[:20], LIST[20:])) + b"0\r\n\r\n"
    server = await canned(raw("200 OK", "application/json", body, "transfer-encoding: chunked"))
    (found,) = await local_servers(timeout=5.0, at={"vllm": f"{server.url}/v1"})
    assert found.models == ("qwen3:8b", "llama3.2")


async def test_the_simulated_server_is_one_of_them() -> None:
    async with SimulatedServer() as server:
        (found,) = await local_servers(timeout=5.0, at={"vllm": f"{server.base_url}/v1"})
    assert set(shipped_recording().models) <= set(found.models)


@pytest.mark.parametrize(
    "answer",
    [
        raw("404 Not Found", "application/json", b'{"error": "no"}'),
        raw("200 OK", "text/html", b"<html></html>"),
        raw("200 OK", "application/json", b'{"data": 7}'),
        raw("200 OK", "application/json", b'[{"id": "m"}]'),
        raw("200 OK", "application/json", b'{"data": [' + b'{"id": "m"},' * 100_000 + b'{"id": "m"}]}'),
        raw("nonsense", "", b""),
    ],
)
async def test_what_answers_something_else_is_no_model_server(canned: Start, answer: Answer) -> None:
    server = await canned(answer)
    assert await local_servers(timeout=5.0, at={"llamacpp": f"{server.url}/v1"}) == []


async def test_a_silent_server_is_given_up_in_time_while_others_answer(canned: Start) -> None:
    async def silence(server: Canned, writer: asyncio.StreamWriter) -> bool:
        return await server.left.wait()

    silent, talking = await canned(silence), await canned(raw("200 OK", "application/json", LIST))
    started = time.monotonic()
    found = await local_servers(timeout=0.2, at={"vllm": f"{silent.url}/v1", "ollama": f"{talking.url}/v1"})
    assert time.monotonic() - started < 10  # It is silent for ever.
    assert [server.name for server in found] == ["ollama"]


async def test_where_nobody_listens_nothing_is_found() -> None:
    async with SimulatedServer(faults="refuse") as server:
        assert await local_servers(timeout=5.0, at={"ollama": f"{server.base_url}/v1"}) == []


def test_keys_are_found_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found_keys() == []
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    assert found_keys() == ["ANTHROPIC_API_KEY"]


def test_without_a_price_list_it_has_no_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert price_table_date() is None


def test_the_price_list_says_how_old_it_is() -> None:
    day = price_table_date()
    assert day is not None
    assert day.year >= 2026
