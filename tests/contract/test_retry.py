"""**Retry.** What is tried again, when, and how often."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from itertools import pairwise
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pydantic_ai.exceptions as ai
import pytest

from contract.kit import STEADY, calls, failed, now, plain, reliable
from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.orchestration import Tool
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability import HedgingPolicy, RetryPolicy
from steer_llm_sdk.testing import OK, RecordedEvents, ScriptedTool, err

URL = "http://127.0.0.1/v1"
NEW = httpx2.Request("POST", URL)


def response(status: int, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, request=NEW, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def attempts(error: Any, **policy: Any) -> int:
    tool = ScriptedTool("t", err(error), OK())
    await reliable(tool, retry=RetryPolicy(**policy)).run("q", "t")
    return len(tool.calls)


# ── what is classified ───────────────────────────────────────────────────────────────────────────────────────────────

CURABLE: list[Any] = [
    *(429, 408, 425, 500, 502, 503, 504, 529, 599),
    ConnectionResetError(),
    TimeoutError(),
    asyncio.IncompleteReadError(b"", 3),
    httpx.ReadTimeout("x"),
    httpx.ConnectError("x"),
    httpx2.ReadError("x"),
    httpx2.HTTPStatusError("x", request=NEW, response=response(503)),
    openai.RateLimitError("x", response=response(429), body=None),
    openai.APITimeoutError(request=NEW),
    openai.APIConnectionError(request=NEW),
    anthropic.InternalServerError("x", response=response(529), body=None),
    ai.ModelHTTPError(503, "m"),
    ai.ModelRateLimitError("m", "x"),
    ai.ModelTimeoutError("m", "x"),
    ProviderError("x", "p", status_code=409, retry_after=1.0),
]
FINAL: list[Any] = [
    *(400, 401, 402, 403, 404, 409, 413, 422),
    ValueError("timeout 503 rate limit"),
    RuntimeError("please try again, overloaded"),
    KeyError("x"),
    openai.AuthenticationError("x", response=response(401), body=None),
    openai.RateLimitError("x", response=response(429), body={"code": "insufficient_quota"}),
    anthropic.BadRequestError("overloaded", response=response(400), body=None),
    ai.ModelHTTPError(400, "m"),
    ai.ModelQuotaExceededError("m", "x"),
    ProviderError("x", "p", status_code=409),
]


@pytest.mark.parametrize("error", CURABLE, ids=repr)
async def test_what_another_try_may_cure_is_tried_again(error: Any) -> None:
    assert await attempts(error) == 2


@pytest.mark.parametrize("error", FINAL, ids=repr)
async def test_what_no_other_try_can_cure_is_not_and_no_english_text_decides(error: Any) -> None:
    assert await attempts(error) == 1


@pytest.mark.parametrize(
    ("error", "switch"),
    [
        (429, "retry_on_rate_limit"),
        (408, "retry_on_timeout"),
        (TimeoutError(), "retry_on_timeout"),
        (503, "retry_on_server_error"),
        (ConnectionResetError(), "retry_on_network_error"),
    ],
)
async def test_each_switch_of_the_policy_is_obeyed(error: Any, switch: str) -> None:
    assert await attempts(error) == 2
    assert await attempts(error, **{switch: False}) == 1


@pytest.mark.parametrize(
    ("status", "says", "policy", "made"),
    [
        (503, False, {}, 1),
        (400, True, {}, 2),
        (503, True, {"retry_on_server_error": False}, 1),
    ],
)
async def test_an_exception_whose_instance_has_is_retryable_set_is_believed_within_what_the_policy_allows(
    status: int, says: bool, policy: dict[str, bool], made: int
) -> None:
    error = ProviderError("x", "p", status_code=status)
    error.is_retryable = says
    assert await attempts(error, **policy) == made


async def test_any_exception_that_says_it_is_retryable_is_believed() -> None:
    class Busy(Exception):
        is_retryable = True

    assert await attempts(Busy()) == 2


# ── when ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_waits_are_exponential() -> None:
    tool = ScriptedTool("t", err(503))
    await reliable(tool, retry=STEADY.model_copy(update={"max_attempts": 5})).run("q", "t")
    assert [call.at for call in tool.calls] == [0, 1, 3, 7, 15]


async def test_successive_delays_grow_yet_never_synchronise() -> None:
    delays: list[list[float]] = []
    for _ in range(30):
        tool = ScriptedTool("t", err(503))
        began = now()
        await reliable(tool, retry=RetryPolicy(max_attempts=4)).run("q", "t")
        at = [call.at - began for call in tool.calls]
        delays.append([later - earlier for earlier, later in pairwise(at)])
    assert all(one <= two <= three for one, two, three in delays)
    assert len({round(delay, 9) for run in delays for delay in run}) == 90


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "20"}, 20),
        ({"retry-after": "7.5"}, 7.5),
        ({"retry-after-ms": "2500"}, 2.5),
        ({"retry-after-ms": "2500", "retry-after": "9"}, 2.5),
    ],
)
async def test_retry_after_in_seconds_float_and_milliseconds_is_a_floor_and_jitter_only_adds(
    headers: dict[str, str], seconds: float
) -> None:
    for _ in range(20):
        error = openai.RateLimitError("x", response=httpx2.Response(429, request=NEW, headers=headers), body=None)
        tool = ScriptedTool("t", err(error), OK())
        began = now()
        await reliable(tool, retry=RetryPolicy()).run("q", "t")
        assert seconds <= tool.calls[1].at - began <= seconds * 1.1


async def test_retry_after_as_an_http_date_is_a_floor() -> None:
    then = formatdate(time.time() + 30, usegmt=True)
    tool = ScriptedTool("t", err(openai.RateLimitError("x", response=response(429, retry_after=then), body=None)), OK())
    await reliable(tool).run("q", "t")
    assert 28.5 <= tool.calls[1].at <= 33


@pytest.mark.parametrize("bad", ["soon", "-3", "nan", "inf", "", "1e999", "Sun, 99 Nov 2026 12:00:30 GMT"])
async def test_bad_values_are_ignored(bad: str) -> None:
    tool = ScriptedTool("t", err(openai.RateLimitError("x", response=response(429, retry_after=bad), body=None)), OK())
    output = await reliable(tool).run("q", "t")
    assert (output.status, tool.calls[1].at) == ("succeeded", 1)


@pytest.mark.parametrize("options", [{}, {"timeout_ms": 30_000}])
async def test_a_delay_beyond_the_deadline_or_max_delay_means_fall_back_at_once(options: dict[str, Any]) -> None:
    first, second = ScriptedTool("first", err(429, retry_after=90)), ScriptedTool("second")
    output = await reliable(first, second).run("q", None, None, options)
    assert (output.metadata["tool_name"], now(), calls(first, second)) == ("second", 0, [1, 1])


async def test_there_is_no_sleep_after_the_last_attempt() -> None:
    tool = ScriptedTool("t", err(503))
    await reliable(tool).run("q", "t")
    assert (len(tool.calls), tool.calls[-1].at, now()) == (3, 3, 3)


async def test_max_total_delay_bounds_the_waits_of_a_call() -> None:
    tool = ScriptedTool("t", err(503))
    await reliable(tool, retry=STEADY.model_copy(update={"max_attempts": 10, "max_total_delay": 7.0})).run("q", "t")
    assert [call.at for call in tool.calls] == [0, 1, 3, 7]


async def test_max_total_retry_time_bounds_retrying_of_the_whole_run() -> None:
    first, second = ScriptedTool("first", err(503, after=2)), ScriptedTool("second", err(503, after=2))
    runner = reliable(first, second, max_total_retry_time=9, retry=STEADY.model_copy(update={"max_attempts": 10}))
    await runner.run("q")
    # first: 0-2, 3-5, 7-9; a wait of 4 s from 9 on is too long. second: 9-11; no wait at all.
    assert [call.at for call in first.calls] == [0, 3, 7]
    assert [call.at for call in second.calls] == [9]


async def test_waiting_is_asyncio_sleep_looked_up_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(delay: float, result: Any = None) -> Any:
        waited.append(delay)
        return result

    tool = ScriptedTool("t", err(503), err(503), OK())
    runner = reliable(tool)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await runner.run("q", "t")
    assert waited == [1, 2]


# ── how often ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("limit", [1, 2, 4, 7, 10])
async def test_total_upstream_calls_of_one_run_stay_within_max_total_attempts_across_retries_and_fallbacks(
    limit: int,
) -> None:
    tools = [ScriptedTool(name, err(503)) for name in ("a", "b", "c")]
    policy = RetryPolicy(max_attempts=5, initial_delay=0)
    runner = reliable(*tools, retry=policy, max_total_attempts=limit)
    output = await runner.run("q", None, None, {"enable_circuit_breaker": False})
    assert sum(calls(*tools)) == limit
    assert sum(entry["attempts"] for entry in output.per_agent.values()) == limit
    assert failed(output)["is_retryable"]


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_total_upstream_calls_of_one_run_stay_within_max_total_attempts_across_retries_and_hedges(
    limit: int,
) -> None:
    class Stuck(Tool):
        name, provider = "t", "p"
        calls = 0

        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            self.calls += 1
            if request["query"] == "stuck":
                await asyncio.sleep(10)
                raise ProviderError("no", "p", status_code=503)
            await asyncio.sleep(1 - self.calls / 1000)

    tool = Stuck()
    policy = RetryPolicy(max_attempts=5, initial_delay=0)
    runner = reliable(tool, retry=policy, max_total_attempts=limit, hedging=HedgingPolicy(min_samples=3))
    for _ in range(40):
        await runner.run("q", "t")
    output = await runner.run("stuck", "t")
    assert tool.calls - 40 == limit == len(output.attempts)
    assert [line["started_ms"] for line in output.attempts[:2]] == pytest.approx([0, 998.5][:limit], abs=5)


async def test_a_run_whose_attempts_are_used_up_says_so() -> None:
    first, second, third = (ScriptedTool(name, err(503)) for name in "abc")
    output = await reliable(first, second, third, max_total_attempts=3).run("q")
    assert calls(first, second, third) == [2, 1, 0]
    assert output.errors is not None
    assert output.errors["c"]["type"] == "AttemptsUsedUp"
    assert "all 3 upstream calls that max_total_attempts allows" in output.errors["c"]["message"]


async def test_each_run_has_attempts_of_its_own() -> None:
    tool = ScriptedTool("t", err(503))
    runner = reliable(tool, max_total_attempts=3)
    for _ in range(3):
        await runner.run("q", "t", None, {"enable_circuit_breaker": False})
    assert len(tool.calls) == 9


# ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("orchestrator", [plain, reliable])
async def test_retries_arrive_as_retry_attempt_with_who_when_and_why(orchestrator: Any) -> None:
    tool, events = ScriptedTool("t", err(503), err(429, retry_after=5), OK(), provider="p"), RecordedEvents()
    await orchestrator(tool).run("q", "t", None, {"max_retries": 4}, events)
    assert events.types == ["start", "retry_attempt", "retry_attempt", "complete"]
    first, second = events.data("retry_attempt")
    assert (first["tool_name"], first["provider"], first["attempt"], first["error"]) == ("t", "p", 1, "ProviderError")
    assert (second["attempt"], second["delay_ms"] >= 5000) == (2, True)
    assert all(isinstance(event, StreamDeltaEvent) for event in events.all[1:3])


async def test_the_output_has_a_timeline_of_all_attempts() -> None:
    tool = ScriptedTool("t", err(503, after=0.5), OK("x", after=0.25), provider="p")
    output = await reliable(tool).run("q", "t")
    first, second = output.attempts
    assert (first["started_ms"], first["elapsed_ms"], first["outcome"], first["attempt"]) == (0, 500, "failed", 1)
    assert first["error"]["status_code"] == 503
    assert (second["started_ms"], second["elapsed_ms"], second["outcome"], second["attempt"]) == (
        1500,
        250,
        "succeeded",
        2,
    )
    assert {line["provider"] for line in output.attempts} == {"p"}


async def test_usage_and_cost_are_the_sums_over_all_attempts() -> None:
    tool = ScriptedTool("t", err(503, usage={"total_tokens": 7}), OK("x", usage={"total_tokens": 5}))
    output = await reliable(tool).run("q", "t")
    assert output.usage == {"total_tokens": 12}
    assert output.per_agent["t"]["usage"] == {"total_tokens": 12}


async def test_a_failed_attempt_of_unknown_price_makes_the_cost_unknown_and_not_smaller() -> None:
    tool = ScriptedTool("t", err(503, usage={"total_tokens": 7}), OK("x", usage={"total_tokens": 5}, cost_usd=0.5))
    assert (await reliable(tool).run("q", "t")).cost_usd is None
