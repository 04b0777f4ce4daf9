"""One run with a fallback, or with two calls at once, in every way in which its provider can answer.

Not a model of the policies but the policies themselves, in virtual time: what each call comes to is a choice.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from contract.kit import Fixed, registry
from invariants.choices import Choices, every_way
from invariants.explore import promise
from steer_llm_sdk.orchestration import (
    OrchestrationConfig,
    OrchestrationOutput,
    ReliabilityConfig,
    ReliableOrchestrator,
)
from steer_llm_sdk.orchestration._call import expect_answers, protected
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.testing import OK, ScriptedTool, Step, err, run_in_virtual_time

TOTAL = 4
ATTEMPTS = 3
TIMEOUT = 8.0
ASKED = 2.0
"""What a 429 asks for, in seconds."""
RETRY = RetryPolicy(max_attempts=ATTEMPTS, initial_delay=1, max_delay=5, jitter_factor=0.5)
ANSWERS: dict[str, Step] = {
    "answers": OK("x", after=0.5),
    "503": err(503, after=0.5),
    "429": err(429, retry_after=ASKED, after=0.5),
    "400": err(400, after=0.5),
    "asks for too much": err(429, retry_after=60, after=0.5),
}


@dataclass(frozen=True, slots=True)
class _Chosen:
    choices: Choices
    given: list[tuple[float, str]]

    async def play(self, tool: ScriptedTool) -> Any:
        answer = self.choices.choose(*ANSWERS)
        result = None
        try:
            result = await ANSWERS[answer].play(tool)
        finally:
            self.given.append((asyncio.get_running_loop().time(), answer))
        return result


class _Pair(ScriptedTool):
    """Asks for two answers, both at once."""

    composite = True

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        expect_answers(2)

        async def one() -> Any:
            return await super(_Pair, self).execute(request, options, event_manager)

        pair = (protected(one, target="p", part=self.name) for _ in range(2))
        return [str(answer) for answer in await asyncio.gather(*pair, return_exceptions=True)]


def attempts_bound(total: int = TOTAL) -> int:
    """A tool and its fallback, in every way; returns how many ways there are."""

    def body(choices: Choices) -> None:
        given: list[tuple[float, str]] = []
        tools = [ScriptedTool(name, _Chosen(choices, given), provider=name) for name in ("a", "b")]
        output, ended = _run(tools, total)
        calls = sorted((call.at, tool.name) for tool in tools for call in tool.calls)
        answered = given[-1][1] == "answers"
        promise(len(calls) <= total, f"at most {total} calls in all, and not {len(calls)}")
        promise(all(len(tool.calls) <= ATTEMPTS for tool in tools), f"at most {ATTEMPTS} calls of each tool")
        promise(len(output.attempts) == len(calls), "every call is in the timeline")
        promise(bool(tools[1].calls) or answered or total == 1, "retries leave a call to the fallback")
        promise(all(at < TIMEOUT for at, _ in calls), "no attempt starts after the deadline")
        promise(ended <= TIMEOUT + 0.05, "the run is back at its deadline")
        promise(ended == given[-1][0], "nobody sleeps after the last attempt")
        promise((output.status == "succeeded") == answered, "an answer ends the run, and only that")
        for tool in tools:
            _check_waits(tool, [answer for _, answer in sorted(given)], calls)

    return every_way(body)


def _check_waits(tool: ScriptedTool, answers: list[str], calls: list[tuple[float, str]]) -> None:
    mine = [(at, answer) for (at, name), answer in zip(calls, answers, strict=True) if name == tool.name]
    for (before, answer), (after, _) in itertools.pairwise(mine):
        promise(answer in ("503", "429"), f"{answer} is not retried")
        if answer == "429":
            promise(after - before - 0.5 >= ASKED, "no attempt comes earlier than the server asked")


def attempts_of_two_at_once(total: int = 4) -> int:
    """Two calls of one run at once: the bound on the attempts of the run is for both together."""

    def body(choices: Choices) -> None:
        given: list[tuple[float, str]] = []
        tool = _Pair("a", _Chosen(choices, given), provider="p")
        output, ended = _run([tool], total)
        promise(len(tool.calls) <= total, f"at most {total} calls in all, and not {len(tool.calls)}")
        promise(len(output.attempts) == len(tool.calls), "every call is in the timeline")
        promise(ended == max(at for at, _ in given), "nobody sleeps after the last attempt")

    return every_way(body)


def _run(tools: list[ScriptedTool], total: int) -> tuple[OrchestrationOutput, float]:
    async def main() -> tuple[OrchestrationOutput, float]:
        runner = ReliableOrchestrator(
            Fixed(*(tool.name for tool in tools)),
            ReliabilityConfig(retry_policy=RETRY, max_total_attempts=total),
            registry=registry(*tools),
        )
        output = await runner.run("q", options=OrchestrationConfig(timeout_ms=int(TIMEOUT * 1000)))
        return output, asyncio.get_running_loop().time()

    return run_in_virtual_time(main(), seed=1)


WAYS: dict[str, Callable[[], int]] = {
    "attempts of a tool and its fallback": attempts_bound,
    "attempts of two calls at once": attempts_of_two_at_once,
}
