"""What a learning planner makes of recorded answers of real models: quality, cost, unseen tasks, one pass, a budget.

    python benchmarks/planning/run.py DATA_DIR [--only WORDS]

DATA_DIR has llmrouter_train.jsonl.gz with llmrouter_prices.json, and routellm_mmlu.jsonl.gz: lines of {task, prompt,
scores: {model: 0..1}}. The splits are fixed by their seeds below. A mark that is missed is said, and
the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import rules

from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.orchestration.planning.learned import LearnedPlanner, Neighbours, Pacing
from steer_llm_sdk.orchestration.planning.neighbours import Nearby, Prompt
from steer_llm_sdk.orchestration.planning.planner import ToolMetadata
from steer_llm_sdk.orchestration.planning.rules import PlanningRule, RuleAction, RuleCondition

SPLITS = range(5)
SHUFFLES = range(10)
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5, 3.0)
"""Cost weights to choose from, on the validation part only."""
AIM = {True: 0.147, False: 0.167}
"""The share of the best model's cost that the validation part may come to, with task types and without."""
INPUT_CHARACTERS_PER_TOKEN, OUTPUT_TOKENS = 4, 256


@dataclass(frozen=True)
class Row:
    task: str
    prompt: str
    scores: Mapping[str, float]
    costs: Mapping[str, float]

    def taught(self, typed: bool) -> dict[str, Any]:
        task = {"type": self.task} if typed else {}
        return {**task, "query": self.prompt, "scores": self.scores, "costs": self.costs}

    def asked(self, typed: bool) -> dict[str, Any]:
        return {"type": self.task, "query": self.prompt} if typed else {"query": self.prompt}


@dataclass(frozen=True)
class Mark:
    name: str
    value: float
    limit: float
    at_least: bool
    shown: str

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{'ok    ' if self.met else 'MISSED'} {self.name}: {self.shown} (mark {sign} {self.limit:g})"


def read(directory: Path, name: str, prices: Mapping[str, Mapping[str, float]]) -> list[Row]:
    with gzip.open(directory / name, "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    return [_row(raw, prices) for raw in found if not raw.get("contaminated")]


def _row(raw: Mapping[str, Any], prices: Mapping[str, Mapping[str, float]]) -> Row:
    tokens = len(raw["prompt"]) / INPUT_CHARACTERS_PER_TOKEN
    costs = {
        model: (tokens * price["input_usd_per_mtok"] + OUTPUT_TOKENS * price["output_usd_per_mtok"]) / 1e6
        for model, price in prices.items()
    }
    return Row(raw["task"], raw["prompt"], raw["scores"], costs)


def mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def models_of(rows: Sequence[Row]) -> list[str]:
    return list(rows[0].scores)


def tools_of(rows: Sequence[Row]) -> dict[str, ToolMetadata]:
    return {model: ToolMetadata(name=model) for model in models_of(rows)}


def best_single(rows: Sequence[Row]) -> str:
    return max(models_of(rows), key=lambda model: mean(row.scores[model] for row in rows))


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)
    return mixed


class Kept(Neighbours):
    """Neighbours that remember what they found: the same prompts are asked with several cost weights."""

    def near(self, prompt: Prompt, task: str, expected: Callable[[str, str], float]) -> Mapping[str, Nearby]:
        found = self.__dict__.setdefault("found", {})
        if prompt.grams not in found:
            found[prompt.grams] = super().near(prompt, task, expected)
        known: Mapping[str, Nearby] = found[prompt.grams]
        return known


def taught(rows: Sequence[Row], typed: bool, neighbours: Neighbours | None, **options: Any) -> LearnedPlanner:
    planner = LearnedPlanner(default_tool=best_single(rows), explore="off", neighbours=neighbours, **options)
    planner.learn(row.taught(typed) for row in rows)
    return planner


def outcome(planner: LearnedPlanner, rows: Sequence[Row], typed: bool) -> tuple[float, float]:
    """Mean reward and mean cost of what it chooses."""
    tools = tools_of(rows)
    chosen = [(row, planner.decide(row.asked(typed), tools).selected_tool) for row in rows]
    return mean(row.scores[model] for row, model in chosen), mean(row.costs[model] for row, model in chosen)


def relative(planner: LearnedPlanner, rows: Sequence[Row], typed: bool) -> tuple[float, float]:
    """Quality and cost as shares of those of the best single model of these rows."""
    quality, cost = outcome(planner, rows, typed)
    best = best_single(rows)
    return quality / mean(row.scores[best] for row in rows), cost / mean(row.costs[best] for row in rows)


# ── the marks ────────────────────────────────────────────────────────────────────────────────────────────────────────


