"""How far answers are from each other."""

from __future__ import annotations

from typing import Any

import pytest
from answers import answers
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.evidence import mean_distance, pairwise_distance


@pytest.mark.parametrize(
    ("left", "right", "distance"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, 0.0),
        ({"a": 1, "b": 2}, {"a": 1, "b": 4}, 0.25),
        ({"a": 1}, {"a": 1, "b": 3}, 0.5),
        ({"a": 1}, {"b": 1}, 1.0),
        ({"a": None}, {}, 1.0),
        ({"a": {"b": 1, "c": "x"}}, {"a": {"b": 1, "c": "y"}}, 0.5),
        (5, -5, 1.0),
        ("the answer is 12", "the answer is 13", 4 / 18),
        ("yes", " YES", 0.0),
        ("x" * 20_000, "x" * 20_001, 1 / 20_002),
        ({"a": [1, 2]}, {"a": [1, 3]}, 1.0),
        ({}, {}, 0.0),
        ("x", "x", 0.0),
        ("x", {"x": 1}, 1.0),
        (1, 1.0, 0.0),
        (1, True, 1.0),
    ],
)
def test_the_distance_is_the_mean_over_the_leaves_of_how_far_they_are_apart(
    left: Any, right: Any, distance: float
) -> None:
    assert pairwise_distance([left, right]) == ((0.0, pytest.approx(distance)), (pytest.approx(distance), 0.0))


def test_only_the_given_fields_are_looked_at() -> None:
    answers = [{"a": {"x": 1}, "b": True}, {"a": {"x": 1}, "b": False}]
    assert pairwise_distance(answers, fields=["a"]) == ((0.0, 0.0), (0.0, 0.0))
    assert pairwise_distance(answers, fields=["b"]) == ((0.0, 1.0), (1.0, 0.0))


def test_answers_without_any_of_the_fields_do_not_differ_on_them() -> None:
    assert pairwise_distance([{"a": 1}, {"a": 2}], fields=["b"]) == ((0.0, 0.0), (0.0, 0.0))


def test_the_mean_is_over_pairs_and_absent_where_there_are_none() -> None:
    matrix = pairwise_distance(["a", "a", "b"])
    assert mean_distance(matrix) == pytest.approx(2 / 3)
    assert mean_distance(pairwise_distance(["a"])) is None
    assert mean_distance(()) is None


@given(st.lists(answers, max_size=4))
def test_a_distance_matrix_is_symmetric_in_0_to_1_with_zeros_on_the_diagonal(data: list[Any]) -> None:
    matrix = pairwise_distance(data)
    for row in range(len(data)):
        assert matrix[row][row] == 0.0
        for column in range(len(data)):
            assert matrix[row][column] == matrix[column][row]
            assert 0.0 <= matrix[row][column] <= 1.0


@given(answers, answers)
def test_distance_zero_is_the_same_answer(left: Any, right: Any) -> None:
    assert (pairwise_distance([left, right])[0][1] == 0.0) == _same(left, right)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def test_a_field_that_neither_has_is_no_field_that_they_share() -> None:
    matrix = pairwise_distance([{"a": True}, {"a": None}, {"a": True, "b": 2}])
    assert (matrix[0][1], matrix[0][2]) == (1.0, 0.5)
