"""Tools that ask a language model: once, or k times for evidence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest
from steer_llm_sdk.evidence import parse_path
from steer_llm_sdk.orchestration._call import expect_answers, time_left
from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle
from steer_llm_sdk.orchestration.tool_registry import Tool
from steer_llm_sdk.orchestration.tools._bundle import Job, Outcome, Slot, make_bundle
from steer_llm_sdk.orchestration.tools._messages import messages_of
from steer_llm_sdk.orchestration.tools._model_call import (
    Account,
    Answer,
    Question,
    ReplicateBudgetExceeded,
    Route,
    TextEvents,
    ask,
)
from steer_llm_sdk.orchestration.tools.base import MAX_K, BundleOptions, BundleTool, read_options
from steer_llm_sdk.orchestration.tools.structured import OutputSchema
from steer_llm_sdk.providers.base import ModelAdapter
from steer_llm_sdk.providers.models import Model, resolve_model
from steer_llm_sdk.reliability.budget import Ledger
from steer_llm_sdk.streaming.manager import EventManager

ModelSpec: TypeAlias = str | Model | ModelAdapter


class _CallOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)

    model: Any = None
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    seed: int | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    idempotency_key: str | None = None


class LLMOptions(_CallOptions):
    """The options of an LLMTool; each goes before what the tool was made with.

    `model` is a name, a Model, an adapter, or a list of them. `timeout_ms` bounds the whole call. `streaming` shows
    the text as it comes, in delta events. The others are what a run tells every tool.
    """

    streaming: bool = False
    timeout_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_parallel: int | None = None
    global_budget: dict[str, float] | None = None
    trace_id: str | None = None
    request_id: str | None = None


class LLMBundleOptions(BundleOptions, _CallOptions):
    """The options of an LLMBundleTool: those of every bundle, and `model`, `temperature`, `max_tokens` for each call.

    From `seed` the seeds are made where none are given. `per_replicate_budget` bounds one replicate with its repair: a
    request that might exceed it is not sent. An `idempotency_key` gets the replicate's id behind it.
    """


class _Models:
    """The models of a tool, each with the name by which a breaker knows it, and those that an option names instead."""

    def __init__(self, tool_name: str, spec: ModelSpec | Sequence[ModelSpec]) -> None:
        self._tool_name = tool_name
        self._made: dict[str | Model, ModelAdapter] = {}
        self.routes = self._routes(spec)

    @property
    def names(self) -> list[str]:
        return [route.adapter.name for route in self.routes]

    def chosen(self, spec: Any) -> Sequence[Route]:
        return self.routes if spec is None else self._routes(spec, chosen=True)

    async def aclose(self) -> None:
        """Close what was made here. An adapter that was given is its owner's to close."""
        for adapter in self._made.values():
            await adapter.aclose()

    def _routes(self, spec: Any, chosen: bool = False) -> tuple[Route, ...]:
        specs = list(spec) if isinstance(spec, Sequence) and not isinstance(spec, str) else [spec]
        if not specs:
            raise InvalidRequest("model", spec, 'name at least one model, such as "openai:gpt-5-mini"')
        adapters = [self._adapter(one) for one in specs]
        if len(adapters) == 1 and not chosen:
            return (Route(adapter=adapters[0], part=self._tool_name),)
        return tuple(Route(adapter=adapter, part=self._part(adapters, index)) for index, adapter in enumerate(adapters))

    def _part(self, adapters: Sequence[ModelAdapter], index: int) -> str:
        """`tool[model]`; a model that is there several times, with several keys or endpoints, is numbered."""
        name = adapters[index].name
        same = [place for place, adapter in enumerate(adapters) if adapter.name == name]
        number = f"#{same.index(index) + 1}" if len(same) > 1 else ""
        return f"{self._tool_name}[{name}{number}]"

    def _adapter(self, spec: Any) -> ModelAdapter:
        if isinstance(spec, ModelAdapter):
            return spec
        if not isinstance(spec, (str, Model)):
            raise InvalidRequest("model", spec, "give a name such as openai:gpt-5-mini, a Model, or a list of them")
        if spec not in self._made:
            self._made[spec] = resolve_model(spec)
        return self._made[spec]


