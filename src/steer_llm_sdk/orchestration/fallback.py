"""Fallback: the tools of a plan, one after the other, until one gives an acceptable answer."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from steer_llm_sdk.errors import ErrorCategory, OrchestratorError, ProviderError, ProviderTimeout, ToolExecutionError
from steer_llm_sdk.models.plain import copied
from steer_llm_sdk.models.usage import Amount, tokens_of
from steer_llm_sdk.orchestration._call import Call, Run, current
from steer_llm_sdk.orchestration._result import ToolResult, describe_error, readable
from steer_llm_sdk.orchestration.reliability import begin
from steer_llm_sdk.orchestration.tool_registry import Tool
from steer_llm_sdk.reliability.classify import classify
from steer_llm_sdk.reliability.silence import Life, first_of
from steer_llm_sdk.streaming.manager import EventManager

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle

_log = logging.getLogger(__name__)


# Found on their classes each time, these would take as long again as what they do.
_new = tuple.__new__
_enter = current.set
_leave = current.reset
_result_of = ToolResult.of


class NotAcceptable(OrchestratorError):
    """A bundle that is below what was asked for: `result` is kept, for it may be the best there is."""

    def __init__(self, tool: Tool, result: ToolResult, reason: str, found: float | None = None) -> None:
        super().__init__(f"Tool '{tool.name}' came to {reason}")
        self.tool = tool
        self.result = result
        self.found = -1.0 if found is None else found


SEED = 0
"""What a deterministic run gives its tools, unless the caller gives a seed of his own."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool of a plan, with the options that the plan has for it; `target` and `part` are what a breaker may know of
    a tool that is itself the call. The rest is the tool's own, which is read in a tenth of the time here; `validates`:
    it looks at a request before it is sent."""

    tool: Tool
    planned: Mapping[str, Any]
    target: str
    part: str
    name: str
    version: str
    composite: bool
    validates: bool

    @classmethod
    def of(cls, tool: Tool, planned: Mapping[str, Any]) -> ToolCall:
        validates = type(tool).validate_request is not Tool.validate_request
        return cls(tool, planned, *tool.targets[0], tool.name, tool.version, tool.composite, validates)

    def options(self, run: Run) -> dict[str, Any]:
        """What the tool sees: the caller's options over the plan's over the tool's own, then what the run adds. All of
        it is made anew: what an attempt writes into it is seen by nobody else, least of all the caller."""
        config, own, given = run.given, self.tool.default_options, run.tool_options
        planned = self.planned
        options: dict[str, Any] = copied({**own, **planned}) if own or planned else {}
        if "max_parallel" not in options or (not run.plain and "max_parallel" in run.options.model_fields_set):
            options["max_parallel"] = config["max_parallel"]
        if not run.plain:
            if config["deterministic"]:
                options["seed"], options["temperature"] = SEED, 0
            if config["streaming"]:
                options["streaming"] = True
        if given:
            options.update(copied({**given}))
        options["request_id"], options["trace_id"] = run.request_id, run.trace_id
        if config["budget"]:
            options["global_budget"] = dict(config["budget"])
        if config["timeout_ms"] is not None:
            options["timeout_ms"] = config["timeout_ms"]
        if config["idempotency_key"] is not None:
            options["idempotency_key"] = f"{config['idempotency_key']}:{self.tool.name}"
        return options


class Answer(NamedTuple):
    """Who answered, or (`result` None) that nobody did; what went wrong before, in order, by tool.

    `acceptable` False: the best of several bundles that were all without a valid replicate or below `min_confidence`.
    `silent` are those beside which another was asked.
    """

    tool: Tool
    result: ToolResult | None
    failures: dict[str, Exception]
    acceptable: bool = True
    silent: Sequence[str] = ()


def first_answer(run: Run, plan: Sequence[ToolCall], min_confidence: float | None) -> Coroutine[Any, Any, Answer]:
    """Ask several tools in order. The next is tried whatever went wrong, except where the request does not validate for
    the first: then it is the caller's to correct. What does not suit a fallback may still suit the next. Beside one
    that is silent for `silence_timeout` the next is asked, and the first acceptable answer wins."""
    if run.policies.silence_timeout is None:
        return _one_after_the_other(run, plan, min_confidence)
    return _Beside(run, plan, min_confidence, run.policies.silence_timeout).answer()


async def only_answer(run: Run, step: ToolCall, min_confidence: float | None) -> Answer:
    """Ask one tool, as most runs do. It is `_one_after_the_other` and `_ask` for a plan of one, in one coroutine."""
    tool = step.tool
    if step.validates and (objection := _objection(tool, run)) is not None:
        return Answer(tool, None, {tool.name: objection})
    call, usual = _PlainCall(run, step), run.policies.usual
    token = _enter(call)
    try:
        result: ToolResult
        if step.composite:
            result = await _composed(run, step, None)
        elif (
            usual is None
            or run.events is not None
            or (permit := (breaker := usual.breakers.of_call(call)).free) is None
        ):
            result = await run.policies.attempt(call)
        else:
            began, line = begin(call)
            failed: Exception | None = None
            try:
                work = tool.execute(copied(run.request), step.options(run), None)
                result = _result_of(await (work if type(work) is CoroutineType else _awaited(work)))
            except BaseException as error:
                failed = usual.failed(call, breaker, permit, began, line, error)
            else:
                usual.succeeded(call, breaker, permit, began, line, result)
            if failed is not None:
                try:
                    result = await usual.again(call, failed)
                finally:
                    del failed  # It holds this frame by its traceback.
        if result.bundle is not None:
            _check(run, tool, result, result.bundle, min_confidence)
        return _new(Answer, (tool, result, {}, True, ()))  # Answer(tool, result, {}), at half the time.
    except BaseException as error:
        return _best_of((step,), {tool.name: _failure(run, tool, error)})
    finally:
        _leave(token)


async def _one_after_the_other(run: Run, plan: Sequence[ToolCall], min_confidence: float | None) -> Answer:
    failures: dict[str, Exception] = {}
    for run.tools_left, step in zip(range(len(plan) - 1, -1, -1), plan, strict=True):
        if failures and run.deadline is not None and not run.deadline.remaining():
            break
        if failures:
            _tell_fallback(run, plan, step, failures)
        objection = _objection(step.tool, run)
        if objection is not None:
            failures[step.tool.name] = objection
            if len(failures) == 1 and isinstance(objection, ValueError):
                break
            continue
        try:
            result = await _ask(run, step, None)
            if result.bundle is not None:
                _check(run, step.tool, result, result.bundle, min_confidence)
            return Answer(step.tool, result, failures)
        except Exception as error:
            failures[step.tool.name] = error
    return _best_of(plan, failures)


async def answer_of_one(run: Run, step: ToolCall, min_confidence: float | None, life: Life | None = None) -> Answer:
    """Ask one tool, as a part of something larger that `life` may stop."""
    tool = step.tool
    try:
        if (objection := _objection(tool, run)) is not None:
            raise objection
        result = await _ask(run, step, life)
        if result.bundle is not None:
            _check(run, tool, result, result.bundle, min_confidence)
        return Answer(tool, result, {})
    except Exception as error:
        return _best_of((step,), {tool.name: error})


class _Beside:
    """The tools of a plan, where one that is silent does not hold up the next."""

    def __init__(self, run: Run, plan: Sequence[ToolCall], min_confidence: float | None, after: float) -> None:
        self._run = run
        self._plan = plan
        self._min_confidence = min_confidence
        self._after = after
        self._lives: dict[int, Life] = {}
        self._failures: dict[str, Exception] = {}
        self._silent: list[str] = []
        self._is_the_callers = False

    async def answer(self) -> Answer:
        self._run.tools_left = len(self._plan) - 1
        candidates = [partial(self._one, number) for number in range(len(self._plan))]
        won = await first_of(candidates, after=self._after, may_start=self._may_start, failed=self._failed)
        if won is None:
            return _best_of(self._plan, self._failures)._replace(silent=self._silent)
        number, result = won
        self._blame_the_silent(self._plan[number].tool.name)
        failures = {step.tool.name: error for step in self._plan if (error := self._failures.get(step.tool.name))}
        return Answer(self._plan[number].tool, result, failures, silent=self._silent)

    async def _one(self, number: int, life: Life) -> ToolResult:
        self._lives[number] = life
        run, step = self._run, self._plan[number]
        objection = _objection(step.tool, run)
        if objection is not None:
            self._is_the_callers = number == 0 and isinstance(objection, ValueError)
            raise objection
        result = await _ask(run, step, life)
        if result.bundle is not None:
            _check(run, step.tool, result, result.bundle, self._min_confidence)
        return result

    def _may_start(self, number: int, beside: bool) -> bool:
        run, step = self._run, self._plan[number]
        if run.deadline is not None and not run.deadline.remaining():
            return False
        if beside:
            before = self._plan[number - 1].tool.name
            self._silent.append(before)
            run.tell("silence", {"tool_name": before, "after_ms": self._after * 1000, "beside": step.tool.name})
        else:
            _tell_fallback(run, self._plan, step, self._failures)
        run.tools_left = len(self._plan) - 1 - number
        return True

    def _failed(self, number: int, error: Exception) -> bool:
        self._failures[self._plan[number].tool.name] = error
        return not self._is_the_callers

    def _blame_the_silent(self, winner: str) -> None:
        """One that was silent to the end has failed, though nobody waited for it to say so."""
        for number, life in self._lives.items():
            if life.blamed:
                tool = self._plan[number].tool
                says = (
                    f"'{tool.name}' gave no sign of life for {self._after:g} s (silence_timeout); '{winner}' answered"
                )
                self._failures[tool.name] = ProviderTimeout(says, tool.targets[0][0])


def _objection(tool: Tool, run: Run) -> Exception | None:
    if type(tool).validate_request is Tool.validate_request:
        return None
    try:
        said: Any = tool.validate_request(copied(run.request))  # type: ignore[func-returns-value]  # None, unless it is async.
        if said is not None and inspect.iscoroutine(said):  # Of a tool that was never registered.
            said.close()
            raise TypeError(f"Tool '{tool.name}' validate_request: nobody awaits it; write def, and not async def")
        if run.tool_options and not tool.takes_options:
            tool.validate_options(copied({**run.tool_options}))
    except Exception as error:
        return readable(tool.name, error)
    return None


async def _ask(run: Run, step: ToolCall, life: Life | None) -> ToolResult:
    tool = step.tool
    call = _PlainCall(run, step)
    call.life = life
    token = current.set(call)
    try:
        result: ToolResult = await (_composed(run, step, life) if tool.composite else run.policies.attempt(call))
        return result
    except BaseException as error:
        raise _failure(run, tool, error)  # noqa: B904 - it has the cause that it should have
    finally:
        current.reset(token)


def _failure(run: Run, tool: Tool, error: BaseException) -> Exception:
    """What a tool failed with. A run that is cancelled ends there, whatever the tool makes of it. A cancellation or an
    exit that the tool came up with by itself is a failure of the tool."""
    error = readable(tool.name, error)
    try:
        if not isinstance(error, (Exception, asyncio.CancelledError, SystemExit)):
            raise error
        if not isinstance(error, SystemExit) and run.asked_to_stop():
            if isinstance(error, asyncio.CancelledError):
                raise error
            raise asyncio.CancelledError from error
        if isinstance(error, Exception):
            _show_bug(tool, error)
            return error
        failure = ToolExecutionError(tool.name, error)
        failure.__cause__ = error
        return failure
    finally:
        del error  # What is raised here holds this frame by its traceback.


def _show_bug(tool: Tool, error: Exception) -> None:
    """The output has the message only: of an error that no provider and no policy raised, the traceback is logged."""
    if isinstance(error, (OrchestratorError, ProviderError)):
        return
    if classify(error).category in (ErrorCategory.UNKNOWN, ErrorCategory.VALIDATION):
        shown = (type(error), error, _own_frames(error.__traceback__))
        _log.warning("tool '%s' raised %s", tool.name, type(error).__name__, exc_info=shown)


def _own_frames(trace: TracebackType | None) -> TracebackType | None:
    """From the first frame of the tool's own on: those before it are the same for every tool. All of it where there is
    none."""
    own = trace
    while own is not None and own.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _ON_THE_WAY:
        own = own.tb_next
    return own or trace


_ON_THE_WAY = ("steer_llm_sdk", "asyncio", "concurrent")


def _composed(run: Run, step: ToolCall, life: Life | None) -> Awaitable[ToolResult]:
    """A composite tool puts each of its own calls under the policies."""
    return _executed(run, step) if run.events is None else _told(run, step, life)


class _PlainCall(Call):
    """Asking a tool, as the scope that its code runs in and, where the tool is not composite, as the one call it is."""

    __slots__ = ("_worst", "step")

    def __init__(self, run: Run, step: ToolCall) -> None:
        self.run = run
        self.step = step
        self.tool = step.name
        self.version = step.version
        self.target = step.target
        self.part = step.part
        self.life = None
        self.model = None
        self.followed = False
        self.attempts = 0
        self.ended = None
        self.queued = 0.0
        self._worst: Amount | None = None

    def watched(self, life: Life) -> _PlainCall:
        call = _PlainCall(self.run, self.step)
        call.life = life
        return call

    @property
    def worst_case(self) -> Amount:  # type: ignore[override]  # Only a budget or a limit on tokens asks for it.
        worst = self._worst
        if worst is None:
            tool = self.step.tool
            if type(tool).worst_case is Tool.worst_case:  # Which looks at neither.
                worst = tool.worst_case(None, {})
            else:
                worst = tool.worst_case(copied(self.run.request), self.step.options(self.run))
            self._worst = worst
        return worst

    def execute(self) -> Coroutine[Any, Any, Any]:
        run, step = self.run, self.step
        if run.events is not None:
            return _awaited(_told(run, step, self.life))
        work = step.tool.execute(copied(run.request), step.options(run), None)
        # A tool may be written without `async`, and give something else that can be awaited.
        return work if type(work) is CoroutineType else _awaited(work)

    def spent(self, result: Any) -> Amount:
        answer = result if type(result) is ToolResult else ToolResult.of(result)
        usage = answer.usage
        return _new(Amount, (tokens_of(usage) if usage else self.worst_case.tokens, answer.cost_usd))

    received = ToolResult.of  # type: ignore[assignment]  # A method on top of it takes as long as itself.

    def measure(self, result: ToolResult) -> ToolResult:
        return result


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


async def _executed(run: Run, step: ToolCall, events: EventManager | None = None) -> ToolResult:
    return ToolResult.of(await step.tool.execute(copied(run.request), step.options(run), events))


def _told(run: Run, step: ToolCall, life: Life | None) -> Awaitable[ToolResult]:
    """An attempt that somebody listens to: its text is shown only while it is the one that is shown. Whatever it tells
    is a sign of life; where others may work beside it, its events say whose they are."""
    assert run.events is not None
    who, work = {"tool_name": step.tool.name}, partial(_executed, run, step)
    if life is None:
        return run.events.attempt(who, work)
    return run.events.attempt(who, work, {**who, "tool_version": step.tool.version}, life.alive)


def _check(run: Run, tool: Tool, result: ToolResult, bundle: EvidenceBundle, wanted: float | None) -> None:
    """Raises NotAcceptable. The run remembers it as well, in case its deadline comes before a better answer."""
    found = bundle.summary.confidence
    if result.status == "failed":
        reason, found = "no valid replicate", None
    elif wanted is not None and (found is None or found < wanted):
        shown = "no confidence" if found is None else f"a confidence of {found:.2f}"
        reason = f"{shown}; min_confidence is {wanted:g}"
    else:
        return
    # Two, for the one that is raised holds the run by its traceback.
    run.unaccepted += (NotAcceptable(tool, result, reason, found),)
    raise NotAcceptable(tool, result, reason, found)


def _best_of(plan: Sequence[ToolCall], failures: dict[str, Exception]) -> Answer:
    """Nobody's answer was acceptable. What was paid for is not thrown away: the best bundle is returned as it is."""
    kept = [error for error in failures.values() if isinstance(error, NotAcceptable)]
    if not kept:
        return Answer(plan[len(failures) - 1].tool, None, failures)
    best = max(kept, key=lambda error: error.found)
    return Answer(best.tool, best.result, failures, acceptable=False)


def _tell_fallback(run: Run, plan: Sequence[ToolCall], step: ToolCall, failures: Mapping[str, Exception]) -> None:
    if run.events is None:
        return
    name, error = list(failures.items())[-1]
    run.tell("fallback", {"from": name, "to": step.tool.name, "error": describe_error(error)})
    run.events.metadata.update(tool_name=step.tool.name, tool_version=step.tool.version)
