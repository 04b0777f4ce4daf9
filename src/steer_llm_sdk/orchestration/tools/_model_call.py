"""Asking models: what LLMTool does once and LLMBundleTool k times.

One question goes to the first model of a list. Each request stands under the policies of the run by itself
(`protected`); an answer that does not have the form asked for gets one repair attempt; a model that fails is followed
by the next one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from steer_llm_sdk.errors import (
    AllToolsFailed,
    AttemptsUsedUp,
    BudgetExceeded,
    InvalidOutput,
    ProviderError,
)
from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.models.usage import Amount, add_usage, tokens_of
from steer_llm_sdk.orchestration._call import Spent, budget_left, protected, time_left
from steer_llm_sdk.orchestration.tools.structured import (
    InvalidAnswer,
    OutputSchema,
    Parsed,
    clean_text,
    read_answer,
)
from steer_llm_sdk.providers.base import Message, ModelAdapter, ModelReply, ModelRequest
from steer_llm_sdk.reliability.budget import Ledger, charge_of_failure
from steer_llm_sdk.streaming.manager import EventManager, RunEvents

_AFTER_DEADLINE: Final = 0.1
"""Seconds by which a model's own timeout lies behind the run's deadline: the deadline speaks first, always."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A model, and the name by which a breaker tells it from the tool's other models."""

    adapter: ModelAdapter
    part: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, of whichever model.

    `budget` is this answer's own; `share` is how much of the run's budget it may plan with where nobody set
    `max_tokens`.
    """

    messages: tuple[Message, ...]
    output: OutputSchema | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    idempotency_key: str | None = None
    budget: Ledger = field(default_factory=Ledger)
    share: float = 1.0


class ReplicateBudgetExceeded(BudgetExceeded):
    """What this answer alone may spend does not allow the next request; the run may go on."""


@dataclass(slots=True)
class Account:
    """What one question took, over all its requests, the failed ones included."""

    usage: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    unpriced: bool = False
    replies: list[ModelReply] = field(default_factory=list)

    @property
    def cost_usd(self) -> float | None:
        return None if self.unpriced else math.fsum(self.costs.values())

    def add(self, reply: ModelReply) -> None:
        self.replies.append(reply)
        self.usage = add_usage(self.usage, reply.usage)
        if reply.cost_usd is None:
            self.unpriced = True
        else:
            self.costs[reply.model] = self.costs.get(reply.model, 0.0) + reply.cost_usd

    def add_failure(self, error: Exception) -> None:
        """A failed request that used something has used it at a price that nobody told."""
        if isinstance(error, ProviderError) and error.usage:
            self.usage = add_usage(self.usage, error.usage)
            self.unpriced = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`failures` are the models that were asked before, with what went wrong, in order."""

    value: Any
    model: str
    finish_reason: str | None
    warnings: tuple[str, ...] = ()
    repaired: bool = False
    failures: Mapping[str, Exception] = field(default_factory=dict)


class TextEvents:
    """A model's text on its way to the events, piece by piece. An attempt that starts anew says so first."""

    def __init__(self, manager: EventManager, *, is_json: bool) -> None:
        self._within_run = isinstance(manager, RunEvents)
        self._events = manager if isinstance(manager, RunEvents) else _own_run(manager)
        self._is_json = is_json
        self._shown = 0

    def begin(self, adapter: ModelAdapter) -> None:
        """What was shown of an attempt before this one is no part of the answer."""
        if self._shown:
            data = {"model": adapter.name, "chunks": self._shown}
            self._tell({"event_type": "restart", "data": data}, adapter, 0)
        self._shown = 0

    def show(self, text: str, adapter: ModelAdapter) -> None:
        self._tell(text, adapter, self._shown)
        self._shown += 1

    async def flush(self) -> None:
        """Within a run, the run does this."""
        if not self._within_run:
            await self._events.flush()

    def _tell(self, delta: str | Mapping[str, Any], adapter: ModelAdapter, index: int) -> None:
        is_json = self._is_json and isinstance(delta, str)
        self._events.tell(StreamDeltaEvent(delta, index, is_json, provider=adapter.target, model=adapter.name))


def _own_run(manager: EventManager) -> RunEvents:
    return manager.for_run(manager.request_id or "", manager.trace_id or "")


async def ask(
    question: Question, routes: Sequence[Route], account: Account, events: TextEvents | None = None
) -> Answer:
    """The first answer that the models, in order, give. What was spent is in `account`, also when this raises.

    A budget or an attempt limit ends it; anything else that goes wrong with one model the next one may cure. One model:
    its error is raised; several: AllToolsFailed with all of them.
    """
    failures: dict[str, Exception] = {}
    for number, route in enumerate(routes):
        try:
            answer = await _Asking(_for_route(question, number), route, account, events).answer()
            return replace(answer, failures=failures)
        except BudgetExceeded:
            raise
        except Exception as error:
            account.add_failure(error)
            failures[_name(route, routes)] = error
            if isinstance(error, AttemptsUsedUp) or time_left() == 0.0:
                break
    if len(failures) == 1:
        raise next(iter(failures.values()))
    raise AllToolsFailed(failures)


def _for_route(question: Question, number: int) -> Question:
    """Another model is another call: it does not share the key of the first."""
    key = question.idempotency_key
    return replace(question, idempotency_key=f"{key}:m{number + 1}") if key is not None and number else question


def _name(route: Route, routes: Sequence[Route]) -> str:
    same = [other.adapter.name for other in routes].count(route.adapter.name) > 1
    return route.part if same else route.adapter.name


