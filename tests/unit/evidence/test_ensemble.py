"""Weights of models from how they agree, without a label."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.evidence import summarize, weights_by_agreement
from steer_llm_sdk.orchestration.models import Replicate

SKILLS = {"good": 0.9, "fair": 0.6, "poor": 0.2}


def asked(questions: int, seed: int = 0) -> list[dict[str, str | None]]:
    """Three models of each skill on questions whose right answer is "r"; wrong ones are one of two."""
    draw = random.Random(seed)
    names = {f"{name}{n}": skill for name, skill in SKILLS.items() for n in range(3)}
    return [
        {name: "r" if draw.random() < skill else draw.choice("wx") for name, skill in names.items()}
        for _ in range(questions)
    ]


def test_those_that_are_right_more_often_weigh_more_and_the_mean_is_one() -> None:
    weights = weights_by_agreement(asked(300))
    by_skill = [[weights[f"{name}{n}"] for n in range(3)] for name in ("good", "fair", "poor")]
    assert min(by_skill[0]) > max(by_skill[1]) > min(by_skill[1]) > max(by_skill[2]) > 0
    assert sum(weights.values()) / 9 == pytest.approx(1.0)


def test_the_consensus_is_right_more_often_by_weight_than_by_votes() -> None:
    weights = weights_by_agreement(asked(200))
    right = {True: 0, False: 0}
    for question in asked(200, seed=1):
        # Two good ones against three that are right once in five.
        some = [name for name in question if name[-1] != "2" and not name.startswith("fair")] + ["poor2"]
        said = [Replicate(id=name, data=question[name], model=name) for name in some]
        for weighed in right:
            right[weighed] += summarize(said, weights=weights if weighed else None, pairwise=False).consensus == "r"
    assert right[True] > right[False] + 5


@pytest.mark.parametrize("questions", [0, 1, 49])
def test_of_fewer_than_fifty_questions_all_weigh_the_same(questions: int) -> None:
    assert set(weights_by_agreement(asked(questions)).values()) <= {1.0}


def test_questions_that_nobody_answered_count_for_nothing() -> None:
    nothing: list[dict[str, str | None]] = [{"good0": None, "poor0": None}] * 60
    assert weights_by_agreement(nothing) == {"good0": 1.0, "poor0": 1.0}
    assert weights_by_agreement(asked(300) + nothing) == weights_by_agreement(asked(300))


def test_an_invalid_answer_speaks_against_its_model() -> None:
    questions = [{**each, "good0": None} for each in asked(100)]
    weights = weights_by_agreement(questions)
    assert weights["good0"] == min(weights.values()) > 0


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.sampled_from(["x", "y", None])), min_size=50, max_size=60))
def test_every_weight_can_be_used(answers: list[dict[str, str | None]]) -> None:
    weights = weights_by_agreement(answers)
    assert all(0 < weight < 100 for weight in weights.values())
    assert set(weights) == {model for each in answers for model in each}
