"""Carries out a fault in one exchange with a client. `faults` decides which request meets which fault."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate

from steer_llm_sdk.providers.simulated._http import HttpConnection, HttpResponse
from steer_llm_sdk.providers.simulated._meter import Reading
from steer_llm_sdk.providers.simulated._pace import Sleep, first_of, wait
from steer_llm_sdk.providers.simulated._sse import BREAK, events_in, is_stream
from steer_llm_sdk.providers.simulated._wire import ApiError, Reply, Wire
from steer_llm_sdk.providers.simulated.faults import Fault
from steer_llm_sdk.providers.simulated.upstream import EVENTS, JSON

_SLOW = 5.0

_SAYS = {
    400: "The request is not valid.",
    401: "The API key is not valid.",
    403: "This key may not do that.",
    404: "There is no such model.",
    408: "The request took too long to arrive.",
    409: "The request is in conflict with another.",
    413: "The request is too large.",
    422: "The request cannot be processed.",
    429: "Too many requests. Slow down.",
    500: "The server had an error.",
    502: "The gateway got no good answer.",
    503: "The service is unavailable.",
    504: "The gateway waited too long.",
    529: "Overloaded.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and the way to answer it. `respond` asks the upstream; `note` counts the status, None if none."""

    connection: HttpConnection
    wire: Wire
    model: str | None
    stream: bool
    request_id: str
    respond: Callable[[], Awaitable[HttpResponse]]
    note: Callable[[int | None], None]
    sleep: Sleep
    take: Callable[[Fault], Reading]
    """Count the request against the limit that a fault says."""
    last: bool = False
    """Whether the connection ends with it."""

    async def deliver(self, response: HttpResponse) -> None:
        await self.start(response)
        await self.connection.send_all(response.body)

    async def start(self, response: HttpResponse) -> None:
        self.note(response.status)
        length = len(response.body) if isinstance(response.body, bytes) else None
        await self.connection.start(response.status, response.headers, length=length, keep_alive=not self.last)

    async def quiet(self, seconds: float | None) -> None:
        """Send nothing for so many seconds, without end if None. ConnectionAbortedError when the client leaves."""
        waits = [self.connection.left()] if seconds is None else [self.connection.left(), wait(self.sleep, seconds)]
        if await first_of(*waits) == 0:
            raise ConnectionAbortedError("the client left")


async def carry_out(fault: Fault, exchange: Exchange) -> None:
    """Answer the exchange the way the fault says. Raises ConnectionError where no connection is left."""
    await _HANDLERS.get(fault.kind, _status)(fault, exchange)


async def _status(fault: Fault, exchange: Exchange) -> None:
    """Every kind that is a status, and `quota`."""
    error = _quota(exchange.wire) if fault.kind == "quota" else _status_error(int(fault.kind))
    headers = (JSON, *exchange.wire.headers(exchange.request_id, time.time()), *_retry_headers(fault, time.time()))
    await exchange.deliver(
        HttpResponse(status=error.status, headers=headers, body=exchange.wire.error(error, exchange.request_id))
    )


def _status_error(status: int) -> ApiError:
    return ApiError(status, _SAYS[status])


def _quota(wire: Wire) -> ApiError:
    message = "The credit of this account is used up; see its plan and billing details."
    return ApiError(429, message, code="insufficient_quota") if wire.name == "openai" else ApiError(402, message)


def _retry_headers(fault: Fault, now: float) -> list[tuple[str, str]]:
    headers = []
    if fault.retry_after is not None:
        text, _, seconds = fault.retry_after.partition("date+")
        headers.append(("retry-after", formatdate(now + float(seconds), usegmt=True) if seconds else text))
    if fault.retry_after_ms is not None:
        headers.append(("retry-after-ms", str(fault.retry_after_ms)))
    if fault.should_retry is not None:
        headers.append(("x-should-retry", str(fault.should_retry).lower()))
    return headers


async def _drop(fault: Fault, exchange: Exchange) -> None:
    exchange.note(None)
    raise ConnectionAbortedError("dropped on purpose")


async def _silence(fault: Fault, exchange: Exchange) -> None:
    exchange.note(None)
    await exchange.quiet(fault.seconds)
    raise ConnectionAbortedError("silent to the end")


async def _slow(fault: Fault, exchange: Exchange) -> None:
    try:
        await exchange.quiet(_SLOW if fault.seconds is None else fault.seconds)
    except ConnectionAbortedError:
        exchange.note(None)
        raise
    await exchange.deliver(await exchange.respond())


async def _reset(fault: Fault, exchange: Exchange) -> None:
    response = await exchange.respond()
    await exchange.start(response)
    async for number, piece in _numbered(response):
        if number >= _delivered(fault, response):
            break
        await exchange.connection.send(piece)
    exchange.connection.reset()
    raise ConnectionAbortedError("reset on purpose")


