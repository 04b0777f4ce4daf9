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
