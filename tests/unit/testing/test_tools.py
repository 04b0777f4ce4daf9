"""ScriptedTool: one step a call, the last one again and again."""

from __future__ import annotations

import asyncio

import pytest

from steer_llm_sdk.errors import ErrorCategory, ProviderError
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, err, stubborn


async def test_steps_are_played_in_order_and_the_last_one_again_and_again() -> None:
    tool = ScriptedTool("t", err(503), OK("first"), OK("last"))
    with pytest.raises(ProviderError):
        await tool.execute("q")
    assert [await tool.execute("q") for _ in range(3)] == ["first", "last", "last"]


async def test_a_tool_without_steps_answers_ok() -> None:
    assert await ScriptedTool("t").execute("q") == "ok"


async def test_an_error_status_becomes_a_provider_error_of_the_provider() -> None:
    tool = ScriptedTool("t", err(429, retry_after=2.5, usage={"input_tokens": 3}), provider="acme")
    with pytest.raises(ProviderError) as caught:
        await tool.execute("q")
    error = caught.value
    assert (error.provider, error.status_code, error.retry_after) == ("acme", 429, 2.5)
    assert error.category is ErrorCategory.RATE_LIMIT
    assert error.usage == {"input_tokens": 3}


async def test_each_call_raises_an_error_of_its_own() -> None:
    tool = ScriptedTool("t", err(500))
    errors = [await _error(tool), await _error(tool)]
    assert errors[0] is not errors[1]


@pytest.mark.parametrize("what", [ConnectionResetError, ConnectionResetError("gone")])
async def test_any_exception_can_be_raised(what: type[BaseException] | BaseException) -> None:
    with pytest.raises(ConnectionResetError):
        await ScriptedTool("t", err(what)).execute("q")


async def test_usage_and_cost_make_the_answer_a_mapping() -> None:
    tool = ScriptedTool("t", OK("x", usage={"total_tokens": 5}, cost_usd=0.1, metadata={"by": "m"}))
    assert await tool.execute("q") == {
        "content": "x",
        "usage": {"total_tokens": 5},
        "cost_usd": 0.1,
        "metadata": {"by": "m"},
    }


async def test_delay_and_after_take_the_time_they_say() -> None:
    loop = asyncio.get_running_loop()
    tool = ScriptedTool("t", err(503, after=50), OK(after=100), delay=3)
    await _error(tool)
    assert loop.time() == 53
    await tool.execute("q")
    assert loop.time() == 156


async def test_calls_record_request_options_and_time() -> None:
    tool, options = ScriptedTool("t"), {"k": 3}
    await asyncio.sleep(9)
    await tool.execute({"query": "q"}, options)
    options["k"] = 4
    (call,) = tool.calls
    assert (call.request, call.options, call.at) == ({"query": "q"}, {"k": 3}, 9)


async def test_a_tool_that_hangs_stops_when_it_is_cancelled() -> None:
    tool = ScriptedTool("t", HANG)
    task = asyncio.create_task(tool.execute("q"))
    await asyncio.sleep(1)
    assert tool.running == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (tool.running, tool.cancelled) == (0, 1)


async def test_a_stubborn_tool_finishes_its_time_deaf_to_cancellation() -> None:
    tool = ScriptedTool("t", stubborn(10, OK("done")))
    task = asyncio.create_task(tool.execute("q"))
    for _ in range(3):
        await asyncio.sleep(1)
        task.cancel()
    assert await task == "done"
    assert asyncio.get_running_loop().time() == 10


def test_what_a_registry_reads_can_be_given() -> None:
    tool = ScriptedTool(
        "t",
        provider="acme",
        version="2.0",
        description="d",
        capabilities=["qa"],
        default_options={"k": 2},
        resource_requirements={"estimated_cost_per_run": 0.5},
    )
    assert (tool.name, tool.provider, tool.version, tool.description) == ("t", "acme", "2.0", "d")
    assert (tool.capabilities, tool.default_options) == (("qa",), {"k": 2})
    assert tool.worst_case("q", {}).cost_usd == 0.5


async def _error(tool: ScriptedTool) -> BaseException:
    with pytest.raises(ProviderError) as caught:
        await tool.execute("q")
    return caught.value
