"""Rules in files, and what is wrong with rules before a request meets them."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.planning import (
    PlanningRule,
    RuleAction,
    RuleBasedPlanner,
    RuleCondition,
    RuleFileError,
    ToolMetadata,
    check_rules,
    create_keyword_based_rule,
    create_type_based_rule,
    load_rules,
)
from steer_llm_sdk.orchestration.planning.rule_checks import implies
from steer_llm_sdk.orchestration.planning.rule_files import read_rules

TOML = """
# who does what
[[rule]]
name = "contracts"
priority = 10
description = "long ones"
when = { type = "contract", "options.budget.tokens" = { gt = 1000, lt = 5000 } }
pin = "lawyer>=2"
fallbacks = ["generalist"]
options = { k = 5, nested = { x = [1] } }
strategy = "single"

[[rule]]
name = "urgent"
when.query.keywords = ["urgent", "asap"]
prefer = ["fast", "faster"]
weight = 0.5

[[rule]]
name = "policy"
when = { tenant = "acme" }
restrict = ["inhouse"]

[[rule]]
name = "never"
forbid = "old"
"""
YAML = """
rule:
  # who does what
  - name: contracts
    priority: 10
    description: long ones
    when:
      type: contract
      options.budget.tokens: {gt: 1000, lt: 5000}
    pin: lawyer>=2
    fallbacks: [generalist]
    options: {k: 5, nested: {x: [1]}}
    strategy: single
  - name: urgent
    when: {query: {keywords: [urgent, asap]}}
    prefer: [fast, faster]
    weight: 0.5
  - name: policy
    when: {tenant: acme}
    restrict: [inhouse]
  - name: never
    forbid: old
