"""Records a user's own traffic while it passes, and serves it again.

A file has one JSON object per line and is only ever appended to:

    {"at": 1790000000.0, "redacted": ["user"],
     "request": {"method": "POST", "path": "/v1/chat/completions", "headers": [], "body": {…}},
     "response": {"status": 200, "headers": [["content-type", "…"]], "delay": 0.41,
                  "complete": true, "chunks": [[0.0, "data: …\\n\\n"], [0.02, "…"]]}}

Delays are seconds since the entry before. Never written: the query of a request and its headers (except those with the
format's version); set-cookie and every other response header that is not listed here. The values of keys, tokens and
cookies are also removed from bodies, in case a server repeats them. Named fields are replaced wherever JSON has them:
in requests, in answers, in the events of a stream, and in JSON inside a text. Text that a model streams in pieces is
not searched; to keep it out of the file, name the field that carries it (`content` in OpenAI's format, `text` in
Anthropic's). Where fields are named, a body or an event that is not entirely JSON is not kept at all, because nothing
says where in it a field begins and ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import re
import time
from base64 import b64decode, b64encode
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from pydantic import BaseModel, ConfigDict, ValidationError

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.simulated._http import HttpRequest, HttpResponse
from steer_llm_sdk.providers.simulated._pace import Sleep
from steer_llm_sdk.providers.simulated._sse import BREAK, events_in, is_stream
from steer_llm_sdk.providers.simulated._wire import ApiError
from steer_llm_sdk.providers.simulated.upstream import Upstream

REDACTED = "[redacted]"

_log = logging.getLogger(__name__)

_KEPT_OF_REQUEST = {"anthropic-version", "anthropic-beta"}
_KEPT_OF_RESPONSE = re.compile(r"content-type|retry-after.*|x-should-retry|(x-)?request-id|.*ratelimit.*")
_SECRET = re.compile(r"auth|key|token|secret|cookie|signature|^sig$|password", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""Shorter values are not taken for keys: replacing "test" or "none" everywhere would garble the texts."""

