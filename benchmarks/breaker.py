"""What a circuit breaker costs: a record by how much its window holds, a call that goes well, a refusal.

    python benchmarks/breaker.py [--runs N] [--rounds N]

CPU time of the thread in µs, medians of rounds that take turns in one process, the empty loop taken off. "policy" is
the whole `await` of the breaker round a call that does nothing; purgatory's is its `async with` round the same, and
both ask for their breaker by name. purgatory counts failures only, without a window, so its record has one row.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

from steer_llm_sdk.errors import CircuitOpen, ProviderError
from steer_llm_sdk.reliability import CircuitBreaker, CircuitBreakerConfig, CircuitBreakerManager
from steer_llm_sdk.reliability.circuit import Circuit, Outcome, Permit
from steer_llm_sdk.reliability.circuit_breaker import Breaker

NEVER = 10**9
COUNTING = CircuitBreakerConfig(failure_threshold=NEVER)
RATES = CircuitBreakerConfig(
    failure_threshold=NEVER, failure_rate_threshold=1, slow_call_rate_threshold=1, minimum_throughput=NEVER
)
ONE = CircuitBreakerConfig(failure_threshold=1, timeout=3600)
DOWN = ProviderError("down", "p", 503)
SUCCESS, FAILURE = Outcome.SUCCESS, Outcome.FAILURE

Bench = Callable[[int], Awaitable[float]]
"""Nanoseconds for so many runs."""


@dataclass
class Call:
    target: str = "p"
    part: str = "a"
    model: str | None = None
    deadline: None = None

    def emit(self, event_type: str, data: dict[str, Any]) -> None: ...


async def answer(call: Any) -> str:
    return "ok"


async def fail(call: Any) -> str:
    raise DOWN


def record(cfg: CircuitBreakerConfig, held: int) -> Bench:
    """Count one more failure where the window holds `held`, evenly over it; time goes on at their pace."""
    circuit, permit, gap = Circuit(), Permit(0), cfg.window_size / held
    for n in range(held):
        circuit.record(permit, "a", FAILURE, n * gap, cfg)
    now = cfg.window_size

    async def run(runs: int) -> float:
        nonlocal now
        times = [now + n * gap for n in range(runs)]
        now = times[-1] + gap
        began = time.thread_time_ns()
        for at in times:
            circuit.record(permit, "a", FAILURE, at, cfg)
        return time.thread_time_ns() - began

    return run


def loop(step: Callable[[], Any]) -> Bench:
    async def run(runs: int) -> float:
        began = time.thread_time_ns()
        for _ in range(runs):
            step()
        return time.thread_time_ns() - began

    return run


def awaited(step: Callable[[], Awaitable[Any]]) -> Bench:
    async def run(runs: int) -> float:
        began = time.thread_time_ns()
        for _ in range(runs):
            await step()
        return time.thread_time_ns() - began

    return run


def well(cfg: CircuitBreakerConfig) -> Callable[[], None]:
    breaker = CircuitBreaker("p", cfg)

    def step() -> None:
        breaker.report(breaker.admit("a"), "a", SUCCESS)

    return step


def badly(cfg: CircuitBreakerConfig) -> Callable[[], None]:
    breaker = CircuitBreaker("p", cfg)

    def step() -> None:
        breaker.report(breaker.admit("a"), "a", FAILURE)

    return step


def refused() -> Callable[[], None]:
    breaker = CircuitBreaker("p", ONE)
    breaker.report(breaker.admit("a"), "a", FAILURE)

    def step() -> None:
        try:  # noqa: SIM105 - `suppress` costs a microsecond of its own
            breaker.admit("a")
        except CircuitOpen:
            pass

    return step


async def policy(cfg: CircuitBreakerConfig, send: Any) -> Bench:
    guard = Breaker(CircuitBreakerManager(lambda _: cfg))
    call: Any = Call()

    async def step() -> None:
        try:  # noqa: SIM105 - as above
            await guard(call, send)
        except ProviderError:
            pass

    await step()
    return awaited(step)


async def theirs(threshold: int, send: Any) -> Bench:
    breakers, call = AsyncCircuitBreakerFactory(default_threshold=threshold, default_ttl=3600), Call()

    async def step() -> None:
        try:
            async with await breakers.get_breaker("p"):
                await send(call)
        except (ProviderError, OpenedState):
            pass

    await step()
    return awaited(step)


async def cases() -> dict[str, Bench]:
    return {
        "": loop(lambda: None),
        "record, 10 failures in the window": record(COUNTING, 10),
        "record, 1,000": record(COUNTING, 1_000),
        "record, 100,000": record(COUNTING, 100_000),
        "record with rates, 10": record(RATES, 10),
        "record with rates, 1,000": record(RATES, 1_000),
        "record with rates, 100,000": record(RATES, 100_000),
        "admit + report, healthy": loop(well(COUNTING)),
        "admit + report, healthy, with rates": loop(well(RATES)),
        "admit + report, a failure": loop(badly(COUNTING)),
        "refusal, admit raises": loop(refused()),
        "policy, healthy": await policy(COUNTING, answer),
        "policy, healthy, with rates": await policy(RATES, answer),
        "purgatory, healthy": await theirs(NEVER, answer),
        "policy, a failure": await policy(COUNTING, fail),
        "purgatory, a failure": await theirs(NEVER, fail),
        "policy, refused": await policy(ONE, fail),
        "purgatory, refused": await theirs(1, fail),
    }


async def medians(runs: int, rounds: int) -> dict[str, float]:
    """µs a run."""
    live = await cases()
    found: dict[str, list[float]] = {name: [] for name in live}
    for _ in range(rounds):
        for name, case in live.items():
            found[name].append(await case(runs) / runs / 1000)
    middle = {name: statistics.median(values) for name, values in found.items()}
    empty = middle.pop("")
    return {name: value - empty for name, value in middle.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=5000)
    options.add_argument("--rounds", type=int, default=15)
    given = options.parse_args()
    print(f"Python {sys.version.split()[0]}, {given.rounds} rounds of {given.runs} runs, medians, CPU µs")
    for name, value in asyncio.run(medians(given.runs, given.rounds)).items():
        print(f"  {name:<38}{value:8.2f}")


if __name__ == "__main__":
    main()
