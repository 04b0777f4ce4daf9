"""Models by name.

    openai:NAME      OpenAI, with OPENAI_API_KEY; elsewhere if OPENAI_BASE_URL says so
    anthropic:NAME   Anthropic, with ANTHROPIC_API_KEY; elsewhere if ANTHROPIC_BASE_URL says so
    ollama:NAME      http://127.0.0.1:11434/v1
    vllm:NAME        http://127.0.0.1:8000/v1
    llamacpp:NAME    http://127.0.0.1:8080/v1
    recorded:NAME    answers that real models once gave, from this package; no key, no cost, no network

A `Model` names another address, key or price for any of them but the last. Importing this module is cheap. From the
first `resolve_model` of a format on its client library is loaded in the background, which takes a second or two;
nothing is sent before a request.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from math import isfinite
from typing import TypeAlias

from pydantic import SecretStr

from steer_llm_sdk._install import install_line
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers._endpoint import LOCAL_SERVERS, Endpoint, Wire, checked_url, is_loopback
from steer_llm_sdk.providers.base import ModelAdapter
from steer_llm_sdk.providers.pydantic_ai_adapter import PydanticAIAdapter, load_in_background
from steer_llm_sdk.providers.simulated.recording import shipped_recording


@dataclass(frozen=True, slots=True)
class _Api:
    """A provider's API, and the environment variables that its official client reads."""

    wire: Wire
    usual_url: str
    key_variable: str
    url_variable: str


