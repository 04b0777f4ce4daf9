"""What a notebook shows of an output."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from steer_llm_sdk.evidence import summarize
from steer_llm_sdk.orchestration import BundleMetadata, EvidenceBundle, OrchestrationOutput, Replicate
from steer_llm_sdk.orchestration._html import LONGEST, MOST_ATTEMPTS

HOSTILE = "<script>alert(1)</script><img src=x onerror='a()'>\"&</pre></div><style>*{display:none}</style>"


class Page(HTMLParser):
    """The tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def attempt(**fields: Any) -> dict[str, Any]:
    return {"tool": "t", "provider": "p", "attempt": 1, "started_ms": 0.0, "elapsed_ms": 500.0, **fields}


def shown(content: Any = "x", **fields: Any) -> Page:
    output = OrchestrationOutput.model_validate({"content": content, "elapsed_ms": 1234, **fields})
    page = Page(output._repr_html_())
    assert page.open == []
    assert set(page.tags) <= {"div", "b", "i", "pre", "table", "tr", "th", "td", "bdi"}
    assert page.attributes <= {"style", "dir"}
    return page


def test_status_tool_tokens_cost_and_time_stand_on_one_line_in_words() -> None:
    page = shown(
        cost_usd=0.0125,
        usage={"input_tokens": 1000, "output_tokens": 500},
        metadata={"tool_name": "ask"},
        status="partial",
    )
    assert "◐ partial · ask · 1,500 tokens · $0.012500 · 1.23 s" in page.text


def test_a_cost_that_nobody_knows_is_not_shown_as_nothing() -> None:
    assert "cost unknown" in shown().text
    assert "$0.000000" in shown(cost_usd=0.0).text


def test_a_replay_says_that_it_is_one() -> None:
    assert "replayed" in shown(replayed=True).text


def test_content_that_is_no_text_is_shown_as_json() -> None:
    assert '"a": [\n    1,\n    null\n  ]' in shown({"a": [1, None]}).text


def test_each_attempt_is_a_row_with_when_how_long_who_and_what_came() -> None:
    failed = attempt(model="m1", outcome="failed", error={"message": "m1 answered 503"})
    page = shown(
        per_agent={"t": {"timeline": [attempt(started_ms=900.0, outcome="succeeded"), failed]}}, status="succeeded"
    )
    assert page.tags.count("tr") == 3
    assert page.text.index("m1failed: m1 answered 503") < page.text.index("0.90 s0.50 stsucceeded")


@pytest.mark.parametrize(
    "fields",
    [
        {"content": HOSTILE},
        {"content": {HOSTILE: [HOSTILE]}},
        {"metadata": {"tool_name": HOSTILE}},
        {"per_agent": {HOSTILE: {"timeline": [attempt(tool=HOSTILE, outcome=HOSTILE)]}}},
        {"per_agent": {"t": {"timeline": [attempt(model=HOSTILE, outcome="failed", error={"message": HOSTILE})]}}},
    ],
)
def test_whatever_is_in_an_output_it_is_text_and_never_a_tag(fields: dict[str, Any]) -> None:
    page = shown(**fields)
    assert "<script>alert(1)</script>" in page.text
    assert "</style>" in page.text


def test_control_characters_are_left_out_and_half_characters_replaced() -> None:
    assert "abc\ufffdd" in shown("a\x00b\x1b\x9bc\ud800d").text
    OrchestrationOutput(content="\ud800", elapsed_ms=1)._repr_html_().encode()


def test_right_to_left_marks_stay_in_the_cell_they_came_in() -> None:
    output = OrchestrationOutput.model_validate(
        {"content": "x", "elapsed_ms": 1, "per_agent": {"t": {"timeline": [attempt(tool="\u202eevil", outcome="ok")]}}}
    )
    assert "<bdi>\u202eevil</bdi>" in output._repr_html_()


def test_a_long_content_is_cut_and_says_so() -> None:
    page = shown("x" * (LONGEST + 1500))
    assert "… and 1,500 more characters: output.content has them all" in page.text
    assert page.text.count("x") < LONGEST + 10


def test_many_attempts_are_cut_and_say_so() -> None:
    lines = [attempt(outcome="succeeded") for _ in range(MOST_ATTEMPTS + 2)]
    assert "… and 2 more attempts" in shown(per_agent={"t": {"timeline": lines}}).text


def test_a_run_without_attempts_has_no_table() -> None:
    assert "table" not in shown().tags


def test_attempts_that_took_no_time_have_a_bar_all_the_same() -> None:
    assert "table" in shown(per_agent={"t": {"timeline": [attempt(elapsed_ms=0.0, outcome="succeeded")]}}).tags


def replicate(number: int, answer: Any, valid: bool = True) -> dict[str, Any]:
    return {"id": f"r{number}", "data": answer, "quality": {"valid": valid}, "elapsed_ms": 1}


def bundle_of(answers: list[Any]) -> dict[str, Any]:
    made = [Replicate.model_validate(replicate(n, answer)) for n, answer in enumerate(answers, 1)]
    meta = BundleMetadata(task="t", k=len(made), total_elapsed_ms=1)
    return {
        "evidence_bundle": EvidenceBundle(meta=meta, replicates=made, summary=summarize(made)).model_dump(mode="json")
    }


def test_of_a_bundle_it_shows_consensus_confidence_and_votes_and_not_all_of_the_json() -> None:
    page = shown(bundle_of([{"a": 1}, {"a": 1}, {"a": 2}]))
    assert "3 of 3 answers valid · confidence 0.64 · stability, not truth" in page.text
    assert "answervotesa12 of 321 of 3" in page.text
    assert "evidence_bundle" not in page.text


def test_a_bundle_without_consensus_says_so() -> None:
    assert "2 of 2 answers valid · no consensus" in shown(bundle_of([1, 2])).text


def test_answers_of_a_bundle_are_text_and_never_a_tag_and_long_ones_are_cut() -> None:
    page = shown(bundle_of([HOSTILE, HOSTILE, "x" * 100_000, *range(20)]))
    assert "<script>alert(1)</script>" in page.text
    assert "x …" in page.text
    assert "other answers" in page.text
    assert len(page.text) < 30_000


def test_what_only_goes_by_the_name_of_a_bundle_is_shown_as_it_is() -> None:
    assert '"evidence_bundle": 7' in shown({"evidence_bundle": 7}).text


def test_a_tool_that_was_passed_over_has_a_line_with_the_reason() -> None:
    page = shown(metadata={"plan": {"passed_over": {HOSTILE: "its circuit breaker is open"}}})
    assert f"{HOSTILE} passed over: its circuit breaker is open" in page.text


@pytest.mark.parametrize("metadata", [{}, {"plan": None}, {"plan": {"passed_over": None}}, {"plan": {}}])
def test_where_nothing_was_passed_over_nothing_is_said(metadata: dict[str, Any]) -> None:
    assert OrchestrationOutput(content="x", elapsed_ms=1, metadata=metadata).passed_over == {}
    assert "passed over" not in shown(metadata=metadata).text