_BREAK = BREAK.decode("ascii")
_BESIDE_DATA = re.compile(r"(event|id|retry)(:.*)?")
"""The other lines of an event that are kept. A line of any other kind may be a piece of its data."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)


class _Base64(_Strict):
    """Bytes that are not UTF-8."""

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


@dataclass(frozen=True, slots=True)
class _Veil:
    """What must not be kept of an exchange: JSON fields, by their names in any case, and keys in every form a body may
    write them."""

    fields: frozenset[str]
    secrets: tuple[str, ...] = ()

    def hides(self, field: str) -> bool:
        return bool(self.fields) and field.casefold() in self.fields

    def text(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, REDACTED)
        return text

    def data(self, data: bytes) -> bytes:
        for secret in self.secrets:
            for codec in ("utf-8", "latin-1"):
                data = data.replace(secret.encode(codec, "backslashreplace"), REDACTED.encode("ascii"))
        return data


@dataclass(slots=True, kw_only=True)
class _Taken:
    """One exchange while it passes."""

    request: HttpRequest
    response: HttpResponse
    delay: float
    chunks: list[tuple[float, bytes]] = field(default_factory=list)
    written: bool = False


class TrafficRecorder:
    """Passes every request on to `upstream` and appends the exchange to `out`, a file that only its owner may read.

    `redact` names JSON fields, in any case. A stream that the client leaves, or that breaks, is kept as far as it came,
    and marked. Raises InvalidRequest where `out` cannot be written. If that happens later, answers still reach the
    client, and a warning says that they are not kept. `kept` counts the exchanges that are.
    """

    def __init__(
        self,
        upstream: Upstream,
        out: str | Path,
        redact: Iterable[str] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._upstream, self._out, self._redact, self._clock = upstream, Path(out), _folded(redact), clock
        self.kept = 0
        try:
            _append_to(self._out, b"")
        except OSError as error:
            raise InvalidRequest("out", str(out), f"it cannot be written ({error.strerror}); name another") from error

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
        veil = _Veil(self._redact, _secrets(taken.request))
        try:
            line = json.dumps(_line(taken, veil, complete).model_dump(), separators=(",", ":"))
            _append_to(self._out, line.encode("ascii") + b"\n")
            self.kept += 1
        except Exception as error:
            # The client has paid for the answer and gets it even if it cannot be kept. The text of an error may
            # quote the answer; only that of the operating system is safe to log.
            why = error.strerror if isinstance(error, OSError) else type(error).__name__
            _log.warning("An answer was passed on but is not kept in %s: %s", self._out, why)


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.casefold() for name in names)


def _append_to(path: Path, data: bytes) -> None:
    """Write all of `data`, or none of it if the disk is full: the next line would be appended to half a line."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        end = os.fstat(file).st_size
        if os.write(file, data) < len(data):
            os.ftruncate(file, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


def _line(taken: _Taken, veil: _Veil, complete: bool) -> _Line:
    request, response = taken.request, taken.response
    return _Line(
        at=round(time.time(), 3),
        redacted=sorted(veil.fields),
        request=_Request(
            method=request.method,
            path=veil.text(request.path),
            headers=[(name, veil.text(value)) for name, value in request.headers.items() if name in _KEPT_OF_REQUEST],
            body=_body(request.body, veil),
        ),
        response=_Response(
            status=response.status,
            headers=[
                (name, veil.text(value))
                for name, value in response.headers
                if _KEPT_OF_RESPONSE.fullmatch(name.lower())
            ],
            delay=round(taken.delay, 6),
            complete=complete,
            chunks=[(round(delay, 6), kept) for delay, kept in _chunks(taken, veil)],
        ),
    )


def _chunks(taken: _Taken, veil: _Veil) -> list[tuple[float, str | _Base64]]:
    """A stream event by event; any other body as a whole, because a field or a key may be cut between two chunks."""
    if is_stream(taken.response):
        return [(delay, _kept(event, veil, _event)) for delay, event in taken.chunks]
    whole = b"".join(piece for _, piece in taken.chunks)
    return [(sum(delay for delay, _ in taken.chunks), _kept(whole, veil, _document))] if taken.chunks else []


def _kept(piece: bytes, veil: _Veil, without_fields: Callable[[bytes, _Veil], str]) -> str | _Base64:
    piece = veil.data(piece)
    if veil.fields:
        return without_fields(piece, veil)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return _Base64(base64=b64encode(piece).decode("ascii"))


def _given(kept: str | _Base64) -> bytes:
    return b64decode(kept.base64) if isinstance(kept, _Base64) else kept.encode("utf-8")


def _body(body: bytes, veil: _Veil) -> Any:
    """The JSON that was sent, without the named fields; any other body as text, or REDACTED where fields are named."""
    body = veil.data(body)
    try:
        return _redacted(json.loads(body), veil) if body else None
    except (ValueError, RecursionError):
        return REDACTED if veil.fields else body.decode("utf-8", errors="backslashreplace")


def _document(text: str | bytes, veil: _Veil) -> str:
    """JSON without the named fields. REDACTED if it is not JSON from beginning to end."""
    try:
        return json.dumps(_redacted(json.loads(text), veil))
    except (ValueError, RecursionError):
        return REDACTED if text.strip() else ""


def _event(event: bytes, veil: _Veil) -> str:
    """An event without the named fields. Its `data:` lines together are one JSON document."""
    text = event.decode("utf-8-sig", errors="replace")
    lines = text.rstrip("\n").split("\n")
    data = [line.partition(":")[2].removeprefix(" ") for line in lines if line.partition(":")[0] == "data"]
    kept = [line for line in lines if _BESIDE_DATA.fullmatch(line)]
    if data:
        document = "\n".join(data)
        kept.append("data: " + (document if document == "[DONE]" else _document(document, veil)))
    elif not kept:
        kept.append(f": {REDACTED}")
    return "\n".join(kept) + (_BREAK if text.endswith(_BREAK) else "")


def _redacted(value: Any, veil: _Veil) -> Any:
    if isinstance(value, dict):
        return {veil.text(key): REDACTED if veil.hides(key) else _redacted(inner, veil) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner, veil) for inner in value]
    return veil.text(_without_fields(value, veil)) if isinstance(value, str) else value


