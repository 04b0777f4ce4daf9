"""What the page and the Markdown of a bundle say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from bundles import bundle_of, hostile, stopped

from steer_llm_sdk.evidence import FieldPolicy, summarize
from steer_llm_sdk.orchestration.models import BundleMetadata, EvidenceBundle, Replicate

VOID = {"meta", "wbr"}


class Page(HTMLParser):
    """Its tags, its attributes, its text, and the rows of its tables as texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.rows: list[list[str]] = []
        self.marked: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if "mark" in self.open:
            self.marked.append(data)


def shown(bundle: EvidenceBundle) -> Page:
    page = Page(bundle.to_html())
    assert page.open == []
    assert not {"script", "img", "link", "iframe", "a", "form", "object"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on") or name in ("href", "src", "action")}
    return page


def row(page: Page, *beginning: str) -> list[str]:
    (found,) = [each for each in page.rows if each[: len(beginning)] == list(beginning)]
    return found


def test_the_page_says_first_what_there_is_to_act_on() -> None:
    page = shown(bundle_of({"a": 1}, {"a": 1}, {"a": 2}))
    assert "◐ Consensus, with 1 contested field" in page.text
    assert "0.64confidence is stability: how sure it is that more replicates would not change it" in page.text
    assert "0.67support: the share of all replicates that gave it" in page.text
    assert "3 of 3answers are valid" in page.text
    assert "$0.0125cost, 1,500 tokens" in page.text


@pytest.mark.parametrize(
    ("bundle", "verdict"),
    [
        (bundle_of("a", "a"), "✓ All valid answers agree"),
        (bundle_of("a", "a", invalid=1), "◐ 2 of 3 answers are valid: they agree"),
        (bundle_of({"a": 1}, {"a": 1}, {"a": 2}, invalid=1), "◐ 3 of 4 answers are valid: consensus, with 1 contested"),
        (bundle_of({"a": 1, "b": 1}, {"a": 1, "b": 2}), "◐ Consensus on 1 of 2 fields, 1 contested"),
        (
            bundle_of({"a": 1, "b": 1}, {"a": 1, "b": 2}, invalid=7),
            "◐ 2 of 9 answers are valid: consensus on 1 of 2 fields, 1 contested",
        ),
        (bundle_of("a", invalid=2), "✗ 1 of 3 answers is valid: one answer alone: no consensus"),
        (bundle_of("a", "b", invalid=1), "✗ 2 of 3 answers are valid: no consensus: no two answers agree"),
        (bundle_of("a"), "✗ One answer alone: no consensus"),
        (bundle_of("a", "b"), "✗ No consensus: no two answers agree"),
        (bundle_of(invalid=2), "✗ No valid answer"),
    ],
)
def test_the_verdict_never_says_more_than_there_is(bundle: EvidenceBundle, verdict: str) -> None:
    assert verdict in shown(bundle).text
    mark, words = verdict.split(" ", 1)
    assert f"{mark} **{words}" in bundle.to_markdown()


@pytest.mark.parametrize("as_text", [lambda bundle: shown(bundle).text, EvidenceBundle.to_markdown])
def test_what_one_answer_said_stands_apart_from_what_is_agreed_on(as_text: Any) -> None:
    answers = [{"a": {"x": n, "y": "same"}, "list": [1, n], "only": f"of {n}", "gone": None} for n in range(3)]
    replicates = [Replicate(id=f"r{n}", data=answer) for n, answer in enumerate(answers)]
    summary = summarize(replicates, fields=["a", "list", "gone"])
    bundle = EvidenceBundle(meta=BundleMetadata(task="t", k=3), replicates=replicates, summary=summary)
    said = re.split("Agreement", re.split(r"Consensus\n*(?:```json)?\s*(?=\{)", as_text(bundle))[1])[0]
    agreed, alone = said.split("No two answers agree on this")
    alone, beside = alone.split("From one answer, not compared")
    nearest = int(str(summary.nearest)[1])
    found = [json.JSONDecoder().raw_decode(part[part.index("{") :])[0] for part in (agreed, alone, beside)]
    assert found[0].get("gone", "not there") is None
    assert found[0]["a"] == {"y": "same"}
    assert found[1]["a"] == {"x": nearest}
    assert found[2] == {"only": f"of {nearest}"}


def test_the_whole_answer_is_the_consensus_where_all_of_it_was_compared() -> None:
    answer = {"a": {"b": [1, {"c": 2}], "empty": {}, "none": []}, "d": None}
    text = bundle_of(answer, answer).to_markdown()
    assert json.loads(text.split("```")[1].removeprefix("json")) == answer
    assert "not compared" not in text


def test_models_count_those_whose_answers_nobody_named() -> None:
    page = shown(bundle_of("a", "a", invalid=7))
    assert row(page, "not named") == ["not named", "0 of 7", ""]
    assert row(page, "small", "1 of 1") == ["small", "1 of 1", "1.00"]


def test_the_heat_map_has_a_letter_for_each_replicate_and_field() -> None:
    page = shown(bundle_of({"a": 1, "b": "x"}, {"a": 2, "b": "x"}, {"a": 1, "b": "X"}, {"b": "x"}, invalid=1))
    assert row(page, "field", "support")[2:] == ["r1", "r2", "r3", "r4", "x1"]
    assert row(page, "a", "0.40")[2:] == ["A", "B", "A", "·", "✗"]
    assert row(page, "b", "0.80")[2:] == ["A", "A", "A", "A", "✗"]


def test_the_consensus_is_a_where_it_is_not_what_most_said() -> None:
    replicates = [Replicate(id=f"r{n}", data=value) for n, value in enumerate([9, 9, 1, 2, 2, 9, 1, 1, 2])]
    summary = summarize(replicates, fields={"$": FieldPolicy(consensus=lambda said: 2)})
    page = shown(EvidenceBundle(meta=BundleMetadata(task="t", k=9), replicates=replicates, summary=summary))
    assert row(page, "A", "2")[2] == "3"


def test_a_field_that_only_some_could_have_has_a_dash_for_the_others() -> None:
    page = shown(bundle_of({"a": {"b": 1}}, {"a": {"b": 2}}, {"a": 5}, {"a": {"b": 1}}))
    assert row(page, "a.b", "0.50")[2:] == ["A", "B", "-", "A"]


def test_the_words_that_differ_from_the_consensus_are_marked() -> None:
    page = shown(bundle_of("the fee is 60 euros", "the fee is 60 euros", "the fee was 90 euros"))
    assert page.marked == ["was", "90"]


def test_numbers_distances_models_replicates_and_cost_have_tables() -> None:
    page = shown(bundle_of({"n": 1.0}, {"n": 2.0}, {"n": 2.0}))
    assert row(page, "n", "")[2:] == ["1", "2", "2", "1.66667", "0.57735"]
    assert row(page, "r1", "·")[1:] == ["·", "0.50", "0.50"]
    assert row(page, "small", "1 of 1") == ["small", "1 of 1", "1.00"]
    assert row(page, "r3", "", "large")[5:7] == ["0.30 s", "3"]
    assert row(page, "large", "$0.012500")


@pytest.mark.parametrize(
    ("reason", "words"),
    [("decided", "could not have changed"), ("budget", "budget allowed no more"), ("too_many_invalid", "too many")],
)
def test_it_says_why_it_stopped_what_that_saved_and_how_stability_grew(reason: str, words: str) -> None:
    bundle = stopped(bundle_of("a", "a", "a"), reason)
    page = shown(bundle)
    assert re.search(rf"3 of 9 were asked for: .*{words}.*\. That saved \$0\.0250\.", page.text)
    assert row(page, "r2", "", "0.60") == ["r2", "", "0.60", "2"]
    assert words in bundle.to_markdown()


def test_why_an_answer_is_not_valid_stands_beside_it() -> None:
    bundle = bundle_of("a", "a", invalid=1)
    assert "not valid: InvalidOutput: no JSON" in shown(bundle).text
    assert "x1 is not valid: InvalidOutput\\: no JSON" in bundle.to_markdown()


@pytest.mark.parametrize("make", [EvidenceBundle.to_html, EvidenceBundle._repr_html_])
def test_whatever_is_in_a_bundle_it_is_text_and_never_a_tag(make: Any) -> None:
    html = make(hostile())
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert "<script>window.hit=1</script>" in page.text
    assert page.tags.count("style") == (2 if make is EvidenceBundle.to_html else 1)


def test_in_markdown_whatever_is_in_a_bundle_is_text() -> None:
    text = hostile().to_markdown()
    outside = re.sub(r"^(`{3,})json\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)<", outside)
    assert not re.search(r"(?<!\\)\]\(", outside)
    assert {line.count(" | ") for line in outside.splitlines() if line.startswith("| ")} == {7}


def test_a_consensus_with_fences_in_it_stays_in_its_fence() -> None:
    text = bundle_of("```\n# not a title\n````", "```\n# not a title\n````").to_markdown()
    assert text.count("`````json") == 1


def test_the_block_for_a_notebook_is_no_document_and_its_style_touches_nothing_else() -> None:
    html = bundle_of("a", "a")._repr_html_()
    assert html.startswith('<div class="sev">')
    rules = re.sub(
        r"@media\([^)]*\)\{((?:[^{}]*\{[^{}]*\})*)\}", r"\1", re.findall("<style>(.*?)</style>", html, re.DOTALL)[0]
    )
    selectors = [each.strip() for group in re.findall(r"([^{}]+)\{", rules) for each in group.split(",")]
    assert [each for each in selectors if not each.startswith(".sev")] == []


def test_a_thousand_replicates_and_fields_are_cut_and_say_so() -> None:
    many = [Replicate(id=f"r{n}", data={f"f{i}": n % (i + 2) for i in range(150)}) for n in range(300)]
    bundle = EvidenceBundle(meta=BundleMetadata(task="t", k=300), replicates=many, summary=summarize(many))
    page = shown(bundle)
    assert "… and 50 more fields" in page.text
    assert "… and 200 more replicates" in page.text
    assert len(bundle.to_html()) < 2_000_000
    assert "270 more replicates are not shown" in bundle.to_markdown()


def test_a_bundle_of_somebody_elses_making_is_shown_as_far_as_it_goes() -> None:
    bundle = bundle_of(1, 1).model_dump()
    bundle["summary"] = {
        "consensus": {"x": 1},
        "confidence": 0.5,
        "disagreements": [{"field": "a..b", "values": [1, 2], "replicate_ids": ["r1", "r2"]}],
        "distributions": {"x": "odd", "": {}},
    }
    page = shown(EvidenceBundle.model_validate(bundle))
    assert row(page, "a..b")[2:] == ["…", "…"]
