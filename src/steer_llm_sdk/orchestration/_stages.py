"""What a stage of a strategy is, what it comes to, and one tool as a stage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration._call import Run
from steer_llm_sdk.orchestration._result import ToolResult
from steer_llm_sdk.orchestration.fallback import Answer, NotAcceptable, ToolCall, answer_of_one
from steer_llm_sdk.orchestration.tool_registry import Tool
from steer_llm_sdk.reliability.silence import Life


class Done(NamedTuple):
    """What a strategy came to; `trace` is what the output shows of it, under `metadata["strategy"]`."""

    answer: Answer
    trace: dict[str, Any]

    @property
    def usable(self) -> bool:
        return self.answer.result is not None and self.answer.acceptable


class Strategy(Protocol):
    """How to come to an answer. `wanted` is the confidence that a bundle needs; `life` watches the attempts."""

    @property
    def calls(self) -> Sequence[ToolCall]:
        """Every tool that it may ask."""
        ...

    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done: ...


Stage: TypeAlias = "Strategy | Tool | ToolCall"
Judge: TypeAlias = Callable[[Any, Any], float | Awaitable[float]]
"""(request, content) -> how far the answer is to be trusted."""


class View(Run):
    """The run, with a request of its own. What is counted, is counted in the run."""

    _run: Run

    def __init__(self, run: Run, request: Any) -> None:
        root: Run = run._run if isinstance(run, View) else run
        vars(self).update({name: value for name, value in vars(root).items() if name not in _COUNTED})
        self._run = root
        self.request = request


_COUNTED = ("spending", "answers", "answered", "tools_left")


def _of_the_run(name: str) -> Any:
    return property(lambda view: getattr(view._run, name), lambda view, value: setattr(view._run, name, value))


for _name in _COUNTED:
    setattr(View, _name, _of_the_run(_name))


@dataclass(frozen=True, slots=True)
class One:
    """`takes` makes the tool's request of the content before it, in a chain."""

    call: ToolCall
    takes: Callable[[Any], Any] | None = None

    @property
    def calls(self) -> Sequence[ToolCall]:
        return (self.call,)

    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done:
        tool = self.call.tool
        run.tell("stage_started", {"tool_name": tool.name, "tool_version": tool.version})
        answer = await answer_of_one(run, self.call, wanted, life)
        trace: dict[str, Any] = {"tool": tool.name, "version": tool.version, "outcome": _outcome(answer)}
        run.tell("stage_done", {"tool_name": tool.name, "tool_version": tool.version, "outcome": trace["outcome"]})
        return Done(answer, trace)


def _outcome(answer: Answer) -> str:
    if answer.result is None:
        return "failed"
    return answer.result.status if answer.acceptable else "not_acceptable"


def step(tool: Tool, takes: Callable[[Any], Any] | None = None, **options: Any) -> One:
    """A tool with options of its own, and, in a chain, with `takes(content)` to make its request; it may be async."""
    return One(ToolCall.of(tool, options), takes)


def strategy_of(stage: Stage) -> Strategy:
    if isinstance(stage, ToolCall):
        return One(stage)
    if isinstance(stage, Tool):
        return One(ToolCall.of(stage, {}))
    if not callable(getattr(stage, "carry_out", None)):
        raise TypeError(f"stage: expected a Tool or a strategy, got {type(stage).__name__}")
    return stage


def strategies_of(stages: Sequence[Stage], least: int) -> tuple[Strategy, ...]:
    if len(stages) < least:
        raise InvalidRequest("stages", len(stages), f"give {least} or more tools or strategies")
    return tuple(map(strategy_of, stages))


def calls_of(stages: Iterable[Strategy]) -> tuple[ToolCall, ...]:
    return tuple(call for stage in stages for call in stage.calls)


@dataclass(frozen=True, slots=True)
class Staged:
    """A strategy that is made of stages."""

    stages: Sequence[Strategy]

    @property
    def calls(self) -> Sequence[ToolCall]:
        return calls_of(self.stages)


def time_is_up(run: Run) -> bool:
    """Then what was finished is kept, as a partial answer to who comes for it."""
    return run.deadline is not None and not run.deadline.remaining()


def content_of(result: ToolResult) -> Any:
    """Of a bundle the consensus, or the only answer that there is."""
    if result.bundle is None:
        return result.content
    if result.bundle.summary.consensus is not None:
        return result.bundle.summary.consensus
    return next((one.data for one in result.bundle.replicates if one.quality.valid), None)


def any_usable(done: Mapping[int, Done]) -> bool:
    return any(one.usable for one in done.values())


def failures_of(done: Iterable[Done]) -> dict[str, Exception]:
    return {name: error for one in done for name, error in one.answer.failures.items()}


def traces_of(done: Mapping[int, Done]) -> list[dict[str, Any]]:
    return [done[number].trace for number in sorted(done)]


def best_of(done: Mapping[int, Done], failures: dict[str, Exception]) -> Answer:
    """Of answers that were not acceptable the one with the most confidence; else the last failure."""
    answers = [done[number].answer for number in sorted(done)]
    kept = [answer for answer in answers if answer.result is not None]
    if not kept:
        return answers[-1]._replace(failures=failures)
    found = {error.tool.name: error.found for error in failures.values() if isinstance(error, NotAcceptable)}
    best = max(kept, key=lambda answer: found.get(answer.tool.name, -1.0))
    return best._replace(failures=failures, acceptable=False)
