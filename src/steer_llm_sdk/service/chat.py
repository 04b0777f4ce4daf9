"""/v1/chat/completions in OpenAI's format: what a client sends and gets goes through as it is, byte for byte.

Each call to a provider is made under the policies of the orchestrator, so that a client gets retries, breakers and
fallback by changing its base URL. Of the request only `model` is read and written; of the answer only its usage is
read. A stream is not taken up by another provider once a byte of it was shown.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from steer_llm_sdk.errors import (
    AuthenticationFailed,
    BadResponse,
    ConnectionFailed,
    ErrorCategory,
    InvalidRequest,
    ModelNotFound,
    OrchestratorError,
    PermissionDenied,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    RateLimited,
    RequestRejected,
    TruncatedStream,
    category_of_status,
)
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration._call import Spent, protected
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry
from steer_llm_sdk.providers._endpoint import Endpoint
from steer_llm_sdk.providers.base import trace_headers
from steer_llm_sdk.providers.models import Model, endpoint_of
from steer_llm_sdk.providers.simulated import shared_recorded_server, shipped_recording
from steer_llm_sdk.reliability.classify import parse_retry_after
from steer_llm_sdk.service.guard import Caller, until_gone
from steer_llm_sdk.service.problems import Problem, problem_of
from steer_llm_sdk.telemetry._spans import below_caller

CONNECT = 10.0
SILENCE = 600.0
"""Seconds without a byte, after which a provider is held to be gone; a client says less by its own deadline."""
_PASSED_ON = re.compile(r"^(openai-|x-ratelimit-|x-request-id$|retry-after|x-should-retry$|content-type$|x-simulated$)")

_BY_CATEGORY: Mapping[ErrorCategory, type[ProviderError]] = {
    ErrorCategory.AUTHENTICATION: AuthenticationFailed,
    ErrorCategory.PERMISSION_DENIED: PermissionDenied,
    ErrorCategory.QUOTA: QuotaExhausted,
    ErrorCategory.NOT_FOUND: ModelNotFound,
    ErrorCategory.TIMEOUT: ProviderTimeout,
    ErrorCategory.RATE_LIMIT: RateLimited,
    ErrorCategory.SERVER_ERROR: ProviderUnavailable,
    ErrorCategory.VALIDATION: RequestRejected,
}


@dataclass(frozen=True, slots=True)
class Answered:
    """What a provider answered: passed on as it came. `body` is empty for a stream, which has been passed on."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class _Exchange:
    """One request of a client, on its way through the policies; `sink` takes the bytes of a stream."""

    def __init__(self, body: bytes, fields: dict[str, Any], routes: list[Endpoint], key: str | None) -> None:
        self.body = body
        self.fields = fields
        self.routes = routes
        self.key = key
        self.stream = fields.get("stream") is True
        self.head: asyncio.Future[Mapping[str, str]] = asyncio.get_running_loop().create_future()
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue(64)
        self.answered: Answered | None = None
        self.refused: Answered | None = None

    def body_for(self, endpoint: Endpoint) -> bytes:
        """The client's own bytes, but for the name of the model."""
        if self.fields["model"] == endpoint.model:
            return self.body
        return _with_model(self.body, endpoint.model)


_exchange: ContextVar[_Exchange] = ContextVar("steer_llm_sdk.chat")


