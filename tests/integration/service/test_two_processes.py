"""Two processes on one table of runs: what is asked of one and carried out by the other; and what is left of a process
that was killed. Here the two are services in threads, each with its own loop and orchestrator."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from served import CERTIFICATES, Service
from test_runs import ASYNC, sse

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration import ReliableOrchestrator
from steer_llm_sdk.reliability import IdempotencyManager
from steer_llm_sdk.reliability.stores.memory import MemoryStore
from steer_llm_sdk.reliability.stores.sqlite import SqliteStore
from steer_llm_sdk.service import create_app
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, err

Serve = Callable[..., Service]
BODY = {"request": "x", "tool_name": "t", "options": {"streaming": True}}


@pytest.fixture
def table(tmp_path: Path) -> str:
    return str(tmp_path / "runs.db")


def test_a_run_is_seen_and_followed_at_the_other_process(serve: Serve, table: str) -> None:
    here, there = serve(ScriptedTool("t", err(503), OK("done", after=3)), runs=table), serve(runs=table)
    with here.client() as a, there.client() as b:
        told = a.post("/v1/runs", json=BODY, headers=ASYNC).json()
        assert b.get(f"/v1/runs/{told['id']}").json()["state"] == "running"
        (listed,) = b.get("/v1/runs").json()["runs"]
        assert (listed["id"], listed["state"]) == (told["id"], "running")
        events = sse(b.get(told["events"]).text)
        assert [each["event"] for each in events[:1] + events[-2:]] == ["start", "complete", "end"]
        assert "retry_attempt" in json.dumps(events)
        assert [int(each["id"]) for each in events[:-1]] == list(range(1, len(events)))
        assert b.get(f"/v1/runs/{told['id']}").json()["content"] == "done"
        assert sse(a.get(told["events"]).text) == events
        assert sse(b.get(told["events"], headers={"Last-Event-ID": "1"}).text) == events[1:]


def test_a_run_that_is_sent_again_elsewhere_has_its_id_or_is_422(serve: Serve, table: str) -> None:
    tool = ScriptedTool("t", OK("done", after=1))
    here, there = serve(tool, runs=table), serve(tool, runs=table)
    headers = ASYNC | {"Idempotency-Key": "k"}
    with here.client() as a, there.client() as b:
        first = a.post("/v1/runs", json=BODY, headers=headers)
        again = b.post("/v1/runs", json=BODY, headers=headers)
        other = b.post("/v1/runs", json=BODY | {"request": "y"}, headers=headers)
        assert (again.json()["id"], again.headers["idempotent-replayed"]) == (first.json()["id"], "true")
        assert other.status_code == 422
        assert there.ended(b, first.json()["id"])["content"] == "done"
        assert b.post("/v1/runs", json=BODY, headers=headers).json() == {**first.json(), "state": "succeeded"}
    assert len(tool.calls) == 1


def test_a_run_is_cancelled_at_the_other_process(serve: Serve, table: str) -> None:
    tool = ScriptedTool("t", HANG)
    here, there = serve(tool, runs=table), serve(runs=table)
    with here.client() as a, there.client() as b:
        run_id = a.post("/v1/runs", json=BODY, headers=ASYNC).json()["id"]
        assert b.delete(f"/v1/runs/{run_id}").status_code == 202
        assert there.ended(b, run_id)["state"] == "cancelled"
        assert here.ended(a, run_id)["state"] == "cancelled"
        assert tool.cancelled == 1


def test_a_run_that_is_waited_for_is_seen_at_the_other_process(serve: Serve, table: str) -> None:
    here, there = serve(ScriptedTool("t", HANG), runs=table), serve(runs=table)
    with here.client() as a, there.client() as b:
        with pytest.raises(httpx2.TimeoutException):
            a.post("/v1/runs", json=BODY, timeout=1.0)
        (run,) = b.get("/v1/runs").json()["runs"]
        assert there.ended(b, run["id"])["state"] == "cancelled"


def test_the_events_of_a_run_reach_two_followers_elsewhere(serve: Serve, table: str) -> None:
    here, there = serve(ScriptedTool("t", OK("done", after=1.0)), runs=table), serve(runs=table)
    with here.client() as a, there.client() as b, there.client() as c:
        told = a.post("/v1/runs", json=BODY, headers=ASYNC).json()
        with b.stream("GET", told["events"]) as first, c.stream("GET", told["events"]) as second:
            texts = ["".join(stream.iter_text()) for stream in (first, second)]
        assert texts[0] == texts[1]
        assert json.loads(sse(texts[0])[-1]["data"]) == {"state": "succeeded", "error": None}


def test_a_process_that_only_begins_takes_nobody_for_dead(serve: Serve, table: str) -> None:
    here = serve(ScriptedTool("t", OK("done", after=1.0)), runs=table)
    with here.client() as a:
        run_id = a.post("/v1/runs", json=BODY, headers=ASYNC).json()["id"]
        with serve(runs=table).client() as b:
            assert b.get(f"/v1/runs/{run_id}").json()["state"] == "running"
        assert here.ended(a, run_id)["state"] == "succeeded"


def test_an_orphan_is_found_once_and_ends_as_interrupted(serve: Serve, table: str) -> None:
    serve(runs=table)
    with sqlite3.connect(table) as database:  # As a process leaves it that was killed.
        record = json.dumps({"request": "x", "output": None, "error": None})
        database.execute(
            "INSERT INTO steer_runs (id, tenant, created, state, tool, owner, record, events)"
            " VALUES ('orphan', 'default', ?, 'running', 't', 'nobody', ?, '[]')",
            (time.time(), record),
        )
        begun = {"id": 1, "type": "start", "metadata": {"tool_name": "t"}, "at_ms": 0.1}
        database.execute("INSERT INTO steer_live VALUES ('orphan', 1, ?)", (json.dumps(begun),))
    with serve(runs=table).client() as client:
        told = client.get("/v1/runs/orphan").json()
        assert (told["state"], told["error"]["type"], told["error"]["is_retryable"]) == (
            "interrupted",
            "Interrupted",
            True,
        )
        assert "send the request again" in told["error"]["message"]
        events = sse(client.get("/v1/runs/orphan/events").text)
        assert [each["event"] for each in events] == ["start", "end"]
        assert "interrupted" in client.get("/view/runs/orphan/shown").text
        assert client.delete("/v1/runs/orphan").status_code == 204


def test_an_orchestrator_with_a_store_of_its_own_keeps_it_and_one_in_memory_gets_that_of_the_runs(table: str) -> None:
    own = MemoryStore()
    kept = ReliableOrchestrator(store=own)
    given = ReliableOrchestrator(idempotency_manager=IdempotencyManager(ttl_seconds=60))
    alone = ReliableOrchestrator()
    create_app(kept, runs=table)
    create_app(given, runs=table)
    create_app(alone, runs=":memory:")
    assert kept.idempotency_manager.claims is own
    assert isinstance(given.idempotency_manager.claims, SqliteStore)
    assert given.idempotency_manager.ttl_seconds == 60
    assert isinstance(alone.idempotency_manager.claims, MemoryStore)


def test_a_database_is_for_durable_runs(serve: Serve) -> None:
    with pytest.raises(InvalidRequest, match="--durable"):
        serve(runs="postgresql://nobody@127.0.0.1:1/none")


# ── real processes ───────────────────────────────────────────────────────────────────────────────────────────────────

APP = """
import asyncio, sys
from steer_llm_sdk.orchestration import ReliableOrchestrator, Tool, ToolRegistry
class T(Tool):
    name = "t"
    async def execute(self, request, options=None, event_manager=None):
        await asyncio.sleep(request["seconds"])
        return request["seconds"]
