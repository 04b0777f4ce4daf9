"""What is reserved before a request: never less than what a call can take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from steer_llm_sdk.providers._worst_case import input_tokens, max_tokens_of
from steer_llm_sdk.providers.base import Image, Message, ModelRequest
from steer_llm_sdk.providers.models import Model, Price, resolve_model
from steer_llm_sdk.providers.simulated import shipped_recording


def asking(*contents: str | tuple[str | Image, ...]) -> ModelRequest:
    return ModelRequest(messages=tuple(Message("user", content) for content in contents))


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        (asking(""), 8),
        (asking("abc"), 9),
        (asking("abcd"), 10),
        (asking("abcd", "ef"), 18),
        (asking("äöü"), 10),
        (asking("漢"), 9),
        (asking(("abc", "def")), 10),
        (asking(("abc", Image(data=b"x" * 10_000))), 4809),
        (replace(asking("abc"), schema={"a": 1}), 12),
        (asking("\ud800"), 9),
    ],
)
def test_input_is_a_third_of_its_bytes_and_a_little_per_message(request_: ModelRequest, tokens: int) -> None:
    assert input_tokens(request_) == tokens


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        ("gpt-4o", 4096),
        ("gpt-4.1-mini", 4096),
        ("gpt-35-turbo", 4096),
        ("gpt-5-mini", 16384),
        ("gpt-5.4", 16384),
        ("gpt-5-chat-latest", 4096),
        ("gpt-6.1-sol", 16384),
        ("gpt-oss:20b", 4096),
        ("o3", 16384),
        ("o1-mini-2024-09-12", 16384),
        ("claude-3-5-sonnet-20241022", 4096),
        ("claude-sonnet-4-5", 4096),
        ("claude-opus-5", 16384),
        ("claude-haiku-5-5", 16384),
        ("qwen3:8b", 4096),
    ],
)
def test_a_limit_is_sent_even_where_none_was_asked_for(model: str, limit: int) -> None:
    assert max_tokens_of(asking("?"), model) == limit
    assert max_tokens_of(replace(asking("?"), max_tokens=9), model) == 9


def test_tokens_are_input_and_limit() -> None:
    amount = resolve_model("ollama:m").worst_case(replace(asking("abc"), max_tokens=100))
    assert (amount.tokens, amount.cost_usd) == (109, None)


def test_a_declared_price_is_what_it_costs_at_most() -> None:
    adapter = resolve_model(Model("ollama:m", price=Price(input=1000.0, output=1_000_000.0)))
    assert adapter.worst_case(replace(asking("abc"), max_tokens=2)).cost_usd == pytest.approx(2.009)


def test_a_listed_model_costs_what_the_list_says_at_most() -> None:
    adapter = resolve_model(Model("openai:gpt-4o", api_key="sk-a"))
    amount = adapter.worst_case(replace(asking("x" * 3_000_000), max_tokens=1_000_000))
    assert amount.cost_usd == pytest.approx(12.5, rel=0.001)


@pytest.mark.parametrize("name", ["openai:no-such-model", "anthropic:no-such-model"])
def test_an_unlisted_model_has_no_known_cost(name: str) -> None:
    assert resolve_model(Model(name, api_key="sk-a")).worst_case(asking("?")).cost_usd is None


def test_a_known_name_elsewhere_is_not_priced_as_its_makers_own() -> None:
    adapter = resolve_model(Model("openai:gpt-4o", base_url="https://inference.example.com/v1"))
    assert adapter.worst_case(asking("?")).cost_usd is None


def test_an_address_that_the_list_knows_is_priced_as_its_owner_does() -> None:
    adapter = resolve_model(Model("openai:llama-3.1-8b-instant", base_url="https://api.groq.com/openai/v1"))
    cost = adapter.worst_case(asking("?")).cost_usd
    assert cost is not None
    assert 0 < cost < 0.01


def test_the_pool_of_recorded_models_costs_what_its_dearest_does() -> None:
    request = replace(asking("?"), max_tokens=1000)
    costs = [resolve_model(f"recorded:{name}").worst_case(request).cost_usd for name in shipped_recording().models]
    dearest = max(cost for cost in costs if cost is not None)
    assert resolve_model("recorded:demo").worst_case(request).cost_usd == dearest