def nine_models(rows: Sequence[Row], typed: bool) -> list[Mark]:
    """Five splits of 60/20/20: learn, choose the cost weight on the second part, and report the third."""
    results = []
    for seed in SPLITS:
        mixed = shuffled(rows, seed)
        a, b = len(mixed) * 6 // 10, len(mixed) * 8 // 10
        planner = taught(mixed[:a], typed, None if typed else Kept())
        weight = _chosen_weight(planner, mixed[a:b], typed)
        planner.cost_weight = weight
        results.append(relative(planner, mixed[b:], typed))
        print(f"  split {seed}: cost_weight {weight:g}, quality {results[-1][0]:.1%}, cost {results[-1][1]:.1%}")
    quality, cost = (mean(values) for values in zip(*results, strict=True))
    least, most = (0.95, 0.15) if typed else (0.94, 0.17)
    which = "with task types" if typed else "without task types"
    return [
        Mark(f"nine models {which}, quality of the best single model", quality, least, True, f"{quality:.1%}"),
        Mark(f"nine models {which}, cost of the best single model", cost, most, False, f"{cost:.1%}"),
    ]


def _chosen_weight(planner: LearnedPlanner, rows: Sequence[Row], typed: bool) -> float:
    """The one with the best quality of those that cost no more than AIM: of the two, cost varies less by chance."""
    found = []
    for weight in WEIGHTS:
        planner.cost_weight = weight
        quality, cost = relative(planner, rows, typed)
        found.append((cost <= AIM[typed], quality, weight))
    return max(found)[2]


def unseen_tasks(rows: Sequence[Row]) -> list[Mark]:
    """Each task is left out in turn: what is lost on it against the model that is best on the others."""
    marks = []
    for name, neighbours in (("table", None), ("table and neighbours", Neighbours)):
        losses = []
        for task in sorted({row.task for row in rows}):
            known, unseen = [r for r in rows if r.task != task], [r for r in rows if r.task == task]
            planner = taught(known, True, neighbours() if neighbours else None)
            quality, _ = outcome(planner, unseen, True)
            losses.append(100 * (mean(row.scores[best_single(known)] for row in unseen) - quality))
        lost = mean(losses)
        marks.append(
            Mark(f"unseen tasks, {name}: points lost", lost, 0.3, False, f"{lost:.2f} (worst {max(losses):.2f})")
        )
    return marks


def online(rows: Sequence[Row]) -> list[Mark]:
    """One pass, feedback for what was chosen only, exploring all the while."""
    best = best_single(rows)
    reference = mean(row.scores[best] for row in rows)
    tools = tools_of(rows)

    async def gained(seed: int) -> float:
        planner = LearnedPlanner(default_tool=best, explore="thompson", chance=random.Random(seed).random)
        rewards = []
        for row in shuffled(rows, seed):
            decision = await planner.plan(row.asked(True), tools)
            rewards.append(row.scores[decision.selected_tool])
            await planner.feedback(decision.metadata["decision_id"], rewards[-1])
        return 100 * (mean(rewards) - reference)

    points = [asyncio.run(gained(seed)) for seed in SHUFFLES]
    print("  points over the best single model, by shuffle:", ", ".join(f"{p:+.2f}" for p in points))
    shown = f"{mean(points):+.2f} points, deviation {statistics.stdev(points):.2f}, goal +0.5"
    return [Mark("online, one pass, over the best single model", mean(points), 0.0, True, shown)]


def strong_calls(rows: Sequence[Row]) -> list[Mark]:
    """The share of prompts that the strong model must get for 95 % of its accuracy; the mean over five folds."""
    tasks = sorted({row.task for row in rows})
    mixed = shuffled(rows, 0)
    by_row = {id(row): place % 5 for place, row in enumerate(mixed)}
    by_task = {task: place % 5 for place, task in enumerate(tasks)}
    folds: dict[str, Callable[[Row], int]] = {
        "in domain": lambda row: by_row[id(row)],
        "subjects held out": lambda row: by_task[row.task],
    }
    marks = []
    for name, limit in (("in domain", 0.43), ("subjects held out", 0.55)):
        needed = []
        for fold in range(5):
            planner = taught([row for row in mixed if folds[name](row) != fold], True, Neighbours())
            needed.append(_calls_needed(planner, [row for row in mixed if folds[name](row) == fold]))
        share = mean(needed)
        shown = f"{share:.1%} (by fold {', '.join(f'{n:.1%}' for n in needed)})"
        marks.append(Mark(f"MMLU pair, {name}: calls of the strong model", share, limit, False, shown))
    return marks


def _calls_needed(planner: LearnedPlanner, rows: Sequence[Row], share: float = 0.95) -> float:
    strong = best_single(rows)
    weak = next(model for model in models_of(rows) if model != strong)
    tools = tools_of(rows)

    def gain(row: Row) -> float:
        expected = {found.name: found.reward for found in planner.expected(row.asked(True), tools)}
        return expected[strong] - expected[weak]

    ranked = sorted(rows, key=gain, reverse=True)
    goal = share * sum(row.scores[strong] for row in rows)
    right = sum(row.scores[weak] for row in rows)
    for calls, row in enumerate(ranked):
        if right >= goal:
            return calls / len(rows)
        right += row.scores[strong] - row.scores[weak]
    return 1.0


