"""A user's own traffic: kept while it passes, and served again.

A file has one JSON object per line and is only ever appended to:

    {"at": 1790000000.0, "redacted": ["user"],
     "request": {"method": "POST", "path": "/v1/chat/completions", "headers": [], "body": {…}},
     "response": {"status": 200, "headers": [["content-type", "…"]], "delay": 0.41,
                  "complete": true, "chunks": [[0.0, "data: …\\n\\n"], [0.02, "…"]]}}

Delays are seconds since what came before. Never written: what a request says of itself in headers (but for the format's
version) and in its query; set-cookie and every other response header that is not listed here. The values of keys,
tokens and cookies are also taken out of bodies, should a server repeat them. Named fields are replaced wherever JSON has
them, in requests, answers and the events of a stream. They are not found in the text that a model writes piece by piece:
who fears for that names the field it comes in (`content` for OpenAI's format, `text` for Anthropic's).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, ValidationError

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.simulated._http import HttpRequest, HttpResponse, is_stream
from steer_llm_sdk.providers.simulated._carry_out import Sleep, events_in
from steer_llm_sdk.providers.simulated._wire import ApiError
from steer_llm_sdk.providers.simulated.upstream import Upstream

REDACTED = "[redacted]"

_KEPT_OF_REQUEST = {"anthropic-version", "anthropic-beta"}
_KEPT_OF_RESPONSE = re.compile(r"content-type|retry-after.*|x-should-retry|(x-)?request-id|.*ratelimit.*")
_SECRET = re.compile(r"auth|key|token|secret|cookie|signature|^sig$|password", re.IGNORECASE)
_SHORTEST_SECRET = 8
"""A shorter value is no key; taking it out of every text would garble them ("test", "none")."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


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
    chunks: list[tuple[float, str]]


class _Line(_Strict):
    at: float
    redacted: list[str]
    request: _Request
    response: _Response


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
        self._upstream, self._out, self._redact, self._clock = upstream, Path(out), tuple(redact), clock

    async def respond(self, request: HttpRequest) -> HttpResponse:
        started = self._clock()
        response = await self._upstream.respond(request)
        taken = _Taken(request=request, response=response, delay=self._clock() - started, chunks=[])
        if isinstance(response.body, bytes):
            taken.chunks.append((0.0, response.body))
            self._append(taken, complete=True)
            return response
        kept = _Kept(self, taken)
        return replace(response, body=kept.pass_on(response.body), close=kept.close)

    async def aclose(self) -> None:
        await self._upstream.aclose()

    def append(self, taken: _Taken, *, complete: bool) -> None:
        line = json.dumps(self._line(taken, complete), separators=(",", ":"))
        for secret in _secrets(taken.request):
            line = line.replace(json.dumps(secret)[1:-1], REDACTED)
        file = os.open(self._out, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode("ascii") + b"\n")
        finally:
            os.close(file)
