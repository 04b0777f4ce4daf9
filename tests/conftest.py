"""What holds for every test: virtual time in unit tests, no way to another machine, and real servers on this one."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from servers import PostgresServer, RedisServer
from steer_llm_sdk.testing import VirtualTimeLoop

# A shell that runs the tests in the background has Ctrl-C ignored, and so would the commands that are started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["steer_llm_sdk.testing.fixtures"]

UNIT = Path(__file__).parent / "unit"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real_time: run this unit test on the real clock")
    # How long one example takes says more about the machine than about the code.
    settings.register_profile("without_deadline", deadline=None)
    settings.load_profile("without_deadline")


def pytest_collection_finish() -> None:
    """What was collected stays: the garbage collector need not look at a million objects again and again."""
    gc.collect()
    gc.freeze()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Unit tests run in virtual time unless they are marked `real_time`; integration tests run in real time."""
    if item.path.is_relative_to(UNIT) and item.get_closest_marker("real_time") is None:
        return {"virtual": VirtualTimeLoop}
    return {"real": asyncio.new_event_loop}


class ReachedOut(RuntimeError):
    """A test tried to reach another machine."""


_reached: list[str] = []


def _stay_here(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        address = args[1]
        host = address[0] if isinstance(address, tuple) else "localhost"
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    if not _is_here(host):
        _reached.append(str(host))
        raise ReachedOut(f"a test tried to reach {host}; tests may talk to this machine only")


def _is_here(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


sys.addaudithook(_stay_here)


@pytest.fixture(autouse=True)
def _only_this_machine() -> Iterator[None]:
    """Fail a test that tried to leave, even where the code under test swallowed the refusal."""
    _reached.clear()
    yield
    assert not _reached, f"the test tried to reach {', '.join(_reached)}"


@pytest.fixture
def reached_out() -> list[str]:
    """The hosts that the running test was kept from reaching; a test that expects some clears the list."""
    return _reached


@pytest.fixture(autouse=True)
def _no_configuration_of_this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keys and models the environment names, the tests know nothing of them."""
    for name in ("STEER_MODEL", "STEER_STORE", "STEER_CONFIG", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis of our own, to stop, kill, pause and start; whatever a test did to it, the next `redis_url` finds it up.

    `TEST_REDIS_URL` does not apply: that one is somebody else's to stop.
    """
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL of our own, as `redis_server` is."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """An empty database: of `redis_server`, or of TEST_REDIS_URL, whose databases from 0 on are emptied for it."""
    import redis

    given = os.environ.get("TEST_REDIS_URL")
    if given is None:
        server = request.getfixturevalue("redis_server")
        server.start()
        server.resume()
        url = server.url
    else:
        worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        url = f"{given.rstrip('/').removesuffix('/0')}/{worker}"
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()
    return url


_databases = itertools.count(1)


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A new database, of `postgres_server` or of the server that TEST_POSTGRES_DSN names (a URL, may create one)."""
    from urllib.parse import urlsplit

    import psycopg
    from psycopg.sql import SQL, Identifier

    given = os.environ.get("TEST_POSTGRES_DSN")
    if given is None:
        server = request.getfixturevalue("postgres_server")
        server.start()
        server.resume()
        given = server.url
    name = f"steer_{os.getpid()}_{next(_databases)}"
    with psycopg.connect(given, autocommit=True) as connection:
        connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
    yield urlsplit(given)._replace(path=f"/{name}").geturl()
    if "TEST_POSTGRES_DSN" not in os.environ:
        server.start()  # A test may have left it down.
        server.resume()
    with psycopg.connect(given, autocommit=True) as connection:
        connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))
