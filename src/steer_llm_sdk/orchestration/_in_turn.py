"""One tool after the other, or one of two: chain, cascade and branch."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration._calibration import Calibration
from steer_llm_sdk.orchestration._call import Run
from steer_llm_sdk.orchestration._result import describe_error
from steer_llm_sdk.orchestration._stages import (
    Done,
    Judge,
    One,
    Stage,
    Staged,
    Strategy,
    View,
    any_usable,
    best_of,
    calls_of,
    content_of,
    failures_of,
    strategies_of,
    strategy_of,
    time_is_up,
    traces_of,
)
from steer_llm_sdk.orchestration.fallback import Answer, ToolCall
from steer_llm_sdk.reliability.canonical import canonical_json
from steer_llm_sdk.reliability.silence import Life

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chain(Staged):
    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done:
        done: list[Done] = []
        here = run
        for number, stage in enumerate(self.stages):
            last = number == len(self.stages) - 1
            run.tools_left = len(self.stages) - 1 - number
            try:
                if done:
                    here = View(run, await _request_of(done[-1].answer, stage))
                    if time_is_up(run):
                        break
                reached = await stage.carry_out(here, wanted if last else None, life)
            except asyncio.CancelledError:
                if not (done and time_is_up(run)):
                    raise
                break
            except Exception as error:
                tool = stage.calls[0].tool
                reached = Done(Answer(tool, None, {tool.name: error}), {"tool": tool.name, "outcome": "failed"})
            done.append(reached)
            if not reached.usable:
                break
        return _end_of_chain(done, len(self.stages))


def _end_of_chain(done: Sequence[Done], asked: int) -> Done:
    good = [one for one in done if one.usable]
    stages = [{**one.trace, "content": one.answer.result.content if one.answer.result else None} for one in done]
    trace = {"kind": "chain", "finished": len(good), "of": asked, "stages": stages}
    failures = {name: error for one in done for name, error in one.answer.failures.items()}
    if len(good) == asked:
        return Done(done[-1].answer._replace(failures=failures), trace)
    kept = good[-1] if good else done[-1]
    return Done(kept.answer._replace(failures=failures, acceptable=False), trace)


async def _request_of(answer: Answer, stage: Strategy) -> Any:
    result = answer.result
    assert result is not None
    content = content_of(result)
    if isinstance(stage, One) and stage.takes is not None:
        return await _waited_for(stage.takes(content))
    if isinstance(content, Mapping):
        return dict(content)
    if isinstance(content, str):
        return {"query": content}
    return {"query": canonical_json(content).decode(), "input": content}


def chain(*stages: Stage) -> Chain:
    """Each stage's content is the next one's request: a mapping as it is, a text as {"query": text}, anything else as
    {"query": its JSON, "input": it}; of an evidence bundle the consensus. A tool that does not validate it has failed.
    Where a stage fails, what the last good one gave is the answer, with status "partial"."""
    return Chain(strategies_of(stages, 1))


@dataclass(frozen=True, slots=True)
class Cascade(Staged):
    bound: float
    verifier: Judge | None = None

    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done:
        done: dict[int, Done] = {}
        scores: list[float | None] = []
        trusted = False
        for number, stage in enumerate(self.stages):
            last = number == len(self.stages) - 1
            if done and time_is_up(run):
                break
            run.tools_left = len(self.stages) - 1 - number
            try:
                reached = done[number] = await stage.carry_out(run, wanted, life)
                score = None if last or not reached.usable else await self._score(run, reached)
            except asyncio.CancelledError:
                if not (any_usable(done) and time_is_up(run)):
                    raise
                break
            scores.append(score)
            trusted = reached.usable and (last or (score is not None and score >= self.bound))
            if trusted:
                break
            if not last:
                to = self.stages[number + 1].calls[0].tool.name
                told = {"from": reached.answer.tool.name, "to": to, "score": score, "bound": _shown(self.bound)}
                run.tell("escalated", told)
        trace = {"kind": "cascade", "bound": _shown(self.bound), "scores": scores, "stages": traces_of(done)}
        failures = failures_of(done.values())
        final = done[max(done)]
        if trusted:
            return Done(final.answer._replace(failures=failures), trace)
        usable = [number for number, one in done.items() if one.usable]
        if usable:  # It was not trusted, but it is an answer, and paid for.
            return Done(done[usable[-1]].answer._replace(failures=failures, acceptable=False), trace)
        return Done(best_of(done, failures), trace)

    async def _score(self, run: Run, reached: Done) -> float | None:
        result = reached.answer.result
        assert result is not None
        if self.verifier is None:
            return None if result.bundle is None else result.bundle.summary.confidence
        try:
            score = float(await _waited_for(self.verifier(run.request, content_of(result))))
            if not math.isfinite(score):  # No JSON could hold it.
                raise ValueError(f"the verifier gave {score} as the score; give a finite number")
            return score
        except Exception as error:
            name = reached.answer.tool.name
            run.tell("verifier_failed", {"tool_name": name, "error": describe_error(error)})
            _log.warning("the verifier failed; the answer of %r is not trusted: %r", name, error)
            return None


async def _waited_for(found: Any) -> Any:
    """What a caller's function answers, where it is async too."""
    return await found if inspect.isawaitable(found) else found


def _shown(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def cascade(*stages: Stage, calibration: Calibration, verifier: Judge | None = None) -> Cascade:
    """In order, the cheapest first; the next one is asked where the answer's score is below the calibrated bound, or
    there is none. The score is the confidence of an evidence bundle, or what `verifier(request, content)` says, which
    may be async. One that fails, or gives no finite number, is a warning, and the answer has no score."""
    return Cascade(strategies_of(stages, 2), calibration.bound, verifier)


@dataclass(frozen=True, slots=True)
class Branch:
    when: Callable[[Any], bool | Awaitable[bool]]
    then: Strategy
    otherwise: Strategy

    @property
    def calls(self) -> Sequence[ToolCall]:
        return calls_of((self.then, self.otherwise))

    async def carry_out(self, run: Run, wanted: float | None, life: Life | None = None) -> Done:
        holds = bool(await _waited_for(self.when(run.request)))
        run.tell("branch_taken", {"branch": "then" if holds else "otherwise"})
        done = await (self.then if holds else self.otherwise).carry_out(run, wanted, life)
        return Done(done.answer, {"kind": "branch", "taken": "then" if holds else "otherwise", "stages": [done.trace]})


def branch(when: Callable[[Any], bool | Awaitable[bool]], then: Stage, otherwise: Stage) -> Branch:
    """`then` where `when(request)`, which may be async, holds; else `otherwise`."""
    if not callable(when):
        raise InvalidRequest("when", when, "give a function of the request")
    return Branch(when, strategy_of(then), strategy_of(otherwise))
