"""Asking models: what LLMTool does once and LLMBundleTool k times.

One question goes to the first model of a list. The policies of the run apply to each request separately
(`protected`); an answer that does not have the form asked for is followed by one repair request; when a model fails,
the next one is asked.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from steer_llm_sdk.errors import (
    AllToolsFailed,
    AttemptsUsedUp,
    BudgetExceeded,
    InvalidOutput,
    ProviderError,
    ProviderTimeout,
)
from steer_llm_sdk.models.usage import Amount, add_usage, tokens_of
from steer_llm_sdk.orchestration._call import (
    Scope,
    Spent,
    WatchedScope,
    budget_left,
    current,
    current_scope,
    protected,
    time_left,
)
from steer_llm_sdk.orchestration.tools.structured import (
    InvalidAnswer,
    OutputSchema,
    Parsed,
    clean_text,
    read_answer,
)
from steer_llm_sdk.providers.base import Message, ModelAdapter, ModelReply, ModelRequest
from steer_llm_sdk.reliability.budget import Ledger, Reservation, charge_of_failure
from steer_llm_sdk.reliability.deadline import attempt_ends
from steer_llm_sdk.reliability.silence import Life, first_of
from steer_llm_sdk.streaming.manager import AttemptEvents, EventManager, RunEvents
from steer_llm_sdk.streaming.text import Speaker

_AFTER_DEADLINE: Final = 0.1
"""Seconds by which a model's own timeout is later than the run's deadline, so that the deadline always comes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A model, and the name by which a breaker tells it from the tool's other models."""

    adapter: ModelAdapter
    part: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, of whichever model. Timeouts are those of ModelRequest, in seconds.

    `budget` limits this one answer. `share` is the part of the run's remaining budget that it may plan with when no
    `max_tokens` is set.
    """

    messages: tuple[Message, ...]
    output: OutputSchema | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    first_byte_timeout: float | None = None
    chunk_timeout: float | None = None
    seed: int | None = None
    idempotency_key: str | None = None
    budget: Ledger = field(default_factory=Ledger)
    share: float = 1.0


class ReplicateBudgetExceeded(BudgetExceeded):
    """The budget of this one answer does not allow the next request. The run may go on."""


@dataclass(slots=True)
class Account:
    """What one question used, over all its requests, the failed ones included."""

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
        """What a failed request used has an unknown price."""
        if isinstance(error, ProviderError) and error.usage:
            self.usage = add_usage(self.usage, error.usage)
            self.unpriced = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """`failures` are the models that were asked before, each with its error, in order.

    `truncated`: it is a text, and not all of it. An answer of a form that was asked for is whole or was refused.
    """

    value: Any
    model: str
    reply: ModelReply
    finish_reason: str | None
    warnings: tuple[str, ...] = ()
    truncated: bool = False
    repaired: bool = False
    failures: Mapping[str, Exception] = field(default_factory=dict)
    target: str = ""
    silent: Sequence[str] = ()


class TextEvents:
    """A model's text as events, piece by piece. Of several attempts one at a time is shown; see streaming/text.py."""

    def __init__(self, manager: EventManager, *, is_json: bool) -> None:
        self._own: RunEvents | None = None
        if not isinstance(manager, (RunEvents, AttemptEvents)):
            manager = self._own = manager.for_run(manager.request_id or "", manager.trace_id or "")
        self._stage = manager.stage()
        self._is_json = is_json

    async def attempt(
        self, adapter: ModelAdapter, send: Callable[[Callable[[str], None]], Awaitable[ModelReply]]
    ) -> ModelReply:
        """One attempt; `send` gets what is to be called with each piece of text."""
        voice = self._stage.begin(Speaker({"model": adapter.name}, adapter.target, adapter.name))
        try:
            reply = await send(partial(voice.say, is_json=self._is_json))
        except BaseException:
            voice.fail()
            raise
        voice.returned(reply)
        return reply

    def choose(self, reply: ModelReply) -> None:
        """Show the text of the attempt that gave this reply, whatever was shown before."""
        self._stage.choose(reply)

    def void(self) -> None:
        """There is no answer: what was shown is no part of whatever comes next."""
        self._stage.void()

    async def flush(self) -> None:
        """Wait until the events are delivered. Within a run, the run does this."""
        if self._own is not None:
            await self._own.flush()


