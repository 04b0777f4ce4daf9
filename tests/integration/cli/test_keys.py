"""`steer-llm run --idempotency-key`: two commands with one key are one request, where a store remembers it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steer_llm_sdk.cli.exits import Exit
from steer_llm_sdk.cli.main import app

TOOL = """
from steer_llm_sdk import tool

@tool
async def log(text: str) -> str:
    with open("calls.log", "a") as file:
        file.write(text + "\\n")
    return text
"""
STORE = "sqlite:///keys.db"
QUESTION = "crux-test-#24"


class Ran:
    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        result = CliRunner().invoke(app, ["run", *arguments], env=env)
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def _with_a_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "mine.py").write_text(TOOL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEER_STORE", raising=False)
    yield
    sys.modules.pop("mine", None)


def asked(text: str, *arguments: str, env: dict[str, str] | None = None) -> Ran:
    return Ran(text, "--tool", "mine:log", "--idempotency-key", "k", *arguments, env=env)


def bought() -> list[str]:
    return Path("calls.log").read_text(encoding="utf-8").split() if Path("calls.log").exists() else []


@pytest.mark.parametrize("named", ["option", "environment", "settings"])
def test_a_key_is_bought_once_by_commands_with_one_store(named: str) -> None:
    if named == "settings":
        Path("steer.toml").write_text(f'store = "{STORE}"\n', encoding="utf-8")
    arguments = ("--store", STORE) if named == "option" else ()
    env = {"STEER_STORE": STORE} if named == "environment" else None
    one, other = (asked("tea", "--json", *arguments, env=env) for _ in range(2))
    assert (one.code, other.code, json.loads(other.out)) == (Exit.OK, Exit.OK, json.loads(one.out))
    assert "replayed, nothing was bought" in asked("tea", *arguments, env=env).err
    assert asked("coffee", *arguments, env=env).code == Exit.CONFLICT
    assert bought() == ["tea"]


def test_a_named_store_goes_before_that_of_the_environment() -> None:
    asked("tea", "--store", STORE, env={"STEER_STORE": "sqlite:///other.db"})
    assert (Path("keys.db").exists(), Path("other.db").exists()) == (True, False)


@pytest.mark.parametrize("arguments", [[], ["--store", "memory://"], ["--store", ""]])
def test_a_key_that_nothing_would_remember_is_refused_and_nothing_is_bought(arguments: list[str]) -> None:
    ran = asked("tea", *arguments)
    assert ran.code == Exit.BAD_INPUT
    assert "--idempotency-key: 'k' cannot be used; nothing remembers it" in ran.err
    assert "--store sqlite:///steer.db" in ran.err
    assert bought() == []


@pytest.mark.parametrize("batch", [False, True])
def test_a_store_that_is_none_is_refused_by_the_name_of_its_option(batch: bool) -> None:
    Path("in.jsonl").write_text('"tea"\n', encoding="utf-8")
    what = ("--batch", "in.jsonl", "--out", "out.jsonl") if batch else ("tea",)
    ran = Ran(*what, "--tool", "mine:log", "--store", "nonsense")
    assert ran.code == Exit.BAD_INPUT
    assert "--store: 'nonsense' cannot be used; give sqlite:///file.db" in ran.err
    assert bought() == []


def test_the_keys_of_the_lines_of_a_batch_are_remembered_in_its_store() -> None:
    line = {"request": {"text": "tea"}, "options": {"idempotency_key": "k"}}
    Path("in.jsonl").write_text(json.dumps(line), encoding="utf-8")
    for out in ("one.jsonl", "other.jsonl"):
        ran = Ran("--batch", "in.jsonl", "--out", out, "--tool", "mine:log", "--store", STORE)
        assert ran.code == Exit.OK
    assert bought() == ["tea"]


def test_another_model_or_schema_under_the_same_key_is_a_conflict() -> None:
    asked = (QUESTION, "--idempotency-key", "k", "--store", STORE, "-m", "recorded:gpt-4o-2024-05-13")
    assert Ran(*asked).code == Exit.OK
    assert Ran(*asked).code == Exit.OK
    assert Ran(*asked[:-1], "recorded:reka-flash-20240226").code == Exit.CONFLICT
    assert Ran(*asked, "--schema", '{"type": "object"}').code == Exit.CONFLICT


def test_doctor_says_what_a_key_at_the_command_line_needs() -> None:
    said = " ".join(CliRunner().invoke(app, ["doctor"]).stdout.split())
    assert "`steer-llm run --idempotency-key` needs --store or STEER_STORE" in said
