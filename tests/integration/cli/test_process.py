"""`steer-llm` as a process of its own: what it prints where, and what it says to the shell."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steer_llm_sdk import __version__
from steer_llm_sdk.cli.main import app
from steer_llm_sdk.providers.simulated import SimulatedServer

STEER = (sys.executable, "-m", "steer_llm_sdk.cli")
CLEAN = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8"}


def steer(*arguments: str, env: dict[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*STEER, *arguments], capture_output=True, text=True, env=env or CLEAN, input=stdin, timeout=60, check=False
    )


def widest(lines: Sequence[str]) -> int:
    return max(map(len, lines))


@pytest.fixture(scope="module")
def demo() -> subprocess.CompletedProcess[str]:
    return steer("demo")


def test_the_demo_gets_every_answer_while_the_naive_loop_hangs(demo: subprocess.CompletedProcess[str]) -> None:
    assert demo.returncode == 0
    (answers,) = re.findall(r"^answers +(\d+) of 30 +(\d+) of 30", demo.stdout, re.MULTILINE)
    assert answers == ("8", "30")
    assert "asked for answer 9: silence …" in demo.stdout
    assert "still waits for answer 9" in demo.stdout
    assert "11 calls (3 unanswered)" in demo.stdout


def test_the_demo_explains_its_gap_and_pads_no_line(demo: subprocess.CompletedProcess[str]) -> None:
    assert "the circuit lets a probe through in 2.5 s" in demo.stdout
    assert [line for line in demo.stdout.splitlines() if line.endswith(" ")] == []


def test_the_demo_with_a_model_that_has_no_key_announces_nobody() -> None:
    ran = steer("demo", "--model", "openai:gpt-5-mini")
    assert ran.returncode == 2
    assert "set OPENAI_API_KEY" in ran.stderr
    assert "answering" not in ran.stderr


def test_the_demo_shows_the_circuit_open_the_second_provider_answer_and_the_circuit_close(
    demo: subprocess.CompletedProcess[str],
) -> None:
    opened = demo.stdout.index("circuit of openai is open")
    fallback = demo.stdout.index("question 3: 5 by claude-3-5-sonnet")
    closed = demo.stdout.index("circuit of openai is closed")
    assert opened < fallback < closed


def test_the_demo_shows_a_question_on_which_models_disagree(demo: subprocess.CompletedProcess[str]) -> None:
    assert re.search(r'answer +"bababba" +4 of 10', demo.stdout)
    assert "The right answer is 'bababba'." in demo.stdout


def test_the_demo_ends_with_the_line_for_a_model_of_ones_own(demo: subprocess.CompletedProcess[str]) -> None:
    assert demo.stdout.rstrip().splitlines()[-1].endswith("steer-llm demo --model openai:gpt-5-mini")


def test_piped_the_demo_is_plain_and_eighty_columns_wide(demo: subprocess.CompletedProcess[str]) -> None:
    assert "\x1b" not in demo.stdout + demo.stderr
    assert widest(demo.stdout.splitlines()) <= 80


def test_the_version_is_that_of_the_package() -> None:
    assert steer("--version").stdout == f"steer-llm {__version__}\n"


@pytest.mark.parametrize("command", [[], ["run"], ["tools"], ["simulate"], ["record"], ["demo"]])
def test_help_is_eighty_columns_wide(command: list[str]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"])
    assert shown.exit_code == 0
    assert widest(shown.stdout.splitlines()) <= 80


@pytest.mark.parametrize("arguments", [["run"], ["run", "x", "--no-such-option"], ["no-such-command"]])
def test_a_wrong_command_line_is_said_on_stderr(arguments: list[str]) -> None:
    ran = CliRunner().invoke(app, arguments)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr


def test_json_is_clean_in_a_terminal_that_knows_no_unicode() -> None:
    env = {**CLEAN, "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    ran = steer("run", "crux-test-#24", "-m", "recorded:demo", "--json", env=env)
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["status"] == "succeeded"


async def test_an_interrupt_ends_a_run_that_hangs() -> None:
    async with SimulatedServer(faults="silence") as server:
        env = {**CLEAN, "OPENAI_BASE_URL": f"{server.base_url}/v1"}
        process = subprocess.Popen(
            [*STEER, "run", "crux-test-#24", "-m", "openai:gpt-4o"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not server.requests and process.poll() is None:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "steer-llm: interrupted"


@pytest.mark.parametrize(
    "command",
    [
        ["run", "crux-test-#24", "--model", "recorded:demo", "--json"],
        ["run", "crux-test-#24", "--model", "recorded:demo", "--json", "--stream"],
        ["run", "crux-test-#24", "--model", "recorded:demo", "-k", "3"],
        ["simulate", "--list"],
        ["--help"],
        ["run", "--help"],
        ["plan"],
        ["--version"],
    ],
    ids=" ".join,
)
def test_when_the_reader_has_left_it_ends_and_says_nothing_of_it(command: list[str]) -> None:
    with subprocess.Popen([*STEER, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=CLEAN) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 141
    assert [line for line in said.splitlines() if not line.startswith("steer-llm: answering: ")] == []


NOISE = """
import os, subprocess, sys, threading, time
print("imported")
from steer_llm_sdk import tool

