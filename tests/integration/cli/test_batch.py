"""`steer-llm run --batch`: every line answered once, whatever happens on the way, over a real wire."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steer_llm_sdk.cli.exits import Exit
from steer_llm_sdk.cli.main import app
from steer_llm_sdk.providers.simulated import SimulatedServer

MODEL = "recorded:gpt-4o-2024-05-13"
WIRE = "openai:gpt-4o-2024-05-13"
QUESTIONS = [f"crux-test-#{number}" for number in (24, 448, 264, 408, 272, 584)]
STEER = (sys.executable, "-m", "steer_llm_sdk.cli", "run")
CLEAN = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8"}


class Ran:
    def __init__(self, *arguments: str) -> None:
        result = CliRunner().invoke(app, ["run", *arguments])
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr


class Folder:
    """A batch and its results, in a directory of their own."""

    def __init__(self, path: Path) -> None:
        self.batch, self.out = path / "in.jsonl", path / "out.jsonl"
        self.write(QUESTIONS)

    def write(self, lines: Sequence[Any]) -> None:
        self.batch.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    @property
    def arguments(self) -> list[str]:
        return ["--batch", str(self.batch), "--out", str(self.out)]

    def run(self, *arguments: str, model: str = MODEL) -> Ran:
        return Ran(*self.arguments, "-m", model, *arguments)

    @property
    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text(encoding="utf-8").splitlines()]

    @property
    def finished(self) -> dict[int, str]:
        return {result["position"]: result["status"] for result in self.results}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def all_succeeded(lines: int = len(QUESTIONS)) -> dict[int, str]:
    return dict.fromkeys(range(1, lines + 1), "succeeded")


# what comes back


def test_each_line_has_its_result_with_position_and_id(folder: Folder) -> None:
    folder.write([QUESTIONS[0], {"request": {"query": QUESTIONS[1]}, "id": "second"}])
    ran = folder.run()
    assert (ran.code, ran.out) == (Exit.OK, "")
    by_position = {result["position"]: result for result in folder.results}
    assert by_position[1]["id"] is None
    assert by_position[2]["id"] == "second"
    assert "[45, 3, 61, 39, 27, 47]" in by_position[1]["output"]["content"]
    assert "2 of 2 lines · 2 succeeded" in ran.err


def test_with_json_the_account_is_on_stdout_and_nothing_else(folder: Folder) -> None:
    account = json.loads(folder.run("--json").out)
    assert account == {
        "lines": 6,
        "found_done": 0,
        "succeeded": 6,
        "partial": 0,
        "failed": 0,
        "cost_usd": account["cost_usd"],
        "cost_unknown": 0,
        "simulated": True,
        "out": str(folder.out),
    }
    assert account["cost_usd"] == pytest.approx(sum(result["output"]["cost_usd"] for result in folder.results))


def test_a_line_says_which_tool_and_with_what_and_goes_before_the_command(folder: Folder) -> None:
    folder.write(
        [
            {"request": "One sentence. Another one.", "tool_name": "text_analyzer", "tool_options": {"sentences": 1}},
            {"request": QUESTIONS[0], "options": {"metadata": {"from": "the line"}}},
        ]
    )
    assert folder.run("--timeout", "30").code == Exit.OK
    counted, asked = sorted(folder.results, key=lambda result: result["position"])
    assert counted["output"]["metadata"]["tool_name"] == "text_analyzer"
    assert len(counted["output"]["content"]["extract"]) == 1
    assert asked["output"]["metadata"]["user"] == {"from": "the line"}


def test_k_and_schema_hold_for_every_line(folder: Folder, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}')
    folder.write(QUESTIONS[:2])
    assert folder.run("-k", "3", "--schema", str(schema), model="recorded:demo").code == Exit.OK
    for result in folder.results:
        assert result["output"]["content"]["evidence_bundle"]["meta"]["k"] == 3


def test_a_line_without_an_answer_does_not_stop_the_others(folder: Folder) -> None:
    folder.write([*QUESTIONS[:2], "Who are you?"])
    ran = folder.run()
    assert ran.code == Exit.PARTIAL
    assert folder.finished == {1: "succeeded", 2: "succeeded", 3: "failed"}
    assert "3 of 3 lines · 2 succeeded · 1 failed" in ran.err


def test_without_any_answer_the_exit_code_is_that_of_a_failure(folder: Folder) -> None:
    folder.write(["Who are you?"])
    assert folder.run().code == Exit.FAILED


def test_what_a_run_raises_is_the_result_of_its_line(folder: Folder) -> None:
    folder.write([QUESTIONS[0], {"request": QUESTIONS[1], "options": {"budget": {"tokens": 3}}}])
    assert folder.run().code == Exit.PARTIAL
    (failed,) = (result for result in folder.results if result["status"] == "failed")
    assert (failed["position"], failed["output"], failed["error"]["type"]) == (2, None, "BudgetExceeded")


def test_an_account_that_lacks_a_price_says_for_how_many_lines(folder: Folder) -> None:
    folder.write([QUESTIONS[0], {"request": QUESTIONS[1], "options": {"budget": {"tokens": 3}}}])
    assert "list price, and 1 line of unknown cost" in folder.run().err


def test_piped_there_is_no_bar_and_no_colour(folder: Folder) -> None:
    ran = folder.run()
    assert "\x1b" not in ran.err
    assert "━" not in ran.err


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_are_passed_over(folder: Folder) -> None:
    folder.batch.write_bytes(b"\xef\xbb\xbf" + f'"{QUESTIONS[0]}"\r\n\r\n   \n"{QUESTIONS[1]}"'.encode())
    assert folder.run().code == Exit.OK
    assert folder.finished == {1: "succeeded", 4: "succeeded"}


# again


def steer(folder: Folder, server: SimulatedServer, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STEER, *folder.arguments, "-m", WIRE, *more],
        env=env_for(server),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def env_for(server: SimulatedServer) -> Mapping[str, str]:
    return {**CLEAN, "OPENAI_BASE_URL": f"{server.base_url}/v1"}


async def interrupted(folder: Folder, server: SimulatedServer, how: signal.Signals) -> subprocess.Popen[str]:
    """A batch that is ended when two lines are finished and others are under way."""
    process = subprocess.Popen(
        [*STEER, *folder.arguments, "-m", WIRE, "--max-parallel", "2"],
        env=env_for(server),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while server.requests < 4 and process.poll() is None:
        await asyncio.sleep(0.01)
    process.send_signal(how)
    await asyncio.to_thread(process.wait, 20)
    return process


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, Exit.INTERRUPTED)])
async def test_after_an_end_in_the_middle_no_finished_line_is_bought_twice(
    folder: Folder, how: signal.Signals, code: int
) -> None:
    async with SimulatedServer(faults="slow:seconds=0.3") as server:
        process = await interrupted(folder, server, how)
        assert process.returncode == code
        _, err = process.communicate()
        finished = folder.finished
        assert 2 <= len(finished) < 6
        await server.set_faults()
        before = server.requests
        again = await asyncio.to_thread(steer, folder, server)
        asked = server.requests - before
    assert again.returncode == Exit.OK
    assert asked == 6 - len(finished)
    assert folder.finished == all_succeeded()
    assert len(folder.results) == 6
    assert f"{len(finished)} of them were done before" in again.stderr
    if how is signal.SIGINT:
        assert err.splitlines()[-1] == "steer-llm: interrupted; the same command goes on from here"
        assert "Traceback" not in err


def test_a_batch_that_is_done_asks_nobody_and_says_the_same(folder: Folder) -> None:
    folder.run()
    before = folder.out.read_bytes()
    again = folder.run()
    assert again.code == Exit.OK
    assert folder.out.read_bytes() == before
    assert "6 of 6 lines · 6 succeeded · 6 of them were done before" in again.err
    assert "answering" not in again.err


def test_a_torn_last_line_is_dropped_and_asked_again(folder: Folder) -> None:
    folder.run()
    *whole, last = folder.out.read_bytes().splitlines(keepends=True)
    for torn in (last[: len(last) // 2], last[:5], last[:1], last[:-2]):
        folder.out.write_bytes(b"".join(whole) + torn)
        assert "5 of them were done before" in folder.run().err
        assert folder.finished == all_succeeded()


def test_a_whole_last_line_that_lacks_its_end_is_kept(folder: Folder) -> None:
    folder.run()
    before = folder.out.read_bytes()
    folder.out.write_bytes(before[:-1])
    assert "6 of them were done before" in folder.run().err
    assert folder.out.read_bytes() == before


def test_lines_with_ids_may_have_moved_and_others_come(folder: Folder) -> None:
    lines = [{"request": question, "id": question} for question in QUESTIONS[:3]]
    folder.write(lines)
    folder.run()
    folder.write([QUESTIONS[5], *reversed(lines)])
    ran = folder.run()
    assert "4 of 4 lines · 4 succeeded · 3 of them were done before" in ran.err


def test_a_line_that_failed_is_finished_unless_it_is_to_be_asked_again(folder: Folder) -> None:
    folder.write([QUESTIONS[0], "Who are you?"])
    folder.run()
    assert "2 of them were done before" in folder.run().err
    ran = folder.run("--retry-failed")
    assert "1 of them were done before" in ran.err
    assert folder.finished == {1: "succeeded", 2: "failed"}
    assert len(folder.results) == 2
    assert [path.name for path in folder.out.parent.iterdir() if path.name.startswith("out")] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: folder.write(["another", *QUESTIONS[1:]]), "line 1 asks something else now"),
        (lambda folder: folder.write(QUESTIONS[:-1]), "this batch has no line 6 to which it is the answer"),
        (lambda folder: folder.out.write_text("my diary\n"), "its line 1 does not fit: it is no result of a batch"),
        (lambda folder: folder.out.write_text("my diary"), "its line 1 does not fit: it is no result of a batch"),
        (lambda folder: folder.out.write_text('{"position": 1}\n'), "it is no result of a batch"),
        (lambda folder: folder.out.write_text("[]\n"), "it is no result of a batch"),
    ],
)
def test_a_file_that_is_not_of_this_batch_is_refused_and_not_touched(
    folder: Folder, change: Callable[[Folder], object], said: str
) -> None:
    folder.run()
    change(folder)
    before = folder.out.read_bytes()
    ran = folder.run()
    assert (ran.code, ran.out) == (Exit.BAD_INPUT, "")
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1
    assert folder.out.read_bytes() == before


def test_answers_of_other_models_are_not_those_of_this_batch(folder: Folder) -> None:
    folder.run()
    ran = folder.run(model="recorded:claude-3-haiku-20240307")
    assert ran.code == Exit.BAD_INPUT
    assert "or asks it of other models" in ran.err


def test_the_model_that_the_environment_names_is_part_of_what_is_asked(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write(["Some text to count."])
    assert Ran(*folder.arguments, "--tool", "text_analyzer").code == Exit.OK
    monkeypatch.setenv("STEER_MODEL", MODEL)
    ran = Ran(*folder.arguments, "--tool", "text_analyzer")
    assert ran.code == Exit.BAD_INPUT
    assert "or asks it of other models" in ran.err


async def test_two_batches_do_not_write_one_file(folder: Folder) -> None:
    async with SimulatedServer(faults="silence") as server:
        first = subprocess.Popen(
            [*STEER, *folder.arguments, "-m", WIRE], env=env_for(server), stderr=subprocess.PIPE, text=True
        )
        while not server.requests and first.poll() is None:
            await asyncio.sleep(0.01)
        second = await asyncio.to_thread(steer, folder, server)
        first.send_signal(signal.SIGINT)
        await asyncio.to_thread(first.communicate)
    assert second.returncode == Exit.BAD_INPUT
    assert "another batch is writing it" in second.stderr
    assert first.returncode == Exit.INTERRUPTED


def test_where_the_disk_takes_no_more_that_is_said_with_the_name_of_the_file(folder: Folder) -> None:
    command = shlex.join([*STEER, *folder.arguments, "-m", MODEL])
    ran = subprocess.run(
        ["sh", "-c", f"ulimit -f 1; exec {command}"],
        env={**CLEAN, "PYTHONDONTWRITEBYTECODE": "1"},  # Compiled modules would be cut off as well.
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == Exit.FAILED
    assert ran.stderr.splitlines()[-1].endswith(f"File too large: '{folder.out}'")
    assert folder.run().code == Exit.OK
    assert folder.finished == all_succeeded()


@pytest.mark.parametrize("out", ["/dev/null", "/dev/full"])
def test_results_go_into_a_file_that_can_be_read_again(folder: Folder, out: str) -> None:
    ran = Ran("--batch", str(folder.batch), "--out", out, "-m", MODEL)
    assert ran.code == Exit.BAD_INPUT
    assert "what is there cannot be read again" in ran.err


# what it cost


OWN = """
from steer_llm_sdk import tool

