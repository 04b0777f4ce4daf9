"""Whatever comes in, there is a clear outcome."""

from __future__ import annotations

import json
from typing import Any

import pytest
from answers import invalid, valid
from pydantic import BaseModel

from steer_llm_sdk.evidence import FieldPolicy, summarize
from steer_llm_sdk.orchestration.models import Replicate


def nested(depth: int) -> Any:
    deep: Any = 1
    for _ in range(depth):
        deep = {"a": deep}
    return deep


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (float("nan"), "nan is not a JSON number"),
        ({"a": float("inf")}, "inf is not a JSON number"),
        (nested(10_000), "nested deeper than 200 levels"),
        (["x", object()], "object is no JSON value"),
        ({1: 2}, "key 1 is no string"),
        ("\ud800", "half a character"),
        ({"a": 10**5000}, "a whole number of more than 4,200 digits"),
    ],
)
def test_what_is_no_json_is_invalid_with_a_reason_and_spoils_nothing(answer: Any, reason: str) -> None:
    found = summarize([{"a": 1}, answer, {"a": 1}])
    assert (found.consensus, found.support) == ({"a": 1}, 2 / 3)
    assert list(found.invalid) == ["r2"]
    assert reason in found.invalid["r2"][0]


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', 'the key "a" is in one object twice'),
        ('{"a": NaN}', "NaN is no JSON value"),
        ('{"a": "x"}', "does not fit the schema: a:"),
        ('{"a": 1', "not valid JSON"),
        ("sorry", "not valid JSON"),
        ("[" * 10_000 + "]" * 10_000, "nested deeper than 200 levels"),
        ('{"a": ' + "9" * 5000 + "}", "not usable JSON"),
    ],
)
def test_a_text_that_is_no_answer_of_the_form_is_invalid_with_a_reason(text: str, reason: str) -> None:
    found = summarize(['{"a": 1}', text, {"a": 1}], schema=OBJECT)
    assert (found.consensus, found.support) == ({"a": 1}, 2 / 3)
    assert reason in found.invalid["r2"][0]


class Point(BaseModel):
    x: int
    y: int = 0


def test_a_type_reads_and_completes_the_answers() -> None:
    found = summarize([{"x": "1"}, '{"x": 1, "y": 0}', Point(x=1), {"x": []}], schema=Point)
    assert (found.consensus, found.support) == ({"x": 1, "y": 0}, 3 / 4)
    assert "x: Input should be a valid integer" in found.invalid["r4"][0]


def test_a_text_that_fits_the_schema_as_a_text_is_not_read_as_json() -> None:
    assert summarize(['{"a": 1}', '{"a": 1}'], schema={"type": "string"}).consensus == '{"a": 1}'
    assert summarize(['{"a": 1}', '{"a": 1}']).consensus == '{"a": 1}'


def test_a_predicate_accepts_and_refuses_with_its_reason() -> None:
    def even(value: Any) -> bool:
        if not isinstance(value, int):
            raise TypeError("give a number")
        return value % 2 == 0

    found = summarize([2, 3, "x", 2], schema=even)
    assert found.consensus == 2
    assert "returned False" in found.invalid["r2"][0]
    assert "not valid JSON" in found.invalid["r3"][0]


@pytest.mark.parametrize("schema", [{"type": 7}, {"$ref": "https://example.org/x"}])
def test_a_schema_that_is_none_is_refused_at_once(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"JSON Schema|not followed"):
        summarize([1], schema=schema)


def test_a_mix_that_does_not_fit_the_schema_gives_way_to_a_real_answer_that_does() -> None:
    spans = [{"from": start, "to": end} for start, end in [(3, 5), (3, 4), (3, 6), (1, 2), (0, 2)]]
    found = summarize(spans, schema=lambda span: span["from"] < span["to"])
    assert (found.consensus, found.consensus_from) == ({"from": 3, "to": 4}, "r2")


def test_absent_null_and_invalid_are_three_different_votes() -> None:
    found = summarize([*valid({"x": None, "y": 1}, {"y": 1}, {"x": 0, "y": 1}, {"y": 1}), invalid("r5")])
    assert found.distributions is not None
    x = found.distributions["x"]
    assert (x["absent"], x["null"], x["invalid"], x["votes"]) == (2, 1, 1, [1, 1])
    assert found.consensus == {"y": 1}
    assert found.invalid == {"r5": ["no JSON"]}


@pytest.mark.parametrize("given", [[], [object()], [invalid("r1"), invalid("r2")]])
def test_without_a_valid_answer_there_is_nothing_but_the_reasons(given: list[Any]) -> None:
    found = summarize(given)
    assert (found.consensus, found.confidence, found.support, found.disagreements) == (None, None, None, [])
    assert len(found.invalid) == len(given)


def test_one_answer_alone_is_no_consensus_whatever_its_weight() -> None:
    for weights in (None, [100.0]):
        found = summarize([{"a": 1}], weights=weights)
        assert (found.consensus, found.confidence, found.nearest) == (None, None, "r1")