class LLMTool(Tool):
    """Asks a model and hands back its text, or a value of `output_type`.

        LLMTool("title", "openai:gpt-5-mini", "Give the text a title.")
        LLMTool("facts", ["openai:gpt-5-mini", "anthropic:claude-haiku-4-5"], output_type=Facts)
        LLMTool("local", Model("qwen3", base_url="http://127.0.0.1:8000/v1"), output_type={"type": "object", ...})

    `model` is a name, a `Model` with its own endpoint and key, or a list: the next one is asked when one fails,
    whatever the reason, short of a budget or an attempt limit. Each request stands under the run's retry, breaker,
    budget and attempt timeout by itself.

    `output_type` is a pydantic model, any type pydantic understands, or a JSON Schema; None is text. An answer that
    does not have that form gets one repair attempt that carries the validation error, counted and charged; after that
    it is InvalidOutput. Where nobody sets `max_tokens` and the run has a budget, it is what the budget leaves.

    The request is a text, or a mapping with `query`, `text` or `prompt` (every other key is added under its name), or
    with `messages`: `{"role", "content"}` where content is text or a list of text and image_url parts.
    """

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
    ) -> None:
        self._name = name
        self._models = _Models(name, model)
        self._asking = _Asking(instructions, OutputSchema.of(output_type), max_tokens, temperature)
        self.version = version
        self.description = description
        self.capabilities = tuple(capabilities)
        self.provider = self._models.routes[0].adapter.target
        self.supported_models = tuple(self._models.names)

    @property
    def name(self) -> str:
        return self._name

    @property
    def targets(self) -> Sequence[tuple[str, str]]:
        return tuple((route.adapter.target, route.part) for route in self._models.routes)

    def validate_request(self, request: Any) -> None:
        messages_of(request)

    def validate_options(self, options: Mapping[str, Any]) -> None:
        self._models.chosen(read_options(LLMOptions, _without_bundle_options(options)).model)

    async def execute(
        self,
        request: Any,
        options: dict[str, Any] | None = None,
        event_manager: EventManager | None = None,
    ) -> dict[str, Any]:
        """`content`, `usage` and `cost_usd` of all its calls; in `metadata` who answered, and what is to be known."""
        chosen = read_options(LLMOptions, _without_bundle_options(options or {}))
        question = self._asking.question(request, chosen)
        routes = self._models.chosen(chosen.model)
        events = self._asking.events(event_manager) if chosen.streaming else None
        account = Account()
        try:
            answer = await _in_time(ask(question, routes, account, events), chosen.timeout_ms)
        finally:
            if events is not None:
                await events.flush()
        return {
            "content": answer.value,
            "usage": account.usage,
            "cost_usd": account.cost_usd,
            "metadata": {**_of_answer(answer), **_of_account(account)},
        }

    async def aclose(self) -> None:
        await self._models.aclose()


class LLMBundleTool(BundleTool):
    """Asks the same k times, with different seeds, and reports field by field where the answers agree.

    As LLMTool, k times and at most `max_parallel` at once. A replicate that fails is invalid and counts against the
    agreement. `fields` are the dotted paths that the answers are compared by; None compares everything. `max_k` is the
    most that an option may ask for.
    """

    composite = True
    options_type: ClassVar[type[BundleOptions]] = LLMBundleOptions
    supports_streaming = True

    def __init__(
        self,
        name: str,
        model: ModelSpec | Sequence[ModelSpec],
        instructions: str | None = None,
        output_type: Any = None,
        k: int = 3,
        *,
        version: str = "1.0.0",
        description: str = "",
        capabilities: Sequence[str] = (),
        max_tokens: int | None = None,
        temperature: float | None = None,
        fields: Sequence[str] | None = None,
        max_k: int = MAX_K,
    ) -> None:
        self._name = name
        self._models = _Models(name, model)
        self._asking = _Asking(instructions, OutputSchema.of(output_type), max_tokens, temperature)
        self._fields = _checked_fields(fields)
        self.max_k = max_k
        self.default_options = {"k": read_options(BundleOptions, {"k": k}, max_k=max_k).k}
        self.version = version
        self.description = description
        self.capabilities = tuple(capabilities)
        self.provider = self._models.routes[0].adapter.target
        self.supported_models = tuple(self._models.names)

    @property
    def name(self) -> str:
        return self._name

    @property
    def targets(self) -> Sequence[tuple[str, str]]:
        return tuple((route.adapter.target, route.part) for route in self._models.routes)

    def validate_request(self, request: Any) -> None:
        messages_of(request)

    def validate_options(self, options: Mapping[str, Any]) -> None:
        chosen = cast(LLMBundleOptions, self._read_options(options))
        _refuse_unknown(chosen)
        self._models.chosen(chosen.model)

    async def _execute_bundle(
        self, request: Any, options: BundleOptions, event_manager: EventManager | None
    ) -> EvidenceBundle:
        chosen = cast(LLMBundleOptions, options)
        _refuse_unknown(chosen)
        expect_answers(chosen.k)
        routes = self._models.chosen(chosen.model)
        question = self._asking.question(request, chosen)
        schema = question.output
        return await make_bundle(
            Job(
                task=_task_of(request, self._name),
                model=", ".join(route.adapter.name for route in routes),
                seeds=chosen.seeds or self._generate_seeds(chosen.k, chosen.seed or 0),
                options=chosen,
                produce=partial(_replicate, question, routes, chosen.per_replicate_budget or {}),
                tell=partial(self.emit_event, event_manager),
                listened=event_manager is not None,
                fields=self._fields,
                accepts=None if schema is None else schema.accepts,
            )
        )

    async def aclose(self) -> None:
        await self._models.aclose()


