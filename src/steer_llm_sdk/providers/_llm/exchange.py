"""The HTTP client: it notes what is sent and received, and keeps the limits on silence."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2

from steer_llm_sdk.models.quota import RateLimitStatus, parse_rate_limit
from steer_llm_sdk.providers._endpoint import Endpoint
from steer_llm_sdk.providers.base import ModelRequest, trace_headers

T = TypeVar("T")

LONGEST_SILENCE = 600.0
"""Seconds without a byte after which a request fails that sets no limit of its own."""

_CONNECT = 10.0
_EXCERPT = 300
_TAIL = 512
# At the start of a line: inside of an event a line break is escaped, so a model cannot write one.
_END_MARKER = re.compile(rb"^(?:data: ?\[DONE\]|event: ?message_stop)", re.MULTILINE)
_ENVIRONMENT_HEADERS = ("OpenAI-Organization", "OpenAI-Project")
_HEADER_VARIABLES = ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS")


class NotAStream(Exception):
    """The response is not the stream that was asked for, but a page, say. The message has its type and beginning."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and its response.

    `body` is what was sent. `status` and `headers` are those of the response, the headers without the key, and
    `rate_limit` what they say of limits; `began`: a part of its body arrived; `over`: its body ended. `silence` is the
    name of the limit that was exceeded, and its seconds. `no_stream` says what came instead of a stream. `ended`: the
    end marker of the wire format arrived.
    """

    first_byte_timeout: float | None = None
    chunk_timeout: float | None = None
    sent: bool = False
    body: bytes = field(default=b"", repr=False)
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    rate_limit: RateLimitStatus | None = None
    began: bool = False
    over: bool = False
    silence: tuple[str, float] | None = None
    no_stream: str | None = None
    tail: bytes = field(default=b"", repr=False)
    on_first_byte: Callable[[], None] | None = None

    @classmethod
    def of(cls, request: ModelRequest) -> Exchange:
        return cls(
            first_byte_timeout=request.first_byte_timeout,
            chunk_timeout=request.chunk_timeout,
            on_first_byte=request.on_first_byte,
        )

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
        """Note a part of the body; None is its end."""
        if chunk is not None and not self.began:
            self.began = True
            if self.on_first_byte is not None:
                self.on_first_byte()
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
        # A proxy for other machines cannot reach this one.
        trust_env=not endpoint.local and not endpoint.recorded,
        # Without TLS there is nothing to verify; reading the certificates takes 30 ms.
        verify=not plain,
    )


class WatchedClient(httpx2.AsyncClient):
    """An AsyncClient that fills in the Exchange of the running request and keeps its limits on silence."""

    def __init__(self, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(**options)
        self._endpoint = endpoint

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        if not self._endpoint.own_api:
            _strip_environment(request, self._endpoint)
        request.headers.update(trace_headers.get() or {})
        exchange = current_exchange.get()
        exchange.body = request.content
        watch = _Watch(exchange, request)
        response = await watch.head(super().send(request, **options))
        exchange.status = response.status_code
        exchange.headers = {name.lower(): self._endpoint.scrub(value) for name, value in response.headers.items()}
        at = asyncio.get_running_loop().time()
        exchange.rate_limit = parse_rate_limit(exchange.headers, time.time(), at)
        if response.is_success and isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _WatchedStream(response.stream, watch)
            await _require_stream(response, exchange, self._endpoint)
        return response


def _strip_environment(request: httpx2.Request, endpoint: Endpoint) -> None:
    """Remove the headers that the official clients take from the environment: they are for the official servers."""
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
    """The limits of one exchange: `first_byte_timeout` until its body begins, then `chunk_timeout`."""

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


async def _require_stream(response: httpx2.Response, exchange: Exchange, endpoint: Endpoint) -> None:
    """Raise NotAStream, with the connection closed, if a successful response is not a stream of events."""
    content_type = response.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() == "text/event-stream":
        return
    try:
        excerpt = await anext(response.aiter_raw(), b"")
    finally:
        await response.aclose()
    # Scrubbed before it is cut: half a key would not be found.
    begins = endpoint.scrub(excerpt.decode("utf-8", errors="replace"))[:_EXCERPT]
    exchange.no_stream = f"{content_type or 'no content type'} instead of a stream of events: {begins!r}"
    raise NotAStream(exchange.no_stream)
