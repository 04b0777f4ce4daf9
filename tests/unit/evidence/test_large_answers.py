"""Answers of many megabytes are compared as a whole: the work stops growing where the limit is, and that is told."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import pytest
from answers import valid

from steer_llm_sdk.evidence import FieldPolicy, _leaves, _reading, distance, equivalence, pairwise_distance, summarize
from steer_llm_sdk.evidence._field_votes import FieldVotes
from steer_llm_sdk.evidence._leaves import MOST_CHARACTERS, MOST_VALUES
from steer_llm_sdk.evidence.policy import Policies
from steer_llm_sdk.orchestration import _evidence_view

TEN_MEGABYTES = 10_000_000


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Characters that were folded or cut into shingles, values that were given a key, fields that were read."""
    done: Counter[str] = Counter()

    def counting(name: str, size: Any, real: Any) -> Any:
        def call(*args: Any, **given: Any) -> Any:
            done[name] += size(args)
            return real(*args, **given)

        return call

    of_text, one = (lambda args: len(args[0])), (lambda args: 1)
    for name, size in (("fold", of_text), ("class_of", one)):
        counted = counting(name, size, getattr(_leaves, name))
        for module in (_leaves, _reading, distance, equivalence, _evidence_view):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, counted)
    monkeypatch.setattr(_reading.Reading, "_column", counting("_column", one, _reading.Reading._column))
    return done


