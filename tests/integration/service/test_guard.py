"""Who may ask, how much, how often, and what nobody gets to see."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from served import Service
from starlette.responses import Response
from starlette.testclient import TestClient
from typer.testing import CliRunner

from steer_llm_sdk.cli.main import app as commands
from steer_llm_sdk.errors import InvalidRequest, ToolNotFound
from steer_llm_sdk.orchestration import ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.service import Key, KeyRing, Limits, create_app, guard, new_key
from steer_llm_sdk.testing import OK, ScriptedTool

Serve = Callable[..., Service]
BODY = {"request": "x", "tool_name": "t"}


class Ring:
    """Keys by the name of their tenant."""

    def __init__(self, **more: dict[str, object]) -> None:
        made = {tenant: new_key() for tenant in more}
        self.secrets = {tenant: secret for tenant, (secret, _) in made.items()}
        self.ring = KeyRing(
            tuple(Key(tenant=tenant, sha256=digest, **more[tenant]) for tenant, (_, digest) in made.items())  # type: ignore[arg-type]
        )


# ── tenants ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_a_key_or_with_a_wrong_one_nothing_is_shown(serve: Serve) -> None:
    service = serve(ScriptedTool("t"), keys=Ring(a={}).ring)
    paths = ["/v1/runs", "/v1/runs/x", "/v1/tools", "/v1/breakers", "/v1/budgets", "/v1/models", "/openapi.json"]
    paths += ["/view/runs", "/view/runs/x/shown", "/view/providers/shown", "/view/runs/x/evidence/shown"]
    for key in (None, "steer-wrong", "ü"):
        with service.client() as client:
            headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
            for path in paths:
                answer = client.get(path, headers=headers)
                assert (path, answer.status_code) == (path, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
            assert client.post("/v1/runs", json=BODY, headers=headers).status_code == 401
            for route in ("/v1/chat/completions", "/v1/messages"):
                assert client.post(route, json={}, headers=headers).status_code == 401
                if key is not None:
                    named = {"X-Api-Key": key.encode()}
                    assert client.post(route, json={}, headers=named).status_code == 401
            for open_ in ("/", "/healthz", "/readyz", "/view/providers", "/static/view.js"):
                assert client.get(open_, headers=headers).status_code == 200
            for open_ in ("/view/runs/x", "/view/runs/x/evidence"):
                assert client.get(open_, headers=headers).status_code == 200


def test_what_is_one_tenants_is_not_there_for_another(serve: Serve) -> None:
    keys = Ring(a={}, b={})
    tool = ScriptedTool("t", OK("of a", usage={"total_tokens": 1}), OK("of b"))
    service = serve(tool, keys=keys.ring)
    with service.client(keys.secrets["a"]) as a, service.client(keys.secrets["b"]) as b:
        key = {"Idempotency-Key": "same"}
        body = BODY | {"options": {"budgets": [{"name": "team", "tokens": 10_000}]}}
        run_id = a.post("/v1/runs", json=body, headers=key).json()["id"]
        views = ("/view/runs/{}/shown", "/view/runs/{}/evidence/shown")
        for path in ("/v1/runs/{}", "/v1/runs/{}/events", *views):
            foreign, missing = b.get(path.format(run_id)), b.get(path.format("0" * 32))
            assert foreign.status_code == missing.status_code == 404
            assert foreign.json() == missing.json()
        for path in views:
            foreign, missing = (b.get(path.format(each), headers={"HX-Request": "true"}) for each in (run_id, "0" * 32))
            assert "It is not there" in foreign.text
            assert (foreign.status_code, foreign.text) == (missing.status_code, missing.text)
        assert b.delete(f"/v1/runs/{run_id}").status_code == 404
        assert b.get("/v1/runs").json() == {"runs": []}
        assert run_id[:8] not in b.get("/view/runs").text
        assert b.get("/v1/budgets").json() == {"budgets": {}}
        # The same key of idempotency is another one.
        assert b.post("/v1/runs", json=BODY, headers=key).json()["content"] == "of b"
        assert a.get(f"/v1/runs/{run_id}").json()["content"] == "of a"


def test_only_an_admin_forces_breakers(serve: Serve) -> None:
    keys = Ring(a={}, root={"admin": True})
    service = serve(ScriptedTool("t", provider="p"), keys=keys.ring)
    with service.client(keys.secrets["a"]) as a, service.client(keys.secrets["root"]) as root:
        a.post("/v1/runs", json=BODY)
        assert a.post("/v1/breakers/p", json={"action": "open"}).status_code == 403
        assert a.post("/view/providers/open", content="name=p").status_code == 403
        assert "Force open" not in a.get("/view/providers/shown").text
        assert root.post("/v1/breakers/p", json={"action": "open"}).status_code == 200
        assert "Force open" in root.get("/view/providers/shown").text


def test_beyond_its_rate_a_tenant_is_told_when_to_come_back(serve: Serve) -> None:
    keys = Ring(a={"runs_per_minute": 2}, b={})
    service = serve(ScriptedTool("t"), keys=keys.ring)
    with service.client(keys.secrets["a"]) as a, service.client(keys.secrets["b"]) as b:
        first, second, third = (a.post("/v1/runs", json=BODY) for _ in range(3))
        assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
        assert [each.headers["ratelimit-remaining"] for each in (first, second, third)] == ["1", "0", "0"]
        assert third.headers["ratelimit-limit"] == "2"
        assert 25 <= int(third.headers["retry-after"]) <= 30
        assert third.headers["content-type"] == "application/problem+json"
        assert a.get("/v1/runs").status_code == 200
        assert "ratelimit-limit" not in b.post("/v1/runs", json=BODY).headers


def test_a_second_key_of_a_tenant_with_another_rate_does_not_fill_the_first_ones(serve: Serve) -> None:
    (one, of_one), (two, of_two) = new_key(), new_key()
    ring = KeyRing(
        (Key(tenant="a", sha256=of_one, runs_per_minute=1), Key(tenant="a", sha256=of_two, runs_per_minute=600))
    )
    service = serve(ScriptedTool("t"), keys=ring)
    with service.client(one) as slow, service.client(two) as fast:
        statuses = [client.post("/v1/runs", json=BODY).status_code for client in (slow, fast, slow)]
    assert statuses == [200, 200, 429]


# ── limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_body_that_is_too_long_or_too_deep_is_not_read(serve: Serve) -> None:
    tool = ScriptedTool("t")
    with serve(tool, limits=Limits(body=1000, nesting=8)).client() as client:
        assert client.post("/v1/runs", content=b"x" * 1001).status_code == 413
        assert client.post("/v1/runs", content=iter([b"x" * 600] * 2)).status_code == 413  # no length was told
        deep = '{"request": ' + "[" * 9 + "]" * 9 + "}"
        answer = client.post("/v1/runs", content=deep, headers={"Content-Type": "application/json"})
        assert (answer.status_code, "nested" in answer.json()["detail"]) == (400, True)
        texts = BODY | {"request": "[{" * 50 + '"'}
        assert client.post("/v1/runs", json=texts).status_code == 200
        assert len(tool.calls) == 1


@pytest.mark.parametrize(
    ("kind", "body", "status", "said"),
    [
        ("application/json; charset=utf-8", b'{"request": 1, "tool_name": "t"}', 200, ""),
        ("application/vnd.run+json", b'{"request": 1, "tool_name": "t"}', 200, ""),
        ("text/plain", b'{"request": 1, "tool_name": "t"}', 400, "body: send JSON, as Content-Type: application/json"),
        ("", b'{"request": 1, "tool_name": "t"}', 400, "body: send JSON, as Content-Type: application/json"),
        ("application/jsonlines", b"{}", 400, "body: send JSON, as Content-Type: application/json"),
        ("application/json", b"", 400, "body: it is needed; give it"),
        ("application/json", b"{", 400, "it is no JSON from character 1 on"),
        ("application/json", b'{"request": "\xff"}', 400, "body: it is no UTF-8"),
        ("application/json", b"[1]", 400, "body: Input should be"),
        ("application/json", b"{}", 400, "request: it is needed; give it"),
        ("application/json", b'{"request": 1, "tool": "t"}', 400, "tool: there is no such field; leave it out"),
        ("application/json", b'{"request": 1, "tool_options": 3}', 400, "tool_options: Input should be"),
    ],
)
def test_the_body_of_a_run_is_read_or_it_is_said_what_is_wrong_with_it(
    serve: Serve, kind: str, body: bytes, status: int, said: str
) -> None:
    with serve(ScriptedTool("t")).client() as client:
        answer = client.post("/v1/runs", content=body, headers={"Content-Type": kind} if kind else {})
        assert (answer.status_code, said in answer.json().get("detail", "")) == (status, True), answer.text


def test_a_long_body_is_looked_at_beside_the_loop(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for ten megabytes, in which nobody else would be served."""
    holds_the_loop, whole = [], guard.check_values

    def look(body: bytes, *, passed_on: bool) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            holds_the_loop.append(False)
        else:
            holds_the_loop.append(True)
        whole(body, passed_on=passed_on)

    monkeypatch.setattr(guard, "check_values", look)
    with serve(ScriptedTool("t")).client() as client:
        assert client.post("/v1/runs", json=BODY | {"request": "NaN " * 20_000}).status_code == 200
        refused = client.post("/v1/runs", content=b'{"request": [' + b"1, " * 20_000 + b"NaN]}")
    assert (refused.status_code, holds_the_loop) == (400, [False, False])


