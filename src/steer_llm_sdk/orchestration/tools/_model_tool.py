"""What the tools that ask models share: their models, the options of a call, and the question made of a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration._declared import names_of
from steer_llm_sdk.orchestration.tool_registry import Tool
from steer_llm_sdk.orchestration.tools._messages import messages_of
from steer_llm_sdk.orchestration.tools._model_call import Question, Route
from steer_llm_sdk.orchestration.tools.base import BundleOptions, read_options
from steer_llm_sdk.orchestration.tools.structured import OutputSchema
from steer_llm_sdk.providers.base import ModelAdapter
from steer_llm_sdk.providers.models import Model, ModelSpec, Price, resolve_model

T = TypeVar("T")


class ModelCallOptions(BaseModel):
    """The options of a call that set something of its requests."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    model: Any = None
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    seed: int | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    first_byte_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    chunk_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    idempotency_key: str | None = None


KEPT = 32
"""So many models that options named keep their connections."""

_log = logging.getLogger(__name__)


class Models:
    """The adapters of a tool. There is one for each name or Model, kept because it holds connections: all of the tool's
    `own`, and the KEPT latest that an option named."""

    def __init__(self) -> None:
        self._made: dict[str | Model, ModelAdapter] = {}
        self._own: Sequence[ModelAdapter] = ()
        self._closing: set[asyncio.Task[None]] = set()

    def own(self, spec: Any, price: Price | None) -> Sequence[ModelAdapter]:
        """The adapters of the tool, made as `adapters` makes them."""
        self._own = self.adapters(spec, price)
        return self._own

    def named(self, spec: Any) -> list[ModelAdapter]:
        """The adapters for what an option names."""
        adapters = self.adapters(spec)
        if len(self._made) - len(self._own) > KEPT:
            self._close_the_oldest()
        return adapters

    def adapters(self, spec: Any, price: Price | None = None) -> list[ModelAdapter]:
        """An adapter for each model that `spec` names. Raises InvalidRequest if it names none, or one is not usable.

        `price` is that of those which have none of their own.
        """
        specs = list(spec) if isinstance(spec, Sequence) and not isinstance(spec, str) else [spec]
        if not specs:
            raise InvalidRequest("model", spec, 'name at least one model, such as "openai:gpt-5-mini"')
        return [self._adapter(one, price) for one in specs]

    async def aclose(self) -> None:
        """Close the adapters that were made here. An adapter that was given is its owner's to close."""
        for adapter in self._made.values():
            await adapter.aclose()
        here = asyncio.get_running_loop()
        for closing in [task for task in self._closing if task.get_loop() is here]:
            await asyncio.wait({closing})

    def _adapter(self, spec: Any, price: Price | None) -> ModelAdapter:
        if isinstance(spec, ModelAdapter):
            return spec
        if not isinstance(spec, (str, Model)):
            raise InvalidRequest("model", spec, "give a name such as openai:gpt-5-mini, a Model, or a list of them")
        adapter = self._made.pop(spec, None)
        if adapter is None:
            adapter = resolve_model(spec if price is None else _priced(spec, price))
        self._made[spec] = adapter
        return adapter

    def _close_the_oldest(self) -> None:
        """What is asked of it now, it still answers."""
        named = [spec for spec, adapter in self._made.items() if adapter not in self._own]
        for spec in named[:-KEPT]:
            closing = asyncio.get_running_loop().create_task(self._made.pop(spec).aclose())
            self._closing.add(closing)
            closing.add_done_callback(self._closed)

    def _closed(self, closing: asyncio.Task[None]) -> None:
        self._closing.discard(closing)
        if not closing.cancelled() and (error := closing.exception()) is not None:
            _log.warning("a model that is no longer asked could not be closed: %r", error)


def _priced(spec: str | Model, price: Price) -> Model:
    model = Model(spec) if isinstance(spec, str) else spec
    return replace(model, price=price) if model.price is None else model