def text(n: int, seed: int = 0) -> str:
    return (f"Wörd {seed} " * (n // 6 + 1))[:n]


def flat(n: int, seed: int = 0) -> dict[str, Any]:
    return {f"key {place}": f"value {place * (seed + 1)}" for place in range(n // 25)}


def listed(n: int, seed: int = 0) -> dict[str, Any]:
    return {"items": [{"id": place, "name": f"name {place * (seed + 1)}"} for place in range(n // 35)]}


def long_texts(n: int, seed: int = 0) -> dict[str, Any]:
    return {f"part {part}": text(n // 20, seed) for part in range(20)}


@pytest.mark.parametrize(
    ("of", "size"), [(text, TEN_MEGABYTES), (long_texts, TEN_MEGABYTES), (flat, 4_000_000), (listed, 4_000_000)]
)
@pytest.mark.parametrize("differ", [False, True])
def test_five_answers_of_many_megabytes_are_as_little_work_as_five_of_little_more_than_one(
    work: Counter[str], of: Any, size: int, differ: bool
) -> None:
    counts = []
    for n in (1_200_000, size):
        found = summarize([of(n, seed * differ) for seed in range(5)])
        assert found.consensus == (None if differ else of(n))
        assert found.truncation_info == {
            "compared_whole": {
                "limit": {"values": MOST_VALUES, "characters": MOST_CHARACTERS},
                "replicate_ids": ["r1", "r2", "r3", "r4", "r5"],
            }
        }
        counts.append(dict(work))
        work.clear()
    assert counts[0] == counts[1]
    assert sum(counts[1].values()) < 1000


def test_votes_as_they_arrive_are_bounded_as_well(work: Counter[str]) -> None:
    votes = FieldVotes(3)
    for seed in (0, 0, 1):
        votes.add(flat(4_000_000, seed))
    assert votes.leaves() == {"$": (2, 1)}
    assert sum(work.values()) < 1000


def test_a_value_more_than_the_limit_is_compared_to_the_letter_and_one_less_part_by_part() -> None:
    def answer(values: int, name: str) -> dict[str, Any]:
        return {"name": name, **{f"n{place}": place for place in range(values - 1)}}

    at_the_limit = summarize([answer(MOST_VALUES, "Paris"), answer(MOST_VALUES, "PARIS")])
    assert (at_the_limit.support, at_the_limit.truncated) == (1.0, False)
    above = summarize([answer(MOST_VALUES + 1, "Paris"), answer(MOST_VALUES + 1, "PARIS")])
    assert (above.consensus, above.truncated) == (None, True)
    assert above.disagreements[0].values[1]["name"] == "PARIS"


def test_values_count_at_any_depth_and_characters_of_keys_and_texts_together() -> None:
    def is_whole(value: Any) -> bool:
        return summarize([value, value]).truncated

    assert is_whole([[[number] for number in range(100)] for _ in range(60)])
    assert not is_whole([list(range(99)) for _ in range(100)])
    assert is_whole({"a": ["x" * 600_000], "y" * 400_001: 1})
    assert not is_whole({"a": ["x" * 600_000], "y" * 399_999: 1})
    assert is_whole("x" * 1_000_001)
    assert not is_whole("x" * 1_000_000)


def test_fields_that_are_named_are_compared_as_ever_in_an_answer_of_any_size() -> None:
    answers = [{"total": total, "log": text(2_000_000, seed)} for seed, total in enumerate((7, 7.0, 8))]
    found = summarize(answers, fields=["total"])
    assert (found.support, found.truncated, found.consensus["total"]) == (2 / 3, False, 7)


def test_beside_small_answers_a_large_one_is_another_answer_in_any_order() -> None:
    answers = valid({"a": 1}, flat(1_000_000), {"a": 1}, flat(1_000_000), flat(1_000_000, 1))
    first = summarize(answers)
    assert first.truncation_info is not None
    assert first.truncation_info["compared_whole"]["replicate_ids"] == ["r2", "r4", "r5"]
    assert [each.field for each in first.disagreements] == ["$"]
    assert [answer.votes for answer in first.disagreements[0].answers] == [2, 2, 1]
    for order in itertools.islice(itertools.permutations(answers), 0, 120, 17):
        assert summarize(order) == first


@pytest.mark.parametrize(
    "policy",
    [
        FieldPolicy(similarity=0.5),
        FieldPolicy(rel_tol=0.5),
        FieldPolicy(compare="date"),
        FieldPolicy(compare="exact"),
        FieldPolicy(consensus="median"),
        FieldPolicy(consensus="medoid"),
        FieldPolicy(consensus=lambda options: options[0][0]),
        FieldPolicy(judge=lambda one, other: one[:3] == other[:3]),
    ],
)
def test_every_policy_has_an_outcome_for_it_that_somebody_said(policy: FieldPolicy) -> None:
    one, other = text(2_000_000), text(2_000_000, 1)
    found = summarize([one, one, other], fields={"$": policy})
    assert found.consensus == one
    assert found.warnings == []


def test_how_alike_two_long_texts_are_is_told_from_their_ends_and_objects_are_not_alike() -> None:
    one = text(2_000_000)
    apart = pairwise_distance([one, one + "!", flat(2_000_000), flat(2_000_000, 1)])
    assert 0 < apart[0][1] < 0.5
    assert apart[2][3] == apart[0][2] == 1.0


def test_a_report_writes_no_more_of_a_large_answer_than_it_shows() -> None:
    parts = []

    class Counted(dict[str, Any]):
        def items(self) -> Any:
            for item in super().items():
                parts.append(item)
                yield item

    shown = _evidence_view.text_of(Counted(flat(1_000_000)), 200)
    assert shown.startswith('{"key 0": "value 0", ')
    assert shown.endswith(" …")
    assert len(parts) < 20
    assert _evidence_view.text_of({"a": [1, "é"]}, 200) == json.dumps({"a": [1, "é"]}, ensure_ascii=False)


# ── what no replicate has ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_path_that_no_valid_replicate_has_is_told_and_is_no_error() -> None:
    answers = [{"a": 1, "items": [{"n": 1}]}, {"a": 1}]
    found = summarize(answers, fields=["a", "b.c"])
    assert found.warnings == ["fields: no valid replicate has 'b.c'"]
    policies = {"a": FieldPolicy(), "aa": FieldPolicy(), "items.[].n": FieldPolicy(), "items.[].m": FieldPolicy()}
    assert summarize(answers, fields=policies).warnings == [
        "fields: no valid replicate has 'aa'",
        "fields: no valid replicate has 'items.[].m'",
    ]
    assert summarize(answers, fields=["a"]).warnings == []
    assert summarize([{"a": None}, {"a": None}], fields=["a"]).warnings == []


def test_a_path_inside_another_one_is_looked_for_too() -> None:
    assert Policies.of(["a", "a.b"]).roots == [("a",)]
    assert summarize([{"a": {"c": 1}}] * 2, fields=["a", "a.b"]).warnings == ["fields: no valid replicate has 'a.b'"]


def test_a_weight_that_is_no_replicates_is_told_whether_the_replicate_failed_or_never_came() -> None:
    answers = [each.model_copy(update={"model": "big"}) for each in valid(1, 1)]
    found = summarize(answers, weights={"big": 2.0, "r2": 1.0, "small": 3.0})
    assert found.warnings == ["weights: no replicate is of 'small', by id or model"]
    assert summarize([float("nan")], weights={"r1": 1.0, "r9": 1.0}).warnings == [
        "weights: no replicate is of 'r9', by id or model"
    ]
