"""What goes over the wire for a request, and what is refused before anything goes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from canned import KEY, OK_ANTHROPIC, OK_OPENAI, Answer, Canned, adapter_at, asking, chunk, stream
from pydantic import SecretStr

from steer_llm_sdk.errors import RequestRejected
from steer_llm_sdk.providers._endpoint import Endpoint
from steer_llm_sdk.providers._llm.client import Client
from steer_llm_sdk.providers.base import Image, Message, ModelReply, ModelRequest
from steer_llm_sdk.providers.models import Model, resolve_model

Start = Callable[[Answer], Awaitable[Canned]]
EVENTS = {"openai": OK_OPENAI, "anthropic": OK_ANTHROPIC}
PNG = b"\x89PNG\r\n\x1a\n"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "string"}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.fixture
async def server(canned: Start, wire: str) -> Canned:
    return await canned(stream(*EVENTS[wire]))


async def reply_of(
    server: Canned, wire: str, request: ModelRequest, name: str | None = None, **more: Any
) -> ModelReply:
    adapter = adapter_at(server.url, wire, name, **more)
    reply = await adapter.request(request)
    await adapter.aclose()
    return reply


async def refusal(server: Canned, wire: str, request: ModelRequest, **more: Any) -> RequestRejected:
    with pytest.raises(RequestRejected) as caught:
        await reply_of(server, wire, request, **more)
    assert server.seen == []
    return caught.value


async def test_a_conversation_keeps_its_roles_and_order(server: Canned, wire: str) -> None:
    messages = (
        Message("system", "Be brief."),
        Message("user", "Is it?"),
        Message("assistant", "No."),
        Message("user", ("Sure?", "Really?")),
    )
    await reply_of(server, wire, ModelRequest(messages=messages))
    turns = [(turn["role"], _texts(turn["content"])) for turn in server.sent["messages"]]
    talk = [("user", ["Is it?"]), ("assistant", ["No."]), ("user", ["Sure?", "Really?"])]
    if wire == "openai":
        assert turns == [("system", ["Be brief."]), *talk]
    else:
        assert (server.sent["system"], turns) == ("Be brief.", talk)


def _texts(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content]


async def test_a_stream_is_asked_for_with_its_usage(server: Canned, wire: str) -> None:
    await reply_of(server, wire, asking())
    assert server.sent["stream"] is True
    if wire == "openai":
        assert server.sent["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(("asked", "sent"), [(None, 4096), (77, 77)])
async def test_a_limit_is_always_sent(server: Canned, wire: str, asked: int | None, sent: int) -> None:
    await reply_of(server, wire, asking(max_tokens=asked))
    assert server.sent["max_tokens"] == sent


async def test_a_model_that_thinks_unasked_gets_more_room(server: Canned, wire: str) -> None:
    name = {"openai": "gpt-5-mini", "anthropic": "claude-opus-5"}[wire]
    await reply_of(server, wire, asking(), name)
    assert server.sent["max_tokens"] == 16384


async def test_temperature_and_seed_are_sent_where_they_are_taken(server: Canned, wire: str) -> None:
    reply = await reply_of(server, wire, asking(temperature=0.0, seed=7))
    assert server.sent["temperature"] == 0.0
    assert server.sent.get("seed") == {"openai": 7, "anthropic": None}[wire]
    assert reply.ignored == {"openai": (), "anthropic": ("seed",)}[wire]


async def test_settings_that_a_model_cannot_take_are_left_out_and_named(server: Canned, wire: str) -> None:
    name = {"openai": "gpt-5-mini", "anthropic": "claude-opus-5"}[wire]
    reply = await reply_of(server, wire, asking(temperature=0.0, seed=7), name)
    assert "temperature" not in server.sent
    assert reply.ignored == {"openai": ("temperature",), "anthropic": ("seed", "temperature")}[wire]


async def test_nothing_is_said_of_settings_that_were_not_asked_for(server: Canned, wire: str) -> None:
    reply = await reply_of(server, wire, asking())
    assert {"temperature", "seed", "response_format", "output_config"}.isdisjoint(server.sent)
    assert reply.ignored == ()


async def test_the_idempotency_key_goes_to_those_who_know_it(server: Canned, wire: str) -> None:
    await reply_of(server, wire, asking(idempotency_key="run-1:tool"))
    assert server.seen[0].headers.get("idempotency-key") == {"openai": "run-1:tool", "anthropic": None}[wire]


async def test_elsewhere_the_schema_is_prompted_for(server: Canned, wire: str) -> None:
    system = Message("system", "Be brief.")
    for messages, begin in (((system, Message("user", "Is it?")), "Be brief.\n\nAnswer with"), (None, "Answer with")):
        request = asking(schema=SCHEMA)
        await reply_of(server, wire, request if messages is None else replace(request, messages=messages))
        said = server.sent["messages"][0]["content"] if wire == "openai" else server.sent["system"]
        assert said.startswith(begin)
        assert json.loads(said.rpartition("\n")[2]) == SCHEMA
        assert "response_format" not in server.sent
        assert "output_config" not in server.sent


def official(wire: str, model: str) -> Endpoint:
    url = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}[wire]
    return Endpoint(
        name=f"{wire}:{model}",
        provider=wire,
        wire="anthropic" if wire == "anthropic" else "openai",
        model=model,
        base_url=url,
        target=wire,
        key_from="a test",
        api_key=SecretStr(KEY),
        own_api=True,
    )


async def as_official(server: Canned, wire: str, model: str, request: ModelRequest) -> ModelReply:
    """As if the provider itself answered: its endpoint, at our address."""
    client = Client(official(wire, model), f"{server.url}/v1", None)
    try:
        return await client.ask(request, None)
    finally:
        await client.aclose()


MODELS = {"openai": "gpt-4o", "anthropic": "claude-opus-5"}


async def test_the_providers_own_apis_are_held_to_the_schema(server: Canned, wire: str) -> None:
    await as_official(server, wire, MODELS[wire], asking(schema=SCHEMA))
    if wire == "openai":
        sent = server.sent["response_format"]
        assert (sent["type"], sent["json_schema"]["schema"]) == ("json_schema", SCHEMA)
        assert [turn["role"] for turn in server.sent["messages"]] == ["user"]
    else:
        assert server.sent["output_config"]["format"]["schema"] == SCHEMA
        assert "system" not in server.sent


async def test_openai_itself_is_told_the_limit_under_its_new_name(server: Canned, wire: str) -> None:
    await as_official(server, wire, MODELS[wire], asking(max_tokens=9))
    name = {"openai": "max_completion_tokens", "anthropic": "max_tokens"}[wire]
    assert server.sent[name] == 9


@pytest.mark.parametrize("schema", [{"type": "array", "items": {"type": "string"}}, {"anyOf": [{"type": "string"}]}])
async def test_a_schema_that_no_api_takes_is_prompted_for(server: Canned, wire: str, schema: dict[str, Any]) -> None:
    await as_official(server, wire, MODELS[wire], asking(schema=schema))
    assert "response_format" not in server.sent
    assert "output_config" not in server.sent
    assert json.dumps(schema) in json.dumps(server.sent).replace('\\"', '"')


async def test_a_model_too_old_for_schemas_is_prompted(server: Canned, wire: str) -> None:
    if wire == "anthropic":
        await as_official(server, wire, "claude-3-haiku-20240307", asking(schema=SCHEMA))
        assert "Answer with one JSON value" in server.sent["system"]


async def test_a_cost_by_the_list_is_that_of_the_provider(canned: Start) -> None:
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 0, "total_tokens": 1_000_000}
    events = [event.replace(b"gpt-test-1", b"gpt-4o") for event in OK_OPENAI[:2]]
    server = await canned(stream(*events, chunk({}, None, usage=usage).replace(b"gpt-test-1", b"gpt-4o")))
    reply = await as_official(server, "openai", "gpt-4o", asking())
    assert reply.cost_usd == 2.5


async def test_an_image_goes_as_data_or_as_its_address(server: Canned, wire: str) -> None:
    data_url = "data:image/png;base64,iVBORw0KGgo="
    images = (Image(url="https://example.com/cat.png"), Image(data=PNG), Image(url=data_url))
    await reply_of(server, wire, ModelRequest(messages=(Message("user", ("What is this?", *images)),)))
    text, *sent = server.sent["messages"][0]["content"]
    assert text["text"] == "What is this?"
    if wire == "openai":
        assert [part["image_url"]["url"] for part in sent] == ["https://example.com/cat.png", data_url, data_url]
    else:
        base64 = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
        assert [part["source"] for part in sent] == [
            {"type": "url", "url": "https://example.com/cat.png"},
            base64,
            base64,
        ]


def with_image(image: Image, role: Any = "user") -> ModelRequest:
    return ModelRequest(messages=(Message("user", "Look."), Message(role, ("This:", image))))


async def test_an_image_is_refused_by_name_where_none_is_taken(server: Canned, wire: str) -> None:
    error = await refusal(server, wire, with_image(Image(data=PNG)), takes_images=False)
    assert str(error).startswith("messages[1].content[1]: ")
    assert "takes no images; leave the image out, or name a model that reads images" in str(error)
    assert error.code == "not_supported"
    assert not error.is_retryable


async def test_recorded_models_take_no_images() -> None:
    for name in ("gpt-4o-2024-05-13", "claude-3-haiku-20240307"):
        adapter = resolve_model(f"recorded:{name}")
        with pytest.raises(RequestRejected, match=f"recorded:{name} takes no images"):
            await adapter.request(with_image(Image(data=PNG)))
        await adapter.aclose()


@pytest.mark.parametrize(
    ("image", "role", "says"),
    [
        (Image(data=PNG), "assistant", "takes images from the user, not in a message of the assistant"),
        (Image(), "user", "needs an image as a url or as data"),
        (Image(data=PNG, url="https://example.com/cat.png"), "user", "needs an image as a url or as data"),
        (Image(data=PNG, media_type="text/html"), "user", "takes no 'text/html' as an image"),
    ],
)
async def test_an_image_that_is_none_is_refused(server: Canned, wire: str, image: Image, role: str, says: str) -> None:
    assert says in str(await refusal(server, wire, with_image(image, role)))


async def test_a_late_system_message_is_refused_where_it_would_be_misread(server: Canned, wire: str) -> None:
    messages = (Message("user", "Is it?"), Message("system", "Be brief."), Message("user", "Well?"))
    request = ModelRequest(messages=messages)
    if wire == "openai":
        await reply_of(server, wire, request)
        assert [turn["role"] for turn in server.sent["messages"]] == ["user", "system", "user"]
    else:
        assert "messages[1].role: " in str(await refusal(server, wire, request))


async def test_two_leading_system_messages_go_as_one_where_a_server_may_know_only_one(
    server: Canned, wire: str
) -> None:
    messages = (Message("system", "Be brief."), Message("system", "Be kind."), Message("user", "Is it?"))
    await reply_of(server, wire, ModelRequest(messages=messages))
    said = server.sent["messages"][0]["content"] if wire == "openai" else server.sent["system"]
    assert said == "Be brief.\n\nBe kind."


async def test_a_local_server_gets_no_key(canned: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-place")
    server = await canned(stream(*OK_OPENAI))
    for prefix in ("ollama", "vllm", "llamacpp", "openai"):
        adapter = resolve_model(Model(f"{prefix}:m", base_url=f"{server.url}/v1"))
        await adapter.request(asking())
        await adapter.aclose()
        assert "authorization" not in server.seen[-1].headers
        assert "another-place" not in str(server.seen[-1])


async def test_what_the_environment_holds_for_the_provider_goes_nowhere_else(
    server: Canned, wire: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-secret")
    for name in ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS"):
        monkeypatch.setenv(name, "X-Gateway: gate-secret\nAuthorization: Bearer other-secret")
    await reply_of(server, wire, asking())
    headers = server.seen[0].headers
    assert "secret" not in str(headers)
    sent = (headers.get("authorization"), headers.get("x-api-key"))
    assert sent == {"openai": (f"Bearer {KEY}", None), "anthropic": (None, KEY)}[wire]


async def test_several_keys_and_endpoints_stand_side_by_side(canned: Start) -> None:
    first, second = await canned(stream(*OK_OPENAI)), await canned(stream(*OK_OPENAI))
    adapters = [
        resolve_model(Model("openai:m", base_url=f"{server.url}/v1", api_key=key))
        for server, key in ((first, "key-a"), (first, "key-b"), (second, "key-c"))
    ]
    for adapter in adapters:
        await adapter.request(asking())
        await adapter.aclose()
    assert [seen.headers["authorization"] for seen in first.seen] == ["Bearer key-a", "Bearer key-b"]
    assert [seen.headers["authorization"] for seen in second.seen] == ["Bearer key-c"]
    assert adapters[0].target == adapters[1].target != adapters[2].target
