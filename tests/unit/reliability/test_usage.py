"""How usages add, and how many tokens one is."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.models.usage import add_usage, tokens_of

COUNTS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 10**12), max_size=4)
NESTED = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 10**12) | COUNTS, max_size=4)
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2)
NAMES = ("total_tokens", "input_tokens", "prompt_tokens", "output_tokens", "completion_tokens")


@given(COUNTS, COUNTS, COUNTS)
def test_counts_add_in_any_order(a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]) -> None:
    assert add_usage(a, b) == add_usage(b, a)
    assert add_usage(add_usage(a, b), c) == add_usage(a, add_usage(b, c))
    assert add_usage(a, b) == {key: a.get(key, 0) + b.get(key, 0) for key in {*a, *b}}


@given(NESTED, NESTED)
def test_neither_side_is_written(a: dict[str, Any], b: dict[str, Any]) -> None:
    before = copy.deepcopy((a, b))
    total = add_usage(a, b)
    for value in total.values():
        if isinstance(value, dict):
            value["written"] = 1
    assert (a, b) == before


@given(st.dictionaries(st.sampled_from("ab"), ANYTHING), st.dictionaries(st.sampled_from("ab"), ANYTHING))
def test_whatever_is_in_them_no_key_is_lost(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert add_usage(a, b).keys() == {*a, *b}


@pytest.mark.parametrize(
    ("left", "right", "total"),
    [
        ({}, {"n": 1}, {"n": 1}),
        ({"n": None}, {"n": 1}, {"n": 1}),
        ({"n": 1}, {"n": None}, {"n": 1}),
        ({"tier": "a"}, {"tier": "b"}, {"tier": "a"}),
        ({"n": 1}, {"n": "many"}, {"n": 1}),
        ({"n": "many"}, {"n": 1}, {"n": "many"}),
        ({"n": True}, {"n": 1}, {"n": True}),
        ({"n": 1}, {"n": math.nan}, {"n": 1}),
        ({"d": {"cached": 1}}, {"d": {"cached": 2, "audio": 3}}, {"d": {"cached": 3, "audio": 3}}),
        ({"n": 0.5}, {"n": 1}, {"n": 1.5}),
    ],
)
def test_what_is_no_number_is_kept_from_the_first(left: Any, right: Any, total: Any) -> None:
    assert add_usage(left, right) == total


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({}, 0),
        ({"total_tokens": 7, "input_tokens": 100}, 7),
        ({"input_tokens": 3, "output_tokens": 4}, 7),
        ({"prompt_tokens": 3, "completion_tokens": 4}, 7),
        ({"input_tokens": 3, "prompt_tokens": 3, "output_tokens": 4}, 7),
        ({"total_tokens": None, "input_tokens": 3}, 3),
        ({"total_tokens": "many", "input_tokens": 3}, 3),
        ({"total_tokens": math.inf, "input_tokens": 3}, 3),
        ({"total_tokens": True, "output_tokens": 4}, 4),
        ({"input_tokens": "x", "prompt_tokens": 3}, 3),
        ({"total_tokens": -5}, 0),
        ({"total_tokens": 7.9}, 7),
        ({"requests": 3}, 0),
    ],
)
def test_tokens_of_a_usage(usage: dict[str, Any], tokens: int) -> None:
    assert tokens_of(usage) == tokens


@given(st.dictionaries(st.sampled_from(NAMES), ANYTHING))
def test_the_tokens_of_anything_are_a_count(usage: dict[str, Any]) -> None:
    assert tokens_of(usage) >= 0
