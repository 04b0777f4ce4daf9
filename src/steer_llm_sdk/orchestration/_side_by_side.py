"""Several tools at once: race, merge and quorum."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from steer_llm_sdk import evidence
from steer_llm_sdk.errors import InvalidRequest, OrchestratorError
from steer_llm_sdk.models.usage import add_usage
from steer_llm_sdk.orchestration._call import Run
from steer_llm_sdk.orchestration._result import ToolResult
from steer_llm_sdk.orchestration._stages import (
    Done,
    Stage,
    Staged,
    Strategy,
    any_usable,
    best_of,
    content_of,
    failures_of,
    strategies_of,
    time_is_up,
    traces_of,
)
from steer_llm_sdk.orchestration.fallback import Answer, NotAcceptable
from steer_llm_sdk.orchestration.models.evidence_bundle import (
    BundleMetadata,
    EvidenceBundle,
    Replicate,
    ReplicateQuality,
)
from steer_llm_sdk.orchestration.tool_registry import Tool
from steer_llm_sdk.reliability.canonical import canonical_json
from steer_llm_sdk.reliability.deadline import stop
from steer_llm_sdk.reliability.silence import Life

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
        if not (any_usable(done) and time_is_up(run)):
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


@dataclass(frozen=True, slots=True)
class Race(Staged):
    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done:
        done, stopped = await _side_by_side(self.stages, run, wanted, life, any_usable)
        won = next((one for _, one in sorted(done.items()) if one.usable), None)
        trace: dict[str, Any] = {"kind": "race", "stages": traces_of(done), "stopped": stopped}
        failures = failures_of(done.values())
        if won is None:
            return Done(best_of(done, failures), {**trace, "winner": None})
        return Done(won.answer._replace(failures=failures), {**trace, "winner": won.answer.tool.name})


def race(*stages: Stage) -> Race:
    """All at once; the first acceptable answer wins. The others are cancelled, and charged the worst they may cost."""
    return Race(strategies_of(stages, 2))


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
class Merge(Staged):
    fields: Sequence[str] | None = None

    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done:
        began = run.clock()
        done, _ = await _side_by_side(self.stages, run, None, life, lambda done: False)
        trace = {"kind": "merge", "stages": traces_of(done)}
        failures = failures_of(done.values())
        bundle = _bundle(done, len(self.stages), self.fields, (run.clock() - began) * 1000)
        tool = _Together("merge", (call.tool.name for call in self.calls))
        if not bundle.meta.k_completed:
            return Done(best_of(done, failures), trace)
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
    return Replicate(id=f"r{number + 1}", data=content_of(result), usage=dict(result.usage), model=tool.name)


def merge(*stages: Stage, fields: Sequence[str] | None = None) -> Merge:
    """All at once, each answer a replicate of one evidence bundle, its tool as the replicate's `model`. `fields` are
    those that are voted on. Where some fail the bundle is partial."""
    return Merge(strategies_of(stages, 2), fields)


@dataclass(frozen=True, slots=True)
class Quorum(Staged):
    size: int
    same: Callable[[Any], Any] = field(default=canonical_json)

    def _groups(self, done: Mapping[int, Done]) -> list[list[int]]:
        """Those that say the same, the most first."""
        groups: dict[Any, list[int]] = {}
        for number, one in sorted(done.items()):
            if one.usable and one.answer.result is not None:
                groups.setdefault(self.same(content_of(one.answer.result)), []).append(number)
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
            "stages": traces_of(done),
            "stopped": stopped,
        }
        failures = failures_of(done.values())
        if not groups:
            return Done(best_of(done, failures), trace)
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
    return Quorum(strategies_of(stages, 2), size, same)