class _Asking:
    """What a tool was made with, and from it and the options of a call the question to the models."""

    def __init__(
        self, instructions: str | None, output: OutputSchema | None, max_tokens: int | None, temperature: float | None
    ) -> None:
        self._instructions = instructions
        self._output = output
        defaults = {"max_tokens": max_tokens, "temperature": temperature}
        self._defaults = read_options(_CallOptions, defaults)

    def question(self, request: Any, chosen: _CallOptions) -> Question:
        mine = self._defaults
        return Question(
            messages=messages_of(request, self._instructions),
            output=self._output,
            max_tokens=mine.max_tokens if chosen.max_tokens is None else chosen.max_tokens,
            temperature=mine.temperature if chosen.temperature is None else chosen.temperature,
            seed=chosen.seed,
            idempotency_key=chosen.idempotency_key,
        )

    def events(self, manager: EventManager | None) -> TextEvents | None:
        return None if manager is None else TextEvents(manager, is_json=self._output is not None)


async def _in_time(work: Awaitable[Answer], timeout_ms: float | None) -> Answer:
    """Within the tool's own limit, where the deadline of the run is not the earlier one: that is the run's to keep."""
    left = time_left()
    if timeout_ms is None or (left is not None and left <= timeout_ms / 1000):
        return await work
    timer = asyncio.timeout(timeout_ms / 1000)
    try:
        async with timer:
            return await work
    except TimeoutError:
        if not timer.expired():
            raise
        raise TimeoutError(f"no answer within timeout_ms = {timeout_ms:g}") from None


async def _replicate(question: Question, routes: Sequence[Route], budget: Mapping[str, float], slot: Slot) -> Outcome:
    """One replicate, whatever becomes of it."""
    key = question.idempotency_key
    own = replace(
        question,
        seed=slot.seed,
        idempotency_key=None if key is None else f"{key}:{slot.id}",
        budget=Ledger(budget.get("tokens"), budget.get("cost_usd")),
        share=slot.share,
    )
    account, milliseconds = Account(), budget.get("ms")
    clock = asyncio.get_running_loop().time
    started = clock()
    timer = asyncio.timeout(None if milliseconds is None else milliseconds / 1000)
    try:
        async with timer:
            answer = await ask(own, routes, account)
    except ReplicateBudgetExceeded as error:
        return _outcome(account, error=error)
    except BudgetExceeded as error:
        return _outcome(account, over_budget=error)
    except Exception as error:
        if milliseconds is None or not timer.expired():
            return _outcome(account, error=error)
        late = ReplicateBudgetExceeded("time", milliseconds, (clock() - started) * 1000)
        return replace(_outcome(account, error=late), unpriced=True)
    return _outcome(account, data=answer.value, model=answer.model, warnings=_warnings(answer))


def _outcome(account: Account, **known: Any) -> Outcome:
    return Outcome(
        usage=account.usage,
        costs=account.costs,
        unpriced=account.unpriced,
        notes=_of_account(account),
        **known,
    )


def _warnings(answer: Answer) -> list[str]:
    failed = [f"{name} was asked first: {error}" for name, error in answer.failures.items()]
    repaired = ["the first answer did not have the form asked for"] if answer.repaired else []
    return [*failed, *repaired, *answer.warnings]


def _of_answer(answer: Answer) -> dict[str, Any]:
    """Who answered. What is not the case is not listed."""
    notes = {
        "finish_reason": answer.finish_reason,
        "repaired": answer.repaired,
        "warnings": list(answer.warnings),
        "failed_models": {name: str(error) for name, error in answer.failures.items()},
    }
    return {"model": answer.model, **{name: note for name, note in notes.items() if note}}


def _of_account(account: Account) -> dict[str, Any]:
    """What is to be known of the requests: whether a recording or this machine answered, what a model cannot take."""
    replies = account.replies
    notes = {
        "simulated": any(reply.simulated for reply in replies),
        "local": any(reply.local for reply in replies),
        "ignored": list(dict.fromkeys(name for reply in replies for name in reply.ignored)),
        "provider_request_ids": [reply.request_id for reply in replies if reply.request_id is not None],
    }
    return {name: note for name, note in notes.items() if note}


def _without_bundle_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A planner hands every tool the options of a bundle; a single call has no use for them."""
    foreign = BundleOptions.model_fields.keys() - LLMOptions.model_fields.keys()
    return {name: value for name, value in options.items() if name not in foreign}


def _refuse_unknown(options: BundleOptions) -> None:
    # A bundle tells its events whether or not text is streamed; k texts at once would be shown to nobody's use.
    unknown = [name for name in options.extra if name != "streaming"]
    if unknown:
        known = sorted(LLMBundleOptions.model_fields.keys() - {"extra"})
        raise InvalidRequest(unknown[0], options.extra[unknown[0]], f"the options are {', '.join(known)}")


def _checked_fields(fields: Sequence[str] | None) -> tuple[str, ...] | None:
    if fields is None:
        return None
    if isinstance(fields, str) or not fields:
        raise InvalidRequest("fields", fields, 'give a list of dotted paths, such as ["answer"], or None for all')
    for path in fields:
        try:
            parse_path(path)
        except ValueError as error:
            raise InvalidRequest("fields", path, str(error)) from None
    return tuple(fields)


def _task_of(request: Any, default: str) -> str:
    kind = request.get("type") if isinstance(request, Mapping) else None
    return kind if isinstance(kind, str) and kind else default
