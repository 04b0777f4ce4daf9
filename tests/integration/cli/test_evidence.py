"""`steer-llm evidence show`: a bundle that was kept, as a table, a page or Markdown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from steer_llm_sdk.cli.main import app
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from unit.evidence.bundles import bundle_of, hostile, stopped

BUNDLE = bundle_of({"a": 1}, {"a": 1}, {"a": 2})


def ran(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["evidence", "show", *arguments], input=stdin)


@pytest.fixture
def kept(tmp_path: Path) -> str:
    path = tmp_path / "bundle.json"
    path.write_text(BUNDLE.model_dump_json(), encoding="utf-8")
    return str(path)


def test_a_bundle_is_shown_as_a_table(kept: str) -> None:
    done = ran(kept)
    assert done.exit_code == 0
    assert "2 of 3" in done.stdout
    assert "3 of 3 answers valid" in done.stdout


def test_a_second_file_is_refused_with_the_way_to_write_one(kept: str) -> None:
    done = ran(kept, "--html", "page.html")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "on stdout: leave it out, or > page.html" in done.stderr


def test_a_page_and_markdown_are_what_the_bundle_says(kept: str) -> None:
    assert ran(kept, "--html").stdout == BUNDLE.to_html()
    assert ran(kept, "--markdown").stdout == BUNDLE.to_markdown()


@pytest.mark.parametrize("form", ["output", "content"])
def test_an_output_with_a_bundle_in_it_will_do_from_standard_input_too(form: str) -> None:
    view = BUNDLE.model_dump(mode="json")
    content = {"evidence_bundle": {part: view[part] for part in ("meta", "replicates", "summary")}}
    output = OrchestrationOutput(content=content, elapsed_ms=1)
    done = ran("-", stdin=output.model_dump_json() if form == "output" else json.dumps(content))
    assert (done.exit_code, "3 of 3 answers valid" in done.stdout) == (0, True)


def test_what_is_missing_or_not_valid_is_said_on_stderr(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(stopped(bundle_of("a", "a", invalid=1), "budget").model_dump_json(), encoding="utf-8")
    done = ran(str(path))
    assert "6 of the 9 asked for are missing: the budget allowed no more" in done.stderr
    assert "x1 not valid: InvalidOutput: no JSON" in done.stderr


def test_hostile_words_reach_the_page_as_text(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(hostile().model_dump_json(), encoding="utf-8")
    assert "<script" not in ran(str(path), "--html").stdout


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nothing", "it is not JSON"),
        ("{}", "there is no evidence bundle in it: run with -k 2 or more"),
        ("[1]", "there is no evidence bundle in it"),
        ('{"content": "x", "elapsed_ms": 1}', "there is no evidence bundle in it"),
        ('{"replicates": [], "meta": {"k": 0}}', "it is no evidence bundle: meta"),
        ('{"content": {"evidence_bundle": 7}, "elapsed_ms": 1}', "it is no evidence bundle"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_bundle_is_refused_with_a_sentence(text: str, reason: str) -> None:
    done = ran("-", stdin=text)
    assert (done.exit_code, done.stdout) == (2, "")
    assert reason in done.stderr


def test_a_file_that_is_not_there_and_two_forms_at_once_are_refused(kept: str) -> None:
    assert "name a file that can be read" in ran("/nowhere/b.json").stderr
    assert "give it or --html, not both" in ran(kept, "--html", "--markdown").stderr
