"""`steer-llm calibrate`: labelled answers in, a calibrator out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from steer_llm_sdk.cli.exits import Exit
from steer_llm_sdk.cli.main import app
from steer_llm_sdk.evidence import Calibrator

AGREED = {"votes": ["a", "a", "a"], "correct": True}
SPLIT = {"votes": ["a", "b", None], "correct": False}


class Ran:
    def __init__(self, folder: Path, *lines: Any, arguments: tuple[str, ...] = ("--model", "m")) -> None:
        path = folder / "labels.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
        result = CliRunner().invoke(app, ["calibrate", str(path), *arguments])
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    @property
    def made(self) -> Calibrator:
        return Calibrator.from_json(self.out)


def test_labels_become_a_calibrator_on_stdout_and_a_report_on_stderr(tmp_path: Path) -> None:
    ran = Ran(tmp_path, *[AGREED, SPLIT] * 20, "")
    assert ran.code == Exit.OK
    assert (ran.made.model, ran.made.k, ran.made.n, ran.made.method) == ("m", 3, 40, "platt")
    assert ran.made.trust(["a", "a", "a"]) > 0.8 > 0.3 > ran.made.trust(["a", "b", None])
    assert "auroc" in ran.err


def test_with_out_the_calibrator_is_a_file_and_the_report_on_stdout(tmp_path: Path) -> None:
    to = tmp_path / "made.json"
    ran = Ran(tmp_path, AGREED, SPLIT, arguments=("--model", "m", "--out", str(to), "-k", "5", "--rule", "pcurtail"))
    made = Calibrator.from_json(to.read_text("utf-8"))
    assert (made.k, made.rule) == (5, "pcurtail")
    assert made.date is not None
    assert "calibrated" in ran.out


def test_the_right_answer_may_be_given_in_place_of_a_verdict(tmp_path: Path) -> None:
    lines = [{"votes": ["A ", "a", "b"], "answer": "a"}, {"votes": [{"x": 1}, {"x": 1.0}], "answer": {"x": 2}}]
    assert Ran(tmp_path, lines[0]).made.accuracy == 1.0
    assert Ran(tmp_path, lines[1], arguments=("--model", "m", "--field", "x")).made.accuracy == 0.0


def test_a_bundle_that_a_run_returned_is_a_line_too(tmp_path: Path) -> None:
    replicates = [{"id": f"r{n}", "data": {"x": 1}, "quality": {"valid": n < 3}} for n in range(4)]
    bundle = {"meta": {"task": "t", "k": 4, "model": "openai:m"}, "replicates": replicates}
    ran = Ran(tmp_path, {"evidence_bundle": bundle, "correct": True}, arguments=("--field", "x"))
    assert (ran.made.model, ran.made.k, ran.made.accuracy) == ("openai:m", 4, 1.0)


def test_further_tasks_are_trusted_by_how_much_tasks_differ(tmp_path: Path) -> None:
    lines = [{**(AGREED if n % 3 else SPLIT), "task": str(n % 4)} for n in range(80)]
    one = Ran(tmp_path, *lines).made
    more = Ran(tmp_path, *lines, arguments=("--model", "m", "--further-tasks")).made
    assert (one.tasks, more.tasks) == (1, 4)
    assert more.trust(["a"] * 3) < one.trust(["a"] * 3)


@pytest.mark.parametrize(
    ("lines", "arguments", "says"),
    [
        (["{"], ("--model", "m"), "line 1: '{' cannot be used; it is no JSON"),
        (["[]"], ("--model", "m"), "line 1"),
        ([{"votes": ["a"]}], ("--model", "m"), 'give "correct"'),
        ([{"correct": True}], ("--model", "m"), 'give "votes"'),
        ([{"evidence_bundle": {}, "correct": True}], ("--model", "m"), "no evidence bundle"),
        ([], ("--model", "m"), "there is no line in it"),
        ([AGREED], (), "say who answered"),
        ([{**AGREED, "model": "a"}, {**AGREED, "model": "b"}], (), "one calibrator is of one model"),
        ([AGREED], ("--model", "m", "-k", "2"), "3 votes, but k = 2"),
        ([AGREED], ("--model", "m", "--rule", "soon"), "the rules are curtail"),
        ([AGREED], ("--model", "m", "--field", "a..b"), "is not a path"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(
    tmp_path: Path, lines: list[Any], arguments: tuple[str, ...], says: str
) -> None:
    ran = Ran(tmp_path, *lines, arguments=arguments)
    assert (ran.code, ran.out) == (Exit.BAD_INPUT, "")
    assert says in ran.err


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["calibrate", str(tmp_path / "none.jsonl"), "--model", "m"])
    assert result.exit_code == Exit.BAD_INPUT


# ── what a run does with it ──────────────────────────────────────────────────────────────────────────────────────────

MODEL = "recorded:gpt-4o-2024-05-13"


@pytest.fixture
def made(tmp_path: Path) -> str:
    """Of three that agree 19 in 20 are right, of three that differ 1 in 4."""
    to = tmp_path / "made.json"
    lines = [{**AGREED, "correct": n > 0} for n in range(20)] + [{**SPLIT, "correct": n == 0} for n in range(4)]
    assert Ran(tmp_path, *lines * 5, arguments=("--model", MODEL, "--out", str(to))).code == Exit.OK
    return str(to)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["run", "crux-test-#24", "--model", MODEL, *arguments])


def test_the_confidence_of_a_run_is_the_trust_of_its_calibrator(made: str) -> None:
    told = json.loads(run("-k", "3", "--calibrator", made, "--json").stdout)["content"]["evidence_bundle"]["summary"]
    without = json.loads(run("-k", "3", "--json").stdout)["content"]["evidence_bundle"]["summary"]
    # The first two agree, and the third is not asked for.
    expected = Calibrator.from_json(Path(made).read_text("utf-8")).trust(["a", "a"])
    assert (told["confidence"], told["confidence_is"]) == (pytest.approx(expected), "trust")
    assert without["confidence_is"] == "stability"


def test_where_a_calibrator_says_nothing_of_a_run_that_is_told(made: str) -> None:
    done = run("-k", "4", "--calibrator", made)
    assert done.exit_code == Exit.OK
    assert "warning: confidence is stability, not trust: k = 4: this calibrator is of k = 3" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--calibrator needs -k"),
        (("-k", "1"), "--calibrator needs -k"),
        (("-k", "3", "--tool", "text_analyzer"), "name one with --model and -k"),
    ],
)
def test_a_calibrator_that_would_change_nothing_is_refused(made: str, arguments: tuple[str, ...], said: str) -> None:
    done = run("--calibrator", made, *arguments)
    assert (done.exit_code, said in done.stderr) == (Exit.BAD_INPUT, True)


@pytest.mark.parametrize(
    ("text", "why"), [("{}", "version"), ("no", "Expecting value"), ("\xff", "decode"), (None, "No such file")]
)
def test_what_is_no_calibrator_is_refused_before_anything_is_asked(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "c.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    done = run("-k", "3", "--calibrator", str(path))
    assert (done.exit_code, done.stdout) == (Exit.BAD_INPUT, "")
    assert "--calibrator: " in done.stderr
    assert why in done.stderr
