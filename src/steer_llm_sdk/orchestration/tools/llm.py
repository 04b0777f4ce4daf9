"""Tools that ask a language model: once, or k times for evidence."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

from pydantic import Field

from steer_llm_sdk.errors import BudgetExceeded, InvalidOutput
from steer_llm_sdk.evidence import Calibrator
from steer_llm_sdk.evidence.policy import Fields
from steer_llm_sdk.orchestration._call import expect_answers
from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle
from steer_llm_sdk.orchestration.tools._bundle import Job, ReplicateOutcome, Slot, make_bundle
from steer_llm_sdk.orchestration.tools._model_call import (
    Account,
    ModelAnswer,
    Question,
    ReplicateBudgetExceeded,
    Route,
    TextEvents,
    ask,
)
from steer_llm_sdk.orchestration.tools._model_tool import ModelCallOptions, ModelTool, without_bundle_options
from steer_llm_sdk.orchestration.tools.base import (
    MAX_K,
    BundleOptions,
    BundleTool,
    checked_fields,
    own_limit,
    read_options,
)
from steer_llm_sdk.providers.models import ModelSpec, Price
from steer_llm_sdk.reliability.budget import Ledger
from steer_llm_sdk.streaming.manager import EventManager


class LLMOptions(ModelCallOptions):
    """The options of one call of an LLMTool. A value given here replaces the one the tool was made with.

    `model` is a name, a Model, an adapter, or a list of them. `first_byte_timeout` and `chunk_timeout` are the seconds
    that a request may go without a byte, before its answer and within it. `timeout_ms` limits the whole call;
    that of a run is kept by the run. `streaming` sends the text as delta events while it arrives. A run passes the
    other options to every tool.
    """

    streaming: bool = False
    timeout_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_parallel: int | None = None
    global_budget: dict[str, float] | None = None
    trace_id: str | None = None
    request_id: str | None = None


class LLMBundleOptions(BundleOptions, ModelCallOptions):
    """The options of an LLMBundleTool: those of every bundle, and those that set something of each request.

    Without `seeds`, one for each replicate is derived from `seed`. `per_replicate_budget` limits one replicate with its
    repair: a request that might exceed it is not sent. The replicate's id is appended to an `idempotency_key`.
    """


class LLMTool(ModelTool):
    """Asks a model and returns its text, or a value of `output_type`.

        LLMTool("title", "openai:gpt-5-mini", "Give the text a title.")
        LLMTool("facts", ["openai:gpt-5-mini", "anthropic:claude-haiku-4-5"], output_type=Facts)
        LLMTool("local", Model("vllm:qwen3", base_url="http://127.0.0.1:9000/v1"), output_type={"type": "object"})

    `model` is a name, a `Model` with its own endpoint and key, or a list: when one model fails the next one is asked,
    unless a budget or an attempt limit was the reason. Retry, breaker, budget and attempt timeout of the run apply to
    each request separately.

    `output_type` is a pydantic model, any type pydantic understands, or a JSON Schema; None is text. An answer that
    does not have that form is followed by one repair request with the validation error, counted and charged; if that
    fails too, InvalidOutput is raised. Without a `max_tokens`, a run with a budget sets it to what the budget leaves.

    `first_byte_timeout` is how many seconds a request may wait for the first byte of the answer, `chunk_timeout` how
    many may pass between two bytes; None is no such limit. A request that exceeds one fails with ProviderTimeout.

    `price`, in USD per million tokens, is that of the models which have no price of their own. With a budget in USD a
    model that has neither a declared nor a list price is refused before it is asked.

    The request is a text, or a mapping with `query`, `text` or `prompt` (every other key is added under its name), or
    with `messages`: `{"role", "content"}` where content is text or a list of text and image_url parts.
    """

    def validate_options(self, options: Mapping[str, Any]) -> None:
        self._routes(read_options(LLMOptions, without_bundle_options(options, LLMOptions)).model)

    async def execute(
        self,
        request: Any,
        options: dict[str, Any] | None = None,
        event_manager: EventManager | None = None,
    ) -> dict[str, Any]:
        """`content`; `usage` and `cost_usd` of all requests; `metadata` with the model that answered and any notes.

        `metadata["truncated"]` is true where a text was cut off at `max_tokens`: the output of the run is partial.
        """
        chosen = read_options(LLMOptions, without_bundle_options(options or {}, LLMOptions))
        question = self._questions.question(request, chosen)
        routes = self._routes(chosen.model)
        events = None
        if chosen.streaming and event_manager is not None:
            events = TextEvents(event_manager, is_json=question.output is not None)
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


class LLMBundleTool(ModelTool, BundleTool):
    """Asks the same question k times, with different seeds, and reports field by field where the answers agree.

    Each replicate is asked for as an LLMTool asks, at most `max_parallel` at once, and no more of them than the options
    `stop` and `latency` want (see BundleOptions). A replicate that fails, or whose text was cut off, is invalid and
    counts against the agreement. `fields` are the dotted paths by which answers are compared, or policies by path
    beside which everything is; the annotations of an `output_type` may hold policies as well. `max_k` is the highest
    `k` that an option may ask for. A `calibrator` turns agreement into trust, where it was made of answers of the same
    model (all of them, joined by ", ", where there are several), k and rule. `options` are defaults for those of a run,
    such as `stop` or `latency`. The other arguments are those of LLMTool.
    """

    options_type: ClassVar[type[BundleOptions]] = LLMBundleOptions
    supports_early_stop = True
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
        first_byte_timeout: float | None = None,
        chunk_timeout: float | None = None,
        price: Price | None = None,
        fields: Fields | None = None,
        max_k: int = MAX_K,
        calibrator: Calibrator | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            name,
            model,
            instructions,
            output_type,
            version=version,
            description=description,
            capabilities=capabilities,
            max_tokens=max_tokens,
            temperature=temperature,
            first_byte_timeout=first_byte_timeout,
            chunk_timeout=chunk_timeout,
            price=price,
        )
        self._fields = checked_fields(fields, output_type)
        self.max_k = max_k
        self._calibrator = calibrator
        self.default_options = {**(options or {}), "k": k}
        self._read_options({})

    def validate_options(self, options: Mapping[str, Any]) -> None:
        chosen = cast(LLMBundleOptions, self._read_options(options))
        self._routes(chosen.model)

    async def _execute_bundle(
        self, request: Any, options: BundleOptions, event_manager: EventManager | None
    ) -> EvidenceBundle:
        chosen = cast(LLMBundleOptions, options)
        expect_answers(chosen.k)
        routes = self._routes(chosen.model)
        question = self._questions.question(request, chosen)
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
                calibrator=self._calibrator,
            )
        )


async def _in_time(work: Awaitable[ModelAnswer], timeout_ms: float | None) -> ModelAnswer:
    """Within the tool's own limit, if it has one."""
    timer = asyncio.timeout(own_limit(timeout_ms))
    try:
        async with timer:
            return await work
    except TimeoutError:
        if not timer.expired():
            raise
        raise TimeoutError(f"no answer within timeout_ms = {timeout_ms:g}") from None