def _without_fields(text: str, veil: _Veil) -> str:
    """JSON, or lines of events that hold JSON, without the fields; any other text as it is."""
    if not veil.fields:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return "\n".join(_line_without_fields(line, veil) for line in text.split("\n"))
    redacted = _redacted(value, veil)
    return text if redacted == value else json.dumps(redacted)


def _line_without_fields(line: str, veil: _Veil) -> str:
    if not line.startswith("data:"):
        return line
    return "data: " + _without_fields(line.removeprefix("data:").strip(), veil)


def _secrets(request: HttpRequest) -> tuple[str, ...]:
    """The values whose header or parameter is named like a key, in every form a body may write them; longest first."""
    named = [*request.headers.items(), *parse_qsl(request.query)]
    values = {part for name, value in named if _SECRET.search(name) for part in _parts(value)}
    written = {way for value in values if len(value) >= _SHORTEST_SECRET for way in _writings(value)}
    return tuple(sorted(written, key=len, reverse=True))


def _parts(value: str) -> Iterator[str]:
    """A header's value, its words, and the password in a Basic one."""
    yield value
    yield from re.split(r"[\s;=]+", value)
    scheme, _, coded = value.partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            yield b64decode(coded).decode("utf-8", errors="replace").partition(":")[2]


def _writings(secret: str) -> set[str]:
    """As it is, escaped for JSON (with and without slashes), and escaped for an address."""
    in_json = json.dumps(secret)[1:-1]
    return {secret, in_json, in_json.replace("/", "\\/"), quote(secret, safe="")}


class RecordedTraffic:
    """Answers as the recorded endpoint did: same method, path and body, compared after redaction.

    What was asked several times is answered in the recorded order, and from the start again after the last. Delays are
    those that were measured, divided by `speed`; 0 leaves them out.
    """

    def __init__(self, lines: Iterable[_Line], *, speed: float = 1.0, sleep: Sleep = asyncio.sleep) -> None:
        self._lines: defaultdict[str, list[_Line]] = defaultdict(list)
        self._redactions: dict[frozenset[str], None] = {}
        for line in lines:
            redact = _folded(line.redacted)
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
        headers = [*line.response.headers, ("x-simulated", "traffic")]
        response = HttpResponse(status=line.response.status, headers=headers)
        if is_stream(response) or not line.response.complete:
            return replace(response, body=self._stream(line.response))
        return replace(response, body=b"".join(_given(kept) for _, kept in chunks))

    async def aclose(self) -> None:
        return None

    def _next(self, request: HttpRequest) -> _Line:
        for redact in self._redactions:
            key = _key(request.method, request.path, _body(request.body, _Veil(redact)), redact)
            if lines := self._lines.get(key):
                self._served[key] += 1
                return lines[(self._served[key] - 1) % len(lines)]
        raise ApiError(404, self._not_recorded(request), code="request_not_recorded")

    def _not_recorded(self, request: HttpRequest) -> str:
        """Says which fields differ from the request that is most like it."""
        theirs = [line.request for lines in self._lines.values() for line in lines]
        same_path = [other for other in theirs if (other.method, other.path) == (request.method, request.path)]
        said = f"None of the {len(theirs)} recorded requests is like this {request.method} {request.path}"
        differences = [_differing(_body(request.body, _Veil(frozenset())), other.body) for other in same_path]
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
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{path}:{number}", text, f"not traffic: it is not JSON: {error}") from error


def _key(method: str, path: str, body: Any, redact: frozenset[str]) -> str:
    return json.dumps([method, path, body, sorted(redact)], sort_keys=True)


def _differing(mine: Any, theirs: Any) -> list[str]:
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return ["body"]
    return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