async def _stall(fault: Fault, exchange: Exchange) -> None:
    response = await exchange.respond()
    await exchange.start(response)
    async for number, piece in _numbered(response):
        if number == _delivered(fault, response):
            await exchange.quiet(fault.seconds)
        await exchange.connection.send(piece)
    await exchange.connection.finish()


async def _no_end(fault: Fault, exchange: Exchange) -> None:
    response = await exchange.respond()
    if is_stream(response):
        response = replace(response, body=_without_end(exchange.wire, response))
    await exchange.deliver(response)


async def _without_end(wire: Wire, response: HttpResponse) -> AsyncIterator[bytes]:
    async for piece in _pieces(response):
        if not wire.ends(piece):
            yield piece


async def _malformed(fault: Fault, exchange: Exchange) -> None:
    response = await exchange.respond()
    if isinstance(response.body, bytes):
        response = replace(response, body=response.body[: len(response.body) // 2])
    else:
        response = replace(response, body=_broken_after(fault.chunks, response))
    await exchange.deliver(response)


async def _broken_after(chunks: int, response: HttpResponse) -> AsyncIterator[bytes]:
    """The event after `chunks` lacks the second half of its JSON; the stream goes on behind it."""
    async for number, piece in _numbered(response):
        if number == chunks:
            head, _, data = piece.rstrip().partition(b"data: ")
            piece = head + b"data: " + data[: len(data) // 2] + BREAK
        yield piece


async def _html(fault: Fault, exchange: Exchange) -> None:
    page = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Sign in to go on</h1></body></html>"
    await exchange.deliver(HttpResponse(status=200, headers=(("content-type", "text/html; charset=utf-8"),), body=page))


async def _empty(fault: Fault, exchange: Exchange) -> None:
    reply = Reply(
        id=exchange.request_id.removeprefix("req_"),
        model=exchange.model or "",
        text="",
        finish="stop",
        input_tokens=0,
        output_tokens=0,
        created=int(time.time()),
        include_usage=True,
    )
    headers = (EVENTS if exchange.stream else JSON, *exchange.wire.headers(exchange.request_id, time.time()))
    body = exchange.wire.empty(reply, stream=exchange.stream)
    await exchange.deliver(HttpResponse(status=200, headers=headers, body=body))


async def _wrong_type(fault: Fault, exchange: Exchange) -> None:
    response = await exchange.respond()
    others = [(name, value) for name, value in response.headers if name.lower() != "content-type"]
    await exchange.deliver(replace(response, headers=[*others, ("content-type", "application/octet-stream")]))


async def _error_event(fault: Fault, exchange: Exchange) -> None:
    response = await exchange.respond()
    if is_stream(response):
        event = exchange.wire.error_event(_status_error(fault.status), exchange.request_id)
        response = replace(response, body=_ending_in(event, fault.chunks, response))
    await exchange.deliver(response)


async def _ending_in(event: bytes, chunks: int, response: HttpResponse) -> AsyncIterator[bytes]:
    async for number, piece in _numbered(response):
        if number >= chunks:
            break
        yield piece
    yield event


async def _limit(fault: Fault, exchange: Exchange) -> None:
    reading, now, wire = exchange.take(fault), time.time(), exchange.wire
    if reading.wait:
        error = wire.error(_status_error(429), exchange.request_id)
        headers = [JSON, *wire.headers(exchange.request_id, now), ("retry-after", f"{reading.wait:.3f}")]
        response = HttpResponse(status=429, headers=headers, body=error)
    else:
        response = await exchange.respond()
    quota = wire.quota(reading, now)
    others = [header for header in response.headers if header[0] not in dict(quota)]
    await exchange.deliver(replace(response, headers=[*others, *quota]))


_HANDLERS: Mapping[str, Callable[[Fault, Exchange], Awaitable[None]]] = {
    "drop": _drop,
    "reset": _reset,
    "silence": _silence,
    "slow": _slow,
    "stall": _stall,
    "no-end": _no_end,
    "malformed": _malformed,
    "html": _html,
    "empty": _empty,
    "wrong-type": _wrong_type,
    "error-event": _error_event,
    "limit": _limit,
}


def _delivered(fault: Fault, response: HttpResponse) -> int:
    """How many pieces get through: of an answer in one piece, which is sent in two halves, never both."""
    return min(fault.chunks, 1) if isinstance(response.body, bytes) else fault.chunks


async def _pieces(response: HttpResponse) -> AsyncIterator[bytes]:
    """Whole events of a stream, two halves of a body that is complete, else what comes as it comes."""
    if isinstance(response.body, bytes):
        middle = (len(response.body) + 1) // 2
        yield response.body[:middle]
        yield response.body[middle:]
    elif is_stream(response):
        async for event in events_in(response.body):
            yield event
    else:
        async for piece in response.body:
            yield piece


async def _numbered(response: HttpResponse) -> AsyncIterator[tuple[int, bytes]]:
    number = 0
    async for piece in _pieces(response):
        yield number, piece
        number += 1