OPENAI, ANTHROPIC = "/v1/chat/completions", "/v1/messages"
OWN = ("/v1/runs", "/v1/plan", "/v1/breakers/p")
CONSTANTS = [(value, f"{value} is no JSON value") for value in ("NaN", "Infinity", "-Infinity")]
# Those that are passed on as they are leave it to the provider what it makes of such a number, which is JSON.
LARGE = [(value, f"{value[:40]} is too large a number") for value in ("1e999", "-1.5E+0400", "9" * 400 + ".5")]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [(path, *case) for path in (*OWN, OPENAI, ANTHROPIC) for case in CONSTANTS]
    + [(path, *case) for path in OWN for case in LARGE],
)
def test_what_only_a_lenient_reader_takes_for_json_is_refused_on_each_route(
    serve: Serve, path: str, value: str, said: str
) -> None:
    tool = ScriptedTool("t")
    body = '{"model": "recorded:demo", "action": "auto", "request": {"a": VALUE}, "messages": [], "top_p": VALUE}'
    headers = {"Content-Type": "application/json"}
    with serve(tool, simulated=True).client() as client:
        answer = client.post(path, content=body.replace("VALUE", value), headers=headers)
        wide = client.post(path, content=body.replace("VALUE", value).encode("utf-16"), headers=headers)
    assert (answer.status_code, said in answer.text) == (400, True)
    assert (wide.status_code, "not UTF-8" in wide.text) == (400, True)
    assert tool.calls == []