def test_mixed_types_in_one_field_are_different_answers() -> None:
    found = summarize([{"f": value} for value in (1, "one", None, True, [1], {"x": 1}, 1)])
    assert found.consensus == {"f": 1}
    assert [answer.votes for answer in found.disagreements[0].answers] == [2, 1, 1, 1, 1, 1]


def test_replies_of_ten_megabytes_are_compared_and_shown_in_part() -> None:
    text = "word " * 2_000_000
    found = summarize([text, text, text[:-5] + "end", {"why": text}], pairwise=True)
    assert found.consensus == text
    excerpts = [answer.excerpt for answer in found.disagreements[0].answers]
    assert all(excerpt is None or len(excerpt) < 100 for excerpt in excerpts)
    assert "end" in str(excerpts)


def test_a_thousand_answers_that_all_differ_have_a_summary() -> None:
    found = summarize([{"n": number, "t": f"text {number}"} for number in range(1000)])
    assert found.consensus is None
    assert [(each.more, len(each.answers)) for each in found.disagreements] == [(990, 10), (990, 10)]
    json.dumps(found.model_dump())


def test_ids_that_are_there_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="the id 'r1' is there twice"):
        summarize([Replicate(id="r1", data=1), Replicate(id="r1", data=2)])


@pytest.mark.parametrize(
    ("replicates", "given", "message"),
    [
        ("abc", {}, "replicates: 'abc' is no list of answers; give one, such as"),
        ({"a": 1}, {}, "is no list of answers"),
        (None, {}, "replicates: None is no list of answers"),
        ([1, 1], {"weights": 3}, "weights: 3 cannot be used; give one for each replicate"),
        ([1, 1], {"weights": {"r1": "x"}}, "weights: 'x' for 'r1' cannot be used; give a positive finite number"),
        ([1, 1], {"fields": 5}, "fields: 5 are no paths; give a list of texts"),
        ([1, 1], {"fields": [3]}, r"fields: \[3\] are no paths; give a list of texts"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named_with_its_value_and_a_way_out(
    replicates: Any, given: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        summarize(replicates, **given)


def test_weights_must_be_one_for_each_and_may_be_by_model() -> None:
    with pytest.raises(ValueError, match="weights: 1 for 2 replicates"):
        summarize([1, 2], weights=[1.0])
    replicates = [Replicate(id=f"r{n}", data=data, model=model) for n, (data, model) in enumerate(MODELS)]
    found = summarize(replicates, weights={"big": 3.0, "r2": 0.5})
    assert found.consensus == "a"
    assert found.support == 6 / (3 + 3 + 0.5 + 1)


MODELS = [("a", "big"), ("a", "big"), ("b", "small"), ("b", "small")]


def test_of_several_models_it_says_how_far_each_agrees_with_the_consensus() -> None:
    replicates = [
        Replicate(id=f"r{n}", data=data, model=model) for n, (data, model) in enumerate([*MODELS, ("a", "third")])
    ]
    found = summarize([*replicates, Replicate(id="r9", model="third", quality={"valid": False})])
    assert found.models is not None
    shown = {name: (each.replicates, each.valid, each.agreement) for name, each in found.models.items()}
    assert shown == {"big": (2, 2, 1.0), "small": (2, 2, 0.0), "third": (2, 1, 1.0)}
    assert summarize(valid("a", "a")).models is None


def test_an_outlier_stands_out() -> None:
    found = summarize([{"a": 1, "b": "x", "c": True}] * 6 + [{"a": 900, "b": "other", "c": False}])
    assert found.standing is not None
    assert found.standing["r7"].outlier is not None
    assert found.standing["r7"].outlier > 3.5
    assert (found.standing["r7"].agreement, found.standing["r1"].agreement) == (0.0, 1.0)
    assert found.medoid in ("r1", "r2", "r3", "r4", "r5", "r6")


def test_the_summary_shares_nothing_with_the_answers() -> None:
    data = [{"a": [1]}, {"a": [1]}, {"a": [2]}]
    found = summarize(data)
    found.consensus["a"].append(9)
    found.disagreements[0].values[0].append(9)
    found.disagreements[0].answers[0].value.append(9)
    assert data == [{"a": [1]}, {"a": [1]}, {"a": [2]}]


def test_severity_is_how_far_the_answers_are_from_the_consensus() -> None:
    def severity(*values: Any, **policy: Any) -> float | None:
        return summarize(list(values), fields={"$": FieldPolicy(**policy)}).disagreements[0].severity

    assert severity("yes", "yes", "no", "no") == 0.5
    assert severity(100, 100, 101, 100) == pytest.approx(0.25 / 101)
    assert severity(-100, -100, -101, -100) == pytest.approx(0.25 / 101)
    assert severity("the long answer", "the long answer", "the long answers") == pytest.approx(1 / 3 * 3 / 17)


def test_answers_that_are_all_near_each_other_have_no_outlier() -> None:
    found = summarize([{"n": 100}, {"n": 100}, {"n": 100}, {"n": 101}])
    assert found.standing is not None
    assert all(each.outlier is not None and each.outlier < 1 for each in found.standing.values())


def test_a_check_that_returns_nothing_accepts_nothing() -> None:
    found = summarize([1, 1], schema=lambda value: None)
    assert found.consensus is None
    assert "it returned None" in found.invalid["r1"][0]
