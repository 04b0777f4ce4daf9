"""Faults switched and calls counted while the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anthropic
import httpx2
import openai
import pytest
from official_clients import CLAUDE, GPT, Clients, bare

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.simulated import SimulatedServer
from steer_llm_sdk.providers.simulated.server import CallCount


@pytest.fixture
async def control(server: SimulatedServer) -> AsyncIterator[httpx2.AsyncClient]:
    async with bare(server.control_url) as client:
        yield client


async def test_calls_are_counted_by_model_status_and_fault(server: SimulatedServer, clients: Clients) -> None:
    await clients.openai_whole()
    await clients.openai_stream()
    await clients.anthropic_whole()
    await server.set_faults(["529:first=1", "drop:first=2"])
    with pytest.raises(anthropic.OverloadedError):
        await clients.anthropic_whole()
    with pytest.raises(openai.APIConnectionError):
        await clients.openai_whole()
    assert server.calls() == [
        CallCount(GPT, 200, None, 2),
        CallCount(CLAUDE, 200, None, 1),
        CallCount(CLAUDE, 529, "529", 1),
        CallCount(GPT, None, "drop", 1),
    ]
    assert (server.requests, server.upstream_calls) == (5, 3)


async def test_the_counts_are_read_and_forgotten_over_http(clients: Clients, control: httpx2.AsyncClient) -> None:
    await clients.openai_whole()
    row = {"model": GPT, "status": 200, "fault": None, "count": 1}
    assert (await control.get("/__calls")).json() == {"requests": 1, "upstream": 1, "calls": [row]}
    assert (await control.delete("/__calls")).json() == {"requests": 0, "upstream": 0}
    assert (await control.get("/__calls")).json() == {"requests": 0, "upstream": 0, "calls": []}


async def test_an_answer_that_breaks_off_counts_as_the_status_that_was_sent(
    server: SimulatedServer, clients: Clients
) -> None:
    await server.set_faults("reset")
    with pytest.raises(openai.APIConnectionError):
        await clients.openai_whole()
    assert server.calls() == [CallCount(GPT, 200, "reset", 1)]


async def test_a_client_that_does_not_wait_for_a_late_answer_counts_as_having_got_none(
    server: SimulatedServer, impatient: Clients
) -> None:
    await server.set_faults(["silence:first=1", "slow"])
    for _ in range(2):
        with pytest.raises(openai.APITimeoutError):
            await impatient.openai_whole()
    while server.requests < 2:
        await asyncio.sleep(0)
    assert server.calls() == [CallCount(GPT, None, "silence", 1), CallCount(GPT, None, "slow", 1)]
    assert server.upstream_calls == 0


async def test_a_connection_to_the_control_port_outlives_an_outage(server: SimulatedServer) -> None:
    _, port = server.control_url.rsplit(":", 1)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    for faults in ("", '"refuse"', ""):
        body = f'{{"faults": [{faults}]}}'.encode()
        writer.write(b"PUT /__faults HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        await reader.readuntil(b"}")
    writer.close()
    await writer.wait_closed()


async def test_listing_models_counts_for_nothing(server: SimulatedServer, clients: Clients) -> None:
    await server.set_faults("503:first=1")
    await clients.openai.models.list()
    assert server.requests == 0
    with pytest.raises(openai.InternalServerError):
        await clients.openai_whole()


async def test_faults_are_switched_over_http(clients: Clients, control: httpx2.AsyncClient) -> None:
    put = await control.put("/__faults", json={"faults": ["503:rate=1.0", "outage:from=1,to=2"], "seed": 5})
    assert put.json() == {"faults": ["503", "503:from=1,to=2"], "seed": 5}
    assert (await control.get("/__faults")).json() == put.json()
    with pytest.raises(openai.InternalServerError):
        await clients.openai_whole()
    await control.put("/__faults", json={"faults": []})
    assert await clients.openai_whole()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"faults": ["503:rate=2"]}, "fault.rate: '2' cannot be used"),
        ({"faults": ["503:first=" + "9" * 5000]}, "fault.first:"),
        ({"faults": "503"}, "faults:"),
        ({"faults": [], "sed": 1}, "sed:"),
        ({}, "faults:"),
        ([], "body:"),
    ],
)
async def test_a_bad_switch_is_refused_by_field_and_changes_nothing(
    server: SimulatedServer, control: httpx2.AsyncClient, body: object, says: str
) -> None:
    await server.set_faults("429", seed=3)
    refused = await control.put("/__faults", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"].startswith(says)
    assert (await control.get("/__faults")).json() == {"faults": ["429"], "seed": 3}


async def test_a_bad_fault_in_code_is_refused_and_changes_nothing(server: SimulatedServer) -> None:
    await server.set_faults("429")
    with pytest.raises(InvalidRequest, match=r"fault\.rate"):
        await server.set_faults("503:rate=2")
    assert [str(fault) for fault in server.plan.faults] == ["429"]


async def test_control_answers_on_the_models_port_too_and_on_its_own_while_nobody_listens_there(
    server: SimulatedServer, control: httpx2.AsyncClient
) -> None:
    async with bare(server.base_url) as client:
        assert (await client.put("/__faults", json={"faults": ["refuse"]})).status_code == 200
        with pytest.raises(httpx2.ConnectError):
            await client.get("/__faults")
        assert (await control.put("/__faults", json={"faults": []})).status_code == 200
        assert (await client.get("/__faults")).json() == {"faults": [], "seed": 0}


async def test_models_do_not_answer_on_the_control_port(server: SimulatedServer, control: httpx2.AsyncClient) -> None:
    await server.set_faults("503")
    refused = await control.post("/v1/chat/completions", json={"model": GPT})
    assert refused.status_code == 404
    assert server.base_url in refused.json()["error"]["message"]


async def test_other_control_paths_say_which_there_are(control: httpx2.AsyncClient) -> None:
    refused = await control.post("/__faults")
    assert (refused.status_code, "GET and PUT /__faults" in refused.text) == (404, True)


async def test_numbers_start_again_when_the_plan_changes(server: SimulatedServer, clients: Clients) -> None:
    await clients.openai_whole()
    await server.set_faults("503:first=1")
    with pytest.raises(openai.InternalServerError):
        await clients.openai_whole()
    assert await clients.openai_whole()
    await server.set_faults("503:after=1")
    assert await clients.openai_whole()
    with pytest.raises(openai.InternalServerError):
        await clients.openai_whole()


async def test_a_fault_may_be_for_one_model_only(server: SimulatedServer, clients: Clients) -> None:
    await server.set_faults("503:model=claude-*")
    assert await clients.openai_whole()
    with pytest.raises(anthropic.ServiceUnavailableError):
        await clients.anthropic_whole()


async def test_faults_may_be_set_before_the_server_runs() -> None:
    server = SimulatedServer()
    await server.set_faults("503")
    async with server, bare(server.base_url) as client:
        assert (await client.post("/v1/chat/completions", json={})).status_code == 503


def test_the_control_address_of_a_server_that_does_not_run_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="does not run"):
        _ = SimulatedServer().control_url