async def _replicate(
    question: Question, routes: Sequence[Route], budget: Mapping[str, float], slot: Slot
) -> ReplicateOutcome:
    """Ask for one replicate. A failure is part of the outcome, not raised, and has the model that answered last; where
    none answered, the only one that was asked."""
    account = Account()
    outcome = await _asked(question, routes, budget, slot, account)
    if outcome.model is not None:
        return outcome
    asked = [reply.model for reply in account.replies] or [route.adapter.name for route in routes]
    return replace(outcome, model=asked[-1] if account.replies or len(asked) == 1 else None)


async def _asked(
    question: Question, routes: Sequence[Route], budget: Mapping[str, float], slot: Slot, account: Account
) -> ReplicateOutcome:
    key = question.idempotency_key
    own = replace(
        question,
        seed=slot.seed,
        idempotency_key=None if key is None else f"{key}:{slot.id}",
        budget=Ledger(budget.get("tokens"), budget.get("cost_usd")),
        share=slot.share,
    )
    milliseconds = budget.get("ms")
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
    if answer.truncated:
        # Half a text agrees with nobody, and two halves prove nothing.
        return _outcome(account, error=_cut_off(answer), model=answer.model)
    return _outcome(account, data=answer.value, model=answer.model, warnings=_warnings(answer))


def _cut_off(answer: ModelAnswer) -> InvalidOutput:
    return InvalidOutput(answer.warnings[-1], answer.target, answer=str(answer.value))


def _outcome(account: Account, **known: Any) -> ReplicateOutcome:
    return ReplicateOutcome(
        usage=account.usage,
        costs=account.costs,
        unpriced=account.unpriced,
        notes=_of_account(account),
        **known,
    )


def _warnings(answer: ModelAnswer) -> list[str]:
    failed = [f"{name} was asked first: {error}" for name, error in answer.failures.items()]
    repaired = ["the first answer did not have the form asked for"] if answer.repaired else []
    return [*failed, *repaired, *answer.warnings]


def _of_answer(answer: ModelAnswer) -> dict[str, Any]:
    """The model that answered, and those notes on its answer that apply."""
    notes = {
        "finish_reason": answer.finish_reason,
        "truncated": answer.truncated,
        "repaired": answer.repaired,
        "warnings": list(answer.warnings),
        "silent_models": list(answer.silent),
        "failed_models": {name: str(error) for name, error in answer.failures.items()},
    }
    return {"model": answer.model, **{name: note for name, note in notes.items() if note}}


def _of_account(account: Account) -> dict[str, Any]:
    """Those notes on the requests that apply: a recording or this machine answered, settings that were ignored, ids."""
    replies = account.replies
    notes = {
        "simulated": any(reply.simulated for reply in replies),
        "local": any(reply.local for reply in replies),
        "ignored": list(dict.fromkeys(name for reply in replies for name in reply.ignored)),
        "provider_request_ids": [reply.request_id for reply in replies if reply.request_id is not None],
    }
    return {name: note for name, note in notes.items() if note}


def _task_of(request: Any, default: str) -> str:
    kind = request.get("type") if isinstance(request, Mapping) else None
    return kind if isinstance(kind, str) and kind else default
