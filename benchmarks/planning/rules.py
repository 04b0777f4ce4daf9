"""What one decision of the rule planner takes, by the number of rules and of tools, and what adding a rule takes.

    python benchmarks/planning/rules.py [WORDS [ROUNDS]]

Thread CPU time, garbage collection on; each figure is the median over decisions, in microseconds. First a table of
kinds of rules, where exactly one rule matches each request and no two requests are the same: `await planner.plan(...)`
with the first 10 of 10,000 rules and with all, in turn, the least of several rounds, and its marks. WORDS: only kinds
with these in their name. Then mixes, in which several rules may match or have to be asked.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from time import thread_time_ns
from types import MappingProxyType
from typing import Any, NamedTuple

from steer_llm_sdk.orchestration.planning import (
    PlanningRule,
    RuleAction,
    RuleBasedPlanner,
    RuleCondition,
    ToolMetadata,
    create_keyword_based_rule,
    create_type_based_rule,
)
from steer_llm_sdk.orchestration.planning.planner import Outcome, PlanRequest

BUDGET = PlanRequest(budget={"cost_usd": 1.0})
SIZES = (10, 100, 1_000, 10_000)
LETTERS = "eeeeeettttaaaaooooiiinnnssshhrrddllucmfwypvbgkjqxz"
"""About as often as in English."""


def tools(count: int) -> MappingProxyType[str, ToolMetadata]:
    return MappingProxyType({f"t{n}": ToolMetadata(name=f"t{n}", capabilities=[f"type{n % 50}"]) for n in range(count)})


def one_rule_a_type(count: int, chance: random.Random) -> tuple[list[PlanningRule], Callable[[], Any]]:
    rules = [create_type_based_rule(f"k{n}", f"t{n % 1000}") for n in range(count)]
    return rules, lambda: {"type": f"k{chance.randrange(count)}", "query": "hello"}


def mixed(count: int, chance: random.Random) -> tuple[list[PlanningRule], Callable[[], Any]]:
    """One equality on 200 types, and often more: tenant (500), region, language, ranges of tokens."""
    rules = []
    for n in range(count):
        conditions = [RuleCondition("type", "equals", f"k{chance.randrange(200)}")]
        if chance.random() < 0.7:
            conditions.append(RuleCondition("tenant", "equals", f"c{chance.randrange(500)}"))
        if chance.random() < 0.5:
            conditions.append(RuleCondition("region", "equals", chance.choice(["eu", "us", "ap"])))
        if chance.random() < 0.5:
            conditions.append(RuleCondition("language", "equals", chance.choice(["de", "en", "fr", "ja"])))
        conditions.append(RuleCondition("tokens", "gt", chance.randrange(4000)))
        rules.append(PlanningRule(f"r{n}", chance.randrange(100), conditions, RuleAction(f"t{n % 1000}")))

    def request() -> Any:
        return {
            "type": f"k{chance.randrange(200)}",
            "tenant": f"c{chance.randrange(500)}",
            "region": chance.choice(["eu", "us", "ap"]),
            "language": chance.choice(["de", "en", "fr", "ja"]),
            "tokens": chance.randrange(4000),
        }

    return rules, request


def keywords(count: int, chance: random.Random) -> tuple[list[PlanningRule], Callable[[], Any]]:
    def word() -> str:
        return "".join(chance.choices(LETTERS, k=chance.randint(4, 10)))

    words = [[word(), word()] for _ in range(count)]
    rules = [create_keyword_based_rule(pair, "query", f"t{n % 1000}") for n, pair in enumerate(words)]

    def request() -> Any:
        text = " ".join([*(word() for _ in range(8)), chance.choice(words)[0], *(word() for _ in range(8))])
        return {"query": text}

    return rules, request


def word(chance: random.Random, letters: int) -> str:
    return "".join(chance.choices(LETTERS, k=letters))


VOCABULARY = [word(random.Random(n), 3 + n % 7) for n in range(3000)]


class Kind(NamedTuple):
    """What rules ask for. `conditions` of rule n, which the request that is made with the same n meets, and no other
    does; both may draw on `words`, twelve letters each, two a rule."""

    name: str
    conditions: Callable[[int, list[str]], list[RuleCondition]]
    request: Callable[[int, list[str], random.Random], dict[str, Any]]


def _is(path: str, value: Any) -> RuleCondition:
    return RuleCondition(path, "equals", value)


def _between(n: int) -> list[RuleCondition]:
    return [RuleCondition("tokens", "gt", 100 * n), RuleCondition("tokens", "lt", 100 * n + 100)]


def _text(chance: random.Random, *inside: str) -> str:
    """Fourteen of 3,000 words of three to nine letters, and what is inside."""
    return " ".join(chance.choices(VOCABULARY, k=14) + list(inside))


KINDS = (
    Kind("a type", lambda n, w: [_is("type", f"k{n:05}")], lambda n, w, c: {"type": f"k{n:05}", "query": "hello"}),
    Kind("a tenant", lambda n, w: [_is("tenant", f"c{n:05}")], lambda n, w, c: {"type": "chat", "tenant": f"c{n:05}"}),
    Kind(
        "a value deeper in",
        lambda n, w: [_is("options.project.id", n)],
        lambda n, w, c: {"options": {"project": {"id": n}}},
    ),
    Kind(
        "type of 100, tenant of 100",
        lambda n, w: [_is("type", f"k{n % 100:05}"), _is("tenant", f"c{n // 100:05}")],
        lambda n, w, c: {"type": f"k{n % 100:05}", "tenant": f"c{n // 100:05}"},
    ),
    Kind(
        "type, limit",
        lambda n, w: [_is("type", f"k{n:05}"), RuleCondition("tokens", "gt", n % 100)],
        lambda n, w, c: {"type": f"k{n:05}", "tokens": 100 + c.randrange(9999)},
    ),
    Kind(
        "type, tenant, limit",
        lambda n, w: [_is("type", f"k{n:05}"), _is("tenant", f"c{n:05}"), RuleCondition("tokens", "gt", n % 100)],
        lambda n, w, c: {"type": f"k{n:05}", "tenant": f"c{n:05}", "tokens": 100 + c.randrange(9999)},
    ),
    Kind(
        "one of disjoint ranges",
        lambda n, w: _between(n),
        lambda n, w, c: {"tokens": 100 * n + c.randint(1, 99), "query": "hello"},
    ),
    Kind(
        "range of 100, type of 100",
        lambda n, w: [_is("type", f"k{n % 100:05}"), *_between(n // 100)],
        lambda n, w, c: {"type": f"k{n % 100:05}", "tokens": 100 * (n // 100) + c.randint(1, 99)},
    ),
    Kind(
        "two keywords",
        lambda n, w: [RuleCondition("query", "keywords", w[2 * n : 2 * n + 2])],
        lambda n, w, c: {"query": _text(c, w[2 * n], str(c.randrange(2000)))},
    ),
    Kind(
        "two keywords, numbered",
        lambda n, w: [RuleCondition("query", "keywords", [f"word{n:05}", f"term{n:05}"])],
        lambda n, w, c: {"query": _text(c, f"word{n:05}", str(c.randrange(2000)))},
    ),
    Kind(
        "two keywords, words never seen before",
        lambda n, w: [RuleCondition("query", "keywords", w[2 * n : 2 * n + 2])],
        lambda n, w, c: {
            "query": " ".join([word(c, 3 + i % 7) for i in range(14)] + [w[2 * n], str(c.randrange(2000))])
        },
    ),
    Kind(
        "two short keywords",
        lambda n, w: [RuleCondition("query", "keywords", [f"{w[2 * n][:3]}{n}", f"{w[2 * n + 1][:3]}{n}"])],
        lambda n, w, c: {"query": _text(c, f"{w[2 * n][:3]}{n}", str(c.randrange(2000)))},
    ),
    Kind(
        "a pattern with a word",
        lambda n, w: [RuleCondition("query", "regex", rf"(?i)\b{w[n]}-\d+")],
        lambda n, w, c: {"query": _text(c, f"{w[n]}-{c.randrange(2000)}")},
    ),
    Kind(
        "a text contained",
        lambda n, w: [RuleCondition("query", "contains", w[n])],
        lambda n, w, c: {"query": _text(c, w[n], str(c.randrange(2000)))},
    ),
    Kind(
        "a capability in a list",
        lambda n, w: [RuleCondition("capabilities", "contains", f"can{n:05}")],
        lambda n, w, c: {"capabilities": ["text", f"can{n:05}"], "query": "hello"},
    ),
    Kind(
        "has a field",
        lambda n, w: [RuleCondition(f"f{n:05}", "exists")],
        lambda n, w, c: {f"f{n:05}": 1, "query": "hello"},
    ),
    Kind(
        "type, keyword",
        lambda n, w: [_is("type", f"k{n:05}"), RuleCondition("query", "keywords", [w[n]])],
        lambda n, w, c: {"type": f"k{n:05}", "query": _text(c, w[n], str(c.randrange(2000)))},
    ),
    Kind(
        "type of 100, keyword",
        lambda n, w: [_is("type", f"k{n % 100:05}"), RuleCondition("query", "keywords", [w[n]])],
        lambda n, w, c: {"type": f"k{n % 100:05}", "query": _text(c, w[n], str(c.randrange(2000)))},
    ),
    Kind(
        "of each kind one in turn",
        lambda n, w: MIXED[n % len(MIXED)].conditions(n, w),
        lambda n, w, c: MIXED[n % len(MIXED)].request(n, w, c),
    ),
)
MIXED = [
    kind
    for kind in KINDS
    if kind.name in ("a type", "a tenant", "one of disjoint ranges", "two keywords", "has a field")
]


def one_matches(kind: Kind, sizes: Sequence[int]) -> dict[int, tuple[RuleBasedPlanner, list[Any]]]:
    """By the number of rules: a planner with the first of them, and 2,000 requests, each met by one of these."""
    chance = random.Random(7)
    words = [word(chance, 12) for _ in range(2 * max(sizes))]
    made = {}
    for size in sizes:
        rules = [
            PlanningRule(f"r{n:05}", n % 7, kind.conditions(n, words), RuleAction(f"t{n % 10}")) for n in range(size)
        ]
        made[size] = RuleBasedPlanner(rules), [kind.request(chance.randrange(size), words, chance) for _ in range(2000)]
    return made


def measured(rounds: int = 15, only: str = "") -> Iterator[tuple[str, float, float, float]]:
    """Each kind of rules: its name, and the least p50 with 10 rules and with 10,000, and how often more that is."""
    view = tools(10)
    for kind in KINDS:
        if only not in kind.name:
            continue
        made = one_matches(kind, (10, 10_000))
        for planner, requests in made.values():
            assert all(planner.decide(request, view).metadata["selection_method"] == "rule" for request in requests)
        least = dict.fromkeys(made, float("inf"))
        for _ in range(rounds):
            for size, (planner, requests) in made.items():
                least[size] = min(least[size], quantile(plans(planner, view, requests), 0.5))
        yield kind.name, least[10], least[10_000], least[10_000] / least[10]


def marks() -> list[tuple[str, float, float]]:
    """What was measured, its value, and the mark that it is not to be above."""
    found = []
    for name, _, most, ratio in measured():
        found += [(f"10,000 rules ({name}): µs p50", most, 50.0), (f"10,000 rules / 10 ({name})", ratio, 1.2)]
    return found


def plans(planner: RuleBasedPlanner, view: Any, requests: list[Any]) -> list[float]:
    async def measured() -> list[float]:
        taken = []
        for request in requests:
            context = PlanRequest()
            began = thread_time_ns()
            await planner.plan(request, view, context)
            taken.append((thread_time_ns() - began) / 1000)
        return taken

    return asyncio.run(measured())


MIXES = {"a type for each rule": one_rule_a_type, "equalities and ranges": mixed, "two keywords, 120 letters": keywords}


def decisions(planner: RuleBasedPlanner, view: Any, requests: list[Any], context: PlanRequest | None) -> list[float]:
    taken = []
    for request in requests:
        began = thread_time_ns()
        planner.decide(request, view, context)
        taken.append((thread_time_ns() - began) / 1000)
    return taken


def whole_plans(planner: RuleBasedPlanner, view: Any, requests: list[Any]) -> list[float]:
    """`await planner.plan(...)`, with what is known of earlier runs growing meanwhile."""

    async def measured() -> list[float]:
        taken = []
        for request in requests:
            began = thread_time_ns()
            decision = await planner.plan(request, view, PlanRequest())
            taken.append((thread_time_ns() - began) / 1000)
            planner.observe(request, decision, (Outcome(decision.selected_tool, "1.0.0", True, 0.01, 100.0),))
        return taken

    return asyncio.run(measured())


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def main() -> None:
    only, rounds = (*sys.argv[1:], "")[0], int((*sys.argv[2:], "15")[0])
    print(f"{'one rule matches: µs p50 by the number of rules':55} {10:>6} {10_000:>6,}  ratio (marks: 50 µs, 1.2)")
    for told, ten, most, ratio in measured(rounds, only):
        met = "ok    " if ratio <= 1.2 and most <= 50 else "MISSED"
        print(f"{met} {told:48} {ten:6.1f} {most:6.1f} {ratio:6.2f}")
    if only:
        return
    view = tools(1000)
    empty = []
    for _ in range(2000):
        began = thread_time_ns()
        empty.append((thread_time_ns() - began) / 1000)
    clock = statistics.median(empty)
    print(f"\n1,000 tools; µs less the clock's {clock:.2f}; p50 of 2,000 different requests unless it says another\n")
    print(f"{'rules':>28} " + " ".join(f"{size:>8,}" for size in SIZES) + "   10,000/10")
    for name, mix in MIXES.items():
        planners = {}
        adding = {}
        for size in SIZES:
            rules, request = mix(size, random.Random(size))
            began = thread_time_ns()
            planners[size] = (RuleBasedPlanner(rules), [request() for _ in range(2000)])
            adding[size] = (thread_time_ns() - began) / 1000 / size
        print(name)
        rows = {
            "one request, again": lambda planner, requests: decisions(planner, view, requests[:1] * 2000, None),
            "decide": lambda planner, requests: decisions(planner, view, requests, None),
            "decide, a cost budget": lambda planner, requests: decisions(planner, view, requests, BUDGET),
            "await plan, learning": lambda planner, requests: whole_plans(planner, view, requests),
        }
        for told, measure in rows.items():
            taken = {}
            for size, (planner, requests) in planners.items():
                measure(planner, requests[:500])
                taken[size] = measure(planner, requests)
            p50 = {size: quantile(found, 0.5) - clock for size, found in taken.items()}
            ratio = p50[SIZES[-1]] / p50[SIZES[0]]
            print(f"{told:>28} " + " ".join(f"{p50[size]:8.1f}" for size in SIZES) + f"   {ratio:.2f}")
            p99 = [quantile(found, 0.99) - clock for found in taken.values()]
            print(f"{'p99':>28} " + " ".join(f"{found:8.1f}" for found in p99))
        print(f"{'to add one rule':>28} " + " ".join(f"{adding[size]:8.1f}" for size in SIZES))


if __name__ == "__main__":
    main()
