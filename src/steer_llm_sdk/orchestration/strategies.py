"""Ways to use several tools for one request, which compose: a stage of each is a tool or another strategy.

    chain(extract, check, publish)                each output is the next request
    race(a, b, c)                                 the first acceptable answer; the others are stopped, and charged
    merge(a, b, c)                                one evidence bundle over the answers of all
    quorum(2, a, b, c)                            the answer that two agree on
    cascade(cheap, dear, calibration=...)         the dear one only where the cheap one's answer is not trusted
    branch(is_code, coder, writer)                by the request

All stages share the run's deadline, budget and limit of attempts. Each call stands under the run's policies, and shows
in the output under the name of its tool: in `per_agent`, in the timeline, in the costs and in the events.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from steer_llm_sdk import evidence
from steer_llm_sdk.errors import AllToolsFailed, InvalidRequest, OrchestratorError
from steer_llm_sdk.models.usage import add_usage
from steer_llm_sdk.orchestration._calibration import Calibration
from steer_llm_sdk.orchestration._call import Run, current
from steer_llm_sdk.orchestration._declared import names_of
from steer_llm_sdk.orchestration._result import ToolResult, describe_error
from steer_llm_sdk.orchestration.fallback import Answer, NotAcceptable, ToolCall, answer_of_one
from steer_llm_sdk.orchestration.models.evidence_bundle import (
    BundleMetadata,
    EvidenceBundle,
    Replicate,
    ReplicateQuality,
)
from steer_llm_sdk.orchestration.planning.planner import ExecutionStrategy, PlanDecision
from steer_llm_sdk.orchestration.tool_registry import Tool
from steer_llm_sdk.reliability.canonical import canonical_json
from steer_llm_sdk.reliability.deadline import stop
from steer_llm_sdk.reliability.silence import Life

__all__ = ["Calibration", "Strategy", "StrategyTool", "branch", "cascade", "chain", "merge", "quorum", "race", "step"]


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
Judge: TypeAlias = Callable[[Any, Any], float]
"""(request, content) -> how far the answer is to be trusted."""


class _View(Run):
    """The run, with a request of its own. What is counted, is counted in the run."""

    _run: Run

    def __init__(self, run: Run, request: Any) -> None:
        root: Run = run._run if isinstance(run, _View) else run
        vars(self).update({name: value for name, value in vars(root).items() if name not in _COUNTED})
        self._run = root
        self.request = request


_COUNTED = ("spending", "answers", "answered", "tools_left")


def _of_the_run(name: str) -> Any:
    return property(lambda view: getattr(view._run, name), lambda view, value: setattr(view._run, name, value))


for _name in _COUNTED:
    setattr(_View, _name, _of_the_run(_name))


# ── one tool ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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
    """A tool with options of its own, and, in a chain, with `takes(content)` to make its request."""
    return One(ToolCall.of(tool, options), takes)


def _strategy(stage: Stage) -> Strategy:
    if isinstance(stage, ToolCall):
        return One(stage)
    if isinstance(stage, Tool):
        return One(ToolCall.of(stage, {}))
    if not callable(getattr(stage, "carry_out", None)):
        raise TypeError(f"stage: expected a Tool or a strategy, got {type(stage).__name__}")
    return stage


def _strategies(stages: Sequence[Stage], least: int) -> tuple[Strategy, ...]:
    if len(stages) < least:
        raise InvalidRequest("stages", len(stages), f"give {least} or more tools or strategies")
    return tuple(map(_strategy, stages))


def _calls(stages: Iterable[Strategy]) -> tuple[ToolCall, ...]:
    return tuple(call for stage in stages for call in stage.calls)


# ── chain ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Chain:
    stages: Sequence[Strategy]

    @property
    def calls(self) -> Sequence[ToolCall]:
        return _calls(self.stages)

    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done:
        done: list[Done] = []
        here = run
        for number, stage in enumerate(self.stages):
            last = number == len(self.stages) - 1
            run.tools_left = len(self.stages) - 1 - number
            try:
                if done:
                    here = _View(run, _request_of(done[-1].answer, stage))
                    if _time_is_up(run):
                        break
                reached = await stage.carry_out(here, wanted if last else None, life)
            except asyncio.CancelledError:
                if not (done and _time_is_up(run)):
                    raise
                break
            except Exception as error:
                tool = stage.calls[0].tool
                reached = Done(Answer(tool, None, {tool.name: error}), {"tool": tool.name, "outcome": "failed"})
            done.append(reached)
            if not reached.usable:
                break
        return _end_of_chain(done, len(self.stages))


def _time_is_up(run: Run) -> bool:
    """Then what was finished is kept, as a partial answer to who comes for it."""
    return run.deadline is not None and not run.deadline.remaining()


def _end_of_chain(done: Sequence[Done], asked: int) -> Done:
    good = [one for one in done if one.usable]
    stages = [{**one.trace, "content": one.answer.result.content if one.answer.result else None} for one in done]
    trace = {"kind": "chain", "finished": len(good), "of": asked, "stages": stages}
    failures = {name: error for one in done for name, error in one.answer.failures.items()}
    if len(good) == asked:
        return Done(done[-1].answer._replace(failures=failures), trace)
    kept = good[-1] if good else done[-1]
    return Done(kept.answer._replace(failures=failures, acceptable=False), trace)


def _request_of(answer: Answer, stage: Strategy) -> Any:
    result = answer.result
    assert result is not None
    content = _content_of(result)
    if isinstance(stage, One) and stage.takes is not None:
        return stage.takes(content)
    if isinstance(content, Mapping):
        return dict(content)
    if isinstance(content, str):
        return {"query": content}
    return {"query": canonical_json(content).decode(), "input": content}


def _content_of(result: ToolResult) -> Any:
    """Of a bundle the consensus, or the only answer that there is."""
    if result.bundle is None:
        return result.content
    if result.bundle.summary.consensus is not None:
        return result.bundle.summary.consensus
    return next((one.data for one in result.bundle.replicates if one.quality.valid), None)


def chain(*stages: Stage) -> Chain:
    """Each stage's content is the next one's request: a mapping as it is, a text as {"query": text}, anything else as
    {"query": its JSON, "input": it}; of an evidence bundle the consensus. A tool that does not validate it has failed.
    Where a stage fails, what the last good one gave is the answer, with status "partial"."""
    return Chain(_strategies(stages, 1))


# ── side by side ─────────────────────────────────────────────────────────────────────────────────────────────────────

Enough: TypeAlias = Callable[[Mapping[int, Done]], bool]


async def _side_by_side(
    stages: Sequence[Strategy], run: Run, wanted: float | None, life: Life | None, enough: Enough
) -> tuple[dict[int, Done], list[str]]:
    """What the stages came to, by number, when it was `enough` or all had ended; and the tools that were stopped."""
    run.tools_left = 0
    lives = [Life(parent=life) for _ in stages]
    loop = asyncio.get_running_loop()
    tasks = {
        loop.create_task(stage.carry_out(run, wanted, one)): number
        for number, (stage, one) in enumerate(zip(stages, lives, strict=True))
    }
    done: dict[int, Done] = {}
    running = set(tasks)
    try:
        while running:
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(ended, key=tasks.__getitem__):
                done[tasks[task]] = task.result()
            if enough(done):
                break
    except asyncio.CancelledError:
        if not (_any_usable(done) and _time_is_up(run)):
            raise
    else:
        for task in running:
            lives[tasks[task]].lost = True  # So that it is charged what it may have cost.
    finally:
        for one in lives:
            one.close()
        await stop(*running)
    lost = sorted(tasks[task] for task in running)
    stopped = [call.tool.name for number in lost for call in stages[number].calls]
    for name in stopped:
        run.tell("loser_stopped", {"tool_name": name})
    return done, stopped


def _any_usable(done: Mapping[int, Done]) -> bool:
    return any(one.usable for one in done.values())


def _failures(done: Iterable[Done]) -> dict[str, Exception]:
    return {name: error for one in done for name, error in one.answer.failures.items()}


def _traces(done: Mapping[int, Done]) -> list[dict[str, Any]]:
    return [done[number].trace for number in sorted(done)]


@dataclass(frozen=True, slots=True)
class Race:
    stages: Sequence[Strategy]

    @property
    def calls(self) -> Sequence[ToolCall]:
        return _calls(self.stages)

    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done:
        done, stopped = await _side_by_side(self.stages, run, wanted, life, _any_usable)
        won = next((one for _, one in sorted(done.items()) if one.usable), None)
        trace: dict[str, Any] = {"kind": "race", "stages": _traces(done), "stopped": stopped}
        failures = _failures(done.values())
        if won is None:
            return Done(_best_of(done, failures), {**trace, "winner": None})
        return Done(won.answer._replace(failures=failures), {**trace, "winner": won.answer.tool.name})


def _best_of(done: Mapping[int, Done], failures: dict[str, Exception]) -> Answer:
    """Of answers that were not acceptable the one with the most confidence; else the last failure."""
    answers = [done[number].answer for number in sorted(done)]
    kept = [answer for answer in answers if answer.result is not None]
    if not kept:
        return answers[-1]._replace(failures=failures)
    found = {error.tool.name: error.found for error in failures.values() if isinstance(error, NotAcceptable)}
    best = max(kept, key=lambda answer: found.get(answer.tool.name, -1.0))
    return best._replace(failures=failures, acceptable=False)


def race(*stages: Stage) -> Race:
    """All at once; the first acceptable answer wins. The others are cancelled, and charged the worst they may cost."""
    return Race(_strategies(stages, 2))


class _Together(Tool):
    """Several tools, as the one that answered."""

    def __init__(self, kind: str, tools: Iterable[str]) -> None:
        self._name = f"{kind}({', '.join(dict.fromkeys(tools))})"

    @property
    def name(self) -> str:
        return self._name

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        raise NotImplementedError("it stands for tools that were asked")


@dataclass(frozen=True, slots=True)
class Merge:
    stages: Sequence[Strategy]
    fields: Sequence[str] | None = None

    @property
    def calls(self) -> Sequence[ToolCall]:
        return _calls(self.stages)

    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done:
        began = run.clock()
        done, _ = await _side_by_side(self.stages, run, None, life, lambda done: False)
        trace = {"kind": "merge", "stages": _traces(done)}
        failures = _failures(done.values())
        bundle = _bundle(done, len(self.stages), self.fields, (run.clock() - began) * 1000)
        tool = _Together("merge", (call.tool.name for call in self.calls))
        if not bundle.meta.k_completed:
            return Done(_best_of(done, failures), trace)
        result = ToolResult.of(bundle)
        found = bundle.summary.confidence
        if wanted is not None and (found is None or found < wanted):
            failures[tool.name] = NotAcceptable(tool, result, f"a confidence of {found}; min_confidence is {wanted:g}")
            return Done(Answer(tool, result, failures, acceptable=False), trace)
        return Done(Answer(tool, result, failures), trace)


def _bundle(done: Mapping[int, Done], asked: int, fields: Sequence[str] | None, elapsed_ms: float) -> EvidenceBundle:
    replicates: list[Replicate] = []
    usage: dict[str, Any] = {}
    cost: float | None = 0.0
    for number, one in sorted(done.items()):
        result = one.answer.result
        replicates.append(_replicate(number, one))
        if result is not None:
            usage = add_usage(usage, result.usage) if result.usage else usage
            cost = None if cost is None or result.cost_usd is None else cost + result.cost_usd
    summary = evidence.summarize(replicates, fields=fields)
    return EvidenceBundle(
        meta=BundleMetadata(task="merge", k=asked, total_elapsed_ms=round(elapsed_ms, 1)),
        replicates=replicates,
        summary=summary,
        usage_total=usage,
        cost_total_usd=cost,
    )


def _replicate(number: int, one: Done) -> Replicate:
    result, tool = one.answer.result, one.answer.tool
    if result is None or not one.usable:
        errors = [f"{type(error).__name__}: {error}" for error in one.answer.failures.values()]
        return Replicate(id=f"r{number + 1}", model=tool.name, quality=ReplicateQuality(valid=False, errors=errors))
    return Replicate(id=f"r{number + 1}", data=_content_of(result), usage=dict(result.usage), model=tool.name)


def merge(*stages: Stage, fields: Sequence[str] | None = None) -> Merge:
    """All at once, each answer a replicate of one evidence bundle, its tool as the replicate's `model`. `fields` are
    those that are voted on. Where some fail the bundle is partial."""
    return Merge(_strategies(stages, 2), fields)


@dataclass(frozen=True, slots=True)
class Quorum:
    size: int
    stages: Sequence[Strategy]
    same: Callable[[Any], Any] = field(default=canonical_json)

    @property
    def calls(self) -> Sequence[ToolCall]:
        return _calls(self.stages)

    def _groups(self, done: Mapping[int, Done]) -> list[list[int]]:
        """Those that say the same, the most first."""
        groups: dict[Any, list[int]] = {}
        for number, one in sorted(done.items()):
            if one.usable and one.answer.result is not None:
                groups.setdefault(self.same(_content_of(one.answer.result)), []).append(number)
        return sorted(groups.values(), key=len, reverse=True)

    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done:
        def decided(done: Mapping[int, Done]) -> bool:
            most = max(map(len, self._groups(done)), default=0)
            return most >= self.size or most + len(self.stages) - len(done) < self.size

        done, stopped = await _side_by_side(self.stages, run, wanted, life, decided)
        groups = self._groups(done)
        votes = len(groups[0]) if groups else 0
        trace = {
            "kind": "quorum",
            "size": self.size,
            "votes": votes,
            "agreed": [done[number].answer.tool.name for number in groups[0]] if groups else [],
            "stages": _traces(done),
            "stopped": stopped,
        }
        failures = _failures(done.values())
        if not groups:
            return Done(_best_of(done, failures), trace)
        answer = done[groups[0][0]].answer
        if votes >= self.size:
            return Done(answer._replace(failures=failures), trace)
        says = f"{votes} of {len(self.stages)} tools say the same, and {self.size} are asked for"
        failures[f"quorum of {self.size}"] = OrchestratorError(says)
        return Done(answer._replace(failures=failures, acceptable=False), trace)


def quorum(size: int, *stages: Stage, same: Callable[[Any], Any] = canonical_json) -> Quorum:
    """All at once, until `size` say the same; `same(content)` is what is compared, by default the whole of it. Without
    a quorum the answer of the most is returned, with status "partial"."""
    if isinstance(size, bool) or not isinstance(size, int) or not 2 <= size <= len(stages):
        raise InvalidRequest("size", size, f"give a whole number from 2 to the number of stages, {len(stages)}")
    return Quorum(size, _strategies(stages, 2), same)


# ── conditional ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Cascade:
    stages: Sequence[Strategy]
    bound: float
    verifier: Judge | None = None

    @property
    def calls(self) -> Sequence[ToolCall]:
        return _calls(self.stages)

    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done:
        done: dict[int, Done] = {}
        scores: list[float | None] = []
        trusted = False
        for number, stage in enumerate(self.stages):
            last = number == len(self.stages) - 1
            if done and _time_is_up(run):
                break
            run.tools_left = len(self.stages) - 1 - number
            try:
                reached = done[number] = await stage.carry_out(run, wanted, life)
            except asyncio.CancelledError:
                if not (_any_usable(done) and _time_is_up(run)):
                    raise
                break
            score = None if last or not reached.usable else self._score(run, reached)
            scores.append(score)
            trusted = reached.usable and (last or (score is not None and score >= self.bound))
            if trusted:
                break
            if not last:
                to = self.stages[number + 1].calls[0].tool.name
                told = {"from": reached.answer.tool.name, "to": to, "score": score, "bound": _shown(self.bound)}
                run.tell("escalated", told)
        trace = {"kind": "cascade", "bound": _shown(self.bound), "scores": scores, "stages": _traces(done)}
        failures = _failures(done.values())
        final = done[max(done)]
        if trusted:
            return Done(final.answer._replace(failures=failures), trace)
        usable = [number for number, one in done.items() if one.usable]
        if usable:  # It was not trusted, but it is an answer, and paid for.
            return Done(done[usable[-1]].answer._replace(failures=failures, acceptable=False), trace)
        return Done(_best_of(done, failures), trace)

    def _score(self, run: Run, reached: Done) -> float | None:
        result = reached.answer.result
        assert result is not None
        if self.verifier is None:
            return None if result.bundle is None else result.bundle.summary.confidence
        try:
            return float(self.verifier(run.request, _content_of(result)))
        except Exception as error:
            run.tell("verifier_failed", {"tool_name": reached.answer.tool.name, "error": describe_error(error)})
            return None


def _shown(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def cascade(*stages: Stage, calibration: Calibration, verifier: Judge | None = None) -> Cascade:
    """In order, the cheapest first; the next one is asked where the answer's score is below the calibrated bound, or
    there is none. The score is the confidence of an evidence bundle, or what `verifier(request, content)` says."""
    return Cascade(_strategies(stages, 2), calibration.bound, verifier)


@dataclass(frozen=True, slots=True)
class Branch:
    when: Callable[[Any], bool]
    then: Strategy
    otherwise: Strategy

    @property
    def calls(self) -> Sequence[ToolCall]:
        return _calls((self.then, self.otherwise))

    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done:
        holds = bool(self.when(run.request))
        run.tell("branch_taken", {"branch": "then" if holds else "otherwise"})
        done = await (self.then if holds else self.otherwise).carry_out(run, wanted, life)
        return Done(done.answer, {"kind": "branch", "taken": "then" if holds else "otherwise", "stages": [done.trace]})


def branch(when: Callable[[Any], bool], then: Stage, otherwise: Stage) -> Branch:
    """`then` where `when(request)` holds, else `otherwise`."""
    if not callable(when):
        raise InvalidRequest("when", when, "give a function of the request")
    return Branch(when, _strategy(then), _strategy(otherwise))


# ── in a run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def of_decision(
    decision: PlanDecision, calls: Sequence[ToolCall], wanted: float | None
) -> Callable[[Run, float | None], Coroutine[Any, Any, Answer]]:
    """The strategy of a decision over its tool and then its fallbacks.

    chain: in this order. parallel: a race, or what `metadata["parallel"]` says: "race", "merge", or a whole number for
    a quorum of so many. conditional: a cascade; its bound is `metadata["bound"]`, else the run's min_confidence.
    """
    strategy = _decided(decision, calls, wanted)

    async def answer(run: Run, wanted: float | None) -> Answer:
        done = await strategy.carry_out(run, wanted)
        return done.answer._replace(result=_traced(done))

    return answer


def _decided(decision: PlanDecision, calls: Sequence[ToolCall], wanted: float | None) -> Strategy:
    kind, stages = decision.execution_strategy, tuple(map(One, calls))
    if kind is ExecutionStrategy.CHAIN:
        return Chain(stages)
    if len(stages) < 2:
        raise InvalidRequest("fallback_tools", decision.fallback_tools, f"{kind.value} needs two tools or more")
    if kind is ExecutionStrategy.PARALLEL:
        return _parallel(decision.metadata.get("parallel", "race"), stages)
    bound = decision.metadata.get("bound", wanted)
    if isinstance(bound, bool) or not isinstance(bound, (int, float)):
        raise InvalidRequest(
            "metadata.bound",
            bound,
            "a conditional plan needs the score from which an answer is trusted; give it there, or min_confidence",
        )
    return Cascade(stages, float(bound))


def _parallel(how: Any, stages: Sequence[Strategy]) -> Strategy:
    if how == "race":
        return Race(stages)
    if how == "merge":
        return Merge(stages)
    if isinstance(how, int) and not isinstance(how, bool):
        return quorum(how, *stages)
    raise InvalidRequest("metadata.parallel", how, 'give "race", "merge", or how many are a quorum')


def _traced(done: Done) -> ToolResult | None:
    result = done.answer.result
    return None if result is None else result._replace(metadata={**result.metadata, "strategy": done.trace})


class StrategyTool(Tool):
    """A strategy under a name, so that rules and planners can choose it like any tool.

    Its tools need not be registered. A breaker may know of all that they are served by.
    """

    composite = True

    def __init__(
        self,
        name: str,
        strategy: Stage,
        *,
        version: str = "1.0.0",
        description: str = "",
        capabilities: Sequence[str] = (),
        resource_requirements: Mapping[str, Any] | None = None,
    ) -> None:
        self._name = name
        self.strategy = _strategy(strategy)
        self.version = version
        self.description = description
        self.capabilities = names_of(name, "capabilities", capabilities)
        self.resource_requirements = dict(resource_requirements or {})

    @property
    def name(self) -> str:
        return self._name

    @property
    def targets(self) -> Sequence[tuple[str, str]]:
        return tuple(dict.fromkeys(target for call in self.strategy.calls for target in call.tool.targets))

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> ToolResult:
        scope = current.get()
        if scope is None:
            raise OrchestratorError(f"'{self._name}' is a strategy: run it with an orchestrator")
        done = await self.strategy.carry_out(_View(scope.run, request), None, scope.life)
        result, failures = _traced(done), done.answer.failures
        if result is None:
            raise next(iter(failures.values())) if len(failures) == 1 else AllToolsFailed(failures)
        if not done.answer.acceptable:
            says = {name: describe_error(error) for name, error in failures.items()}
            result = result._replace(metadata={**result.metadata, "truncated": True, "stage_errors": says})
        return result

    async def aclose(self) -> None:
        for call in self.strategy.calls:
            await call.tool.aclose()
