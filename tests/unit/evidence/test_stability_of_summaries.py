"""How sure a summary is that more answers would not change it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from answers import invalid, valid
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.evidence import FieldPolicy, stability, summarize
from steer_llm_sdk.evidence._field_votes import FieldVotes
from steer_llm_sdk.evidence.summary import _is_ahead


def test_it_is_the_mean_over_the_fields_and_the_confidence() -> None:
    found = summarize([{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 1}])
    assert found.stability == pytest.approx((stability([1, 1, 1]) + stability([1, 1, 2])) / 2)
    assert (found.confidence, found.confidence_is, found.trust) == (found.stability, "stability", None)


def test_answers_that_a_policy_joins_are_one_answer_to_it() -> None:
    apart, joined = (summarize([100, 100.4, 100.2], fields={"$": FieldPolicy(abs_tol=tol)}) for tol in (0, 1))
    assert (apart.stability, joined.stability) == (None, stability([1, 1, 1]))


def test_a_whole_answer_was_chosen_by_no_vote_and_keeps_its_support() -> None:
    spans = valid(*({"from": start, "to": end} for start, end in [(3, 5), (3, 4), (3, 6), (1, 2), (0, 2)]))
    found = summarize(spans, accepts=lambda span: bool(span["from"] < span["to"]))
    assert (found.confidence, found.confidence_is, found.stability) == (found.support, "support", None)


def test_without_a_consensus_there_is_none() -> None:
    found = summarize([*valid("a", "b"), invalid("r3")])
    assert (found.confidence, found.confidence_is, found.stability) == (None, None, None)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_of_many_votes_it_is_a_lower_bound(counts: list[int]) -> None:
    counts.sort(reverse=True)
    votes = [answer for answer, count in enumerate(counts) for _ in range(count)]
    bound = math.prod(_is_ahead(counts[0], each) for each in [*counts[1:], 0])
    assert bound <= stability(votes) + 0.002


def test_of_many_votes_it_is_near() -> None:
    for counts in ([30, 20], [60, 10], [25], [400, 380]):
        votes = [answer for answer, count in enumerate(counts) for _ in range(count)]
        found = summarize([f"answer {vote}" for vote in votes], pairwise=False)
        assert found.stability == pytest.approx(stability(votes), abs=0.01)


def test_a_choice_that_most_did_not_make_is_not_stable() -> None:
    found = summarize([1, 1, 1, 1, 9, 9], fields={"$": FieldPolicy(consensus=lambda said: 9)})
    assert found.consensus == 9
    assert found.stability is not None
    assert found.stability < 0.25


VALUES = st.integers(0, 4) | st.sampled_from(["a", "A", "ab", "abc"]) | st.none()
POLICIES = st.sampled_from([FieldPolicy(), FieldPolicy(compare="exact"), FieldPolicy(compare="number")])


@given(st.lists(st.fixed_dictionaries({"f": VALUES}, optional={"g": VALUES}), min_size=1, max_size=7), POLICIES)
def test_votes_counted_as_they_arrive_are_those_of_the_summary(data: list[dict[str, Any]], policy: FieldPolicy) -> None:
    votes = FieldVotes(len(data), {"f": policy})
    for each in data:
        votes.add(each)
    found = summarize(data, fields={"f": policy})
    assert found.distributions is not None
    counted = {name: Counter(counts) for name, counts in votes.leaves().items()}
    told = {
        name: Counter(of["votes"]) + Counter([of["absent"]] * bool(of["absent"]))
        for name, of in found.distributions.items()
    }
    assert counted == told