def _late():
    threading.main_thread().join()
    print("late")

@tool
def noise(text: str) -> str:
    print("print")
    os.write(1, b"fd 1\\n")
    subprocess.run(["echo", "child"])
    sys.__stdout__.write("dunder\\n")
    threading.Thread(target=_late).start()
    return text
"""
LARGE = """
from steer_llm_sdk import tool

@tool
def large(text: str) -> str:
    return "x" * 1_000_000
"""
SAID = ["imported", "print", "fd 1", "child", "dunder", "late"]


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    (tmp_path / "noisy.py").write_text(NOISE, encoding="utf-8")
    (tmp_path / "plain.py").write_text(LARGE, encoding="utf-8")
    return tmp_path


def shell(command: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`steer` in the command is the program."""
    command = f'steer() {{ "{sys.executable}" -m steer_llm_sdk.cli "$@"; }}; set -o pipefail; {command}'
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, env={**CLEAN, **env}, cwd=folder)


@pytest.mark.parametrize("stream", ["", "--stream"])
def test_whatever_a_tool_its_processes_and_its_threads_print_json_is_alone_on_stdout(noisy: Path, stream: str) -> None:
    ran = shell(f"steer run q --tool noisy:noise --json {stream}", noisy)
    assert ran.returncode == 0
    texts = ran.stdout.splitlines() if stream else [ran.stdout]
    last = [json.loads(text) for text in texts][-1]
    assert (last["output"] if stream else last)["content"] == "q"
    assert sorted(set(SAID) & set(ran.stderr.splitlines())) == sorted(SAID)


def test_without_json_what_a_tool_prints_stays_on_stdout(noisy: Path) -> None:
    ran = shell("steer run q --tool noisy:noise", noisy)
    assert sorted(ran.stdout.splitlines()) == sorted([*SAID, "q"])


@pytest.mark.parametrize("form", ["", "--json", "--stream", "--json --stream"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_long_answer_whose_reader_leaves_ends_as_a_short_one_does(noisy: Path, form: str, unbuffered: str) -> None:
    ran = shell(f"steer run q --tool plain:large {form} | head -c 100", noisy, PYTHONUNBUFFERED=unbuffered)
    assert (ran.returncode, ran.stderr) == (141, "steer-llm: answering: the tool large\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_long_answer_is_whole_behind_a_slow_reader(noisy: Path, unbuffered: str) -> None:
    ran = shell("steer run q --tool plain:large | (sleep 0.2; wc -c)", noisy, PYTHONUNBUFFERED=unbuffered)
    assert ran.stdout.strip() == "1000001"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("run q --tool plain:large >/dev/full", "No space left on device"),
        ("run q --tool plain:large --json >/dev/full", "No space left on device"),
        ("run q --tool plain:large >&-", "it is closed"),
        ("run q --tool plain:large --json --stream >&-", "it is closed"),
        ("tools --json >/dev/full", "No space left on device"),
        ("tools >&-", "it is closed"),
        ("--version >/dev/full", "No space left on device"),
        ("--help >&-", "it is closed"),
    ],
)
def test_an_output_that_cannot_be_written_is_one_sentence_and_a_code(noisy: Path, command: str, why: str) -> None:
    ran = shell(f"steer {command}", noisy)
    assert (ran.returncode, ran.stderr) == (74, f"steer-llm: the output cannot be written: {why}\n")


@pytest.mark.parametrize("form", ["", "--json", "--json --stream"])
def test_a_disk_that_becomes_full_over_the_answer_is_told(noisy: Path, form: str) -> None:
    ran = shell(f"ulimit -f 64; steer run q --tool plain:large {form} >out", noisy)
    assert ran.returncode == 74
    assert ran.stderr.splitlines()[-1] == "steer-llm: the output cannot be written: File too large"
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("form", ["", "--json"])
def test_a_standard_input_that_is_closed_is_refused_where_it_is_asked_for(noisy: Path, form: str) -> None:
    ran = shell(f"steer run - --tool plain:large {form} <&-", noisy)
    assert ran.returncode == 2
    assert ran.stderr == (
        "steer-llm: TEXT: '-' cannot be used; standard input is closed; give the text itself, or @FILE\n"
    )
    assert shell("steer run q --tool noisy:noise <&-", noisy).returncode == 0


def test_without_a_stderr_there_is_still_nothing_but_json_on_stdout(noisy: Path) -> None:
    ran = shell("steer run q --tool noisy:noise --json 2>&-", noisy)
    assert (ran.returncode, json.loads(ran.stdout)["content"]) == (0, "q")
