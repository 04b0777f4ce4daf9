"""What one decision of the rule planner takes, by the number of rules and of tools, and what adding a rule takes.

    python benchmarks/planning/rules.py

Thread CPU time, garbage collection on; each figure is the median over decisions, in microseconds.
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
    view = tools(1000)
    empty = []
    for _ in range(2000):
        began = thread_time_ns()
        empty.append((thread_time_ns() - began) / 1000)
    clock = statistics.median(empty)
    print(f"1,000 tools; µs less the clock's {clock:.2f}; p50 of 2,000 different requests unless it says another\n")
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
