"""HTTP/1.1 by h11 on a socket of our own, so that a connection can be broken on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    import h11

MAX_BODY = 64 * 1024 * 1024
_READ = 65536
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """`headers` by lower-case name. `target` is the path as it came, `query` what follows the question mark."""

    method: str
    target: str
    query: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @property
    def path(self) -> str:
        return unquote(self.target)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpResponse:
    """`body` is complete bytes, or pieces that are sent as they come. Lengths and encodings are added by the sender.

    `close`, where there is one, is awaited in the end, whether the body was read or not.
    """

    status: int
    headers: Headers = ()
    body: bytes | AsyncIterator[bytes] = field(default=b"", repr=False)
    close: Callable[[], Awaitable[None]] | None = None

    def header(self, name: str) -> str:
        """The first header of that lower-case name, or nothing."""
        return next((value for key, value in self.headers if key.lower() == name), "")


class BadRequest(Exception):
    """What the client sent is not HTTP, or too long. Its connection is closed."""


class HttpConnection:
    """One client's connection: `read_request`, then `start`, `send` …, `finish`; or `reset`, or `close`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        import h11

        self._h11 = h11
        self._wire = h11.Connection(h11.SERVER, max_incomplete_event_size=_READ)
        self._reader, self._writer = reader, writer
        self._head_only = False

    async def read_request(self) -> HttpRequest | None:
        """The next request; None when the client has left. Raises BadRequest."""
        if self._wire.our_state is self._h11.DONE:
            self._wire.start_next_cycle()
        head, body = None, bytearray()
        while True:
            event = await self._next_event()
            if isinstance(event, self._h11.Request):
                head = event
                self._head_only = head.method == b"HEAD"
            elif isinstance(event, self._h11.Data):
                body += event.data
                if len(body) > MAX_BODY:
                    raise BadRequest(f"the body is longer than {MAX_BODY} bytes")
            elif isinstance(event, self._h11.EndOfMessage) and head is not None:
                return _request(head, bytes(body))
            else:
                return None

    async def _next_event(self) -> object:
        try:
            while (event := self._wire.next_event()) is self._h11.NEED_DATA:
                if self._wire.they_are_waiting_for_100_continue:
                    await self._write(self._h11.InformationalResponse(status_code=100, headers=[]))
                self._wire.receive_data(await self._reader.read(_READ))
        except self._h11.RemoteProtocolError as error:
            raise BadRequest(str(error)) from error
        return event

    async def start(self, status: int, headers: Headers, *, length: int | None, keep_alive: bool = True) -> None:
        """Send the head. `length` None: the body comes in chunks of unknown sum."""
        framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
        sent = [*headers, framing] if keep_alive else [*headers, framing, ("connection", "close")]
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent]
        await self._write(self._h11.Response(status_code=status, headers=raw))

    async def send(self, data: bytes) -> None:
        if data and not self._head_only:
            await self._write(self._h11.Data(data=data))

    async def send_all(self, body: bytes | AsyncIterator[bytes]) -> None:
        """The body and its end."""
        if isinstance(body, bytes):
            await self.send(body)
        else:
            async for piece in body:
                await self.send(piece)
        await self.finish()

    async def finish(self) -> None:
        await self._write(self._h11.EndOfMessage())

    async def _write(self, event: h11.Event) -> None:
        if data := self._wire.send(event):
            self._writer.write(data)
            await self._writer.drain()

    @property
    def unanswered(self) -> bool:
        """Whether the client waits for an answer of which nothing was sent yet."""
        return self._wire.our_state is self._h11.SEND_RESPONSE

    @property
    def reusable(self) -> bool:
        """Whether another request may follow on this connection."""
        done = self._h11.DONE
        return self._wire.our_state is done and self._wire.their_state is done

    async def left(self) -> None:
        """Return when the client has hung up. What it sends until then is dropped."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(_READ):
                pass

    def reset(self) -> None:
        """Break the connection so that the client sees a reset (RST), not an orderly end."""
        if (sock := self._writer.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.abort()

    def hang_up(self) -> None:
        """Close the connection in order; the client reads its end."""
        self._writer.close()

    def abort(self) -> None:
        """Close now; what was not sent yet is dropped."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Send the rest and close. Idempotent; errors of the connection are ignored."""
        try:
            self._writer.close()
            await self._writer.wait_closed()
        except OSError:
            pass
        except asyncio.CancelledError:
            self.abort()
            raise


def _request(head: h11.Request, body: bytes) -> HttpRequest:
    target, _, query = head.target.decode("latin-1").partition("?")
    if not target.startswith("/"):
        raise BadRequest("the target of a request must begin with a slash")
    return HttpRequest(
        method=head.method.decode("latin-1"),
        target=target,
        query=query,
        headers={name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers},
        body=body,
    )
