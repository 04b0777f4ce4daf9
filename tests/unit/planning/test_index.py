"""The guard index finds exactly what asking every rule would find."""

from __future__ import annotations

import random
import re
import unicodedata
from math import inf, nextafter
from typing import Any

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_llm_sdk.orchestration.planning import PlanningRule, RuleAction, RuleBasedPlanner, RuleCondition, ToolMetadata
from steer_llm_sdk.orchestration.planning import _needles as needles
from steer_llm_sdk.orchestration.planning._compiled import CompiledRule
from steer_llm_sdk.orchestration.planning._conditions import reader
from steer_llm_sdk.orchestration.planning._index import RuleIndex
from steer_llm_sdk.orchestration.planning._search import reason_of

WORDS = ["urgent", "asap", "ur", "a", "straße", "ÜBER", "日本", "plan b", "kelvin", "K\u212ay"]
VALUES: list[Any] = ["a", "b", "", 0, 1, True, False, None, 1.5, "1", ["a"], {"a": 1}]
PATHS = ["type", "tenant", "n", "deep.type"]
PATTERNS = ["urgent|asap", "(?i)URG.nt", "^a", "b+c", "(x|y)z", "u[r]gent", r"\bplan\b", "colou?r", "(", "a{2}", ""]


def compiled(conditions: list[RuleCondition], number: int, priority: int = 0) -> CompiledRule:
    action = RuleAction("t")
    return CompiledRule.of(PlanningRule(f"r{number}", priority, conditions, action), action, number)


def outcomes(rules: Any, request: Any) -> list[tuple[tuple[int, int], str | None]]:
    """The rules that match, in order, and those that cannot be asked, with the reason."""
    found: list[tuple[tuple[int, int], str | None]] = []
    for rule in rules:
        try:
            if rule.holds(request):
                found.append((rule.order, None))
        except Exception as error:
            found.append((rule.order, reason_of(error)))
    return found


NUMBERS: list[Any] = [
    0,
    1,
    2,
    3,
    7,
    8,
    100,
    -5,
    0.1,
    0.25,
    1e-9,
    1e9,
    2**52,
    2**53 + 1,
    -(2.0**52),
    1e300,
    float("inf"),
]
NOT_NUMBERS: list[Any] = [True, None, "5", [], float("nan")]


def conditions_of_a_rule(chance: random.Random) -> list[RuleCondition]:
    found = [a_condition(chance) for _ in range(chance.choice([0, 1, 1, 2, 3]))]
    if chance.random() < 0.4:
        path = chance.choice(["n", "n", "m"])
        low, high = chance.choice(NUMBERS), chance.choice([*NUMBERS, *NOT_NUMBERS])
        found += [RuleCondition(path, "gt", low), RuleCondition(chance.choice([path, path, "n"]), "lt", high)]
        chance.shuffle(found)
    return found


def a_condition(chance: random.Random) -> RuleCondition:
    kind = chance.choice(["equals"] * 5 + ["keywords"] * 3 + ["regex"] * 2 + ["gt", "exists", "contains"])
    path = chance.choice(PATHS)
    if kind == "keywords":
        return RuleCondition(chance.choice(["query", "tags"]), kind, chance.sample(WORDS, chance.randint(1, 3)))
    if kind == "regex":
        return RuleCondition(chance.choice(["query", "tags"]), kind, chance.choice(PATTERNS))
    if kind == "gt":
        return RuleCondition("n", kind, chance.choice([0, 1, "a"]))
    if kind == "contains":
        return RuleCondition(chance.choice(["query", "tags"]), kind, chance.choice(WORDS))
    return RuleCondition(path, kind, chance.choice(VALUES if kind == "equals" else [None, None, False]))


def a_text(chance: random.Random) -> Any:
    words = [chance.choice([word, word.upper(), word.lower(), word[:-1], "abbc", "xz"]) for word in WORDS]
    return chance.choice([" ", "", "x"]).join(chance.sample(words, chance.randint(0, 3)))


