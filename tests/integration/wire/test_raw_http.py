"""What no well-behaved client sends, on a bare socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from official_clients import GPT, QUESTION

from steer_llm_sdk.providers.simulated import SimulatedServer, _http
from steer_llm_sdk.providers.simulated._http import HttpRequest, HttpResponse

BODY = json.dumps({"model": GPT, "messages": [{"role": "user", "content": QUESTION}]}).encode()
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def wire(server: SimulatedServer) -> AsyncIterator[Pair]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    yield reader, writer
    writer.close()
    await writer.wait_closed()


async def exchange(wire: Pair, *sent: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer."""
    reader, writer = wire
    for data in sent:
        writer.write(data)
        await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")), 0)
    return head, await reader.readexactly(length)


async def test_what_is_no_http_is_a_400_and_the_end_of_the_connection(wire: Pair) -> None:
    head, body = await exchange(wire, b"hello\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert await wire[0].read() == b""


@pytest.mark.parametrize(
    ("body", "says"), [(b"{", "not valid JSON"), (b"[]", "not an object"), (b"\xff\xfe", "not valid JSON")]
)
async def test_a_body_that_is_no_json_object_is_a_400(wire: Pair, body: bytes, says: str) -> None:
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    head, answer = await exchange(wire, request + body)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert says in json.loads(answer)["error"]["message"]


async def test_a_target_that_is_no_path_is_a_400(wire: Pair) -> None:
    head, _ = await exchange(wire, b"GET @elsewhere/v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")


async def test_a_body_without_measure_is_a_400(wire: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "MAX_BODY", 9)
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n0123456789"
    head, body = await exchange(wire, request)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert "longer than 9 bytes" in json.loads(body)["error"]["message"]


async def test_one_connection_serves_one_request_after_the_other(wire: Pair) -> None:
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY)
    answers = [json.loads((await exchange(wire, request, BODY))[1])["model"] for _ in range(3)]
    assert answers == [GPT] * 3


async def test_a_body_in_chunks_and_in_drips_is_read(wire: Pair) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    half = len(BODY) // 2
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:half], BODY[half:])]
    _, answer = await exchange(wire, head, *chunks, b"0\r\n\r\n")
    assert json.loads(answer)["model"] == GPT


async def test_a_client_that_waits_to_send_its_body_is_told_to_go_on(wire: Pair) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"
    going_on, _ = await exchange(wire, head % len(BODY))
    assert going_on.startswith(b"HTTP/1.1 100 ")
    _, answer = await exchange(wire, BODY)
    assert json.loads(answer)["model"] == GPT


async def test_a_head_request_gets_a_head_and_the_connection_goes_on(wire: Pair) -> None:
    reader, writer = wire
    writer.write(b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
    head, _ = await exchange(wire, b"GET /v1/models/demo HTTP/1.1\r\nhost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")


async def test_a_client_that_leaves_in_the_middle_leaves_the_server_standing(server: SimulatedServer) -> None:
    for sent in (b"", b"POST /v1/chat", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        writer.close()
        await writer.wait_closed()
    pair = await asyncio.open_connection("127.0.0.1", server.port)
    head, _ = await exchange(pair, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    pair[1].close()
    await pair[1].wait_closed()


async def test_closing_does_not_wait_for_a_client_that_reads_nothing() -> None:
    async with SimulatedServer(faults="silence") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY)
        writer.write(request + BODY)
        while not server.requests:
            await asyncio.sleep(0)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


async def test_a_port_that_is_taken_is_an_error_and_nothing_is_left_open(server: SimulatedServer) -> None:
    with pytest.raises(OSError, match="in use"):
        async with SimulatedServer(port=server.port):
            pass


async def test_a_server_on_every_address_is_found_on_loopback() -> None:
    async with SimulatedServer(host="0.0.0.0") as server:
        assert server.base_url == f"http://127.0.0.1:{server.port}"


UNREADABLE = {
    "deep": (b"[" * 200_000, "nested too deep"),
    "deep inside": (b'{"model": "demo", "messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deep"),
    "content": (
        b'{"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "\\ud800"}]}',
        "surrogate",
    ),
    "model": (
        b'{"model": "\\ud800", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]}',
        "surrogate",
    ),
    "raw": (b'{"model": "\xed\xa0\x80"}', "surrogate"),
}


@pytest.mark.parametrize(("body", "says"), UNREADABLE.values(), ids=UNREADABLE)
async def test_what_cannot_be_read_is_a_400_in_both_formats_and_the_connection_goes_on(
    wire: Pair, body: bytes, says: str
) -> None:
    for path in (b"chat/completions", b"messages"):
        head = b"POST /v1/%s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path, len(body))
        status, answer = await exchange(wire, head, body)
        assert status.startswith(b"HTTP/1.1 400 ")
        assert says in json.loads(answer)["error"]["message"]
        assert json.loads(answer)["error"]["type"] == "invalid_request_error"
    status, answer = await exchange(wire, b"GET /__calls HTTP/1.1\r\nhost: x\r\n\r\n")
    assert status.startswith(b"HTTP/1.1 200 ")
    assert json.loads(answer)["requests"] == 2


class Failing:
    """An upstream with a bug, before its answer or in it."""

    def __init__(self, begun: bool) -> None:
        self._begun = begun

    async def respond(self, request: HttpRequest) -> HttpResponse:
        if not self._begun:
            raise LookupError("a bug")
        return HttpResponse(status=200, body=self._broken())

    async def _broken(self) -> AsyncIterator[bytes]:
        yield b"half"
        raise LookupError("a bug")

    async def aclose(self) -> None:
        return None


async def test_a_bug_before_an_answer_is_a_500_and_one_in_it_breaks_it_off() -> None:
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY
    received = []
    for begun in (False, True):
        async with SimulatedServer(Failing(begun)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request)
            received.append(await reader.read())
            writer.close()
            await writer.wait_closed()
    assert received[0].startswith(b"HTTP/1.1 500 ")
    assert b"LookupError" in received[0]
    assert received[1].endswith(b"half\r\n")
