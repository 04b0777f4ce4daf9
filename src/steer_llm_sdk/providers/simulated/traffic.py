"""A user's own traffic: kept while it passes, and served again.

A file has one JSON object per line and is only ever appended to:

    {"at": 1790000000.0, "redacted": ["user"],
     "request": {"method": "POST", "path": "/v1/chat/completions", "headers": [], "body": {…}},
     "response": {"status": 200, "headers": [["content-type", "…"]], "delay": 0.41,
                  "complete": true, "chunks": [[0.0, "data: …\\n\\n"], [0.02, "…"]]}}

Delays are seconds since what came before. Never written: what a request says of itself in headers (but for the format's
version) and in its query; set-cookie and every other response header that is not listed here. The values of keys,
tokens and cookies are also taken out of bodies, should a server repeat them. Named fields are replaced wherever JSON
has them: in requests, in answers, in the events of a stream, and in JSON that stands in a text. Text that a model
writes piece by piece is not searched: who fears for it names the field it comes in (`content` in OpenAI's format,
`text` in Anthropic's).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from base64 import b64decode, b64encode
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, ValidationError

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.simulated._http import HttpRequest, HttpResponse
from steer_llm_sdk.providers.simulated._pace import Sleep
from steer_llm_sdk.providers.simulated._sse import events_in, is_stream
from steer_llm_sdk.providers.simulated._wire import ApiError
from steer_llm_sdk.providers.simulated.upstream import Upstream

REDACTED = "[redacted]"

_KEPT_OF_REQUEST = {"anthropic-version", "anthropic-beta"}
_KEPT_OF_RESPONSE = re.compile(r"content-type|retry-after.*|x-should-retry|(x-)?request-id|.*ratelimit.*")
_SECRET = re.compile(r"auth|key|token|secret|cookie|signature|^sig$|password", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""A shorter value is no key; taking it out of every text would garble them ("test", "none")."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)


class _Base64(_Strict):
    """Bytes that are no text."""

    base64: str


class _Request(_Strict):
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: Any


class _Response(_Strict):
    status: int
    headers: list[tuple[str, str]]
    delay: float
    complete: bool
    chunks: list[tuple[float, str | _Base64]]


class _Line(_Strict):
    at: float
    redacted: list[str]
    request: _Request
    response: _Response


@dataclass(slots=True, kw_only=True)
class _Taken:
    """One exchange while it passes."""

    request: HttpRequest
    response: HttpResponse
    delay: float
    chunks: list[tuple[float, bytes]] = field(default_factory=list)
    written: bool = False


class TrafficRecorder:
    """Passes everything on to `upstream` and appends what came back to `out`, which is made for its owner's eyes only.

    `redact` names JSON fields. A stream that the client leaves, or that breaks, is kept as far as it came, and marked.
    """

    def __init__(
        self,
        upstream: Upstream,
        out: str | Path,
        redact: Iterable[str] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream, self._out, self._redact, self._clock = upstream, Path(out), frozenset(redact), clock

    async def respond(self, request: HttpRequest) -> HttpResponse:
        started = self._clock()
        response = await self._upstream.respond(request)
        taken = _Taken(request=request, response=response, delay=self._clock() - started)
        if isinstance(response.body, bytes):
            taken.chunks.append((0.0, response.body))
            self._append(taken, complete=True)
            return response
        return replace(response, body=self._listen(taken, response.body), close=lambda: self._close(taken))

    async def aclose(self) -> None:
        await self._upstream.aclose()

    async def _listen(self, taken: _Taken, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        before = self._clock()
        async for piece in events_in(body) if is_stream(taken.response) else body:
            before, delay = (now := self._clock()), now - before
            taken.chunks.append((delay, piece))
            yield piece
        self._append(taken, complete=True)

    async def _close(self, taken: _Taken) -> None:
        if not taken.written:
            self._append(taken, complete=False)
        if taken.response.close is not None:
            await taken.response.close()

    def _append(self, taken: _Taken, *, complete: bool) -> None:
        taken.written = True
        line = json.dumps(_line(taken, self._redact, complete).model_dump(), separators=(",", ":"))
        for secret in _secrets(taken.request):
            line = line.replace(json.dumps(secret)[1:-1], REDACTED)
        file = os.open(self._out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode("ascii") + b"\n")
        finally:
            os.close(file)


def _line(taken: _Taken, redact: frozenset[str], complete: bool) -> _Line:
    request, response = taken.request, taken.response
    return _Line(
        at=round(time.time(), 3),
        redacted=sorted(redact),
        request=_Request(
            method=request.method,
            path=request.path,
            headers=[(name, value) for name, value in request.headers.items() if name in _KEPT_OF_REQUEST],
            body=_body(request.body, redact),
        ),
        response=_Response(
            status=response.status,
            headers=[(name, value) for name, value in response.headers if _KEPT_OF_RESPONSE.fullmatch(name.lower())],
            delay=round(taken.delay, 6),
            complete=complete,
            chunks=[(round(delay, 6), _kept(piece, redact)) for delay, piece in taken.chunks],
        ),
    )


def _kept(piece: bytes, redact: frozenset[str]) -> str | _Base64:
    try:
        return _without_fields(piece.decode("utf-8"), redact)
    except UnicodeDecodeError:
        return _Base64(base64=b64encode(piece).decode("ascii"))


def _given(kept: str | _Base64) -> bytes:
    return b64decode(kept.base64) if isinstance(kept, _Base64) else kept.encode("utf-8")


def _body(body: bytes, redact: frozenset[str]) -> Any:
    """The JSON that was sent, without the named fields; of what is no JSON enough to know it again."""
    try:
        return _redacted(json.loads(body), redact) if body else None
    except ValueError:
        return body.decode("utf-8", errors="backslashreplace")


def _redacted(value: Any, fields: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: REDACTED if key in fields else _redacted(inner, fields) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner, fields) for inner in value]
    return _without_fields(value, fields) if isinstance(value, str) else value


def _without_fields(text: str, fields: frozenset[str]) -> str:
    """JSON, or lines of events that hold JSON, without the fields; any other text as it is."""
    if not fields:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return "\n".join(_line_without_fields(line, fields) for line in text.split("\n"))
    redacted = _redacted(value, fields)
    return text if redacted == value else json.dumps(redacted)


def _line_without_fields(line: str, fields: frozenset[str]) -> str:
    if not line.startswith("data:"):
        return line
    return "data: " + _without_fields(line.removeprefix("data:").strip(), fields)


def _secrets(request: HttpRequest) -> Iterator[str]:
    """Every value that looks like a key by its header's or parameter's name; the longest first."""
    named = [*request.headers.items(), *parse_qsl(request.query)]
    values = {part for name, value in named if _SECRET.search(name) for part in (value, *re.split(r"[\s;=]+", value))}
    return iter(sorted((value for value in values if len(value) >= _SHORTEST_SECRET), key=len, reverse=True))


class RecordedTraffic:
    """Answers as the recorded endpoint did: same method, path and body, compared after redaction.

    What was asked several times is answered in the recorded order, and from the start again after the last. Delays are
    those that were measured, divided by `speed`; 0 leaves them out.
    """

    def __init__(self, lines: Iterable[_Line], *, speed: float = 1.0, sleep: Sleep = asyncio.sleep) -> None:
        self._lines: defaultdict[str, list[_Line]] = defaultdict(list)
        self._redactions: dict[frozenset[str], None] = {}
        for line in lines:
            redact = frozenset(line.redacted)
            self._redactions[redact] = None
            self._lines[_key(line.request.method, line.request.path, line.request.body, redact)].append(line)
        self._served: Counter[str] = Counter()
        self._speed, self._sleep = speed, sleep

    @classmethod
    def read(cls, path: str | Path, *, speed: float = 1.0, sleep: Sleep = asyncio.sleep) -> RecordedTraffic:
        """Raises InvalidRequest with the number of a line that cannot be used."""
        texts = Path(path).read_text("utf-8").splitlines()
        return cls([_read(path, number, text) for number, text in enumerate(texts, 1)], speed=speed, sleep=sleep)

    async def respond(self, request: HttpRequest) -> HttpResponse:
        line = self._next(request)
        await self._pause(line.response.delay)
        chunks = line.response.chunks
        response = HttpResponse(status=line.response.status, headers=line.response.headers)
        if is_stream(response) or not line.response.complete:
            return replace(response, body=self._stream(line.response))
        return replace(response, body=b"".join(_given(kept) for _, kept in chunks))

    async def aclose(self) -> None:
        return None

    def _next(self, request: HttpRequest) -> _Line:
        for redact in self._redactions:
            key = _key(request.method, request.path, _body(request.body, redact), redact)
            if lines := self._lines.get(key):
                self._served[key] += 1
                return lines[(self._served[key] - 1) % len(lines)]
        raise ApiError(404, self._not_recorded(request), code="request_not_recorded")

    def _not_recorded(self, request: HttpRequest) -> str:
        """Says which fields differ from the request that is most like it."""
        theirs = [line.request for lines in self._lines.values() for line in lines]
        same_path = [other for other in theirs if (other.method, other.path) == (request.method, request.path)]
        said = f"None of the {len(theirs)} recorded requests is like this {request.method} {request.path}"
        differences = [_differing(_body(request.body, frozenset()), other.body) for other in same_path]
        if not differences:
            return said
        nearest = min(differences, key=lambda names: len(names))
        return f"{said}; the nearest differs in: {', '.join(nearest)}"

    async def _stream(self, response: _Response) -> AsyncIterator[bytes]:
        for delay, kept in response.chunks:
            await self._pause(delay)
            yield _given(kept)
        if not response.complete:
            raise ConnectionAbortedError("the recorded answer ends here")

    async def _pause(self, delay: float) -> None:
        if self._speed > 0 and delay > 0:
            await self._sleep(delay / self._speed)


def _read(path: str | Path, number: int, text: str) -> _Line:
    try:
        return _Line.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "line"
        raise InvalidRequest(f"{path}:{number} {where}", first["input"], f"not traffic: {first['msg']}") from error
    except ValueError as error:
        raise InvalidRequest(f"{path}:{number}", text, f"not traffic, for it is not JSON: {error}") from error


def _key(method: str, path: str, body: Any, redact: frozenset[str]) -> str:
    return json.dumps([method, path, body, sorted(redact)], sort_keys=True)


def _differing(mine: Any, theirs: Any) -> list[str]:
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return ["body"]
    return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