"""
RULES = [
    PlanningRule(
        "contracts",
        10,
        [
            RuleCondition("type", "equals", "contract"),
            RuleCondition("options.budget.tokens", "gt", 1000),
            RuleCondition("options.budget.tokens", "lt", 5000),
        ],
        RuleAction("lawyer>=2", {"k": 5, "nested": {"x": [1]}}, ["generalist"]),
        "long ones",
    ),
    PlanningRule(
        "urgent",
        0,
        [RuleCondition("query", "keywords", ["urgent", "asap"])],
        RuleAction.prefer("fast", "faster", weight=0.5),
    ),
    PlanningRule("policy", 0, [RuleCondition("tenant", "equals", "acme")], RuleAction.restrict("inhouse")),
    PlanningRule("never", 0, [], RuleAction.forbid("old")),
]


def written(folder: Path, text: str, name: str = "rules.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("text", "name"), [(TOML, "r.toml"), (YAML, "r.yaml"), (YAML, "r.yml")])
def test_a_file_holds_what_code_could_say(tmp_path: Path, text: str, name: str) -> None:
    rules = load_rules(written(tmp_path, text, name))
    assert [rule.model_dump() for rule in rules] == [rule.model_dump() for rule in RULES]
    RuleBasedPlanner(rules)


@pytest.mark.parametrize(
    ("text", "name", "lines"), [(TOML, "r.toml", [3, 13, 19, 24]), (YAML, "r.yaml", [4, 14, 18, 21])]
)
def test_each_rule_knows_its_line(tmp_path: Path, text: str, name: str, lines: list[int]) -> None:
    assert [placed.line for placed in read_rules(written(tmp_path, text, name))] == lines


@pytest.mark.parametrize("name", ["r.toml", "r.yaml"])
def test_an_empty_file_has_no_rules(tmp_path: Path, name: str) -> None:
    assert load_rules(written(tmp_path, "# nothing yet\n", name)) == []


R = '[[rule]]\nname = "r"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[rule]]\nname = \n", "2: it is not TOML: Invalid value"),
        ('[[rule]]\nname = "r"\nname = "s"\n', "3: it is not TOML: Cannot overwrite a value"),
        ("[[rule", "1: it is not TOML"),
        ("rules = 1\n", "1: 'rules' is nothing that is read here; write rules under `rule`"),
        ("rule = 1\n", "1: `rule` must be a list"),
        ("rule = [1]\n", "1: a rule has keys: description"),
        ('[[rule]]\npin = "a"\n', "1: name: give it a name"),
        (f"{R}colour = 1\npin = 'a'\n", "3: rule r: 'colour' is no key of a rule; there are"),
        (f"{R}priority = 1.5\npin = 'a'\n", "3: rule r: priority: 1.5 cannot be used; give a whole number"),
        (f"{R}description = 5\npin = 'a'\n", "3: rule r: description: Input should be a valid string"),
        (R, "1: rule r: give one of pin, restrict, prefer, forbid, and 0 are there"),
        (f"{R}pin = 'a'\nforbid = 'b'\n", "4: rule r: give one of pin, restrict, prefer, forbid, and 2 are there"),
        (f"{R}pin = []\n", "3: rule r: pin: give the name of a tool, or a list of names"),
        (f"{R}pin = ['a', 'b']\n", "3: rule r: pin: give one tool; the others are its fallbacks"),
        (f"{R}pin = 'a'\nfallbacks = 'b'\n", "4: rule r: fallbacks: give a list of names"),
        (f"{R}pin = 'a'\noptions = 5\n", "4: rule r: options: Input should be a valid dictionary"),
        (f"{R}pin = 'a'\nstrategy = 'swarm'\n", "4: rule r: strategy: 'swarm' is none of single, chain"),
        (f"{R}pin = 'a'\nweight = 2\n", "4: rule r: weight: only prefer has one, and the rule is to pin"),
        (f"{R}prefer = 'a'\nweight = 'much'\n", "4: rule r: weight: Input should be a valid number"),
        (f"{R}forbid = 'a'\noptions = {{}}\n", "4: rule r: options: only a pin has it, and the rule is to forbid"),
        (f"{R}pin = 'a'\nwhen = 5\n", "4: rule r: when: give a table"),
        (f"{R}pin = 'a'\nwhen.n.above = 5\n", "4: rule r: when: n: 'above' is no operator"),
        (f"{R}pin = 'a'\nwhen.options.k = 5\n", 'for a key within options write "options.k"'),
        (f"{R}pin = 'a'\nwhen.q.regex = '('\n", "4: rule r: when: q: regex: the pattern '(' is not RE2: missing )"),
        (f"{R}pin = 'a'\nwhen.q.keywords = 'x'\n", "4: rule r: when: q: keywords: give a list of words"),
        (f"{R}pin = 'a'\nwhen.n.gt = true\n", "4: rule r: when: n: gt: True is nothing to compare with"),
        (f"{R}pin = 'a'\n\n[rule.when.n]\nabove = 1\n", "5: rule r: when: n: 'above' is no operator"),
        (f"{R}pin = 'a'\n{R}pin = 'b'\n", "4: rule r: its name is taken by the rule in line 1"),
        (f'{R}description = """\n[[rule]]\nname = 5\n"""\npin = 5\n', "7: rule r: pin: give the name of a tool"),
    ],
)
def test_what_is_wrong_in_toml_is_said_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RuleFileError) as caught:
        load_rules(path)
    line, colon, message = says.partition(": ") if says[0].isdigit() else ("", "", says)
    assert message in str(caught.value)
    if colon:
        assert str(caught.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rule:\n  - name: [\n", "3: it is not YAML"),
        ("rule:\n  - name: r\n    pin: a\n    pin: b\n", "4: it is not YAML"),
        ("- 1\n", "1: write rules under `rule`"),
        ("rule:\n  - name: r\n    colour: red\n    pin: a\n", "3: rule r: 'colour' is no key of a rule"),
        ("rule:\n\n  - name: r\n", "3: rule r: give one of pin"),
        ("rule:\n  - name: r\n    pin: a\n    when:\n      n:\n        above: 5\n", "when: n: 'above' is no operator"),
        ("rule: !!python/object/apply:os.getcwd []\n", "1: it is not YAML"),
    ],
)
def test_what_is_wrong_in_yaml_is_said_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text, "rules.yaml")
    with pytest.raises(RuleFileError) as caught:
        load_rules(path)
    assert says.replace("4: it is not YAML", "4: 'pin' is there twice") in str(caught.value)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, f"{R}{R}pin = 'a'\npriority = 'x'\n{R}colour = 1\n")
    with pytest.raises(RuleFileError) as caught:
        load_rules(path)
    assert [problem.line for problem in caught.value.problems] == [1, 6, 7, 9]
    assert isinstance(caught.value, InvalidRequest)


def test_yaml_is_read_as_its_second_version_has_it(tmp_path: Path) -> None:
    asked = "{a: no, b: on, c: 0o17, d: 1e3, e: 010, f: ~, g: 2026-01-01, h: true}"
    text = f"rule:\n  - name: r\n    when: {asked}\n    pin: x\n"
    (rule,) = load_rules(written(tmp_path, text, "r.yaml"))
    found = {condition.attribute_path: condition.value for condition in rule.conditions}
    assert found == {"a": "no", "b": "on", "c": "0o17", "d": 1000.0, "e": 10, "f": None, "g": "2026-01-01", "h": True}


def test_a_file_that_is_not_text_says_where(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(b"a = 1\n\xff")
    with pytest.raises(RuleFileError, match=":2: it is not UTF-8"):
        load_rules(path)
    with pytest.raises(FileNotFoundError):
        load_rules(tmp_path / "none.toml")


# What is wrong with rules


def when(**asked: Any) -> list[RuleCondition]:
    """`n_gt=5` is n gt 5, `n=5` is n equals 5."""
    found = []
    for name, value in asked.items():
        path, _, operator = name.partition("_")
        found.append(RuleCondition(path, operator or "equals", value))
    return found


def pin(name: str, tool: str = "a", priority: int = 0, **asked: Any) -> PlanningRule:
    return PlanningRule(name, priority, when(**asked), RuleAction(tool))


def kinds(*rules: PlanningRule, tools: Any = None) -> list[tuple[str, str, str | None]]:
    found = check_rules(rules, tools)
    return [(f.kind, rules[f.rule].name, None if f.other is None else rules[f.other].name) for f in found]


@pytest.mark.parametrize(
    "asked",
    [
        {"n": 1, "n_equals": 2},
        {"n": 1, "n_gt": 1},
        {"n": "a", "n_gt": 1},
        {"n_gt": 5, "n_lt": 5},
        {"q": "calm", "q_keywords": ["urgent"]},
        {"q": "calm", "q_regex": "^u"},
        {"n": None, "n_exists": True},
        {"n_exists": False, "n_gt": 1},
        {"n_exists": False, "n": 1},
    ],
)
def test_a_rule_that_can_never_match_is_unreachable(asked: Any) -> None:
    assert kinds(pin("r", **asked)) == [("unreachable", "r", None)]


@pytest.mark.parametrize(
    "asked",
    [{"n": 6, "n_gt": 5}, {"n_gt": 5, "n_lt": 6}, {"q": "so urgent", "q_keywords": ["URGENT"]}, {"n": None, "m": 1}],
)
def test_a_rule_that_can_is_not(asked: Any) -> None:
    assert kinds(pin("r", **asked)) == []


@pytest.mark.parametrize(
    ("wide", "narrow"),
    [
        ({}, {"n": 1}),
        ({"n": 1}, {"n": 1, "m": 2}),
        ({"n_gt": 1}, {"n": 2}),
        ({"n_gt": 1}, {"n_gt": 2}),
        ({"n_lt": 5}, {"n_lt": 4}),
        ({"n_exists": None}, {"n_gt": 1}),
        ({"q_keywords": ["a", "B"]}, {"q_keywords": ["b"]}),
        ({"q_keywords": ["urgent"]}, {"q": "urgent!"}),
        ({"q_regex": "^a"}, {"q": "ab"}),
        ({"q_regex": "^a"}, {"q_regex": "^a", "m": 1}),
        ({"q_contains": "b"}, {"q": "abc"}),
    ],
)
def test_a_rule_that_another_always_keeps_from_deciding_is_shadowed(wide: Any, narrow: Any) -> None:
    assert kinds(pin("wide", priority=1, **wide), pin("narrow", "b", **narrow)) == [("shadowed", "narrow", "wide")]
    assert kinds(pin("wide", **wide), pin("narrow", "b", priority=1, **narrow)) == []
    assert kinds(pin("narrow", "b", priority=1, **narrow), pin("wide", **wide)) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"n": 1}, {"n": True}),
        ({"n": 1}, {"n": 2}),
        ({"n_gt": 2}, {"n_gt": 1}),
        ({"q_keywords": ["a"]}, {"q_keywords": ["a", "b"]}),
        ({"q_regex": "a"}, {"q_regex": "ab"}),
        ({"n": 1, "m": 1}, {"n": 1}),
    ],
)
def test_rules_that_may_match_apart_are_left_alone(one: Any, other: Any) -> None:
    assert kinds(pin("one", priority=1, **one), pin("other", "b", **other)) == []


def test_two_rules_under_the_same_conditions_contradict_each_other_where_their_tools_differ() -> None:
    assert kinds(pin("one", "a", n=1), pin("two", "b", n=1)) == [("contradicts", "two", "one")]
    assert kinds(pin("one", "a", n=1), pin("two", "a", n=1)) == [("shadowed", "two", "one")]


def test_a_pin_that_a_policy_always_undoes_is_a_contradiction() -> None:
    never = PlanningRule("never", 0, when(tenant="x"), RuleAction.forbid("a", "b"))
    only = PlanningRule("only", 0, [], RuleAction.restrict("c"))
    assert kinds(never, pin("r", "a", tenant="x", n=1)) == [("contradicts", "r", "never")]
    assert kinds(never, pin("r", "a", n=1)) == []
    assert kinds(only, pin("r", "a", n=1)) == [("contradicts", "r", "only")]
    with_fallback = PlanningRule("r", 0, [], RuleAction("a", {}, ["c"]))
    assert kinds(only, with_fallback) == [("contradicts", "r", "only")]
    assert kinds(PlanningRule("only", 0, [], RuleAction.restrict("a")), with_fallback) == []
    other = PlanningRule("other", 0, when(n=1), RuleAction.restrict("d"))
    assert kinds(only, other) == [("contradicts", "other", "only")]


def test_what_cannot_be_asked_is_said() -> None:
    bad = PlanningRule("bad", 0, [RuleCondition("q", "regex", "(")], RuleAction("a"))
    assert kinds(bad, PlanningRule("mute", 1)) == [("unusable", "bad", None), ("unusable", "mute", None)]


def test_a_pin_whose_tool_is_forbidden_is_a_contradiction_though_a_fallback_is_left() -> None:
    pinned = PlanningRule("pin", 5, when(type="law"), RuleAction("lawyer>=2", {}, ["writer"]))
    forbid, fallback_only = (
        PlanningRule("no", 0, when(type="law"), RuleAction.forbid(n)) for n in ("lawyer", "writer")
    )
    [found] = check_rules([pinned, forbid])
    assert (found.kind, found.rule, found.other) == ("contradicts", 0, 1)
    assert found.message == "rule no forbids lawyer>=2, which it pins: only the fallbacks can serve"
    assert check_rules([pinned, fallback_only]) == []
    assert kinds(pinned, PlanningRule("no", 0, when(type="law"), RuleAction.forbid("lawyer>=3"))) == []


def test_each_policy_that_undoes_a_pin_is_told() -> None:
    policies = [PlanningRule(f"no{n}", 0, [], RuleAction.forbid("a")) for n in range(2)]
    assert kinds(*policies, pin("r", "a", n=1)) == [("contradicts", "r", "no0"), ("contradicts", "r", "no1")]


def test_a_rule_that_forbids_every_tool_is_told_where_it_is_known_which_there_are() -> None:
    rules = [PlanningRule("all", 0, when(n=1), RuleAction.forbid("a", "b"))]
    assert check_rules(rules) == []
    assert [f.kind for f in check_rules(rules, {n: ToolMetadata(name=n) for n in "ab"})] == ["leaves_none"]
    assert check_rules(rules, {n: ToolMetadata(name=n) for n in "abc"}) == []


def test_limits_of_different_kinds_exclude_each_other() -> None:
    for one, other in (
        (("gt", "abc"), ("lt", 5)),
        (("gt", 5), ("gt", "abc")),
        (("regex", "a"), ("lt", 5)),
        (("gt", "b"), ("lt", "a")),
    ):
        rule = PlanningRule("r", 0, [RuleCondition("x", *one), RuleCondition("x", *other)], RuleAction("a"))
        assert kinds(rule) == [("unreachable", "r", None)]
    for one, other in ((("gt", "a"), ("lt", "b")), (("gt", date(2026, 1, 1)), ("lt", date(2026, 2, 1)))):
        assert (
            kinds(PlanningRule("r", 0, [RuleCondition("x", *one), RuleCondition("x", *other)], RuleAction("a"))) == []
        )


def test_exists_is_true_or_false() -> None:
    maybe = PlanningRule("r", 0, [RuleCondition("x", "exists", "maybe")], RuleAction("a"))
    [found] = check_rules([maybe])
    assert (found.kind, "'maybe' is neither true nor false" in found.message) == ("unusable", True)
    decision = RuleBasedPlanner([maybe]).decide({}, {"b": ToolMetadata(name="b")})
    assert list(decision.metadata["skipped_rules"]) == ["r"]


def test_preferences_that_are_opposite_under_the_same_conditions_contradict_each_other() -> None:
    def prefer(name: str, weight: float, **asked: Any) -> PlanningRule:
        return PlanningRule(name, 0, when(**asked), RuleAction.prefer("a", weight=weight))

    assert kinds(prefer("for", 1.0, n=1), prefer("against", -1.0, n=1)) == [("contradicts", "against", "for")]
    assert kinds(prefer("for", 1.0), prefer("against", -2.0, n=1)) == []
    assert kinds(prefer("for", 1.0, n=1), prefer("more", 2.0, n=1)) == []


def test_everything_that_is_wrong_with_one_rule_is_said() -> None:
    asked = [RuleCondition("q", "regex", "("), RuleCondition("q", "exists", 1), *when(n=1), *when(n=2), *when(n=3)]
    found = [finding.kind for finding in check_rules([PlanningRule("r", 0, asked, RuleAction("a"))])]
    assert found == ["unusable"] * 2 + ["unreachable"] * 3


def test_everything_that_is_wrong_with_one_rule_of_a_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(
        """[[rule]]
