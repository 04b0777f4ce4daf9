"""A model by name: where it leads, with which key, and what is said where it leads nowhere."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import SecretStr

from steer_llm_sdk._install import install_line
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers._endpoint import is_loopback
from steer_llm_sdk.providers.base import ModelAdapter, ModelReply, ModelRequest
from steer_llm_sdk.providers.models import Model, Price, configured_model, resolve_model


@pytest.fixture(autouse=True)
def _no_addresses_of_this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("openai:gpt-5-mini", "openai"),
        ("anthropic:claude-opus-5", "anthropic"),
        ("ollama:qwen3:8b", "ollama"),
        ("vllm:meta-llama/Llama-3.3-70B", "vllm"),
        ("llamacpp:any", "llamacpp"),
        ("recorded:gpt-4o-2024-05-13", "recorded"),
        ("recorded:demo", "recorded"),
    ],
)
def test_a_name_has_an_adapter_and_a_target(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-b")
    adapter = resolve_model(name)
    assert (adapter.name, adapter.target) == (name, target)


@pytest.mark.parametrize(
    ("name", "base_url", "target"),
    [
        ("openai:m", "https://inference.example.com/v1/", "openai@https://inference.example.com/v1"),
        ("openai:m", "https://api.openai.com/v1", "openai"),
        ("anthropic:m", "http://127.0.0.1:9/", "anthropic@http://127.0.0.1:9"),
        ("ollama:m", "http://192.168.0.7:11434/v1", "ollama@http://192.168.0.7:11434/v1"),
        ("vllm:m", "http://127.0.0.1:8000/v1", "vllm"),
    ],
)
def test_another_address_is_another_target(name: str, base_url: str, target: str) -> None:
    assert resolve_model(Model(name, base_url=base_url)).target == target


@pytest.mark.parametrize(("provider", "path"), [("openai", "/v1"), ("anthropic", "")])
def test_an_address_from_the_environment_is_another_target_too(
    provider: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{provider.upper()}_BASE_URL", f"http://127.0.0.1:9{path}")
    assert resolve_model(f"{provider}:m").target == f"{provider}@http://127.0.0.1:9{path}"


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_a_missing_key_is_named_with_what_would_do(provider: str) -> None:
    variable = f"{provider.upper()}_API_KEY"
    with pytest.raises(InvalidRequest) as caught:
        resolve_model(f"{provider}:m")
    assert str(caught.value) == (
        f"model: '{provider}:m' cannot be used; set {variable}; "
        "without a key there are local servers (ollama:NAME) and recorded answers (recorded:demo)"
    )
    assert caught.value.field == "model"


def test_a_key_of_spaces_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "  ")
    with pytest.raises(InvalidRequest, match="set OPENAI_API_KEY"):
        resolve_model("openai:m")


def test_a_key_of_the_model_needs_none_in_the_environment() -> None:
    assert resolve_model(Model("openai:m", api_key="sk-a")).target == "openai"


@pytest.mark.parametrize("name", ["gpt-5", "", ":", "openai:", "google:gemini", "OPENAI:gpt-5", ":m"])
def test_an_unknown_prefix_is_answered_with_those_there_are(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_model(name)
    assert "openai:NAME, anthropic:NAME, ollama:NAME, vllm:NAME, llamacpp:NAME, recorded:NAME" in str(caught.value)


def test_a_model_that_was_not_recorded_is_answered_with_those_that_are_near() -> None:
    with pytest.raises(InvalidRequest) as caught:
        resolve_model("recorded:gpt-4")
    assert str(caught.value) == (
        "model: 'recorded:gpt-4' cannot be used; the nearest are recorded:gpt-4-0314; recorded:demo is all models in "
        "turn, `steer-llm simulate --list` has all names"
    )


def test_several_names_in_one_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="one model name is expected"):
        resolve_model("openai:a,openai:b")


def test_recorded_answers_have_no_other_address() -> None:
    with pytest.raises(InvalidRequest, match="base_url"):
        resolve_model(Model("recorded:demo", base_url="http://127.0.0.1:9/v1"))


@pytest.mark.parametrize(
    "url", ["inference.example.com", "ftp://example.com", "http://", "http://[::1", "http://h:x/v1"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"base_url: .* write https://host/path"):
        Model("openai:m", base_url=url)


def test_an_address_in_the_environment_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost")
    with pytest.raises(InvalidRequest, match="OPENAI_BASE_URL: 'localhost' cannot be used"):
        resolve_model(Model("openai:m", api_key="sk-a"))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_price_is_a_number_of_dollars(bad: float) -> None:
    with pytest.raises(InvalidRequest, match=r"price\.input"):
        Price(input=bad, output=0.0)
    with pytest.raises(InvalidRequest, match=r"price\.output"):
        Price(input=0.0, output=bad)


def test_a_price_is_per_million_tokens() -> None:
    assert Price(input=2.0, output=8.0).of(500_000, 250_000) == 3.0


def test_an_adapter_comes_back_as_it_is() -> None:
    class Own:
        name, target = "own:m", "own"

        async def request(self, request: ModelRequest, on_text: object = None) -> ModelReply:
            return ModelReply(text="yes", model="m")

        async def prepare(self) -> None: ...

        def worst_case(self, request: ModelRequest) -> object: ...

        async def aclose(self) -> None: ...

    own: ModelAdapter = Own()  # type: ignore[assignment]
    assert resolve_model(own) is own


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://127.8.9.1:1/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://192.168.0.7/v1", False),
        ("https://localhost.example.com/v1", False),
        ("https://api.openai.com/v1", False),
    ],
)
def test_this_machine_is_known_by_its_address(url: str, here: bool) -> None:
    assert is_loopback(url) is here


def test_two_models_of_one_name_and_key_are_equal_and_hide_it() -> None:
    one, other = Model("openai:m", api_key="sk-a"), Model("openai:m", api_key=SecretStr("sk-a"))
    assert one == other
    assert "sk-a" not in repr(one)


HEAVY = ("pydantic_ai", "openai", "anthropic", "httpx2", "genai_prices", "h11")


def test_importing_the_names_loads_no_client_library() -> None:
    code = f"""
import sys
import steer_llm_sdk.providers.models, steer_llm_sdk.providers.discover, steer_llm_sdk.providers.pydantic_ai_adapter
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["pydantic_ai", "openai", "anthropic", "genai_prices", "httpx2"])
def test_without_the_extra_the_line_that_installs_it_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    name = "recorded:claude-3-haiku-20240307" if package == "anthropic" else "recorded:gpt-4o-2024-05-13"
    with pytest.raises(InvalidRequest) as caught:
        resolve_model(name)
    assert str(caught.value).endswith(f"models by name need the extra `llm`: {install_line('llm')}")


@pytest.mark.parametrize(("value", "named"), [(None, None), ("  ", None), (" openai:x ", "openai:x")])
def test_steer_model_names_a_model_unless_it_is_unset_or_blank(
    value: str | None, named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STEER_MODEL", raising=False)
    if value is not None:
        monkeypatch.setenv("STEER_MODEL", value)
    assert configured_model() == named
