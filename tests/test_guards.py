"""No test reaches another machine, and none knows the configuration of whoever runs it."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

FAR = "192.0.2.1"  # reserved for documentation: nobody is there


def test_a_connection_to_another_machine_is_refused(reached_out: list[str]) -> None:
    with socket.socket() as mine, pytest.raises(RuntimeError, match=FAR):
        mine.connect((FAR, 80))
    assert reached_out == [FAR]
    reached_out.clear()


def test_a_name_of_another_machine_is_not_looked_up(reached_out: list[str]) -> None:
    with pytest.raises(RuntimeError, match=r"api\.example"):
        socket.getaddrinfo("api.example", 443)
    reached_out.clear()


def test_a_datagram_to_another_machine_is_refused(reached_out: list[str]) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as mine, pytest.raises(RuntimeError, match=FAR):
        mine.sendto(b"x", (FAR, 53))
    reached_out.clear()


async def test_a_connection_to_this_machine_is_let_through() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "localhost", 0)
    async with server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


def test_keys_and_models_of_the_environment_are_hidden() -> None:
    assert not {"STEER_MODEL", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"} & set(os.environ)
