from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from steer_llm_sdk.orchestration.planning import PlanningRule, RuleAction, RuleBasedPlanner, RuleCondition, ToolMetadata

TOOLS = {"plain": ToolMetadata(name="plain"), "chosen": ToolMetadata(name="chosen")}


def asked(condition: RuleCondition, request: Any) -> bool | str:
    """Whether a rule with this condition decides; the reason where it is skipped."""
    planner = RuleBasedPlanner([PlanningRule("r", 0, [condition], RuleAction("chosen"))])
    decision = planner.decide(request, TOOLS)
    reason = decision.metadata.get("skipped_rules", {}).get("r")
    return decision.selected_tool == "chosen" if reason is None else reason


def holds(operator: str, expected: Any, value: Any) -> bool | str:
    return asked(RuleCondition("x", operator, expected), {"x": value})


@pytest.mark.parametrize(
    ("operator", "expected", "value", "result"),
    [
        ("equals", "a", "a", True),
        ("equals", "a", "b", False),
        ("equals", "a", 5, False),
        ("equals", 1, 1.0, True),
        ("equals", 1, True, False),
        ("equals", True, 1, False),
        ("equals", True, True, True),
        ("equals", None, None, True),
        ("equals", {"a": [1]}, {"a": [1]}, True),
        ("contains", "ell", "hello", True),
        ("contains", "ELL", "hello", False),
        ("contains", "a", ["b", "a"], True),
        ("contains", 1, [True], False),
        ("contains", 1, [0, 1], True),
        ("contains", "a", {"a": 0}, True),
        ("contains", "b", {"a": 0}, False),
        ("contains", "a", None, False),
        ("regex", "^h.*o$", "hello", True),
        ("regex", "l+", "hello", True),
        ("regex", "(?i)HELLO", "hello", True),
        ("regex", "x", "hello", False),
        ("regex", "(l)(l)", "hello", True),
        ("regex", "b", ["abc", 5], True),
        ("regex", "z", ["abc", 5], False),
        ("regex", "x", None, False),
        ("regex", "é+", "caféé", True),
        ("exists", None, "a", True),
        ("exists", None, 0, True),
        ("exists", None, "", True),
        ("exists", None, None, False),
        ("exists", True, None, False),
        ("exists", False, None, True),
        ("exists", False, 0, False),
        ("gt", 5, 6, True),
        ("gt", 5, 5, False),
        ("gt", 5, 5.5, True),
        ("gt", 5, None, False),
        ("gt", 5, float("nan"), False),
        ("gt", "a", "b", True),
        ("lt", 5, 4, True),
        ("lt", 5, 5, False),
        ("lt", 5, None, False),
    ],
)
def test_an_operator(operator: str, expected: Any, value: Any, result: bool) -> None:
    assert holds(operator, expected, value) is result


@pytest.mark.parametrize(
    ("operator", "expected", "value", "reason"),
    [
        ("contains", 1, "a1", "contains: looks for an int in a text"),
        ("contains", "a", 5, "contains: the value is an int, not a text, list or mapping"),
        ("contains", ["a"], {"a": 1}, "TypeError: unhashable type: 'list'"),
        ("contains", None, "a", "contains: no value was given to look for"),
        ("regex", "a", 5, "regex: the value is an int, not a text"),
        ("regex", "(", "a", "regex: the pattern '(' is not RE2: missing ): ("),
        ("regex", "(?=a)", "a", "regex: the pattern '(?=a)' is not RE2: invalid perl operator: (?="),
        ("regex", 5, "a", "regex: the pattern is an int, not a text"),
        ("regex", None, "a", "regex: the pattern is null, not a text"),
        ("gt", 5, "6", "gt: the value is a str, compared with an int"),
        ("lt", 5, [1], "lt: the value is a list, compared with an int"),
        ("gt", 5, True, "gt: the value is a bool, compared with an int"),
        ("gt", None, 5, "gt: None is nothing to compare with; give a number or a text"),
        ("lt", True, 5, "lt: True is nothing to compare with; give a number or a text"),
    ],
)
def test_a_condition_that_does_not_fit_skips_its_rule_and_says_why(
    operator: str, expected: Any, value: Any, reason: str
) -> None:
    assert holds(operator, expected, value) == reason


