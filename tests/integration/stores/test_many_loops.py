"""One store in memory, and callers on event loops of their own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.orchestration import OrchestrationOutput, ReliableOrchestrator, Tool, ToolRegistry


class Held(Tool):
    """Answers when it is told to."""

    name = "held"

    def __init__(self) -> None:
        self.calls = 0
        self.answer = asyncio.Event()

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        self.calls += 1
        await self.answer.wait()
        return "done"


@pytest.mark.parametrize("leaves", ["cancelled", "late"])
async def test_a_leader_that_leaves_leaves_the_work_to_those_on_other_loops(leaves: str) -> None:
    tool, registry = Held(), ToolRegistry()
    registry.register_tool(tool)
    runner = ReliableOrchestrator(registry=registry)
    options: dict[str, Any] = {"idempotency_key": "k"}
    outputs: list[OrchestrationOutput] = []

    def follow() -> None:
        outputs.append(asyncio.run(runner.run("q", "held", options=options)))

    limited = {**options, "timeout_ms": 1500} if leaves == "late" else options
    leader = asyncio.create_task(runner.run("q", "held", options=limited))
    while not tool.calls:
        await asyncio.sleep(0)
    followers = [threading.Thread(target=follow) for _ in range(2)]
    for follower in followers:
        follower.start()
    while not await runner.idempotency_manager.claims.wanted("default:k", 1):
        await asyncio.sleep(0.01)
    if leaves == "cancelled":
        leader.cancel()
    with pytest.raises((asyncio.CancelledError, BudgetExceeded)):
        await leader
    tool.answer.set()
    for follower in followers:
        await asyncio.to_thread(follower.join)
    assert [(output.content, output.replayed) for output in outputs] == [("done", True)] * 2
    assert tool.calls == 1


async def test_where_nobody_waits_elsewhere_the_work_is_given_up_with_its_last_caller() -> None:
    tool, registry = Held(), ToolRegistry()
    registry.register_tool(tool)
    runner = ReliableOrchestrator(registry=registry)
    leader = asyncio.create_task(runner.run("q", "held", options={"idempotency_key": "k"}))
    while not tool.calls:
        await asyncio.sleep(0)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    tool.answer.set()
    output = await runner.run("q", "held", options={"idempotency_key": "k"})
    assert (output.replayed, tool.calls) == (False, 2)
