"""What a store adds to a keyed run, against the same run remembered in memory: a few of each by turns, in one process.

    python benchmarks/stores.py [--runs 300] [--in-a-row 10] [--stores memory,SQLite]

Medians in microseconds. Wall time is what a caller waits; CPU time is of all threads of this process. Real servers are
started on free ports; their CPU time is not in the figures.

Is it fair? All stores see the same requests and the same load of the machine, and each turn is a row of runs one after
the other, as a program with one store makes them. With `--in-a-row 1` each run comes after those of the other stores
and finds the caches of the processor cold, which costs memory the most in proportion. A run here gives its options as a
dict, which is checked, and the clock is read for each; `overhead.py` hands on options that were checked before and
counts CPU time, so its "new key" is cheaper.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import redis

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from servers import PostgresServer, RedisServer
from steer_llm_sdk.orchestration import ReliableOrchestrator, Tool, ToolRegistry


class Nothing(Tool):
    name = "nothing"

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        return "answer"


class Took(NamedTuple):
    """Microseconds of one run."""

    wall: float
    cpu: float


async def measured(urls: dict[str, str], runs: int, in_a_row: int) -> dict[str, list[Took]]:
    """Of each store: a new key, a replay, and one of 100 new keys at once."""
    registry = ToolRegistry()
    registry.register_tool(Nothing())
    runners = {name: ReliableOrchestrator(registry=registry, store=url) for name, url in urls.items()}
    took: dict[str, list[list[Took]]] = {name: [[], [], []] for name in urls}

    async def run(name: str, key: str) -> Took:
        wall, cpu = time.perf_counter(), time.process_time()
        await runners[name].run("q", "nothing", options={"idempotency_key": key})
        return Took((time.perf_counter() - wall) * 1e6, (time.process_time() - cpu) * 1e6)

    async def run_at_once(name: str, keys: Sequence[str]) -> Took:
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(runners[name].run("q", "nothing", options={"idempotency_key": key}) for key in keys))
        return Took((time.perf_counter() - wall) * 1e6 / len(keys), (time.process_time() - cpu) * 1e6 / len(keys))

    for name in urls:
        for n in range(20):
            await run(name, f"warm {n}")
    for turn in range(0, runs, in_a_row):
        for name in urls:
            for way in (0, 1):
                took[name][way] += [await run(name, str(n)) for n in range(turn, min(turn + in_a_row, runs))]
    for n in range(crowds(runs)):
        for name in urls:
            took[name][2].append(await run_at_once(name, [f"{n} {m}" for m in range(CROWD)]))
    for runner in runners.values():
        await runner.aclose()
    return {name: [_typical(each) for each in ways] for name, ways in took.items()}


CROWD = 100


def crowds(runs: int) -> int:
    return max(5, runs // 50)


def _typical(each: list[Took]) -> Took:
    return Took(statistics.median(one.wall for one in each), statistics.median(one.cpu for one in each))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--in-a-row", type=int, default=10)
    parser.add_argument("--stores", default="memory,SQLite,Redis,PostgreSQL")
    parser.add_argument("--durable", type=int, default=20, help="rounds of durable runs beside the bare engine")
    given = parser.parse_args()
    names = given.stores.split(",")
    if names[0] != "memory":
        parser.error("--stores: begin with memory, which the others are compared with")
    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        urls = {"memory": "memory://", "SQLite": f"sqlite:///{folder}/steer.db"}
        if "Redis" in names:
            urls["Redis"] = opened.enter_context(RedisServer()).url
        if "PostgreSQL" in names:
            urls["PostgreSQL"] = opened.enter_context(PostgresServer()).url
        found = asyncio.run(measured({name: urls[name] for name in names}, given.runs, given.in_a_row))
        base = found["memory"][0]
        print(
            "| store | new key: wall | over memory | CPU | over memory | replay: wall | CPU"
            " | each of 100 at once: wall | CPU |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for name, (new, again, together) in found.items():
            cells = (*new, *again, *together)
            over = (new.wall, new.wall - base.wall, new.cpu, new.cpu - base.cpu, *cells[2:])
            print(f"| {name} | {' | '.join(f'{cell:.0f}' for cell in over)} |")
        marks: dict[str, tuple[float, float]] = {}
        if "SQLite" in names:
            over_memory = found["SQLite"][0].wall - base.wall
            marks["a new key on SQLite over one in memory, µs of wall time"] = (over_memory, 250)
        if "Redis" in names:
            with redis.Redis.from_url(urls["Redis"]) as connection:
                scripts = connection.info("commandstats")["cmdstat_evalsha"]["calls"]
            keys = 20 + given.runs + crowds(given.runs) * CROWD
            marks["round trips to Redis for a new key; a replay takes 1"] = ((scripts - given.runs) / keys, 3)
        import durable  # Now: its engine is not to be loaded while the stores are measured.

        bare = durable.times_bare(asyncio.run(durable.compared(f"sqlite:///{folder}/runs.db", given.durable)))
        marks["a step of a durable run, in steps of the bare engine"] = (bare, durable.MARK)
    print("\n| mark | measured | at most |\n|---|--:|--:|")
    for mark, (is_, most) in marks.items():
        print(f"| {mark} | {is_:.{0 if most > 9 else 2}f} | {most} |")


if __name__ == "__main__":
    main()
