"""A circuit's time is up while 50 callers wait for it. How many of them reach the provider at once?"""

from __future__ import annotations

import asyncio

from alternatives import purgatory_breaker
from kit import OURS, Arm, Contender, Counted, Finding, each_at, now, ours, plain, seeded, wall_clock_in_virtual_time
from plot import bars

from steer_llm_sdk.errors import ProviderUnavailable
from steer_llm_sdk.orchestration import OrchestrationConfig, ReliabilityConfig
from steer_llm_sdk.reliability import CircuitBreakerConfig
from steer_llm_sdk.testing import run_in_virtual_time

CALLERS, THRESHOLD, OPEN, TAKES = 50, 5, 60.0, 1.0
DOWN_UNTIL = 30.0


async def provider() -> str:
    up = now() >= DOWN_UNTIL
    await asyncio.sleep(TAKES)
    if not up:
        raise ProviderUnavailable("the service is unavailable", "simulated", status_code=503)
    return "ok"


async def probes_of(contender: Contender) -> int:
    """Requests in the second that the first probe takes, with the callers all there."""
    counted = Counted(provider)
    call = contender(counted)
    await each_at([0.1 * number for number in range(THRESHOLD)], call)
    await asyncio.sleep(OPEN + 0.5)
    before = len(counted.times)
    callers = [asyncio.create_task(call()) for _ in range(CALLERS)]
    await asyncio.sleep(TAKES / 2)
    found = len(counted.times) - before
    await asyncio.gather(*callers, return_exceptions=True)
    return found


def experiment() -> Finding:
    breaker = CircuitBreakerConfig(failure_threshold=THRESHOLD, timeout=OPEN, half_open_requests=1)
    config = ReliabilityConfig(circuit_breaker_configs={"simulated": breaker})
    once = OrchestrationConfig(retry_on_failure=False)
    contenders = {
        "no help": plain,
        "purgatory": purgatory_breaker(THRESHOLD, OPEN, plain),
        OURS: ours(config, once),
    }
    found = {}
    with wall_clock_in_virtual_time():
        for name, contender in contenders.items():
            seeded(7)
            found[name] = run_in_virtual_time(probes_of(contender))
    return Finding(
        title="(g) Recovery with 50 callers waiting",
        setting=f"circuit open for {OPEN:g} s, then {CALLERS} callers at once; half_open_requests=1",
        mark="exactly 1 request while the probe is under way",
        columns=["probes"],
        arms=[Arm(name, [str(count)], count == 1, name == OURS) for name, count in found.items()],
        charts={
            "sim-recovery.svg": bars(
                "Requests let through when an open circuit's time is up, 50 callers waiting",
                {name: {"requests": float(count)} for name, count in found.items()},
                "requests",
            )
        },
    )
