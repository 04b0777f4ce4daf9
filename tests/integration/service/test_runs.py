"""Runs over HTTP: waited for, accepted, followed, cancelled, repeated under a key."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from served import Service, serving

from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.orchestration.tools import LLMBundleTool
from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.providers.simulated import shipped_recording
from steer_llm_sdk.service import create_app
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, err

Serve = Callable[..., Service]
ASYNC = {"Prefer": "respond-async"}


def test_a_run_is_answered_with_its_output_and_found_again(serve: Serve) -> None:
    service = serve(ScriptedTool("t", OK("yes", usage={"total_tokens": 3}, cost_usd=0.5)))
    with service.client() as client:
        answer = client.post("/v1/runs", json={"request": "hello", "tool_name": "t", "options": {"metadata": {"a": 1}}})
        told = answer.json()
        assert (answer.status_code, told["status"], told["content"]) == (200, "succeeded", "yes")
        assert (told["usage"], told["cost_usd"], told["metadata"]["user"]) == ({"total_tokens": 3}, 0.5, {"a": 1})
        assert answer.headers["location"] == f"/v1/runs/{told['id']}"
        found = client.get(answer.headers["location"]).json()
        assert {name: found[name] for name in ("id", "state", "content", "tool")} == {
            "id": told["id"],
            "state": "succeeded",
            "content": "yes",
            "tool": "t",
        }
        (listed,) = client.get("/v1/runs").json()["runs"]
        assert (listed["id"], listed["state"], listed["content"]) == (told["id"], "succeeded", None)


def test_a_tool_that_fails_is_an_answer_that_says_so(serve: Serve) -> None:
    service = serve(ScriptedTool("t", err(ValueError("no"))))
    with service.client() as client:
        answer = client.post("/v1/runs", json={"request": "x", "tool_name": "t"})
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")


def test_the_trace_of_a_caller_is_joined(serve: Serve) -> None:
    service = serve(ScriptedTool("t"))
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with service.client() as client:
        answer = client.post(
            "/v1/runs",
            json={"request": "x", "tool_name": "t"},
            headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"},
        )
    assert answer.json()["metadata"]["trace_id"] == trace


def test_ended_runs_outlive_the_service(serve: Serve, tmp_path: Path) -> None:
    file = str(tmp_path / "runs.db")
    with serving(ScriptedTool("t"), runs=file) as first, first.client() as client:
        run_id = client.post("/v1/runs", json={"request": "x", "tool_name": "t"}).json()["id"]
    with serve(runs=file).client() as client:
        assert client.get(f"/v1/runs/{run_id}").json()["content"] == "ok"
        assert "event: end" in client.get(f"/v1/runs/{run_id}/events").text


# ── accepted ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_accepted_run_is_followed_to_its_end(serve: Serve) -> None:
    service = serve(ScriptedTool("t", err(503), OK("done", after=0.05)))
    with service.client() as client:
        answer = client.post(
            "/v1/runs", json={"request": "x", "tool_name": "t", "options": {"streaming": True}}, headers=ASYNC
        )
        told = answer.json()
        assert (answer.status_code, told["state"]) == (202, "running")
        assert answer.headers["preference-applied"] == "respond-async"
        events = sse(client.get(told["events"]).text)
        assert [event["event"] for event in events[:1] + events[-1:]] == ["start", "end"]
        assert "retry_attempt" in json.dumps(events)
        assert json.loads(events[-1]["data"]) == {"state": "succeeded", "error": None}
        assert client.get(f"/v1/runs/{told['id']}").json()["content"] == "done"


def test_a_follower_goes_on_after_the_last_event_it_saw(serve: Serve) -> None:
    service = serve(ScriptedTool("t", err(503), OK("done")))
    with service.client() as client:
        body = {"request": "x", "tool_name": "t", "options": {"streaming": True}}
        where = client.post("/v1/runs", json=body, headers=ASYNC).json()["events"]
        all_ = sse(client.get(where).text)
        rest = sse(client.get(where, headers={"Last-Event-ID": all_[0]["id"]}).text)
        assert len(all_) > 2
        assert rest == all_[1:]
        for unusable in ("none", "9" * 5000):
            answer = client.get(where, headers={"Last-Event-ID": unusable})
            assert answer.status_code == 200


def test_what_cannot_be_run_is_not_accepted(serve: Serve) -> None:
    service = serve(ScriptedTool("t"))
    with service.client() as client:
        for body, status in (
            ({"request": "x", "options": {"max_parallel": 0}}, 400),
            ({"request": "x", "tool_name": "nope"}, 404),
            ({"request": "x", "tool_name": "t", "options": {"bogus": 1}}, 400),
        ):
            assert client.post("/v1/runs", json=body, headers=ASYNC).status_code == status
        assert client.get("/v1/runs").json() == {"runs": []}


def test_a_run_is_cancelled_once(serve: Serve) -> None:
    tool = ScriptedTool("t", HANG)
    service = serve(tool)
    with service.client() as client:
        run_id = client.post("/v1/runs", json={"request": "x", "tool_name": "t"}, headers=ASYNC).json()["id"]
        assert client.delete(f"/v1/runs/{run_id}").status_code == 202
        assert service.ended(client, run_id)["state"] == "cancelled"
        assert client.delete(f"/v1/runs/{run_id}").status_code == 204
        assert tool.running == 0


def test_a_caller_who_goes_away_takes_the_run_along(serve: Serve) -> None:
    tool = ScriptedTool("t", HANG)
    service = serve(tool)
    with service.client() as client:
        with pytest.raises(Exception, match="timed out"):
            client.post("/v1/runs", json={"request": "x", "tool_name": "t"}, timeout=0.5)
        (run,) = client.get("/v1/runs").json()["runs"]
        assert service.ended(client, run["id"])["state"] == "cancelled"
        assert tool.cancelled == 1


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "k"}], ids=["without a key", "with a key"])
def test_whoever_waits_for_a_run_that_is_cancelled_is_told_so(serve: Serve, key: dict[str, str]) -> None:
    tool = ScriptedTool("t", HANG, OK("later"))
    service = serve(tool)
    answers: list[httpx2.Response] = []
    with service.client() as client, service.client() as waiting:
        body = {"request": "x", "tool_name": "t"}
        waits = threading.Thread(target=lambda: answers.append(waiting.post("/v1/runs", json=body, headers=key)))
        waits.start()
        end = time.monotonic() + 10
        while not (runs := client.get("/v1/runs").json()["runs"]) or not tool.running:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert client.delete(f"/v1/runs/{runs[0]['id']}").status_code == 202
        waits.join(10)
        assert (answers[0].status_code, answers[0].json()["error"]) == (409, "Cancelled")
        assert waiting.post("/v1/runs", json=body).json()["content"] == "later"  # on the same connection


async def test_a_caller_in_this_process_keeps_his_own_deadline_while_the_service_stops() -> None:
    registry = ToolRegistry()
    registry.register_tool(tool := ScriptedTool("t", HANG))
    app = create_app(ReliableOrchestrator(registry=registry))
    here = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost")

    async def asks() -> None:
        async with asyncio.timeout(0.2):
            await here.post("/v1/runs", json={"request": "x", "tool_name": "t"})

    async with app.router.lifespan_context(app), here:
        asyncio.get_running_loop().call_later(0.05, app.state.steer.stop)
        with pytest.raises(TimeoutError):
            await asks()
    assert tool.cancelled == 1


def test_no_event_is_dropped_because_the_machine_is_busy(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock by which handlers are held to their time is a second after the last one."""
    seconds = itertools.count()
    clock = SimpleNamespace(time=time.time, perf_counter=lambda: float(next(seconds)))
    monkeypatch.setattr("steer_llm_sdk.streaming.manager.time", clock)
    with serve(ScriptedTool("t", err(503), OK("done"))).client() as client:
        run = client.post("/v1/runs", json={"request": "x", "tool_name": "t", "options": {"streaming": True}}).json()
        events = [each["event"] for each in sse(client.get(f"/v1/runs/{run['id']}/events").text)]
    assert (events[0], events[-2:], "delta" in events) == ("start", ["complete", "end"], True)
    assert next(seconds) > 3


