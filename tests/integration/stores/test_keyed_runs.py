"""Keyed runs of orchestrators that share a store, as those of two processes do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from servers import RedisServer
from steer_llm_sdk.errors import BudgetExceeded, ConflictError, InFlight, InvalidRequest, StoreUnavailable
from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.reliability import IdempotencyManager
from steer_llm_sdk.reliability.stores import Store
from steer_llm_sdk.testing import OK, RecordedEvents, ScriptedTool, err

KEYED = {"idempotency_key": "k"}
NEVER = "redis://127.0.0.1:1/0"
"""Nobody is there."""


def runner(tool: ScriptedTool, store: Store | str | None = None, **config: Any) -> ReliableOrchestrator:
    registry = ToolRegistry()
    registry.register_tool(tool)
    return ReliableOrchestrator(registry=registry, reliability_config=ReliabilityConfig(**config), store=store)


class Held(ScriptedTool):
    """Has been `asked`, and answers when it is `let`."""

    def __init__(self, name: str, *steps: Any) -> None:
        super().__init__(name, *steps)
        self.asked, self.let = asyncio.Event(), asyncio.Event()

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        self.asked.set()
        await self.let.wait()
        return await super().execute(request, options, event_manager)


async def test_duplicates_in_two_processes_run_once_and_all_get_equal_outputs(url: str) -> None:
    tool = ScriptedTool("t", OK({"a": "ä", "b": [1.5, None]}, after=0.3))
    async with runner(tool, url) as one, runner(tool, url) as other:
        outputs = await asyncio.gather(*(each.run("q", "t", options=KEYED) for each in (one, other) * 5))
        assert len(tool.calls) == 1
        assert all(output == outputs[0] for output in outputs)
        assert [output.replayed for output in outputs].count(False) == 1
        with pytest.raises(ConflictError, match="used with different request"):
            await other.run("another", "t", options=KEYED)
    async with runner(tool, url) as later:
        again = await later.run("q", "t", options=KEYED)
    assert (again, again.replayed, len(tool.calls)) == (outputs[0], True, 1)


async def test_who_is_not_to_wait_is_told_in_which_process_ever_the_run_is(url: str) -> None:
    tool = Held("t", OK("x"))
    async with runner(tool, url) as one, runner(tool, url, on_duplicate="raise") as other:
        first = asyncio.create_task(one.run("q", "t", options=KEYED))
        await tool.asked.wait()
        with pytest.raises(InFlight) as caught:
            await other.run("q", "t", options=KEYED)
        assert caught.value.retry_after == 1.0
        tool.let.set()
        assert await first == await other.run("q", "t", options=KEYED)


async def test_a_leader_whose_time_is_up_leaves_the_call_to_the_one_who_waits_elsewhere(url: str) -> None:
    tool = ScriptedTool("t", OK("x", after=4.0))
    async with runner(tool, url) as one, runner(tool, url) as other:
        first = asyncio.create_task(one.run("q", "t", options={**KEYED, "timeout_ms": 3000}))
        async with asyncio.timeout(3):
            while not tool.calls:
                await asyncio.sleep(0.005)
        second = asyncio.create_task(other.run("q", "t", options={**KEYED, "timeout_ms": 20_000}))
        with pytest.raises(BudgetExceeded):
            await first
        assert (await second).content == "x"
        assert (len(tool.calls), tool.cancelled) == (1, 0)


async def test_a_failure_that_may_pass_is_not_remembered_and_a_final_one_is(url: str) -> None:
    tool = ScriptedTool("t", err(503), OK("x"))
    options = {**KEYED, "retry_on_failure": False}
    async with runner(tool, url) as one, runner(tool, url) as other:
        assert (await one.run("q", "t", options=options)).status == "failed"
        assert (await other.run("q", "t", options=options)).content == "x"
    tool = ScriptedTool("t", err(400), OK("x"))
    final = {**options, "idempotency_key": "final"}
    async with runner(tool, url) as one, runner(tool, url) as other:
        failed = await one.run("q", "t", options=final)
        assert failed == await other.run("q", "t", options=final)
        assert (failed.status, len(tool.calls)) == ("failed", 1)


async def test_a_keyed_run_without_its_store_is_refused_and_one_without_a_key_does_not_notice() -> None:
    tool = ScriptedTool("t", OK("x"))
    async with runner(tool, NEVER) as one:
        with pytest.raises(StoreUnavailable, match=r"not started: redis://127\.0\.0\.1:1/0 did not answer"):
            await one.run("q", "t", options=KEYED)
        assert tool.calls == []
        assert (await one.run("q", "t")).content == "x"


async def test_a_run_that_goes_on_without_its_store_says_so_in_its_output_and_in_an_event() -> None:
    tool, events = ScriptedTool("t", OK("x")), RecordedEvents()
    async with runner(tool, NEVER, on_store_down="run_unprotected") as one:
        output = await one.run("q", "t", options=KEYED, event_manager=events)
    assert (output.content, output.metadata["idempotency"]) == ("x", "unprotected")
    (warning,) = events.data("warning")
    assert warning["idempotency"] == "unprotected"
    assert "redis://127.0.0.1:1/0 did not answer" in warning["message"]


async def test_a_store_that_dies_during_a_run_costs_neither_the_result_nor_when_it_is_back_the_memory_of_it() -> None:
    tool = Held("t", OK("x"))
    with RedisServer(durable=True) as server:
        async with runner(tool, server.url) as one, runner(tool, server.url) as other:
            running = asyncio.create_task(one.run("q", "t", options=KEYED))
            await tool.asked.wait()
            server.kill()
            tool.let.set()
            output = await running
            assert (output.content, output.metadata["idempotency"]) == ("x", "not_remembered")
            server.start()
            replay = await other.run("q", "t", options=KEYED)
            assert (replay.content, replay.replayed, len(tool.calls)) == ("x", True, 1)
            assert "idempotency" not in replay.metadata


async def test_a_store_that_is_silent_is_down_after_two_seconds_and_blocks_nobody_later(
    redis_server: RedisServer, redis_url: str
) -> None:
    tool = ScriptedTool("t", OK("x"))
    async with runner(tool, redis_url) as one:
        await one.run("q", "t", options={"idempotency_key": "warm"})
        redis_server.pause()
        with pytest.raises(StoreUnavailable, match="within 2 s"):
            await one.run("q", "t", options=KEYED)
        redis_server.resume()
        async with asyncio.timeout(5):  # The claim that nobody waits for is granted now, and given back.
            assert (await one.run("q", "t", options=KEYED)).content == "x"


async def test_the_environment_names_the_store_of_an_orchestrator_that_is_given_none(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = ScriptedTool("t", OK("x"))
    monkeypatch.setenv("STEER_STORE", url)
    for replayed in (False, True):
        async with runner(tool) as one:
            assert (await one.run("q", "t", options=KEYED)).replayed is replayed
    async with runner(tool, "memory://") as apart:
        assert not (await apart.run("q", "t", options=KEYED)).replayed


async def test_a_store_that_was_given_open_is_not_closed_and_may_be_shared(store: Store) -> None:
    tool = ScriptedTool("t", OK("x"))
    for replayed in (False, True):
        async with runner(tool, store) as one:
            assert (await one.run("q", "t", options=KEYED)).replayed is replayed
    assert (await store.claim("other", "f", 1, 1)).kind == "ours"


def test_run_sync_and_loops_of_ones_own_may_use_one_orchestrator(url: str) -> None:
    tool = ScriptedTool("t", OK("x"))
    one = runner(tool, url)

    async def closing(run: Callable[[], Awaitable[Any]]) -> Any:
        output = await run()
        await one.aclose()
        return output

    first = one.run_sync("q", "t", options=KEYED)
    again = asyncio.run(closing(lambda: one.run("q", "t", options=KEYED)))
    last = one.run_sync("q", "t", options=KEYED)
    assert first == again == last
    assert len(tool.calls) == 1
    asyncio.run(one.aclose())


def test_a_store_and_a_manager_that_has_one_are_one_too_many(tmp_path: Path) -> None:
    url = "redis://user:hunter2@host/0"
    with pytest.raises(InvalidRequest, match=r"store: .*IdempotencyManager\(store=") as caught:
        ReliableOrchestrator(idempotency_manager=IdempotencyManager(), store=url)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(TypeError, match="store: expected a URL or a Store, got int"):
        ReliableOrchestrator(store=7)  # type: ignore[arg-type]

    class Plain(IdempotencyManager):
        async def get(self, key: str) -> Any:
            return None

    with pytest.raises(ValueError, match="Plain keeps results with its own get and store"):
        Plain(store="memory://")
