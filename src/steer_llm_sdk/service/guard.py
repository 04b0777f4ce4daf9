"""What stands in front of every request: its size, its time, its depth, who sends it, and how often.

It is plain ASGI, so that a body is refused while it comes and not when it is there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steer_llm_sdk.service.keys import Key, KeyRing
from steer_llm_sdk.service.problems import Problem, problem_of
from steer_llm_sdk.service.refusals import format_of, refusal

_log = logging.getLogger(__name__)

OPEN_PATHS = re.compile(r"^/(healthz|readyz|static/[\w.]+|view/providers|view/runs/[\w.-]+(/evidence)?)?$")
"""Of which nobody has to say who he is: they hold nothing of anybody's."""
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
MOST_TENANTS = 10_000
UNWATCHED = 0.1
"""Seconds for which nobody looks whether a caller has left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`body` in bytes, `body_seconds` until it is there, `nesting` of its JSON, `header` bytes of all header lines."""

    body: int = 1_000_000
    body_seconds: float = 10.0
    nesting: int = 64
    header: int = 16_384


@dataclass(frozen=True, slots=True)
class Caller:
    tenant: str = "default"
    admin: bool = True
    runs_per_minute: float | None = None


class _Bucket:
    """Requests of one tenant: `rate` per minute, so many at once."""

    __slots__ = ("at", "left", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.left = rate
        self.at = now

    def take(self, now: float) -> float:
        """0 where one may go, else the seconds until one may."""
        self.left = min(self.rate, self.left + (now - self.at) * self.rate / 60)
        self.at = now
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) * 60 / self.rate


