"""`steer.toml` and STEER_STORE at the command line: what they change in `run` and what `doctor` says of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steer_llm_sdk.cli.exits import Exit
from steer_llm_sdk.cli.main import app


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def steer(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "steer_llm_sdk.cli", *arguments], capture_output=True, text=True, timeout=50
    )


def test_a_key_is_one_run_for_two_processes_that_share_a_store() -> None:
    Path("steer.toml").write_text('store = "sqlite:///steer.db"\n')
    one, other = (steer("run", "Good news", "--idempotency-key", "k", "--json") for _ in range(2))
    assert json.loads(one.stdout) == json.loads(other.stdout)
    assert json.loads(one.stdout)["metadata"]["request_id"]
    conflict = steer("run", "Bad news", "--idempotency-key", "k")
    assert conflict.returncode == Exit.CONFLICT


def test_the_model_of_the_file_answers_where_none_is_named() -> None:
    Path("steer.toml").write_text('model = "recorded:demo"\n')
    said = steer("doctor", "--json")
    assert json.loads(said.stdout)["plain_run"]["by"] == "recorded:demo"


def test_the_options_of_the_file_are_those_of_a_run_that_sets_none() -> None:
    Path("steer.toml").write_text("[options.budget]\ntokens = 1\n")
    refused = CliRunner().invoke(app, ["run", "What is 2 + 2?", "-m", "recorded:demo"])
    assert refused.exit_code == Exit.BUDGET
    Path("steer.toml").write_text("[options]\ntimeout_ms = 60000\nmax_parallel = 99\n")
    refused = CliRunner().invoke(app, ["run", "Good news"])
    assert refused.exit_code == Exit.BAD_INPUT
    assert "options.max_parallel (steer.toml, line 3): 99 cannot be used" in refused.stderr


def test_doctor_names_the_store_and_says_whether_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_STORE", "sqlite:///steer.db")
    said = CliRunner().invoke(app, ["doctor"])
    assert "sqlite:///steer.db, which answers" in " ".join(said.stdout.split())
    monkeypatch.setenv("STEER_STORE", "redis://user:hunter2@127.0.0.1:1/0")
    said = CliRunner().invoke(app, ["doctor", "--json"])
    store = json.loads(said.stdout)["idempotency_store"]
    assert store["store"] == "redis://127.0.0.1:1/0"
    assert "did not answer" in store["problem"]
    assert "hunter2" not in said.output