def a_request(chance: random.Random) -> Any:
    request = {path: chance.choice(VALUES) for path in ("type", "tenant", "n") if chance.random() < 0.8}
    request["deep"] = {"type": chance.choice(VALUES)}
    for path in ("n", "m"):
        if chance.random() < 0.6:
            request[path] = chance.choice([chance.choice(NUMBERS), chance.choice(NUMBERS) + 0.5, *NOT_NUMBERS])
    request["query"] = chance.choice([a_text(chance), a_text(chance), a_text(chance), 5, None, {"a": 1}])
    request["tags"] = [a_text(chance) for _ in range(chance.randint(0, 3))] + chance.choice([[], [1], [None]])
    if chance.random() < 0.2:
        request["tags"] = chance.choice([dict.fromkeys(request["tags"], 1), {1: 2}, 5, tuple(request["tags"])])
    return chance.choice([request, request, request, a_text(chance), None, [request]])


def test_the_index_agrees_with_asking_every_rule_in_ten_thousand_cases() -> None:
    chance = random.Random(7)
    cases = matches = 0
    for _ in range(200):
        index: RuleIndex[CompiledRule] = RuleIndex(reader)
        rules: list[CompiledRule] = []
        for number in range(chance.choice([3, 10, 40, 120])):
            rule = compiled(conditions_of_a_rule(chance), number, chance.randint(-2, 2))
            index.add(rule)
            rules.append(rule)
        rules.sort(key=lambda rule: rule.order)
        for _ in range(55):
            request = a_request(chance)
            expected = outcomes(rules, request)
            assert outcomes(index.candidates(request), request) == expected
            cases, matches = cases + 1, matches + len(expected)
    assert cases >= 10_000
    assert matches > cases


def test_rules_may_be_added_between_two_requests() -> None:
    chance = random.Random(11)
    index: RuleIndex[CompiledRule] = RuleIndex(reader)
    rules: list[CompiledRule] = []
    for number in range(400):
        rule = compiled(conditions_of_a_rule(chance), number, chance.randint(-2, 2))
        index.add(rule)
        rules.append(rule)
        request = a_request(chance)
        expected = outcomes(sorted(rules, key=lambda rule: rule.order), request)
        assert outcomes(index.candidates(request), request) == expected


scalars = st.sampled_from(["a", "b", 0, 1, True, False, None, 1.5])
conditions = st.one_of(
    st.builds(RuleCondition, st.sampled_from(["x", "y", "z"]), st.just("equals"), scalars),
    st.builds(RuleCondition, st.just("q"), st.just("keywords"), st.lists(st.text("aAbßs", min_size=1), min_size=1)),
    st.builds(RuleCondition, st.just("q"), st.just("regex"), st.text("ab|()[]*+?.\\dQE{}1^$,:i", max_size=8)),
    st.builds(RuleCondition, st.just("x"), st.just("gt"), scalars),
    st.builds(RuleCondition, st.sampled_from(["x", "q"]), st.just("exists"), st.booleans()),
    st.builds(RuleCondition, st.just("q"), st.just("contains"), st.text("aAbßs", min_size=1, max_size=2)),
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "x": scalars | st.lists(scalars, max_size=2),
        "y": scalars,
        "z": scalars,
        "q": st.text("aAbBßsS1", max_size=8) | st.lists(st.text("ab1", max_size=4), max_size=2) | scalars,
    },
)


@settings(max_examples=100)
@given(st.lists(st.lists(conditions, max_size=3), max_size=30), st.lists(requests, min_size=1, max_size=5))
def test_the_index_agrees_with_asking_every_rule(all_conditions: list[list[RuleCondition]], asked: list[Any]) -> None:
    rules = [compiled(some, number) for number, some in enumerate(all_conditions)]
    index: RuleIndex[CompiledRule] = RuleIndex(reader)
    for rule in rules:
        index.add(rule)
    for request in asked:
        assert outcomes(index.candidates(request), request) == outcomes(rules, request)


def test_rules_that_ask_for_values_at_many_combinations_of_paths_are_found() -> None:
    chance = random.Random(5)
    index: RuleIndex[CompiledRule] = RuleIndex(reader)
    rules: list[CompiledRule] = []
    for number in range(300):
        paths = chance.sample("abcdef", chance.randint(1, 4))
        limits = [RuleCondition("n", "gt", 1), RuleCondition("n", "lt", chance.choice([2, 9, 99]))]
        asks = [RuleCondition(path, "equals", chance.randint(0, 1)) for path in paths]
        rules.append(compiled([*asks, *(limits if chance.random() < 0.3 else [])], number))
        index.add(rules[-1])
        request = {path: chance.choice([0, 1, 1, True, [1], Equals(1)]) for path in "abcdef" if chance.random() < 0.9}
        request["n"] = chance.choice([1.5, 5, 50, "x", None])
        assert outcomes(index.candidates(request), request) == outcomes(rules, request)


