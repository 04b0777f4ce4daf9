"""What most replicates say, field by field."""

from __future__ import annotations

from typing import Any

import pytest
from answers import answers, invalid, valid
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.evidence import summarize
from steer_llm_sdk.orchestration.models import Replicate


def consensus(*data: Any) -> Any:
    return summarize(valid(*data)).consensus


def test_the_most_frequent_answer_is_the_consensus() -> None:
    found = summarize(valid("yes", "no", "yes"))
    assert (found.consensus, found.support) == ("yes", 2 / 3)


def test_fields_are_voted_on_one_by_one() -> None:
    assert consensus({"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 2}) == {"a": 1, "b": 2}


def test_nested_objects_are_voted_on_by_path() -> None:
    one, two = {"p": {"q": {"r": 1, "s": 1}}}, {"p": {"q": {"r": 1, "s": 2}}}
    found = summarize(valid(one, two, two))
    assert found.consensus == two
    assert [(difference.field, difference.support) for difference in found.disagreements] == [("p.q.s", 2 / 3)]


def test_an_array_is_one_answer() -> None:
    assert consensus([1, 2], [2, 1], [1, 2]) == [1, 2]


def test_one_is_one_point_zero_and_not_true() -> None:
    found = summarize(valid(1, 1.0, True))
    assert (found.consensus, found.support) == (1, 2 / 3)


def test_key_order_within_an_array_of_objects_does_not_matter() -> None:
    assert consensus([{"a": 1, "b": 2}], [{"b": 2, "a": 1}], [{}]) == [{"a": 1, "b": 2}]


@pytest.mark.parametrize("other", [{"x": 0}, {"x": None}, {}])
def test_zero_null_and_absent_are_three_different_votes(other: dict[str, Any]) -> None:
    found = summarize(valid({"x": 0, "y": 1}, {"x": None, "y": 1}, {"y": 1}, {**other, "y": 1}))
    assert found.consensus == {**other, "y": 1}
    assert found.distributions is not None
    assert found.distributions["x"]["support"] == 0.5


def test_an_invalid_replicate_has_no_vote_and_counts_in_the_denominator() -> None:
    found = summarize([*valid("a", "a"), invalid("r3"), invalid("r4")])
    assert (found.consensus, found.support, found.disagreements) == ("a", 0.5, [])


def test_null_agreed_upon_is_a_consensus_with_a_confidence() -> None:
    found = summarize(valid(None, None, 1))
    assert (found.consensus, found.support) == (None, 2 / 3)


@pytest.mark.parametrize(
    "replicates",
    [
        pytest.param([], id="none at all"),
        pytest.param(valid("a"), id="one answer alone"),
        pytest.param([*valid("a"), invalid("r2"), invalid("r3")], id="one valid answer alone"),
        pytest.param(valid("a", "b", "c"), id="all differ"),
        pytest.param(valid({"x": 1}, {"x": 2}), id="all fields differ"),
        pytest.param(valid({"x": 1}, {"y": 2}, {"z": 3}), id="agreement on absence only"),
        pytest.param([invalid("r1"), invalid("r2")], id="all invalid"),
    ],
)
def test_without_two_replicates_that_agree_on_something_there_is_no_consensus(replicates: list[Replicate]) -> None:
    found = summarize(replicates)
    assert (found.consensus, found.support) == (None, None)


def test_a_field_on_which_all_differ_comes_from_the_replicate_with_the_most_companions() -> None:
    outlier = {"answer": 7, "unit": "kg", "why": "zzz"}
    found = summarize(valid(outlier, {"answer": 5, "unit": "m", "why": "b"}, {"answer": 5, "unit": "m", "why": "a"}))
    assert found.consensus == {"answer": 5, "unit": "m", "why": "a"}
    assert [difference.field for difference in found.disagreements] == ["answer", "unit", "why"]
    assert found.support == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)


def test_a_tie_is_decided_the_same_way_whatever_the_ids_and_reported() -> None:
    for order in (["b", "a", "a", "b"], ["a", "b", "a", "b"], ["b", "b", "a", "a"]):
        found = summarize(valid(*order))
        assert (found.consensus, found.support) == ("a", 0.5)
        assert found.disagreements[0].values == order


def test_a_disagreement_names_who_said_what_and_leaves_out_who_did_not_say() -> None:
    found = summarize(valid({"x": 1, "y": 0}, {"y": 0}, {"x": None, "y": 0}))
    (difference,) = found.disagreements
    assert (difference.field, difference.values, difference.replicate_ids) == ("x", [1, None], ["r1", "r3"])


def test_whether_there_is_an_object_is_a_vote_of_its_own() -> None:
    found = summarize(valid({"a": {"b": 1}}, {"a": {"b": 1}}, {"a": 5}))
    assert found.consensus == {"a": {"b": 1}}
    assert found.support == pytest.approx(2 / 3)
    assert [(d.field, d.values) for d in found.disagreements] == [("a", [{"b": 1}, {"b": 1}, 5])]


def test_a_leaf_beats_an_object_that_fewer_replicates_gave() -> None:
    assert consensus({"a": 5}, {"a": {"b": 1}}, {"a": 5}) == {"a": 5}


def test_empty_objects_agree() -> None:
    found = summarize(valid({"a": {}}, {"a": {}}))
    assert (found.consensus, found.support) == ({"a": {}}, 1.0)


def test_ids_are_ordered_as_people_count() -> None:
    replicates = [Replicate(id=name, data=name) for name in ("r10", "r2", "r1")]
    assert summarize(replicates).disagreements[0].replicate_ids == ["r1", "r2", "r10"]


@given(st.lists(st.none() | answers, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_arrival_decides_nothing(data: list[Any], random: Any) -> None:
    replicates = [*valid(*data), invalid("r99")]
    shuffled = list(replicates)
    random.shuffle(shuffled)
    assert repr(summarize(shuffled)) == repr(summarize(replicates))


@given(answers, st.integers(2, 6))
def test_identical_replicates_are_that_replicate_with_confidence_1(answer: Any, n: int) -> None:
    found = summarize(valid(*[answer] * n))
    assert (found.consensus, found.support, found.disagreements) == (answer, 1.0, [])


@given(st.lists(answers, min_size=2, max_size=5))
def test_one_more_replicate_that_says_the_consensus_never_lowers_the_confidence(data: list[Any]) -> None:
    before = summarize(valid(*data))
    if before.support is None:
        return
    after = summarize(valid(*data, before.consensus))
    assert after.consensus == before.consensus
    assert after.support is not None
    assert after.support >= before.support


@given(st.lists(answers, min_size=2, max_size=5))
def test_an_invalid_replicate_changes_no_vote_and_never_raises_the_confidence(data: list[Any]) -> None:
    without = summarize(valid(*data))
    found = summarize([*valid(*data), invalid("r9")])
    assert found.consensus == without.consensus
    assert found.disagreements == [] if not without.disagreements else len(found.disagreements)
    assert (found.support or 0.0) <= (without.support or 0.0)


@given(st.lists(answers, max_size=5))
def test_a_confidence_is_there_exactly_where_a_consensus_is_and_lies_in_0_to_1(data: list[Any]) -> None:
    found = summarize(valid(*data))
    assert found.consensus is None if found.support is None else 0 < found.support <= 1