async def ask(
    question: Question, routes: Sequence[Route], account: Account, events: TextEvents | None = None
) -> ModelAnswer:
    """The first answer that one of the models, in order, gives. `account` has what was spent, also when this raises.

    After an exceeded budget or attempt limit no other model is asked; after any other error the next one is, and beside
    one that is silent for the `silence_timeout` of the run. If all fail, an exceeded budget is raised, else a single
    model's error, else AllToolsFailed with all errors.
    """
    scope = current_scope()
    asking = _Asking(question, routes, account, events)
    try:
        if scope is None or scope.run.policies.silence_timeout is None or len(routes) == 1:
            answer = await asking.in_turn()
        else:
            answer = await asking.beside(scope, scope.run.policies.silence_timeout)
    except BaseException:
        if events is not None:
            events.void()
        raise
    if scope is not None:
        scope.run.answered += 1
    if events is not None:
        events.choose(answer.reply)
    return answer


class _Asking:
    """One question on its way through the models."""

    def __init__(
        self, question: Question, routes: Sequence[Route], account: Account, events: TextEvents | None
    ) -> None:
        self._question = question
        self._routes = routes
        self._account = account
        self._events = events
        self._failures: dict[str, Exception] = {}
        self._silent: list[str] = []

    async def in_turn(self) -> ModelAnswer:
        for number in range(len(self._routes)):
            try:
                return replace(await self._one(number), failures=self._failures)
            except Exception as error:
                if not self._failed(number, error):
                    break
        raise self._error()

    async def beside(self, scope: Scope, after: float) -> ModelAnswer:
        lives: dict[int, Life] = {}

        async def one(number: int, life: Life) -> ModelAnswer:
            lives[number] = life
            token = current.set(WatchedScope(scope, life))
            try:
                return await self._one(number)
            finally:
                current.reset(token)

        def may_start(number: int, beside: bool) -> bool:
            if beside:
                silent, name = (_name(self._routes[n], self._routes) for n in (number - 1, number))
                self._silent.append(silent)
                told = {"tool_name": scope.tool, "model": silent, "after_ms": after * 1000, "beside": name}
                scope.run.tell("silence", told)
            return True

        candidates = [partial(one, number) for number in range(len(self._routes))]
        won = await first_of(candidates, after=after, may_start=may_start, failed=self._failed, parent=scope.life)
        if won is None:
            raise self._error()
        _, answer = won
        self._settle_the_losers(lives, answer, after)
        return replace(answer, failures=self._failures, silent=self._silent)

    def _settle_the_losers(self, lives: Mapping[int, Life], answer: ModelAnswer, after: float) -> None:
        """Of one that was stopped nobody knows what it has used. One that was silent to its end has failed."""
        for number, life in lives.items():
            if life.lost and life.sent_at is not None:
                self._account.unpriced = True
            if life.blamed:
                route = self._routes[number]
                says = f"no byte for {after:g} s (silence_timeout); {answer.model} answered"
                self._failures[_name(route, self._routes)] = ProviderTimeout(says, route.adapter.target)

    async def _one(self, number: int) -> ModelAnswer:
        question, followed = _for_route(self._question, number), number + 1 < len(self._routes)
        return await _ModelQuestion(question, self._routes[number], self._account, self._events, followed).answer()

    def _failed(self, number: int, error: Exception) -> bool:
        """Whether the next model may be asked."""
        self._account.add_failure(error)
        self._failures[_name(self._routes[number], self._routes)] = error
        return not isinstance(error, (AttemptsUsedUp, BudgetExceeded)) and time_left() != 0.0

    def _error(self) -> Exception:
        errors = list(self._failures.values())
        over = [error for error in errors if isinstance(error, BudgetExceeded)]
        return (over or errors)[0] if over or len(errors) == 1 else AllToolsFailed(self._failures)


def _for_route(question: Question, number: int) -> Question:
    """A request to another model is another call, so it gets an idempotency key of its own."""
    key = question.idempotency_key
    return replace(question, idempotency_key=f"{key}:m{number + 1}") if key is not None and number else question


def _name(route: Route, routes: Sequence[Route]) -> str:
    same = [other.adapter.name for other in routes].count(route.adapter.name) > 1
    return route.part if same else route.adapter.name