APIS = {
    "openai": _Api("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "anthropic": _Api("anthropic", "https://api.anthropic.com", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
}
PREFIXES = (*APIS, *LOCAL_SERVERS, "recorded")

MODEL_VARIABLE = "STEER_MODEL"
"""The environment variable that names the model to use where a caller names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """USD per million tokens. Tokens read from a cache cost what `input` says."""

    input: float
    output: float

    def __post_init__(self) -> None:
        for name, value in (("price.input", self.input), ("price.output", self.output)):
            if not isfinite(value) or value < 0:
                raise InvalidRequest(name, value, "give USD per million tokens, 0 or more")

    def of(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self.input + output_tokens * self.output) / 1_000_000


@dataclass(frozen=True, slots=True)
class Model:
    """A model at an address, with a key and a price of its own.

        Model("openai:gpt-5-mini", api_key=SecretStr(team_key))
        Model("openai:llama-3.3-70b", base_url="https://inference.example.com/v1", api_key=..., price=Price(...))
        Model("vllm:qwen3", base_url="http://127.0.0.1:9000/v1")

    The prefix of `name` selects the wire format. `api_key` is kept as a SecretStr. With a `base_url` no key is taken
    from the environment, and none is needed. `price` None: the list price, where there is one. `takes_images` False: a
    request with an image is refused before it is sent; None: as the model's profile says.
    """

    name: str
    base_url: str | None = field(default=None, kw_only=True)
    api_key: SecretStr | str | None = field(default=None, kw_only=True, repr=False)
    price: Price | None = field(default=None, kw_only=True)
    takes_images: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.api_key, str):
            object.__setattr__(self, "api_key", SecretStr(self.api_key))
        if self.base_url is not None:
            object.__setattr__(self, "base_url", checked_url("base_url", self.base_url))
        if self.price is not None and not isinstance(self.price, Price):
            raise InvalidRequest("price", self.price, "give Price(input=..., output=...), in USD per million tokens")


ModelSpec: TypeAlias = str | Model | ModelAdapter


def resolve_model(spec: ModelSpec) -> ModelAdapter:
    """The adapter for a name, a Model, or an adapter, which comes back as it is.

    Raises InvalidRequest for an unknown prefix, a model that was not recorded, a key that is missing (with the name of
    the variable), and for a missing extra (with the line that installs it).
    """
    if not isinstance(spec, (str, Model)):
        return spec
    model = Model(spec) if isinstance(spec, str) else spec
    endpoint = _endpoint(model)
    _require_extra(model.name, endpoint.wire)
    load_in_background(endpoint.wire)
    return PydanticAIAdapter(endpoint, None if model.price is None else model.price.of)


def endpoint_of(spec: str | Model) -> Endpoint:
    """Where a model is and with which key, for who speaks its wire himself. Raises as `resolve_model` does, but for a
    missing extra."""
    return _endpoint(Model(spec) if isinstance(spec, str) else spec)


def configured_model() -> str | None:
    """What STEER_MODEL names; None if it is unset or blank."""
    return _from_environment(MODEL_VARIABLE)


def _endpoint(model: Model) -> Endpoint:
    prefix, colon, name = model.name.partition(":")
    if "," in model.name and model.base_url is None:
        raise InvalidRequest("model", model.name, "one model name is expected; give each of several by itself")
    if prefix not in PREFIXES or not colon or not name:
        known = ", ".join(f"{known}:NAME" for known in PREFIXES)
        raise InvalidRequest("model", model.name, f"write one of {known}")
    if prefix == "recorded":
        return _recorded(model, name)
    if model.base_url is None and prefix in APIS:
        return _own_api(model, prefix, name)
    return _elsewhere(model, prefix, name)


def _own_api(model: Model, prefix: str, name: str) -> Endpoint:
    api = APIS[prefix]
    url = _from_environment(api.url_variable)
    base_url = api.usual_url if url is None else checked_url(api.url_variable, url)
    key = _key(model) or SecretStr(_from_environment(api.key_variable) or "")
    if not key.get_secret_value() and not is_loopback(base_url):
        raise InvalidRequest(
            "model",
            model.name,
            f"set {api.key_variable}; "
            "without a key there are local servers (ollama:NAME) and recorded answers (recorded:demo)",
        )
    return Endpoint(
        name=model.name,
        provider=prefix,
        wire=api.wire,
        model=name,
        base_url=base_url,
        target=_target(prefix, base_url, api.usual_url),
        key_from="the Model's api_key" if model.api_key else api.key_variable,
        api_key=key,
        own_api=True,
        takes_images=model.takes_images,
    )


def _elsewhere(model: Model, prefix: str, name: str) -> Endpoint:
    """A local server, or another address that speaks a provider's format."""
    usual = LOCAL_SERVERS.get(prefix) or APIS[prefix].usual_url
    base_url = model.base_url or usual
    return Endpoint(
        name=model.name,
        provider=prefix,
        wire=APIS[prefix].wire if prefix in APIS else "openai",
        model=name,
        base_url=base_url,
        target=_target(prefix, base_url, usual),
        key_from="the Model's api_key" if model.api_key else f"nowhere: pass Model({model.name!r}, api_key=...)",
        api_key=_key(model) or SecretStr(""),
        takes_images=model.takes_images,
    )


def _recorded(model: Model, name: str) -> Endpoint:
    if model.base_url is not None:
        raise InvalidRequest("base_url", model.base_url, "leave it out: recorded answers have a server of their own")
    known = shipped_recording().model_named(name)
    if known is None:
        raise InvalidRequest("model", model.name, _nearest(name))
    return Endpoint(
        name=model.name,
        provider="recorded",
        wire="anthropic" if known.startswith("claude") else "openai",
        model=known,
        base_url=None,
        target="recorded",
        key_from="nowhere: none is needed",
        takes_images=False,
    )


def _nearest(name: str) -> str:
    """The recorded models whose names are most like `name`."""
    near = get_close_matches(name, shipped_recording().models, n=3)
    names = ", ".join(f"recorded:{one}" for one in near)
    nearest = f"the nearest are {names}; " if near else ""
    return f"{nearest}recorded:demo is all models in turn, `steer-llm simulate --list` has all names"


def _target(prefix: str, base_url: str, usual: str) -> str:
    return prefix if base_url == usual else f"{prefix}@{base_url}"


def _key(model: Model) -> SecretStr | None:
    return SecretStr(model.api_key) if isinstance(model.api_key, str) else model.api_key


def _from_environment(variable: str) -> str | None:
    return os.environ.get(variable, "").strip() or None


def _require_extra(name: str, wire: Wire) -> None:
    if any(find_spec(package) is None for package in ("pydantic_ai", "genai_prices", "httpx2", wire)):
        raise InvalidRequest("model", name, f"models by name need the extra `llm`: {install_line('llm')}")
