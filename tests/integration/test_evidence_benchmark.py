"""The replay of recorded answers, on an extract: it runs, and what must hold for any recording holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "evidence"))

import replay
from recordings import load, plurality, varied

ROOT = Path(__file__).parents[2]
EXTRACT = ROOT / "tests" / "data" / "evidence"
TASKS = load(EXTRACT)
QUESTIONS = [question for questions in TASKS.values() for question in questions]


def test_the_extract_is_read_as_votes() -> None:
    assert {task: len(questions) for task, questions in TASKS.items()} == {
        "cruxeval_output_codellama7b": 60,
        "zeroeval_gsm": 60,
        "zeroeval_math-l5": 60,
    }
    assert all(map(varied, TASKS.values()))
    gsm = TASKS["zeroeval_gsm"]
    assert sum(bool(plurality(question.votes) & question.right) for question in gsm) / len(gsm) > 0.9


@pytest.mark.parametrize("k", [3, 5, 10])
def test_exact_curtailment_saves_calls_and_changes_nothing(k: int) -> None:
    tally = replay.replayed(QUESTIONS, k, replay.ours("curtail"), orders=3)
    assert (tally.agreement, tally.accuracy_change[0]) == (1.0, 0.0)
    assert tally.saved(k) > 0.15


@pytest.mark.parametrize(("k", "saved"), [(3, 0.17), (5, 0.2), (10, 0.33)])
def test_predictive_curtailment_saves_more_and_keeps_to_its_risk(k: int, saved: float) -> None:
    tally = replay.replayed(QUESTIONS, k, replay.ours("pcurtail"), orders=10)
    assert tally.saved(k) > max(saved, replay.replayed(QUESTIONS, k, replay.ours("curtail"), orders=10).saved(k))
    assert tally.agreement >= 0.99


def test_certificates_are_of_the_most_frequent_answer() -> None:
    found = replay.certified(QUESTIONS, 100, 0.2, orders=2)
    assert found.given > 0.5 * found.runs
    assert found.wrong / found.runs <= 0.02


def test_the_command_prints_its_tables_and_says_which_marks_are_held(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "benchmarks/evidence/run.py",
        str(EXTRACT),
        "--only",
        "launches",
        "--plots",
        str(tmp_path),
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "15 of 15 marks held" in ran.stdout
