"""ToolResult: what a tool may return, read once. (What runs make of it is in tests/contract.)"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from steer_llm_sdk.orchestration._result import ToolResult, as_json, describe_error, json_mapping
from steer_llm_sdk.providers.base import ProviderError

ANY_TEXT = st.text(st.characters(exclude_categories=()))
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ANY_TEXT
    | st.binary()
    | st.dates()
    | st.decimals()
    | st.builds(object),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(ANY_TEXT | st.integers(), inner),
    max_leaves=15,
)


@given(ANYTHING)
def test_whatever_is_returned_becomes_json_and_what_had_to_be_changed_is_said(returned: Any) -> None:
    result = ToolResult.of(returned)
    for part in (result.content, result.usage, result.metadata, result.cost_breakdown):
        to_json(dict(part) if isinstance(part, Mapping) else part, inf_nan_mode="strings")
    assert result.cost_usd is None or (math.isfinite(result.cost_usd) and result.cost_usd >= 0)


@given(ANYTHING)
def test_json_is_written_as_itself_and_never_raises(value: Any) -> None:
    plain, warning = as_json(value)
    again, second = as_json(plain)
    assert second is None
    assert again == plain
    if isinstance(value, (bool, int, type(None))):
        assert (plain, warning) == (value, None)


@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_no_account_costs_the_answer(usage: Any, cost: Any, breakdown: Any, metadata: Any) -> None:
    result = ToolResult.of(
        {"content": "paid", "usage": usage, "cost_usd": cost, "cost_breakdown": breakdown, "metadata": metadata}
    )
    assert result.content == "paid"
    assert all(isinstance(value, float) for value in result.cost_breakdown.values())


def test_a_result_is_its_own_result() -> None:
    result = ToolResult("x", {"total_tokens": 1}, 0.5)
    assert ToolResult.of(result) is result
    assert result.cost_usd == 0.5
    assert result.status == "succeeded"


@pytest.mark.parametrize("value", [None, 5, "text", ["a"], [("a", 1)]])
def test_what_is_no_mapping_is_an_empty_one(value: Any) -> None:
    assert json_mapping(value) == {}


@given(ANY_TEXT, ANYTHING, ANYTHING)
def test_an_error_is_described_in_json_whatever_it_carries(message: str, code: Any, request_id: Any) -> None:
    info = describe_error(ProviderError(message, "p", 400, code=code, request_id=request_id))
    to_json(info, inf_nan_mode="strings")
    assert info["type"] == "ProviderError"
    assert info["message"]


def test_what_holds_itself_more_than_once_has_an_end() -> None:
    own: list[Any] = []
    own += [own, {"again": own}]
    assert as_json(own)[0] == ["(nested too deep)", {"again": "(nested too deep)"}]
