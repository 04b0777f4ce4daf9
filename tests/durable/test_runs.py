"""What becomes of a durable run when its caller leaves, its key comes again, its time is up, or it is cancelled."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contract.kit import STEADY, Fixed, bundle, registry
from durable.kit import Crash, MemoryRunner, SeededModel, bundle_tool, calls_of, yes
from steer_llm_sdk.durable import DurableOrchestrator, QueueLimits, RunCancelled, _tables
from steer_llm_sdk.durable._tables import Store
from steer_llm_sdk.errors import (
    BudgetExceeded,
    ConflictError,
    InvalidRequest,
    OrchestratorError,
    StoreUnavailable,
    ToolNotFound,
)
from steer_llm_sdk.orchestration import PlanDecision, Planner, ReliabilityConfig, ReliableOrchestrator, Tool
from steer_llm_sdk.orchestration.tools import LLMBundleTool
from steer_llm_sdk.reliability import CircuitBreakerConfig
from steer_llm_sdk.reliability.budget import Budget
from steer_llm_sdk.testing import HANG, OK, RecordedEvents, ScriptedTool, err

KEYED = {"idempotency_key": "k"}


@pytest.fixture
async def runner() -> MemoryRunner:
    return MemoryRunner()


def durable(runner: MemoryRunner, *tools: Tool, planner: Planner | None = None, **fields: Any) -> DurableOrchestrator:
    config = ReliabilityConfig(**{"retry_policy": STEADY, **fields})
    return DurableOrchestrator(runner, planner, config, registry=registry(*tools))


def slow_bundle() -> LLMBundleTool:
    return LLMBundleTool("facts", SeededModel(yes, after=1.0), k=5)


async def test_the_simplest_run_of_all_is_durable_too(runner: MemoryRunner) -> None:
    """Without a key, a deadline or an event manager a plain run takes a short cut."""
    output = await durable(runner, ScriptedTool("a", OK("yes"))).run("Why?", "a")
    assert output.content == "yes"
    assert len(runner.runs) == 1


# ── the key ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_another_orchestrator_replays_what_the_first_one_came_to(runner: MemoryRunner) -> None:
    tool = ScriptedTool("a", OK("yes"))
    first = await durable(runner, tool).run("Why?", "a", options=KEYED)
    second = await durable(runner, tool).run("Why?", "a", options=KEYED)
    assert (second, second.replayed, len(tool.calls)) == (first, True, 1)


async def test_a_key_of_another_request_is_a_conflict_before_the_engine_is_asked(runner: MemoryRunner) -> None:
    tool = ScriptedTool("a", OK())
    await durable(runner, tool).run("Why?", "a", options=KEYED)
    for asked in (("How?", "a"), ("Why?", None)):
        with pytest.raises(ConflictError, match="used with different request"):
            await durable(runner, tool).run(*asked, options=KEYED)
    assert list(runner.runs) == ["default:k"]


async def test_tenants_have_keys_of_their_own(runner: MemoryRunner) -> None:
    orchestrator = durable(runner, ScriptedTool("a", OK()))
    await orchestrator.run("Why?", "a", options=KEYED)
    await orchestrator.run("How?", "a", options={**KEYED, "tenant": "a:b"})
    assert list(runner.runs) == ["default:k", "a%3Ab:k"]


async def test_a_failure_that_a_later_try_could_cure_is_not_remembered_and_nothing_of_it_is_kept(
    runner: MemoryRunner,
) -> None:
    tool = ScriptedTool("a", err(503), OK("yes"))
    options = {**KEYED, "retry_on_failure": False}
    first = await durable(runner, tool).run("Why?", "a", options=options)
    second = await durable(runner, tool).run("Why?", "a", options=options)
    assert (first.status, second.status, second.replayed) == ("failed", "succeeded", False)
    assert list(runner.runs) == ["default:k", "default#2:k"]


@pytest.mark.parametrize("remember", [True, False])
async def test_a_final_failure_is_remembered_where_failures_are(runner: MemoryRunner, remember: bool) -> None:
    tool = ScriptedTool("a", err(400))
    for _ in range(2):
        output = await durable(runner, tool, remember_failures=remember).run("Why?", "a", options=KEYED)
    assert (output.status, output.replayed, len(tool.calls)) == ("failed", remember, 1 if remember else 2)


async def test_five_at_once_in_two_processes_run_once(runner: MemoryRunner) -> None:
    tool = ScriptedTool("a", OK("yes", after=1.0))
    one, other = durable(runner, tool), durable(runner, tool)
    outputs = await asyncio.gather(*(each.run("Why?", "a", options=KEYED) for each in (one, other, one, other, other)))
    assert len(tool.calls) == 1
    assert all(output == outputs[0] for output in outputs)
    assert [output.replayed for output in outputs].count(False) == 1


async def test_a_store_that_does_not_answer_starts_no_keyed_run() -> None:
    class Down(MemoryRunner):
        async def claim(self, key: str, fingerprint: str) -> Any:
            raise ConnectionError("postgresql://user:secret@host")

    tool = ScriptedTool("a", OK())
    with pytest.raises(StoreUnavailable) as caught:
        await durable(Down(), tool).run("Why?", "a", options=KEYED)
    assert "secret" not in str(caught.value)
    assert not tool.calls


# ── cut off, and gone on with ────────────────────────────────────────────────────────────────────────────────────────


async def test_what_a_cancelled_run_has_bought_is_not_bought_again_by_the_next(runner: MemoryRunner) -> None:
    tool, events = slow_bundle(), RecordedEvents()
    given = ("Why?", "facts", {"max_parallel": 1})
    first = asyncio.create_task(durable(runner, tool).run(*given, KEYED))
    await asyncio.sleep(3.5)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.sleep(0.1)
    assert (runner.runs["default:k"].state, calls_of([tool])) == ("cancelled", 4)
    output = await durable(runner, tool).run(*given, KEYED, events)
    assert (output.status, output.replayed, output.per_agent["facts"]["attempts"]) == ("succeeded", False, 5)
    assert calls_of([tool]) == 4 + 2
    assert events.types.count("replicate_done") == 5


async def test_what_was_bought_two_runs_ago_is_still_not_bought_again(runner: MemoryRunner) -> None:
    tool = slow_bundle()
    for _ in range(3):
        run = asyncio.create_task(durable(runner, tool).run("Why?", "facts", {"max_parallel": 1}, KEYED))
        await asyncio.sleep(1.5)
        run.cancel()
        await asyncio.wait([run])
        await asyncio.sleep(0.1)
    output = await durable(runner, tool).run("Why?", "facts", {"max_parallel": 1}, KEYED)
    assert (output.status, calls_of([tool])) == ("succeeded", 3 * 2 + 2)


async def test_one_with_more_time_in_another_process_goes_on_where_one_with_less_has_left(
    runner: MemoryRunner,
) -> None:
    tool = ScriptedTool("a", OK("late", after=9.0), OK("yes", after=3.0))
    hasty = durable(runner, tool).run("Why?", "a", options={**KEYED, "timeout_ms": 2000})
    patient = durable(runner, tool).run("Why?", "a", options={**KEYED, "timeout_ms": 8000})
    cut, whole = await asyncio.gather(hasty, patient, return_exceptions=True)
    assert isinstance(cut, BudgetExceeded)
    assert not isinstance(whole, BaseException)
    assert (whole.content, len(tool.calls)) == ("yes", 2)


async def test_a_run_that_is_cancelled_from_outside_is_told_to_those_who_wait(runner: MemoryRunner) -> None:
    tool = ScriptedTool("a", HANG)
    waiting = asyncio.create_task(durable(runner, tool).run("Why?", "a", options=KEYED))
    await asyncio.sleep(1)
    joining = asyncio.create_task(durable(runner, tool).run("Why?", "a", options=KEYED))
    await asyncio.sleep(1)
    await runner.cancel("default:k", "by hand")
    with pytest.raises(RunCancelled, match="default:k"):
        await joining
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_the_deadline_is_that_of_the_request_however_long_nobody_worked_on_it(runner: MemoryRunner) -> None:
    tool = ScriptedTool("a", OK())
    orchestrator = durable(runner, tool)
    run_id = await orchestrator.submit("Why?", "a", options={"timeout_ms": 1000})
    await asyncio.sleep(5)
    await runner.go_on(run_id)
    with pytest.raises(BudgetExceeded) as caught:
        await orchestrator.result(run_id)
    assert (caught.value.budget_type, caught.value.limit, len(tool.calls)) == ("time", 1000, 0)


async def test_what_a_bundle_had_when_its_time_was_up_is_reported_and_nothing_more_is_bought(
    runner: MemoryRunner,
) -> None:
    tool, options = slow_bundle(), {"timeout_ms": 10_000}
    runner.dies_at = 8  # When three replicates are recorded.
    dying = durable(runner, tool).run("Why?", "facts", {"max_parallel": 1}, options)
    await asyncio.wait([asyncio.create_task(dying)])
    runner.dies_at = None
    await asyncio.sleep(60)
    bought, orchestrator = calls_of([tool]), durable(runner, tool)
    await orchestrator.started()
    (run_id,) = runner.runs
    await runner.go_on(run_id)
    output = await orchestrator.result(run_id)
    assert (output.status, len(output.evidence.replicates), calls_of([tool])) == ("partial", 3, bought)


async def test_the_time_that_nobody_worked_on_it_counts(runner: MemoryRunner) -> None:
    orchestrator = durable(runner, ScriptedTool("a", OK(after=1.0)))
    run_id = await orchestrator.submit("Why?", "a")
    await asyncio.sleep(5)
    await runner.go_on(run_id)
    output = await orchestrator.result(run_id)
    assert (output.elapsed_ms, output.attempts[0]["started_ms"]) == (6000, 5000)


async def test_the_plan_is_the_one_that_was_made_first(runner: MemoryRunner) -> None:
    runner.dies_at = 2
    a, b = ScriptedTool("a", OK("from a")), ScriptedTool("b", OK("from b"))
    task = asyncio.create_task(durable(runner, a, b, planner=Fixed("a")).run("Why?"))
    await asyncio.wait([task])
    assert isinstance(task.exception(), BaseException)
    runner.dies_at = None
    second = durable(runner, a, b, planner=Fixed("b"))
    await second.started()
    (run_id,) = runner.runs
    await runner.go_on(run_id)
    output = await second.result(run_id)
    assert (output.content, output.metadata["plan"]["selected_tool"]) == ("from a", "a")


async def test_the_version_that_was_planned_is_the_one_that_goes_on(runner: MemoryRunner) -> None:
    old, new = ScriptedTool("a", OK("old")), ScriptedTool("a", OK("new"))
    new.version = "2.0.0"
    await durable(runner, old).run("Why?", "a", options=KEYED)
    runner.runs["default:k"].steps.pop("a@1.0.0#1")
    both = durable(runner, old, new)
    await both.started()
    ended = await runner.go_on("default:k")
    assert (ended["output"]["content"], ended["output"]["metadata"]["tool_version"]) == ("old", "1.0.0")


async def test_a_recorded_call_is_given_back_though_its_circuit_is_open_by_now(runner: MemoryRunner) -> None:
    breaker = CircuitBreakerConfig(failure_threshold=1)
    good, bad = ScriptedTool("a", OK("yes")), ScriptedTool("a", err(503))
    first = durable(runner, good, circuit_breaker_configs={"default": breaker})
    runner.dies_at = 4  # When its one call is recorded.
    task = asyncio.create_task(first.run("Why?", "a"))
    await asyncio.wait([task])
    runner.dies_at = None
    second = durable(runner, bad, circuit_breaker_configs={"default": breaker}, max_total_attempts=1)
    await second.run("Why?", "a", options={"retry_on_failure": False})
    assert second.breakers["a"]["state"] == "open"
    await runner.go_on(next(iter(runner.runs)))
    assert (await second.result(next(iter(runner.runs)))).content == "yes"


# ── what is recorded ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_no_json_is_refused_before_anything_is_asked(runner: MemoryRunner) -> None:
    tool = ScriptedTool("a", OK())
    orchestrator = durable(runner, tool)
    for request, options in ((object(), {}), ("Why?", {"x": object()}), ({"x": float("nan")}, {})):
        with pytest.raises(InvalidRequest, match="must be JSON"):
            await orchestrator.run(request, "a", options)
    with pytest.raises(InvalidRequest, match="must be JSON"):
        await durable(runner, tool, planner=Fixed("a", options={"x": object()})).run("Why?")
    assert not tool.calls


async def test_a_result_that_is_no_json_is_handed_on_and_bought_again_where_the_run_is_taken_over(
    runner: MemoryRunner, caplog: pytest.LogCaptureFixture
) -> None:
    class Composite(ScriptedTool):
        composite = True

        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            from steer_llm_sdk.orchestration._call import protected

            found = await protected(self.ask, target="a", part="a")
            return {"content": len(found)}

        async def ask(self) -> set[int]:
            self.asked = getattr(self, "asked", 0) + 1
            return {1, 2}

    tool = Composite("a", OK())
    orchestrator = durable(runner, tool)
    output = await orchestrator.run("Why?", "a", options=KEYED)
    assert (output.content, tool.asked) == (2, 1)
    assert "cannot be recorded" in caplog.text
    await runner.go_on("default:k")
    assert (tool.asked, runner.recorded) == (2, ["plan", "a@1.0.0#1", "a@1.0.0#1+"])


async def test_a_run_within_a_run_is_a_part_of_its_step(runner: MemoryRunner) -> None:
    inner = ScriptedTool("inner", OK("deep"))

    class Outer(ScriptedTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            return (await orchestrator.run("Why?", "inner")).content

    orchestrator = durable(runner, inner, Outer("outer", OK()))
    assert (await orchestrator.run("Why?", "outer", options=KEYED)).content == "deep"
    assert (list(runner.runs), runner.recorded) == (["default:k"], ["plan", "outer@1.0.0#1"])


async def test_a_shared_budget_is_charged_once_for_what_was_bought_once(runner: MemoryRunner) -> None:
    tool = bundle_tool()
    orchestrator = durable(runner, tool)
    options = {**KEYED, "budgets": (Budget("team", usd=1),)}
    run = asyncio.create_task(orchestrator.run("Why?", "facts", {"max_parallel": 1}, options))
    await asyncio.sleep(0.12)
    run.cancel()
    await asyncio.wait([run])
    await asyncio.sleep(0.01)
    bought = orchestrator.budgets["team"]["spent"]["usd"]
    output = await orchestrator.run("Why?", "facts", {"max_parallel": 1}, options)
    assert output.cost_usd == pytest.approx(0.05)
    assert orchestrator.budgets["team"]["spent"]["usd"] == pytest.approx(bought + 0.03)


async def test_a_bundle_tool_of_ones_own_is_one_step(runner: MemoryRunner) -> None:
    made = bundle("yes", "no", confidence=0.5, usage={"total_tokens": 3}, cost=0.1)
    tool = ScriptedTool("a", OK(made))
    first = await durable(runner, tool).run("Why?", "a", options=KEYED)
    ended = await runner.go_on("default:k")
    again = await durable(runner, tool).result("default:k")
    assert (again.content, again.evidence, len(tool.calls)) == (first.content, first.evidence, 1)
    assert ended["output"]["usage"] == {"total_tokens": 3}


# ── handed in ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_run_that_is_handed_in_is_carried_out_by_whoever_comes(runner: MemoryRunner) -> None:
    tool = ScriptedTool("a", OK("yes"))
    run_id = await durable(runner, tool).submit("Why?", "a", options=KEYED)
    worker = durable(runner, tool)
    await worker.started()
    assert runner.runs[run_id].state == "waiting"
    await runner.go_on(run_id)
    output = await worker.result(run_id)
    assert (output.content, output.replayed, run_id) == ("yes", False, "default:k")


async def test_a_key_that_is_handed_in_twice_is_one_run(runner: MemoryRunner) -> None:
    orchestrator = durable(runner, ScriptedTool("a", OK()))
    assert await orchestrator.submit("Why?", "a", options=KEYED) == await orchestrator.submit(
        "Why?", "a", options=KEYED
    )
    with pytest.raises(ConflictError):
        await orchestrator.submit("How?", "a", options=KEYED)
    await runner.go_on("default:k")
    assert await orchestrator.submit("Why?", "a", options=KEYED) == "default:k"
    assert len(runner.runs) == 1


async def test_one_that_failed_and_is_handed_in_again_is_a_new_run(runner: MemoryRunner) -> None:
    orchestrator = durable(runner, ScriptedTool("a", err(503)))
    options = {**KEYED, "retry_on_failure": False}
    await runner.go_on(await orchestrator.submit("Why?", "a", options=options))
    assert await orchestrator.submit("Why?", "a", options=options) == "default#2:k"


async def test_it_waits_in_the_queue_of_its_tools_provider(runner: MemoryRunner) -> None:
    orchestrator = durable(runner, bundle_tool(), ScriptedTool("a", OK()))
    named = await orchestrator.submit("Why?", "facts")
    planned = await orchestrator.submit("Why?")
    assert (runner.runs[named].asked["queue"], runner.runs[planned].asked["queue"]) == ("test", None)


async def test_what_cannot_be_carried_out_is_refused_when_it_is_handed_in(runner: MemoryRunner) -> None:
    orchestrator = durable(runner, ScriptedTool("a", OK()))
    with pytest.raises(ToolNotFound):
        await orchestrator.submit("Why?", "ghost")
    with pytest.raises(InvalidRequest, match="no run of that id"):
        await orchestrator.result("ghost")
    assert not runner.runs


async def test_the_result_is_held_to_the_budget_it_was_asked_with(runner: MemoryRunner) -> None:
    orchestrator = durable(runner, ScriptedTool("a", OK("x", usage={"total_tokens": 90})))
    run_id = await orchestrator.submit("Why?", "a", options={"budget": {"tokens": 50}})
    await runner.go_on(run_id)
    with pytest.raises(BudgetExceeded) as caught:
        await orchestrator.result(run_id)
    assert caught.value.output.content == "x"


# ── the orchestrator ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_caller_whose_orchestrator_is_closed_is_told_so_and_the_run_is_not_ended(runner: MemoryRunner) -> None:
    orchestrator = durable(runner, ScriptedTool("a", HANG))
    run = asyncio.create_task(orchestrator.run("Why?", "a", options=KEYED))
    await asyncio.sleep(1)
    await orchestrator.aclose()
    with pytest.raises(OrchestratorError, match="was closed"):
        await run
    assert runner.runs["default:k"].state == "running"


async def test_a_caller_that_leaves_just_before_the_end_has_ended_its_run(runner: MemoryRunner) -> None:
    orchestrator = durable(runner, ScriptedTool("a", HANG))
    run = asyncio.create_task(orchestrator.run("Why?", "a"))
    await asyncio.sleep(1)
    run.cancel()
    await asyncio.wait([run])
    await orchestrator.aclose()
    assert [kept.state for kept in runner.runs.values()] == ["cancelled"]


async def test_runs_of_others_may_end_while_it_closes_and_none_begins(runner: MemoryRunner) -> None:
    tool = ScriptedTool("a", OK(after=2.0), OK())
    orchestrator = durable(runner, tool)
    first, second = [await orchestrator.submit("Why?", "a") for _ in range(2)]
    under_way = asyncio.create_task(runner.go_on(first))
    await asyncio.sleep(1)
    closing = asyncio.create_task(orchestrator.aclose(drain=5))
    await asyncio.sleep(0.5)
    late = asyncio.create_task(runner.go_on(second))
    await asyncio.wait([under_way, late, closing])
    assert (runner.runs[first].state, runner.runs[second].state) == ("finished", "running")
    assert len(tool.calls) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"store": "redis://host"}, "store"),
        ({"store": "sqlite://"}, "store"),
        ({"store": "sqlite:///:memory:"}, "store"),
        ({"store": "postgresql://user:secret@"}, None),
        ({"heartbeat": 0.1}, "heartbeat"),
        ({"keep": 0}, "keep"),
    ],
)
def test_what_cannot_be_used_is_named(given: dict[str, Any], says: str | None) -> None:
    if says is None:
        DurableOrchestrator(**given)
        return
    with pytest.raises(InvalidRequest, match=f"^{says}"):
        DurableOrchestrator(**{"store": "sqlite:///x.db", **given})


@pytest.mark.parametrize(
    ("python", "sqlite", "refused"),
    [((3, 11), (3, 40), False), ((3, 12), (3, 41), True), ((3, 13), (3, 40), True), ((3, 12), (3, 42), False)],
)
def test_a_sqlite_that_is_too_old_for_the_engine_is_refused_by_name(
    python: tuple[int, int], sqlite: tuple[int, int], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = SimpleNamespace(version_info=(*python, 0), version=f"{python[0]}.{python[1]}.0 (main)")
    monkeypatch.setattr(_tables, "sys", here)
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (*sqlite, 1))
    store = Store.of(f"sqlite:///{tmp_path}/runs.db")
    if refused:
        with pytest.raises(OrchestratorError, match=r"need SQLite 3.42, and this Python \(3.1\d.0\) has .*PostgreSQL"):
            store.prepare()
    else:
        store.prepare()
    assert (tmp_path / "runs.db").exists() is not refused


@pytest.mark.parametrize(
    "given",
    [{"concurrency": 0}, {"rate": True}, {"per": 0.0}, {"concurrency": 1, "worker_concurrency": 2}, {"rate": 1.5}],
)
def test_a_queue_that_cannot_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"^queues\."):
        QueueLimits(**given)


def test_the_version_is_that_of_the_tools(runner: MemoryRunner) -> None:
    def version(*tools: Tool) -> str:
        return durable(runner, *tools).application_version

    a, b, newer = ScriptedTool("a", OK()), ScriptedTool("b", OK()), ScriptedTool("a", OK())
    newer.version = "2.0.0"
    assert version(a, b) == version(b, a)
    assert len({version(a), version(newer), version(a, newer), version(a, b), version()}) == 5


async def test_it_is_a_reliable_orchestrator_and_streams(runner: MemoryRunner) -> None:
    orchestrator = durable(runner, ScriptedTool("a", OK("yes")))
    assert isinstance(orchestrator, ReliableOrchestrator)
    outputs = await orchestrator.run_many(["one", "two"], tool_name="a")
    assert [output.content for output in outputs.outputs] == ["yes", "yes"]
    stream = orchestrator.stream("Why?", "a")
    assert [event.type async for event in stream][-1] == "complete"
    assert len(runner.runs) == 3


class _Counting(Planner):
    def __init__(self) -> None:
        self.asked = 0

    async def plan(self, request: Any, available_tools: Any, context: Any = None) -> PlanDecision:
        self.asked += 1
        return PlanDecision(selected_tool="a", tool_options={}, reasoning="counted")


async def test_a_planner_is_asked_once_for_a_run(runner: MemoryRunner) -> None:
    planner = _Counting()
    orchestrator = durable(runner, ScriptedTool("a", OK()), planner=planner)
    await orchestrator.run("Why?", options=KEYED)
    await runner.go_on("default:k")
    assert planner.asked == 1


async def test_calls_of_a_run_without_a_key_have_a_name_of_their_own_which_they_keep_when_the_process_dies(
    runner: MemoryRunner,
) -> None:
    tool = ScriptedTool("a", OK())
    runner.dies_at = 3  # When the call has been made, and before it is recorded.
    with pytest.raises(Crash):
        await durable(runner, tool).run("Why?", "a")
    (run_id,) = runner.runs
    runner.dies_at = None
    again = durable(runner, tool)
    await again.started()
    await runner.go_on(run_id)
    await again.run("Why?", "a")
    first, second, other = [call.options["idempotency_key"] for call in tool.calls]
    assert first == second == f"{run_id}:a"
    assert other != first


async def test_a_key_of_the_caller_names_the_calls_of_his_run(runner: MemoryRunner) -> None:
    tool = ScriptedTool("a", OK())
    orchestrator = durable(runner, tool)
    await orchestrator.run("Why?", "a", options=KEYED)
    await orchestrator.run("Why?", "a", {"idempotency_key": "mine"})
    assert [call.options["idempotency_key"] for call in tool.calls] == ["k:a", "mine"]
