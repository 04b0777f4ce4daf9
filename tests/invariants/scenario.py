"""What a seed stands for: providers and their bad hours, orchestrators and their settings, callers and what they want.

Everything is drawn before anything runs, so that it does not depend on the order in which things then happen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from steer_llm_sdk.orchestration import ReliabilityConfig
from steer_llm_sdk.reliability import CircuitBreakerConfig, RetryPolicy
from steer_llm_sdk.reliability.budget import Budget
from steer_llm_sdk.reliability.hedging import HedgingPolicy
from steer_llm_sdk.reliability.rate_limit import RateLimit
from steer_llm_sdk.reliability.retry_budget import RetryBudgetConfig

LENGTH = 90.0
"""Seconds for which callers come and providers are at fault; after that every provider is well."""
PROVIDERS = ("p", "q")
TOOLS = {"p1": "p", "p2": "p", "q1": "q"}
"""Two tools of one provider, one of another."""
TEAM = Budget("team", tokens=45, per="minute")
"""Shared by the runs of all orchestrators that name it."""


@dataclass(frozen=True, slots=True)
class Outage:
    start: float
    end: float
    kind: str


@dataclass(frozen=True, slots=True)
class ProviderPlan:
    """`faults`: the share of calls that meet each of them outside of an outage. `only`: the outages of one tool."""

    name: str
    latency: float
    faults: dict[str, float]
    outages: tuple[Outage, ...]
    only: str | None


@dataclass(frozen=True, slots=True)
class CallerPlan:
    """One run. `cancel_after` is None where the caller waits for its end."""

    number: int
    at: float
    orchestrator: int
    request: str
    tool: str | None
    options: dict[str, Any]
    cancel_after: float | None

    @property
    def asks(self) -> tuple[str, str | None]:
        """What tells two runs with one key apart."""
        return self.request, self.tool


@dataclass(frozen=True, slots=True)
class Scenario:
    seed: int
    providers: tuple[ProviderPlan, ...]
    configs: tuple[ReliabilityConfig, ...]
    callers: tuple[CallerPlan, ...]
    store_faults: float
    """The share of the store's actions that fail or are slow; 0 is the memory store itself."""
    order: tuple[str, ...] = field(default=())


def drawn(seed: int) -> Scenario:
    rng = Random(f"scenario {seed}")
    orchestrators = rng.choice((1, 2, 3))
    order = list(TOOLS)
    rng.shuffle(order)
    return Scenario(
        seed,
        tuple(_provider(rng, name) for name in PROVIDERS),
        tuple(_config(rng) for _ in range(orchestrators)),
        tuple(_caller(rng, n, orchestrators) for n in range(rng.randint(15, 45))),
        rng.choice((0.0, 0.0, 0.1)),
        tuple(order),
    )


def _provider(rng: Random, name: str) -> ProviderPlan:
    bad = rng.random() < 0.6
    kinds = ("503", "429", "429 asks", "500", "reset", "400", "drip", "deaf")
    faults = {kind: rng.choice((0.0, 0.05, 0.2)) if bad else 0.0 for kind in kinds}
    outages = []
    for _ in range(rng.choice((0, 0, 1, 2))):
        start = rng.uniform(0, LENGTH * 0.8)
        length = rng.choice((2.0, 10.0, 40.0))
        outages.append(Outage(start, min(start + length, LENGTH), rng.choice(("503", "429 asks", "silence", "reset"))))
    mine = [tool for tool, provider in TOOLS.items() if provider == name]
    return ProviderPlan(name, rng.choice((0.05, 0.5, 2.0)), faults, tuple(outages), rng.choice((None, None, mine[0])))


def _config(rng: Random) -> ReliabilityConfig:
    breaker = CircuitBreakerConfig(
        failure_threshold=rng.choice((1, 2, 3, 5)),
        success_threshold=rng.choice((1, 2)),
        half_open_requests=rng.choice((1, 1, 2)),
        timeout=rng.choice((1.0, 5.0, 20.0)),
        window_size=rng.choice((10.0, 60.0)),
        probe_lease=rng.choice((None, 2.0, 10.0)),
        failure_rate_threshold=rng.choice((None, None, 0.3)),
        slow_call_rate_threshold=rng.choice((None, None, None, 0.5)),
        slow_call_duration=10.0,
        minimum_throughput=rng.choice((3, 10)),
        timeout_factor=rng.choice((1.0, 2.0)),
        max_timeout=rng.choice((5.0, 30.0)),
        panic=rng.random() < 0.2,
    )
    retry = RetryPolicy(
        max_attempts=rng.choice((1, 2, 3, 4)),
        initial_delay=rng.choice((0.1, 1.0)),
        max_delay=rng.choice((2.0, 10.0)),
        jitter_factor=rng.choice((0.0, 0.5, 1.0)),
    )
    limit = RateLimit(
        requests_per_minute=rng.choice((None, 30, 120)),
        max_concurrent=rng.choice((None, 1, 3)),
        max_queue=rng.choice((2, 1000)),
        max_wait=rng.choice((2.0, 60.0)),
    )
    return ReliabilityConfig(
        rate_limits={"p": limit} if rng.random() < 0.5 else {},
        retry_policy=retry,
        retry_budget=rng.choice((None, RetryBudgetConfig(), RetryBudgetConfig(ratio=0.2, minimum=1))),
        hedging=HedgingPolicy(quantile=0.6, min_samples=3, max_ratio=0.5) if rng.random() < 0.3 else None,
        silence_timeout=rng.choice((None, 1.0, 10.0)),
        circuit_breaker_configs={"default": breaker},
        max_total_attempts=rng.choice((2, 4, 10)),
        max_total_retry_time=rng.choice((5.0, 60.0)),
    )


def _caller(rng: Random, number: int, orchestrators: int) -> CallerPlan:
    options: dict[str, Any] = {}
    if rng.random() < 0.6:
        options["timeout_ms"] = rng.choice((200, 1000, 5000, 30_000))
    if rng.random() < 0.4:
        options["per_agent_timeout_ms"] = rng.choice((300, 1000, 4000))
    if rng.random() < 0.4:
        options["budget"] = rng.choice(({"tokens": 45}, {"tokens": 200, "cost_usd": 0.05}, {"cost_usd": 0.045}))
    if rng.random() < 0.3:
        options["budgets"] = [TEAM]
    if rng.random() < 0.3:
        options["max_retries"] = rng.choice((0, 1, 3))
    request = "a"
    if rng.random() < 0.5:
        options["idempotency_key"] = rng.choice(("k1", "k2", "k3"))
        request = rng.choice(("a", "a", "a", "b"))
    return CallerPlan(
        number,
        rng.choice((rng.uniform(0, LENGTH), round(rng.uniform(0, LENGTH), -1))),  # many come at the same time
        rng.randrange(orchestrators),
        request,
        rng.choice((None, None, *TOOLS)),
        options,
        rng.choice((None, None, None, rng.uniform(0, 4))),
    )
