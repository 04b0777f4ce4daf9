"""What somebody does who means harm: raw sockets, paths, keys, addresses; and a search for secrets in all output."""

from __future__ import annotations

import hmac
import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest
from served import Service, serving
from test_guard import BODY, Ring
from upstream import JSON, SSE, wire

from steer_llm_sdk.orchestration.tools import LLMTool
from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.providers.models import Model
from steer_llm_sdk.providers.pydantic_ai_adapter import load
from steer_llm_sdk.service import Key, KeyRing
from steer_llm_sdk.service.keys import digest
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, err

Serve = Callable[..., Service]
CANARY = "sk-canary-9876543210zyxwvutsrq"


@pytest.fixture(scope="module", autouse=True)
def clients_of_models() -> None:
    """Loaded now: it takes longer than a client here waits."""
    load("openai")


@pytest.fixture(scope="module")
def tool() -> ScriptedTool:
    return ScriptedTool("hidden_tool")


@pytest.fixture(scope="module")
def service(tool: ScriptedTool) -> Iterator[Service]:
    with serving(tool) as running:
        yield running


@pytest.fixture(scope="module")
def locked(tool: ScriptedTool) -> Iterator[Service]:
    with serving(tool, keys=Ring(a={}).ring) as running:
        yield running


def said(service: Service, sent: bytes) -> bytes:
    """All that comes back: until the service closes, or has answered two more requests of somebody else's, before which
    it has done what there was to do for this one."""
    place = urlsplit(service.url)
    got = b""
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection, service.client() as other:
        connection.sendall(sent)
        for _ in range(2):
            other.get("/healthz")
        connection.settimeout(0.05)
        while True:
            try:
                piece = connection.recv(65_536)
            except (TimeoutError, ConnectionResetError):
                return got
            if not piece:
                return got
            got += piece


# ── one request is one request ───────────────────────────────────────────────────────────────────────────────────────

_BODY = json.dumps(BODY | {"tool_name": "hidden_tool"}).encode()
HIDDEN = (
    b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    % (len(_BODY), _BODY)
)
START = b"POST /v1/plan HTTP/1.1\r\nHost: localhost\r\n"
ZERO = b"0\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        START + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(ZERO + HIDDEN) + ZERO + HIDDEN,
        START + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + b"2\r\n{}\r\n" + ZERO + HIDDEN,
        START + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        START + b"Content-Length: 0, %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        START + b"Content-Length: +0\r\n\r\n" + HIDDEN,
        START + b"Content-Length : %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        START + b"Content-Length: 0x0\r\n\r\n" + HIDDEN,
        START + b"Content-Length: \xd9\xa0\r\n\r\n" + HIDDEN,  # a zero, in Arabic
        START + b"Transfer-Encoding: xchunked\r\n\r\n" + ZERO + HIDDEN,
        START + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + ZERO + HIDDEN,
        START + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + ZERO + HIDDEN,
        START + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + ZERO + HIDDEN,
        START + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + ZERO + HIDDEN,
        START + b"Transfer-Encoding : chunked\r\n\r\n" + ZERO + HIDDEN,
        START + b"X: a\rTransfer-Encoding: chunked\r\n\r\n" + ZERO + HIDDEN,
        START + b"X: a\x00b\r\n\r\n" + HIDDEN,
        START + b" folded: Transfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        START + b"X: a\r\n\tTransfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN,
        START + b"Transfer-Encoding: chunked\r\n\r\n" + b"-1\r\n" + HIDDEN,
        START + b"Transfer-Encoding: chunked\r\n\r\n" + b"0x2\r\n{}\r\n" + ZERO + HIDDEN,
        START + b"Transfer-Encoding: chunked\r\n\r\n" + b"2\r\n{}" + ZERO + HIDDEN,
        START + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n" + HIDDEN,
        b"POST /v1/plan HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + ZERO + HIDDEN,
        b"POST /v1/plan HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n" + HIDDEN,
        b"POST /v1/plan HTTP/1.1\r\n\r\n" + HIDDEN,
        b"POST /v1/plan HTTP/1.1\nHost: localhost\nContent-Length: %d\n\n" % len(HIDDEN) + HIDDEN,
        b"POST /v1/plan\r\n\r\n" + HIDDEN,
    ],
    ids=lambda sent: re.sub(r"[^\w:, +-]+", "_", sent.split(b"\r\n\r\n")[0][22:80].decode("latin-1")),
)
def test_a_request_in_a_request_is_never_run(service: Service, tool: ScriptedTool, sent: bytes) -> None:
    before = len(tool.calls)
    answers = re.findall(rb"HTTP/1\.1 (\d+)", said(service, sent))
    assert len(tool.calls) == before
    assert len(answers) <= 1
    assert all(answer.startswith(b"4") for answer in answers)


