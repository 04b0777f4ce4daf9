"""/v1/chat/completions in OpenAI's format and /v1/messages in Anthropic's: what a client sends and gets goes through
as it is, byte for byte.

Each call to a provider is made under the policies of the orchestrator, so that a client gets retries, breakers and
fallback by changing its base URL. Of the request only `model` is read and written; of the answer only its usage is
read. A stream is not taken up by another provider once a byte of it was shown. With an Idempotency-Key the answer is
kept as it came, streams too, and is given again to whoever sends the same bytes with that key.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send
from yarl import URL

from steer_llm_sdk.errors import (
    BadResponse,
    ConnectionFailed,
    InvalidRequest,
    OrchestratorError,
    ProviderError,
    ProviderTimeout,
    TruncatedStream,
    error_of_code,
    error_of_status,
)
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration._call import Spent, protected
from steer_llm_sdk.orchestration.options import OrchestrationConfig
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import Tool, ToolRegistry
from steer_llm_sdk.providers._endpoint import REDACTED, Endpoint
from steer_llm_sdk.providers.base import trace_headers
from steer_llm_sdk.providers.models import Model, endpoint_of
from steer_llm_sdk.providers.simulated import shared_recorded_server, shipped_recording
from steer_llm_sdk.reliability.classify import parse_retry_after
from steer_llm_sdk.reliability.idempotency import IdempotencyManager
from steer_llm_sdk.service._redaction import Redaction, redacted
from steer_llm_sdk.service.formats import ANTHROPIC, FROM_CLIENT, OPENAI, Format, parsed
from steer_llm_sdk.service.guard import Caller, until_left
from steer_llm_sdk.service.problems import Problem, problem_of
from steer_llm_sdk.service.refusals import in_format
from steer_llm_sdk.telemetry._spans import below_caller

_log = logging.getLogger(__name__)

CONNECT = 10.0
SILENCE = 600.0
"""Seconds without a byte, after which a provider is held to be gone; a client says less by its own deadline."""
KEEP_OPEN = 5.0
"""Seconds for which a connection stays open that is not used."""
MOST_HEAD = 65_536
"""Bytes of a line of an answer's headers."""
GATHER = 0.002
"""Seconds after a piece of a stream for which those that come are gathered, and go on as one."""
MOST_KEPT = 1_000_000
"""Bytes of an answer that are kept under a key. A longer one is passed on, and cannot be given again."""
_REPLAYED = {"Idempotent-Replayed": "true"}


