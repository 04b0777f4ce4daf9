"""One request in fifty is a straggler. What does a second request to those that are slow do for the tail?"""

from __future__ import annotations

import asyncio
import math
import random

from alternatives import fixed_hedge
from kit import (
    OURS,
    Arm,
    Contender,
    Counted,
    Finding,
    load,
    lognormal_with_stragglers,
    ours,
    plain,
    quantile,
    seeded,
)
from plot import lines

from steer_llm_sdk.orchestration import ReliabilityConfig
from steer_llm_sdk.reliability.hedging import HedgingPolicy
from steer_llm_sdk.testing import run_in_virtual_time

RATE, SECONDS, SEED = 10.0, 3_000.0, 1
BETTER, EXTRA = 5.0, 0.055
SHARES = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


async def latencies_of(contender: Contender) -> tuple[list[float], float]:
    """How long the calls took, and requests per call."""
    service = lognormal_with_stragglers(random.Random(SEED))

    async def send() -> str:
        await asyncio.sleep(service())
        return "ok"

    provider = Counted(send)
    outcomes = await load(contender(provider), RATE, SECONDS, random.Random(SEED))
    return [outcome.took for outcome in outcomes], len(provider.times) / len(outcomes)


def experiment() -> Finding:
    draw = lognormal_with_stragglers(random.Random(SEED))
    known = [draw() for _ in range(100_000)]
    contenders = {
        "no hedge": plain,
        "at the true p50": fixed_hedge(quantile(known, 0.5)),
        "at the true p95": fixed_hedge(quantile(known, 0.95)),
        "at the true p99": fixed_hedge(quantile(known, 0.99)),
        OURS: ours(ReliabilityConfig(hedging=HedgingPolicy())),
    }
    arms: list[Arm] = []
    series: dict[str, list[tuple[float, float]]] = {}
    unhedged = 0.0
    for name, contender in contenders.items():
        seeded(SEED)
        took, cost = run_in_virtual_time(latencies_of(contender))
        p99 = quantile(took, 0.99)
        unhedged = unhedged or p99
        cells = [f"{quantile(took, share):.2f}" for share in (0.5, 0.99, 0.999)]
        cells += [f"{unhedged / p99:.1f} ×", f"{cost - 1:+.1%}"]
        arms.append(Arm(name, cells, unhedged / p99 >= BETTER and cost - 1 <= EXTRA, name == OURS))
        series[name] = [(-math.log10(1 - share), quantile(took, share)) for share in SHARES]
    ticks = {-math.log10(1 - share): f"p{share * 100:g}" for share in (0.5, 0.9, 0.99, 0.999)}
    return Finding(
        title="(a) Hedging against stragglers",
        setting=f"{int(RATE * SECONDS):,} calls, lognormal with median 1 s; 2 % of them lognormal with median 16 s",
        mark=f"p99 at least {BETTER:g} × better for at most {EXTRA:.1%} extra requests",
        columns=["p50 s", "p99 s", "p99.9 s", "p99 better", "extra requests"],
        arms=arms,
        charts={
            "sim-hedging.svg": lines(
                "Latency by quantile, 2 % stragglers", series, "share of the calls", "seconds", log=True, ticks=ticks
            )
        },
    )
