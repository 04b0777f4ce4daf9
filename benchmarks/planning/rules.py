"""What one decision of the rule planner takes, by the number of rules and of tools, and what adding a rule takes.

    python benchmarks/planning/rules.py

Thread CPU time, garbage collection on; each figure is the median over decisions, in microseconds. First the two marks,
where exactly one rule matches each request and no two requests are the same: `await planner.plan(...)`, the least of
several rounds. Then mixes, in which several rules may match or have to be asked.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Callable
from time import thread_time_ns
from types import MappingProxyType
from typing import Any

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


def one_matches(kind: str, count: int) -> tuple[RuleBasedPlanner, list[Any]]:
    """Rules of which one matches each of 2,000 requests, which look the same for any `count`."""
    chance = random.Random(count)
    words = ["".join(chance.choices(LETTERS, k=12)) for _ in range(2 * count)]
    rules, requests = [], []
    for n in range(count):
        conditions = [RuleCondition("query", "keywords", words[2 * n : 2 * n + 2])]
        if kind != "two keywords":
            conditions = [RuleCondition("type", "equals", f"k{n:05}")]
        if kind == "type, tenant, range":
            conditions += [RuleCondition("tenant", "equals", f"c{n:05}"), RuleCondition("tokens", "gt", n % 100)]
        rules.append(PlanningRule(f"r{n:05}", n % 7, conditions, RuleAction(f"t{n % 10}")))
    for n in range(2000):
        of = chance.randrange(count)
        text = " ".join(["".join(chance.choices(LETTERS, k=6)) for _ in range(14)] + [words[2 * of] + f" {n}"])
        requests.append({"type": f"k{of:05}", "tenant": f"c{of:05}", "tokens": 100 + n, "query": text})
    return RuleBasedPlanner(rules), requests


def marks(rounds: int = 15) -> list[tuple[str, float, float]]:
    """What was measured, its value, and the mark that it is not to be above."""
    view, found = tools(10), []
    for kind in ("a type", "type, tenant, range", "two keywords"):
        made = {size: one_matches(kind, size) for size in (10, 10_000)}
        for planner, requests in made.values():
            assert all(planner.decide(request, view).metadata["selection_method"] == "rule" for request in requests)
        least = dict.fromkeys(made, float("inf"))
        for _ in range(rounds):
            for size, (planner, requests) in made.items():
                least[size] = min(least[size], quantile(plans(planner, view, requests), 0.5))
        told = f"one rule of 10,000 matches ({kind}), all requests different"
        found.append((f"{told}: µs p50", least[10_000], 50.0))
        if kind == "a type":
            found.append((f"{told}: 10,000 rules / 10", least[10_000] / least[10], 1.2))
        else:
            print(f"  {kind}: {least[10]:.1f} µs with 10 rules, {least[10_000]:.1f} with 10,000")
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
    for told, value, limit in marks():
        print(f"{'ok    ' if value <= limit else 'MISSED'} {told}: {value:.2f} (mark <= {limit:g})")
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