@dataclass(frozen=True, slots=True)
class Answered:
    """What a provider answered: passed on as it came, and the tokens used. The `body` of a stream is None where it was
    not kept."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None
    usage: Mapping[str, int] = field(default_factory=dict)


class _Exchange:
    """One request of a client, on its way through the policies."""

    def __init__(
        self,
        format: Format,
        body: bytes,
        fields: dict[str, Any],
        routes: list[Endpoint],
        headers: Mapping[str, str],
        key: str | None,
    ) -> None:
        self.format = format
        self.body = body
        self.fields = fields
        self.routes = routes
        self.headers = headers
        self.key = key
        self.stream = fields.get("stream") is True
        self.send: Send | None = None
        """None once the caller has gone, or has all of the answer."""
        self.gone: Callable[[], None]
        """To be called where a server says by an error that the caller has gone."""
        self.begun = False
        """The head of a stream was shown: nobody else can take it up."""
        self.answered: Answered | None = None
        self.refused: Answered | None = None

    async def show(self, headers: Mapping[str, str], piece: bytes, *, more: bool = True) -> None:
        """Hand on a piece of a stream, the first one behind the head of the answer."""
        if not self.begun:
            self.begun = True
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
            await self._tell({"type": "http.response.start", "status": 200, "headers": raw})
        await self._tell({"type": "http.response.body", "body": piece, "more_body": more})

    async def _tell(self, message: Message) -> None:
        if self.send is not None:
            try:
                await self.send(message)
            except OSError:  # So a server may say that the caller has gone. It is no failure of the provider.
                self.gone()

    def left(self) -> bool:
        """The caller has gone; whether the run ends with him."""
        waits, self.send = self.send is not None, None
        return waits and self.key is None

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

    def __init__(self, http: Callable[[], aiohttp.ClientSession]) -> None:
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
            except Exception as error:
                if exchange.begun and isinstance(error, ProviderError):
                    error.is_retryable = True  # Not by us, to whom it is shown already; but nothing of it is kept.
                if place + 1 == len(exchange.routes) or exchange.begun:
                    raise
                continue
            exchange.answered = answered
            kept = {} if exchange.key is None else _kept(answered)
            return {"content": {"model": endpoint.name, **kept}, "usage": dict(answered.usage)}
        raise AssertionError("there is at least one route")

    async def _ask(self, exchange: _Exchange, endpoint: Endpoint) -> Answered:
        format = exchange.format
        url = URL(format.url(_base_url(endpoint, format)), encoded=True)
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers |= {**exchange.headers, **(trace_headers.get() or {})}
        headers |= format.key(endpoint.api_key.get_secret_value())
        if exchange.key is not None:
            headers["Idempotency-Key"] = exchange.key
        try:
            async with self._http().post(
                url,
                data=exchange.body_for(endpoint),
                headers=headers,
                allow_redirects=False,
                proxy=_proxy(url.scheme, url.host or ""),
            ) as response:
                told = _headers(response)
                passed = {name: value for name, value in told.items() if format.headers_out.match(name)}
                if secret := endpoint.secret:  # A provider may repeat our key, which is not the client's.
                    passed = {name: value.replace(secret, REDACTED) for name, value in passed.items()}
                if not 200 <= response.status < 300:
                    body = await response.read()
                    exchange.refused = Answered(response.status, passed, redacted(secret, body))
                    raise _failure(endpoint, response.status, told, body)
                if not exchange.stream:
                    body = await response.read()
                    answer = parsed(body)
                    if not format.is_answer(answer):
                        raise BadResponse(f"an answer of {endpoint.target} is no completion", endpoint.target)
                    return Answered(response.status, passed, redacted(secret, body), format.usage(answer))
                return await _pass_on(exchange, endpoint, response, passed)
        except aiohttp.ClientConnectorCertificateError as error:
            raise _distrust(endpoint, url, error) from error
        except aiohttp.ServerTimeoutError as error:
            raise ProviderTimeout(f"no answer from {endpoint.target}", endpoint.target) from error
        except (aiohttp.ClientError, OSError) as error:
            kind = TruncatedStream if exchange.begun else ConnectionFailed
            failure = kind(f"the connection to {endpoint.target} broke", endpoint.target)
            if exchange.begun:
                failure.is_retryable = False  # Some of it was shown.
            raise failure from error


def _distrust(endpoint: Endpoint, url: URL, error: aiohttp.ClientConnectorCertificateError) -> ConnectionFailed:
    """Another attempt would find the same certificate."""
    why = getattr(error.certificate_error, "verify_message", None) or type(error.certificate_error).__name__
    failure = ConnectionFailed(
        f"the certificate of {endpoint.target} ({url.host}) is not trusted: {why}; have SSL_CERT_FILE name a bundle "
        "that has its authority, before the service starts",
        endpoint.target,
        sent=False,
    )
    failure.is_retryable = False
    return failure


@lru_cache(1024)
def _proxy(scheme: str, host: str) -> str | None:
    """The one that the surroundings name for a host. aiohttp would look for it anew each time, in a thread."""
    return None if proxy_bypass(host) else getproxies().get(scheme)


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    """Those of an answer, by their names in small letters."""
    found: dict[str, str] = {}
    for name, value in response.raw_headers:
        key, said = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {said}" if key in found else said
    return found


async def _pass_on(
    exchange: _Exchange, endpoint: Endpoint, response: aiohttp.ClientResponse, headers: Mapping[str, str]
) -> Answered:
    """Hand over each piece as it comes. The first and the last line of data that tell of usage are kept."""
    format, tail, ended = exchange.format, b"", False
    usage: list[bytes] = []
    kept: list[bytes] | None = None if exchange.key is None else []
    size, redaction, over = 0, Redaction(endpoint.secret), False
    clock, shown = asyncio.get_running_loop().time, -GATHER
    while not over:
        piece = await response.content.readany()
        over = not piece
        if not over and (wait := shown + GATHER - clock()) > 0:
            await asyncio.sleep(wait)
            with suppress(aiohttp.ClientError, OSError):  # It broke meanwhile, which is told behind what had come.
                piece += response.content.read_nowait()
        if not (piece := redaction(piece, last=over)):
            continue
        await exchange.show(headers, piece)
        shown = clock()
        if kept is not None:
            size += len(piece)
            kept.append(piece)
            if size > MOST_KEPT:
                kept = None
        *lines, tail = (tail + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                ended = ended or format.ends(data)
                if b'"usage"' in data:
                    usage = [*usage[:1], data]
    if not (ended or (tail.startswith(b"data:") and format.ends(tail[5:].strip()))):
        failure = TruncatedStream("the stream ended without its end marker", endpoint.target)
        failure.is_retryable = not exchange.begun
        raise failure
    whole = None if kept is None else b"".join(kept)
    return Answered(response.status, headers, whole, format.usage(*map(parsed, usage)))


def _kept(answered: Answered) -> dict[str, Any]:
    """As JSON, byte for byte: each byte is a character."""
    body = answered.body
    if body is None or len(body) > MOST_KEPT:
        return {"answer": None}
    answer = {"status": answered.status, "headers": dict(answered.headers), "body": body.decode("latin-1")}
    return {"answer": answer}


def _failure(endpoint: Endpoint, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    said = parsed(body).get("error")
    error = said if isinstance(said, dict) else {}
    code = str(error.get("code") or error.get("type") or "") or None
    kind = error_of_code(code) or error_of_status(status) or BadResponse
    failure = kind(
        endpoint.scrub(str(error.get("message") or f"status {status}"))[:400],
        endpoint.target,
        status,
        parse_retry_after(headers, time.time()),
        request_id=headers.get("x-request-id") or headers.get("request-id"),
        code=code,
    )
    should = headers.get("x-should-retry")
    if should in ("true", "false"):
        failure.is_retryable = should == "true"
    return failure


def _usage(answered: Answered) -> Spent:
    return Spent(answered.usage)


def _worst(exchange: _Exchange) -> Amount:
    """What is reserved: a token for each 3 bytes that are sent, and the answer's own limit."""
    asked = exchange.fields.get("max_completion_tokens") or exchange.fields.get("max_tokens")
    most = asked if isinstance(asked, int) and not isinstance(asked, bool) and asked > 0 else 4096
    return Amount(len(exchange.body) // 3 + most, None)


def _base_url(endpoint: Endpoint, format: Format) -> str:
    if endpoint.base_url is not None:
        return endpoint.base_url
    return shared_recorded_server() + ("/v1" if format is OPENAI else "")


class Chat:
    """The passage for clients of both formats. `models` says what a name stands for: ways to be served, the first one
    first. A name that is not in it is taken as one of the format's own provider, or as it is if it has a prefix."""

    def __init__(
        self,
        orchestrator: ReliableOrchestrator,
        models: Mapping[str, tuple[str | Model, ...]],
        simulated: bool,
        remembered: IdempotencyManager,
    ) -> None:
        self._models = dict(models)
        self._simulated = simulated
        self._behind: set[asyncio.Future[Any]] = set()
        self._client: aiohttp.ClientSession | None = None
        registry = ToolRegistry()
        registry.register_tool(_Passage(self.client))
        self.orchestrator = ReliableOrchestrator(
            reliability_config=orchestrator.reliability_config,
            registry=registry,
            budget_accounts=orchestrator.budget_accounts,
            idempotency_manager=remembered,
        )
        # One provider, one breaker, whichever way it is called.
        self.orchestrator.executor = orchestrator.executor

    def client(self) -> aiohttp.ClientSession:
        """Of aiohttp, which sends a request in a fourth of httpx's time, and in fewer turns of the loop: of a busy
        one, each turn is a wait behind everybody else."""
        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_OPEN),
                timeout=aiohttp.ClientTimeout(connect=CONNECT, sock_read=SILENCE),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept"),
                max_line_size=MOST_HEAD,
                max_field_size=MOST_HEAD,
            )
        return self._client

    async def aclose(self, drain: float = 0.0) -> None:
        """What goes on for a key, though its caller has gone, gets `drain` seconds."""
        behind = [*self._behind]
        if behind:
            _, late = await asyncio.wait(behind, timeout=drain)
            for run in late:
                run.cancel()
        if self._client is not None:
            await self._client.close()

    def models(self) -> list[dict[str, Any]]:
        names = [*self._models, *(["recorded:demo"] if self._simulated else [])]
        return [self.model(name) for name in names]

    def model(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "steer"}
        if name.startswith("recorded:"):
            self._routes(OPENAI, name)
            told["questions"] = [question.text for question in shipped_recording().questions]
            told["question"] = told["questions"][0]
        elif name not in self._models:
            raise Problem(404, f"there is no model {name!r}", error="ModelNotFound")
        return told

    async def complete(self, format: Format, request: Request, caller: Caller) -> Response:
        """What answers one request; what is wrong with it is told in the form that its clients read."""
        try:
            body = request.state.body
            fields = _fields(body)
            key = request.headers.get("idempotency-key")
            passed = {name: value for name, value in request.headers.items() if FROM_CLIENT.match(name)}
            passed = {**format.usual_headers, **passed}
            exchange = _Exchange(format, body, fields, self._routes(format, fields["model"]), passed, key)
        except (OrchestratorError, Problem) as error:
            return in_format(format, problem_of(error))
        return _Passing(self, exchange, request.headers, caller.tenant)

    async def run(self, exchange: _Exchange, headers: Mapping[str, str], tenant: str) -> OrchestrationOutput:
        """`headers` of the request. With a key the work goes on where this is cancelled."""
        asked = {"model": exchange.fields["model"], "format": exchange.format.name}
        options = _options(tenant)
        if exchange.key is not None:
            asked["sha256"] = hashlib.sha256(exchange.body).hexdigest()
            options = OrchestrationConfig(tenant=tenant, idempotency_key=exchange.key)
        token = _exchange.set(exchange)
        try:
            with below_caller(headers):
                work = self.orchestrator.run(asked, "chat", None, options)
                if exchange.key is None:
                    return await work
                task = asyncio.ensure_future(work)
        finally:
            _exchange.reset(token)
        self._behind.add(task)
        task.add_done_callback(self._ended_behind)
        return await asyncio.shield(task)

    def _ended_behind(self, run: asyncio.Future[Any]) -> None:
        self._behind.discard(run)
        if not run.cancelled():
            run.exception()  # There may be nobody left whom it would be raised to.

    def _routes(self, format: Format, name: str) -> list[Endpoint]:
        specs = self._models.get(name) or (name if ":" in name else f"{format.name}:{name}",)
        endpoints = [endpoint_of(spec) for spec in specs]
        for endpoint in endpoints:
            if endpoint.recorded and not self._simulated:
                raise InvalidRequest("model", name, "this service answers from no recording; start it with --simulated")
            if endpoint.wire != format.name and not endpoint.recorded:
                other = OPENAI if format is ANTHROPIC else ANTHROPIC
                remedy = f"it does not speak {format.title}'s format; ask it at {other.path}"
                raise InvalidRequest("model", name, remedy)
        return endpoints


