"""HTTP/1.1 to providers, with as little as it takes.

The client of the service is httpx2, with its timeouts, errors and decoding; this is what sends for it. The way that
httpx2 has of its own takes half a millisecond for each request, which the first token of a stream would wait for.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import httptools
import httpx2

IDLE = 5.0
"""Seconds for which a connection is kept that nobody uses; longer, and somebody on the way may have forgotten it."""
MOST_IDLE = 100
"""Connections to one place that are kept."""
MOST_HEAD, MOST_HELD = 131_072, 262_144
"""Bytes of the headers of an answer; and of a body that may have come before they are wanted."""
_Place = tuple[str, str, int]


class Direct(httpx2.AsyncBaseTransport):
    """Sends to whom a URL names, by no proxy. What goes wrong is raised as httpx2 does."""

    def __init__(self) -> None:
        self._idle: dict[_Place, list[_Connection]] = {}
        self._tls: ssl.SSLContext | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        timeout = request.extensions["timeout"]
        sent = _head(request) + await request.aread()
        connection = await self._connection(request.url, timeout["connect"])
        try:
            connection.ask(sent)
            await connection.headers_are_there(timeout["read"])
        except BaseException:
            connection.close()
            raise
        body = _Body(self, connection, timeout["read"])
        return httpx2.Response(connection.status, headers=connection.headers, stream=body)

    async def _connection(self, url: httpx2.URL, timeout: float | None) -> _Connection:
        secure = url.scheme == "https"
        place = url.scheme, url.host, url.port or (443 if secure else 80)
        idle = self._idle.get(place, [])
        while idle:
            kept = idle.pop()
            if kept.is_open and time.monotonic() - kept.idle_since < IDLE:
                return kept
            kept.close()
        if secure and self._tls is None:
            self._tls = httpx2.create_ssl_context()
        try:
            async with asyncio.timeout(timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(place), *place[1:], ssl=self._tls if secure else None
                )
        except TimeoutError as error:
            raise httpx2.ConnectTimeout(f"no connection to {url.host} in time") from error
        except OSError as error:
            raise httpx2.ConnectError(str(error)) from error
        return connection

    def give_back(self, connection: _Connection) -> None:
        idle = self._idle.setdefault(connection.place, [])
        if connection.may_be_kept and len(idle) < MOST_IDLE:
            connection.idle_since = time.monotonic()
            idle.append(connection)
        else:
            connection.close()

    async def aclose(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()


class _Body(httpx2.AsyncByteStream):
    def __init__(self, direct: Direct, connection: _Connection, timeout: float | None) -> None:
        self._direct, self._connection, self._timeout = direct, connection, timeout
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._connection.piece(self._timeout):
            yield piece

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._direct.give_back(self._connection)


class _Connection(asyncio.Protocol):
    """One request after the other, and what is answered to it."""

    def __init__(self, place: _Place) -> None:
        self.place = place
        self.idle_since = 0.0
        self._transport: Any = None
        self._parser: Any = None
        self._waiting: asyncio.Future[None] | None = None
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._failed: httpx2.TransportError | None = None
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._head = 0
        self._in_head = True
        self._ended = self._kept = False

    # ── for who asks ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def may_be_kept(self) -> bool:
        """Nothing of an answer is still to come, by either's word."""
        return self.is_open and self._kept

    def ask(self, sent: bytes) -> None:
        self._begin()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(sent)

    async def headers_are_there(self, timeout: float | None) -> None:
        while self._in_head:
            await self._more(timeout)

    async def piece(self, timeout: float | None) -> bytes:
        """All that has come; b"" at the end."""
        while not self._pieces and not self._ended:
            await self._more(timeout)
        piece = b"".join(self._pieces)
        self._pieces.clear()
        if self._held > MOST_HELD and self.is_open:
            self._transport.resume_reading()
        self._held = 0
        return piece

    async def _more(self, timeout: float | None) -> None:
        if self._failed is not None:
            raise self._failed
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                await self._waiting
        except TimeoutError as error:
            raise httpx2.ReadTimeout("nothing came for too long") from error
        finally:
            self._waiting = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ── for the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._ended:
            self.close()  # Nothing was asked that this could answer.
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(httpx2.RemoteProtocolError(f"an answer that is no HTTP ({type(error).__name__})"))
        if self._in_head:
            self._head += len(data)
            if self._head > MOST_HEAD:
                self._fail(httpx2.RemoteProtocolError(f"more than {MOST_HEAD} bytes of headers"))
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended:
            lengths = (b"content-length", b"transfer-encoding")
            if self._in_head or any(name in lengths for name, _ in self.headers):
                self._fail(httpx2.RemoteProtocolError("the connection was closed before the answer had ended"))
            else:
                self._ended = True  # One without a length goes on until then.
        self._wake()

    def _fail(self, error: httpx2.TransportError) -> None:
        self._failed = self._failed or error
        self.close()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    # ── for the parser ───────────────────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        self._kept = False  # Where it is a second answer, to what was not asked.

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._ended:
            return
        status = self._parser.get_status_code()
        if status < 200:  # The answer itself is still to come.
            self.headers = []
        else:
            self.status, self._in_head = status, False

    def on_body(self, body: bytes) -> None:
        if self._ended:
            return
        self._pieces.append(body)
        self._held += len(body)
        if self._held > MOST_HELD:
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._ended or self._in_head:
            return
        self._ended = True
        self._kept = self._parser.should_keep_alive()  # It forgets that with the next byte.


def _head(request: httpx2.Request) -> bytes:
    lines = [request.method.encode() + b" " + request.url.raw_path + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in request.headers.raw]
    if any(b"\r" in line or b"\n" in line or b"\0" in line for line in lines):
        raise httpx2.LocalProtocolError("a header has an end of line in it")
    return b"\r\n".join(lines) + b"\r\n\r\n"