def test_two_requests_in_one_piece_that_are_two_are_both_answered(service: Service, tool: ScriptedTool) -> None:
    """So that the test above would see one that gets through."""
    before = len(tool.calls)
    assert said(service, HIDDEN + HIDDEN).count(b"HTTP/1.1 200") == 2
    assert len(tool.calls) == before + 2


def test_a_header_after_the_body_is_none(service: Service, tool: ScriptedTool) -> None:
    """It would come after it was decided who asks for what."""
    before = len(tool.calls)
    head = b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%s"
    chunked = head % b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n%%s\r\n" % (len(_BODY), _BODY)
    for _ in range(2):
        assert b"HTTP/1.1 200" in said(service, chunked % b"Idempotency-Key: late\r\nHost: evil.example\r\n")
    assert len(tool.calls) == before + 2


def test_who_offers_another_protocol_is_answered_in_this_one(service: Service, tool: ScriptedTool) -> None:
    before = len(tool.calls)
    start = b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\n"
    offer = HIDDEN.replace(start, start + b"Connection: Upgrade\r\nUpgrade: h2c\r\n")
    for sent in (offer, offer + HIDDEN):  # and nothing that comes after it is a request
        told = said(service, sent)
        assert (told.startswith(b"HTTP/1.1 200"), b"connection: close" in told) == (True, True)
        assert b'"status":"succeeded"' in told
    assert len(tool.calls) == before + 2
    chunked = start + b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert said(service, chunked + ZERO + HIDDEN).startswith(b"HTTP/1.1 400")
    assert len(tool.calls) == before + 2


