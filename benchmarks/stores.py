"""What a store adds to a keyed run, against the same run remembered in memory: one of each by turns, in one process.

    python benchmarks/stores.py [--runs 300]

Real servers are started on free ports; their CPU time is not in the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import redis

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from servers import PostgresServer, RedisServer
from steer_llm_sdk.orchestration import ReliableOrchestrator, Tool, ToolRegistry


class Nothing(Tool):
    name = "nothing"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        return "answer"


class Took(NamedTuple):
    """Microseconds of one run: wall time that nine in ten exceed, and CPU time of all threads of this process."""

    wall: float
    cpu: float


async def measured(urls: dict[str, str], runs: int) -> dict[str, list[Took]]:
    """Of each store: a new key, a replay, and one of 100 new keys at once."""
    registry = ToolRegistry()
    registry.register_tool(Nothing())
    runners = {name: ReliableOrchestrator(registry=registry, store=url) for name, url in urls.items()}
    took: dict[str, list[list[Took]]] = {name: [[], [], []] for name in urls}

    async def run(name: str, keys: Iterable[str], of: int = 1) -> Took:
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(runners[name].run("q", "nothing", options={"idempotency_key": key}) for key in keys))
        return Took((time.perf_counter() - wall) * 1e6 / of, (time.process_time() - cpu) * 1e6 / of)

    for name in urls:
        for n in range(20):
            await run(name, [f"warm {n}"])
    for n in range(runs):
        for name in urls:
            took[name][0].append(await run(name, [str(n)]))
            took[name][1].append(await run(name, [str(n)]))
    for n in range(max(5, runs // 50)):
        for name in urls:
            took[name][2].append(await run(name, [f"{n} {m}" for m in range(100)], of=100))
    for runner in runners.values():
        await runner.aclose()
    return {name: [_typical(each) for each in ways] for name, ways in took.items()}


def _typical(each: list[Took]) -> Took:
    walls = sorted(one.wall for one in each)
    return Took(walls[len(walls) // 10], statistics.median(one.cpu for one in each))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=300)
    runs = parser.parse_args().runs
    with RedisServer() as redis_server, PostgresServer() as postgres, tempfile.TemporaryDirectory() as folder:
        urls = {
            "memory": "memory://",
            "SQLite": f"sqlite:///{folder}/steer.db",
            "Redis": redis_server.url,
            "PostgreSQL": postgres.url,
        }
        found = asyncio.run(measured(urls, runs))
        base = found["memory"]
        print("| store | new key: wall | CPU | over memory | replay: wall | CPU | each of 100 at once: wall | CPU |")
        print("|---|---|---|---|---|---|---|---|")
        for name, (new, again, together) in found.items():
            over = new.cpu - base[0].cpu
            cells = (new.wall, new.cpu, over, again.wall, again.cpu, together.wall, together.cpu)
            print(f"| {name} | {' | '.join(f'{cell:.0f}' for cell in cells)} |")
        with redis.Redis.from_url(redis_server.url) as connection:
            scripts = connection.info("commandstats")["cmdstat_evalsha"]["calls"]
        keys = 20 + runs + max(5, runs // 50) * 100
        print(f"\nRedis: {(scripts - runs) / keys:.2f} round trips for a new key, 1 for a replay")


if __name__ == "__main__":
    main()