def pacing(rows: Sequence[Row]) -> list[Mark]:
    """Half of the rows to learn from; the others come one by one against a share of what the best model would cost."""
    marks = []
    for share in (0.15, 0.3, 0.5):
        found = [_paced(rows, share, seed) for seed in SPLITS]
        quality, spent = mean(q for q, _, _ in found), [s for _, s, _ in found]
        worst = max(abs(1 - s) for s in spent)
        refused, of = sum(r for _, _, r in found), len(rows) // 2 * len(found)
        print(f"  budget {share:.0%}: quality {quality:.1%} of the best single model, refused {refused} of {of}")
        if share == 0.3:
            marks.append(Mark("pacing at 30 %, quality of the best single model", quality, 1.0, True, f"{quality:.1%}"))
        marks.append(Mark(f"pacing at {share:.0%}, furthest from the budget", worst, 0.001, False, f"{worst:.3%}"))
        marks.append(Mark(f"pacing at {share:.0%}, most spent", max(spent), 1.0, False, f"{max(spent):.4%}"))
    return marks


def _paced(rows: Sequence[Row], share: float, seed: int) -> tuple[float, float, int]:
    mixed = shuffled(rows, seed)
    known, coming = mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
    best = best_single(coming)
    budget = share * sum(row.costs[best] for row in coming)
    planner = taught(known, True, None, pacing=Pacing(budget_usd=budget, requests=len(coming)))
    tools = tools_of(rows)

    async def served() -> tuple[float, float, int]:
        spent = quality = 0.0
        refused = 0
        for row in coming:
            try:
                decision = await planner.plan(row.asked(True), tools)
            except BudgetExceeded:
                refused += 1
                continue
            model = decision.selected_tool
            spent, quality = spent + row.costs[model], quality + row.scores[model]
            await planner.feedback(decision.metadata["decision_id"], row.scores[model], row.costs[model])
        return quality / sum(row.scores[best] for row in coming), spent / budget, refused

    return asyncio.run(served())


def speed() -> list[Mark]:
    """plan() with 1,000 tools, 10,000 rules and learning on: the median of 2,000, with feedback after each."""
    tools = MappingProxyType({f"tool{n}": ToolMetadata(name=f"tool{n}") for n in range(1000)})
    of_types = [
        PlanningRule(f"r{n}", n, [RuleCondition("type", "equals", f"kind{n}")], RuleAction(f"tool{n % 1000}"))
        for n in range(10_000)
    ]
    planner = LearnedPlanner(default_tool="tool0", rules=of_types, explore="thompson")

    async def measured() -> list[float]:
        taken = []
        for n in range(2000):
            request = {"type": f"task{n % 10}", "query": "What is the capital of France?"}
            began = time.perf_counter()
            decision = await planner.plan(request, tools)
            taken.append((time.perf_counter() - began) * 1e6)
            await planner.feedback(decision.metadata["decision_id"], random.random(), 0.001, 100.0)
        return taken

    taken = sorted(asyncio.run(measured()))
    p50, p99 = taken[len(taken) // 2], taken[len(taken) * 99 // 100]
    return [
        Mark("plan() with 1,000 tools and 10,000 rules, us p50", p50, 200, False, f"{p50:.0f} us, p99 {p99:.0f} us")
    ]


def rule_index() -> list[Mark]:
    return [Mark(name, value, limit, False, f"{value:.2f}") for name, value, limit in rules.marks()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("--only", default="", help="parts whose name has these words")
    given = parser.parse_args()

    @cache
    def nine() -> list[Row]:
        prices = json.loads((given.data / "llmrouter_prices.json").read_text(encoding="utf-8"))
        return read(given.data, "llmrouter_train.jsonl.gz", prices)

    parts: dict[str, Callable[[], list[Mark]]] = {
        "nine models with task types": lambda: nine_models(nine(), True),
        "nine models without task types": lambda: nine_models(nine(), False),
        "unseen tasks": lambda: unseen_tasks(nine()),
        "online": lambda: online(nine()),
        "mmlu pair": lambda: strong_calls(read(given.data, "routellm_mmlu.jsonl.gz", {})),
        "pacing": lambda: pacing(nine()),
        "speed": speed,
        "rules": rule_index,
    }
    marks = []
    for name, part in parts.items():
        if given.only in name:
            print(f"{name}:")
            found = part()
            marks += found
            print("\n".join(f"  {mark}" for mark in found), flush=True)
    missed = [mark for mark in marks if not mark.met]
    print(f"{len(marks) - len(missed)} of {len(marks)} marks met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
