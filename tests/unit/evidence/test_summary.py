"""Fields, weights, acceptance and limits of a summary."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from answers import invalid, valid

from steer_llm_sdk.evidence import Limits, parse_path, summarize
from steer_llm_sdk.orchestration.models import Replicate

REASONED = valid(
    {"why": "b", "answer": 5},
    {"why": "a", "answer": 6},
    {"why": "c", "answer": 6},
)


def test_only_the_given_fields_are_compared() -> None:
    found = summarize(REASONED, fields=["answer"])
    assert found.support == pytest.approx(2 / 3)
    assert [difference.field for difference in found.disagreements] == ["answer"]
    assert found.pairwise_distance == [[0.0, 1 / 6, 1 / 6], [1 / 6, 0.0, 0.0], [1 / 6, 0.0, 0.0]]


def test_what_is_not_compared_comes_from_a_replicate_that_gave_the_outcome() -> None:
    found = summarize(REASONED, fields=["answer"])
    assert found.consensus == {"why": "a", "answer": 6}
    assert found.nearest == "r2"


def test_a_field_stands_for_everything_inside_it() -> None:
    data = [{"p": {"a": 1, "b": 1}, "q": 1}, {"p": {"a": 1, "b": 2}, "q": 2}, {"p": {"a": 1, "b": 2}, "q": 3}]
    found = summarize(valid(*data), fields=["p", "p.b"])
    assert found.distributions is not None
    assert list(found.distributions) == ["p.a", "p.b"]
    assert found.support == pytest.approx((1 + 2 / 3) / 2)


def test_a_field_that_nobody_gave_is_no_agreement() -> None:
    assert summarize(valid({"x": 1}, {"x": 1}), fields=["y.z"]).consensus is None


def test_a_field_that_the_nearest_lacks_is_laid_over_it() -> None:
    data = [{"a": 1, "b": 1, "c": {"d": 1}}, {"a": 1, "b": 1}, {"a": 1, "b": 2, "c": {"d": 1}}, {"a": 1, "b": 2}]
    found = summarize(valid(*data, {"a": 1, "b": 2}), fields=["a", "b", "c.d"])
    assert found.consensus == {"a": 1, "b": 2}


def test_a_field_that_most_lack_is_not_in_the_consensus() -> None:
    rich = {"a": 1, "b": 1, "c": {"d": 1, "e": 1}}
    found = summarize(valid(rich, rich, {"a": 1, "b": 1}, {"a": 2}, {"a": 3}), fields=["a", "b", "c.d"])
    assert (found.nearest, found.consensus) == ("r3", {"a": 1, "b": 1})


def test_a_field_that_only_the_nearest_has_is_taken_out_of_it() -> None:
    central = {"a": 1, "b": 1, "e": 1, "f": 1, "c": {"d": 1, "z": 1}}
    others = [
        {"a": 1, "b": 1, "e": 2, "f": 3},
        {"a": 1, "b": 5, "e": 1, "f": 6},
        {"a": 1, "b": 8, "e": 9, "f": 1},
    ]
    found = summarize(valid(central, *others), fields=["a", "b", "e", "f", "c.d"])
    assert (found.nearest, found.consensus) == ("r1", {**central, "c": {"z": 1}})


@pytest.mark.parametrize(
    ("text", "path"),
    [("$", ()), ("a", ("a",)), ("a.b", ("a", "b")), ('"a.b".c', ("a.b", "c")), ('a.""', ("a", ""))],
)
def test_a_path_is_keys_with_dots_between_and_odd_keys_in_quotes(text: str, path: tuple[str, ...]) -> None:
    assert parse_path(text) == path


@pytest.mark.parametrize("text", ["", ".", "a..b", "a.", '"a'])
def test_what_is_no_path_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"fields: .* is not a path"):
        parse_path(text)


def test_the_whole_answer_is_a_field_named_dollar() -> None:
    assert summarize(valid("a", "b", "a")).disagreements[0].field == "$"


def test_keys_with_dots_are_reported_in_quotes() -> None:
    found = summarize(valid({"a.b": 1, "": 1, "c": 0}, {"a.b": 2, "": 2, "c": 0}))
    assert [difference.field for difference in found.disagreements] == ['"a.b"', '""']


def test_weights_weigh_votes_and_shares() -> None:
    found = summarize(valid("a", "b", "b"), weights={"r1": 3.0})
    assert (found.consensus, found.support) == (None, None)
    found = summarize(valid("a", "b", "b", "a"), weights={"r1": 3.0})
    assert (found.consensus, found.support) == ("a", 4 / 6)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused_by_name(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weights: .* for 'r1' cannot be used"):
        summarize(valid("a"), weights={"r1": weight})


SPANS = valid(*({"from": start, "to": end} for start, end in [(3, 5), (3, 4), (3, 6), (1, 2), (0, 2)]))


def in_order(span: Any) -> bool:
    return bool(span["from"] < span["to"])


def test_a_mix_that_is_not_acceptable_gives_way_to_the_nearest_real_answer() -> None:
    assert summarize(SPANS).consensus == {"from": 3, "to": 2}
    found = summarize(SPANS, accepts=in_order)
    assert (found.consensus, found.consensus_from, found.nearest) == ({"from": 3, "to": 4}, "r2", "r2")
    assert found.support == pytest.approx((3 / 5 + 1 / 5) / 2)


def test_the_nearest_answer_must_be_acceptable_itself() -> None:
    found = summarize([*SPANS, Replicate(id="r6", data={"from": 3, "to": 2})], accepts=in_order)
    assert found.consensus == {"from": 3, "to": 4}


def test_where_no_answer_is_acceptable_the_mix_stays() -> None:
    found = summarize(SPANS, accepts=lambda _: False)
    assert (found.consensus, found.consensus_from) == ({"from": 3, "to": 2}, None)


def test_a_mix_that_is_acceptable_stays() -> None:
    found = summarize(REASONED, accepts=lambda _: True)
    assert found.consensus_from is None


def test_distributions_count_votes_and_name_numbers_that_were_given() -> None:
    found = summarize([*valid({"n": 3}, {"n": 1}, {"n": 3}, {"n": 10}, {}), invalid("r9")])
    assert found.distributions == {
        "n": {
            "support": 2 / 6,
            "votes": [2, 1, 1],
            "distinct": 3,
            "absent": 1,
            "null": 0,
            "invalid": 1,
            "entropy": pytest.approx(-(0.4 * math.log(0.4) + 3 * 0.2 * math.log(0.2))),
            "n": 4,
            "mean": 4.25,
            "stdev": pytest.approx(3.947573),
            "min": 1,
            "q05": 1,
            "q25": 1,
            "median": 3,
            "q75": 3,
            "q95": 10,
            "max": 10,
            "mad": 0,
            "median_interval": [1, 10],
        }
    }


def test_truth_values_are_no_numbers() -> None:
    found = summarize(valid(True, False, True))
    assert found.distributions is not None
    assert "mean" not in found.distributions["$"]


MANY = valid(*({f"f{field:02}": (field * number) % 3 for field in range(20)} for number in range(5)))


def test_without_limits_nothing_is_cut() -> None:
    for limits in (Limits(), Limits(max_fields=20, max_diffs=20, max_bytes=100_000)):
        found = summarize(MANY, limits=limits)
        assert (found.truncated, found.truncation_info) == (False, None)


def test_max_fields_bounds_the_distributions_and_says_how_many_there_were() -> None:
    found = summarize(MANY, limits=Limits(max_fields=4))
    assert found.distributions is not None
    assert len(found.distributions) == 4
    assert found.truncated
    assert found.truncation_info == {"max_fields": {"limit": 4, "total": 20}}


def test_max_diffs_keeps_the_most_contested_fields_in_their_order() -> None:
    replicates = valid({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 1}, {"a": 2, "b": 3, "c": 3})
    found = summarize(replicates, limits=Limits(max_diffs=2))
    assert [difference.field for difference in found.disagreements] == ["a", "b"]
    assert found.truncation_info == {"max_diffs": {"limit": 2, "total": 3}}


def test_max_bytes_drops_distributions_then_distances_then_disagreements() -> None:
    whole = summarize(MANY)

    def size(**kept: Any) -> int:
        return len(json.dumps({"consensus": whole.consensus, **kept}))

    roomy = summarize(MANY, limits=Limits(max_bytes=100_000))
    assert not roomy.truncated
    tight = summarize(MANY, limits=Limits(max_bytes=size() + 900))
    assert (tight.distributions, tight.pairwise_distance) == (None, None)
    assert 0 < len(tight.disagreements) < len(whole.disagreements)
    assert tight.truncation_info is not None
    facts = tight.truncation_info["max_bytes"]
    assert facts["dropped"] == ["distributions", "pairwise_distance", "disagreements"]
    assert facts["left"] <= facts["limit"] < facts["total"]


def test_the_consensus_is_never_cut() -> None:
    found = summarize(MANY, limits=Limits(max_bytes=1))
    assert found.consensus == summarize(MANY).consensus
    assert found.disagreements == []
    assert found.truncation_info is not None
    assert found.truncation_info["max_bytes"]["left"] > 1


def test_distances_of_very_many_answers_are_left_out_and_said_so() -> None:
    found = summarize(valid(*[1] * 51))
    assert found.pairwise_distance is None
    assert found.truncation_info == {"pairwise_distance": {"limit": 50, "total": 51}}
    assert found.support == 1.0