@tool
def own(text: str) -> object:
    if text == "broken":
        raise KeyError(text)
    return {"content": text, "cost_usd": 1.0} if text == "dear" else text
"""


@pytest.mark.parametrize(
    ("lines", "cost", "unknown", "says"),
    [
        (["mute", "mute"], None, 2, "2 succeeded · cost unknown · "),
        (["mute", "dear"], 1.0, 1, "$1.00 list price, and 1 line of unknown cost"),
        (["mute", "broken"], None, 2, "1 failed · cost unknown · "),
        ([{"request": "A text.", "tool_name": "text_analyzer"}], 0.0, 0, "1 of 1 lines · 1 succeeded · out.jsonl"),
    ],
)
def test_a_cost_that_nobody_told_is_unknown_and_neither_zero_nor_simulated(
    lines: list[Any], cost: float | None, unknown: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    Path("own.py").write_text(OWN, encoding="utf-8")
    Folder(tmp_path).write(lines)
    ran = Ran("--batch", "in.jsonl", "--out", "out.jsonl", "--tool", "own:own", "--json")
    account = json.loads(ran.out)
    assert (account["cost_usd"], account["cost_unknown"], account["simulated"]) == (cost, unknown, False)
    assert says in ran.err


def test_the_lines_come_from_standard_input_too(folder: Folder) -> None:
    given = b'"A text."\n7\n'
    asked = ["run", "--batch", "-", "--out", str(folder.out), "--tool", "text_analyzer", "--json"]
    refused = CliRunner().invoke(app, asked, input=given)
    assert (refused.exit_code, folder.out.exists()) == (Exit.BAD_INPUT, False)
    assert "standard input, line 2" in refused.stderr
    ran = CliRunner().invoke(app, asked, input=given[:-2])
    assert (ran.exit_code, json.loads(ran.stdout)["succeeded"]) == (Exit.OK, 1)