name = ""
priority = "high"
colour = "red"
when = { q = { regex = "(", is = 1 }, x = { exists = "maybe" } }
restrict = []
options = { k = 2 }
strategy = "all"
""",
        encoding="utf-8",
    )
    with pytest.raises(RuleFileError) as raised:
        load_rules(path)
    found = [(problem.line, problem.message.partition(":")[0]) for problem in raised.value.problems]
    assert sorted(found) == [
        (2, "name"),
        (3, "priority"),
        (
            4,
            "'colour' is no key of a rule; there are description, fallbacks, forbid, name, options, pin, prefer, "
            "priority, restrict, strategy, weight, when",
        ),
        (5, "when"),
        (5, "when"),
        (5, "when"),
        (6, "restrict"),
        (7, "options"),
        (8, "strategy"),
        (8, "strategy"),
    ]


def test_tools_that_are_not_there_are_said_where_it_is_known_which_are() -> None:
    rules = [PlanningRule("r", 0, when(n=1), RuleAction("gone", {}, ["a", "a>=2", "a>=1"]))]
    assert kinds(*rules) == []
    found = check_rules(rules, {"a": ToolMetadata(name="a", version="1.0")})
    assert [finding.message for finding in found] == [
        "tool gone: it is not registered",
        "tool a>=2: no version of it that can be chosen satisfies >=2",
    ]


scalars = st.sampled_from(["a", "b", 0, 1, 2, True, None])
conditions = st.one_of(
    st.builds(RuleCondition, st.sampled_from("xy"), st.just("equals"), scalars),
    st.builds(RuleCondition, st.sampled_from("xy"), st.sampled_from(["gt", "lt"]), st.sampled_from([0, 1, 2])),
    st.builds(RuleCondition, st.sampled_from("xy"), st.just("exists"), st.sampled_from([None, False])),
    st.builds(RuleCondition, st.sampled_from("xy"), st.just("keywords"), st.sampled_from([["a"], ["a", "b"], ["B"]])),
)
some_rules = st.lists(
    st.builds(
        lambda found, tool, priority: (found, tool, priority),
        st.lists(conditions, max_size=2),
        st.sampled_from(["a", "b"]),
        st.integers(0, 1),
    ),
    max_size=4,
)


@given(some_rules, st.lists(st.fixed_dictionaries({}, optional={"x": scalars, "y": scalars}), min_size=1, max_size=6))
def test_what_is_said_to_be_unreachable_or_shadowed_never_decides(found: Any, requests: list[Any]) -> None:
    rules = [PlanningRule(f"r{n}", priority, some, RuleAction(tool)) for n, (some, tool, priority) in enumerate(found)]
    silent = {rules[finding.rule].name for finding in check_rules(rules)}
    planner = RuleBasedPlanner(rules)
    tools = {name: ToolMetadata(name=name) for name in "ab"}
    for request in requests:
        assert planner.decide(request, tools).metadata.get("matched_rule") not in silent


@given(
    st.lists(conditions, max_size=3), st.lists(conditions, max_size=2), st.dictionaries(st.sampled_from("xy"), scalars)
)
@example([RuleCondition("x", "equals", True)], [RuleCondition("x", "equals", 1)], {"x": True})
def test_where_conditions_follow_from_others_they_hold_with_them(these: Any, those: Any, request: Any) -> None:
    def holds(some: Any) -> bool:
        planner = RuleBasedPlanner([PlanningRule("r", 0, some, RuleAction("b"))])
        tools = {name: ToolMetadata(name=name) for name in "ab"}
        return planner.decide(request, tools).selected_tool == "b"

    if implies(these, those) and holds(these):
        assert holds(those)


def test_ten_thousand_rules_are_checked_in_seconds() -> None:
    rules = [create_type_based_rule(f"k{n}", "t") for n in range(7000)]
    rules += [create_keyword_based_rule([f"word{n}", f"other{n}"], "query", "t") for n in range(3000)]
    start = time.process_time()
    assert check_rules(rules) == []
    assert time.process_time() - start < 10