class Equals:
    """Equals one value, and hashes like no other."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return bool(self.value == other)

    __hash__ = None  # type: ignore[assignment]


def test_an_object_that_equals_what_it_likes_is_shown_to_every_rule_that_asks_for_a_value() -> None:
    rules = [compiled([RuleCondition("type", "equals", f"t{number}")], number) for number in range(50)]
    index: RuleIndex[CompiledRule] = RuleIndex(reader)
    for rule in rules:
        index.add(rule)
    request = {"type": Equals("t7")}
    assert outcomes(index.candidates(request), request) == outcomes(rules, request) == [((0, 7), None)]


def test_one_type_of_ten_thousand_is_found_without_looking_at_the_others() -> None:
    index: RuleIndex[CompiledRule] = RuleIndex(reader)
    for number in range(10_000):
        index.add(compiled([RuleCondition("type", "equals", f"t{number}")], number))
    assert [rule.order for rule in index.candidates({"type": "t77"})] == [(0, 77)]
    assert list(index.candidates({"type": "none"})) == []
    assert list(index.candidates({})) == []


def test_of_hundreds_of_words_with_and_without_blanks_exactly_those_that_occur_are_found() -> None:
    chance = random.Random(3)

    def text(most: int) -> str:
        return "".join(chance.choices("ab \t\u00a0\u2028x", k=chance.randint(1, most)))

    index: RuleIndex[CompiledRule] = RuleIndex(reader)
    rules = [compiled([RuleCondition("query", "keywords", [text(6), text(9)])], number) for number in range(300)]
    for rule in rules:
        index.add(rule)
    for _ in range(300):
        request = {"query": text(40)}
        wanted = [rule.order for rule in rules if rule.holds(request)]
        assert [rule.order for rule in index.candidates(request) if rule.holds(request)] == wanted


numbers = st.integers(-20, 20) | st.floats(allow_nan=False) | st.sampled_from([2**52, 2**53, 2.0**-30, 1 / 3])


@settings(max_examples=300)
@given(
    st.lists(st.tuples(numbers, numbers, st.sampled_from([None, None, "a", "b"])), min_size=5, max_size=40),
    st.lists(numbers | st.sampled_from([True, None, "a", float("nan")]), max_size=5),
)
def test_a_number_is_found_in_every_range_that_it_is_in(ranges: list[tuple[Any, Any, Any]], asked: list[Any]) -> None:
    index: RuleIndex[CompiledRule] = RuleIndex(reader)
    rules = []
    for number, (low, high, kind) in enumerate(ranges):
        limits = [RuleCondition("n", "gt", low), RuleCondition("n", "lt", high)]
        typed = [RuleCondition("type", "equals", kind)] if kind else []
        rules.append(compiled([*typed, *limits], number))
        index.add(rules[-1])
    # The ends themselves, and what is next to them.
    ends = [end for low, high, _ in ranges for end in (low, high)]
    beside = [nextafter(end, to) for end in ends for to in (-inf, inf)]
    for value in [*asked, *ends, *beside]:
        for request in ({"n": value, "type": "a"}, {"n": value, "type": ["a"]}):
            assert outcomes(index.candidates(request), request) == outcomes(rules, request)


def test_a_word_that_has_nothing_in_it_is_looked_into_again_after_a_rule_was_added() -> None:
    index: RuleIndex[CompiledRule] = RuleIndex(reader)
    for number in range(100):
        index.add(compiled([RuleCondition("query", "keywords", [f"word{number:05}"])], number))
    request = {"query": "an unremarkable text"}
    for _ in range(2):
        assert list(index.candidates(request)) == []
    index.add(compiled([RuleCondition("query", "keywords", ["remarkable"])], 100))
    index.add(compiled([RuleCondition("query", "keywords", ["remarkable text"])], 101))
    for _ in range(2):
        assert [rule.order for rule in index.candidates(request)] == [(0, 100), (0, 101)]
        assert [rule.order for rule in index.candidates({"query": "an unremarkable picture"})] == [(0, 100)]


def test_more_words_of_texts_than_are_remembered_are_looked_into_all_the_same() -> None:
    index: RuleIndex[CompiledRule] = RuleIndex(reader)
    for number in range(80):
        index.add(compiled([RuleCondition("query", "keywords", [f"word{number:05}"])], number))
    for number in range(5000):
        request = {"query": f"a{number} WORD{number % 80:05} b{number} {'x' * 100}{number}"}
        assert [rule.order for rule in index.candidates(request)] == [(0, number % 80)]


@pytest.mark.parametrize(
    ("conditions", "request_of"),
    [
        (lambda n: [("tokens", "gt", 10 * n), ("tokens", "lt", 10 * n + 10)], lambda n: {"tokens": 10 * n + 5}),
        (lambda n: [("type", "equals", f"k{n % 50}"), ("tenant", "equals", n // 50)], None),
        (
            lambda n: [("type", "equals", n % 5), ("query", "keywords", [f"word{n:04}"])],
            lambda n: {"type": n % 5, "query": f"a word{n:04}"},
        ),
        (lambda n: [("tools", "contains", f"can{n}")], lambda n: {"tools": ["talk", f"can{n}"]}),
        (lambda n: [("tools", "contains", f"can{n:04}")], lambda n: {"tools": f"it can{n:04}"}),
        (lambda n: [(f"f{n}", "exists", None)], lambda n: {f"f{n}": 1, "other": 2}),
        (lambda n: [("query", "regex", rf"\bword{n:04}\d")], lambda n: {"query": f"a word{n:04}7"}),
    ],
)
def test_one_rule_of_two_thousand_is_found_without_looking_at_more_than_few_others(
    conditions: Any, request_of: Any
) -> None:
    request_of = request_of or (lambda n: {"type": f"k{n % 50}", "tenant": n // 50})
    index: RuleIndex[CompiledRule] = RuleIndex(reader)
    for number in range(2000):
        index.add(compiled([RuleCondition(*condition) for condition in conditions(number)], number))
    for number in (0, 77, 1999):
        found = list(index.candidates(request_of(number)))
        assert [rule.order for rule in found if rule.holds(request_of(number))] == [(0, number)]
        assert len(found) <= 2


def test_a_rule_is_at_hand_however_many_there_are() -> None:
    index: RuleIndex[CompiledRule] = RuleIndex(reader)
    for number in range(200):
        index.add(compiled([RuleCondition("type", "equals", f"t{number}")], number))
        if number >= 5:
            assert index.key == "type"
            found = [index.certain.get(f"t{of}") for of in range(number + 1)]
            assert [rule and rule.order for rule in found] == [(0, of) for of in range(number + 1)]


def test_a_word_of_ten_thousand_is_found_without_looking_at_the_others() -> None:
    index: RuleIndex[CompiledRule] = RuleIndex(reader)
    for number in range(10_000):
        index.add(compiled([RuleCondition("query", "keywords", [f"word{number:05}"])], number))
    found = [rule.order for rule in index.candidates({"query": "a WORD00077 in a text"})]
    assert found == [(0, 77)]


# What a text must have


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("urgent", ("urgent",)),
        ("urgent|asap", ("urgent", "asap")),
        ("(?i:urgent|asap)", ("urgent", "asap")),
        ("(?i)Urgent", ("urgent",)),
        ("(?:a|b)|c", None),
        ("^invoice [0-9]+", ("invoice ",)),
        (r"\d+ euros?", (" euro",)),
        (r"c\+\+", ("c++",)),
        ("colou?r", ("colo",)),
        ("ab{2,3}cd", ("cd",)),
        ("ab{x", None),
        (r"\Qa|b\E", None),
        (r"\x41b", None),
        (r"\pN+ab", None),
        ("[]abc]d", ("d",)),
        ("[[:alpha:]]x", ("x",)),
        ("(abc", None),
        ("", None),
        ("a|", None),
        (".*", None),
        ("日本", ("日本",)),
        ("\U0001e900x", ("x",)),
    ],
)
def test_the_words_that_a_pattern_needs(pattern: str, found: tuple[str, ...] | None) -> None:
    assert needles.of_pattern(pattern) == found


@settings(max_examples=500)
@given(
    st.text("abAB|()[]^$*+?.\\{},-:1dwQExp ", max_size=12) | st.from_regex(r"(\(\?i\))?[ab|]{1,5}[*+?]?[a(b)]{0,5}"),
    st.text("abAB|1. ()[]{}Qx-", max_size=10),
)
def test_whatever_matches_a_pattern_has_one_of_its_words(pattern: str, text: str) -> None:
    options = re2.Options()
    options.log_errors = False
    try:
        matches = re2.compile(pattern, options).search(text) is not None
    except re2.error:
        return
    found = needles.of_pattern(pattern)
    if matches and found is not None:
        assert any(needle in text.casefold() for needle in found)


def test_letters_that_are_the_same_to_re2_are_folded_alike() -> None:
    cased = [chr(code) for code in range(0x20, 0x30000) if unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt")]
    everything = "".join(cased)
    ranges = needles._FOLDED_ALIKE
    mine = [char for char in cased if any(low <= ord(char) <= high for low, high in ranges)]
    assert len(mine) > 400
    for char in mine:
        same = re2.compile(f"(?i:{re.escape(char)})").findall(everything)
        assert {other.casefold() for other in same} == {char.casefold()}


def test_a_planner_of_many_rules_decides_as_one_that_is_built_the_other_way_round() -> None:
    tools = {f"t{number}": ToolMetadata(name=f"t{number}") for number in range(60)}
    rules = [
        PlanningRule(f"r{n}", n, [RuleCondition("type", "equals", f"k{n % 7}")], RuleAction(f"t{n}")) for n in range(60)
    ]
    one, other = RuleBasedPlanner(rules), RuleBasedPlanner(reversed(rules))
    for kind in range(8):
        request = {"type": f"k{kind}"}
        assert one.decide(request, tools) == other.decide(request, tools)


def test_a_rule_that_certainly_holds_is_the_first_of_all_that_do() -> None:
    chance = random.Random(7)
    known = 0
    for _ in range(300):
        index: RuleIndex[CompiledRule] = RuleIndex(reader)
        rules: list[CompiledRule] = []
        for number in range(chance.randint(1, 25)):
            conditions = [RuleCondition("type", "equals", chance.choice(["a", "b", "c", 1, True]))]
            if chance.random() < 0.3:
                conditions.append(
                    RuleCondition(*chance.choice([("n", "gt", 1), ("type", "equals", "b"), ("n", "exists")]))
                )
            rules.append(compiled(conditions, number, chance.randint(0, 3)))
            index.add(rules[-1])
            for request in ({"type": "a"}, {"type": "b", "n": 2}, {"type": 1}, {"type": True}, {"type": None}, {}, "a"):
                value = request.get(index.key) if isinstance(request, dict) else None
                certain = index.certain.get(value) if isinstance(value, str) else None
                if certain is not None:
                    known += 1
                    assert certain is min((r for r in rules if r.holds(request)), key=lambda rule: rule.order)
    assert known > 500


@given(
    st.lists(st.text("aKks\u017f\u212aß.|", min_size=1, max_size=3), min_size=1, max_size=3),
    st.text("aAKkSs\u017f\u212aßẞ.|", max_size=8),
)
def test_words_occur_where_re2_finds_them_in_capitals_or_not(words: list[str], text: str) -> None:
    holds = compiled([RuleCondition("query", "keywords", words)], 0).holds
    assert holds({"query": text}) == bool(re2.search(f"(?i:{'|'.join(map(re.escape, words))})", text))


def test_who_looks_while_a_rule_is_added_finds_all_that_were_there() -> None:
    """As another thread may, in the middle of it."""
    seen: list[set[int]] = []

    def found() -> set[int]:
        return {rule.order[1] for rule in index.candidates({"type": "a", "text": "urgent"})}

    def looking(path: str) -> Any:
        seen.append(found())
        return reader(path)

    index: RuleIndex[CompiledRule] = RuleIndex(looking)
    equal, contained = RuleCondition("type", "equals", "a"), RuleCondition("text", "contains", "urgent")
    for number, condition in enumerate([equal] * 5 + [contained] * 2, 1):
        index.add(compiled([condition], number))
        assert found() == set(range(1, number + 1))
    assert seen == [{1, 2, 3, 4, 5}] * 2


def test_what_is_added_while_somebody_looks_disturbs_nobody() -> None:
    added: list[str] = []

    def adding(path: str) -> Any:
        def read(request: Any) -> Any:
            if not added:
                added.append(path)
                index.add(compiled([RuleCondition("new", operator, "b")], 6))
            return reader(path)(request)

        return read

    for operator in ("equals", "contains"):
        added.clear()
        index: RuleIndex[CompiledRule] = RuleIndex(adding)
        for number in range(1, 6):
            index.add(compiled([RuleCondition("deep.type", operator, "a")], number))
        found = index.candidates({"deep": {"type": "a"}, "new": "a"})
        assert [rule.order[1] for rule in found] == [1, 2, 3, 4, 5]
        assert added == ["deep.type"]
