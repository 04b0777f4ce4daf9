"""What the library adds to the first token of a stream, and what a refusal costs.

    python benchmarks/streaming.py [--runs N] [--rounds N]

A model adapter in this process yields its text at once, so what is measured is the library alone: the time from the
call to the first piece of text, beside the same adapter asked directly, interleaved in one process. The mark is on the
CPU time of the thread: nothing is waited for, and the clock's p99 is that of whoever else uses the machine.

A refusal is a call that an open circuit turns away: by the breaker itself, and as a whole run up to its failed output.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from steer_llm_sdk.errors import CircuitOpen
from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import OrchestrationConfig, ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.orchestration.tools import LLMTool
from steer_llm_sdk.providers.base import Message, ModelReply, ModelRequest
from steer_llm_sdk.reliability import CircuitBreaker, CircuitBreakerConfig
from steer_llm_sdk.reliability.circuit import FAILURE

FIRST_TOKEN_MS, REFUSAL_US = 1.0, 5.0
PIECES = ("The ", "answer ", "is ", "42.")


class Local:
    """A model in this process. It waits one turn of the loop before each piece, as one on a socket would."""

    name = "local:model"
    target = "local"

    async def prepare(self) -> None:
        """Always ready."""

    async def request(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelReply:
        for piece in PIECES:
            await asyncio.sleep(0)
            if on_text is not None:
                on_text(piece)
        return ModelReply(text="".join(PIECES), model=self.name, usage={"total_tokens": 20}, cost_usd=0.0)

    def worst_case(self, request: ModelRequest) -> Amount:
        return Amount(100, 0.01)

    async def aclose(self) -> None:
        """Nothing is open."""


Measured = tuple[int, int]
"""Nanoseconds from the call to the first piece: on the clock, and of CPU."""


class Stopwatch:
    def __init__(self) -> None:
        self._began = time.perf_counter_ns(), time.thread_time_ns()
        self.first: Measured | None = None

    def piece(self, text: str) -> None:
        if self.first is None:
            self.first = time.perf_counter_ns() - self._began[0], time.thread_time_ns() - self._began[1]


async def direct() -> Measured:
    watch = Stopwatch()
    await Local().request(ModelRequest(messages=(Message("user", "Why?"),)), watch.piece)
    assert watch.first is not None
    return watch.first


def through(options: OrchestrationConfig, config: ReliabilityConfig | None = None) -> Callable[[], Awaitable[Measured]]:
    registry = ToolRegistry()
    registry.register_tool(LLMTool("ask", Local()))
    orchestrator = ReliableOrchestrator(reliability_config=config, registry=registry)

    async def run() -> Measured:
        watch = Stopwatch()
        async with orchestrator.stream("Why?", "ask", options=options) as events:
            async for event in events:
                if isinstance(event, StreamDeltaEvent) and isinstance(event.delta, str):
                    watch.piece(event.delta)
        assert watch.first is not None
        assert events.output.content == "".join(PIECES)
        return watch.first

    return run


async def first_tokens(runs: int, rounds: int) -> dict[str, list[Measured]]:
    everything = OrchestrationConfig(
        timeout_ms=30_000, per_agent_timeout_ms=20_000, budget={"tokens": 1e9, "cost_usd": 1e6}
    )
    cases = {
        "the adapter alone": direct,
        "a default run": through(OrchestrationConfig()),
        "… deadline, attempt limit, budget": through(everything),
    }
    found: dict[str, list[Measured]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            measured = [await case() for _ in range(runs)]
            if number:  # The first round only warms up.
                found[name] += measured
    return found


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[max(0, round(share * len(values)) - 1)]


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def opened(breaker: CircuitBreaker) -> CircuitBreaker:
    for _ in range(breaker.config.failure_threshold):
        breaker.report(breaker.admit("ask"), "ask", FAILURE)
    assert breaker.is_open
    return breaker


async def refusals(count: int) -> dict[str, float]:
    """Microseconds of CPU for each call that is turned away."""
    breaker = opened(CircuitBreaker("local", CircuitBreakerConfig(timeout=3600)))

    registry = ToolRegistry()
    registry.register_tool(LLMTool("ask", Local()))
    orchestrator = ReliableOrchestrator(registry=registry)
    opened(orchestrator.executor.breakers.get_or_create("local"))

    async def run() -> None:
        output = await orchestrator.run("Why?", "ask")
        assert output.status == "failed"

    async def admit() -> None:
        try:
            breaker.admit("ask")
        except CircuitOpen:
            return
        raise AssertionError("an open circuit let a call through")

    cases = {"the breaker": admit, "a whole run, to its output": run}
    found = {}
    for name, case in cases.items():
        rounds = []
        for _ in range(15):
            began = time.thread_time_ns()
            for _ in range(count):
                await case()
            rounds.append((time.thread_time_ns() - began) / count / 1000)
        found[name] = statistics.median(rounds)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=200)
    options.add_argument("--rounds", type=int, default=20)
    given = options.parse_args()
    gc.collect()
    found = asyncio.run(first_tokens(given.runs, given.rounds))
    print(
        f"Python {sys.version.split()[0]}, {given.rounds} rounds of {given.runs} runs, time to the first piece of text"
    )
    print("| | p50 ms | p99 ms | p99 added ms | p50 CPU ms | p99 CPU added ms |")
    print("| --- |" + " ---: |" * 5)
    bare = found["the adapter alone"]
    held = True
    for name, measured in found.items():
        clock, cpu = ([value / 1e6 for value in values] for values in zip(*measured, strict=True))
        pairs = list(zip(measured, bare, strict=True))
        added = [percentile([ours[of] - alone[of] for ours, alone in pairs], 0.99) / 1e6 for of in (0, 1)]
        held = held and added[1] <= FIRST_TOKEN_MS
        print(
            f"| {name} | {percentile(clock, 0.5):.3f} | {percentile(clock, 0.99):.3f} | {added[0]:.3f} "
            f"| {percentile(cpu, 0.5):.3f} | {added[1]:.3f} |"
        )
    print(f"mark: at most {FIRST_TOKEN_MS:g} ms of CPU added at p99: {'held' if held else 'MISSED'}\n")
    turned_away = asyncio.run(refusals(2000))
    for name, cost in turned_away.items():
        print(f"refused by {name}: {cost:.1f} µs of CPU")
    fast = turned_away["the breaker"] <= REFUSAL_US
    print(f"mark: a refusal by the breaker takes at most {REFUSAL_US:g} µs: {'held' if fast else 'MISSED'}")
    return 0 if held and fast else 1


if __name__ == "__main__":
    sys.exit(main())
