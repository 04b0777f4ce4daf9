"""A user's traffic recorded in front of an endpoint, and replayed without it. The endpoint here is a simulated one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import openai
import pytest
from official_clients import GPT, QUESTION, Clients, bare

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.simulated import SimulatedServer, shipped_recording
from steer_llm_sdk.providers.simulated._http import HttpRequest, HttpResponse
from steer_llm_sdk.providers.simulated.proxy import ProxyUpstream
from steer_llm_sdk.providers.simulated.server import CallCount
from steer_llm_sdk.providers.simulated.sources import upstream_named
from steer_llm_sdk.providers.simulated.traffic import RecordedTraffic, TrafficRecorder

CANARY = "sk-canary-0123456789abcdef"
BODY = {"model": GPT, "messages": [{"role": "user", "content": QUESTION}]}


def recorder_of(server: SimulatedServer, out: Path, *redact: str) -> SimulatedServer:
    return SimulatedServer(TrafficRecorder(ProxyUpstream(server.base_url), out, redact))


async def all_four(clients: Clients) -> list[object]:
    return [
        await clients.openai_whole(),
        await clients.openai_stream(),
        await clients.anthropic_whole(),
        await clients.anthropic_stream(),
    ]


async def raw(base_url: str, stream: bool, **headers: str) -> tuple[int, str, str]:
    async with bare(base_url) as client:
        response = await client.post("/v1/chat/completions", json={**BODY, "stream": stream}, headers=headers)
    return response.status_code, response.headers["content-type"], response.text


async def test_the_official_clients_work_through_the_proxy_and_against_the_replay(
    server: SimulatedServer, tmp_path: Path
) -> None:
    async with recorder_of(server, tmp_path / "t") as recorder, Clients(recorder.base_url) as through:
        first = await all_four(through)
    traffic = RecordedTraffic.read(tmp_path / "t", speed=0.0)
    async with SimulatedServer(traffic) as replay, Clients(replay.base_url) as again:
        second = await all_four(again)
    assert first == second
    assert server.requests == 4


async def test_a_replay_says_that_it_is_one(server: SimulatedServer, tmp_path: Path) -> None:
    async with recorder_of(server, tmp_path / "t") as recorder:
        await raw(recorder.base_url, stream=False)
    async with SimulatedServer(str(tmp_path / "t")) as replay, bare(replay.base_url) as client:
        response = await client.post("/v1/chat/completions", json={**BODY, "stream": False})
    assert response.headers["x-simulated"] == "traffic"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_replay_is_byte_for_byte_what_was_recorded(
    server: SimulatedServer, tmp_path: Path, stream: bool
) -> None:
    async with recorder_of(server, tmp_path / "t") as recorder:
        recorded = await raw(recorder.base_url, stream)
    async with SimulatedServer(str(tmp_path / "t")) as replay:
        assert await raw(replay.base_url, stream) == recorded
    assert recorded[0] == 200


async def test_the_key_reaches_the_endpoint_and_never_the_file(tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Endpoint:
        async def respond(self, request: HttpRequest) -> HttpResponse:
            seen.extend((request.headers.get("authorization"), request.query, request.headers.get("cookie")))
            body = f'{{"error": "unknown key {CANARY}"}}'.encode()
            return HttpResponse(status=401, headers=(("content-type", "application/json"),), body=body)

        async def aclose(self) -> None:
            return None

    headers = {"authorization": f"Bearer {CANARY}", "x-api-key": CANARY, "cookie": f"session={CANARY}"}
    async with (
        SimulatedServer(Endpoint()) as endpoint,
        recorder_of(endpoint, tmp_path / "t") as recorder,
        bare(recorder.base_url) as client,
    ):
        answer = await client.post(f"/v1/chat/completions?key={CANARY}", json=BODY, headers=headers)
    assert seen == [f"Bearer {CANARY}", f"key={CANARY}", f"session={CANARY}"]
    assert CANARY in answer.text
    assert CANARY not in (tmp_path / "t").read_text()


async def test_named_fields_of_requests_and_answers_are_not_in_the_file(
    server: SimulatedServer, tmp_path: Path
) -> None:
    answer = shipped_recording().questions[0].answers[GPT].text
    async with (
        recorder_of(server, tmp_path / "t", "user", "content") as recorder,
        bare(recorder.base_url) as client,
    ):
        for stream in (False, True):
            sent = {**BODY, "user": CANARY, "stream": stream}
            assert (await client.post("/v1/chat/completions", json=sent)).status_code == 200
    written = (tmp_path / "t").read_text()
    assert written.count("\n") == 2
    assert not [secret for secret in (CANARY, QUESTION, answer[20:40]) if secret in written]


async def test_errors_are_replayed_with_what_they_say_of_retrying(server: SimulatedServer, tmp_path: Path) -> None:
    await server.set_faults("429:retry-after=7")
    async with recorder_of(server, tmp_path / "t") as recorder:
        first = await rate_limited(recorder.base_url)
    async with SimulatedServer(str(tmp_path / "t")) as replay:
        second = await rate_limited(replay.base_url)
    assert (first.response.headers["retry-after"], first.request_id) == ("7", second.request_id)
    assert second.response.headers["retry-after"] == "7"


async def rate_limited(base_url: str) -> openai.RateLimitError:
    async with Clients(base_url) as clients:
        with pytest.raises(openai.RateLimitError) as caught:
            await clients.openai_whole()
    return caught.value


async def test_faults_are_laid_over_a_replay(server: SimulatedServer, tmp_path: Path) -> None:
    async with recorder_of(server, tmp_path / "t") as recorder:
        await raw(recorder.base_url, False)
    async with SimulatedServer(str(tmp_path / "t"), faults="503:first=1") as replay:
        assert [(await raw(replay.base_url, False))[0] for _ in range(3)] == [503, 200, 200]
        assert replay.upstream_calls == 2


async def test_a_request_that_was_not_recorded_says_what_differs(server: SimulatedServer, tmp_path: Path) -> None:
    async with recorder_of(server, tmp_path / "t") as recorder:
        await raw(recorder.base_url, False)
    async with SimulatedServer(str(tmp_path / "t")) as replay:
        status, _, text = await raw(replay.base_url, True)
    assert status == 404
    assert "the nearest differs in: stream" in text


async def test_a_stream_that_broke_is_recorded_and_breaks_again(server: SimulatedServer, tmp_path: Path) -> None:
    await server.set_faults("reset:chunks=3")
    async with recorder_of(server, tmp_path / "t") as recorder:
        with pytest.raises(httpx2.RemoteProtocolError):
            await raw(recorder.base_url, True)
    async with SimulatedServer(str(tmp_path / "t")) as replay:
        with pytest.raises(httpx2.RemoteProtocolError):
            await raw(replay.base_url, True)


@pytest.fixture
async def in_front(server: SimulatedServer) -> AsyncIterator[SimulatedServer]:
    async with SimulatedServer(server.base_url + "/v1") as running:
        yield running


@pytest.mark.parametrize(
    "fault", ["reset", "stall", "no-end", "malformed", "error-event", "wrong-type", "empty", "html", "503"]
)
async def test_faults_in_front_of_an_endpoint_are_those_in_front_of_the_recording(
    server: SimulatedServer, in_front: SimulatedServer, fault: str
) -> None:
    async def said(which: SimulatedServer) -> str:
        received = b""
        await which.set_faults(fault)
        async with bare(which.base_url, timeout=0.1) as client:
            try:
                async with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response:
                    async for piece in response.aiter_bytes():
                        received += piece
            except httpx2.TransportError as error:
                return f"{type(error).__name__} after {received.count(b'data:')} events"
        await which.set_faults()
        return f"{response.status_code} {response.headers['content-type']} {received.count(b'data:')} events"

    direct = await said(server)
    await server.set_faults()
    assert await said(in_front) == direct


async def test_an_endpoint_that_nobody_serves_is_a_502_that_says_so(server: SimulatedServer) -> None:
    await server.set_faults("refuse")
    async with SimulatedServer(server.base_url) as in_front:
        status, _, text = await raw(in_front.base_url, False)
    assert status == 502
    assert "ConnectError" in text
    assert server.base_url in text


async def test_the_path_reaches_the_endpoint_as_it_was_written(
    server: SimulatedServer, in_front: SimulatedServer
) -> None:
    async with bare(in_front.base_url) as client:
        found = await client.get("/v1/models/Llama-3.1-405B-Inst%40sambanova?with=query")
    assert found.json()["id"] == "Llama-3.1-405B-Inst@sambanova"


async def test_an_endpoint_that_breaks_off_breaks_the_client_too(
    server: SimulatedServer, in_front: SimulatedServer
) -> None:
    await server.set_faults("reset")
    for stream in (False, True):
        with pytest.raises(httpx2.RemoteProtocolError):
            await raw(in_front.base_url, stream)
    assert in_front.calls() == [CallCount(GPT, None, None, 1), CallCount(GPT, 200, None, 1)]


async def test_a_client_that_leaves_a_stream_frees_the_endpoint(server: SimulatedServer, tmp_path: Path) -> None:
    async with (
        recorder_of(server, tmp_path / "t") as recorder,
        bare(recorder.base_url) as client,
    ):
        await recorder.set_faults("stall:chunks=2")
        async with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as response:
            assert b"assistant" in await anext(response.aiter_bytes())
    assert '"complete":false' in (tmp_path / "t").read_text()


async def test_a_password_in_the_address_reaches_the_endpoint_and_is_not_shown(
    server: SimulatedServer, tmp_path: Path
) -> None:
    address = server.base_url.replace("//", f"//user:{CANARY}@")
    async with SimulatedServer(ProxyUpstream(address)) as in_front:
        assert (await raw(in_front.base_url, False))[0] == 200
        await server.set_faults("refuse")
        status, _, text = await raw(in_front.base_url, False)
    assert (status, server.base_url in text, CANARY in text) == (502, True, False)


async def test_a_path_that_is_too_long_for_an_address_is_a_400(server: SimulatedServer) -> None:
    upstream = ProxyUpstream(f"{server.base_url}/{'a' * 40_000}")
    async with SimulatedServer(upstream) as in_front, bare(in_front.base_url) as client:
        refused = await client.post(f"/{'b' * 40_000}", json=BODY)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("The path cannot be passed on")


async def test_a_header_with_any_letters_reaches_the_endpoint(in_front: SimulatedServer) -> None:
    async with bare(in_front.base_url) as client:
        assert (await client.post("/v1/chat/completions", json=BODY, headers={b"x-who": b"J\xf6rg"})).status_code == 200


@pytest.mark.parametrize("address", [f"https://user:{CANARY}@", f"https://user:{CANARY}@host:x", "http://[bad"])
def test_an_address_that_is_none_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(InvalidRequest, match="with a host") as caught:
        ProxyUpstream(address)
    assert CANARY not in str(caught.value) + repr(vars(caught.value))


@pytest.mark.parametrize(("name", "says"), [("nowhere.jsonl", "there is no such file"), ("https://", "with a host")])
def test_an_upstream_that_does_not_exist_is_refused(name: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        upstream_named(name)
