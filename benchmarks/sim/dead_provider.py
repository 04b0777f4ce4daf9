"""A provider that answers every request with 503. How many of 200 calls still reach it?"""

from __future__ import annotations

from alternatives import purgatory_breaker, tenacity
from kit import OURS, Arm, Contender, Counted, Finding, each_at, ours, plain, seeded, wall_clock_in_virtual_time
from plot import lines

from steer_llm_sdk.errors import ProviderUnavailable
from steer_llm_sdk.orchestration import ReliabilityConfig
from steer_llm_sdk.reliability import CircuitBreakerConfig
from steer_llm_sdk.testing import run_in_virtual_time

CALLS, EVERY, THRESHOLD, OPEN = 200, 1.0, 5, 60.0
PROBES = int(CALLS * EVERY // OPEN)
"""One for each time that the circuit's time is up while calls still come."""


async def dead() -> None:
    raise ProviderUnavailable("the service is unavailable", "simulated", status_code=503)


async def requests_of(contender: Contender) -> list[float]:
    provider = Counted(dead)
    await each_at([EVERY * number for number in range(CALLS)], contender(provider))
    return provider.times


def experiment() -> Finding:
    breaker = CircuitBreakerConfig(failure_threshold=THRESHOLD, timeout=OPEN, half_open_requests=1)
    config = ReliabilityConfig(circuit_breaker_configs={"simulated": breaker})
    contenders = {
        "no help": plain,
        "tenacity, 3 attempts": tenacity(3),
        "tenacity + purgatory": purgatory_breaker(THRESHOLD, OPEN, tenacity(3)),
        OURS: ours(config),
    }
    most = THRESHOLD + PROBES
    arms, times = [], {}
    with wall_clock_in_virtual_time():
        for name, contender in contenders.items():
            seeded(4)
            times[name] = run_in_virtual_time(requests_of(contender))
            arms.append(Arm(name, [str(len(times[name]))], len(times[name]) <= most, name == OURS))
    chart = lines(
        "Requests that reached a dead provider",
        {name: [(0.0, 0.0), *((at, n + 1.0) for n, at in enumerate(found))] for name, found in times.items()},
        "seconds",
        "requests so far",
    )
    return Finding(
        title="(d) A dead provider",
        setting=f"{CALLS} calls, one a second; threshold {THRESHOLD} failures, circuit open for {OPEN:g} s, one probe",
        mark=f"requests at the provider ≤ threshold + probes = {THRESHOLD} + {PROBES} = {most}",
        columns=["requests"],
        arms=arms,
        charts={"sim-dead-provider.svg": chart},
    )