def _fields(body: bytes) -> dict[str, Any]:
    try:
        # Its members in order, the outermost last, so that one which is there twice is seen: of two models, another
        # reader may take the other one.
        pairs: list[tuple[str, Any]] = []

        def noted(each: list[tuple[str, Any]]) -> dict[str, Any]:
            nonlocal pairs
            pairs = each
            return dict(each)

        fields = json.loads(body.decode(), object_pairs_hook=noted)
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


class _Passing(Response):
    """Has the run carried out by the task of the request, and what comes of it goes to the caller as it comes: of a
    busy loop each turn is a wait behind everybody else, and another task would take three more. Who goes away takes
    the run along, unless he has a key: then he may come back for the answer, and the work goes on."""

    def __init__(self, chat: Chat, exchange: _Exchange, headers: Mapping[str, str], tenant: str) -> None:
        super().__init__()
        self._chat, self._exchange, self._from_client, self._tenant = chat, exchange, headers, tenant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self._exchange
        exchange.send = send
        response: Response | None = in_format(exchange.format, Problem(409, "the caller has gone"))
        try:
            with until_left(receive, exchange.left) as exchange.gone:
                response = await self._answer()
        finally:
            exchange.send = None
        if response is not None and not exchange.begun:
            await response(scope, receive, send)

    async def _answer(self) -> Response | None:
        """None where it has been shown as it came. A stream that breaks ends with an error, and without the end
        marker."""
        exchange = self._exchange
        format = exchange.format
        try:
            output = await self._chat.run(exchange, self._from_client, self._tenant)
            if output.replayed:
                return _again(format, output)
        except Exception as error:
            problem = problem_of(error)
            if problem.status == 500:
                _log.error("POST %s failed", format.path, exc_info=error)
            if not exchange.begun:
                return in_format(format, problem)
            broken = format.error_event(problem.detail, type(error).__name__, None)
        else:
            if not exchange.begun:
                return _whole(output, exchange)
            broken = b""
            if output.status == "failed":
                info = output.content["error"]
                broken = format.error_event(info["message"], info["type"], info["code"])
        await exchange.show({}, broken, more=False)
        return None