def test_events_and_attempts_are_on_one_clock(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day may be set while a run is under way."""
    monkeypatch.setattr("steer_llm_sdk.streaming.manager.time.time", lambda: 1.0)
    with serve(ScriptedTool("t", err(503, after=0.05), OK("done", after=0.05))).client() as client:
        run = client.post("/v1/runs", json={"request": "x", "tool_name": "t", "options": {"streaming": True}}).json()
        events = {
            each["event"]: json.loads(each["data"]) for each in sse(client.get(f"/v1/runs/{run['id']}/events").text)
        }
        first, second = run["per_agent"]["t"]["timeline"]
        waits = events["delta"]["at_ms"]
        assert events["start"]["at_ms"] <= first["started_ms"] + 1
        assert first["started_ms"] + first["elapsed_ms"] - 1 <= waits <= second["started_ms"] + 1
        assert waits <= events["complete"]["at_ms"] <= run["elapsed_ms"] + 1000
        drawn = client.get(f"/view/runs/{run['id']}/shown").text
        said = drawn[drawn.index('aria-label="planned') :].partition(">")[0]
        assert [said.index(word) for word in ("attempt 1", "waits", "attempt 2")] == sorted(
            said.index(word) for word in ("attempt 1", "waits", "attempt 2")
        )


# ── keys of idempotency ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_repeated_key_is_answered_from_memory(serve: Serve) -> None:
    tool = ScriptedTool("t", OK("one"), OK("two"))
    with serve(tool).client() as client:
        body, key = {"request": "x", "tool_name": "t"}, {"Idempotency-Key": "k1"}
        first, again = (client.post("/v1/runs", json=body, headers=key) for _ in range(2))
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        assert again.json()["content"] == first.json()["content"] == "one"
        assert len(tool.calls) == 1


def test_a_key_with_another_request_is_422(serve: Serve) -> None:
    with serve(ScriptedTool("t")).client() as client:
        key = {"Idempotency-Key": "k1"}
        client.post("/v1/runs", json={"request": "x", "tool_name": "t"}, headers=key)
        answer = client.post("/v1/runs", json={"request": "y", "tool_name": "t"}, headers=key)
        assert (answer.status_code, answer.json()["error"]) == (422, "ConflictError")


def test_two_ways_to_say_the_key_must_agree(serve: Serve) -> None:
    with serve(ScriptedTool("t")).client() as client:
        body = {"request": "x", "tool_name": "t", "options": {"idempotency_key": "a"}}
        assert client.post("/v1/runs", json=body, headers={"Idempotency-Key": "b"}).status_code == 400


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_tools_plans_breakers_budgets_and_health(serve: Serve) -> None:
    service = serve(ScriptedTool("t", provider="p", capabilities=["text"]))
    with service.client() as client:
        assert [tool["name"] for tool in client.get("/v1/tools").json()["tools"]] == ["t"]
        assert client.post("/v1/plan", json={"request": "x"}).json()["selected_tool"] == "t"
        assert client.get("/v1/breakers").json() == {"breakers": {}}
        assert client.post("/v1/breakers/p", json={"action": "open"}).status_code == 404
        client.post("/v1/runs", json={"request": "x", "tool_name": "t"})
        for action, mode, state in (
            ("open", "forced_open", "open"),
            ("auto", "auto", "closed"),
            ("reset", "auto", "closed"),
        ):
            told = client.post("/v1/breakers/p", json={"action": action}).json()
            assert (told["mode"], told["state"]) == (mode, state)
        assert client.post("/v1/breakers/p", json={"action": "explode"}).status_code == 400
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready", "runs": 0}


def test_a_forced_open_breaker_refuses_and_a_reset_one_serves(serve: Serve) -> None:
    tool = ScriptedTool("t", provider="p")
    with serve(tool).client() as client:
        body = {"request": "x", "tool_name": "t"}
        client.post("/v1/runs", json=body)
        client.post("/v1/breakers/p", json={"action": "open"})
        assert client.post("/v1/runs", json=body).json()["status"] == "failed"
        client.post("/v1/breakers/p", json={"action": "reset"})
        assert client.post("/v1/runs", json=body).json()["status"] == "succeeded"
        assert len(tool.calls) == 2


def test_shared_budgets_are_shown_by_the_name_that_the_caller_gave(serve: Serve) -> None:
    with serve(ScriptedTool("t", OK(usage={"total_tokens": 7}))).client() as client:
        options = {"budgets": [{"name": "team", "tokens": 1000}]}
        answer = client.post("/v1/runs", json={"request": "x", "tool_name": "t", "options": options})
        assert answer.status_code == 200, answer.text
        assert list(client.get("/v1/budgets").json()["budgets"]) == ["team"]


@pytest.mark.parametrize(
    ("prefer", "status"),
    [
        (["Respond-Async"], 202),
        (["wait=5, respond-async; x=y"], 202),
        (["wait=5", "RESPOND-ASYNC"], 202),
        (['x="respond-async"'], 200),
        (['x="a, respond-async"'], 200),
        (['x="a\\", respond-async'], 200),
        (["respond-asynchronously"], 200),
        (["x; respond-async"], 200),
    ],
)
def test_a_preference_is_read_by_its_name(serve: Serve, prefer: list[str], status: int) -> None:
    with serve(ScriptedTool("t")).client() as client:
        headers = [("Prefer", value) for value in prefer]
        assert client.post("/v1/runs", json=BODY, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/runs", "GET, POST"),
        ("POST", "/v1/runs/x", "DELETE, GET"),
        ("POST", "/healthz", "GET, HEAD"),
        ("GET", "/v1/plan", "POST"),
    ],
)
def test_a_405_names_every_method_that_there_is(serve: Serve, method: str, path: str, allowed: str) -> None:
    with serve().client() as client:
        answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_health_is_asked_for_by_head_too(serve: Serve) -> None:
    with serve().client() as client:
        answers = [client.head(path) for path in ("/healthz", "/readyz")]
    assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"")] * 2


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/plan", "/v1/chat/completions", "/v1/messages"])
def test_a_body_that_is_coded_is_415(serve: Serve, path: str) -> None:
    with serve().client() as client:
        body, headers = gzip.compress(b'{"request": "x"}'), {"Content-Encoding": "GZip"}
        answer = client.post(path, content=body, headers=headers)
        assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "identity")
        assert client.post("/v1/runs", json=BODY, headers={"Content-Encoding": "identity"}).status_code == 404


KEYED = {**ASYNC, "Idempotency-Key": "k"}
BODY = {"request": "x", "tool_name": "t"}


def test_a_key_that_had_another_request_is_422_at_once_for_a_run_that_nobody_waits_for(serve: Serve) -> None:
    service = serve(ScriptedTool("t", HANG), ScriptedTool("quick"))
    with service.client() as client:
        hanging = client.post("/v1/runs", json=BODY, headers=KEYED).json()["id"]
        client.post("/v1/runs", json=BODY | {"tool_name": "quick"}, headers={"Idempotency-Key": "ended"})
        for key in ("k", "ended"):
            other = client.post("/v1/runs", json=BODY | {"request": "y"}, headers=KEYED | {"Idempotency-Key": key})
            assert (other.status_code, other.json()["error"]) == (422, "ConflictError")
        assert len(client.get("/v1/runs").json()["runs"]) == 2
        client.delete(f"/v1/runs/{hanging}")  # Else the service gives it its time at the end.


def test_a_repeated_run_that_nobody_waits_for_has_the_id_of_the_first(serve: Serve) -> None:
    tool = ScriptedTool("t", OK("once", after=0.3))
    service = serve(tool)
    with service.client() as client:
        first, joined = (client.post("/v1/runs", json=BODY, headers=KEYED) for _ in range(2))
        assert service.ended(client, first.json()["id"])["content"] == "once"
        again = client.post("/v1/runs", json=BODY, headers=KEYED)
        waited = client.post("/v1/runs", json=BODY, headers={"Idempotency-Key": "k"})
    assert [answer.status_code for answer in (first, joined, again)] == [202, 202, 202]
    assert len({answer.json()["id"] for answer in (first, joined, again)}) == 1
    assert [answer.json()["state"] for answer in (first, joined, again)] == ["running", "running", "succeeded"]
    assert again.headers["location"] == f"/v1/runs/{first.json()['id']}"
    marked = [answer.headers.get("idempotent-replayed") for answer in (first, joined, again, waited)]
    assert marked == [None, "true", "true", "true"]
    assert (waited.json()["content"], len(tool.calls)) == ("once", 1)


def test_a_run_that_was_waited_for_is_the_one_that_is_accepted_again(serve: Serve) -> None:
    tool = ScriptedTool("t", OK("once"))
    with serve(tool).client() as client:
        waited = client.post("/v1/runs", json=BODY, headers={"Idempotency-Key": "k"})
        again = client.post("/v1/runs", json=BODY, headers=KEYED)
    assert again.json() == {**again.json(), "id": waited.json()["id"], "state": "succeeded"}
    assert (again.headers["idempotent-replayed"], len(tool.calls)) == ("true", 1)


def test_what_a_retry_can_cure_is_tried_again_under_an_id_of_its_own(serve: Serve) -> None:
    service = serve(ScriptedTool("t", err(503), err(503), err(503), OK("cured")))
    with service.client() as client:
        first = client.post("/v1/runs", json=BODY, headers=KEYED)
        assert service.ended(client, first.json()["id"])["state"] == "failed"
        again = client.post("/v1/runs", json=BODY, headers=KEYED)
        assert "idempotent-replayed" not in again.headers
        assert again.json()["id"] != first.json()["id"]
        assert service.ended(client, again.json()["id"])["content"] == "cured"


def test_while_a_run_with_its_key_is_under_way_a_second_one_is_409_by_choice(serve: Serve) -> None:
    service = serve(ScriptedTool("t", HANG), reliability=ReliabilityConfig(on_duplicate="raise"))
    with service.client() as client:
        run_id = client.post("/v1/runs", json=BODY, headers=KEYED).json()["id"]
        with client.stream("GET", f"/v1/runs/{run_id}/events"):
            again = client.post("/v1/runs", json=BODY, headers=KEYED)
        client.delete(f"/v1/runs/{run_id}")
    assert (again.status_code, again.json()["error"]) == (409, "InFlight")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nowhere", None, 404),
        ("PUT", "/v1/runs", "{}", 405),
        ("GET", "/v1/runs/none", None, 404),
        ("GET", "/v1/runs/..%2f..%2fetc%2fpasswd", None, 404),
        ("GET", "/v1/runs?limit=0", None, 400),
        ("POST", "/v1/runs", "{", 400),
        ("POST", "/v1/runs", '{"request": "x", "typo": 1}', 400),
        ("POST", "/v1/runs", '{"request": "x", "options": {"tenant": "other"}}', 403),
        ("POST", "/v1/runs", '{"request": "x", "options": {"request_id": "mine"}}', 400),
        ("POST", "/v1/runs", '{"request": "x", "tool_name": "t", "options": {"budget": {"tokens": 1}}}', 402),
        ("POST", "/v1/runs", '{"request": "x", "tool_name": "slow", "options": {"timeout_ms": 100}}', 504),
        ("GET", "/static/..%2fapp.py", None, 404),
        ("GET", "/view/runs/none/evidence", None, 404),
    ],
)
def test_what_is_wrong_is_told_as_a_problem(
    serve: Serve, method: str, path: str, body: str | None, status: int
) -> None:
    service = serve(ScriptedTool("t", OK(usage={"total_tokens": 9})), ScriptedTool("slow", HANG))
    with service.client() as client:
        answer = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    told = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert (told["status"], told["type"]) == (status, "about:blank")
    assert told["title"]
    assert told["detail"]


@pytest.mark.parametrize(
    ("body", "field", "way_out"),
    [
        ('{"request": ', "body", "send a JSON object"),
        ('{"request": "x", "typo": 1}', "typo", "leave it out"),
        ("{}", "request", "give it"),
    ],
)
def test_a_body_that_cannot_be_read_is_told_by_field_and_way_out(
    serve: Serve, body: str, field: str, way_out: str
) -> None:
    with serve(ScriptedTool("t")).client() as client:
        told = client.post("/v1/runs", content=body, headers={"Content-Type": "application/json"}).json()
    assert told["field"] == field
    assert told["detail"].startswith(f"{field}: ")
    assert told["detail"].endswith(way_out)


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/plan", "/v1/breakers/p"])
@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "k"}], ids=["without a key", "with a key"])
@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"request": "\xff"}', "body"),
        (b'{"request": %s}' % (b"9" * 5000), "body"),
        (b'{"request": "a\\uD800b"}', "request"),
        (b'{"request": {"x": ["\\\\\\udc00"]}}', "request"),
        (b'{"request": "x", "tool_options": {"\\ude00\\ud83d": 1}}', "tool_options"),
        (b'{"request": "x", "\\ud800": 1}', "body"),
    ],
)
def test_what_is_no_text_or_no_number_is_400_and_named(
    serve: Serve, path: str, headers: dict[str, str], body: bytes, field: str
) -> None:
    with serve(ScriptedTool("t")).client() as client:
        answer = client.post(path, content=body, headers=headers | {"Content-Type": "application/json"})
    told = answer.json()
    assert (answer.status_code, told.get("field")) == (400, field), told
    assert told["detail"].startswith(f"{field}: ")


def test_a_character_in_two_escapes_and_an_escaped_backslash_are_text(serve: Serve) -> None:
    tool = ScriptedTool("t")
    with serve(tool).client() as client:
        body = b'{"tool_name": "t", "request": {"x": "\\ud83d\\uDE00 \\\\ud800"}}'
        answer = client.post("/v1/runs", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["status"] == "succeeded"
    assert tool.calls[0].request == {"x": "\N{GRINNING FACE} \\ud800"}


@pytest.mark.parametrize(
    ("options", "field"),
    [({"redactor_cb": "x"}, "options.redactor_cb"), ({"request_id": "x"}, "options.request_id")],
)
def test_an_option_that_cannot_come_over_http_is_named(serve: Serve, options: dict[str, str], field: str) -> None:
    with serve(ScriptedTool("t")).client() as client:
        told = client.post("/v1/runs", json=BODY | {"options": options}).json()
    assert (told["status"], told["field"]) == (400, field)


def test_an_option_that_a_tool_does_not_take_is_named(serve: Serve) -> None:
    with serve(SimpleBundleTool()).client() as client:
        body = {"request": {"query": "x"}, "tool_name": "simple_bundle", "tool_options": {"k": "many"}}
        told = client.post("/v1/runs", json=body).json()
    assert told["errors"]["simple_bundle"]["field"] == told["content"]["error"]["field"] == "k"


def test_an_attempt_for_an_answer_of_a_bundle_names_it(serve: Serve) -> None:
    tools = (LLMBundleTool("ask", "recorded:demo"), ScriptedTool("t"))
    with serve(*tools, simulated=True).client() as client:
        asked = {"request": shipped_recording().questions[0].text, "tool_name": "ask"}
        told, plain = (client.post("/v1/runs", json=body, timeout=60).json() for body in (asked, BODY))
        pages = [client.get(f"/view/runs/{run['id']}/shown").text for run in (told, plain)]
    lines = told["per_agent"]["ask"]["timeline"]
    names = re.findall(r"</span> ask (r[0-9]) · recorded #1<svg", pages[0])
    assert len(names) == len(lines) >= 2
    assert {*names} == {line["replicate"] for line in lines} <= {"r1", "r2", "r3"}
    assert len({*names}) == len(names)
    assert f"ask {names[0]} attempt 1 at recorded: succeeded" in pages[0]
    assert "</span> t · t #1<svg" in pages[1]


def test_the_page_of_a_run_that_was_refused_before_a_tool_was_found_claims_none(serve: Serve) -> None:
    with serve(ScriptedTool("t", OK("x"), OK("x"))).client() as client:
        for request in ("x", "y"):
            client.post("/v1/runs", json={"request": request}, headers={"Idempotency-Key": "k"})
        refused = next(run["id"] for run in client.get("/v1/runs").json()["runs"] if run["state"] == "error")
        page = client.get(f"/view/runs/{refused}/shown").text
    assert "No tool was asked." in page
    assert "it was named" not in page


def test_curl_is_served(serve: Serve) -> None:
    service = serve(ScriptedTool("t", OK({"answer": 42})))
    asked = ["-d", '{"request": "x", "tool_name": "t"}', "-H", "Content-Type: application/json"]
    ran = subprocess.run(["curl", "-sS", *asked, f"{service.url}/v1/runs"], capture_output=True, check=True, timeout=20)
    assert json.loads(ran.stdout)["content"] == {"answer": 42}


def sse(text: str) -> list[dict[str, Any]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