class ModelTool(Tool):
    """The base of LLMTool and LLMBundleTool; what the arguments mean is said there."""

    composite = True

    def __init__(
        self,
        name: str,
        model: ModelSpec | Sequence[ModelSpec],
        instructions: str | None = None,
        output_type: Any = None,
        *,
        version: str = "1.0.0",
        description: str = "",
        capabilities: Sequence[str] = (),
        max_tokens: int | None = None,
        temperature: float | None = None,
        first_byte_timeout: float | None = None,
        chunk_timeout: float | None = None,
        price: Price | None = None,
    ) -> None:
        defaults = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "first_byte_timeout": first_byte_timeout,
            "chunk_timeout": chunk_timeout,
        }
        self._name = name
        if price is not None and not isinstance(price, Price):
            raise InvalidRequest("price", price, "give Price(input=..., output=...), in USD per million tokens")
        self._models = Models()
        adapters = self._models.own(model, price)
        self._own_routes = _routes(name, adapters, alone=name)
        self._questions = _QuestionBuilder(instructions, OutputSchema.of(output_type), defaults)
        self.version = version
        self.description = description
        self.capabilities = names_of(name, "capabilities", capabilities)
        self.provider = adapters[0].target
        self.supported_models = tuple(adapter.name for adapter in adapters)

    @property
    def name(self) -> str:
        return self._name

    @property
    def targets(self) -> Sequence[tuple[str, str]]:
        return tuple((route.adapter.target, route.part) for route in self._own_routes)

    def validate_request(self, request: Any) -> None:
        messages_of(request)

    async def aclose(self) -> None:
        await self._models.aclose()

    def _routes(self, model: Any) -> Sequence[Route]:
        """The routes to the models that an option names, or to the tool's own."""
        return self._own_routes if model is None else _routes(self._name, self._models.named(model))


class _QuestionBuilder:
    """Makes a question of a request, with the tool's instructions and form and the settings of the call or the tool."""

    def __init__(self, instructions: str | None, output: OutputSchema | None, defaults: Mapping[str, Any]) -> None:
        self._instructions = instructions
        self._output = output
        self._defaults = read_options(ModelCallOptions, defaults)

    def question(self, request: Any, chosen: ModelCallOptions) -> Question:
        default = self._defaults
        return Question(
            messages=messages_of(request, self._instructions),
            output=self._output,
            max_tokens=_first(chosen.max_tokens, default.max_tokens),
            temperature=_first(chosen.temperature, default.temperature),
            first_byte_timeout=_first(chosen.first_byte_timeout, default.first_byte_timeout),
            chunk_timeout=_first(chosen.chunk_timeout, default.chunk_timeout),
            seed=chosen.seed,
            idempotency_key=chosen.idempotency_key,
        )


def without_bundle_options(options: Mapping[str, Any], known: type[BaseModel]) -> dict[str, Any]:
    """`options` without those of a bundle that `known` does not have: a planner gives every tool the same options."""
    foreign = BundleOptions.model_fields.keys() - known.model_fields.keys()
    return {name: value for name, value in options.items() if name not in foreign}


def _routes(tool_name: str, adapters: Sequence[ModelAdapter], alone: str | None = None) -> tuple[Route, ...]:
    """A route for each adapter. `alone` is the part of a model that is the only one."""
    if len(adapters) == 1 and alone is not None:
        return (Route(adapter=adapters[0], part=alone),)
    return tuple(
        Route(adapter=adapter, part=_part(tool_name, adapters, index)) for index, adapter in enumerate(adapters)
    )


def _part(tool_name: str, adapters: Sequence[ModelAdapter], index: int) -> str:
    """`tool[model]`; a model that is there several times, with several keys or endpoints, is numbered."""
    name = adapters[index].name
    same = [place for place, adapter in enumerate(adapters) if adapter.name == name]
    number = f"#{same.index(index) + 1}" if len(same) > 1 else ""
    return f"{tool_name}[{name}{number}]"


def _first(given: T | None, default: T | None) -> T | None:
    return default if given is None else given