def test_what_only_looks_like_it_is_run(serve: Serve) -> None:
    tool = ScriptedTool("t")
    request = {'NaN \\" Infinity': 'a "NaN", -Infinity, 1e999', "b": 1e308, "c": int("9" * 400), "d": 1e-999}
    with serve(tool).client() as client:
        content = json.dumps(BODY | {"request": request}).replace('"d": 0.0', '"d": 1e-999')
        answer = client.post("/v1/runs", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, tool.calls[0].request) == (200, request)


@pytest.mark.parametrize(
    ("path", "method", "content", "status"),
    [
        (OPENAI, "POST", b"{", 400),
        (OPENAI, "POST", b'{"model": "x", "a": ' + b"[" * 9 + b"]" * 9 + b"}", 400),
        (OPENAI, "POST", b'{"model": "x", "top_p": NaN}', 400),
        (OPENAI, "POST", b"x" * 1001, 413),
        (OPENAI, "GET", b"", 405),
        (f"{OPENAI}/none", "GET", b"", 404),
        ("/v1/models/none", "GET", b"", 404),
        (ANTHROPIC, "POST", b"{", 400),
        (ANTHROPIC, "POST", b"[" * 9 + b"]" * 9, 400),
        (ANTHROPIC, "POST", b"x" * 1001, 413),
        (ANTHROPIC, "GET", b"", 405),
        (f"{ANTHROPIC}/count_tokens", "POST", b"{}", 404),
    ],
)
def test_each_refusal_has_the_form_that_clients_of_its_path_read(
    serve: Serve, path: str, method: str, content: bytes, status: int
) -> None:
    with serve(limits=Limits(body=1000, nesting=8)).client() as client:
        # What a browser accepts makes no page of an API.
        answer = client.request(method, path, content=content, headers={"Accept": "text/html,*/*"})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    said = answer.json()
    assert isinstance(said["error"]["message"], str)
    if path.startswith(ANTHROPIC):
        kind = {404: "not_found_error", 413: "request_too_large"}.get(status, "invalid_request_error")
        assert (said["type"], said["error"]["type"]) == ("error", kind)
    else:
        assert isinstance(said["error"]["type"], str)
        assert set(said["error"]) == {"message", "type", "param", "code"}
    if status == 405:
        assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(("path", "kind"), [(OPENAI, "invalid_request_error"), (ANTHROPIC, "authentication_error")])
