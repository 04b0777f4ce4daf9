"""A provider that fails one request in five. 100 small clients: how many calls succeed, and at what cost?"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from alternatives import purgatory_breaker, tenacity, token_bucket
from kit import (
    OURS,
    Arm,
    Contender,
    Counted,
    Finding,
    load,
    ours,
    plain,
    seeded,
    wall_clock_in_virtual_time,
)
from plot import lines

from steer_llm_sdk.errors import ProviderUnavailable
from steer_llm_sdk.testing import run_in_virtual_time

CLIENTS, SECONDS, RATE, TAKES = 100, 60.0, 1.0, 0.5
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4)
AT = 0.2
LEAST, MOST = 0.97, 1.25
SEEDS = 3


async def figures(contender: Contender, share: float, seed: int, clients: int) -> tuple[int, int, int]:
    """Calls, those that succeeded, requests at the provider."""
    chance = random.Random(seed)

    async def send() -> str:
        await asyncio.sleep(TAKES)
        if chance.random() < share:
            raise ProviderUnavailable("the service is unavailable", "simulated", status_code=503)
        return "ok"

    provider = Counted(send)
    outcomes = await asyncio.gather(
        *(load(contender(provider), RATE, SECONDS, random.Random(seed * 1000 + n)) for n in range(clients))
    )
    calls = [outcome for client in outcomes for outcome in client]
    return len(calls), sum(outcome.error is None for outcome in calls), len(provider.times)


def measured(contender: Contender, share: float, seeds: int, clients: int) -> tuple[float, float]:
    """The share of calls that succeed, and requests per call; over all seeds."""
    sums = [0, 0, 0]
    for seed in range(seeds):
        seeded(seed)
        sums = [a + b for a, b in zip(sums, run_in_virtual_time(figures(contender, share, seed, clients)), strict=True)]
    return sums[1] / sums[0], sums[2] / sums[0]


def experiment() -> Finding:
    contenders: dict[str, Any] = {
        "no retry": plain,
        "tenacity, 3 attempts": tenacity(3),
        "token bucket (10, 0.1)": token_bucket(3),
        "tenacity + purgatory": purgatory_breaker(5, 60, tenacity(3)),
        OURS: ours(),
    }
    arms, series = [], {}
    with wall_clock_in_virtual_time():
        for name, contender in contenders.items():
            good, cost = measured(contender, AT, SEEDS, CLIENTS)
            arms.append(
                Arm(name, [f"{good:.1%}", f"{cost:.2f}"], good >= LEAST and cost <= MOST, name == OURS),
            )
            series[name] = [(share * 100, 100 * measured(contender, share, 1, CLIENTS // 4)[0]) for share in SHARES]
    return Finding(
        title="(e) One request in five fails",
        setting=f"{CLIENTS} clients of their own, {RATE:g} call a second each for {SECONDS:g} s, {SEEDS} seeds; "
        "every policy at its defaults",
        mark=f"at least {LEAST:.0%} of the calls succeed, at most {MOST:g} requests per call",
        columns=["succeed", "requests per call"],
        arms=arms,
        charts={
            "sim-partial-outage.svg": lines(
                "Calls that succeed, by the share of requests that fail", series, "% of requests that fail", "%"
            )
        },
    )