def test_headers_without_an_end_are_not_kept(service: Service) -> None:
    for start, status in ((b"GET /", 414), (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", 431)):
        assert problem(said(service, start + b"a" * 100_000))["status"] == status


def problem(answer: bytes) -> dict[str, Any]:
    """What an answer says that is a problem, and the end of its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head.lower()
    told: dict[str, Any] = json.loads(body)
    assert head.startswith(b"HTTP/1.1 %d " % told["status"])
    return told


def test_what_the_server_itself_refuses_is_a_problem_too(service: Service) -> None:
    for sent, why in (
        (b"NONSENSE\r\n\r\n", "this is no HTTP request"),
        (b"GET / HTTP/1.1\r\n\r\n", "this is no HTTP request: a request is for one host"),
    ):
        told = problem(said(service, sent))
        assert (told["status"], told["detail"], told["title"]) == (400, why, "Bad Request")


def test_an_address_that_is_too_long_is_414(service: Service) -> None:
    with service.client() as client:
        for path in ("/v1/runs/" + "a" * 17_000, "/v1/runs?x=" + "a" * 17_000):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["status"]) == (414, 414)
    whole = b"GET /%s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" % (b"a" * 70_000)
    assert problem(said(service, whole))["status"] == 414


def test_a_folded_line_is_part_of_the_header_above_it(serve: Serve) -> None:
    keys = Ring(a={})
    service = serve(keys=keys.ring)
    folded = b"GET /v1/tools HTTP/1.1\r\nHost: localhost\r\nX: a\r\n Authorization: Bearer %s\r\n\r\n"
    assert said(service, folded % keys.secrets["a"].encode()).startswith(b"HTTP/1.1 4")


# ── too long, too slow ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_body_longer_than_it_said_is_cut_off_there(service: Service, tool: ScriptedTool) -> None:
    before = len(tool.calls)
    longer = HIDDEN.replace(b"Content-Length: %d" % len(_BODY), b"Content-Length: %d" % (len(_BODY) - 1))
    assert b"HTTP/1.1 400" in said(service, longer)
    assert len(tool.calls) == before


@pytest.mark.parametrize(
    "body",
    [
        b'{"request": "%s", "tool_name": "t"}' % (b"x" * 1_000_000),
        b'{"request": ' + b"9" * 5_000 + b', "tool_name": "t"}',
        b'{"request": 1e999, "tool_name": "t"}',
        b'{"request": NaN, "tool_name": "t"}',
        b'{"request": "\\ud800", "tool_name": "t"}',
        b'{"request": "\xff", "tool_name": "t"}',
        b"\xef\xbb\xbf{}",
        b'{"request": {"__proto__": 1, "": {}}, "tool_name": "t\\u0000"}',
        b'{"request": "x", "tool_name": "t", "options": {"timeout_ms": 1e308}}',
        b'{"request": "x", "tool_name": "t", "options": {"max_parallel": 99999999999999999999}}',
        b'{"request": "x", "tool_name": "t", "options": {"budgets": [{"name": "\\ud800", "usd": 1}]}}',
        b'{"request": "x", "tool_name": "t", "options": {"idempotency_key": "\\ud800"}}',
    ],
    ids=lambda body: repr(body[:60])[2:-1],
)
def test_a_strange_body_never_fails_the_service(serve: Serve, body: bytes) -> None:
    with serve(ScriptedTool("t")).client() as client:
        answer = client.post("/v1/runs", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400, 404, 413), answer.text
        json.loads(answer.text)
        assert client.get("/v1/runs").status_code == 200
        assert client.get("/view/runs").status_code == 200


# ── paths ────────────────────────────────────────────────────────────────────────────────────────────────────────────

TRICKS = [
    "//v1/tools",
    "/./v1/tools",
    "/healthz/../v1/tools",
    "/healthz/..%2fv1/tools",
    "/static/../v1/tools",
    "/static/view.js/../../v1/tools",
    "/static/..%2f..%2fv1%2ftools",
    "/static/%2e%2e%2fkeys.py",
    "/static/..%5ckeys.py",
    "/static/view.js%00.py",
    "/static/view.js%0a",
    "/view/runs/../../v1/tools",
    "/view/runs/x%2f..%2f..%2fv1%2ftools",
    "/v1/tools%00",
    "/v1/tools%0a",
    "/v1/tools/",
    "/v1/tools;x=/healthz",
    "/v1/tools?/healthz",
    "/V1/TOOLS",
    "/v1/%74ools",
    "/v1/runs/%2e%2e%2ftools",
    "http://localhost/v1/tools",
    "/\\v1\\tools",
    "/healthz#/../v1/tools",
    "*",
]


@pytest.mark.parametrize("path", TRICKS)
def test_no_path_leads_round_the_key_or_out_of_the_folder(locked: Service, path: str) -> None:
    for method in ("GET", "HEAD", "POST"):
        told = said(locked, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert b"hidden_tool" not in told
        assert b"import " not in told
        assert re.match(rb"HTTP/1\.1 4\d\d ", told), (method, told[:200])


# ── keys and tenants ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_key_is_compared_whole_with_every_other_whichever_is_given() -> None:
    """By construction, not by the clock: what is compared are hashes of one length, all of them, in one order."""
    secrets = [f"steer-{n:043d}" for n in range(20)]
    ring = KeyRing(tuple(Key(tenant=f"t{n}", sha256=digest(secret)) for n, secret in enumerate(secrets)))
    near = [secrets[0][:-1] + "x", secrets[-1][:-1] + "x", secrets[0] + "x"]
    work = []
    for given in (secrets[0], secrets[-1], *near, "", "x" * 10_000):
        compared: list[tuple[int, str]] = []

        def watched(a: str, b: str, compared: list[tuple[int, str]] = compared) -> bool:
            compared.append((len(a), b))
            return hmac.compare_digest(a, b)

        with patch("steer_llm_sdk.service.keys.hmac", SimpleNamespace(compare_digest=watched)):
            found = ring.find(given)
        assert (found is not None) == (given in secrets)
        work.append(compared)
    assert work == [[(64, key.sha256) for key in ring.keys]] * len(work)


def test_another_tenants_run_is_on_no_route(serve: Serve) -> None:
    """Each route of the application that names a run, so that a new one cannot be forgotten."""
    keys = Ring(a={}, b={}, root={"admin": True})
    service = serve(ScriptedTool("t", OK("first"), HANG), SimpleBundleTool(), keys=keys.ring)
    with (
        service.client(keys.secrets["a"]) as a,
        service.client(keys.secrets["b"]) as b,
        service.client(keys.secrets["root"]) as root,
    ):
        ended = a.post("/v1/runs", json=BODY | {"request": CANARY}).json()["id"]
        bundle = a.post("/v1/runs", json={"request": CANARY, "tool_name": "simple_bundle"}).json()["id"]
        running = a.post("/v1/runs", json=BODY, headers={"Prefer": "respond-async"}).json()["id"]
        described = root.get("/openapi.json").json()["paths"]
        routes = [(method, path) for path, item in described.items() for method in item if "{run_id}" in path]
        routes += [("get", f"/view/runs/{{run_id}}/{name}") for name in ("shown", "evidence/shown")]
        assert len(routes) >= 5
        for stranger in (b, root):
            for method, path in routes:
                for run_id in (ended, bundle, running):
                    foreign = stranger.request(method, path.format(run_id=run_id))
                    missing = stranger.request(method, path.format(run_id="0" * 32))
                    assert (foreign.status_code, foreign.content) == (404, missing.content), (method, path)
            for path in ("/v1/runs", "/view/runs", "/v1/budgets", "/v1/tools", "/v1/breakers", "/metrics"):
                shown = stranger.get(path).text
                assert [each for each in (ended, bundle, running, CANARY) if each[:8] in shown] == []
        assert a.get(f"/v1/runs/{running}").json()["state"] == "running"
        assert a.delete(f"/v1/runs/{running}").status_code == 202


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────────


TEXT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"yes"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class Trap:
    """Listens, and keeps each connection's first bytes, whatever they are."""

    def __init__(self) -> None:
        self.hits: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = f"http://{self.place}"
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                first = connection.recv(4096)
                if first == b"stop":
                    return
                self.hits.append(first)

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        with socket.create_connection(self._listener.getsockname()) as last:
            last.sendall(b"stop")
        self._thread.join(10)
        self._listener.close()


@pytest.fixture
def trap() -> Iterator[Trap]:
    made = Trap()
    yield made
    made.close()


def test_the_trap_sees_who_comes(trap: Trap) -> None:
    with socket.create_connection(tuple(trap.place.split(":"))) as connection:  # type: ignore[arg-type]
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
    trap.close()
    assert trap.hits == [b"GET / HTTP/1.1\r\n\r\n"]


def test_no_address_in_a_request_is_asked(serve: Serve, trap: Trap) -> None:
    with wire((200, SSE, [TEXT])) as upstream:
        model = Model("openai:m", base_url=upstream.url, api_key=CANARY)
        service = serve(LLMTool("ask", model=model), SimpleBundleTool(), models={"m": (model,)})
        evil = trap.url
        image = {"type": "image_url", "image_url": {"url": f"{evil}/a.png"}}
        with service.client() as client:
            for tool, options in (
                ("simple_bundle", {"schema_uri": f"{evil}/schema.json"}),
                ("simple_bundle", {"schema_uri": "file:///etc/passwd"}),
                ("ask", {"schema_uri": f"{evil}/schema.json"}),
                ("ask", {"base_url": evil}),
                ("ask", {"model": {"name": "openai:m", "base_url": evil}}),
                ("ask", {"model": ["openai:m", {"name": "openai:m", "base_url": evil}]}),
                ("ask", {"model": f"openai:m@{evil}"}),
                ("ask", {"api_key": "x", "http_client": evil, "proxy": evil}),
            ):
                body = {"request": {"query": "q"}, "tool_name": tool, "tool_options": options}
                client.post("/v1/runs", json=body)
            for request in (
                {"query": evil},
                {"messages": [{"role": "user", "content": [image]}]},
                {"query": "q", "schema_uri": evil, "base_url": evil, "$ref": evil},
            ):
                client.post("/v1/runs", json={"request": request, "tool_name": "ask"})
            fields = {"base_url": evil, "api_base": evil, "proxy": evil, "model": "m", "messages": []}
            for header in ({}, {"Host": "localhost", "X-Forwarded-Host": trap.place, "Forwarded": f"host={evil}"}):
                client.post("/v1/chat/completions", json=fields, headers=header)
            client.post("/v1/chat/completions", json=fields | {"model": evil})
            client.post("/v1/plan", json={"request": {"schema_uri": evil}})
        assert upstream.bodies
    assert trap.hits == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_provider_that_sends_us_elsewhere_is_not_followed_and_our_key_stays_here(
    serve: Serve, trap: Trap, status: int
) -> None:
    with wire((status, {"Location": f"{trap.url}/v1/chat/completions"}, b"")) as upstream:
        model = Model("openai:m", base_url=upstream.url, api_key=CANARY)
        claude = Model("anthropic:m", base_url=upstream.url.removesuffix("/v1"), api_key=CANARY)
        service = serve(
            LLMTool("ask", model=model), LLMTool("claude", model=claude), models={"m": (model,), "c": (claude,)}
        )
        with service.client() as client:
            for stream in (False, True):
                body = {"model": "m", "messages": [], "stream": stream}
                assert client.post("/v1/chat/completions", json=body).status_code >= 300
                assert client.post("/v1/messages", json=body | {"model": "c"}).status_code >= 300
            for tool in ("ask", "claude"):
                told = client.post("/v1/runs", json={"request": "q", "tool_name": tool}).json()
                assert told["status"] == "failed"
        assert upstream.bodies
    assert trap.hits == []


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_secret_is_in_any_answer_event_page_metric_span_log_or_file(
    serve: Serve,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    spans: Any,
) -> None:
    """The key of the provider, which repeats it in an error, in an answer that is broken, and in a stream; the key of
    the client; and one in the environment."""
    caplog.set_level(logging.DEBUG)
    keys = Ring(a={"admin": True})
    mine = keys.secrets["a"]
    told = json.dumps({"error": {"message": f"Incorrect API key provided: {CANARY}", "code": CANARY}}).encode()
    shown: list[str] = []
    with wire((401, JSON, told), (200, JSON, b"no json " + CANARY.encode()), (503, JSON, told)) as upstream:
        model = Model("openai:m", base_url=upstream.url, api_key=CANARY)
        service = serve(
            LLMTool("ask", model=model),
            ScriptedTool("t", err(401), OK("fine"), provider="p"),
            models={"m": (model,)},
            keys=keys.ring,
            runs=str(tmp_path / "runs.db"),
        )
        with service.client(mine) as client:
            for tool in ("ask", "ask", "ask", "t"):
                body = {"request": "x", "tool_name": tool, "options": {"streaming": True}}
                answer = client.post("/v1/runs", json=body, headers={"Idempotency-Key": f"k-{tool}-{len(shown)}"})
                shown.append(str(answer.headers) + answer.text)
                run_id = answer.json()["id"]
                pages = (f"/v1/runs/{run_id}", f"/v1/runs/{run_id}/events", f"/view/runs/{run_id}/shown")
                shown += [client.get(path).text for path in pages]
            for stream in (False, True):
                body = {"model": "m", "messages": [], "stream": stream}
                shown.append(client.post("/v1/chat/completions", json=body).text)
            paths = ["/metrics", "/v1/runs", "/v1/models", "/v1/breakers", "/v1/tools", "/v1/budgets", "/openapi.json"]
            shown += [client.get(path).text for path in (*paths, "/view/runs", "/view/providers/shown", "/nowhere")]
        assert any(CANARY in str(headers) for headers in upstream.headers)
    shown += [json.dumps(dict(span.attributes or {}), default=str) + str(span.events) for span in spans()]
    assert len(spans()) > 10
    shown += [file.read_bytes().decode("utf-8", "replace") for file in tmp_path.iterdir()]
    logged = [
        f"{record.msg}{record.args}{record.exc_text}"
        for record in caplog.records
        if not record.name.startswith(("http", "openai"))
    ]
    shown += [*logged, *capfd.readouterr()]
    assert len("".join(shown)) > 20_000
    assert [text[:400] for text in shown if CANARY in text] == []
    assert [text[:400] for text in shown if mine in text] == []
