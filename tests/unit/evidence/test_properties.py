"""What holds for any answers under any policy."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

from answers import answers, invalid, valid
from hypothesis import example, given
from hypothesis import strategies as st

from steer_llm_sdk.evidence import FieldPolicy, summarize
from steer_llm_sdk.evidence._leaves import class_of
from steer_llm_sdk.evidence._reading import Ballot, Reading
from steer_llm_sdk.evidence.equivalence import fold, shingles, unlikeness
from steer_llm_sdk.evidence.policy import Policies
from steer_llm_sdk.orchestration.models import Replicate

RULES = st.sampled_from(
    [
        FieldPolicy(),
        FieldPolicy(compare="exact"),
        FieldPolicy(rel_tol=0.25),
        FieldPolicy(abs_tol=0.6),
        FieldPolicy(similarity=0.4),
        FieldPolicy(compare="date"),
        FieldPolicy(judge=lambda left, right: str(left)[:1] == str(right)[:1]),
        FieldPolicy(consensus="median"),
        FieldPolicy(consensus="medoid"),
        FieldPolicy(consensus="first_valid"),
        FieldPolicy(consensus="union"),
        FieldPolicy(key="x"),
        FieldPolicy(align=True),
    ]
)
VALUES = (
    st.integers(-4, 4)
    | st.floats(-5, 5, width=16)
    | st.sampled_from(["a", "A ", "ab", "abc", "abd", "the cat", "The cats", "5", "5.1", "2026-01-02", ""])
    | st.none()
    | st.booleans()
    | st.lists(st.sampled_from(["a", "b", 1]), max_size=3)
    | st.lists(st.fixed_dictionaries({"x": st.integers(0, 2), "n": st.integers(0, 2)}), max_size=3)
)
COLUMNS = st.lists(VALUES, min_size=1, max_size=8)


def named(values: list[Any], policy: FieldPolicy) -> dict[str, Any]:
    return {"replicates": valid(*[{"f": value} for value in values]), "fields": {"f": policy}}


@given(COLUMNS, RULES, st.randoms(use_true_random=False))
def test_the_order_of_arrival_never_changes_the_result(values: list[Any], policy: FieldPolicy, order: Any) -> None:
    given_ = named(values, policy)
    replicates = [*given_["replicates"], invalid("r99")]
    shuffled = order.sample(replicates, len(replicates))
    assert summarize(shuffled, fields=given_["fields"]) == summarize(replicates, fields=given_["fields"])


@example([0, -0.0, -1], FieldPolicy(judge=lambda left, right: str(left)[:1] == str(right)[:1]), random.Random(0))
@given(COLUMNS, RULES, st.randoms(use_true_random=False))
def test_whose_answer_it_is_never_changes_the_consensus(values: list[Any], policy: FieldPolicy, order: Any) -> None:
    """The ids decide nothing either, save where the policy is to take the first."""
    if policy.consensus == "first_valid":
        return
    before = summarize(**named(values, policy))
    after = summarize(**named(order.sample(values, len(values)), policy))
    assert after.support == before.support
    assert class_of(after.consensus, exact=True) == class_of(before.consensus, exact=True)


@given(COLUMNS, RULES)
def test_adding_a_replicate_that_says_the_consensus_never_lowers_its_support(
    values: list[Any], policy: FieldPolicy
) -> None:
    before = summarize(**named(values, policy))
    if before.consensus is None:
        return
    after = summarize(
        [*named(values, policy)["replicates"], Replicate(id="r99", data=before.consensus)], fields={"f": policy}
    )
    assert after.support is not None
    assert before.support is not None
    assert after.support >= before.support - 1e-12


@given(COLUMNS, RULES)
def test_the_classes_of_a_field_are_a_partition(values: list[Any], policy: FieldPolicy) -> None:
    ballots = [Ballot(f"r{number}", {"f": value}) for number, value in enumerate(values)]
    reading = Reading(ballots, Policies.of({"f": policy}))
    for column in reading.all_columns():
        assert sorted(index for group in column.ballots_of for index in group) == sorted(column.members)
        assert len(column.said) == len(column.weights) == len(column.ballots_of)
        assert math.fsum(column.weights) == len(column.members)
        assert all(group for group in column.ballots_of)


@given(st.lists(st.floats(-50, 50, allow_nan=False), min_size=1, max_size=12), st.sampled_from([0.05, 0.5, 5.0]))
def test_any_two_numbers_of_a_class_are_within_the_tolerance(values: list[float], tolerance: float) -> None:
    reading = Reading(
        [Ballot(str(n), v) for n, v in enumerate(values)], Policies.of({"$": FieldPolicy(abs_tol=tolerance)})
    )
    for group in reading.columns[0].ballots_of:
        own = [values[index] for index in group]
        assert max(own) - min(own) <= tolerance


@given(st.lists(st.text("abc ", max_size=8), min_size=1, max_size=8), st.sampled_from([0.2, 0.5, 0.8]))
def test_any_two_texts_of_a_class_are_alike_enough(values: list[str], similarity: float) -> None:
    policies = Policies.of({"$": FieldPolicy(similarity=similarity)})
    reading = Reading([Ballot(str(n), v) for n, v in enumerate(values)], policies)
    for group in reading.columns[0].ballots_of:
        own = [fold(values[index]) for index in group]
        assert all(unlikeness(x, y, shingles(x), shingles(y)) <= 1 - similarity + 1e-12 for x in own for y in own)


@given(answers, st.integers(2, 5))
def test_the_consensus_of_identical_replicates_is_that_replicate(answer: Any, count: int) -> None:
    found = summarize([answer] * count)
    assert (found.consensus, found.support, found.disagreements) == (answer, 1.0, [])
    assert found.warnings == []


@given(COLUMNS, RULES)
def test_the_consensus_is_something_that_somebody_said(values: list[Any], policy: FieldPolicy) -> None:
    consensus = summarize(**named(values, policy)).consensus
    if consensus is None:
        return
    if policy.aligned and isinstance(consensus["f"], list):
        elements = [element for value in values if isinstance(value, list) for element in value]
        assert all(_said(element, elements) for element in consensus["f"])
    else:
        assert any(repr(value) == repr(consensus["f"]) for value in values)


def _said(element: Any, elements: list[Any]) -> bool:
    """An object is put together of what was said of it."""
    if not isinstance(element, dict):
        return element in elements
    same = [each for each in elements if isinstance(each, dict) and each["x"] == element["x"]]
    return element["n"] in [each["n"] for each in same]


@given(COLUMNS, st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.5]), min_size=8, max_size=8))
def test_weights_that_are_all_alike_change_nothing(values: list[Any], weights: list[float]) -> None:
    replicates = valid(*values)
    alike = summarize(replicates, weights={replicate.id: 2.5 for replicate in replicates})
    assert (alike.consensus, alike.support) == (summarize(replicates).consensus, summarize(replicates).support)
    given_ = dict(zip([replicate.id for replicate in replicates], weights, strict=False))
    found = summarize(replicates, weights=given_)
    assert found.support is None or 0 < found.support <= 1


@given(COLUMNS)
def test_the_answers_to_a_contested_field_are_all_votes_counted_once(values: list[Any]) -> None:
    for found in summarize([{"f": value} for value in values]).disagreements:
        if found.field == "f":
            named_ = [name for answer in found.answers for name in answer.replicate_ids]
            assert Counter(named_) == Counter(found.replicate_ids)
            assert math.isclose(math.fsum(answer.share for answer in found.answers), len(named_) / len(values))
            assert found.severity is not None
            assert 0 < found.severity <= 1
