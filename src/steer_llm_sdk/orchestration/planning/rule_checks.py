"""What is wrong with a set of rules before any request comes: rules that cannot match, that never have a say, that
contradict each other, that cannot be asked, and tools that are not there.

Only what is certain is told. Whether one rule's conditions follow from another's is decided condition by condition, on
values, numbers, words and equal patterns; of patterns that differ nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from steer_llm_sdk.orchestration.planning._conditions import Unfit, checked, checker
from steer_llm_sdk.orchestration.planning.eligibility import at_version, is_number
from steer_llm_sdk.orchestration.planning.planner import ToolMetadata
from steer_llm_sdk.orchestration.planning.rules import PlanningRule, RuleAction, RuleCondition
from steer_llm_sdk.orchestration.versions import wanted

Kind = Literal["unusable", "unreachable", "shadowed", "contradicts", "leaves_none", "missing_tool"]


class Finding(NamedTuple):
    """`rule` and `other` are places among the rules that were given; `other` is None where there is none."""

    kind: Kind
    rule: int
    message: str
    other: int | None = None


def check_rules(rules: Sequence[PlanningRule], tools: Mapping[str, ToolMetadata] | None = None) -> list[Finding]:
    """What is wrong with the rules, as they stand in one planner that was given them in this order. `tools` None: which
    tools there are is not known."""
    found: list[Finding] = []
    for place, rule in enumerate(rules):
        found += _alone(place, rule)
        if tools is not None:
            found += _missing(place, rule, tools)
    useless = {finding.rule for finding in found if finding.kind in ("unusable", "unreachable")}
    found += _together([place for place in range(len(rules)) if place not in useless], rules)
    return sorted(found, key=lambda finding: finding.rule)


def _alone(place: int, rule: PlanningRule) -> Iterator[Finding]:
    if rule.action is None:
        yield Finding("unusable", place, "it has no action, and is passed over")
        return
    usable: list[RuleCondition] = []
    for condition in rule.conditions:
        try:
            checked(condition)
            usable.append(condition)
        except Unfit as error:
            yield Finding("unusable", place, f"it is always skipped: {condition.attribute_path}: {error}")
    for number, one in enumerate(usable):
        for other in usable[number + 1 :]:
            if one.attribute_path == other.attribute_path and _exclude_each_other(one, other):
                yield Finding(
                    "unreachable", place, f"it never matches: {_told(one)} and {_told(other)} exclude each other"
                )


def _missing(place: int, rule: PlanningRule, tools: Mapping[str, ToolMetadata]) -> Iterator[Finding]:
    if rule.action is None:
        return
    for name in dict.fromkeys(rule.action.tools):
        if name not in tools:
            _, tool, reason = at_version(name, tools)
            if tool is None:
                yield Finding("missing_tool", place, f"tool {name}: {reason}")
    if rule.action.effect == "forbid" and tools and tools.keys() <= set(rule.action.tools):
        yield Finding("leaves_none", place, "it forbids every tool that there is: what it matches is always refused")


def _exclude_each_other(one: RuleCondition, other: RuleCondition) -> bool:
    if one.custom_matcher is not None or other.custom_matcher is not None:
        return False
    for a, b in ((one, other), (other, one)):
        if a.operator == "equals":
            return not _holds_for(b, a.value)
        if a.operator == "exists" and a.value is False and _needs_a_value(b):
            return True
        if a.operator in _OF_TEXT and b.operator in ("gt", "lt") and is_number(b.value):
            return True
        if a.operator == "gt" and b.operator == "lt" and type(a.value) is type(b.value) is str:
            return bool(b.value <= a.value)
        if a.operator == "gt" and b.operator == "lt" and _both_numbers(a.value, b.value):
            return bool(b.value <= a.value)
    if {one.operator, other.operator} <= {"gt", "lt"}:
        return {_kind(one.value), _kind(other.value)} == {"number", "text"}
    return False


def _kind(value: Any) -> str:
    return "number" if is_number(value) else "text" if isinstance(value, str) else "other"


_OF_TEXT = ("regex", "keywords", "contains")
"""What they are asked of is a text, or things in which something is: no number."""


def _needs_a_value(condition: RuleCondition) -> bool:
    if condition.operator == "exists":
        return condition.value is not False
    return condition.operator != "equals" or condition.value is not None


def _holds_for(condition: RuleCondition, value: Any) -> bool:
    """Whether it holds for a value; one that cannot be said of it does not."""
    try:
        return checker(condition)(value)
    except Exception:
        return False


# ── two rules ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _together(places: Sequence[int], rules: Sequence[PlanningRule]) -> Iterator[Finding]:
    """Rules of which one always matches where the other does."""
    wider = _ByWhatTheyAskFor(places, rules)
    asked = {
        place: rank for rank, place in enumerate(sorted(places, key=lambda place: (-rules[place].priority, place)))
    }
    for place in places:
        told: set[str] = set()
        for other in wider.maybe_implied_by(rules[place]):
            if other == place or not implies(rules[place].conditions, rules[other].conditions):
                continue
            finding = _of_pair(place, other, rules, before=asked[other] < asked[place])
            # Of ten rules that are the same each is told once. What restricts or forbids does so each by itself.
            if finding is not None and (_is_policy(rules[other]) or finding.kind not in told):
                told.add(finding.kind)
                yield finding


def _is_policy(rule: PlanningRule) -> bool:
    return rule.action is not None and rule.action.effect in ("restrict", "forbid")


def _of_pair(place: int, other: int, rules: Sequence[PlanningRule], *, before: bool) -> Finding | None:
    """`rules[other]` matches wherever `rules[place]` does."""
    rule, wide = rules[place], rules[other]
    assert rule.action is not None
    assert wide.action is not None
    mine, its = rule.action, wide.action
    if mine.effect in ("pin", "restrict") and _is_policy(wide):
        out = [tool for tool in mine.tools if not _may_serve(tool, its)]
        if len(out) == len(mine.tools):
            what = "forbids all its tools" if its.effect == "forbid" else "leaves none of its tools"
            return Finding("contradicts", place, f"rule {wide.name} {what}", other)
        if mine.effect == "pin" and mine.tool_name in out:
            how = "forbids" if its.effect == "forbid" else "does not leave"
            message = f"rule {wide.name} {how} {mine.tool_name}, which it pins: only the fallbacks can serve"
            return Finding("contradicts", place, message, other)
    if mine.effect == its.effect and mine.effect in ("pin", "prefer") and before:
        same = implies(wide.conditions, rule.conditions)
        if mine.effect == "prefer":
            against = [tool for tool in mine.tools if tool in its.tools] if mine.weight * its.weight < 0 else []
            if same and against:
                message = (
                    f"rule {wide.name} has weight {its.weight:g} for {', '.join(against)} under the same conditions"
                )
                return Finding("contradicts", place, message, other)
            return None
        if same and rule.priority == wide.priority and mine.tool_name != its.tool_name:
            message = (
                f"rule {wide.name} pins {its.tool_name} under the same conditions; it was added first, and decides"
            )
            return Finding("contradicts", place, message, other)
        return Finding("shadowed", place, f"rule {wide.name} matches whenever it does, and is asked first", other)
    return None


def _may_serve(tool: str, policy: RuleAction) -> bool:
    """Whether what a pin or restriction names can be left by a rule that restricts or forbids. A name without a version
    is of all its versions; which of them a version is that is asked for, nobody knows here."""
    base = _base(tool)
    if policy.effect == "forbid":
        return tool not in policy.tools and base not in policy.tools
    return base in map(_base, policy.tools)


def _base(tool: str) -> str:
    asked = wanted(tool)
    return tool if asked is None else asked.name


def implies(these: Sequence[RuleCondition], those: Sequence[RuleCondition]) -> bool:
    """Whether a request for which these hold is certainly one for which those do."""
    return all(any(_follows(condition, given) for given in these) for condition in those)


def _follows(condition: RuleCondition, given: RuleCondition) -> bool:
    if condition.attribute_path != given.attribute_path:
        return False
    # To Python True equals 1; to a condition it does not.
    if condition == given and isinstance(condition.value, bool) == isinstance(given.value, bool):
        return True
    if condition.custom_matcher is not None or given.custom_matcher is not None:
        return False
    if given.operator == "equals":
        return _holds_for(condition, given.value)
    if condition.operator == "exists" and condition.value is not False:
        return _needs_a_value(given)
    if condition.operator == given.operator == "keywords":
        return {word.casefold() for word in given.value} <= {word.casefold() for word in condition.value}
    if condition.operator == given.operator and condition.operator in ("gt", "lt"):
        if not _both_numbers(condition.value, given.value):
            return False
        return bool(given.value >= condition.value if condition.operator == "gt" else given.value <= condition.value)
    return False


class _ByWhatTheyAskFor:
    """Rules by one thing that must follow from another rule's conditions for theirs to follow."""

    def __init__(self, places: Iterable[int], rules: Sequence[PlanningRule]) -> None:
        self._found: dict[Any, list[int]] = {}
        for place in places:
            for key in self._keys_of(rules[place].conditions):
                self._found.setdefault(key, []).append(place)

    @staticmethod
    def _keys_of(conditions: Sequence[RuleCondition]) -> Iterator[Any]:
        if not conditions:
            yield "all"
            return
        first = next((c for c in conditions if _has_scalar(c)), conditions[0])
        yield _key(first)
        if first.operator == "keywords" and first.custom_matcher is None:
            yield from (("word", first.attribute_path, word.casefold()) for word in first.value)

    def maybe_implied_by(self, rule: PlanningRule) -> Iterator[int]:
        keys: dict[Any, None] = {"all": None}
        for condition in rule.conditions:
            path = condition.attribute_path
            if condition.operator == "keywords" and condition.custom_matcher is None:
                keys["word", path, condition.value[0].casefold()] = None
                keys["other", path] = None
                continue
            keys[_key(condition)] = None
            keys["other", path] = None
            if condition.operator == "equals":
                keys["words", path] = None
        yield from dict.fromkeys(place for key in keys for place in self._found.get(key, ()))


def _has_scalar(condition: RuleCondition) -> bool:
    return condition.operator == "equals" and isinstance(condition.value, (str, int, float, type(None)))


def _key(condition: RuleCondition) -> Any:
    if _has_scalar(condition) and condition.custom_matcher is None:
        return "value", condition.attribute_path, isinstance(condition.value, bool), condition.value
    return ("words" if condition.operator == "keywords" else "other"), condition.attribute_path


def _both_numbers(one: Any, other: Any) -> bool:
    return is_number(one) and is_number(other)


def _told(condition: RuleCondition) -> str:
    return f"{condition.attribute_path} {condition.operator} {condition.value!r}"
