"""`steer-llm plan evaluate`: whether a log speaks for the planner that learned from it, and the exit code."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steer_llm_sdk.cli.main import app


def log_of(gain: float, count: int = 3000) -> str:
    """Of a planner whose other tool is better by `gain` for code."""
    rng = random.Random(1)
    lines = []
    for _ in range(count):
        tool = rng.choice(["good", "odd"])
        chance = 0.5 + gain * (tool == "odd")
        line = {"type": "code", "candidates": ["good", "odd"], "tool": tool, "propensity": 0.5, "default": "good"}
        lines.append(json.dumps({**line, "reward": float(rng.random() < chance), "cost_usd": 0.01}))
    return "\n".join(lines)


@pytest.mark.parametrize(("gain", "code", "says"), [(0.3, 0, "promote: "), (-0.3, 1, "do not promote: ")])
def test_a_gain_is_promoted_and_what_is_none_is_not(tmp_path: Path, gain: float, code: int, says: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(log_of(gain), encoding="utf-8")
    ran = CliRunner().invoke(app, ["plan", "evaluate", str(path)])
    assert ran.exit_code == code
    assert ran.stdout.startswith(says)
    assert "random" in ran.stdout


def test_it_is_json_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(log_of(0.3, 400), encoding="utf-8")
    ran = CliRunner().invoke(app, ["plan", "evaluate", str(path), "--json"])
    found = json.loads(ran.stdout)
    assert (found["promote"], found["reference"], found["decisions"]) == (True, "good", 400)
    assert found["policy"]["low"] <= found["policy"]["dr"] <= found["policy"]["high"]


def test_how_many_lines_a_later_word_replaced_is_said(tmp_path: Path) -> None:
    lines = enumerate(log_of(0.3, 60).split("\n"))
    told = [json.dumps({**json.loads(line), "decision_id": str(number)}) for number, line in lines]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([*told, *told[:25]]), encoding="utf-8")
    ran = CliRunner().invoke(app, ["plan", "evaluate", str(path)])
    assert "60 decisions; 25 earlier lines of the same decisions do not count" in ran.stdout


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(log_of(0.3, 60) + "\nnot json\n", encoding="utf-8")
    ran = CliRunner().invoke(app, ["plan", "evaluate", str(path)])
    assert ran.exit_code == 2
    assert "line 61" in ran.output


def test_a_log_in_which_nothing_was_tried_says_so(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(log_of(0.3, 100).replace('"propensity": 0.5', '"propensity": 1'), encoding="utf-8")
    ran = CliRunner().invoke(app, ["plan", "evaluate", str(path)])
    assert ran.exit_code == 2
    assert "propensity 1" in ran.output


def test_a_log_comes_from_standard_input_too() -> None:
    ran = CliRunner().invoke(app, ["plan", "evaluate", "-", "--default", "good"], input=log_of(0.3))
    assert ran.exit_code == 0
    assert ran.stdout.startswith("promote: ")
