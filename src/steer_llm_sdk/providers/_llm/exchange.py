"""The HTTP client under a request: it sees what is sent, what comes back, and how long nothing comes."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2

from steer_llm_sdk.providers._endpoint import Endpoint
from steer_llm_sdk.providers.base import ModelRequest

T = TypeVar("T")

LONGEST_SILENCE = 600.0
"""Seconds without a byte after which a request is given up when it does not say."""

_CONNECT = 10.0
_EXCERPT = 300
_TAIL = 512
# At the start of a line: inside of an event a line break is escaped, so a model cannot write one.
_END_MARKER = re.compile(rb"^(?:data: ?\[DONE\]|event: ?message_stop)", re.MULTILINE)
_ENVIRONMENT_HEADERS = ("OpenAI-Organization", "OpenAI-Project")
_HEADER_VARIABLES = ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS")


class NotAStream(Exception):
    """A stream was asked for and something else came: a page, a document. The text says what and how it begins."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and what became of it.

    `body` is what was sent. `status` and `headers` are those of the response; `began`: some of its body came; `over`:
    all of it that will. `silence` is the limit that ran out, by name, and its seconds. `no_stream` says what came
    instead of a stream. `ended`: the wire's own end marker was seen.
    """

    first_byte_timeout: float | None = None
    chunk_timeout: float | None = None
    sent: bool = False
    body: bytes = field(default=b"", repr=False)
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    began: bool = False
    over: bool = False
    silence: tuple[str, float] | None = None
    no_stream: str | None = None
    tail: bytes = field(default=b"", repr=False)

    @classmethod
    def of(cls, request: ModelRequest) -> Exchange:
        return cls(first_byte_timeout=request.first_byte_timeout, chunk_timeout=request.chunk_timeout)

    @property
    def ended(self) -> bool:
        return _END_MARKER.search(self.tail) is not None

    @property
    def truncated(self) -> bool:
        return self.over and not self.ended

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-request-id") or self.headers.get("request-id")

    def take(self, chunk: bytes | None) -> None:
        """Some of the body, None at its end."""
        self.began = self.began or chunk is not None
        self.over = chunk is None
        self.tail = (self.tail + (chunk or b""))[-_TAIL:]


current_exchange: ContextVar[Exchange] = ContextVar("current_exchange")


def http_client(endpoint: Endpoint, base_url: str) -> WatchedClient:
    plain = base_url.startswith("http://")
    return WatchedClient(
        endpoint,
        # An encoded stream would hide its end marker, and gains nothing.
        headers={"Accept-Encoding": "identity"},
        timeout=httpx2.Timeout(connect=_CONNECT, read=LONGEST_SILENCE, write=LONGEST_SILENCE, pool=None),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30.0),
        # A redirect would carry the key of an Anthropic client to wherever it points.
        follow_redirects=False,
        # A proxy for the way out does not reach this machine.
        trust_env=not endpoint.local and not endpoint.recorded,
        # Without TLS there is nothing to verify; reading the certificates takes 30 ms.
        verify=not plain,
    )


class WatchedClient(httpx2.AsyncClient):
    """An AsyncClient that keeps the Exchange of the running request, and ends its silences."""

    def __init__(self, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(**options)
        self._endpoint = endpoint

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if not self._endpoint.own_api:
            _keep_to_oneself(request, self._endpoint)
        exchange = current_exchange.get()
        exchange.body = request.content
        watch = _Watch(exchange, request)
        response = await watch.head(super().send(request, **options))
        exchange.status = response.status_code
        exchange.headers = {name.lower(): value for name, value in response.headers.items()}
        if response.is_success and isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _WatchedStream(response.stream, watch)
            await _require_stream(response, exchange)
        return response


def _keep_to_oneself(request: httpx2.Request, endpoint: Endpoint) -> None:
    """Take out what the official clients add from the environment: it is meant for the official servers."""
    for name in (*_ENVIRONMENT_HEADERS, *_custom_header_names()):
        request.headers.pop(name, None)
    key = endpoint.api_key.get_secret_value()
    for name in ("Authorization", "X-Api-Key"):
        request.headers.pop(name, None)
    if key and endpoint.wire == "openai":
        request.headers["Authorization"] = f"Bearer {key}"
    elif key:
        request.headers["X-Api-Key"] = key


def _custom_header_names() -> list[str]:
    lines = [line for variable in _HEADER_VARIABLES for line in os.environ.get(variable, "").split("\n")]
    return [line.partition(":")[0].strip() for line in lines if ":" in line]


class _Watch:
    """The clock of one exchange: until the first byte of the answer one limit holds, from then on the other."""

    def __init__(self, exchange: Exchange, request: httpx2.Request) -> None:
        self._exchange, self._request = exchange, request
        self._loop = asyncio.get_running_loop()
        limit = exchange.first_byte_timeout
        self._first_byte_due = None if limit is None else self._loop.time() + limit

    async def head(self, sending: Awaitable[httpx2.Response]) -> httpx2.Response:
        self._exchange.sent = True
        return await self._within(self._first_byte_due, sending)

    async def chunk(self, iterator: AsyncIterator[bytes]) -> bytes | None:
        """The next bytes; None at the end."""
        limit = self._exchange.chunk_timeout
        due = self._first_byte_due
        if self._exchange.began:
            due = None if limit is None else self._loop.time() + limit
        chunk = await self._within(due, anext(iterator, None))
        self._exchange.take(chunk)
        return chunk

    async def _within(self, due: float | None, step: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout_at(due) as limit:
                return await step
        except TimeoutError as error:
            if not limit.expired():
                raise
            self._exchange.silence = self._limit()
            raise httpx2.ReadTimeout("no byte came in time", request=self._request) from error

    def _limit(self) -> tuple[str, float]:
        name = "chunk_timeout" if self._exchange.began else "first_byte_timeout"
        limit = self._exchange.chunk_timeout if self._exchange.began else self._exchange.first_byte_timeout
        return name, limit if limit is not None else LONGEST_SILENCE


class _WatchedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, watch: _Watch) -> None:
        self._stream, self._watch = stream, watch

    async def __aiter__(self) -> AsyncIterator[bytes]:
        iterator = aiter(self._stream)
        while (chunk := await self._watch.chunk(iterator)) is not None:
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _require_stream(response: httpx2.Response, exchange: Exchange) -> None:
    """Raise NotAStream, with the connection closed, for a success that is no stream of events."""
    content_type = response.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() == "text/event-stream":
        return
    try:
        excerpt = await anext(response.aiter_raw(), b"")
    finally:
        await response.aclose()
    begins = excerpt[:_EXCERPT].decode("utf-8", errors="replace")
    exchange.no_stream = f"{content_type or 'no content type'} instead of a stream of events: {begins!r}"
    raise NotAStream(exchange.no_stream)
