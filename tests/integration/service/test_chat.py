"""The passage for clients of OpenAI's format, compared with asking the provider directly."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from served import CERTIFICATES, Refused, Service
from upstream import JSON, SSE, Wire, wire

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.models import Model
from steer_llm_sdk.testing import OK, ScriptedTool, SimulatedProvider, err

Serve = Callable[..., Service]
MODEL = "gpt-4o-2024-05-13"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "crux-test-#0"}]}
CANARY = "sk-canary-0123456789abcdefghij"

TOOLS = {
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            },
        }
    ],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "logit_bias": {"50256": -100},
    "stream_options": {"include_usage": True},
    "temperature": 0.30000000000000004,
    "seed": 12345678901234567890,
    "metadata": {"ключ": "ü\u2028\ud83d\ude00"},
    "a_field_of_tomorrow": {"nested": [None, True, 1e-9]},
}
CALL = (
    b'{"id":"c1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":null,'
    b'"tool_calls":[{"id":"call_1","type":"function","function":{"name":"weather","arguments":"{\\"city\\": '
    b'\\"Bonn\\"}"}}]},"finish_reason":"tool_calls"}],  "usage":{"prompt_tokens":9,"completion_tokens":5,'
    b'"total_tokens":14},"new":1.50}'
)
PIECES = [
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","function":{"name":"wea',
    b'ther","arguments":""}}]}}]}\n\ndata: {"id":"c1","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,'
    b'"function":'
    b'{"arguments":"{\\"city\\""}}]}}]}\n\n: a comment\n\n',
    b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":5,"total_tokens":14}}\n\n',
    b"data: [DONE]\n\n",
]


def at(url: str, name: str = MODEL, *more: Model) -> dict[str, Any]:
    return {"models": {name: (Model(f"openai:{MODEL}", base_url=url, api_key=CANARY), *more)}}


@pytest.fixture
def upstream() -> Iterator[Wire]:
    with wire((200, JSON, CALL)) as running:
        yield running


def client_of(service: Service, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{service.url}/v1",
        api_key="any",
        max_retries=0,
        http_client=openai.DefaultHttpx2Client(verify=CERTIFICATES),
        **options,
    )


# ── the same bytes ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_answer_is_the_one_that_the_provider_gives(serve: Serve, provider: SimulatedProvider, stream: bool) -> None:
    service = serve(**at(f"{provider.base_url}/v1"))
    asked = ASKED | {"stream": stream, "stream_options": {"include_usage": True}} if stream else ASKED
    with httpx2.Client(verify=CERTIFICATES) as client:
        direct = client.post(f"{provider.base_url}/v1/chat/completions", json=asked)
        through = client.post(f"{service.url}/v1/chat/completions", json=asked)
    assert direct.status_code == through.status_code == 200
    assert direct.headers["content-type"] == through.headers["content-type"]
    # The id, the time and the fingerprint of two answers differ by themselves.
    assert own(direct.content) == own(through.content)
    assert b"usage" in through.content


def own(body: bytes) -> bytes:
    return re.sub(rb'"created":\s*\d+|chatcmpl-\w+', b"", body)


def test_a_request_arrives_byte_for_byte(serve: Serve, upstream: Wire) -> None:
    body = json.dumps(ASKED | TOOLS, indent=3).encode()
    with serve(**at(upstream.url)).client() as client:
        answer = client.post("/v1/chat/completions", content=body)
    assert upstream.bodies == [body]
    assert (answer.status_code, answer.content) == (200, CALL)


def test_only_the_name_of_the_model_is_changed_where_it_stands_for_another(serve: Serve, upstream: Wire) -> None:
    body = (
        '{ "messages": [{"role":"user","content":"\\ud800 \\"model\\": \\"x\\"", "model": "inner"}], "n": 1.0e5,'
        ' "big": 1e400,'
        ' "model" :  "fa\\u0073t", "exact": 0.10000000000000000000001 , "metadata": {"model": "fast"}}'
    )
    with serve(**at(upstream.url, "fast")).client() as client:
        answer = client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 200, answer.text
    assert upstream.bodies == [body.replace('"fa\\u0073t"', f'"{MODEL}"').encode()]


def test_a_stream_arrives_byte_for_byte(serve: Serve) -> None:
    with wire((200, SSE, PIECES)) as upstream, serve(**at(upstream.url)).client() as client:
        body = json.dumps(ASKED | TOOLS | {"stream": True}).encode()
        answer = client.post("/v1/chat/completions", content=body)
        assert upstream.bodies == [body]
        assert answer.content == b"".join(PIECES)


def test_a_header_that_comes_twice_is_passed_on_with_both_values(serve: Serve) -> None:
    twice = [*JSON.items(), ("openai-beta-x", "one"), ("OpenAI-Beta-X", "two, three"), ("X-Other", "no")]
    with wire((200, twice, CALL)) as upstream, serve(**at(upstream.url)).client() as client:
        answer = client.post("/v1/chat/completions", json=ASKED)
    assert (answer.status_code, answer.headers["openai-beta-x"]) == (200, "one, two, three")
    assert "x-other" not in answer.headers


def test_the_official_client_gets_tool_calls_and_usage(serve: Serve) -> None:
    with wire((200, JSON, CALL), (200, SSE, PIECES)) as upstream, client_of(serve(**at(upstream.url))) as client:
        whole = client.chat.completions.create(**ASKED)  # type: ignore[call-overload]
        assert whole.choices[0].message.tool_calls[0].function.arguments == '{"city": "Bonn"}'
        chunks = list(client.chat.completions.create(**ASKED, stream=True))  # type: ignore[call-overload]
        assert chunks[1].choices[0].delta.tool_calls[0].function.arguments == '{"city"'
        assert chunks[-1].usage.total_tokens == 14


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b'\xff{"model": "x"}', "body"),
        (json.dumps(ASKED).encode("utf-16"), "body"),
        (b"{}", "model"),
        (b'{"model": 3}', "model"),
        (b'{"model": "a", "model": "b"}', "model"),
        (b'{"model": "gpt", "stream": "yes"}', "stream"),
        (b'{"model": "recorded:demo"}', "model"),
        (b'{"model": "anthropic:claude"}', "model"),
        (b'{"model": "nowhere:x"}', "model"),
    ],
)
def test_what_cannot_be_passed_on_is_400_and_named(refused: Refused, body: bytes, field: str) -> None:
    assert refused("/v1/chat/completions", body)["error"]["param"] == field


def test_a_provider_is_asked_by_way_of_the_proxy_that_the_surroundings_name(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, upstream: Wire
) -> None:
    with serve(**at("http://provider.example/v1")).client() as client:
        monkeypatch.setenv("http_proxy", upstream.url.removesuffix("/v1"))
        answer = client.post("/v1/chat/completions", json=ASKED)
    assert answer.content == CALL
    assert upstream.headers[0]["host"] == "provider.example"


def test_models_are_listed_and_recorded_ones_only_where_it_simulates(serve: Serve) -> None:
    with serve(simulated=True).client() as client, serve(**at("http://127.0.0.1:1/v1", "fast")).client() as strict:
        question = client.get("/v1/models/recorded:demo").json()["question"]
        answer = client.post(
            "/v1/chat/completions", json={"model": "recorded:demo", "messages": [{"role": "user", "content": question}]}
        )
        assert answer.json()["choices"][0]["message"]["content"]
        assert answer.headers["x-simulated"]
        assert [each["id"] for each in strict.get("/v1/models").json()["data"]] == ["fast"]
        assert strict.get("/v1/models/recorded:demo").status_code == 400
        assert strict.get("/v1/models/none").status_code == 404
        for named in (
            {"tool_options": {"model": "recorded:demo"}},
            {"tool_options": {"model": ["a:b", " recorded:x"]}},
        ):
            assert strict.post("/v1/runs", json={"request": "x", **named}).status_code == 400


def test_a_recording_that_the_environment_names_is_refused_too(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_MODEL", "recorded:demo")
    with pytest.raises(InvalidRequest, match="--simulated"):
        serve()
    with serve(simulated=True).client() as client:
        assert client.get("/readyz").status_code == 200


# ── faults behind it ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_503_is_tried_again(serve: Serve, provider: SimulatedProvider) -> None:
    provider.set_faults("503:first=2")
    with client_of(serve(**at(f"{provider.base_url}/v1"))) as client:
        assert client.chat.completions.create(**ASKED).choices  # type: ignore[call-overload]
    assert [call.status for call in provider.calls] == [503, 503, 200]


def test_a_stream_that_broke_before_its_first_byte_is_tried_again(serve: Serve, provider: SimulatedProvider) -> None:
    provider.set_faults("503:first=1")
    with client_of(serve(**at(f"{provider.base_url}/v1"))) as client:
        chunks = list(client.chat.completions.create(**ASKED, stream=True))  # type: ignore[call-overload]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert [call.status for call in provider.calls] == [503, 200]


def test_a_429_that_stays_is_passed_on_with_its_retry_after(serve: Serve, provider: SimulatedProvider) -> None:
    provider.set_faults("429:retry-after=30")
    with client_of(serve(**at(f"{provider.base_url}/v1"))) as client, pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(**ASKED)  # type: ignore[call-overload]
    assert caught.value.response.headers["retry-after"] == "30"
    assert len(provider.calls) == 1  # 30 s are more than the policy waits


def test_what_the_provider_says_against_a_request_is_passed_on(serve: Serve) -> None:
    said = b'{"error":{"message":"no such field: zap","type":"invalid_request_error","param":"zap","code":null}}'
    with wire((400, JSON, said)) as upstream, serve(**at(upstream.url)).client() as client:
        answer = client.post("/v1/chat/completions", json=ASKED)
        assert (answer.status_code, answer.content, len(upstream.bodies)) == (400, said, 1)


def test_a_second_provider_answers_where_the_first_one_fails(serve: Serve, upstream: Wire) -> None:
    with wire((500, JSON, b"{}")) as broken:
        second = Model("openai:other", base_url=upstream.url)
        with serve(**at(broken.url, MODEL, second)).client() as client:
            assert client.post("/v1/chat/completions", json=ASKED).content == CALL
    assert json.loads(upstream.bodies[0])["model"] == "other"
    assert "authorization" not in upstream.headers[0]


def test_a_stream_that_is_cut_off_ends_with_an_error_and_without_its_end_marker(serve: Serve) -> None:
    with wire((200, SSE, PIECES[:2])) as upstream, client_of(serve(**at(upstream.url))) as client:
        stream = client.chat.completions.create(**ASKED, stream=True)  # type: ignore[call-overload]
        seen = []
        with pytest.raises(openai.APIError, match="end marker"):
            seen.extend(stream)
        assert len(upstream.bodies) == 1


def test_an_answer_that_is_no_completion_is_502(serve: Serve) -> None:
    with wire((200, JSON, b"<html>")) as upstream, serve(**at(upstream.url)).client() as client:
        assert client.post("/v1/chat/completions", json=ASKED).status_code == 502


def test_a_provider_that_is_down_is_told_apart_and_then_left_alone(serve: Serve) -> None:
    with serve(**at("http://127.0.0.1:1/v1")).client() as client:
        statuses = [client.post("/v1/chat/completions", json=ASKED).status_code for _ in range(3)]
    assert statuses == [502, 502, 503]  # Five failures open its circuit: three attempts, then two.


# ── nothing leaks ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_secret_is_in_no_answer_event_page_or_log(
    serve: Serve, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    told = json.dumps(
        {"error": {"message": f"bad key {CANARY}", "type": "invalid_request_error", "code": "x"}}
    ).encode()
    tool = ScriptedTool("t", err(401), OK("fine"), provider="p")
    with wire((401, JSON, told), (200, JSON, b"no json " + CANARY.encode()), (503, JSON, told)) as upstream:
        service = serve(tool, **at(upstream.url))
        shown = []
        with service.client() as client:
            for stream in (False, False, True):
                shown.append(client.post("/v1/chat/completions", json=ASKED | {"stream": stream}))
            for body in ({"request": "x", "tool_name": "t"},) * 2:
                run = client.post("/v1/runs", json=body, headers={"X-Api-Key": CANARY, "Cookie": f"a={CANARY}"})
                run_id = run.json()["id"]
                shown += [run, *(client.get(f"{path}") for path in (f"/v1/runs/{run_id}", f"/v1/runs/{run_id}/events"))]
                shown.append(client.get(f"/view/runs/{run_id}/shown"))
            paths = ("/v1/models", "/v1/breakers", "/v1/tools", "/view/runs", "/view/providers/shown", "/openapi.json")
            shown += [client.get(path) for path in (*paths, f"/v1/runs?key={CANARY}")]
        assert all(headers["authorization"] == f"Bearer {CANARY}" for headers in upstream.headers)
    assert len(shown) == 18
    assert [each.request.url.path for each in shown if CANARY in each.text + str(each.headers)] == []
    assert CANARY not in without_the_tests_own(caplog)
    assert CANARY not in "".join(capfd.readouterr())


def test_a_key_is_taken_out_of_what_is_passed_on_and_its_json_stays_whole(serve: Serve) -> None:
    said = b'{"error":{"message":"bad key Bearer KEY","type":"x","code":"c"}}'
    answer = CALL.replace(b"Bonn", b"KEY")
    told = {**JSON, "x-request-id": "of KEY"}
    key, mark = CANARY.encode(), b"[redacted]"
    headers = {name: value.replace("KEY", CANARY) for name, value in told.items()}
    answers = ((400, headers, said.replace(b"KEY", key)), (200, headers, answer.replace(b"KEY", key)))
    with wire(*answers) as upstream, serve(**at(upstream.url)).client() as client:
        for status, body in ((400, said), (200, answer)):
            got = client.post("/v1/chat/completions", json=ASKED)
            assert (got.status_code, got.content) == (status, body.replace(b"KEY", mark))
            assert got.headers["x-request-id"] == "of [redacted]"
            assert json.loads(got.content)


@pytest.mark.parametrize("before", [0, 1], ids=["first", "later"])
@pytest.mark.parametrize("cut", [None, 1, 20], ids=["whole", "cut early", "cut late"])
def test_a_key_is_taken_out_of_a_stream_also_where_it_comes_in_two_pieces(
    serve: Serve, before: int, cut: int | None
) -> None:
    event = b'data: {"error":{"message":"bad key KEY"}}\n\n'
    told, key = event.replace(b"KEY", CANARY.encode()), {"Idempotency-Key": "k"}
    at_key = told.index(CANARY.encode())
    some = [told] if cut is None else [told[: at_key + cut], told[at_key + cut :]]
    answer = [*PIECES[:before], *some, *PIECES[before:]]
    with wire((200, SSE, answer)) as upstream, serve(**at(upstream.url)).client() as client:
        asked = ASKED | {"stream": True}
        got, again = (client.post("/v1/chat/completions", json=asked, headers=key) for _ in range(2))
    shown = event.replace(b"KEY", b"[redacted]")
    assert got.content == again.content == b"".join([*PIECES[:before], shown, *PIECES[before:]])


def without_the_tests_own(caplog: pytest.LogCaptureFixture) -> str:
    """What was logged, but by the clients of this test, which log what they ask for."""
    return "\n".join(
        str(record.msg) + str(record.args) for record in caplog.records if not record.name.startswith("http")
    )
