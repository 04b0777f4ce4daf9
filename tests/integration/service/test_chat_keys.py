"""Idempotency-Key on the passage for clients of OpenAI's format: the answer is given again, byte for byte."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx2
import pytest
from served import Service
from test_chat import ASKED, CALL, PIECES, at
from upstream import JSON, SSE, listening, wire

from steer_llm_sdk.orchestration import ReliabilityConfig

Serve = Callable[..., Service]
KEY = {"Idempotency-Key": "k1"}
OTHER = {"Content-Type": "application/json", "openai-processing-ms": "12"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_is_given_again_byte_for_byte_and_not_bought_again(serve: Serve, stream: bool) -> None:
    answer = (200, SSE, [*PIECES[:1], "ü€".encode(), *PIECES[1:]]) if stream else (200, OTHER, CALL)
    with wire(answer, (500, JSON, b"{}")) as upstream, serve(**at(upstream.url)).client() as client:
        asked = ASKED | {"stream": True} if stream else ASKED
        first, again, third = (client.post("/v1/chat/completions", json=asked, headers=KEY) for _ in range(3))
        assert first.status_code == again.status_code == third.status_code == 200
        assert first.content == again.content == third.content
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["content-type"] == first.headers["content-type"]
        assert again.headers.get("openai-processing-ms") == first.headers.get("openai-processing-ms")
        assert len(upstream.bodies) == 1
        assert upstream.headers[0]["idempotency-key"] == "k1"


def test_without_a_key_nothing_is_kept(serve: Serve) -> None:
    with wire((200, JSON, CALL)) as upstream, serve(**at(upstream.url)).client() as client:
        for _ in range(2):
            client.post("/v1/chat/completions", json=ASKED)
        assert len(upstream.bodies) == 2


def test_a_key_with_other_bytes_is_422(serve: Serve) -> None:
    with wire((200, JSON, CALL)) as upstream, serve(**at(upstream.url)).client() as client:
        client.post("/v1/chat/completions", json=ASKED, headers=KEY)
        answer = client.post("/v1/chat/completions", json=ASKED | {"stream": True}, headers=KEY)
        assert (answer.status_code, answer.json()["error"]["type"]) == (422, "ConflictError")
        assert len(upstream.bodies) == 1


def test_what_the_provider_refused_for_good_is_told_again_and_not_asked_again(serve: Serve) -> None:
    said = b'{"error":{"message":"no such field: zap","type":"invalid_request_error","param":"zap","code":null}}'
    with wire((400, JSON, said), (200, JSON, CALL)) as upstream, serve(**at(upstream.url)).client() as client:
        first, again = (client.post("/v1/chat/completions", json=ASKED, headers=KEY) for _ in range(2))
        assert (first.status_code, first.content) == (400, said)
        assert (again.status_code, again.headers["idempotent-replayed"]) == (400, "true")
        assert again.json()["error"]["message"] == "no such field: zap"
        assert again.json()["error"]["code"] == "invalid_request_error"
        assert len(upstream.bodies) == 1


def test_what_may_be_tried_again_is_not_kept(serve: Serve) -> None:
    failures = [(500, JSON, b"{}")] * 3
    with wire(*failures, (200, JSON, CALL)) as upstream, serve(**at(upstream.url)).client() as client:
        first, again = (client.post("/v1/chat/completions", json=ASKED, headers=KEY) for _ in range(2))
        assert (first.status_code, again.status_code, again.content) == (500, 200, CALL)
        assert "idempotent-replayed" not in again.headers
        assert len(upstream.bodies) == 4


def test_a_stream_that_broke_is_not_kept(serve: Serve) -> None:
    with wire((200, SSE, PIECES[:2]), (200, SSE, PIECES)) as upstream, serve(**at(upstream.url)).client() as client:
        asked = ASKED | {"stream": True}
        first, again = (client.post("/v1/chat/completions", json=asked, headers=KEY) for _ in range(2))
        assert b"end marker" in first.content
        assert again.content == b"".join(PIECES)
        assert len(upstream.bodies) == 2


def test_an_answer_that_is_too_long_to_be_kept_is_passed_on_and_never_bought_again(serve: Serve) -> None:
    long = CALL.replace(b'"new":1.50', b'"new":"' + b"x" * 1_000_000 + b'"')
    with wire((200, JSON, long)) as upstream, serve(**at(upstream.url)).client() as client:
        first, again = (client.post("/v1/chat/completions", json=ASKED, headers=KEY) for _ in range(2))
        assert (first.status_code, first.content) == (200, long)
        assert again.status_code == 409
        assert "1000000 bytes" in again.json()["error"]["message"]
        assert len(upstream.bodies) == 1


# ── under way ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Held:
    """A provider that begins to answer, and ends when it is let go."""

    def __init__(self) -> None:
        self.asked = 0
        self.began = threading.Event()
        self.go = threading.Event()
        self.url = ""


@contextmanager
def held(pieces: list[bytes], headers: dict[str, str]) -> Iterator[Held]:
    told = Held()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.asked += 1
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(pieces[0])
            self.wfile.flush()
            told.began.set()
            told.go.wait(20)
            for piece in pieces[1:]:
                self.wfile.write(piece)
            self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    with listening(Handler) as told.url:
        try:
            yield told
        finally:
            told.go.set()


@pytest.mark.parametrize(("choice", "status"), [("wait", 200), ("raise", 409)])
def test_a_second_one_waits_for_the_first_or_is_409_by_choice(serve: Serve, choice: Any, status: int) -> None:
    answers: list[httpx2.Response] = []
    with held([CALL[:50], CALL[50:]], JSON) as provider:
        service = serve(reliability=ReliabilityConfig(on_duplicate=choice), **at(provider.url))
        with service.client() as client, service.client() as other:
            first = threading.Thread(target=lambda: answers.append(ask(client)))
            first.start()
            assert provider.began.wait(10)
            second = threading.Thread(target=lambda: answers.append(ask(other)))
            second.start()
            if choice == "raise":
                second.join(10)
            provider.go.set()
            first.join(10)
            second.join(10)
    assert sorted(answer.status_code for answer in answers) == [200, status]
    assert provider.asked == 1
    if choice == "raise":
        assert int(answers[0].headers["retry-after"]) >= 1
    else:
        assert [answer.content for answer in answers] == [CALL, CALL]
        assert sum("idempotent-replayed" in answer.headers for answer in answers) == 1


def ask(client: httpx2.Client, **more: Any) -> httpx2.Response:
    return client.post("/v1/chat/completions", json=ASKED | more, headers=KEY)


def test_a_stream_whose_caller_has_gone_goes_on_for_its_key(serve: Serve) -> None:
    many = [PIECES[0], *[b": filling\n\n" * 2000] * 20, *PIECES[1:]]
    with held(many, SSE) as provider:
        service = serve(**at(provider.url))
        with service.client() as client:
            body = json.dumps(ASKED | {"stream": True})
            with client.stream("POST", "/v1/chat/completions", content=body, headers=KEY) as answer:
                assert next(answer.iter_raw())
        time.sleep(0.2)  # until the service has noticed
        provider.go.set()
        with service.client() as client:
            again = client.post("/v1/chat/completions", content=body, headers=KEY)
        assert again.headers["idempotent-replayed"] == "true"
        assert (again.status_code, again.content) == (200, b"".join(many))
        assert provider.asked == 1


# ── what goes along ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_headers_for_the_provider_go_along_and_those_for_us_do_not(serve: Serve) -> None:
    meant = {
        "OpenAI-Organization": "org-1",
        "OpenAI-Project": "proj-1",
        "OpenAI-Beta": "assistants=v2",
        "Anthropic-Beta": "tools-2026",
        "X-Client-Request-Id": "mine-1",
    }
    ours = {
        "Authorization": "Bearer mine",
        "X-Api-Key": "secret",
        "Cookie": "a=b",
        "X-Forwarded-For": "10.0.0.1",
        "OpenAI-Api-Key": "secret",
        "Prefer": "wait=1",
        "Accept-Language": "de",
    }
    with wire((200, JSON, CALL)) as upstream, serve(**at(upstream.url)).client() as client:
        assert client.post("/v1/chat/completions", json=ASKED, headers=meant | ours).status_code == 200
    got = upstream.headers[0]
    assert {name: got.get(name.lower()) for name in meant} == meant
    assert got["authorization"] == "Bearer sk-canary-0123456789abcdefghij"
    for name in ours.keys() - {"Authorization"}:
        assert name.lower() not in got
