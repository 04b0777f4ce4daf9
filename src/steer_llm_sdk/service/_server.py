"""What the server itself bounds, of which an application hears nothing: slow headers, headers without an end, and
answers that nobody reads."""

from __future__ import annotations

import asyncio
import socket
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from steer_llm_sdk.service import _listener
from steer_llm_sdk.service.problems import Problem

MOST_CONNECTIONS = 1_000
"""Of one process; a request on a further one is answered with 503."""
MOST_HEAD = 65_536
"""Bytes of a request up to its body. An application may allow less."""
MOST_ADDRESS = 32_768


def _refusal(status: int, why: str) -> bytes:
    """A whole answer, and the end of the connection, where no application was asked."""
    problem = Problem(status, why, {"Connection": "close"}).response()
    head = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    head += [b"%s: %s" % pair for pair in problem.raw_headers]
    return b"\r\n".join([*head, b"", bytes(problem.body)])


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's own protocol, less its patience: it waits for ever for headers, and for an answer to be read. It is
    stricter than that one about what a request may look like, too."""

    header_seconds = 10.0
    """From the beginning of a connection, or the first byte of a further request on it, until the headers are there."""
    stalled_seconds = 60.0
    """In which nothing of an answer can be sent, since the client reads none of it."""

    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _in_head = True
    _in_body = False
    _head = 0
    """Bytes that have come since the last request was there."""
    _plain = False
    _left = 0
    """Bytes of the body that are still to come; where it is read without the parser."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        # What comes after a request that was the last one, by its own word, is no request.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=False)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]  # it is one by what it does
        # asyncio does so only for sockets that say they are TCP, which uvicorn's do not: an answer of two pieces would
        # wait for the client's delayed acknowledgement, 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._late = self.loop.call_later(self.header_seconds, self._give_up)
        self._count()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_are_there()
        self._is_read()
        super().connection_lost(exc)
        self._count()

    def _count(self) -> None:
        if _listener.shares is not None:
            _listener.shares.has(len(self.connections))

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._plain:
            self._take(data)
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
            return
        except httptools.HttpParserError as error:
            why = error.__context__
            if isinstance(why, Problem):
                self._refuse(why.status, why.detail)
            else:
                self._refuse(400, f"this is no HTTP request{f': {why}' if isinstance(why, ValueError) else ''}")
            return
        if self.cycle is not None and not self.cycle.response_complete:
            return
        # Nothing is being answered: this was a part of a request, or of a body that nobody wanted.
        if self._late is None:
            self._late = self.loop.call_later(self.header_seconds, self._give_up)
        self._head += len(data)
        if self._head > MOST_HEAD and not self._in_body and not self.transport.is_closing():
            self._refuse(431, f"more than {MOST_HEAD} bytes of headers")

    def _refuse(self, status: int, why: str) -> None:
        self.transport.write(_refusal(status, why))
        self.transport.close()

    def _decline(self, rest: bytes) -> None:
        """The client offers another protocol. It is answered in this one: what comes now is its body, of which the
        parser takes no notice, and nothing after that."""
        self._plain = self._in_body = True
        self._left = int(dict(self.headers).get(b"content-length", b"0"))
        self.cycle.keep_alive = False
        self.cycle.more_body = True
        self._take(rest)

    def _take(self, data: bytes) -> None:
        body, self._left = data[: self._left], max(0, self._left - len(data))
        self.cycle.body += body
        self.cycle.more_body = self._in_body = self._left > 0
        self.cycle.message_event.set()
        if len(self.cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        if b"#" in url:
            raise ValueError("a request has no fragment")
        super().on_url(url)
        if len(self.url) > MOST_ADDRESS:
            raise Problem(414, f"the address has more than {MOST_ADDRESS} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        # Those after the body come when it has been decided who asks for what.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._in_body, self._head = False, True, 0
        self._headers_are_there()
        _check_frame(self.headers, self.parser.get_http_version())
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_read()

    def _headers_are_there(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _is_read(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _give_up(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            if self._in_body:
                self.transport.close()
            else:
                self._refuse(408, "the headers did not come in time")


class _Joined:
    """A transport that sends the head of an answer together with what comes at once after it: in one piece it costs
    server and client half as much as in two."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _check_frame(headers: list[tuple[bytes, bytes]], version: str) -> None:
    """What this server and one before it could read in two ways, so that they would not agree where a request ends or
    whom it is for. Whatever is raised here is a 400, and the end of the connection."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and version != "1.0"):
        raise ValueError("a request is for one host")
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if codings not in ([], [b"chunked"]):
        raise ValueError("a body comes whole or in chunks")
    if codings and any(name == b"upgrade" for name, _ in headers):
        raise ValueError("with the offer of another protocol a body comes whole")
