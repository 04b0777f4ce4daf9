"""What `instrument` costs a run where no SDK is there to tell: an instrumented orchestrator against a plain one.

    python benchmarks/telemetry.py [--runs N] [--rounds N] [--mark MICROSECONDS]

Both run interleaved in one process and are measured in CPU time of the thread; the cost is the median of the
differences of the rounds. It exits with 1 where the cost is above the mark. The last line is for comparison, without
a mark: the same with an SDK that measures, and one that traces as well and throws the spans away.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from overhead import REQUEST, measure, orchestrator

from steer_llm_sdk.orchestration import OrchestrationConfig, ReliableOrchestrator
from steer_llm_sdk.telemetry import instrument

MARK = 10.0
OPTIONS = OrchestrationConfig()


def instrumented() -> dict[str, ReliableOrchestrator]:
    meters = MeterProvider(metric_readers=[InMemoryMetricReader()], shutdown_on_exit=False)
    return {
        "plain": orchestrator(),
        "instrumented": instrument(orchestrator()),
        "measured": instrument(orchestrator(), meter_provider=meters),
        "measured and traced": instrument(
            orchestrator(), meter_provider=meters, tracer_provider=TracerProvider(shutdown_on_exit=False)
        ),
    }


async def rounds_of(live: dict[str, ReliableOrchestrator], runs: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of CPU a run, of each round."""
    found: dict[str, list[float]] = {name: [] for name in live}
    for turn in range(rounds + 1):
        # Each round begins with another one, so that none is always the one after the slowest.
        names = list(live)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            runner = live[name]
            took = await measure(lambda runner=runner: runner.run(REQUEST, options=OPTIONS), runs)
            if turn:  # The first one warms up.
                found[name].append(took)
    return found


def above(found: dict[str, list[float]], name: str) -> float:
    return statistics.median(one - plain for one, plain in zip(found[name], found["plain"], strict=True))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=1000)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--mark", type=float, default=MARK)
    given = options.parse_args()
    found = asyncio.run(rounds_of(instrumented(), given.runs, given.rounds))
    cost, plain = above(found, "instrumented"), statistics.median(found["plain"])
    verdict = "within" if cost <= given.mark else "above"
    print(f"Python {sys.version.split()[0]}, {given.rounds} rounds of {given.runs} runs, medians, CPU µs")
    print(f"  instrumented, no SDK: {cost:+.1f} µs a run on {plain:.1f} µs ({verdict} the mark of {given.mark:g} µs)")
    both = ", ".join(f"{name} {above(found, name):+.1f} µs" for name in ("measured", "measured and traced"))
    print(f"  with an SDK: {both}")
    sys.exit(cost > given.mark)


if __name__ == "__main__":
    main()
