"""A provider that keeps each request as it came over the wire, and answers with bytes of the test's choosing."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Headers = dict[str, str] | list[tuple[str, str]]


@dataclass
class Wire:
    """`answers`: status, headers, body; the last one again and again. A body of a list is sent piece by piece; headers
    of a list may have a name twice."""

    answers: list[tuple[int, Headers, bytes | list[bytes]]]
    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


JSON = {"Content-Type": "application/json"}
SSE = {"Content-Type": "text/event-stream"}


@contextmanager
def wire(*answers: tuple[int, Headers, bytes | list[bytes]]) -> Iterator[Wire]:
    told = Wire(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            told.headers.append({name.lower(): value for name, value in self.headers.items()})
            status, headers, body = told.answers[min(len(told.bodies), len(told.answers)) - 1]
            self.send_response(status)
            for name, value in headers.items() if isinstance(headers, dict) else headers:
                self.send_header(name, value)
            if isinstance(body, bytes):
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for piece in [body] if isinstance(body, bytes) else body:
                self.wfile.write(piece)
                self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    with listening(Handler) as told.url:
        yield told


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server on a thread of its own, by its URL for clients of OpenAI's format."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http{'' if tls is None else 's'}://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
