"""Asking the lines of a batch, with tools that play a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from steer_llm_sdk.cli._batch_lines import Defaults, Line, read_lines
from steer_llm_sdk.cli._batch_results import Results
from steer_llm_sdk.cli.batch import PATIENCE, Batch
from steer_llm_sdk.cli.exits import Exit
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.testing import OK, ScriptedTool, err


class Counting(ScriptedTool):
    """Keeps how many calls were under way at once."""

    most = 0

    async def execute(self, *given: Any, **named: Any) -> Any:
        try:
            return await super().execute(*given, **named)
        finally:
            self.most = max(self.most, self.running + 1)


class Strict(ScriptedTool):
    """Takes some requests and options, and says in its own words which."""

    def validate_request(self, request: Any) -> None:
        if request["query"] == "broken":
            raise RuntimeError("the check itself is broken")
        if request["query"] != "good":
            raise ValueError("only good requests, please")

    def validate_options(self, options: Mapping[str, Any]) -> None:
        if "colour" in options:
            raise InvalidRequest("colour", options["colour"], "leave it out")


def lines_of(path: Path, tool: ScriptedTool, *lines: Any, **defaults: Any) -> list[Line]:
    batch = path / "in.jsonl"
    batch.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    settings: dict[str, Any] = {"tool_name": tool.name, "tool_options": {}, "options": {}, **defaults}
    return read_lines(str(batch), Defaults(**settings), registry(tool))


def registry(tool: ScriptedTool) -> ToolRegistry:
    made = ToolRegistry()
    made.register_tool(tool)
    return made


async def asked(path: Path, tool: ScriptedTool, *lines: Any, max_parallel: int = 10) -> Batch:
    read = lines_of(path, tool, *lines)
    with Results(str(path / "out.jsonl"), str(path / "in.jsonl"), read) as results:
        batch = Batch(read, results)
        await batch.ask(registry(tool), max_parallel)
    return batch


async def test_no_more_lines_are_under_way_than_was_said_and_no_fewer(tmp_path: Path) -> None:
    tool = Counting("t", OK(after=1))
    await asked(tmp_path, tool, *"abcdefg", max_parallel=3)
    assert (len(tool.calls), tool.most) == (7, 3)


async def test_results_are_written_as_they_come_and_not_in_the_order_of_the_lines(tmp_path: Path) -> None:
    tool = ScriptedTool("t", OK(after=2), OK(after=1))
    await asked(tmp_path, tool, "slow", "fast")
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["position"] for line in written] == [2, 1]


async def test_a_cancelled_batch_keeps_what_was_finished(tmp_path: Path) -> None:
    tool = ScriptedTool("t", OK(after=1), OK(after=60))
    running = asyncio.create_task(asked(tmp_path, tool, "a", "b"))
    await asyncio.sleep(5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert tool.cancelled == 1
    (line,) = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["position"] == 1


async def test_a_line_that_an_open_circuit_keeps_back_waits_for_it(tmp_path: Path) -> None:
    down = [err(503)] * 5
    tool = ScriptedTool("t", *down, OK("up again"), provider="p")
    batch = await asked(tmp_path, tool, *"abcdef", max_parallel=1)
    account = batch.account()
    assert (account["succeeded"], account["failed"]) == (4, 2)  # whose five attempts opened it
    assert batch.code is Exit.PARTIAL


async def test_a_line_does_not_wait_for_a_circuit_for_ever(tmp_path: Path) -> None:
    tool = ScriptedTool("t", err(503), provider="p")
    started = asyncio.get_running_loop().time()
    batch = await asked(tmp_path, tool, *"abcdefgh", max_parallel=1)
    assert batch.account()["failed"] == 8
    assert asyncio.get_running_loop().time() - started < 9 * PATIENCE


async def test_a_result_that_cannot_be_written_ends_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out.jsonl")

    monkeypatch.setattr(Results, "add", full)
    with pytest.raises(OSError, match="No space left on device"):
        await asked(tmp_path, ScriptedTool("t"), "a", "b")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bad", "in.jsonl, line 2: '\"bad\"' cannot be used; only good requests, please"),
        (
            {"request": "good", "tool_options": {"colour": "red"}},
            "in.jsonl, line 2: colour: 'red' cannot be used; leave it out",
        ),
    ],
)
def test_what_a_tool_refuses_is_said_with_file_and_line(tmp_path: Path, line: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        lines_of(tmp_path, Strict("t"), "good", line)
    assert str(caught.value).endswith(said)


def test_a_check_that_breaks_says_nothing_of_the_line(tmp_path: Path) -> None:
    assert len(lines_of(tmp_path, Strict("t"), "broken")) == 1


def test_the_options_of_a_line_go_before_those_of_the_command(tmp_path: Path) -> None:
    line = {"request": "a", "options": {"timeout_ms": 500}, "tool_options": {"x": 2}}
    (read,) = lines_of(
        tmp_path,
        ScriptedTool("t"),
        line,
        options={"timeout_ms": 900, "budget": {"tokens": 5}},
        tool_options={"x": 1, "y": 1},
    )
    assert (read.options.timeout_ms, read.options.budget) == (500, {"tokens": 5})
    assert read.tool_options == {"x": 2, "y": 1}