@lru_cache(1024)
def _options(tenant: str) -> OrchestrationConfig:
    """One for each tenant, which nobody changes: to make it anew is to validate it again."""
    return OrchestrationConfig(tenant=tenant)


def _again(format: Format, output: OrchestrationOutput) -> Response:
    """The answer that was kept. Of a failure that no retry can cure it is what the provider said, in the same form."""
    if output.status == "failed":
        info = output.content["error"]
        status = info.get("status_code") or 502
        said = format.error(status, info["message"], info["type"], code=info.get("provider_code"))
        return JSONResponse(said, status, _REPLAYED)
    answer = output.content["answer"]
    if answer is None:
        raise Problem(409, f"the answer of this key had more than {MOST_KEPT} bytes, and was given once", _REPLAYED)
    return Response(answer["body"].encode("latin-1"), answer["status"], {**answer["headers"], **_REPLAYED})


def _whole(output: OrchestrationOutput, exchange: _Exchange) -> Response:
    """The provider's own answer; where none could be had, what the last one said, or what kept us from asking."""
    if output.status != "failed" and exchange.answered is not None:
        answered = exchange.answered
        return Response(answered.body or b"", answered.status, dict(answered.headers))
    if exchange.refused is not None:
        refused = exchange.refused
        return Response(refused.body, refused.status, dict(refused.headers))
    cause = getattr(output, "_cause", None)
    return in_format(exchange.format, problem_of(cause if isinstance(cause, Exception) else RuntimeError("no answer")))
