"""Tools are asked one after the other, or one beside a silent one: what ends a plan ends it in both flows."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from contract.kit import calls, failed, reliable
from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.testing import OK, ScriptedTool, err, run_in_virtual_time

BOTH = pytest.mark.parametrize("silence_timeout", [None, 10.0], ids=["one after the other", "beside the silent"])


class Choosy(ScriptedTool):
    def validate_request(self, request: Any) -> None:
        raise ValueError("text: give one")


@BOTH
def test_a_request_that_does_not_validate_for_the_first_is_given_to_nobody(silence_timeout: float | None) -> None:
    first, second = Choosy("first", OK("x")), ScriptedTool("second", OK("y"))
    runner = reliable(first, second, silence_timeout=silence_timeout)
    output = run_in_virtual_time(runner.run("q"))
    assert "text: give one" in failed(output)["message"]
    assert calls(first, second) == [0, 0]


@BOTH
def test_a_request_that_does_not_validate_for_a_fallback_is_given_to_the_next(silence_timeout: float | None) -> None:
    tools = ScriptedTool("first", err(400)), Choosy("second", OK("y")), ScriptedTool("third", OK("z"))
    output = run_in_virtual_time(reliable(*tools, silence_timeout=silence_timeout).run("q"))
    assert output.content == "z"
    assert calls(*tools) == [1, 0, 1]


@BOTH
def test_no_fallback_starts_at_the_deadline_whatever_happens_in_that_moment_first(
    silence_timeout: float | None,
) -> None:
    async def main() -> list[int]:
        first, second = ScriptedTool("first", err(400, after=1.0)), ScriptedTool("second", OK("y"))
        runner = reliable(first, second, silence_timeout=silence_timeout)
        with contextlib.suppress(BudgetExceeded):  # Or it returns that the first has failed, in the same moment.
            failed(await runner.run("q", options={"timeout_ms": 1000}))
        await asyncio.sleep(5)
        return calls(first, second)

    for seed in range(30):
        assert run_in_virtual_time(main(), seed=seed) == [1, 0]
