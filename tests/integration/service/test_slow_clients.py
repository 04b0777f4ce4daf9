"""Clients that send their headers too slowly, or never read what they asked for."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from served import Service, serving

from steer_llm_sdk.service._server import PatientProtocol
from steer_llm_sdk.testing import HANG, OK, ScriptedTool


class Impatient(PatientProtocol):
    header_seconds = 0.5
    stalled_seconds = 0.5


@pytest.fixture
def service() -> Iterator[Service]:
    big = ScriptedTool("big", OK("x" * 20_000_000))
    with serving(ScriptedTool("t", OK("ok", after=1.0)), big, ScriptedTool("hang", HANG), http=Impatient) as running:
        yield running


def connected(service: Service) -> socket.socket:
    where = urlsplit(service.url)
    assert where.hostname is not None
    return socket.create_connection((where.hostname, where.port or 0), timeout=10)


def everything(client: socket.socket) -> bytes:
    got = b""
    while piece := client.recv(65_536):
        got += piece
    return got


def answer(client: socket.socket) -> bytes:
    got = b""
    while not got.endswith(b'{"status":"ok"}'):
        piece = client.recv(65_536)
        assert piece, got
        got += piece
    return got


def test_headers_that_do_not_begin_are_408(service: Service) -> None:
    with connected(service) as client:
        assert everything(client).startswith(b"HTTP/1.1 408 ")


def test_headers_that_drip_are_408(service: Service) -> None:
    with connected(service) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        client.settimeout(0.05)
        for _ in range(200):  # 10 s of dripping, if they were wanted.
            try:
                got = client.recv(1000)
                break
            except TimeoutError:
                client.sendall(b"a")
        assert got.startswith(b"HTTP/1.1 408 ")


def test_a_second_request_on_a_connection_has_as_long_again(service: Service) -> None:
    asked = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with connected(service) as client:
        client.sendall(asked)
        assert answer(client)
        time.sleep(0.7)  # An idle connection is no slow one.
        client.sendall(asked[:20])
        time.sleep(0.1)
        client.sendall(asked[20:])
        assert answer(client)
        client.sendall(asked[:20])
        assert everything(client).startswith(b"HTTP/1.1 408 ")


def test_a_run_that_takes_long_is_no_slow_client(service: Service) -> None:
    with service.client() as client:
        assert client.post("/v1/runs", json={"request": "x", "tool_name": "t"}).json()["content"] == "ok"


def test_an_answer_that_nobody_reads_is_given_up(service: Service) -> None:
    body = b'{"request": "x", "tool_name": "big"}'
    head = b"POST /v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with connected(service) as client:
        client.sendall(head % len(body) + body)
        client.settimeout(60)
        got = len(client.recv(1))  # It is being sent,
        time.sleep(2.0)  # and is not read for a while.
        try:
            while piece := client.recv(1_000_000):
                got += len(piece)
        except ConnectionResetError:
            pass
    assert got < 20_000_000


def test_a_body_that_was_refused_and_goes_on_is_not_read_for_ever(service: Service) -> None:
    with connected(service) as client:
        client.sendall(b"POST /v1/runs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2000000\r\n\r\n{")
        assert client.recv(65_536).startswith(b"HTTP/1.1 413 ")
        client.settimeout(0.05)
        for _ in range(200):  # 10 s of it, if it were wanted.
            try:
                client.sendall(b"a")
                rest = client.recv(1000)
                break
            except TimeoutError:
                continue
            except ConnectionError:
                rest = b""
                break
        assert rest == b""
