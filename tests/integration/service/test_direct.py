"""How providers are asked: what comes over the wire, byte by byte, from servers that behave and from others."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from steer_llm_sdk.service import _direct
from steer_llm_sdk.service._direct import Direct

CERTIFICATE = str(Path(__file__).parents[2] / "data" / "tls" / "localhost.pem")  # of "localhost", by itself, for tests
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HANG = b"hang"
BIG = b"x" * 3_000_000


class Server:
    """Each request gets the next of `answers`, the last one again and again; None closes the connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.ended = asyncio.Event()
        self.tasks: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.tasks.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if answer is None:
                    return
                if answer is not HANG:
                    writer.write(answer)
                    await writer.drain()
                if b"close" in answer:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended.set()
        finally:
            writer.close()


@asynccontextmanager
async def asking(
    server: Server, read: float = 10.0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Callable[[], Coroutine[Any, Any, httpx2.Response]]]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    port = listening.sockets[0].getsockname()[1]
    url = f"https://localhost:{port}/v1?a=b" if tls else f"http://127.0.0.1:{port}/v1?a=b"
    try:
        async with httpx2.AsyncClient(transport=Direct(), timeout=httpx2.Timeout(read, connect=5.0)) as client:
            yield lambda: client.post(url, content=b"{}")
    finally:
        listening.close()
        await asyncio.gather(*(task for task in server.tasks if task is not None))


async def answer_of(*answers: bytes | None, read: float = 10.0) -> httpx2.Response:
    async with asking(Server(*answers), read) as ask:
        return await ask()


async def test_one_connection_serves_one_request_after_the_other() -> None:
    server = Server(OK)
    async with asking(server) as ask:
        for _ in range(3):
            answer = await ask()
            assert (answer.status_code, answer.content) == (200, b"ok")
    assert server.connections == 1
    assert server.requests[0].startswith(b"POST /v1?a=b HTTP/1.1\r\n")
    assert server.requests[0].endswith(b"\r\n\r\n{}")
    assert b"\r\nhost: 127.0.0.1:" in server.requests[0].lower()


async def test_requests_at_once_have_a_connection_each() -> None:
    server = Server(OK)
    async with asking(server) as ask:
        assert [answer.content for answer in await asyncio.gather(*(ask() for _ in range(5)))] == [b"ok"] * 5
    assert server.connections == 5


@pytest.mark.parametrize(
    "last",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    ],
    ids=["close", "1.0", "more than was asked for"],
)
async def test_a_connection_that_may_not_be_kept_is_not(last: bytes) -> None:
    server = Server(last, OK)
    async with asking(server) as ask:
        assert [(await ask()).content for _ in range(2)] == [b"ok", b"ok"]
    assert server.connections == 2


async def test_a_connection_is_not_kept_for_longer_than_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(OK)
    async with asking(server) as ask:
        await ask()
        monkeypatch.setattr(_direct, "IDLE", 0.0)
        assert (await ask()).content == b"ok"
    assert server.connections == 2


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", b"abcde"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BIG), BIG), BIG),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + gzip.compress(b"not asked for"),
            b"not asked for",
        ),
    ],
    ids=["chunks", "until the end", "hints first", "nothing", "much", "packed"],
)
async def test_a_body_comes_whole(sent: bytes, body: bytes) -> None:
    answer = await answer_of(sent)
    assert (answer.status_code, answer.content, "link" in answer.headers) == (200, body, False)


@pytest.mark.parametrize(
    "sent",
    [
        None,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: close\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: close\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Le close",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
    ],
    ids=lambda sent: repr(sent)[:60],
)
async def test_an_answer_that_is_broken_is_an_error_of_the_protocol(sent: bytes | None) -> None:
    with pytest.raises(httpx2.RemoteProtocolError):
        await answer_of(sent)


@pytest.mark.parametrize("sent", [HANG, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"])
async def test_silence_is_a_timeout(sent: bytes) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        await answer_of(sent, read=0.05)


async def test_nobody_there_is_an_error_of_the_connection() -> None:
    with pytest.raises(httpx2.ConnectError):
        async with httpx2.AsyncClient(transport=Direct(), timeout=5) as client:
            await client.post("http://127.0.0.1:1/", content=b"{}")


async def test_who_stops_waiting_closes_the_connection() -> None:
    server = Server(HANG)
    async with asking(server) as ask:
        waiting = asyncio.ensure_future(ask())
        while not server.requests:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(server.ended.wait(), 5)


async def test_a_line_in_a_header_is_not_sent() -> None:
    server = Server(OK)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with httpx2.AsyncClient(transport=Direct(), timeout=5) as client:
        with pytest.raises(httpx2.LocalProtocolError):
            await client.post(f"http://127.0.0.1:{port}/", content=b"{}", headers={"X": "a\r\nHost: evil.example"})
    listening.close()
    assert server.connections == 0


async def test_tls_is_spoken_to_who_has_a_certificate_that_is_trusted_and_to_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(CERTIFICATE)
    server = Server(OK)
    async with asking(server, tls=tls) as ask:
        with pytest.raises(httpx2.ConnectError, match="certificate"):
            await ask()
    assert server.requests == []
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    monkeypatch.setattr(httpx2, "create_ssl_context", lambda: trusting)
    async with asking(server, tls=tls) as ask:
        assert [(await ask()).content for _ in range(2)] == [b"ok", b"ok"]
    assert server.connections == 1