def test_a_missing_key_is_told_in_the_form_of_the_path(serve: Serve, path: str, kind: str) -> None:
    with serve(keys=Ring(a={}).ring).client() as client:
        answer = client.post(path, json={})
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, kind)


@pytest.mark.parametrize(
    ("path", "accept", "kind"),
    [
        ("/nosuchpage", "text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8"),
        ("/static/none.js", "text/html", "text/html; charset=utf-8"),
        ("/nosuchpage", "*/*", "application/problem+json"),
        ("/v1/nosuch", "text/html", "application/problem+json"),
        ("/v1/runs/none", "text/html", "application/problem+json"),
    ],
)
def test_a_browser_gets_a_page_where_there_is_nothing_and_a_program_a_problem(
    serve: Serve, path: str, accept: str, kind: str
) -> None:
    with serve().client() as client:
        answer = client.get(path, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (404, kind)
    if "html" in kind:
        assert '<a href="/">' in answer.text
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_a_body_that_does_not_come_is_not_waited_for(serve: Serve) -> None:
    service = serve(limits=Limits(body_seconds=0.2))
    said = raw(service, b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
    assert said.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (
            b"GET /v1/tools HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
            400,
        ),
        (b"GET /v1/tools HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nIdempotency-Key: a\r\nIdempotency-Key: b\r\n\r\n", 400),
        (b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"POST /v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n{}", 400),
        (b"GET /v1/tools HTTP/1.1\r\nHost: evil.example\r\n\r\n", 421),
        (b"GET /v1/tools HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n", 421),
        (b"GET /v1/tools HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 17_000 + b"\r\n\r\n", 431),
        (b"GET /v1/tools HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close\r\n\r\n", 200),
        (b"GET /v1/tools HTTP/1.1\r\nHost: LOCALHOST\r\nConnection: close\r\n\r\n", 200),
    ],
    ids=lambda given: None if isinstance(given, bytes) else str(given),
)
def test_headers_that_could_be_read_in_two_ways_are_refused(serve: Serve, head: bytes, status: int) -> None:
    assert raw(serve(), head).startswith(b"HTTP/1.1 %d " % status)


def test_a_page_of_another_origin_may_not_act(serve: Serve) -> None:
    tool = ScriptedTool("t", provider="p")
    service = serve(tool)
    with service.client() as client:
        foreign = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
        for path in ("/v1/runs", "/v1/chat/completions", "/view/providers/open", "/v1/breakers/p"):
            assert client.post(path, content="{}", headers=foreign).status_code == 403
        assert client.post("/v1/runs", json=BODY, headers={"Origin": "null"}).status_code == 403
        assert client.delete("/v1/runs/x", headers=foreign).status_code == 403
        assert client.post("/v1/runs", json=BODY, headers={"Origin": service.url}).status_code == 200
        answer = client.options("/v1/runs", headers={**foreign, "Access-Control-Request-Method": "POST"})
        assert "access-control-allow-origin" not in answer.headers


def test_every_answer_has_the_headers_that_keep_it_where_it_is(serve: Serve) -> None:
    with serve().client() as client:
        for path in ("/", "/v1/tools", "/nowhere", "/view/runs"):
            headers = client.get(path).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert "server" not in headers
            policy = headers.get("content-security-policy", "default-src 'none'")
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy


def raw(service: Service, sent: bytes) -> bytes:
    place = urlsplit(service.url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(sent)
        return connection.recv(65_536)


# ── keys on disk, and the command ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no \\[\\[key\\]\\]"),
        ("[[key", "no TOML"),
        ('[[key]]\ntenant = "a"\nsha256 = "short"', "key.0.sha256"),
        ('[[key]]\ntenant = "a/b"\nsha256 = "' + "0" * 64 + '"', "key.0.tenant"),
        ('[[key]]\ntenant = "a"\nsha256 = "' + "0" * 64 + '"\ntypo = 1', "key.0.typo"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used_says_where(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=said):
        KeyRing.read(file)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_beyond_loopback_the_command_wants_keys(host: str) -> None:
    ran = CliRunner().invoke(commands, ["serve", "--host", host, "--port", "0"])
    assert (ran.exit_code, "--keys" in ran.stderr) == (2, True)


def test_the_command_serves_with_the_keys_it_made_and_leaves_when_told(tmp_path: Path) -> None:
    made = CliRunner().invoke(commands, ["keys", "new", "team-a"])
    (secret,) = re.findall(r"steer-[\w-]{40,}", made.stderr)
    assert secret not in made.stdout
    (tmp_path / "keys.toml").write_text(made.stdout)
    with subprocess.Popen(
        [sys.executable, "-m", "steer_llm_sdk.cli", "serve", "--port", "0", "--keys", "keys.toml"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        (url,) = re.findall(r"http://\S+", process.stderr.readline())
        service = Service(url, None)  # type: ignore[arg-type]
        with service.client(secret) as client:
            wait_until_ready(client)
            assert client.get("/v1/tools").status_code == 200
            assert client.get("/v1/tools", headers={"Authorization": "Bearer no"}).status_code == 401
            body = {"model": "recorded:demo", "messages": [{"role": "user", "content": "x"}]}
            refused = client.post("/v1/chat/completions", json=body)
            assert (refused.status_code, "--simulated" in refused.text) == (400, True)
        process.terminate()
        rest = process.stderr.read()
        assert process.wait(20) in (0, -15, 143)
    assert secret not in rest
    assert secret.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


def test_a_simulated_service_has_a_tool_that_asks_the_recording(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "steer_llm_sdk.cli", "serve", "--port", "0", "--simulated"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        (url,) = re.findall(r"http://\S+", process.stderr.readline())
        with Service(url, None).client() as client:  # type: ignore[arg-type]
            wait_until_ready(client)
            asked = client.post("/v1/runs", json={"request": "crux-test-#24", "tool_name": "ask"}).json()
            planned = client.post("/v1/runs", json={"request": "Analyze this text"}).json()
        process.terminate()
    assert (asked["status"], asked["metadata"]["simulated"]) == ("succeeded", True)
    assert asked["content"]["evidence_bundle"]["meta"]["k"] == 5
    assert planned["metadata"]["tool_name"] == "text_analyzer"


def wait_until_ready(client: object) -> None:
    from httpx2 import Client, ConnectError

    assert isinstance(client, Client)
    for _ in range(200):
        try:
            if client.get("/readyz").status_code == 200:
                return
        except ConnectError:
            pass
        time.sleep(0.05)
    raise AssertionError("it did not get ready")


def test_what_the_owner_puts_before_the_service_is_asked_first_everywhere() -> None:
    app = create_app(ReliableOrchestrator(registry=ToolRegistry()))

    class Denied:
        def __init__(self, app: Any) -> None:
            pass

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await Response(status_code=403)(scope, receive, send)

    app.add_middleware(Denied)
    client = TestClient(app)
    for method, path in (
        ("POST", "/v1/runs"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/messages"),
        ("GET", "/v1/runs/x/events"),
        ("GET", "/v1/runs"),
    ):
        assert client.request(method, path).status_code == 403


def test_handlers_of_the_owner_answer_what_is_raised_everywhere() -> None:
    app = create_app(ReliableOrchestrator(registry=ToolRegistry()))

    async def gone(*_: Any) -> Response:
        return Response(status_code=410)

    app.add_exception_handler(ToolNotFound, gone)
    with TestClient(app) as client:
        assert client.post("/v1/runs", json={"request": "x", "tool_name": "none"}).status_code == 410