registry = ToolRegistry()
registry.register_tool(T())
orchestrator = ReliableOrchestrator(registry=registry)
"""


@contextmanager
def command(
    folder: Path, *more: str, app: str = "app:registry"
) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    (folder / "app.py").write_text(APP)
    asked = ["serve", "--port", "0", "--app", app, *more]
    child = subprocess.Popen(
        [sys.executable, "-m", "steer_llm_sdk.cli", *asked], cwd=folder, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stderr is not None
        url = child.stderr.readline().split()[3]
        with httpx2.Client(base_url=url, timeout=30, verify=CERTIFICATES) as client:
            end = time.monotonic() + 60
            while not is_ready(client):
                assert time.monotonic() < end
                time.sleep(0.05)
            yield child, client
    finally:
        child.kill()
        child.wait()
        child.stderr.close()  # type: ignore[union-attr]


def is_ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def sent(client: httpx2.Client, seconds: float, **headers: str) -> dict[str, Any]:
    answer = client.post("/v1/runs", json={"request": {"seconds": seconds}, "tool_name": "t"}, headers=headers)
    told: dict[str, Any] = answer.json()
    assert answer.status_code in (200, 202), told
    return told


def test_what_was_accepted_before_a_kill_is_interrupted_at_the_next_start(tmp_path: Path) -> None:
    with command(tmp_path) as (child, client):
        run_id = sent(client, 60, **ASYNC)["id"]
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    with command(tmp_path) as (_, client):
        assert client.get(f"/v1/runs/{run_id}").json()["state"] == "interrupted"


def test_what_is_under_way_at_a_sigterm_ends_and_what_comes_then_is_refused(tmp_path: Path) -> None:
    with command(tmp_path) as (child, client):
        run_id = sent(client, 2.0, **ASYNC)["id"]
        with client.stream("GET", f"/v1/runs/{run_id}/events") as following:
            lines = following.iter_lines()
            assert next(lines)
            child.send_signal(signal.SIGTERM)
            assert "event: end" in list(lines)  # Whoever follows sees the end.
        assert child.wait(15) == -signal.SIGTERM  # which uvicorn raises again once it is done
        with pytest.raises(httpx2.TransportError):
            client.get("/readyz")
    with command(tmp_path) as (_, client):
        told = client.get(f"/v1/runs/{run_id}").json()
        assert (told["state"], told["content"]) == ("succeeded", 2.0)


def test_what_takes_longer_than_there_is_time_at_a_sigterm_is_interrupted(tmp_path: Path) -> None:
    with command(tmp_path) as (child, client):
        run_id = sent(client, 60, **ASYNC)["id"]
        began = time.monotonic()
        child.send_signal(signal.SIGTERM)
        child.wait(30)
        assert time.monotonic() - began > 9
    with command(tmp_path) as (_, client):
        assert client.get(f"/v1/runs/{run_id}").json()["state"] == "interrupted"


@pytest.mark.parametrize("app", ["app:registry", "app:orchestrator"])
def test_workers_share_a_port_and_a_key(tmp_path: Path, app: str) -> None:
    with command(tmp_path, "--workers", "2", app=app) as (child, client):
        answers = [
            httpx2.post(
                f"{client.base_url}/v1/runs",
                json={"request": {"seconds": 0.1}, "tool_name": "t"},
                headers={"Idempotency-Key": "k"},
                verify=CERTIFICATES,
                timeout=30,
            )
            for _ in range(8)  # each on a connection of its own, so that both are asked
        ]
        assert [answer.status_code for answer in answers] == [200] * 8
        assert sum("idempotent-replayed" in answer.headers for answer in answers) == 7
        run_id = sent(client, 1.0, **ASYNC)["id"]
        for _ in range(8):
            answer = httpx2.get(f"{client.base_url}/v1/runs/{run_id}", verify=CERTIFICATES, timeout=30)
            assert answer.status_code == 200
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0
    with command(tmp_path, app=app) as (_, client):
        body, headers = {"request": {"seconds": 0.1}, "tool_name": "t"}, {"Idempotency-Key": "k"}
        assert client.post("/v1/runs", json=body, headers=headers).headers["Idempotent-Replayed"] == "true"


def test_a_durable_run_goes_on_in_another_process(tmp_path: Path) -> None:
    with command(tmp_path, "--durable") as (child, client):
        run_id = sent(client, 3.0, **ASYNC)["id"]
        sse_line = client.stream("GET", f"/v1/runs/{run_id}/events")
        with sse_line as following:
            assert next(following.iter_lines())  # It is at work.
            child.send_signal(signal.SIGKILL)
            child.wait(10)
    with command(tmp_path, "--durable") as (_, client):
        events = sse(client.get(f"/v1/runs/{run_id}/events", headers={"Last-Event-ID": "0"}).text)
        assert events[-1]["event"] == "end"
        assert [int(each["id"]) for each in events[:-1]] == list(range(1, len(events)))
        told = client.get(f"/v1/runs/{run_id}").json()
        assert (told["state"], told["content"]) == ("succeeded", 3.0)


def test_a_durable_run_that_is_sent_again_has_its_id_or_is_422(tmp_path: Path) -> None:
    headers = ASYNC | {"Idempotency-Key": "k"}
    with command(tmp_path, "--durable") as (_, client):
        first, again = (client.post("/v1/runs", json=durable(0.2), headers=headers) for _ in range(2))
        assert again.json()["id"] == first.json()["id"]
        assert client.post("/v1/runs", json=durable(0.3), headers=headers).status_code == 422
        client.get(first.json()["events"])
        third = client.post("/v1/runs", json=durable(0.2), headers=headers)
        assert third.json() == {**first.json(), "state": "succeeded"}
    marked = [answer.headers.get("idempotent-replayed") for answer in (first, again, third)]
    assert marked == [None, "true", "true"]


def durable(seconds: float) -> dict[str, Any]:
    return {"request": {"seconds": seconds}, "tool_name": "t"}


def test_a_durable_run_is_cancelled(tmp_path: Path) -> None:
    with command(tmp_path, "--durable") as (_, client):
        run_id = sent(client, 60, **ASYNC)["id"]
        assert client.delete(f"/v1/runs/{run_id}").status_code == 202
        assert client.get(f"/v1/runs/{run_id}").json()["state"] == "cancelled"
        waited = sent(client, 0.1)
        assert (waited["status"], waited["content"]) == ("succeeded", 0.1)
