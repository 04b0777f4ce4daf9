"""CircuitBreaker: the thin part that keeps time, judges errors, counts and calls back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from steer_llm_sdk.errors import CircuitOpen, InvalidRequest, ProviderError
from steer_llm_sdk.reliability import CircuitBreaker, CircuitBreakerConfig, CircuitBreakerManager, CircuitState
from steer_llm_sdk.reliability.circuit import Outcome

CONFIG = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, timeout=10, half_open_requests=1)


def config(**changes: Any) -> CircuitBreakerConfig:
    return CONFIG.model_copy(update=changes)


def raising(error: BaseException) -> Callable[[], Awaitable[Any]]:
    async def func() -> Any:
        raise error

    return func


def broken() -> Callable[[], Awaitable[Any]]:
    return raising(ProviderError("down", "p", status_code=503))


async def answer() -> str:
    return "ok"


async def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(ProviderError):
            await breaker.call(broken())


async def test_it_returns_what_the_function_returns() -> None:
    assert await CircuitBreaker("p").call(answer) == "ok"


async def test_a_refusal_is_a_provider_error_503_that_names_the_circuit() -> None:
    breaker = CircuitBreaker("acme", CONFIG)
    await fail(breaker, 2)
    await asyncio.sleep(4)
    with pytest.raises(ProviderError, match="Circuit breaker acme is OPEN") as caught:
        await breaker.call(answer)
    assert isinstance(caught.value, CircuitOpen)
    assert (caught.value.status_code, caught.value.provider, caught.value.retry_after) == (503, "acme", 6)


async def test_it_goes_from_closed_over_open_and_half_open_to_closed() -> None:
    breaker = CircuitBreaker("p", CONFIG)
    assert (breaker.is_closed, breaker.is_open, breaker.is_half_open) == (True, False, False)
    await fail(breaker, 2)
    assert (breaker.is_closed, breaker.is_open, breaker.is_half_open) == (False, True, False)
    await asyncio.sleep(10)
    assert (breaker.is_closed, breaker.is_open, breaker.is_half_open) == (False, False, True)
    assert await breaker.call(answer) == "ok"
    assert breaker.get_state() is CircuitState.CLOSED


async def test_a_circuit_that_has_come_back_or_was_reset_opens_again_as_the_first_time() -> None:
    breaker = CircuitBreaker("p", CONFIG)
    for _ in range(3):
        await fail(breaker, 2)
        assert breaker.is_open
        await asyncio.sleep(10)
        await breaker.call(answer)
        assert breaker.is_closed
        await fail(breaker, 2)
        breaker.reset()


async def test_a_success_begins_the_count_anew() -> None:
    breaker = CircuitBreaker("p", CONFIG)
    for _ in range(5):
        await fail(breaker)
        await breaker.call(answer)
    assert breaker.is_closed
    await fail(breaker, 2)
    assert breaker.is_open


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (ProviderError("x", "p", status_code=500), True),
        (ProviderError("x", "p", status_code=529), True),
        (ProviderError("x", "p", status_code=408), True),
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (ProviderError("x", "p", status_code=400), False),
        (ProviderError("x", "p", status_code=401), False),
        (ProviderError("x", "p", status_code=404), False),
        (ProviderError("x", "p", status_code=409), False),
        (ProviderError("x", "p", status_code=429), False),
        (CircuitOpen("q"), False),
        (InvalidRequest("f", 1, "no"), False),
        (ValueError("x"), False),
        (KeyError("x"), False),
        (RuntimeError("x"), False),
        (asyncio.CancelledError(), False),
    ],
)
async def test_only_failures_that_speak_about_the_provider_count(error: BaseException, counts: bool) -> None:
    breaker = CircuitBreaker("p", config(failure_threshold=1))
    with pytest.raises(type(error)):
        await breaker.call(raising(error))
    assert breaker.is_open is counts


async def test_a_rate_limit_counts_where_it_is_asked_for() -> None:
    breaker = CircuitBreaker("p", config(failure_threshold=1, count_rate_limits=True))
    with pytest.raises(ProviderError):
        await breaker.call(raising(ProviderError("x", "p", status_code=429)))
    assert breaker.is_open


async def test_cancelling_a_probe_gives_its_place_back() -> None:
    breaker = CircuitBreaker("p", CONFIG)
    await fail(breaker, 2)
    await asyncio.sleep(10)
    probe = asyncio.create_task(breaker.call(lambda: asyncio.sleep(3600)))
    await asyncio.sleep(1)
    with pytest.raises(CircuitOpen):
        await breaker.call(answer)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    assert await breaker.call(answer) == "ok"


async def test_exactly_as_many_of_fifty_callers_get_through_half_open_as_may() -> None:
    breaker = CircuitBreaker("p", config(half_open_requests=3, success_threshold=3))
    await fail(breaker, 2)
    await asyncio.sleep(10)
    reached = 0

    async def slow() -> None:
        nonlocal reached
        reached += 1
        await asyncio.sleep(1)

    ends = await asyncio.gather(*(breaker.call(slow) for _ in range(50)), return_exceptions=True)
    assert reached == 3
    assert sum(isinstance(end, CircuitOpen) for end in ends) == 47
    assert breaker.is_closed


async def test_stats_count_and_name_what_happened() -> None:
    breaker = CircuitBreaker("p", CONFIG)
    await breaker.call(answer)
    await fail(breaker, 2)
    with pytest.raises(CircuitOpen):
        await breaker.call(answer)
    assert breaker.get_stats() == {
        "name": "p",
        "state": "open",
        "mode": "auto",
        "observed": "open",
        "generation": 1,
        "successes": 1,
        "failures": 2,
        "refusals": 1,
        "narrowed": {},
    }


async def test_reset_closes_it_and_forgets_even_what_is_under_way() -> None:
    breaker = CircuitBreaker("p", CONFIG)
    late = [asyncio.create_task(breaker.call(_fail_after(5))) for _ in range(2)]
    await asyncio.sleep(1)
    await fail(breaker, 2)
    breaker.reset()
    assert breaker.is_closed
    await asyncio.gather(*late, return_exceptions=True)
    await fail(breaker, 1)
    assert breaker.is_closed


def _fail_after(seconds: float) -> Callable[[], Awaitable[Any]]:
    async def func() -> Any:
        await asyncio.sleep(seconds)
        raise ProviderError("down", "p", status_code=503)

    return func


async def test_callbacks_sync_or_async_get_the_breaker_at_each_change() -> None:
    told: list[tuple[str, CircuitState]] = []

    async def on_open(breaker: CircuitBreaker) -> None:
        told.append(("open", breaker.get_state()))

    breaker = CircuitBreaker(
        "p",
        config(
            on_open=on_open,
            on_half_open=lambda b: told.append(("half", b.get_state())),
            on_close=lambda b: told.append(("close", b.get_state())),
        ),
    )
    await fail(breaker, 2)
    await asyncio.sleep(10)
    await breaker.call(answer)
    assert told == [("open", CircuitState.OPEN), ("half", CircuitState.HALF_OPEN), ("close", CircuitState.CLOSED)]


async def test_a_callback_may_return_anything_that_can_be_awaited() -> None:
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    breaker = CircuitBreaker("p", config(on_open=lambda _: told))
    await fail(breaker, 2)
    told.set_result("heard")
    await asyncio.sleep(0)
    assert breaker.is_open


async def test_a_callback_that_fails_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def later(_: CircuitBreaker) -> None:
        raise KeyError("later")

    def at_once(_: CircuitBreaker) -> None:
        raise KeyError("at once")

    for callback in (at_once, later):
        breaker = CircuitBreaker("p", config(on_open=callback))
        with caplog.at_level(logging.ERROR):
            await fail(breaker, 2)
            await asyncio.sleep(0)
        assert breaker.is_open
        assert "a callback of circuit breaker p failed" in caplog.text
        caplog.clear()


async def test_a_callback_may_reset_the_breaker() -> None:
    breaker = CircuitBreaker("p", config(on_open=lambda b: b.reset()))
    await fail(breaker, 5)
    assert breaker.is_closed


def test_without_a_loop_it_can_be_read_and_reset_and_async_callbacks_are_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[CircuitState] = []

    async def on_close(breaker: CircuitBreaker) -> None:
        told.append(breaker.get_state())

    breaker = CircuitBreaker("p", config(failure_threshold=1, on_close=on_close))
    with pytest.raises(ProviderError):
        asyncio.run(breaker.call(broken()))
    assert breaker.is_open
    breaker.reset()
    assert breaker.is_closed
    assert told == []
    assert "no event loop" in caplog.text


def test_its_repr_shows_name_and_state() -> None:
    assert repr(CircuitBreaker("p")) == "CircuitBreaker('p', Closed(generation=0, since=0.0, relapses=0))"


# ── the manager ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_manager_keeps_one_breaker_by_name() -> None:
    manager = CircuitBreakerManager()
    assert manager.get("p") is None
    breaker = manager.get_or_create("p", CONFIG)
    assert manager.get_or_create("p") is breaker
    assert manager.get("p") is breaker
    assert breaker.config is CONFIG
    assert manager.get_or_create("q").config == CircuitBreakerConfig()


async def test_the_manager_asks_for_the_configuration_of_each_name() -> None:
    manager = CircuitBreakerManager(lambda name: config(failure_threshold=len(name)))
    assert manager.get_or_create("abc").config.failure_threshold == 3


async def test_the_manager_knows_whether_all_circuits_are_closed_and_resets_them() -> None:
    manager = CircuitBreakerManager(lambda _: CONFIG)
    one, two = manager.get_or_create("one"), manager.get_or_create("two")
    assert manager.all_closed
    await fail(one, 2)
    await fail(two, 2)
    assert not manager.all_closed
    assert {name: stats["state"] for name, stats in manager.get_all_stats().items()} == {"one": "open", "two": "open"}
    one.reset()
    assert not manager.all_closed
    manager.reset_all()
    assert manager.all_closed
    assert (one.is_closed, two.is_closed) == (True, True)


async def test_a_part_that_is_cut_off_alone_is_seen_by_the_manager() -> None:
    manager = CircuitBreakerManager(lambda _: CONFIG)
    breaker = manager.get_or_create("p")
    for _ in range(2):
        permit = breaker.admit("a")
        breaker.report(permit, "a", breaker.judge(TimeoutError()))
    permit = breaker.admit("b")
    assert breaker.report(permit, "b", Outcome.SUCCESS) is CircuitState.CLOSED
    assert breaker.is_closed
    assert breaker.get_stats()["narrowed"] == {"a": "open"}
    assert breaker.get_state("a") is CircuitState.OPEN
    assert not manager.all_closed
    with pytest.raises(CircuitOpen):
        breaker.admit("a")


async def test_a_part_that_fails_among_the_successes_of_another_is_cut_off_alone_and_its_own_success_clears_it() -> (
    None
):
    breaker = CircuitBreaker("p", CONFIG)

    def report(part: str, *, ok: bool) -> None:
        breaker.report(breaker.admit(part), part, Outcome.SUCCESS if ok else Outcome.FAILURE)

    for _ in range(4):
        report("a", ok=False)
        report("b", ok=True)
        report("a", ok=True)
    assert breaker.get_stats()["narrowed"] == {}
    report("a", ok=False)
    report("b", ok=True)
    report("a", ok=False)
    assert breaker.get_stats()["narrowed"] == {"a": "open"}


async def test_a_report_tells_of_each_change_and_of_nothing_else() -> None:
    """Also after a part was cut off, whose lane has numbers of its own."""
    breaker = CircuitBreaker("p", CONFIG)

    def report(part: str, *, ok: bool) -> CircuitState | None:
        return breaker.report(breaker.admit(part), part, Outcome.SUCCESS if ok else breaker.judge(TimeoutError()))

    assert [report("a", ok=False), report("a", ok=False)] == [None, CircuitState.OPEN]
    assert report("b", ok=True) is CircuitState.CLOSED
    assert [report("b", ok=False), report("b", ok=False)] == [None, CircuitState.OPEN]
    await asyncio.sleep(10)
    assert report("b", ok=True) is CircuitState.CLOSED
    assert report("a", ok=True) is CircuitState.CLOSED
    assert [report("a", ok=True), report("b", ok=True)] == [None, None]


@pytest.mark.parametrize(
    "fields",
    [
        {"failure_threshold": 0},
        {"success_threshold": 0},
        {"half_open_requests": 0},
        {"timeout": -1},
        {"timeout": float("inf")},
        {"window_size": 0},
        {"probe_lease": 0},
        {"failure_treshold": 5},
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        CircuitBreakerConfig(**fields)
