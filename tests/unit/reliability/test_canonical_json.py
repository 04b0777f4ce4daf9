"""canonical_json: the bytes of RFC 8785, or InvalidRequest; the same where the requests are."""

from __future__ import annotations

import json
from collections import OrderedDict
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.reliability.canonical import MAX_DEPTH, canonical_json

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


@given(JSON)
def test_the_bytes_are_those_of_rfc_8785(value: Any) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_is_encoded_alike_or_refused_as_half_a_character(text: str) -> None:
    for value in (text, [text, 0.5], {text: 1}, {text: 0.5}):
        try:
            expected = rfc8785.dumps(value)
        except (rfc8785.CanonicalizationError, UnicodeEncodeError):
            with pytest.raises(InvalidRequest):
                canonical_json(value)
        else:
            assert canonical_json(value) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": 2}, '{"a":2,"b":1}'),
        ({"\u20ac": 1, "\r": 2, "\U0001f600": 3, "\ufb33": 4}, '{"\\r":2,"\u20ac":1,"\U0001f600":3,"\ufb33":4}'),
        ([1.0, 1e30, 0.002, 1e-27, -0.0, 4.50], "[1,1e+30,0.002,1e-27,0,4.5]"),
        ('\x00\x1f\x7f\u2028/"\\', '"\\u0000\\u001f\x7f\u2028/\\"\\\\"'),
        ((1, (2,)), "[1,[2]]"),
        (OrderedDict(b=1, a=2), '{"a":2,"b":1}'),
        (2**53 - 1, "9007199254740991"),
        (True, "true"),
        ("", '""'),
        ({}, "{}"),
    ],
)
def test_known_values(value: Any, text: str) -> None:
    assert canonical_json(value).decode() == text


def test_an_int_and_the_float_that_equals_it_are_one_request() -> None:
    assert canonical_json({"k": 1}) == canonical_json({"k": 1.0})
    assert canonical_json({"k": 0}) == canonical_json({"k": -0.0})


def test_true_and_one_are_two_requests() -> None:
    assert canonical_json({"k": 1}) != canonical_json({"k": True})


@given(JSON, JSON)
def test_two_values_are_one_request_exactly_if_their_canonical_bytes_are_the_same(a: Any, b: Any) -> None:
    assert (canonical_json(a) == canonical_json(b)) is (rfc8785.dumps(a) == rfc8785.dumps(b))


@given(st.dictionaries(st.text(), SCALARS, min_size=2))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert canonical_json(value) == canonical_json(turned)


class Question(BaseModel):
    text: str
    weight: float = 1.0


def test_a_model_counts_as_what_it_dumps_to() -> None:
    assert canonical_json([Question(text="q")]) == b'[{"text":"q","weight":1}]'


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        [-float("inf")],
        2**53,
        -(2**53),
        [10**5000],
        {"n": 2**60},
        "\ud800",
        {"\ud800": 1},
        {"\ud800": 0.5},
        ["\udfff", 0.5],
        {1: 2},
        {None: 2},
        {"a": {(1, 2): 3}},
        {1, 2},
        b"bytes",
        object(),
        MappingProxyType({"a": 1}),
        Question.model_construct(text=object()),
        lambda: None,
    ],
)
def test_what_is_no_json_is_refused_with_a_sentence(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="a request must be JSON") as caught:
        canonical_json(value)
    assert len(str(caught.value)) < 400


class Level(IntEnum):
    LOW = 1


def test_an_enum_counts_as_its_number() -> None:
    assert canonical_json({"level": Level.LOW}) == b'{"level":1}'


def nested(depth: int, leaf: Any) -> Any:
    value = leaf
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize("leaf", [1, 0.5, "x", "é", None])
def test_so_many_levels_are_read_and_one_more_is_refused(leaf: Any) -> None:
    assert canonical_json(nested(MAX_DEPTH, leaf)) == rfc8785.dumps(nested(MAX_DEPTH, leaf))
    with pytest.raises(InvalidRequest, match=f"more than {MAX_DEPTH} deep"):
        canonical_json(nested(MAX_DEPTH + 1, leaf))


def test_ten_thousand_levels_and_what_contains_itself_are_refused() -> None:
    own: list[Any] = []
    own.append(own)
    for value in (nested(10_000, 1), own):
        with pytest.raises(InvalidRequest):
            canonical_json(value)


def test_ten_megabytes_of_text_are_read() -> None:
    text = "naïve \U0001f600 \u202e" * 800_000
    assert len(canonical_json({"query": text})) > 10_000_000


@given(JSON)
def test_canonical_bytes_read_back_as_an_equal_value(value: Any) -> None:
    assert canonical_json(json.loads(canonical_json(value), parse_int=float)) == canonical_json(value)
