"""An output as people see it: at most 80 columns, nothing that moves a cursor, and every number the right one."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from steer_llm_sdk.cli import _show as show
from steer_llm_sdk.cli._batch_results import Kept
from steer_llm_sdk.cli.exits import Exit, code_of
from steer_llm_sdk.evidence import summarize
from steer_llm_sdk.orchestration.models import (
    BundleMetadata,
    EvidenceBundle,
    Replicate,
    ReplicateQuality,
)
from steer_llm_sdk.orchestration.output import OrchestrationOutput


def bundle(*answers: Any, invalid: int = 0, fields: list[str] | None = None) -> EvidenceBundle:
    replicates = [Replicate(id=f"r{n}", data=data) for n, data in enumerate(answers, start=1)]
    bad = ReplicateQuality(valid=False, errors=["BadResponse: no JSON"])
    replicates += [Replicate(id=f"x{n}", quality=bad) for n in range(invalid)]
    return EvidenceBundle(
        meta=BundleMetadata(task="t", k=len(replicates), k_completed=len(answers)),
        replicates=replicates,
        summary=summarize(replicates, fields=fields),
    )


def shown(evidence: EvidenceBundle, *, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=show.WIDTH, force_terminal=terminal, color_system=None, highlight=False)
    show.show_evidence(evidence, console)
    return out.getvalue()


def rows(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def output(**fields: Any) -> OrchestrationOutput:
    return OrchestrationOutput.model_validate(
        {"content": "x", "elapsed_ms": 1234, "metadata": {"tool_name": "ask"}, **fields}
    )


def test_a_bundle_shows_each_field_with_its_votes() -> None:
    text = shown(bundle({"a": "yes", "n": 1}, {"a": "yes", "n": 1}, {"a": "no", "n": 1}))
    assert rows(text)[:4] == [
        ["field", "answer", "votes"],
        ["a", '"yes"', "2 of 3"],
        ['"no"', "1 of 3"],
        ["n", "1", "3 of 3"],
    ]


def test_invalid_answers_count_among_those_asked() -> None:
    text = shown(bundle({"a": 1}, {"a": 1}, invalid=2))
    assert ["a", "1", "2 of 4"] in rows(text)
    assert "2 of 4 answers valid; confidence 0.88" in text


def missing(*answers: Any, k: int, reason: str | None) -> EvidenceBundle:
    """A bundle that was stopped before all of its k answers were there."""
    made = bundle(*answers)
    stopped = made.meta.model_copy(update={"k": k, "early_stopped": True, "early_stop_reason": reason})
    return made.model_copy(update={"meta": stopped})


def test_votes_and_confidence_are_shares_of_the_same_answers() -> None:
    text = shown(missing("a", "a", "b", k=5, reason="budget"))
    assert ["answer", '"a"', "2 of 3"] in rows(text)
    assert "3 of 3 answers valid; confidence 0.64 (stability, not truth)" in text


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (missing("a", "a", k=3, reason="budget"), "r3 of the 3 asked for is missing: the budget allowed no more"),
        (missing("a", k=3, reason="deadline"), "r2, r3 of the 3 asked for are missing: the time was up"),
        (
            missing("a", "a", k=3, reason="converged"),
            "r3 of the 3 asked for is missing: they would hardly have changed the answer",
        ),
        (missing("a", "a", k=3, reason=None), "r3 of the 3 asked for is missing: no reason was given"),
        (bundle("a", "a", invalid=2), "x0, x1 not valid: BadResponse: no JSON"),
    ],
)
def test_why_answers_are_missing_or_not_valid_is_said_once(evidence: EvidenceBundle, said: str) -> None:
    assert list(show.shortfall(evidence)) == [said]


def test_of_a_whole_bundle_nothing_is_missing() -> None:
    assert list(show.shortfall(bundle("a", "a"))) == []


def test_one_answer_alone_is_no_consensus() -> None:
    assert "1 of 2 answers valid; one answer alone is no consensus" in shown(bundle("a", invalid=1))


def test_lines_of_a_table_end_where_their_text_ends() -> None:
    lines = shown(bundle({"a": "x"}, {"a": "x"}, {"a": "a longer one"})).splitlines()
    assert lines == [line.rstrip() for line in lines]


def test_a_warning_about_an_answer_is_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    warned = output(status="partial", metadata={"tool_name": "ask", "warnings": ["the answer was cut off"]})
    show.show_output(warned)
    said = capsys.readouterr()
    assert said.out == "x\n"
    assert said.err.splitlines()[0] == "warning: the answer was cut off"


def test_answers_that_all_differ_are_no_consensus() -> None:
    text = shown(bundle({"a": 1}, {"a": 2}, {"a": 3}))
    assert "no two of them agree" in text
    assert ["a", "1", "1 of 3"] in rows(text)


def test_more_values_than_fit_are_counted() -> None:
    text = shown(bundle(*({"a": n} for n in (1, 1, 2, 3, 4, 5))))
    assert ["… and 2 other answers", "2 of 6"] in rows(text)


def test_a_nested_field_shows_the_value_at_its_path() -> None:
    text = shown(bundle({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}))
    assert ["a.b", "[1, 2]", "2 of 2"] in rows(text)


def test_a_key_with_a_dot_in_it_is_one_field() -> None:
    text = shown(bundle({"a.b": 1, "c": "x"}, {"a.b": 1, "c": "x"}))
    assert ['"a.b"', "1", "2 of 2"] in rows(text)


def test_a_field_that_some_answers_have_no_room_for_is_counted_among_the_others() -> None:
    text = shown(bundle({"a": "none"}, {"a": {"b": 1}}, {"a": {"b": 1}}))
    assert ["a.b", "1", "2 of 3"] in rows(text)


def test_a_field_that_no_answer_has_is_shown_as_absent() -> None:
    text = shown(bundle({"a": 1}, {"a": 2}, fields=["b"]))
    assert ["b", "(absent)", "2 of 2"] in rows(text)


def test_plain_text_answers_are_shown_too() -> None:
    text = shown(bundle("Paris", "Paris", "Rome"))
    assert '"Paris"' in text
    assert "2 of 3" in text


@pytest.mark.parametrize("value", ["long " * 100, "wide 漢字 " * 40, "[bold]no markup[/bold]"])
def test_nothing_is_wider_than_eighty_columns(value: str) -> None:
    text = shown(bundle({"answer_with_a_long_name_indeed": value}, {"answer_with_a_long_name_indeed": value}))
    assert max(map(len, text.splitlines())) <= 80


def test_what_would_move_the_cursor_is_taken_out() -> None:
    assert show.printable("a\x1b[31mb\x00c\x9bd\r\ne\tf") == "a[31mbcd\ne\tf"


def test_the_summary_line_says_status_calls_tokens_cost_and_time() -> None:
    attempt = {"started_ms": 0, "elapsed_ms": 1, "tool": "ask", "outcome": "succeeded"}
    done = output(
        usage={"total_tokens": 1500},
        cost_usd=0.00012,
        per_agent={"ask": {"timeline": [attempt, {**attempt, "outcome": "failed"}]}},
    )
    assert show.summary_line(done) == "succeeded · ask · 2 calls · 1,500 tokens · $0.00012 list price · 1.23 s"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cost_usd": None}, "cost unknown"),
        ({"cost_usd": 0.0}, "$0 list price"),
        ({"cost_usd": 12.3456}, "$12.35 list price"),
        ({"cost_usd": 0.5, "metadata": {"simulated": True}}, "$0.5 list price, not spent"),
        ({"metadata": {"local": True}}, "computed on this machine"),
    ],
)
def test_a_cost_is_never_made_up(fields: dict[str, Any], said: str) -> None:
    assert show.cost_of(output(**fields)) == said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"outcome": "succeeded"}, "answered"),
        ({"outcome": "failed", "error": {"status_code": 503, "code": "server_error"}}, "503 server_error"),
        ({"outcome": "failed", "error": {"code": "timeout"}}, "timeout"),
        ({"outcome": "cancelled"}, "cancelled"),
    ],
)
def test_an_attempt_is_told_in_a_few_words(line: dict[str, Any], said: str) -> None:
    assert show.outcome_of(line) == said


def test_text_goes_to_stdout_and_the_account_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show.show_output(output(content="line one\nline two"))
    said = capsys.readouterr()
    assert said.out == "line one\nline two\n"
    assert said.err.startswith("succeeded · ask")


def test_a_long_line_of_text_is_not_broken_in_two(capsys: pytest.CaptureFixture[str]) -> None:
    show.show_output(output(content="word " * 60))
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_what_was_streamed_is_not_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    show.show_output(output(content="one two"), printed="one ")
    assert capsys.readouterr().out == "two\n"


def test_a_failure_leaves_stdout_empty_and_names_every_tool(capsys: pytest.CaptureFixture[str]) -> None:
    errors = {"a": {"message": "503"}, "b": {"message": "gone"}}
    show.show_output(output(status="failed", content={"error": errors["a"]}, errors=errors))
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[:2] == ["a: 503", "b: gone"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"status": "succeeded"}, Exit.OK),
        ({"status": "partial"}, Exit.PARTIAL),
        ({"status": "failed", "content": {"error": {"code": "server_error"}}}, Exit.FAILED),
        ({"status": "failed", "content": {"error": {"code": "validation"}}}, Exit.BAD_INPUT),
        ({"status": "failed", "content": {"error": {"code": "not_found"}}}, Exit.BAD_INPUT),
        ({"status": "failed", "content": None}, Exit.FAILED),
    ],
)
def test_every_status_has_its_exit_code(fields: dict[str, Any], code: Exit) -> None:
    assert code_of(output(**fields)) is code


@pytest.mark.parametrize(
    ("models", "spent_nothing"), [(["recorded:demo"] * 2, True), (["openai:a", "recorded:demo"], False), ([], False)]
)
def test_a_run_that_failed_spent_nothing_where_only_recordings_were_asked(
    models: list[str], spent_nothing: bool
) -> None:
    timeline = [{"tool": "ask", "model": model, "outcome": "failed", "started_ms": 0.0} for model in models]
    output = OrchestrationOutput(
        content={"error": {}}, status="failed", cost_usd=0.5, elapsed_ms=1, per_agent={"ask": {"timeline": timeline}}
    )
    assert show.cost_of(output) == ("$0.5 list price, not spent" if spent_nothing else "$0.5 list price")
    assert show.cost_of(output) in show.summary_line(output)
    kept = Kept.of({"status": "failed", "output": output.model_dump(mode="json")})
    assert kept.simulated is spent_nothing


def test_a_tool_that_a_breaker_kept_away_is_named_though_no_attempt_is_its(capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"passed_over": {"solve": "its circuit breaker is open"}}
    show.show_output(output(metadata={"tool_name": "later", "plan": plan}))
    assert "solve passed over: its circuit breaker is open\n" in capsys.readouterr().err
