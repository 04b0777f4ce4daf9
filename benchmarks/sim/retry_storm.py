"""A provider stands still for 30 s while requests pile up. Do the retries keep it down when it is back?"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from functools import partial

from alternatives import tenacity, token_bucket
from kit import OURS, Arm, Contender, Counted, Finding, Outcome, Queue, Send, load, ours, patient, seeded
from plot import lines

from steer_llm_sdk.orchestration import OrchestrationConfig, ReliabilityConfig
from steer_llm_sdk.reliability import CircuitBreakerConfig, RetryPolicy
from steer_llm_sdk.testing import run_in_virtual_time

RATE, CAPACITY, PATIENCE, RETRIES = 100.0, 120.0, 1.0, 3
DOWN, END = 20.0, 120.0
OUTAGES = (30.0, 28.0, 29.0, 31.0, 32.0)
"""Of several lengths, so that its end does not always find the circuit in the same place."""
LOAD, GOODPUT, WITHIN = 0.10, 0.95, 6.0
NEVER = math.inf


async def play(contender: Contender, seed: int, outage: float) -> tuple[Counter[int], list[Outcome]]:
    """Requests at the provider by the second, and what became of each call."""
    queue = Queue(1, lambda: 1 / CAPACITY, stubborn=True, stale=True)
    provider = Counted(queue.send)
    call = contender(provider)
    loop = asyncio.get_running_loop()
    loop.call_at(DOWN, partial(_switch, queue, True))
    loop.call_at(DOWN + outage, partial(_switch, queue, False))
    outcomes = await load(call, RATE, END, random.Random(seed))
    return Counter(int(at) for at in provider.times), outcomes


def _switch(queue: Queue, down: bool) -> None:
    queue.down = down
    queue.serve()


def goodput(outcomes: list[Outcome]) -> dict[int, float]:
    """The share of the calls made in each second that succeeded."""
    made = Counter(int(o.at) for o in outcomes)
    good = Counter(int(o.at) for o in outcomes if o.error is None)
    return {second: good[second] / made[second] for second in sorted(made)}


def recovery(good: dict[int, float], up: float) -> float:
    """Seconds after the outage until GOODPUT is reached, and kept for the next ten seconds."""
    for second in range(int(up), int(END) - 10):
        if sum(good.get(s, 0.0) for s in range(second, second + 10)) / 10 >= GOODPUT and good.get(second, 0) >= GOODPUT:
            return second - up
    return NEVER


def impatient(around: Contender) -> Contender:
    """Each request is given up after PATIENCE."""

    def contender(send: Send) -> Send:
        return around(patient(send, PATIENCE))

    return contender


def contenders() -> dict[str, Contender]:
    breaker = CircuitBreakerConfig(timeout=4.0, timeout_factor=1, half_open_requests=1)
    config = ReliabilityConfig(
        circuit_breaker_configs={"simulated": breaker}, retry_policy=RetryPolicy(max_attempts=RETRIES + 1)
    )
    limit = OrchestrationConfig(per_agent_timeout_ms=int(PATIENCE * 1000))
    return {
        "tenacity, 4 attempts": impatient(tenacity(RETRIES + 1)),
        "token bucket (10, 0.1)": impatient(token_bucket(RETRIES + 1)),
        OURS: ours(config, limit),
        f"{OURS}, default circuit": ours(options=limit),
    }


def experiment() -> Finding:
    arms, loads, goods = [], {}, {}
    for name, contender in contenders().items():
        during, peak, after = [], [], []
        for seed, outage in enumerate(OUTAGES if name == OURS else OUTAGES[:1]):
            seeded(seed)
            requests, outcomes = run_in_virtual_time(play(contender, seed, outage))
            good = goodput(outcomes)
            during.append(sum(requests[s] for s in range(int(DOWN), int(DOWN + outage))) / outage / RATE)
            peak.append(max(requests.values()) / RATE)
            after.append(recovery(good, DOWN + outage))
            if seed == 0:
                loads[name] = [(float(s), requests[s] / RATE) for s in range(int(END))]
                goods[name] = [(float(s), 100 * good.get(s, 0.0)) for s in range(int(END))]
        slowest = max(after)
        cells = [f"{_range(during, '×')}", f"× {max(peak):.1f}", "never" if slowest == NEVER else f"{_range(after)} s"]
        arms.append(Arm(name, cells, max(during) <= LOAD and slowest <= WITHIN, name == OURS))
    shade = (DOWN, DOWN + OUTAGES[0], "outage")
    return Finding(
        title="(c) A retry storm",
        setting=f"{RATE:g} calls a second on a server of {CAPACITY:g}, which stands still for {OUTAGES[0]:g} s and "
        f"keeps what piles up; each request is given up after {PATIENCE:g} s, {RETRIES} retries; "
        f"the library also with outages of {min(OUTAGES):g} to {max(OUTAGES):g} s",
        mark=f"load in the outage at most × {LOAD:.2f} of normal, goodput back at {GOODPUT:.0%} within {WITHIN:g} s",
        columns=["load in the outage", "highest second", "95 % goodput after"],
        arms=arms,
        charts={
            "sim-retry-storm-load.svg": lines(
                "Requests at the provider, × normal", loads, "seconds", "× normal", shade=shade
            ),
            "sim-retry-storm-goodput.svg": lines("Calls that succeed", goods, "seconds", "%", shade=shade),
        },
    )


def _range(values: list[float], before: str = "") -> str:
    low, high, mark = min(values), max(values), f"{before} " if before else ""
    digits = 2 if before else 0
    same = f"{low:.{digits}f}" == f"{high:.{digits}f}"
    return f"{mark}{low:.{digits}f}" if same else f"{mark}{low:.{digits}f}–{high:.{digits}f}"