def test_a_long_pattern_is_shortened_in_the_reason() -> None:
    reason = holds("regex", "(" * 500, "a")
    assert isinstance(reason, str)
    assert len(reason) <= 200


@dataclass
class Holder:
    inner: Any
    _hidden: str = "secret"

    def method(self) -> int:
        return 1


class Model(BaseModel):
    items: list[int]


@pytest.mark.parametrize(
    ("path", "request_", "expected", "result"),
    [
        ("a.b.c", {"a": {"b": {"c": 1}}}, 1, True),
        ("a.b.c", {"a": {"b": 1}}, 1, False),
        ("a.b.c", {"a": None}, 1, False),
        ("a.1", {"a": ["x", "y"]}, "y", True),
        ("a.-1", {"a": ["x", "y"]}, "y", True),
        ("a.2", {"a": ["x", "y"]}, None, True),
        ("a.-3", {"a": ["x", "y"]}, None, True),
        ("a.first", {"a": ["x", "y"]}, None, True),
        ("a.²", {"a": ["x", "y"]}, None, True),
        ("a.0", {"a": "text"}, None, True),
        ("a.real", {"a": 5}, None, True),
        ("a.items", {"a": {"b": 1}}, None, True),
        ("inner.k", Holder({"k": 2}), 2, True),
        ("inner", Holder("v"), "v", True),
        ("method", Holder(None), None, True),
        ("_hidden", Holder(None), "secret", False),
        ("__class__.__name__", Holder(None), "Holder", False),
        ("items.0", Model(items=[7]), 7, True),
        ("x", MappingProxyType({"x": 3}), 3, True),
        ("0.x", [{"x": 4}], 4, True),
        ("x", None, None, True),
        ("x", 5, None, True),
    ],
)
def test_a_path_leads_through_mappings_lists_and_attributes(
    path: str, request_: Any, expected: Any, result: bool
) -> None:
    assert asked(RuleCondition(path, "equals", expected), request_) is result


def test_a_text_request_is_its_query() -> None:
    assert asked(RuleCondition("query", "contains", "lo wo"), "hello world") is True


def test_a_missing_attribute_reads_as_null() -> None:
    assert asked(RuleCondition("y", "equals", None), {"x": 1}) is True
    assert asked(RuleCondition("y", "exists"), {"x": 1}) is False


@pytest.mark.parametrize(
    "matcher",
    [
        lambda value: value == 7,
        lambda value, expected: value == expected,
        lambda expected, value: value == 7 and expected == 7,
        lambda v, e: v == e,
        lambda v, bound=7: v == bound,
        lambda *both: both == (7, 7),
        (7).__eq__,
        lambda value=0, /: value == 7,
    ],
)
def test_a_custom_matcher_is_asked_in_place_of_the_operator(matcher: Callable[..., bool]) -> None:
    condition = RuleCondition("x", "exists", 7, matcher)
    assert asked(condition, {"x": 7}) is True
    assert asked(condition, {"x": 8}) is False


def test_a_builtin_that_tells_no_signature_can_match() -> None:
    assert asked(RuleCondition("x", "exists", None, bool), {"x": 1}) is True
    assert asked(RuleCondition("x", "exists", None, bool), {"x": 0}) is False


def test_a_custom_matcher_that_raises_skips_the_rule() -> None:
    condition = RuleCondition("x", "exists", None, lambda value: value["no such key"])
    assert asked(condition, {"x": {}}) == "KeyError: 'no such key'"


async def matches_later(value: Any) -> bool:
    raise AssertionError("nobody asks")


def test_an_async_matcher_is_refused_because_nobody_would_wait_for_it() -> None:
    reason = asked(RuleCondition("x", "exists", None, matches_later), {"x": 1})  # type: ignore[arg-type]
    assert isinstance(reason, str)
    assert "async" in reason


def test_an_attribute_that_raises_skips_the_rule() -> None:
    class Awkward:
        @property
        def x(self) -> int:
            raise RuntimeError("not now")

    assert asked(RuleCondition("x", "equals", 1), Awkward()) == "RuntimeError: not now"


def test_text_that_is_no_unicode_can_still_be_searched() -> None:
    text = json.loads('"ok \\ud800 done"')
    assert holds("regex", "done$", text) is True
    assert holds("regex", r"ok \? done", text) is False
    reason = holds("regex", json.loads('"\\ud800"'), "a")
    assert isinstance(reason, str)
    assert reason.startswith("regex: the pattern '\\ud800' is not RE2")