class _Passage(Tool):
    """Asks the providers of an exchange, one after the other."""

    name = "chat"
    composite = True

    def __init__(self, http: Callable[[], httpx2.AsyncClient]) -> None:
        self._http = http

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        exchange = _exchange.get()
        for place, endpoint in enumerate(exchange.routes):
            try:
                answered = await protected(
                    lambda endpoint=endpoint: self._ask(exchange, endpoint),  # type: ignore[misc]
                    target=endpoint.target,
                    part=endpoint.model,
                    measure=_usage,
                    worst_case=_worst(exchange),
                    model=endpoint.model,
                    followed=place + 1 < len(exchange.routes),
                )
            except Exception:
                if place + 1 == len(exchange.routes) or exchange.head.done():
                    raise
                continue
            exchange.answered = answered
            usage = _usage(answered)
            return {"content": {"model": endpoint.name}, "usage": dict(usage.usage)}
        raise AssertionError("there is at least one route")

    async def _ask(self, exchange: _Exchange, endpoint: Endpoint) -> Answered:
        url = f"{_base_url(endpoint)}/chat/completions"
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **(trace_headers.get() or {})}
        if secret := endpoint.api_key.get_secret_value():
            headers["Authorization"] = f"Bearer {secret}"
        if exchange.key is not None:
            headers["Idempotency-Key"] = exchange.key
        try:
            async with self._http().stream(
                "POST", url, content=exchange.body_for(endpoint), headers=headers
            ) as response:
                passed = {name: value for name, value in response.headers.items() if _PASSED_ON.match(name.lower())}
                if not response.is_success:
                    body = await response.aread()
                    exchange.refused = Answered(response.status_code, passed, _without_key(endpoint, body))
                    raise _failure(endpoint, response, body)
                if not exchange.stream:
                    body = await response.aread()
                    _require_json(endpoint, body)
                    return Answered(response.status_code, passed, body)
                return await _pass_on(exchange, endpoint, response, passed)
        except httpx2.TimeoutException as error:
            raise ProviderTimeout(f"no answer from {endpoint.target}", endpoint.target) from error
        except httpx2.TransportError as error:
            kind = TruncatedStream if exchange.head.done() else ConnectionFailed
            failure = kind(f"the connection to {endpoint.target} broke", endpoint.target)
            if exchange.head.done():
                failure.is_retryable = False  # Some of it was shown.
            raise failure from error