@dataclass(frozen=True, slots=True)
class _Asking:
    """One question to one model: ask, read, and where the answer cannot be read ask once more."""

    question: Question
    route: Route
    account: Account
    events: TextEvents | None

    async def answer(self) -> Answer:
        request = self._request()
        reply, limit = await self._send(request)
        try:
            return self._answer(reply, self._read(reply), limit)
        except InvalidAnswer as error:
            reason = _said(reply, limit, error)
        return await self._repaired(_repair(request, reply, reason))

    async def _repaired(self, request: ModelRequest) -> Answer:
        reply, limit = await self._send(request)
        try:
            return replace(self._answer(reply, self._read(reply), limit), repaired=True)
        except InvalidAnswer as error:
            raise InvalidOutput(
                f"{reply.model} gave no usable answer, asked twice: {_said(reply, limit, error)}",
                self.route.adapter.target,
                request_id=reply.request_id,
                answer=reply.text,
            ) from error

    def _request(self) -> ModelRequest:
        asked = self.question
        return ModelRequest(
            messages=asked.messages,
            schema=None if asked.output is None else asked.output.schema,
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            seed=asked.seed,
            idempotency_key=asked.idempotency_key,
        )

    def _read(self, reply: ModelReply) -> Parsed:
        output = self.question.output
        if output is not None:
            return read_answer(reply.text, output)
        if not reply.text.strip():
            raise InvalidAnswer("the answer is empty; answer the question")
        return clean_text(reply.text)

    def _answer(self, reply: ModelReply, parsed: Parsed, limit: int | None) -> Answer:
        cut = (_cut_off(limit),) if reply.finish_reason == "length" else ()
        return Answer(
            value=parsed.value,
            model=reply.model,
            finish_reason=reply.finish_reason,
            warnings=(*parsed.warnings, *cut),
        )

    async def _send(self, request: ModelRequest) -> tuple[ModelReply, int | None]:
        """The reply, and the `max_tokens` it was given."""
        adapter = self.route.adapter
        await adapter.prepare()
        request = fitted(adapter, request, *self._room())
        worst = adapter.worst_case(request)
        own = self.question.budget
        try:
            own.reserve(worst)
        except BudgetExceeded as error:
            raise ReplicateBudgetExceeded(error.budget_type, error.limit, error.actual) from None
        actual = worst
        try:
            reply: ModelReply = await protected(
                lambda: self._attempt(request),
                target=adapter.target,
                part=self.route.part,
                measure=_spent,
                worst_case=worst,
                model=adapter.name,
            )
            actual = Amount(tokens_of(reply.usage), reply.cost_usd)
        except BaseException as error:
            actual = charge_of_failure(error, worst)
            raise
        finally:
            own.settle(worst, actual)
        self.account.add(reply)
        return reply, request.max_tokens

    async def _attempt(self, request: ModelRequest) -> ModelReply:
        adapter, events = self.route.adapter, self.events
        timed = replace(request, timeout=_timeout())
        if events is None:
            return await adapter.request(timed)
        events.begin(adapter)
        return await adapter.request(timed, lambda text: events.show(text, adapter))

    def _room(self) -> tuple[float, float]:
        """Tokens and USD that this request may plan with."""
        own, share = self.question.budget, self.question.share
        tokens, cost_usd = budget_left()
        return min(own.tokens_left, tokens * share), min(own.cost_left, cost_usd * share)


def fitted(adapter: ModelAdapter, request: ModelRequest, tokens: float, cost_usd: float) -> ModelRequest:
    """A request without `max_tokens` gets as many as a budget leaves, so that its worst case keeps within it.

    One whose input alone is too much stays as it is: the budget then refuses it, with the numbers.
    """
    if request.max_tokens is not None or (math.isinf(tokens) and math.isinf(cost_usd)):
        return request
    worst = adapter.worst_case(request)
    if worst.tokens <= tokens and (worst.cost_usd is None or worst.cost_usd <= cost_usd):
        return request
    one, many = (adapter.worst_case(replace(request, max_tokens=count)) for count in (1, 1001))
    room = tokens - (one.tokens - 1)
    if one.cost_usd is not None and many.cost_usd is not None and many.cost_usd > one.cost_usd:
        room = min(room, 1 + (cost_usd - one.cost_usd) / (many.cost_usd - one.cost_usd) * 1000)
    return replace(request, max_tokens=math.floor(room)) if room >= 1 else request


def _spent(reply: ModelReply) -> Spent:
    return Spent(dict(reply.usage), reply.cost_usd)


def _timeout() -> float | None:
    left = time_left()
    return None if left is None else left + _AFTER_DEADLINE


def _repair(request: ModelRequest, reply: ModelReply, reason: str) -> ModelRequest:
    """The same conversation, with the answer in it and what was wrong with it."""
    # A provider refuses a message with nothing in it.
    said = (Message("assistant", reply.text),) if reply.text.strip() else ()
    form = " Answer again, with only the JSON that was asked for." if request.schema is not None else ""
    ask_again = Message("user", f"That answer cannot be used: {reason}.{form}")
    key = request.idempotency_key
    return replace(
        request,
        messages=(*request.messages, *said, ask_again),
        idempotency_key=None if key is None else f"{key}:repair",
    )


def _said(reply: ModelReply, limit: int | None, error: InvalidAnswer) -> str:
    return f"{_cut_off(limit)}; {error}" if reply.finish_reason == "length" else str(error)


def _cut_off(limit: int | None) -> str:
    return "the answer was cut off at " + ("its limit; set max_tokens" if limit is None else f"max_tokens = {limit}")
