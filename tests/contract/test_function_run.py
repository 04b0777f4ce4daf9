"""`await fn.run(...)` puts the call of a function under the policies of a ReliableOrchestrator."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

import steer_llm_sdk
from steer_llm_sdk import get_global_registry, tool
from steer_llm_sdk.errors import BudgetExceeded, ConflictError, InvalidRequest, ProviderError
from steer_llm_sdk.orchestration import direct
from steer_llm_sdk.orchestration.tools import _runner
from steer_llm_sdk.orchestration.tools import tool as tool_of_tools
from steer_llm_sdk.testing import OK, RecordedEvents, ScriptedTool


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test knows the circuits and keys of another."""
    runner = direct._Direct(registry=direct._Handed())
    monkeypatch.setattr(_runner, "_load", lambda: runner.run_tool)


def failing(times: int, status: int = 503, **declared: Any) -> Any:
    calls: list[str] = []

    @tool(**declared)
    async def flaky(text: str) -> str:
        """Fails so many times."""
        calls.append(text)
        if len(calls) <= times:
            raise ProviderError("down", "p", status_code=status)
        return text.upper()

    flaky.calls = calls
    return flaky


def test_the_decorator_is_at_the_front_of_the_package() -> None:
    assert steer_llm_sdk.tool is tool_of_tools


async def test_a_run_comes_back_as_an_output_and_a_call_as_the_value() -> None:
    shout = failing(0)
    assert await shout("a") == "A"
    output = await shout.run("a")
    assert (output.status, output.content) == ("succeeded", "A")
    assert output.metadata["tool_name"] == "flaky"


async def test_a_run_is_retried() -> None:
    flaky = failing(2)
    output = await flaky.run("a")
    assert output.content == "A"
    assert [line["outcome"] for line in output.attempts] == ["failed", "failed", "succeeded"]


async def test_options_reach_the_policies() -> None:
    flaky = failing(9)
    output = await flaky.run("a", options={"max_retries": 1})
    assert (output.status, len(output.attempts)) == ("failed", 2)
    assert (await flaky.run("a", options={"retry_on_failure": False})).per_agent["flaky"]["attempts"] == 1


async def test_a_run_has_a_deadline() -> None:
    @tool
    async def slow(text: str) -> str:
        await asyncio.sleep(60)
        return text

    with pytest.raises(BudgetExceeded, match="time budget exceeded"):
        await slow.run("a", options={"timeout_ms": 200})


async def test_functions_of_one_provider_share_a_circuit_breaker() -> None:
    for name in ("one", "two"):
        await failing(9, name=name, provider="openai").run("a")
    refused = await failing(0, name="three", provider="openai").run("a", options={"retry_on_failure": False})
    assert refused.status == "failed"
    assert refused.content["error"]["type"] == "CircuitOpen"


async def test_a_key_is_known_from_call_to_call() -> None:
    flaky = failing(0)
    first = await flaky.run("a", options={"idempotency_key": "k"})
    again = await flaky.run("a", options={"idempotency_key": "k"})
    assert (again == first, again.replayed, len(flaky.calls)) == (True, True, 1)
    with pytest.raises(ConflictError, match="used with different request"):
        await flaky.run("b", options={"idempotency_key": "k"})


async def test_two_functions_of_one_name_are_run_each_for_itself_also_at_once() -> None:
    def made(answer: str) -> Any:
        @tool(name="same")
        async def same(text: str) -> str:
            await asyncio.sleep(1)
            return answer

        return same

    outputs = await asyncio.gather(*(made(answer).run("x", options={"timeout_ms": 5000}) for answer in "abc"))
    assert [output.content for output in outputs] == ["a", "b", "c"]


async def test_a_function_may_run_another_one() -> None:
    inner = failing(1, name="inner")

    @tool
    async def outer(text: str) -> str:
        answer = (await inner.run(text)).content
        return f"{answer}{(await inner.run(text)).content}"

    output = await outer.run("a")
    assert (output.content, output.metadata["tool_name"]) == ("AA", "outer")


async def test_a_request_that_does_not_fit_is_refused_before_the_call() -> None:
    flaky = failing(0)
    output = await flaky.run(5)
    assert output.status == "failed"
    assert "text: 5 cannot be used" in output.content["error"]["message"]
    assert flaky.calls == []


async def test_events_name_the_function() -> None:
    events = RecordedEvents()
    await failing(1).run("a", event_manager=events)
    assert events.types == ["start", "retry_attempt", "complete"]
    assert events.all[0].metadata["tool_name"] == "flaky"


async def test_an_option_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"options\.colour"):
        await failing(0).run("a", options={"colour": "red"})


async def test_nothing_is_registered_and_no_function_is_kept() -> None:
    before = get_global_registry().names()
    runner: Any = _runner.runner()
    await failing(0, name="gone").run("a")
    assert get_global_registry().names() == before
    assert runner.__self__._used == {}


def test_the_flow_is_loaded_when_the_first_function_is_run() -> None:
    code = """
import asyncio, sys
from steer_llm_sdk import tool

@tool(name="double")
def double(n: int) -> int:
    return 2 * n

assert "steer_llm_sdk.orchestration.base" not in sys.modules
output = asyncio.run(double.run(n=4))
print(output.status, output.content)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("succeeded 8\n", "")


async def test_functions_share_one_orchestrator_for_the_life_of_the_process() -> None:
    direct._direct.cache_clear()
    try:
        given: dict[str, Any] = {"tool_options": None, "options": {"idempotency_key": "k"}, "event_manager": None}
        first, again = [await direct.run_tool(ScriptedTool("t", OK("x"), OK("y")), {"q": 1}, **given) for _ in "ab"]
        assert (first.content, again.content, again.replayed) == ("x", "x", True)
    finally:
        direct._direct.cache_clear()