@dataclass(frozen=True, slots=True)
class _ModelQuestion:
    """One question to one model: ask and read the answer; if it cannot be read, ask once more. `followed`: if it fails,
    the next model is asked."""

    question: Question
    route: Route
    account: Account
    events: TextEvents | None
    followed: bool

    async def answer(self) -> ModelAnswer:
        request = self._request()
        reply, limit = await self._send(request)
        try:
            return self._answer(reply, self._read(reply), limit)
        except InvalidAnswer as error:
            reason = _said(reply, limit, error)
        return await self._repaired(_repair(request, reply, reason))

    async def _repaired(self, request: ModelRequest) -> ModelAnswer:
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
            first_byte_timeout=asked.first_byte_timeout,
            chunk_timeout=asked.chunk_timeout,
            seed=asked.seed,
            idempotency_key=_of_tenant(asked.idempotency_key),
        )

    def _read(self, reply: ModelReply) -> Parsed:
        output = self.question.output
        if output is not None:
            return read_answer(reply.text, output)
        if not reply.text.strip():
            raise InvalidAnswer("the answer is empty; answer the question")
        return clean_text(reply.text)

    def _answer(self, reply: ModelReply, parsed: Parsed, limit: int | None) -> ModelAnswer:
        output, cut = self.question.output, reply.finish_reason == "length"
        return ModelAnswer(
            value=parsed.value,
            model=reply.model,
            reply=reply,
            target=self.route.adapter.target,
            finish_reason=reply.finish_reason,
            warnings=(*parsed.warnings, *((_cut_off(limit),) if cut else ())),
            truncated=cut and (output is None or output.is_text),
        )

    async def _send(self, request: ModelRequest) -> tuple[ModelReply, int | None]:
        """The reply, and the `max_tokens` it was given."""
        adapter = self.route.adapter
        await adapter.prepare()
        request = fitted(adapter, request, *self._room())
        worst = adapter.worst_case(request)
        # One that does not fit at all is no attempt: it is refused before the run counts it.
        self._reserve(worst).settle(Amount())
        reply: ModelReply = await protected(
            lambda: self._paid_attempt(request, worst),
            target=adapter.target,
            part=self.route.part,
            measure=_spent,
            worst_case=worst,
            model=adapter.name,
            followed=self.followed,
        )
        self.account.add(reply)
        return reply, request.max_tokens

    async def _paid_attempt(self, request: ModelRequest, worst: Amount) -> ModelReply:
        """One attempt on this answer's own budget; a retry is paid for like the first."""
        held = self._reserve(worst)
        actual = worst
        try:
            reply = await self._attempt(request)
            actual = Amount(tokens_of(reply.usage) if reply.usage else worst.tokens, reply.cost_usd)
            return reply
        except BaseException as error:
            actual = charge_of_failure(error, worst)
            raise
        finally:
            held.settle(actual)

    def _reserve(self, worst: Amount) -> Reservation:
        try:
            return self.question.budget.reserve(worst)
        except BudgetExceeded as error:
            raise ReplicateBudgetExceeded(error.budget_type, error.limit, error.actual, overrun=error.overrun) from None

    async def _attempt(self, request: ModelRequest) -> ModelReply:
        adapter, events = self.route.adapter, self.events
        timed = replace(request, timeout=_timeout(), on_first_byte=_sign_of_life())
        if events is None:
            return await adapter.request(timed)
        return await events.attempt(adapter, partial(adapter.request, timed))

    def _room(self) -> tuple[float, float]:
        """Tokens and USD that this request may plan with."""
        own, share = self.question.budget, self.question.share
        tokens, cost_usd = budget_left()
        return min(own.tokens_left, tokens * share), min(own.cost_left, cost_usd * share)


def fitted(adapter: ModelAdapter, request: ModelRequest, tokens: float, cost_usd: float) -> ModelRequest:
    """A request without `max_tokens` gets as many as the budget leaves, so that its worst case is within the budget.

    A request whose input alone is too much is returned as it is: the budget then refuses it, with the numbers.
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


def _of_tenant(key: str | None) -> str | None:
    """Tenants that share an account with a provider do not share its answers."""
    scope = current_scope()
    tenant = "default" if scope is None else scope.run.options.tenant
    return key if key is None or tenant == "default" else f"{quote(tenant, safe='')}:{key}"


def _sign_of_life() -> Callable[[], None] | None:
    """Whom to tell that the attempt under way has begun to answer."""
    scope = current_scope()
    return None if scope is None or scope.pulse is None else scope.pulse.alive


def _spent(reply: ModelReply) -> Spent:
    return Spent(dict(reply.usage), reply.cost_usd, reply.simulated)


def _timeout() -> float | None:
    """Seconds that a request may take: what is left. Where the end of a keyed run may still move, the run ends it."""
    scope = current_scope()
    if scope is None:
        return None
    deadline, ends = scope.run.deadline, attempt_ends()
    known = [at for at in (deadline.at if deadline is not None and deadline.firm else None, ends) if at is not None]
    return max(min(known) - scope.run.clock(), 0.0) + _AFTER_DEADLINE if known else None


def _repair(request: ModelRequest, reply: ModelReply, reason: str) -> ModelRequest:
    """The same conversation, with the answer in it and what was wrong with it."""
    # Providers refuse an empty message.
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
