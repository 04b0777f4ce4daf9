"""The passage for clients of Anthropic's format: the official client, and the bytes compared with asking directly."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import pytest
from served import CERTIFICATES, Refused, Service
from upstream import JSON, SSE, wire

from steer_llm_sdk.providers.models import Model
from steer_llm_sdk.service import Key, KeyRing, new_key
from steer_llm_sdk.testing import SimulatedProvider

Serve = Callable[..., Service]
MODEL = "claude-3-haiku-20240307"
ASKED: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 500,
    "messages": [{"role": "user", "content": "crux-test-#0"}],
}
CANARY = "sk-ant-canary-0123456789abcdefghij"
TOOLS = {
    "tools": [{"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}],
    "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    "system": [{"type": "text", "text": "ü\u2028", "cache_control": {"type": "ephemeral"}}],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "temperature": 0.30000000000000004,
    "a_field_of_tomorrow": {"nested": [None, True, 1e-9]},
}
CALL = (
    b'{"id":"msg_1","type":"message","role":"assistant","model":"'
    + MODEL.encode()
    + b'","content":[{"type":"tool_use",'
    b'"id":"toolu_1","name":"weather","input":{"city":  "Bonn"}}],"stop_reason":"tool_use","stop_sequence":null,'
    b'"usage":{"input_tokens":9,"output_tokens":5},"new":1.50}'
)


def event(kind: str, **data: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": [], "stop_reason": None}
WHOLE = b"".join(
    [
        event("message_start", message=MESSAGE | {"usage": {"input_tokens": 9, "output_tokens": 1}}),
        event("content_block_start", index=0, content_block={"type": "tool_use", "id": "t1", "name": "w", "input": {}}),
        event("ping"),
        event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": '{"city": "message_'}),
        event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": 'stop"}'}),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "tool_use"}, usage={"output_tokens": 5}),
        event("message_stop"),
    ]
)
PIECES = [WHOLE[at : at + 97] for at in range(0, len(WHOLE), 97)]


def at(url: str, name: str = MODEL, *more: Model) -> dict[str, Any]:
    return {"models": {name: (Model(f"anthropic:{MODEL}", base_url=url, api_key=CANARY), *more)}}


def host(url: str) -> str:
    return url.removesuffix("/v1")


def client_of(service: Service, key: str = "any", **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=service.url,
        api_key=key,
        max_retries=0,
        http_client=anthropic.DefaultHttpxClient(verify=CERTIFICATES),
        **options,
    )


def own(body: bytes) -> bytes:
    """Without the id of the answer, which differs by itself."""
    return re.sub(rb'"msg_\w+"', b'""', body)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_answer_is_the_one_that_the_provider_gives(serve: Serve, provider: SimulatedProvider, stream: bool) -> None:
    service = serve(**at(provider.base_url))
    with httpx2.Client(verify=CERTIFICATES, headers={"anthropic-version": "2023-06-01"}) as client:
        asked = ASKED | {"stream": stream}
        direct = client.post(f"{provider.base_url}/v1/messages", json=asked)
        through = client.post(f"{service.url}/v1/messages", json=asked)
    assert direct.status_code == through.status_code == 200
    assert direct.headers["content-type"] == through.headers["content-type"]
    assert direct.headers["anthropic-ratelimit-requests-limit"] == through.headers["anthropic-ratelimit-requests-limit"]
    assert own(direct.content) == own(through.content)


def test_a_request_and_its_headers_arrive_byte_for_byte(serve: Serve) -> None:
    body = json.dumps(ASKED | TOOLS, indent=3).encode()
    with wire((200, JSON, CALL)) as upstream, serve(**at(host(upstream.url))).client() as client:
        said = {"anthropic-version": "2099-01-01", "anthropic-beta": "a-1,b-2", "x-api-key": "the client's"}
        answer = client.post("/v1/messages", content=body, headers=said)
        plain = client.post("/v1/messages", content=body)
    assert upstream.bodies == [body, body]
    assert (answer.status_code, answer.content, plain.content) == (200, CALL, CALL)
    first, second = upstream.headers
    assert (first["anthropic-version"], first["anthropic-beta"]) == ("2099-01-01", "a-1,b-2")
    assert first["x-api-key"] == CANARY
    assert "authorization" not in first
    assert (second["anthropic-version"], "anthropic-beta" in second) == ("2023-06-01", False)


def test_the_official_client_gets_tool_calls_and_usage(serve: Serve) -> None:
    with (
        wire((200, JSON, CALL), (200, SSE, PIECES)) as upstream,
        client_of(serve(**at(host(upstream.url)))) as client,
    ):
        whole = client.messages.create(**ASKED)
        assert whole.content[0].input == {"city": "Bonn"}  # type: ignore[union-attr]
        with client.messages.stream(**ASKED) as stream:
            final = stream.get_final_message()
        assert final.content[0].input == {"city": "message_stop"}  # type: ignore[union-attr]
        assert (final.usage.input_tokens, final.usage.output_tokens, final.stop_reason) == (9, 5, "tool_use")


def test_a_stream_arrives_byte_for_byte_and_its_tokens_are_counted(serve: Serve) -> None:
    with wire((200, SSE, PIECES)) as upstream, serve(**at(host(upstream.url))).client() as client:
        answer = client.post("/v1/messages", json=ASKED | {"stream": True})
        assert answer.content == WHOLE
        told = client.get("/metrics").text
        for kind, tokens in (("input", 9), ("output", 5)):
            labels = f'gen_ai_token_type="{kind}",gen_ai_tool_name="chat"'
            assert f"gen_ai_client_token_usage_total{{{labels}}} {tokens}.0\n" in told


def test_the_client_sends_its_key_as_it_is_used_to(serve: Serve) -> None:
    secret, digest = new_key()
    with wire((200, JSON, CALL)) as upstream:
        service = serve(**at(host(upstream.url)), keys=KeyRing((Key(tenant="a", sha256=digest),)))
        with client_of(service, secret) as client, client_of(service, "steer-wrong") as stranger:
            assert client.messages.create(**ASKED).stop_reason == "tool_use"
            with pytest.raises(anthropic.AuthenticationError):
                stranger.messages.create(**ASKED)
        assert secret not in str(upstream.headers)
        with service.client() as both:
            headers = [("Authorization", "Bearer wrong"), ("X-Api-Key", secret)]
            assert both.get("/v1/tools", headers=headers).status_code == 401


def test_a_recording_answers_where_it_simulates(serve: Serve) -> None:
    with client_of(serve(simulated=True)) as client:
        model = client.models.retrieve("recorded:demo")
        question = model.model_extra["question"]  # type: ignore[index]
        answer = client.messages.create(
            model=model.id, max_tokens=500, messages=[{"role": "user", "content": question}]
        )
        assert answer.content[0].text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"{}", "model"),
        (b'{"model": "a", "model": "b"}', "model"),
        (b'{"model": "claude", "stream": "yes"}', "stream"),
        (b'{"model": "recorded:demo"}', "model"),
        (b'{"model": "openai:gpt"}', "/v1/chat/completions"),
    ],
)
def test_what_cannot_be_passed_on_is_400_and_named(refused: Refused, body: bytes, field: str) -> None:
    told = refused("/v1/messages", body)
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert field in told["error"]["message"]


def test_a_529_is_tried_again_and_a_429_that_stays_is_passed_on(serve: Serve, provider: SimulatedProvider) -> None:
    with client_of(serve(**at(provider.base_url))) as client:
        provider.set_faults("529:first=2")
        assert client.messages.create(**ASKED).content
        assert [call.status for call in provider.calls] == [529, 529, 200]
        provider.set_faults("429:retry-after=30")
        with pytest.raises(anthropic.RateLimitError) as caught:
            client.messages.create(**ASKED)
        assert caught.value.response.headers["retry-after"] == "30"
        assert len(provider.calls) == 4


def test_a_second_provider_answers_where_the_first_one_fails(serve: Serve) -> None:
    with wire((500, JSON, b"{}")) as broken, wire((200, JSON, CALL)) as works:
        second = Model("anthropic:other", base_url=host(works.url))
        with serve(**at(host(broken.url), MODEL, second)).client() as client:
            assert client.post("/v1/messages", json=ASKED).content == CALL
        assert json.loads(works.bodies[0])["model"] == "other"
        assert "x-api-key" not in works.headers[0]


def test_a_stream_that_is_cut_off_ends_with_an_error_that_the_client_sees(serve: Serve) -> None:
    cut = WHOLE[: WHOLE.index(b"event: message_delta")]
    with wire((200, SSE, [cut])) as upstream, client_of(serve(**at(host(upstream.url)))) as client:
        with pytest.raises(anthropic.APIStatusError, match="end marker"):
            list(client.messages.create(**ASKED, stream=True))
        assert len(upstream.bodies) == 1


def test_an_answer_that_is_no_message_is_502_and_a_dead_provider_is_told_apart(serve: Serve) -> None:
    with wire((200, JSON, b'{"choices": [{}]}')) as upstream, serve(**at(host(upstream.url))).client() as client:
        answer = client.post("/v1/messages", json=ASKED)
        assert (answer.status_code, answer.json()["error"]["type"]) == (502, "api_error")
    with serve(**at("http://127.0.0.1:1")).client() as client:
        statuses = {client.post("/v1/messages", json=ASKED).status_code for _ in range(3)}
    assert statuses == {502, 503}


def test_an_empty_answer_is_one(serve: Serve) -> None:
    said = json.dumps(MESSAGE | {"stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 0}}).encode()
    with wire((200, JSON, said)) as upstream, client_of(serve(**at(host(upstream.url)))) as client:
        assert client.messages.create(**ASKED).content == []


def test_the_providers_key_is_in_no_answer(serve: Serve) -> None:
    said = json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": f"bad {CANARY}"}})
    with wire((400, JSON, said.encode())) as upstream, serve(**at(host(upstream.url))).client() as client:
        answer = client.post("/v1/messages", json=ASKED)
        assert answer.status_code == 400
        assert CANARY not in answer.text
