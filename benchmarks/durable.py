"""What a durable run and each of its steps cost, beside the same number of steps of the bare engine.

    python benchmarks/durable.py                     on SQLite in WAL mode, in a folder of its own
    python benchmarks/durable.py --store URL         on that store

Both take turns in one process and on one store, so that what the machine does meanwhile meets both. Times are medians
in ms. The mark: a step costs at most 1.5 times what it costs the bare engine.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

from dbos import DBOS

from steer_llm_sdk.durable import DurableOrchestrator
from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.orchestration._call import protected

STEPS = (1, 20)
MARK = 1.5


@DBOS.step()
async def step(number: int) -> dict[str, Any]:
    return {"number": number}


@DBOS.workflow()
async def bare(steps: int) -> dict[str, Any]:
    for number in range(steps):
        await step(number)
    return {"steps": steps}


class Calls(Tool):
    """Makes so many calls, one after the other, each of which costs nothing."""

    composite = True
    name = "calls"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        for number in range(request["steps"]):

            async def call(number: int = number) -> dict[str, Any]:
                return {"number": number}

            await protected(call, target="none", part="calls")
        return {"content": request["steps"]}


async def answered(orchestrator: ReliableOrchestrator, steps: int) -> None:
    output = await orchestrator.run({"steps": steps}, "calls")
    assert output.content == steps, output.errors


async def measured(work: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


async def compared(store: str, rounds: int) -> dict[tuple[str, int], float]:
    """Median ms by kind of run and number of steps."""
    registry = ToolRegistry()
    registry.register_tool(Calls())
    times: dict[tuple[str, int], list[float]] = {}
    config = ReliabilityConfig(max_total_attempts=1000)
    plain = ReliableOrchestrator(None, config, registry=registry)
    async with DurableOrchestrator(store, None, config, registry=registry) as durable:
        for turn in range(rounds + 2):
            for steps in STEPS:
                kinds: dict[str, Callable[[], Awaitable[Any]]] = {
                    "bare engine": lambda steps=steps: bare(steps),  # type: ignore[misc]
                    "durable run": lambda steps=steps: answered(durable, steps),  # type: ignore[misc]
                    "plain run": lambda steps=steps: answered(plain, steps),  # type: ignore[misc]
                }
                for kind, work in kinds.items():
                    took = await measured(work)
                    if turn >= 2:
                        times.setdefault((kind, steps), []).append(took)
    return {key: statistics.median(found) for key, found in times.items()}


def of_a_step(median: dict[tuple[str, int], float], kind: str) -> float:
    few, many = STEPS
    return (median[kind, many] - median[kind, few]) / (many - few)


def times_bare(median: dict[tuple[str, int], float]) -> float:
    """A step of a durable run, in steps of the bare engine."""
    return of_a_step(median, "durable run") / of_a_step(median, "bare engine")


async def main(store: str, rounds: int) -> int:
    median = await compared(store, rounds)
    few, many = STEPS
    print(f"| | {few} step | {many} steps | each further step |\n|---|--:|--:|--:|")
    for kind in ("plain run", "bare engine", "durable run"):
        print(f"| {kind} | {median[kind, few]:.2f} | {median[kind, many]:.1f} | {of_a_step(median, kind):.2f} |")
    print(f"\na step: {times_bare(median):.2f} x the bare engine's; the mark is {MARK} x")
    return 0 if times_bare(median) <= MARK else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store")
    parser.add_argument("--rounds", type=int, default=30)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        sys.exit(asyncio.run(main(chosen.store or f"sqlite:///{home}/runs.db", chosen.rounds)))
