"""Which models could be used (keys in the environment, servers on this machine), and the date of the price list."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from steer_llm_sdk.providers._endpoint import LOCAL_SERVERS
from steer_llm_sdk.providers.models import APIS

_LARGEST = 1_000_000


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A server that answers: its prefix, its address, and the models it lists."""

    name: str
    base_url: str
    models: tuple[str, ...]


def found_keys() -> list[str]:
    """The names of the environment variables that hold a key; never what they hold."""
    return [api.key_variable for api in APIS.values() if os.environ.get(api.key_variable, "").strip()]


async def local_servers(timeout: float = 0.2, at: Mapping[str, str] = LOCAL_SERVERS) -> list[LocalServer]:
    """The servers that list models at the addresses `at`, by prefix; all are asked at once, for `timeout` seconds.

    Asking loads no model and costs nothing. A server that answers anything else is left out.
    """
    found = await asyncio.gather(*(_ask(name, base_url, timeout) for name, base_url in at.items()))
    return [server for server in found if server is not None]


def price_table_date() -> date | None:
    """The day of the newest price change in the price list that is installed: the list is no older than that.

    None without the extra `llm`.
    """
    if find_spec("genai_prices") is None:
        return None
    from steer_llm_sdk.providers._llm.prices import newest_price

    return newest_price()


async def _ask(name: str, base_url: str, timeout: float) -> LocalServer | None:
    try:
        async with asyncio.timeout(timeout):
            body = json.loads(await _get(base_url + "/models"))
        return LocalServer(name, base_url, _listed(body))
    except (OSError, ValueError, LookupError, TypeError, EOFError):
        return None


def _listed(body: Any) -> tuple[str, ...]:
    return tuple(str(entry["id"]) for entry in body["data"])


async def _get(url: str) -> bytes:
    """The body of a page on this machine. OSError or ValueError where there is none."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    try:
        writer.write(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode("ascii"))
        return await _answer(reader)
    finally:
        writer.close()


async def _answer(reader: asyncio.StreamReader) -> bytes:
    import h11

    wire = h11.Connection(h11.CLIENT)
    # h11 reads a response only after a request. The request was sent already, so these bytes are dropped.
    wire.send(h11.Request(method="GET", target="/", headers=[("Host", "localhost")]))
    wire.send(h11.EndOfMessage())
    body = bytearray()
    try:
        while len(body) <= _LARGEST:
            event = wire.next_event()
            if event is h11.NEED_DATA:
                wire.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
                return bytes(body)
    except h11.RemoteProtocolError as error:
        raise ValueError(f"no HTTP: {error}") from error
    raise ValueError(f"the list of models is longer than {_LARGEST} bytes")