async def _pass_on(
    exchange: _Exchange, endpoint: Endpoint, response: httpx2.Response, headers: Mapping[str, str]
) -> Answered:
    """Hand over each piece as it comes. The last line of data is kept, for it may have the usage."""
    tail, usage, ended = b"", b"", False
    async for piece in response.aiter_raw():
        if not piece:
            continue
        if not exchange.head.done():
            exchange.head.set_result(headers)
        await exchange.pieces.put(piece)
        *lines, tail = (tail + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                ended = ended or data == b"[DONE]"
                if b'"usage"' in data:
                    usage = data
    if not ended and tail.strip() != b"data: [DONE]":
        failure = TruncatedStream("the stream ended without its end marker", endpoint.target)
        failure.is_retryable = not exchange.head.done()
        raise failure
    return Answered(response.status_code, headers, usage)


def _without_key(endpoint: Endpoint, body: bytes) -> bytes:
    """What a provider says against a request, byte for byte unless it repeats our key, which is not the client's."""
    text = body.decode("utf-8", "replace")
    return endpoint.scrub(text).encode() if endpoint.has_key_in(text) else body


def _failure(endpoint: Endpoint, response: httpx2.Response, body: bytes) -> ProviderError:
    headers = dict(response.headers)
    said: Any = None
    with suppress(ValueError, RecursionError):
        said = json.loads(body)
    error = said.get("error") if isinstance(said, dict) else None
    error = error if isinstance(error, dict) else {}
    code = str(error.get("code") or error.get("type") or "") or None
    category = ErrorCategory.QUOTA if code == "insufficient_quota" else category_of_status(response.status_code)
    failure = _BY_CATEGORY.get(category, ProviderUnavailable)(
        endpoint.scrub(str(error.get("message") or f"status {response.status_code}"))[:400],
        endpoint.target,
        response.status_code,
        parse_retry_after(headers, time.time()),
        request_id=headers.get("x-request-id"),
        code=code,
    )
    should = headers.get("x-should-retry")
    if should in ("true", "false"):
        failure.is_retryable = should == "true"
    return failure


def _require_json(endpoint: Endpoint, body: bytes) -> None:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not answer.get("choices"):
        raise BadResponse(f"an answer of {endpoint.target} is no chat completion", endpoint.target)


def _usage(answered: Answered) -> Spent:
    try:
        usage = json.loads(answered.body or b"{}").get("usage") or {}
    except (ValueError, AttributeError, RecursionError):
        usage = {}
    counts = {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens") if name in usage}
    return Spent({name: count for name, count in counts.items() if isinstance(count, int)})


def _worst(exchange: _Exchange) -> Amount:
    """What is reserved: a token for each 3 bytes that are sent, and the answer's own limit."""
    asked = exchange.fields.get("max_completion_tokens") or exchange.fields.get("max_tokens")
    most = asked if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0 else 4096
    return Amount(len(exchange.body) // 3 + most, None)


def _base_url(endpoint: Endpoint) -> str:
    return endpoint.base_url if endpoint.base_url is not None else f"{shared_recorded_server()}/v1"


class Chat:
    """The passage for clients of OpenAI's format. `models` says what a name stands for: ways to be served, the first
    one first. A name that is not in it is taken as one of `openai:`, or as it is if it has a prefix."""

    def __init__(
        self, orchestrator: ReliableOrchestrator, models: Mapping[str, tuple[str | Model, ...]], simulated: bool
    ) -> None:
        self._models = dict(models)
        self._simulated = simulated
        self._client: httpx2.AsyncClient | None = None
        registry = ToolRegistry()
        registry.register_tool(_Passage(self._http))
        self.orchestrator = ReliableOrchestrator(
            reliability_config=orchestrator.reliability_config,
            registry=registry,
            budget_accounts=orchestrator.budget_accounts,
        )
        # One provider, one breaker, whichever way it is called.
        self.orchestrator.executor = orchestrator.executor

    def _http(self) -> httpx2.AsyncClient:
        if self._client is None:
            self._client = httpx2.AsyncClient(
                timeout=httpx2.Timeout(SILENCE, connect=CONNECT, pool=None),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100),
                follow_redirects=False,
            )
        return self._client

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def models(self) -> list[dict[str, Any]]:
        names = [*self._models, *(["recorded:demo"] if self._simulated else [])]
        return [self.model(name) for name in names]

    def model(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "steer"}
        if name.startswith("recorded:"):
            self._routes(name)
            told["questions"] = [question.text for question in shipped_recording().questions]
            told["question"] = told["questions"][0]
        elif name not in self._models:
            raise Problem(404, f"there is no model {name!r}", error="ModelNotFound")
        return told

    async def complete(self, request: Request, caller: Caller) -> Response:
        """Answer one request; what is wrong with it is told in OpenAI's form, which its clients read."""
        try:
            return await self._complete(request, caller)
        except (OrchestratorError, ProviderError) as error:
            return _error_response(error)

    async def _complete(self, request: Request, caller: Caller) -> Response:
        body = await request.body()
        fields = _fields(body)
        leaving = asyncio.ensure_future(until_gone(request.receive))
        try:
            return await self._under_policies(body, fields, request, caller, leaving)
        finally:
            leaving.cancel()

    async def _under_policies(
        self,
        body: bytes,
        fields: dict[str, Any],
        request: Request,
        caller: Caller,
        leaving: asyncio.Future[None],
    ) -> Response:
        key = request.headers.get("idempotency-key")
        exchange = _Exchange(body, fields, self._routes(fields["model"]), key)
        token = _exchange.set(exchange)
        try:
            options = OrchestrationConfig(tenant=caller.tenant)
            with below_caller(request.headers):
                run = asyncio.ensure_future(self.orchestrator.run({"model": fields["model"]}, "chat", None, options))
        finally:
            _exchange.reset(token)
        if not exchange.stream:
            await _first_of(run, leaving)
            return _whole(run, exchange)
        head = exchange.head
        await _first_of(run, leaving, head)
        if not head.done():
            return _whole(run, exchange)
        return StreamingResponse(_pieces(run, exchange), headers=dict(head.result()))

    def _routes(self, name: str) -> list[Endpoint]:
        specs = self._models.get(name) or (name if ":" in name else f"openai:{name}",)
        endpoints = [endpoint_of(spec) for spec in specs]
        for endpoint in endpoints:
            if endpoint.recorded and not self._simulated:
                raise InvalidRequest("model", name, "this service answers from no recording; start it with --simulated")
            if endpoint.wire != "openai" and not endpoint.recorded:
                raise InvalidRequest("model", name, "it does not speak OpenAI's format; POST /v1/runs can ask it")
        return endpoints


def _fields(body: bytes) -> dict[str, Any]:
    try:
        # Its members in order, so that one which is there twice is seen: of two models, another reader may take the
        # other one.
        pairs = json.loads(body.decode(), object_pairs_hook=tuple)
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("body", body[:40], f"it is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("body", type(fields).__name__, "give a JSON object")
    if not isinstance(fields.get("model"), str) or not fields["model"]:
        raise InvalidRequest("model", fields.get("model"), "name a model")
    if [name for name, _ in pairs].count("model") > 1:
        raise InvalidRequest("model", fields["model"], "it is there twice; give one")
    if not isinstance(fields.get("stream", False), (bool, type(None))):
        raise InvalidRequest("stream", fields["stream"], "give true or false")
    return fields


_SPACE = re.compile(r"[ \t\n\r]*")


def _with_model(body: bytes, model: str) -> bytes:
    """`body` with another name of the model; all else stays as it was written, numbers and escapes too."""
    text = body.decode()
    decoder = json.JSONDecoder()
    at = _SPACE.match(text).end() + 1  # type: ignore[union-attr]  # what may be empty always matches
    while True:
        name, at = decoder.raw_decode(text, _SPACE.match(text, at).end())  # type: ignore[union-attr]
        start = _SPACE.match(text, text.index(":", at) + 1).end()  # type: ignore[union-attr]
        _, end = decoder.raw_decode(text, start)
        if name == "model":
            return f"{text[:start]}{json.dumps(model)}{text[end:]}".encode()
        at = text.index(",", end) + 1


async def _first_of(run: asyncio.Future[Any], leaving: asyncio.Future[None], *more: asyncio.Future[Any]) -> None:
    """Wait for one of them. Who goes away takes the run along."""
    try:
        await asyncio.wait({run, leaving, *more}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        run.cancel()
        raise
    if not run.done() and leaving.done():
        run.cancel()
        raise Problem(409, "the caller has gone")


def _whole(run: asyncio.Future[Any], exchange: _Exchange) -> Response:
    """The provider's own answer; where none could be had, what the last one said, or what kept us from asking."""
    output = run.result()
    if output.status != "failed" and exchange.answered is not None:
        answered = exchange.answered
        return Response(answered.body, answered.status, dict(answered.headers))
    if exchange.refused is not None:
        refused = exchange.refused
        return Response(refused.body, refused.status, dict(refused.headers))
    cause = getattr(output, "_cause", None)
    return _error_response(cause if isinstance(cause, Exception) else RuntimeError("no answer"))


def _error_response(error: Exception) -> Response:
    problem = problem_of(error)
    kind, field = problem.more.get("error"), problem.more.get("field")
    said = {"message": problem.detail, "type": kind, "param": field, "code": None}
    return JSONResponse({"error": said}, problem.status, problem.headers)


async def _pieces(run: asyncio.Future[Any], exchange: _Exchange) -> AsyncIterator[bytes]:
    """What has come, to its end. A stream that breaks ends with an error, and without the end marker."""
    getting: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            getting = asyncio.ensure_future(exchange.pieces.get())
            await asyncio.wait({getting, run}, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                break
            yield getting.result() or b""
        while not exchange.pieces.empty():
            yield exchange.pieces.get_nowait() or b""
        output = run.result()
        if output.status == "failed":
            error = output.content["error"]
            said = {"message": error["message"], "type": error["type"], "param": None, "code": error["code"]}
            yield f"data: {json.dumps({'error': said})}\n\n".encode()
    finally:
        if getting is not None:
            getting.cancel()
        if not run.done():
            run.cancel()
