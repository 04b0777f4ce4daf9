"""The servers that other tests lean on: they keep their data over a kill, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import pytest
import redis

from servers import APT, PostgresServer, RedisServer, Server, ServerMissing

TESTS = Path(__file__).parents[2]


def test_a_durable_redis_keeps_what_it_said_over_a_kill() -> None:
    with RedisServer(durable=True) as server:
        with redis.Redis.from_url(server.url) as connection:
            connection.set("key", "value")
        server.kill()
        assert not server.running
        server.start()
        with redis.Redis.from_url(server.url) as connection:
            assert connection.get("key") == b"value"


def test_postgres_keeps_what_was_committed_over_a_kill() -> None:
    with PostgresServer() as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept (value int)")
            connection.execute("INSERT INTO kept VALUES (7)")
        server.kill()
        server.start()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT value FROM kept").fetchall() == [(7,)]


def test_a_paused_server_is_silent_and_not_gone(redis_server: RedisServer, redis_url: str) -> None:
    redis_server.pause()
    with redis.Redis.from_url(redis_url, socket_timeout=0.1, retry=None) as connection:
        with pytest.raises(redis.TimeoutError):
            connection.ping()
        redis_server.resume()
        assert connection.ping()


def test_each_test_gets_an_empty_redis_even_after_one_that_left_it_down(
    redis_server: RedisServer, request: pytest.FixtureRequest
) -> None:
    redis_server.kill()
    with redis.Redis.from_url(request.getfixturevalue("redis_url")) as connection:
        assert connection.dbsize() == 0


def test_each_test_gets_a_new_database(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        found = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert found == (0,)


@pytest.mark.parametrize("kind", [RedisServer, PostgresServer])
def test_a_server_dies_with_the_process_that_started_it(kind: type[Server]) -> None:
    # A directory of its own, for the one who dies cannot tidy up, and one that the user `postgres` may enter.
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    starts = f"import time, servers; s = servers.{kind.__name__}(); s.start(); print(s.pid, flush=True); time.sleep(60)"
    starter = subprocess.Popen(
        [sys.executable, "-c", starts], cwd=TESTS, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(place)}
    )
    assert starter.stdout is not None
    server = int(starter.stdout.readline())
    assert _lives(server)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    end = time.monotonic() + 20
    while _lives(server) and time.monotonic() < end:
        time.sleep(0.02)
    shutil.rmtree(place)
    assert not _lives(server)


def test_a_missing_binary_is_an_error_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServerMissing) as caught:
        RedisServer()
    assert APT in str(caught.value)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