class Guard:
    """`keys` None: everybody is the tenant "default" and may do all; for a service that only this machine can reach.
    `hosts`: the names in a Host header that are answered; None: any. It keeps a page of somebody else's, opened in a
    browser here, from asking a service on loopback under a name of its own.
    """

    def __init__(
        self, app: ASGIApp, *, keys: KeyRing | None, limits: Limits, hosts: frozenset[str] | None = None
    ) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._hosts = hosts
        self._buckets: OrderedDict[tuple[str, float], _Bucket] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        try:
            _check_address(scope, self._limits.header)
            headers = _single_headers(scope, self._limits.header)
            _check_length(headers)
            self._check_host(headers)
            _check_origin(scope["method"], headers)
            caller = self._caller(scope["path"], headers)
            scope["state"] = {**scope.get("state", {}), "caller": caller}
            extra = self._rate(scope, caller)
            body = scope["state"]["body"] = await self._body(scope, headers, receive)
        except Problem as problem:
            answer = refusal(problem, scope["method"], scope["path"], dict(scope["headers"]))
            await answer(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive), _with_headers(send, extra) if extra else send)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rpartition(":")[0] if ":" in host.rpartition("]")[2] else host
        if self._hosts is not None and name.lower() not in self._hosts:
            raise Problem(421, "this service does not answer under that Host")

    def _caller(self, path: str, headers: dict[bytes, bytes]) -> Caller:
        if self._keys is None or (path != "/view/runs" and OPEN_PATHS.match(path)):
            return Caller()
        # Anthropic's clients have a header of their own for it.
        usual = b"Bearer " + headers.get(b"x-api-key", b"")
        kind, _, secret = headers.get(b"authorization", usual).decode("latin-1").partition(" ")
        key: Key | None = self._keys.find(secret.strip()) if kind.lower() == "bearer" else None
        if key is None:
            raise Problem(401, "give an API key: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"})
        return Caller(key.tenant, key.admin, key.runs_per_minute)

    def _rate(self, scope: Scope, caller: Caller) -> list[tuple[bytes, bytes]]:
        """RateLimit headers, where the tenant has a limit; 429 where it is reached."""
        rate = caller.runs_per_minute
        if rate is None or scope["method"] != "POST":
            return []
        now = time.monotonic()
        bucket = self._buckets.get((caller.tenant, rate))
        if bucket is None:
            bucket = self._buckets[caller.tenant, rate] = _Bucket(rate, now)
            if len(self._buckets) > MOST_TENANTS:
                self._buckets.popitem(last=False)
        wait = bucket.take(now)
        told = {
            "RateLimit-Limit": f"{rate:g}",
            "RateLimit-Remaining": str(max(0, int(bucket.left))),
            "RateLimit-Reset": str(max(1, round(60 * (rate - bucket.left) / rate))),
        }
        if wait:
            retry = {"Retry-After": str(max(1, int(wait + 0.999)))}
            raise Problem(429, f"more than {rate:g} runs a minute", {**told, **retry})
        return [(name.lower().encode(), value.encode()) for name, value in told.items()]

    async def _body(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self._limits.body
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise Problem(400, "Content-Length is no number")
        if int(length) > limit:
            raise Problem(413, f"a body of more than {limit} bytes is not read")
        if scope["method"] in ("GET", "HEAD", "OPTIONS", "DELETE"):
            return b""
        if (coding := headers.get(b"content-encoding", b"identity").lower()) != b"identity":
            why = f"a body in the coding {coding.decode('latin-1')} is not read; send it as it is"
            raise Problem(415, why, {"Accept-Encoding": "identity"})
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Problem(400, "the body did not come to its end")
                    part = message.get("body", b"")
                    size += len(part)
                    if size > limit:
                        raise Problem(413, f"a body of more than {limit} bytes is not read")
                    parts.append(part)
                    more = message.get("more_body", False)
        except TimeoutError:
            raise Problem(408, f"the body did not come within {self._limits.body_seconds:g} s") from None
        body = b"".join(parts)
        path, most = scope["path"], self._limits.nesting
        if len(body) > _LONG:
            await asyncio.to_thread(_check, path, body, most)
        else:
            _check(path, body, most)
        return body


def _check(path: str, body: bytes, most: int) -> None:
    if path.startswith("/v1/"):
        check_values(body, passed_on=format_of(path) is not None)
    if nesting(body, most) > most:
        raise Problem(400, f"the body is nested more than {most} deep")
    if path.startswith("/v1/") and format_of(path) is None and _HALF.search(body):
        _check_texts(body)


_TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_DEPTH = {0x5B: 1, 0x7B: 1, 0x5D: -1, 0x7D: -1}


def nesting(body: bytes, most: int) -> int:
    """How deep the brackets of a JSON text go, without parsing it; texts within it do not count. No more is looked at
    once it is deeper than `most`."""
    depth = deepest = 0
    for byte in _TEXTS.sub(b"", body).translate(None, _NO_BRACKETS):
        depth += _DEPTH[byte]
        if depth > deepest:
            deepest = depth
            if deepest > most:
                break
    return deepest


_CONSTANTS = re.compile(rb"-?\b(NaN|Infinity)\b")
_LARGE = re.compile(rb"[eE]\+?[0-9]{2}|[0-9]{300}")
"""What a number has that may be too large for a double."""
_FLOATS = re.compile(rb"(?<![0-9.])-?[0-9]+(?:\.[0-9]*(?:[eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)")


def check_values(body: bytes, *, passed_on: bool) -> None:
    """A Problem where a body is JSON to a lenient reader only: NaN, Infinity, and another encoding than UTF-8, in which
    they would not be seen. A number too large for a double is JSON, but would be read as Infinity; where a body is
    `passed_on` as it is, it is for whoever gets it to say."""
    if b"\0" in body:
        raise _no_json("the body is not UTF-8, or has a character that JSON wants written as \\u0000")
    try:
        body.isascii() or body.decode()
    except UnicodeDecodeError as error:
        raise _no_json(f"it is no UTF-8 from byte {error.start} on") from None
    constant, large = b"NaN" in body or b"Infinity" in body, not passed_on and _LARGE.search(body)
    if not (constant or large):
        return
    bare = _TEXTS.sub(b'""', body)
    if found := _CONSTANTS.search(bare):
        raise _no_json(f"{found[0].decode()} is no JSON value; use null or a string")
    if large and _LONG_INTEGER.search(bare):
        raise _no_json("a number has more than 4000 digits; use a string")
    for number in _FLOATS.findall(bare) if large else ():
        if math.isinf(float(number)):
            raise _no_json(f"{number[:40].decode()} is too large a number; use a string")


_LONG_INTEGER = re.compile(rb"[0-9]{4001}")
"""Python reads no integer of more than 4300 digits, whose time grows with their square."""
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""The escape of half a character, of which there are to be two."""


def _check_texts(body: bytes) -> None:
    """A Problem where half a character stands alone: it is no text, and can be neither compared nor written down."""
    try:
        value = json.loads(body)
    except ValueError:
        return  # Whoever reads it says what is wrong.
    for name, part in value.items() if isinstance(value, dict) else ():
        try:
            json.dumps({name: part}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            field = name if name.isascii() else "body"
            why = f"{field}: a text has half a character (a surrogate alone); leave it out"
            raise Problem(400, why, error="InvalidRequest", field=field) from None


def _no_json(why: str) -> Problem:
    return Problem(400, f"body: {why}", error="InvalidRequest", field="body")


_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in _DEPTH)
_LONG = 50_000
"""Bytes from which on a body is looked at beside the loop."""

_ONCE = frozenset(
    [
        b"host",
        b"authorization",
        b"x-api-key",
        b"content-length",
        b"transfer-encoding",
        b"idempotency-key",
        b"content-type",
        b"content-encoding",
    ]
)


def _check_address(scope: Scope, most: int) -> None:
    if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > most:
        raise Problem(414, f"the address has more than {most} bytes")


def _single_headers(scope: Scope, most: int) -> dict[bytes, bytes]:
    """Headers by name. One that decides who asks for what must not be there twice: of two, a proxy may see another."""
    found: dict[bytes, bytes] = {}
    size = 0
    for name, value in scope["headers"]:
        size += len(name) + len(value)
        if name in found and name in _ONCE:
            raise Problem(400, f"the header {name.decode('latin-1')} is there twice")
        found[name] = value
    if size > most:
        raise Problem(431, f"more than {most} bytes of headers")
    return found


def _check_length(headers: dict[bytes, bytes]) -> None:
    """A body whose length is told in two ways ends in two places; what is in between must not become a request."""
    if b"content-length" in headers and b"transfer-encoding" in headers:
        raise Problem(400, "give Content-Length or Transfer-Encoding, not both", {"Connection": "close"})


def _check_origin(method: str, headers: dict[bytes, bytes]) -> None:
    """A page of somebody else's may not act here: a browser sends its POST unasked, and says where it is from."""
    origin = headers.get(b"origin")
    if origin is None or method in ("GET", "HEAD", "OPTIONS"):
        return
    if origin.partition(b"://")[2].lower() != headers.get(b"host", b"").lower():
        raise Problem(403, "a page of another origin may not send this")


async def until_gone(receive: Receive) -> None:
    """Return once the caller has left; its request must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


@contextmanager
def watched(receive: Receive, gone: Callable[[], object]) -> Iterator[None]:
    """Within, `gone` is called once the caller has left. He is looked after from UNWATCHED on: what has been answered
    by then costs no task that waits for him."""
    watch: asyncio.Future[None] | None = None

    def left(watch: asyncio.Future[None]) -> None:
        if not watch.cancelled():
            watch.exception()  # A server that can be asked nothing more has no caller either.
            gone()

    def begin() -> None:
        nonlocal watch
        watch = asyncio.ensure_future(until_gone(receive))
        watch.add_done_callback(left)

    later = asyncio.get_running_loop().call_later(UNWATCHED, begin)
    try:
        yield
    finally:
        later.cancel()
        if watch is not None:
            watch.cancel()


@contextmanager
def until_left(receive: Receive, ends: Callable[[], bool] = lambda: True) -> Iterator[Callable[[], None]]:
    """What is within is cancelled once the caller has left, if `ends` then says so, and ends without an error. A
    cancellation that somebody else asks for is passed on. Gives what is to be called by whoever else hears that the
    caller has left."""
    task, left, over = asyncio.current_task(), False, False
    assert task is not None
    before = task.cancelling()

    def gone() -> None:
        nonlocal left
        if not (over or left) and ends():
            left = True
            task.cancel()

    with watched(receive, gone):
        try:
            yield gone
        except asyncio.CancelledError:
            if not left or task.uncancel() > before:
                raise
        finally:
            over = True


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send, more: list[tuple[bytes, bytes]] | None = None) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name for name, _ in message["headers"]}
            added = [pair for pair in (_HEADERS if more is None else more) if pair[0] not in there]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return with_headers


async def as_problem(request: Request, error: Exception) -> Response:
    """The exception handler of the application."""
    problem = problem_of(error)
    if problem.status == 500:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return refused(request, problem)


def refused(request: Request, problem: Problem) -> Response:
    return refusal(problem, request.method, request.url.path, dict(request.scope["headers"]))
