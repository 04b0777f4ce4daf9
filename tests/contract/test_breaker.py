"""**Breaker.** One per provider, and it localises."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from contract.kit import Fixed, Model, calls, failed, now, plain, registry, reliable
from steer_llm_sdk.errors import BadResponse, TruncatedStream
from steer_llm_sdk.orchestration import (
    BudgetExceeded,
    PlanningRule,
    ReliabilityConfig,
    ReliableOrchestrator,
    RuleBasedPlanner,
    Tool,
)
from steer_llm_sdk.orchestration.planning import RuleAction
from steer_llm_sdk.orchestration.tools import LLMTool
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability import BreakerMode, CircuitBreakerConfig
from steer_llm_sdk.testing import HANG, OK, RecordedEvents, ScriptedTool, err, stubborn

ONE = CircuitBreakerConfig(failure_threshold=1, success_threshold=1, timeout=10)
NO_RETRY = {"max_retries": 0}


def guarded(*tools: Tool, breaker: CircuitBreakerConfig = ONE, **fields: Any) -> ReliableOrchestrator:
    return reliable(*tools, breaker=breaker, **fields)


async def ask(runner: ReliableOrchestrator, name: str, **options: Any) -> Any:
    return await runner.run("q", name, None, {**NO_RETRY, **options})


def state(runner: ReliableOrchestrator, target: str) -> str:
    return str(runner.breakers[target]["state"])


async def refused(runner: ReliableOrchestrator, name: str) -> bool:
    output = await ask(runner, name)
    return bool(output.status == "failed" and output.content["error"]["type"] == "CircuitOpen")


# ── one per provider ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_two_tools_of_one_provider_share_a_breaker_and_another_provider_has_its_own() -> None:
    runner = guarded(
        ScriptedTool("a", err(503), provider="p"),
        ScriptedTool("b", err(503), provider="p"),
        ScriptedTool("c", provider="q"),
        breaker=ONE.model_copy(update={"failure_threshold": 2}),
    )
    await ask(runner, "a")
    await ask(runner, "b")
    await ask(runner, "c")
    assert {name: stats["state"] for name, stats in runner.breakers.items()} == {"p": "open", "q": "closed"}


async def test_a_tool_without_provider_is_its_own() -> None:
    runner = guarded(ScriptedTool("a", err(503)), ScriptedTool("b"))
    await ask(runner, "a")
    assert state(runner, "a") == "open"
    assert (await ask(runner, "b")).status == "succeeded"


async def test_a_model_at_another_base_url_is_another() -> None:
    down = Model(ProviderError("down", "p", 503), target="local@http://127.0.0.1:1/v1", name="here")
    up = Model(target="local", name="there")
    runner = guarded(LLMTool("a", down), LLMTool("b", up))
    await ask(runner, "a")
    assert state(runner, "local@http://127.0.0.1:1/v1") == "open"
    assert (await ask(runner, "b")).status == "succeeded"
    assert state(runner, "local") == "closed"


# ── it localises ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_when_all_its_evidence_comes_from_one_tool_another_of_the_provider_is_admitted_once_as_a_probe() -> None:
    a, b, c = (ScriptedTool(name, err(503), provider="p") for name in "abc")
    runner = guarded(a, b, c)
    await ask(runner, "a")
    assert await refused(runner, "a")
    assert failed(await ask(runner, "b"))["status_code"] == 503
    assert await refused(runner, "b")
    assert await refused(runner, "c")
    assert calls(a, b, c) == [1, 1, 0]


async def test_the_early_probe_may_be_made_in_the_very_run_that_opened_the_circuit() -> None:
    a, b = ScriptedTool("a", err(503), provider="p"), ScriptedTool("b", OK("from b"), provider="p")
    runner = guarded(a, b)
    output = await runner.run("q", None, None, NO_RETRY)
    assert (output.content, calls(a, b)) == ("from b", [1, 1])


async def test_if_the_early_probe_succeeds_the_circuit_narrows_to_the_tool_that_failed() -> None:
    a, b, c = ScriptedTool("a", err(503), provider="p"), *(ScriptedTool(name, provider="p") for name in "bc")
    runner = guarded(a, b, c)
    await ask(runner, "a")
    await ask(runner, "b")
    assert runner.breakers["p"]["narrowed"] == {"a": "open"}
    assert state(runner, "p") == "closed"
    assert await refused(runner, "a")
    assert (await ask(runner, "c")).status == "succeeded"


async def test_if_the_early_probe_fails_the_provider_is_confirmed_down_for_all_its_tools() -> None:
    a, b, c = (
        ScriptedTool("a", err(503), provider="p"),
        ScriptedTool("b", err(503), provider="p"),
        ScriptedTool("c", provider="p"),
    )
    runner = guarded(a, b, c)
    await ask(runner, "a")
    await ask(runner, "b")
    assert [await refused(runner, name) for name in "abc"] == [True, True, True]
    assert c.calls == []


async def test_a_tool_that_was_cut_off_alone_comes_back_alone() -> None:
    a = ScriptedTool("a", err(503), OK("well again"), provider="p")
    runner = guarded(a, ScriptedTool("b", provider="p"))
    await ask(runner, "a")
    await ask(runner, "b")
    await asyncio.sleep(10)
    assert (await ask(runner, "a")).content == "well again"
    assert runner.breakers["p"]["narrowed"] == {}


async def test_an_early_probe_that_is_cancelled_may_be_made_again() -> None:
    a, b = ScriptedTool("a", err(503), provider="p"), ScriptedTool("b", HANG, OK("x"), provider="p")
    runner = guarded(a, b)
    await ask(runner, "a")
    probing = asyncio.create_task(ask(runner, "b"))
    await asyncio.sleep(1)
    assert await refused(runner, "b")
    probing.cancel()
    await asyncio.gather(probing, return_exceptions=True)
    assert (await ask(runner, "b")).content == "x"


async def test_a_composite_tool_localises_by_its_models() -> None:
    dead = Model(ProviderError("down", "p", 503), name="dead", target="p")
    alive = Model(name="alive", target="p")
    runner = guarded(LLMTool("a", [dead, alive]))
    for _ in range(3):
        assert (await ask(runner, "a")).content == "yes"
    assert (len(dead.requests), len(alive.requests)) == (1, 3)


# ── what the planner is told ─────────────────────────────────────────────────────────────────────────────────────────


async def test_circuit_breaker_states_tells_the_planner_the_state_of_the_provider_and_of_each_tool() -> None:
    planner = Fixed("b")
    a, b = ScriptedTool("a", err(503), provider="p"), ScriptedTool("b", provider="p")
    runner = guarded(a, b, ScriptedTool("c", provider="q"), planner=planner)
    await ask(runner, "c")
    await ask(runner, "a")
    await runner.run("q")
    await runner.run("q")
    before, after = (context.circuit_breaker_states for context in planner.asked if context is not None)
    assert before == {"p": "open", "q": "closed", "a": "open", "b": "half_open", "c": "closed"}
    assert after == {"p": "closed", "q": "closed", "a": "open", "b": "closed", "c": "closed"}


async def test_the_planner_is_told_nothing_where_the_breaker_is_switched_off() -> None:
    planner = Fixed("a")
    runner = guarded(ScriptedTool("a", err(503), OK()), planner=planner)
    await ask(runner, "a")
    await runner.run("q", None, None, {"enable_circuit_breaker": False})
    assert [context and context.circuit_breaker_states for context in planner.asked] == [{}]


async def test_planned_traffic_makes_the_early_probe_where_all_tools_are_of_one_provider() -> None:
    a = ScriptedTool("a", err(503), provider="p", capabilities=["qa"])
    b = ScriptedTool("b", provider="p", capabilities=["qa"])
    runner = ReliableOrchestrator(
        RuleBasedPlanner([PlanningRule("r", action=RuleAction("a", fallback_tools=["b"]))]),
        ReliabilityConfig(circuit_breaker_configs={"default": ONE}),
        registry=registry(a, b),
    )
    await ask(runner, "a")
    output = await runner.run("q", None, None, NO_RETRY)
    assert (output.status, output.metadata["tool_name"]) == ("succeeded", "b")


async def test_after_the_timeout_a_tool_behind_an_open_breaker_is_eligible_again_so_planned_traffic_probes_it() -> None:
    a, b = ScriptedTool("a", err(503), OK("back"), provider="p"), ScriptedTool("b", OK("stand-in"), provider="q")
    rule = PlanningRule("r", action=RuleAction("a", fallback_tools=["b"]))
    runner = ReliableOrchestrator(
        RuleBasedPlanner([rule]),
        ReliabilityConfig(circuit_breaker_configs={"default": ONE}),
        registry=registry(a, b),
    )
    contents = []
    for wait in (0, 1, 5, 4, 1):
        await asyncio.sleep(wait)
        contents.append((await runner.run("q", None, None, NO_RETRY)).content)
    assert contents == ["stand-in", "stand-in", "stand-in", "back", "back"]
    assert state(runner, "p") == "closed"


# ── what counts ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("step", "counts"),
    [
        *((err(status), True) for status in (500, 502, 503, 504, 529, 408)),
        (err(TimeoutError), True),
        (err(ConnectionResetError), True),
        *((err(status), False) for status in (400, 401, 403, 404, 409, 422, 429)),
        (err(ValueError("x")), False),
        (err(RuntimeError("503")), False),
        (err(KeyError("x")), False),
        (err(asyncio.CancelledError), False),
    ],
    ids=repr,
)
async def test_only_failures_that_speak_about_the_provider_count(step: Any, counts: bool) -> None:
    runner = guarded(ScriptedTool("t", step))
    await ask(runner, "t")
    assert state(runner, "t") == ("open" if counts else "closed")


async def test_malformed_answers_count() -> None:
    for error in (BadResponse("HTML", "p"), TruncatedStream("no end", "p")):
        runner = guarded(ScriptedTool("t", err(error)))
        await ask(runner, "t")
        assert state(runner, "t") == "open"


async def test_429_counts_where_it_is_asked_for() -> None:
    runner = guarded(ScriptedTool("t", err(429)), breaker=ONE.model_copy(update={"count_rate_limits": True}))
    await ask(runner, "t")
    assert state(runner, "t") == "open"


async def test_an_attempt_that_took_longer_than_it_may_counts_and_a_run_out_of_time_does_not() -> None:
    for options, expected in (({"per_agent_timeout_ms": 200}, "open"), ({"timeout_ms": 200}, "closed")):
        runner = guarded(ScriptedTool("t", HANG))
        await asyncio.gather(ask(runner, "t", **options), return_exceptions=True)
        assert state(runner, "t") == expected


async def test_cancellation_counts_for_nothing() -> None:
    runner = guarded(ScriptedTool("t", HANG))
    running = asyncio.create_task(ask(runner, "t"))
    await asyncio.sleep(1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert (state(runner, "t"), runner.breakers["t"]["failures"]) == ("closed", 0)


async def test_a_request_that_does_not_validate_is_no_call_and_counts_for_nothing() -> None:
    class Strict(ScriptedTool):
        def validate_request(self, request: Any) -> None:
            raise ValueError("no")

    runner = guarded(Strict("t"))
    await ask(runner, "t")
    assert dict(runner.breakers) == {}


async def test_failures_in_a_row_none_older_than_the_window_open_it_and_a_success_resets_the_count() -> None:
    breaker = ONE.model_copy(update={"failure_threshold": 3, "window_size": 10.0})
    for steps, gaps, expected in (
        ("fff", 1, "open"),
        ("ffsff", 1, "closed"),
        ("ffsfff", 1, "open"),
        ("fff", 6, "closed"),
        ("fff", 5, "open"),
    ):
        tool = ScriptedTool("t", *(err(503) if step == "f" else OK() for step in steps))
        runner = guarded(tool, breaker=breaker)
        for _ in steps:
            await ask(runner, "t")
            await asyncio.sleep(gaps)
        assert state(runner, "t") == expected


# ── permits ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_late_answer_from_an_earlier_generation_has_no_effect() -> None:
    tool = ScriptedTool("t", OK("late", after=15), err(503), OK(after=60))
    runner = guarded(tool, breaker=ONE.model_copy(update={"half_open_requests": 1}))
    late = asyncio.create_task(ask(runner, "t"))
    await asyncio.sleep(1)
    await ask(runner, "t")  # opens at 1, half-open from 11 on
    await asyncio.sleep(11)
    probe = asyncio.create_task(ask(runner, "t"))  # 12 to 72
    await asyncio.sleep(0)
    assert (await late).content == "late"  # at 15
    assert state(runner, "t") == "half_open"
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)


async def test_half_open_admits_exactly_half_open_requests() -> None:
    tool = ScriptedTool("t", err(503), OK("x", after=1))
    runner = guarded(tool, breaker=CircuitBreakerConfig(failure_threshold=1, timeout=10, half_open_requests=3))
    await ask(runner, "t")
    await asyncio.sleep(10)
    outputs = await asyncio.gather(*(ask(runner, "t") for _ in range(50)))
    assert sum(output.status == "succeeded" for output in outputs) == 3
    assert len(tool.calls) == 4


@pytest.mark.parametrize("how", ["cancelled", "lost"])
async def test_a_lost_or_cancelled_probe_frees_its_permit(how: str) -> None:
    tool = ScriptedTool("t", err(503), stubborn(3600), OK("x"))
    breaker = CircuitBreakerConfig(
        failure_threshold=1, success_threshold=1, timeout=10, half_open_requests=1, probe_lease=5
    )
    runner = guarded(tool, breaker=breaker)
    await ask(runner, "t")
    await asyncio.sleep(10)
    probe = asyncio.create_task(ask(runner, "t", timeout_ms=1000) if how == "cancelled" else ask(runner, "t"))
    await asyncio.sleep(0.5)
    assert await refused(runner, "t")
    await asyncio.sleep(5)
    assert (await ask(runner, "t")).content == "x"
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)


async def test_a_probe_deaf_to_the_deadline_holds_its_place_no_longer_than_its_run() -> None:
    for early in (False, True):
        deaf = ScriptedTool("deaf", *([] if early else [err(503)]), stubborn(3600), OK("x"), provider="p")
        broken = ScriptedTool("broken", err(503), provider="p")
        runner = guarded(deaf, broken, breaker=ONE.model_copy(update={"half_open_requests": 1, "probe_lease": 500.0}))
        await ask(runner, "broken" if early else "deaf")
        await asyncio.sleep(1 if early else 10)
        probe = asyncio.create_task(ask(runner, "deaf", timeout_ms=1000))
        await asyncio.sleep(0.99)
        assert await refused(runner, "deaf")
        with pytest.raises(BudgetExceeded):
            await probe
        assert (await ask(runner, "deaf")).content == "x"


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_failure_that_came_with_retry_after_keeps_it_open_at_least_that_long() -> None:
    runner = guarded(ScriptedTool("t", err(503, retry_after=25), OK()))
    await ask(runner, "t")
    await asyncio.sleep(24)
    assert await refused(runner, "t")
    await asyncio.sleep(1)
    assert (await ask(runner, "t")).status == "succeeded"


async def test_each_model_has_its_own_breaker_where_that_is_asked_for_and_the_planner_is_told() -> None:
    for scope, expected in (("provider", ["p"]), ("model", ["p/dead", "p/alive"])):
        dead = Model(ProviderError("down", "p", 503), name="dead", target="p")
        alive = Model(name="alive", target="p")
        planner = Fixed("b")
        runner = guarded(
            LLMTool("a", dead),
            LLMTool("b", alive),
            planner=planner,
            breaker=ONE.model_copy(update={"scope": scope, "failure_threshold": 2}),
        )
        await ask(runner, "a")
        await ask(runner, "a")
        await ask(runner, "b")
        await runner.run("q")
        assert list(runner.breakers) == expected
        (told,) = (context.circuit_breaker_states for context in planner.asked if context is not None)
        assert (told["a"], told["b"]) == ("open", "closed")


async def test_a_breaker_that_only_observes_refuses_nobody_and_tells_what_it_would_have_done() -> None:
    events = RecordedEvents()
    tool = ScriptedTool("t", err(503), OK("fine"), provider="p")
    planner = Fixed("t")
    runner = guarded(tool, planner=planner, breaker=ONE.model_copy(update={"mode": BreakerMode.OBSERVE_ONLY}))
    await runner.run("q", None, None, NO_RETRY, events)
    assert (await runner.run("q", None, None, NO_RETRY, events)).content == "fine"
    told = {"tool_name": "t", "provider": "p", "part": "t", "state": "open", "mode": "observe_only"}
    assert events.data("circuit_breaker") == [told, {**told, "would_refuse": True}]
    assert [context and context.circuit_breaker_states for context in planner.asked] == [{}, {}]
    assert (state(runner, "p"), runner.breakers["p"]["observed"]) == ("closed", "open")


async def test_in_panic_planned_traffic_makes_one_early_probe() -> None:
    a, b = ScriptedTool("a", err(503), OK("back"), provider="p"), ScriptedTool("b", err(503), provider="q")
    runner = guarded(a, b, breaker=ONE.model_copy(update={"panic": True}))
    assert (await runner.run("q", None, None, NO_RETRY)).status == "failed"
    assert (await runner.run("q", None, None, NO_RETRY)).content == "back"
    assert calls(a, b) == [2, 1]


# ── a refusal ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_refusal_is_a_provider_error_503_that_names_the_breaker() -> None:
    runner = guarded(ScriptedTool("t", err(503), provider="acme"))
    await ask(runner, "t")
    info = failed(await ask(runner, "t"))
    assert "Circuit breaker acme is OPEN" in info["message"]
    assert (info["status_code"], info["provider"], info["is_retryable"]) == (503, "acme", True)
    assert 0 < info["retry_after"] <= 10


async def test_a_refusal_is_not_a_failure_and_is_not_retried() -> None:
    tool = ScriptedTool("t", err(503), provider="acme")
    runner = guarded(tool)
    await ask(runner, "t")
    began = now()
    await runner.run("q", "t")
    assert (now(), len(tool.calls)) == (began, 1)
    assert (runner.breakers["acme"]["failures"], runner.breakers["acme"]["refusals"]) == (1, 1)


async def test_a_refusal_is_answered_by_fallback() -> None:
    a, b = ScriptedTool("a", err(503), provider="p"), ScriptedTool("b", OK("stand-in"), provider="q")
    runner = guarded(a, b)
    for _ in range(3):
        assert (await runner.run("q", None, None, NO_RETRY)).content == "stand-in"
    assert calls(a, b) == [1, 3]


async def test_a_dead_provider_is_called_threshold_times_and_then_only_probed() -> None:
    tool = ScriptedTool("t", err(503))
    runner = reliable(tool)
    for _ in range(200):
        await runner.run("q", "t")
    assert len(tool.calls) <= 6


async def test_a_circuit_that_opens_or_closes_is_told() -> None:
    events = RecordedEvents()
    runner = guarded(ScriptedTool("t", err(503), OK(), provider="p"))
    await runner.run("q", "t", None, NO_RETRY, events)
    await asyncio.sleep(10)
    await runner.run("q", "t", None, NO_RETRY, events)
    assert events.data("circuit_breaker") == [
        {"tool_name": "t", "provider": "p", "part": "t", "state": "open"},
        {"tool_name": "t", "provider": "p", "part": "t", "state": "closed"},
    ]


async def test_an_orchestrator_that_plans_nothing_has_no_breaker() -> None:
    tool = ScriptedTool("t", err(503))
    runner = plain(tool)
    for _ in range(20):
        await runner.run("q", "t")
    assert len(tool.calls) == 20
