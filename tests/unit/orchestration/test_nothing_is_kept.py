"""A run that has ended keeps nothing: what it was sent is freed at once, without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from contract.kit import Fixed, reliable
from steer_llm_sdk.orchestration import ReliableOrchestrator, Tool
from steer_llm_sdk.reliability import HedgingPolicy, RateLimit

LIMIT = RateLimit(max_concurrent=2, requests_per_minute=600)


class Request:
    """Something that a weak reference can point to."""


class Plays(Tool):
    """Answers, fails, or waits so many seconds, in turn and then from the start. It keeps nothing it is given."""

    def __init__(self, name: str, *steps: Any) -> None:
        self._name = name
        self._steps = steps
        self._asked = 0

    @property
    def name(self) -> str:
        return self._name

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        step = self._steps[self._asked % len(self._steps)]
        self._asked += 1
        if isinstance(step, type):
            raise step("no")
        await asyncio.sleep(step)
        return "yes"


@pytest.fixture(autouse=True)
def _nobody_keeps_the_log() -> Iterator[None]:
    """A bug of a tool is logged with its traceback, and pytest keeps all records of a test."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(autouse=True)
def _no_garbage_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("options", [{}, {"timeout_ms": 5000}, {"per_agent_timeout_ms": 5000}, {"timeout_ms": 60_000}])
@pytest.mark.parametrize(
    ("runner", "status"),
    [
        (lambda: reliable(Plays("t", 1)), "succeeded"),
        (lambda: reliable(Plays("t", ValueError)), "failed"),
        (lambda: reliable(Plays("t", ConnectionError), retry_budget=None), "failed"),
        (lambda: reliable(Plays("t", ConnectionError, 0)), "succeeded"),
        (lambda: reliable(Plays("t", 1, 1, 1, 3), hedging=HedgingPolicy(min_samples=2)), "succeeded"),
        (lambda: reliable(Plays("t", 0), Plays("u", 0)), "succeeded"),
        (lambda: reliable(Plays("t", 4), Plays("u", 0), silence_timeout=1), "succeeded"),
        (lambda: reliable(Plays("t", ConnectionError, 0), rate_limits={"t": LIMIT}), "succeeded"),
        (lambda: reliable(Plays("t", ValueError), rate_limits={"t": LIMIT}), "failed"),
    ],
    ids=[
        *("answers", "fails", "fails after retries", "answers at a retry", "hedged", "with a fallback", "beside"),
        *("answers at a retry under a limit", "fails under a limit"),
    ],
)
@pytest.mark.parametrize("breaker", [True, False], ids=["with a breaker", "without"])
async def test_what_a_run_was_sent_is_freed_when_it_has_ended(
    runner: Any, status: str, options: dict[str, Any], breaker: bool
) -> None:
    orchestrator: ReliableOrchestrator = runner()
    for _ in range(8):
        request = Request()
        seen = weakref.ref(request)
        tool_name = None if isinstance(orchestrator.planner, Fixed) else "t"
        output = await orchestrator.run(request, tool_name, None, {**options, "enable_circuit_breaker": breaker})
        assert output.status == status
        await asyncio.sleep(60)  # A breaker that has opened lets a probe through.
        del request
        await asyncio.sleep(0)
        assert seen() is None


async def test_so_is_what_an_attempt_was_sent_that_failed_at_once_where_it_might_be_hedged() -> None:
    runner = reliable(Plays("t", 1, 1, 1, ConnectionError, 0), hedging=HedgingPolicy(min_samples=2))
    for _ in range(3):
        await runner.run("q", "t")
    request = Request()
    seen = weakref.ref(request)
    output = await runner.run(request, "t")
    assert [attempt["outcome"] for attempt in output.attempts] == ["failed", "succeeded"]
    del request
    await asyncio.sleep(0)
    assert seen() is None
