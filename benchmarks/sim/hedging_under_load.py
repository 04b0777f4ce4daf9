"""Hedging against a provider that is busy: every extra request makes the queue longer for everybody."""

from __future__ import annotations

import random

from alternatives import fixed_hedge
from kit import (
    OURS,
    Arm,
    Contender,
    Counted,
    Finding,
    Queue,
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

SERVERS, SECONDS, WARM_UP, SEEDS = 50, 400.0, 50.0, 3
"""Three seeds at the load that the mark names, one at the others."""
LOADS = (0.5, 0.8, 0.9, 0.95)
AT = 0.95
WORST = 1.15


def mean_service() -> float:
    draw = lognormal_with_stragglers(random.Random(0))
    return sum(draw() for _ in range(100_000)) / 100_000


async def latencies_of(contender: Contender, rate: float, seed: int, stubborn: bool) -> tuple[list[float], int, int]:
    """How long the calls took after the warm-up; all calls; all requests."""
    queue = Queue(SERVERS, lognormal_with_stragglers(random.Random(seed)), stubborn=stubborn)
    provider = Counted(queue.send)
    outcomes = await load(contender(provider), rate, SECONDS, random.Random(seed + 100))
    return [o.took for o in outcomes if o.at >= WARM_UP], len(outcomes), len(provider.times)


def measured(contender: Contender, load_: float, mean: float, stubborn: bool) -> tuple[list[float], float]:
    """Latencies over all seeds, and requests per call."""
    took: list[float] = []
    calls = requests = 0
    for seed in range(SEEDS if load_ == AT else 1):
        seeded(seed)
        found, more_calls, more_requests = run_in_virtual_time(
            latencies_of(contender, load_ * SERVERS / mean, seed, stubborn)
        )
        took, calls, requests = took + found, calls + more_calls, requests + more_requests
    return took, requests / calls


def experiment() -> Finding:
    mean = mean_service()
    hedged = ours(ReliabilityConfig(hedging=HedgingPolicy()))
    contenders = {
        "no hedge": (plain, False),
        "after 2 s, always": (fixed_hedge(2.0), False),
        OURS: (hedged, False),
        "after 2 s, stubborn provider": (fixed_hedge(2.0), True),
        f"{OURS}, stubborn provider": (hedged, True),
    }
    arms, series = [], {}
    unhedged: dict[float, float] = {}
    for name, (contender, stubborn) in contenders.items():
        series[name] = []
        worst = 0.0
        for share in LOADS:
            took, cost = measured(contender, share, mean, stubborn)
            median = quantile(took, 0.5)
            worst = max(worst, median / unhedged.setdefault(share, median))
            series[name].append((share * 100, median))
        cells = [f"{median:.2f}", f"{quantile(took, 0.99):.1f}", f"{cost - 1:+.1%}"]
        cells += [f"{median / unhedged[AT]:.2f} ×", f"{worst:.2f} ×"]
        arms.append(Arm(name, cells, worst <= WORST, name.startswith(OURS)))
    return Finding(
        title="(b) Hedging under load",
        setting=f"{SERVERS} servers behind one queue, {AT:.0%} busy; requests last as in (a); a request whose client "
        f"leaves is dropped, but a stubborn provider works to its end on what it has begun; {SEEDS} seeds at {AT:.0%}",
        mark=f"p50 at most {WORST:g} × that without hedging, at {AT:.0%} load and at every other",
        columns=["p50 s", "p99 s", "extra requests", "p50 of no hedge", "worst of all loads"],
        arms=arms,
        charts={"sim-hedging-under-load.svg": lines("Median by how busy the provider is", series, "% busy", "seconds")},
    )
