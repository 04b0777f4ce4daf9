"""`steer-llm` with somebody looking: spinner and bar on a terminal, and neither where the output goes elsewhere."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steer_llm_sdk.cli.main import app
from steer_llm_sdk.providers.simulated import SimulatedServer

STEER = (sys.executable, "-m", "steer_llm_sdk.cli")
CLEAN = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8", "TERM": "xterm-256color"}
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]")


class Watched:
    """A command whose stderr is a terminal; stdout is a pipe."""

    def __init__(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        terminal, end = pty.openpty()
        process = subprocess.Popen(
            [*STEER, *arguments], env={**CLEAN, **(env or {})}, stdout=subprocess.PIPE, stderr=end, text=True
        )
        os.close(end)
        self.raw = _read_all(terminal)
        self.out = process.communicate(timeout=60)[0]
        self.code = process.returncode
        self.err = MOVES.sub("", COLOUR.sub("", self.raw))


def _read_all(terminal: int) -> str:
    found = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Nobody holds the other end any more.
            piece = b""
        if not piece:
            os.close(terminal)
            return found.decode("utf-8", "replace")
        found += piece


async def test_a_run_shows_its_attempts_while_they_are_made() -> None:
    async with SimulatedServer(faults="503:first=1,retry-after-ms=10") as server:
        env = {"OPENAI_BASE_URL": f"{server.base_url}/v1"}
        watched = await _in_thread("run", "crux-test-#24", "-m", "openai:gpt-4o-2024-05-13", env=env)
    assert watched.code == 0
    assert "asking" in watched.err
    assert re.search(r"provider unavailable, again in \d\.\d s", watched.err)
    assert "[45, 3, 61, 39, 27, 47]" in watched.out
    assert "\x1b" not in watched.out


def test_a_bundle_shows_how_many_answers_there_are_and_no_color_is_heeded() -> None:
    arguments = ("run", "crux-test-#24", "-m", "recorded:demo", "-k", "3")
    coloured, plain = Watched(*arguments), Watched(*arguments, env={"NO_COLOR": "1"})
    for watched in (coloured, plain):
        assert watched.code == 0
        assert re.search(r"\d of 3 answers", watched.err)
    a_colour = re.compile(r"\x1b\[[0-9;]*3[0-7]m")
    assert a_colour.search(coloured.raw)
    assert not a_colour.search(plain.raw)


def test_streamed_text_has_no_spinner_in_between() -> None:
    watched = Watched("run", "crux-test-#24", "-m", "recorded:gpt-4o-2024-05-13", "--stream")
    assert "asking" not in watched.err


def test_a_batch_shows_a_bar(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('"crux-test-#24"\n"crux-test-#448"\n', encoding="utf-8")
    files = ["--batch", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")]
    watched = Watched("run", *files, "-m", "recorded:gpt-4o-2024-05-13")
    assert watched.code == 0
    assert "━━━" in watched.err
    assert "2/2" in watched.err


async def _in_thread(*arguments: str, env: Mapping[str, str]) -> Watched:
    return await asyncio.to_thread(Watched, *arguments, env=env)


# completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there_for_each_shell(shell: str) -> None:
    shown = subprocess.run(
        STEER,
        env={**CLEAN, "_STEER_LLM_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "_STEER_LLM_COMPLETE" in shown.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("steer-llm do", ["doctor"]),
        ("steer-llm run x --model recorded:gpt-4o-2", ["recorded:gpt-4o-2024-05-13", "recorded:gpt-4o-2024-08-06"]),
        ("steer-llm run x --model ol", ["ollama:"]),
        ("steer-llm run x --tool text", ["text_analyzer"]),
        ("steer-llm plan ex", ["explain"]),
    ],
)
def test_commands_models_and_tools_are_offered(words: str, offered: list[str]) -> None:
    env = {"_STEER_LLM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    shown = CliRunner().invoke(app, [], env=env, prog_name="steer-llm")
    assert shown.stdout.split() == offered
