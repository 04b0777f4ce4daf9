"""DurableOrchestrator on DBOS and SQLite, in this process."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contract.kit import registry
from durable.kit import STEADY_CASES, Case, Lost, MemoryRunner, SeededModel, unordered, yes
from steer_llm_sdk.durable import DurableOrchestrator, QueueLimits, RunCancelled, _heart, _tables, runs_of
from steer_llm_sdk.errors import BudgetExceeded, ConflictError, InvalidRequest, OrchestratorError, StoreUnavailable
from steer_llm_sdk.orchestration.tools import LLMBundleTool
from steer_llm_sdk.reliability.budget import Budget
from steer_llm_sdk.reliability.shared.state import SharedState
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, err

KEYED = {"idempotency_key": "k"}


def durable(store: Any, *tools: Any, **given: Any) -> DurableOrchestrator:
    return DurableOrchestrator(store, registry=registry(*tools), **given)


@pytest.mark.parametrize("case", STEADY_CASES, ids=lambda case: case.name)
async def test_output_errors_events_and_replay_are_those_of_a_plain_run(case: Case, sqlite: str) -> None:
    plain = case.plain()
    async with case.durable(sqlite) as orchestrator:
        assert in_no_order(await case.run(orchestrator)) == in_no_order(await case.run(plain))
        for _ in range(2):
            mine, its = await case.run(orchestrator, **KEYED), await case.run(plain, **KEYED)
            assert in_no_order(mine) == in_no_order(its)
    async with case.durable(sqlite) as another:
        outcome, _ = await case.run(another, **KEYED)
        if its[0].get("replayed"):
            assert unordered(outcome) == unordered(its[0])


def in_no_order(came: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
    """Replicates that are made at the same time come in any order, and in one go or in several."""
    outcome, events = came
    return unordered(outcome), sorted((event for event in events if event[0] != "partial_summary"), key=repr)


async def test_a_run_that_is_late_says_so(sqlite: str) -> None:
    async with durable(sqlite, ScriptedTool("a", HANG)) as orchestrator:
        with pytest.raises(BudgetExceeded) as caught:
            await orchestrator.run("Why?", "a", options={"timeout_ms": 150, **KEYED})
    assert caught.value.budget_type == "time"


async def test_what_is_in_the_store_is_json_and_nothing_is_pickled(sqlite: str) -> None:
    async with durable(sqlite, ScriptedTool("a", OK("yes")), ScriptedTool("b", err(Lost("gone")))) as orchestrator:
        await orchestrator.run("Why?", "a", options=KEYED)
        await orchestrator.run("Why?", "b")
        with pytest.raises(InvalidRequest):
            await orchestrator.run("Why?", "a", {"x": object()})
    with sqlite3.connect(sqlite.removeprefix("sqlite:///")) as connection:
        written = "\n".join(connection.iterdump())
    connection.close()
    assert "portable_json" in written
    assert "py_pickle" not in written
    assert "gASV" not in written  # How a pickle begins.


@pytest.mark.parametrize(("queue", "tool_name"), [("test", "facts"), ("default", None)])
async def test_handed_in_runs_of_a_provider_keep_to_its_limit(sqlite: str, queue: str, tool_name: str | None) -> None:
    model = SeededModel(yes, after=0.2)
    running = [0, 0]

    class Counted(LLMBundleTool):
        async def execute(self, *given: Any) -> Any:
            running[0] += 1
            running[1] = max(running)
            try:
                return await super().execute(*given)
            finally:
                running[0] -= 1

    tool = Counted("facts", model, k=2)
    async with durable(sqlite, tool, queues={queue: QueueLimits(concurrency=1)}) as orchestrator:
        ids = [await orchestrator.submit(f"Why {number}?", tool_name) for number in range(3)]
        outputs = await asyncio.gather(*(orchestrator.result(run_id) for run_id in ids))
    assert [output.status for output in outputs] == ["succeeded"] * 3
    assert running == [0, 1]


async def test_a_process_that_works_for_nobody_else_carries_out_what_its_own_callers_wait_for(sqlite: str) -> None:
    tool = ScriptedTool("a", OK("yes"))
    async with durable(sqlite, tool, works=False) as orchestrator:
        run_id = await orchestrator.submit("Why?", "a")
        await asyncio.sleep(1.2)
        assert not tool.calls
        output = await orchestrator.result(run_id)
    assert (output.content, len(tool.calls)) == ("yes", 1)


async def test_a_run_is_cancelled_and_resumed_through_the_engine(sqlite: str) -> None:
    tool = ScriptedTool("a", HANG, OK("yes"))
    async with durable(sqlite, tool) as orchestrator:
        runner = await orchestrator.started()
        run = asyncio.create_task(orchestrator.run("Why?", "a", options=KEYED))
        while not tool.calls:
            await asyncio.sleep(0.02)
        await runner.cancel("default:k", "by hand")
        with pytest.raises(RunCancelled):
            await run
        assert [one.state for one in await runner.list()] == ["cancelled"]
        await runner.resume("default:k")
        output = await orchestrator.result("default:k")
    assert (output.content, len(tool.calls)) == ("yes", 2)


async def test_from_outside_nothing_is_written_with_a_sqlite_that_is_too_old_for_it(
    sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with durable(sqlite, ScriptedTool("a", OK("yes"))) as orchestrator:
        await orchestrator.run("Why?", "a", options=KEYED)
    monkeypatch.setattr(_tables, "sys", SimpleNamespace(version_info=(3, 13, 0), version="3.13.0 (main)"))
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    with closing(runs_of(sqlite)) as runs:
        for write in (runs.cancel, runs.resume):
            with pytest.raises(OrchestratorError, match=r"need SQLite 3\.42"):
                write("default:k")
        assert [one.state for one in runs.list()] == ["finished"]


async def test_what_has_ended_is_forgotten_after_its_time(sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with durable(sqlite, ScriptedTool("a", OK()), keep=0.01, heartbeat=2) as orchestrator:
        await orchestrator.run("Why?", "a")
        runner = await orchestrator.started()
        assert len(await runner.list()) == 1
        monkeypatch.setattr(_heart, "TIDY_EVERY", 0)
        while await runner.list():
            await asyncio.sleep(0.1)


async def test_a_process_has_one_at_a_time_and_goes_on_without_it(sqlite: str, tmp_path: Path) -> None:
    tool = ScriptedTool("a", OK())
    async with durable(sqlite, tool) as orchestrator:
        with pytest.raises(OrchestratorError, match="close that one first"):
            await durable(f"sqlite:///{tmp_path}/other.db", tool).started()
        assert (await orchestrator.run("Why?", "a")).status == "succeeded"
    assert await asyncio.to_thread(lambda: 7) == 7
    async with durable(sqlite, tool) as again:
        assert (await again.run("Why?", "a")).status == "succeeded"


async def test_a_store_that_cannot_be_reached_is_said_without_its_password(tmp_path: Path) -> None:
    tool = ScriptedTool("a", OK())
    for store in ("postgresql://user:secret@127.0.0.1:1/db", f"sqlite:///{tmp_path}"):
        with pytest.raises(StoreUnavailable) as caught:
            await durable(store, tool).run("Why?", "a")
        assert "secret" not in str(caught.value)
    assert not tool.calls


async def test_on_postgres_processes_share_their_budgets(postgres_url: str) -> None:
    tool = ScriptedTool("a", OK(cost_usd=0.9))
    options = {"budgets": [Budget("team", usd=0.9)]}
    async with durable(postgres_url, tool) as first:
        assert (await first.run("Why?", "a", options=options)).cost_usd == 0.9
    async with durable(postgres_url, tool) as second:
        with pytest.raises(BudgetExceeded, match=r"'team' exceeded: 1\.8 > 0\.9"):
            await second.run("Why?", "a", options=options)


def test_a_file_or_an_engine_shares_nothing_and_what_is_given_is_used(sqlite: str) -> None:
    elsewhere = SharedState("redis://127.0.0.1:1/0")
    there = durable("postgresql://u@127.0.0.1:1/db", shared=elsewhere)
    assert there.executor.shared is elsewhere
    assert [durable(store).executor.shared for store in (sqlite, MemoryRunner())] == [None, None]
    elsewhere.close()


async def test_every_process_has_a_name_of_its_own(sqlite: str) -> None:
    names = set()
    for _ in range(2):
        async with durable(sqlite, ScriptedTool("a", OK())) as orchestrator:
            names.add((await orchestrator.started()).worker)
    assert len(names) == 2


async def test_a_conflict_between_processes_is_one(sqlite: str) -> None:
    async with durable(sqlite, ScriptedTool("a", OK())) as first:
        await first.run("Why?", "a", options=KEYED)
    async with durable(sqlite, ScriptedTool("a", OK())) as second:
        with pytest.raises(ConflictError):
            await second.run("How?", "a", options=KEYED)
        assert (await second.run("Why?", "a", options=KEYED)).replayed


def test_without_the_extra_it_is_named_when_it_is_needed() -> None:
    code = (
        "import sys; sys.modules['dbos'] = None\n"
        "from steer_llm_sdk.durable import DurableOrchestrator, runs_of\n"
        "import asyncio\n"
        "for needs in (lambda: runs_of('sqlite:///x.db'), lambda: asyncio.run(start())):\n"
        "    async def start(): await DurableOrchestrator('sqlite:///x.db').started()\n"
        "    try: needs()\n"
        '    except ImportError as error: assert "the extra `durable`" in str(error), error\n'
        "    else: raise SystemExit('it was not needed')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
