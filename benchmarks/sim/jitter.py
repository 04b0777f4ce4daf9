"""1,000 clients fail at the same instant and back off to the cap. How many come back in the same 100 ms?"""

from __future__ import annotations

import asyncio
from collections import Counter

from alternatives import AddThenClamp, tenacity
from kit import OURS, Arm, Contender, Finding, now, observed, ours, seeded
from plot import lines
from tenacity.wait import wait_exponential, wait_random_exponential

from steer_llm_sdk.errors import ProviderUnavailable
from steer_llm_sdk.orchestration import OrchestrationConfig, ReliabilityConfig
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.testing import run_in_virtual_time

CLIENTS, ATTEMPTS, CAP, BIN = 1_000, 10, 60.0, 0.1
FIRST_AT_CAP = 8
"""1, 2, 4, … 32 s and then the cap: the eighth attempt is the first that comes after a wait of the cap."""
MOST = 30


async def crowd_of(contender: Contender) -> Counter[int]:
    """Attempts after a wait at the cap, by tenths of a second."""
    bins: Counter[int] = Counter()

    async def client() -> None:
        attempts = 0

        async def send() -> None:
            nonlocal attempts
            attempts += 1
            if attempts >= FIRST_AT_CAP:
                bins[int(now() / BIN)] += 1
            raise ProviderUnavailable("the service is unavailable", "simulated", status_code=503)

        await observed(contender(send))

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return bins


def worst_by_second(bins: Counter[int]) -> list[tuple[float, float]]:
    """For each second the most attempts in one of its tenths."""
    seconds = range(int(min(bins) * BIN) - 1, int(max(bins) * BIN) + 2)
    return [(float(second), float(max(bins[second * 10 + tenth] for tenth in range(10)))) for second in seconds]


def experiment() -> Finding:
    config = ReliabilityConfig(
        retry_policy=RetryPolicy(max_attempts=ATTEMPTS, max_delay=CAP, max_total_delay=1e6),
        max_total_attempts=ATTEMPTS,
        max_total_retry_time=1e6,
    )
    contenders = {
        "no jitter": tenacity(ATTEMPTS, wait_exponential(max=CAP)),
        "add, then clamp": tenacity(ATTEMPTS, AddThenClamp(CAP)),
        "full jitter (tenacity)": tenacity(ATTEMPTS, wait_random_exponential(max=CAP)),
        # The breaker would end the retries; this is about their delays.
        OURS: ours(config, OrchestrationConfig(enable_circuit_breaker=False)),
    }
    arms, series = [], {}
    for name, contender in contenders.items():
        seeded(8)
        bins = run_in_virtual_time(crowd_of(contender))
        worst = max(bins.values())
        arms.append(Arm(name, [str(worst)], worst <= MOST, name == OURS))
        series[name] = worst_by_second(bins)
    return Finding(
        title="(h) Jitter at the cap",
        setting=f"{CLIENTS:,} clients fail at once and go on failing; 1 s doubled up to {CAP:g} s, attempts "
        f"{FIRST_AT_CAP} to {ATTEMPTS}",
        mark=f"at most {MOST} attempts in any 100 ms",
        columns=["worst 100 ms"],
        arms=arms,
        charts={
            "sim-jitter.svg": lines(
                "Attempts at the cap: the worst 100 ms of each second",
                series,
                "seconds since the failure",
                "attempts",
                log=True,
            )
        },
    )
