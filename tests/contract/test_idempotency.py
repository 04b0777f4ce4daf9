"""**Idempotency.** One key, one piece of work; a replay is the first output again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from contract.kit import Fixed, bundle, calls, failed, now, plain, registry, reliable, tasks
from steer_llm_sdk.orchestration import BudgetExceeded, ConflictError, ReliableOrchestrator
from steer_llm_sdk.reliability import CircuitBreakerConfig, IdempotencyManager, RateLimit, idempotency
from steer_llm_sdk.testing import (
    HANG,
    OK,
    RecordedEvents,
    ScriptedTool,
    VirtualTimeLoop,
    err,
    run_in_virtual_time,
    stubborn,
)

BOTH = pytest.mark.parametrize("orchestrator", [plain, reliable])


def keyed(key: str = "k", **options: Any) -> dict[str, Any]:
    return {"idempotency_key": key, **options}


# ── the key and the fingerprint ──────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_the_key_is_scoped_by_tenant_and_no_two_pairs_run_together(orchestrator: Any) -> None:
    tool = ScriptedTool("t")
    runner = orchestrator(tool)
    pairs = [("a", "b:c"), ("a:b", "c"), ("a%3Ab", "c"), ("a", "b%3Ac"), ("default", "b:c")]
    for tenant, key in pairs:
        await runner.run(f"{tenant} {key}", "t", None, keyed(key, tenant=tenant))
    assert len(tool.calls) == len(pairs)


SENT: list[dict[str, Any]] = [
    {"request": "other"},
    {"request": {"query": "q", "more": 1}},
    {"tool_options": {"k": 4}},
    {"tool_options": None},
    {"tool_name": "u"},
    {"tool_name": None},
]


@pytest.mark.parametrize("changed", SENT, ids=repr)
async def test_the_fingerprint_covers_request_tool_name_or_its_absence_and_tool_options(
    changed: dict[str, Any],
) -> None:
    runner = reliable(ScriptedTool("t"), ScriptedTool("u"))
    sent: dict[str, Any] = {"request": "q", "tool_name": "t", "tool_options": {"k": 3}}
    await runner.run(**sent, options=keyed())
    with pytest.raises(ConflictError, match="used with different request"):
        await runner.run(**{**sent, **changed}, options=keyed())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"request": {"a": 1, "b": 2}}, {"request": {"b": 2, "a": 1}}),
        ({"request": {"n": 1}}, {"request": {"n": 1.0}}),
        ({"request": "q"}, {"request": {"query": "q"}}),
        ({"request": [1, (2, 3)]}, {"request": [1, [2, 3]]}),
        ({"request": {"é": "\u20ac"}}, {"request": {"\u00e9": "€"}}),
        ({"request": "q"}, {"request": "q", "tool_options": {}}),
        ({"request": "q", "options": {"timeout_ms": 500}}, {"request": "q", "options": {"budget": {"tokens": 5}}}),
        ({"request": "q", "options": {"request_id": "1"}}, {"request": "q", "options": {"request_id": "2"}}),
    ],
    ids=repr,
)
async def test_what_the_caller_sent_counts_in_canonical_json_and_nothing_else_does(one: Any, other: Any) -> None:
    tool = ScriptedTool("t")
    runner = reliable(tool)
    for sent in (one, other):
        options = keyed(**sent.get("options", {}))
        await runner.run(sent["request"], "t", sent.get("tool_options"), options)
    assert len(tool.calls) == 1


@BOTH
@pytest.mark.parametrize("request_", [b"raw", {"n": float("nan")}, {"n": 2**60}, {1: 2}, {"half": "\ud800"}, object()])
async def test_a_keyed_request_that_cannot_be_compared_is_refused_with_a_sentence(
    orchestrator: Any, request_: Any
) -> None:
    tool = ScriptedTool("t")
    with pytest.raises(ValueError, match="idempotency_key a request must be JSON"):
        await orchestrator(tool).run(request_, "t", None, keyed())
    assert tool.calls == []
    assert (await orchestrator(tool).run(request_, "t")).status == "succeeded"


@BOTH
async def test_a_different_fingerprint_is_a_conflict_whatever_the_state(orchestrator: Any) -> None:
    runner = orchestrator(ScriptedTool("t", OK(after=5)))
    running = asyncio.create_task(runner.run("q", "t", None, keyed()))
    await asyncio.sleep(1)
    with pytest.raises(ConflictError):
        await runner.run("other", "t", None, keyed())
    await running
    with pytest.raises(ConflictError):
        await runner.run("other", "t", None, keyed())


# ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_plan_is_made_under_the_claim_and_stored_with_it_and_a_replay_plans_nothing() -> None:
    planner = Fixed("t")
    runner = reliable(ScriptedTool("t"), planner=planner)
    outputs = [await runner.run("q", None, None, keyed()) for _ in range(3)]
    assert len(planner.asked) == 1
    assert outputs[2].metadata["plan"]["reasoning"] == "fixed"


async def test_an_open_breaker_a_canary_or_a_deploy_is_never_a_conflict() -> None:
    manager = IdempotencyManager()
    tool = ScriptedTool("old", OK("x"), err(503))
    old = reliable(tool, manager=manager, breaker=CircuitBreakerConfig(failure_threshold=1))
    first = await old.run("q", None, None, keyed())
    await old.run("q", "old", None, {"max_retries": 0})
    assert old.breakers["old"]["state"] == "open"
    canary = ScriptedTool("new", version="2.0.0")
    for runner in (old, reliable(canary, planner=Fixed("new"), manager=manager)):
        assert await runner.run("q", None, None, keyed()) == first
    assert canary.calls == []


# ── duplicates at once ───────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_five_concurrent_duplicates_run_once_and_all_get_the_result(orchestrator: Any) -> None:
    tool = ScriptedTool("t", OK({"a": [1]}, after=2))
    runner = orchestrator(tool)
    outputs = await asyncio.gather(*(runner.run("q", "t", None, keyed()) for _ in range(5)))
    assert (len(tool.calls), now()) == (1, 2)
    assert all(output == outputs[0] for output in outputs)
    assert len({id(output.content) for output in outputs}) == 5
    assert [output.replayed for output in outputs] == [False, True, True, True, True]


@BOTH
async def test_what_one_of_them_writes_the_others_do_not_see(orchestrator: Any) -> None:
    runner = orchestrator(ScriptedTool("t", OK({"a": [1]}, after=2)))

    async def write() -> None:
        output = await runner.run("q", "t", None, keyed())
        output.content["a"].append("written")
        output.metadata.clear()

    *_, last = await asyncio.gather(write(), write(), runner.run("q", "t", None, keyed()))
    assert last.content == {"a": [1]}
    assert last.metadata["tool_name"] == "t"


@BOTH
@pytest.mark.parametrize("leaves", ["cancelled", "shorter deadline"])
async def test_a_leader_that_leaves_leaves_the_work_to_the_next_without_a_second_provider_call(
    orchestrator: Any, leaves: str
) -> None:
    tool = ScriptedTool("t", OK("x", after=5))
    runner = orchestrator(tool)
    limit = {"timeout_ms": 1000} if leaves == "shorter deadline" else {}
    leader = asyncio.create_task(runner.run("q", "t", None, keyed(**limit)))
    await asyncio.sleep(0.5)
    followers = [asyncio.create_task(runner.run("q", "t", None, keyed())) for _ in range(3)]
    await asyncio.sleep(0.5)
    if leaves == "cancelled":
        leader.cancel()
    (end,) = await asyncio.gather(leader, return_exceptions=True)
    assert isinstance(end, asyncio.CancelledError if leaves == "cancelled" else BudgetExceeded)
    assert now() <= 1.05
    followers[0].cancel()
    outputs = await asyncio.gather(*followers, return_exceptions=True)
    assert [getattr(output, "content", type(output)) for output in outputs] == [asyncio.CancelledError, "x", "x"]
    assert (len(tool.calls), tool.cancelled, now()) == (1, 0, 5)


async def test_a_leader_with_little_time_does_not_end_the_waiting_of_one_with_more() -> None:
    tool = ScriptedTool("t", OK("first", after=5), OK("second"), provider="p")
    runner = reliable(tool, rate_limits={"p": RateLimit(max_concurrent=1)})
    ahead = asyncio.ensure_future(runner.run("other", "t"))
    await asyncio.sleep(0.1)
    leader = asyncio.ensure_future(runner.run("q", "t", None, keyed(timeout_ms=1000)))
    await asyncio.sleep(0.1)
    output = await runner.run("q", "t", None, keyed(timeout_ms=60_000))
    assert (output.content, now()) == ("second", 5)
    assert (await ahead).content == "first"
    with pytest.raises(BudgetExceeded):
        await leader
    assert len(tool.calls) == 2


@BOTH
async def test_the_last_to_leave_takes_the_work_along_and_the_key_is_free(orchestrator: Any) -> None:
    tool = ScriptedTool("t", HANG, OK("x"))
    runner = orchestrator(tool)
    callers = [asyncio.create_task(runner.run("q", "t", None, keyed())) for _ in range(3)]
    await asyncio.sleep(1)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert (tool.cancelled, tool.running, tasks()) == (1, 0, set())
    assert (await runner.run("another", "t", None, keyed())).content == "x"


@BOTH
async def test_work_that_was_left_behind_is_waited_for_and_not_bought_again(orchestrator: Any) -> None:
    tool = ScriptedTool("t", stubborn(3, OK("after all")))
    runner = orchestrator(tool)
    with pytest.raises(BudgetExceeded):
        await runner.run("q", "t", None, keyed(timeout_ms=1000))
    output = await runner.run("q", "t", None, keyed())
    assert (output.content, len(tool.calls)) == ("after all", 1)


# ── a replay ─────────────────────────────────────────────────────────────────────────────────────────────────────────

CONTENTS = [
    "text",
    {"a": {"b": [1, 2.5, None, True]}},
    [1.0, -0.0, 1e300, 1e-7],
    10**25,
    "\u202e\U0001f600 \x00",
    None,
    bundle("a", "b", confidence=0.5, usage={"total_tokens": 3}, cost=0.25),
]


@BOTH
@pytest.mark.parametrize("content", CONTENTS, ids=lambda x: type(x).__name__)
async def test_a_replay_returns_its_own_copy_equal_to_the_first_and_marked(orchestrator: Any, content: Any) -> None:
    runner = orchestrator(ScriptedTool("t", OK(content, after=0.123)))
    options = keyed(metadata={"team": "a"}, budget={"tokens": 1000})
    first = await runner.run("q", "t", None, options)
    replays = [await runner.run("q", "t", None, options) for _ in range(2)]
    for replay in replays:
        assert replay == first
        assert first == replay
        assert replay.model_dump() == first.model_dump()
        assert replay is not first
    assert [first.replayed, *(replay.replayed for replay in replays)] == [False, True, True]
    assert first.elapsed_ms == 123


@BOTH
async def test_a_replay_takes_no_time_and_calls_nothing(orchestrator: Any) -> None:
    tool = ScriptedTool("t", OK("x", after=5))
    runner = orchestrator(tool)
    await runner.run("q", "t", None, keyed())
    await runner.run("q", "t", None, keyed())
    assert (now(), len(tool.calls)) == (5, 1)


@BOTH
async def test_a_replay_tells_start_and_complete_like_any_run(orchestrator: Any) -> None:
    runner = orchestrator(ScriptedTool("t", OK("x", usage={"total_tokens": 1}), version="3.0"))
    await runner.run("q", "t", None, keyed())
    events = RecordedEvents()
    await runner.run("q", "t", None, keyed(request_id="second"), events)
    assert events.types == ["start", "usage", "complete"]
    assert [event.metadata["tool_version"] for event in events.all] == ["3.0"] * 3
    assert {event.request_id for event in events.all} == {"second"}
    assert events.all[-1].metadata["replayed"] is True


@BOTH
async def test_who_joins_is_told_start_and_complete_too(orchestrator: Any) -> None:
    runner = orchestrator(ScriptedTool("t", OK("x", after=1)))
    events = [RecordedEvents(), RecordedEvents()]
    await asyncio.gather(*(runner.run("q", "t", None, keyed(), recorded) for recorded in events))
    assert [recorded.types for recorded in events] == [["start", "complete"]] * 2


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize("step", [err(503), err(429), err(TimeoutError), err(ConnectionResetError)], ids=repr)
async def test_failures_that_may_be_retried_are_not_remembered(orchestrator: Any, step: Any) -> None:
    tool = ScriptedTool("t", step, OK("x"))
    runner = orchestrator(tool)
    options = keyed(retry_on_failure=False)
    assert failed(await runner.run("q", "t", None, options))["is_retryable"]
    assert (await runner.run("q", "t", None, options)).content == "x"


@BOTH
@pytest.mark.parametrize("step", [err(400), err(ValueError("x")), err(KeyError("x"))], ids=repr)
async def test_final_ones_are(orchestrator: Any, step: Any) -> None:
    tool = ScriptedTool("t", step)
    runner = orchestrator(tool)
    outputs = [await runner.run("q", "t", None, keyed()) for _ in range(2)]
    assert outputs[0] == outputs[1]
    assert [output.replayed for output in outputs] == [False, True]
    assert len(tool.calls) == 1


async def test_final_ones_are_not_where_the_policy_says_so() -> None:
    tool = ScriptedTool("t", err(400), OK("x"))
    runner = reliable(tool, remember_failures=False)
    assert failed(await runner.run("q", "t", None, keyed()))
    assert (await runner.run("q", "t", None, keyed())).content == "x"


@BOTH
async def test_what_is_raised_is_not_remembered(orchestrator: Any) -> None:
    tool = ScriptedTool("t", HANG, OK("x"))
    runner = orchestrator(tool)
    with pytest.raises(BudgetExceeded):
        await runner.run("q", "t", None, keyed(timeout_ms=500))
    assert (await runner.run("q", "t", None, keyed())).content == "x"


async def test_a_tool_that_was_missing_is_not_remembered_as_missing() -> None:
    tools = registry()
    runner = ReliableOrchestrator(registry=tools)
    with pytest.raises(ValueError, match="not found"):
        await runner.run("q", "t", None, keyed())
    tools.register_tool(ScriptedTool("t"))
    assert (await runner.run("q", "t", None, keyed())).content == "ok"


@BOTH
async def test_duplicates_of_a_run_that_raises_all_see_it_raised(orchestrator: Any) -> None:
    runner = orchestrator(ScriptedTool("t"))
    ends = await asyncio.gather(*(runner.run("q", "nobody", None, keyed()) for _ in range(3)), return_exceptions=True)
    assert [type(end).__name__ for end in ends] == ["ToolNotFound"] * 3


@BOTH
async def test_who_has_no_limit_either_does_not_begin_anew_where_a_tool_ran_out_of_a_budget_of_its_own(
    orchestrator: Any,
) -> None:
    tool = ScriptedTool("t", err(BudgetExceeded("cost", 1, 2), after=1))
    runner = orchestrator(tool)
    options = [keyed(), keyed(metadata={"team": "a"}), keyed(max_parallel=3)]
    ends = await asyncio.gather(*(runner.run("q", "t", None, each) for each in options), return_exceptions=True)
    assert [type(end) for end in ends] == [BudgetExceeded] * 3
    assert len(tool.calls) == 1


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
async def test_a_result_is_forgotten_after_its_time(orchestrator: Any) -> None:
    tool = ScriptedTool("t")
    runner = orchestrator(tool, manager=IdempotencyManager(ttl_seconds=0.002))
    await runner.run("q", "t", None, keyed())
    time.sleep(0.003)
    output = await runner.run("other", "t", None, keyed())
    assert (output.replayed, len(tool.calls)) == (False, 2)


@BOTH
async def test_max_entries_bounds_finished_entries_only(orchestrator: Any) -> None:
    tool = ScriptedTool("t", OK(after=1))
    runner = orchestrator(tool, manager=IdempotencyManager(max_entries=2))
    keys = [str(n) for n in range(6)]
    running = []
    for key in keys:
        running += [asyncio.create_task(runner.run("q", "t", None, keyed(key))) for _ in range(2)]
        await asyncio.sleep(0.01)
    await asyncio.gather(*running)
    assert len(tool.calls) == 6
    outputs = [await runner.run("q", "t", None, keyed(key)) for key in reversed(keys)]
    assert sum(output.replayed for output in outputs) == 2


@BOTH
def test_an_owner_that_dies_is_succeeded_after_its_lease_and_a_stale_owner_cannot_write(
    orchestrator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner's loop stands still in the middle of its work, as a process does that is stopped, and goes on later."""
    monkeypatch.setattr(idempotency, "LEASE", 0.004)
    tool = ScriptedTool("t", OK("of the stale owner", after=10), OK("of the successor"))
    runner = orchestrator(tool)
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as stopped:
        owner = stopped.get_loop().create_task(runner.run("q", "t", None, keyed()))
        stopped.run(asyncio.sleep(1))
        successor = run_in_virtual_time(runner.run("q", "t", None, keyed()))
        assert (successor.content, successor.replayed, len(tool.calls)) == ("of the successor", False, 2)

        async def go_on() -> Any:
            return await owner

        late = stopped.run(go_on())
        assert (late.content, late.replayed) == ("of the successor", True)
    replay = run_in_virtual_time(runner.run("q", "t", None, keyed()))
    assert (replay == successor, replay.replayed, len(tool.calls)) == (True, True, 2)


@BOTH
async def test_a_subclass_with_only_get_and_store_is_used_as_a_plain_cache(orchestrator: Any) -> None:
    class Cache(IdempotencyManager):
        def __init__(self) -> None:
            self.kept: dict[str, Any] = {}

        async def get(self, key: str) -> Any:
            return self.kept.get(key)

        async def store(self, key: str, value: Any) -> None:
            self.kept[key] = value

    cache, tool = Cache(), ScriptedTool("t", OK({"a": 1}))
    runner = orchestrator(tool, manager=cache)
    first = await runner.run("q", "t", None, keyed())
    assert (await runner.run("q", "t", None, keyed())) == first
    assert (len(tool.calls), len(cache.kept)) == (1, 1)
    with pytest.raises(ConflictError):
        await runner.run("other", "t", None, keyed())


async def test_the_manager_keeps_what_callers_give_it_apart_from_runs() -> None:
    manager, tool = IdempotencyManager(), ScriptedTool("t")
    await manager.store("k", {"mine": 1})
    output = await reliable(tool, manager=manager).run("q", "t", None, keyed())
    assert (output.content, await manager.get("k"), calls(tool)) == ("ok", {"mine": 1}, [1])