def test_patterns_run_in_linear_time() -> None:
    start = time.process_time()
    assert holds("regex", "(a*)*b", "a" * 200_000) is False
    assert time.process_time() - start < 1


def test_nesting_too_deep_to_compare_skips_the_rule() -> None:
    def nested() -> list[Any]:
        value: list[Any] = []
        for _ in range(20_000):
            value = [value]
        return value

    reason = holds("equals", nested(), nested())
    assert isinstance(reason, str)
    assert reason.startswith("RecursionError")


def test_fields_may_be_given_by_position_or_by_name() -> None:
    by_position = RuleCondition("a.b", "gt", 3)
    assert by_position == RuleCondition(attribute_path="a.b", operator="gt", value=3)
    rule = PlanningRule("n", 4, [by_position], RuleAction("t", {"k": 2}, ["u"]), "why")
    assert rule == PlanningRule(
        name="n",
        priority=4,
        conditions=[by_position],
        action=RuleAction(tool_name="t", tool_options={"k": 2}, fallback_tools=["u"]),
        description="why",
    )
    assert PlanningRule.model_validate(rule.model_dump()) == rule


def test_a_field_given_twice_or_one_too_many_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="operator was given twice"):
        RuleCondition("a", "equals", operator="gt")  # type: ignore[misc]
    with pytest.raises(TypeError, match="5 values were given"):
        RuleCondition("a", "equals", 1, None, 2)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "fields",
    [
        {"attribute_path": "a", "operator": "like"},
        {"attribute_path": "", "operator": "equals"},
        {"attribute_path": "a"},
        {"attribute_path": "a", "operator": "equals", "colour": 1},
    ],
)
def test_a_condition_that_says_nothing_known_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RuleCondition.model_validate(fields)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
literals = st.text(alphabet="ab é1", max_size=6)
"""Texts that are their own pattern."""


def verdict(operator: str, expected: Any, value: Any) -> bool | None:
    """Whether the condition holds; None where its rule is skipped, with a reason that is short enough to read."""
    result = holds(operator, expected, value)
    if isinstance(result, bool):
        return result
    assert 0 < len(result) <= 200
    return None


@given(value=json_values)
def test_every_value_equals_itself(value: Any) -> None:
    assert verdict("equals", value, value) is True


@given(value=json_values, expected=json_values)
def test_equality_is_the_same_in_both_directions(value: Any, expected: Any) -> None:
    assert verdict("equals", expected, value) is verdict("equals", value, expected) is not None


@given(value=json_values)
def test_a_value_exists_unless_it_is_null(value: Any) -> None:
    assert verdict("exists", True, value) is (value is not None)
    assert verdict("exists", False, value) is (value is None)


@given(value=json_values.filter(lambda value: value is not None), expected=json_values)
def test_a_list_contains_what_is_put_into_it_and_a_shorter_text_is_in_a_longer_one(value: Any, expected: Any) -> None:
    assert verdict("contains", value, [expected, value]) is True
    assert verdict("contains", str(value), f"{expected}{value}") is True


@given(value=json_values.filter(lambda value: value is not None), expected=json_values)
def test_one_is_greater_exactly_where_the_other_is_less(value: Any, expected: Any) -> None:
    if expected is None:
        assert verdict("gt", expected, value) is verdict("lt", expected, value) is None
    else:
        assert verdict("gt", expected, value) is verdict("lt", value, expected)


@given(numbers=st.tuples(st.integers() | st.floats(allow_nan=False), st.integers() | st.floats(allow_nan=False)))
def test_numbers_are_compared_as_numbers(numbers: tuple[float, float]) -> None:
    value, expected = numbers
    assert verdict("gt", expected, value) is (value > expected)


@given(value=literals, pattern=literals)
def test_a_pattern_of_plain_letters_matches_where_the_text_contains_it(value: str, pattern: str) -> None:
    assert verdict("regex", pattern, value) is (pattern in value)


@given(value=json_values, pattern=json_values.filter(lambda value: not isinstance(value, str)))
def test_a_pattern_that_is_no_text_skips_the_rule(value: Any, pattern: Any) -> None:
    assert verdict("regex", pattern, value) is None
