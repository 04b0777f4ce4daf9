"""A stream of the passage goes to the caller as it comes, and ends with him."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from served import Service
from test_chat import ASKED, PIECES, at
from test_chat_keys import held
from upstream import SSE, listening, wire

from steer_llm_sdk.orchestration import ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.service import chat, create_app

Serve = Callable[..., Service]


def test_a_caller_who_leaves_a_stream_without_a_key_takes_the_call_along(serve: Serve) -> None:
    left = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(PIECES[0])
            self.wfile.flush()
            if self.connection.recv(1) == b"":
                left.set()

        def log_message(self, *_: object) -> None:
            pass

    with listening(Handler) as url:
        service = serve(**at(url))
        with service.client() as client:
            with client.stream("POST", "/v1/chat/completions", json=ASKED | {"stream": True}) as answer:
                assert next(answer.iter_raw()) == PIECES[0]
                assert not left.is_set()
            assert left.wait(10)
            assert client.get("/readyz").status_code == 200


def test_pieces_that_come_soon_after_another_go_on_as_one(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "GATHER", 0.5)
    asked = ASKED | {"stream": True}
    with (
        held(PIECES, SSE) as provider,
        serve(**at(provider.url)).client() as client,
        client.stream("POST", "/v1/chat/completions", json=asked) as answer,
    ):
        pieces = answer.iter_raw()
        assert next(pieces) == PIECES[0]
        provider.go.set()
        assert list(pieces) == [b"".join(PIECES[1:])]


async def test_a_caller_who_cannot_be_written_to_is_no_failure_of_the_provider() -> None:
    """A server may say so where an application sends."""
    sent = []

    async def receive() -> Any:
        if not sent:
            return {"type": "http.request", "body": json.dumps(ASKED | {"stream": True}).encode()}
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent.append(message)
        raise ConnectionResetError

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b""}
    with wire((200, SSE, PIECES)) as upstream:
        orchestrator = ReliableOrchestrator(registry=ToolRegistry())
        app = create_app(orchestrator, **at(upstream.url))
        async with app.router.lifespan_context(app):
            sent_body = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
            await app({**scope, "headers": sent_body}, receive, send)
            (stats,) = orchestrator.executor.breakers.get_all_stats().values()
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert (stats["failures"], len(upstream.bodies)) == (0, 1)
