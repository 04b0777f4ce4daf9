"""CircuitBreaker: the thin part that keeps time, judges errors, counts and calls back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.fake_call import FakeCall
from steer_llm_sdk.errors import CircuitOpen, InvalidRequest, ProviderError
from steer_llm_sdk.reliability import (
    BreakerMode,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerManager,
    CircuitState,
)
from steer_llm_sdk.reliability._pipeline import compose
from steer_llm_sdk.reliability.circuit import Outcome
from steer_llm_sdk.reliability.circuit_breaker import Breaker
from steer_llm_sdk.reliability.deadline import Deadline
from steer_llm_sdk.testing import VirtualTimeLoop

CONFIG = CircuitBreakerConfig(failure_threshold=2, success_threshold=1, timeout=10, half_open_requests=1)


def config(**changes: Any) -> CircuitBreakerConfig:
    return CircuitBreakerConfig(**{**dict(CONFIG), **changes})


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


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def taking(seconds: float) -> Callable[[], Awaitable[Any]]:
    return lambda: asyncio.sleep(seconds, "ok")


async def test_it_opens_at_a_share_of_failures() -> None:
    breaker = CircuitBreaker("p", config(failure_threshold=100, failure_rate_threshold=0.5, minimum_throughput=4))
    for _ in range(2):
        await breaker.call(answer)
    await fail(breaker)
    assert breaker.is_closed
    await fail(breaker)
    assert breaker.is_open


async def test_it_opens_at_a_share_of_slow_calls_whether_they_fail_or_not() -> None:
    async def late_failure() -> None:
        await asyncio.sleep(3)
        raise ProviderError("down", "p", status_code=503)

    breaker = CircuitBreaker(
        "p", config(failure_threshold=100, slow_call_rate_threshold=0.5, slow_call_duration=2, minimum_throughput=4)
    )
    await breaker.call(taking(2))
    await breaker.call(taking(1))
    await breaker.call(taking(3))
    assert breaker.is_closed
    with pytest.raises(ProviderError):
        await breaker.call(late_failure)
    assert breaker.is_open


async def test_its_open_time_grows_with_each_failed_probe_and_is_as_long_as_the_provider_asks() -> None:
    breaker = CircuitBreaker("p", config(timeout_factor=3, max_timeout=60))
    await fail(breaker, 2)
    for expected in (10, 30, 60):
        with pytest.raises(CircuitOpen) as refused:
            await breaker.call(answer)
        assert refused.value.retry_after == expected
        await asyncio.sleep(expected)
        await fail(breaker)
    breaker = CircuitBreaker("p", config(failure_threshold=1))
    with pytest.raises(ProviderError):
        await breaker.call(raising(ProviderError("down", "p", status_code=503, retry_after=45)))
    with pytest.raises(CircuitOpen) as refused:
        await breaker.call(answer)
    assert refused.value.retry_after == 45


async def test_forced_open_refuses_every_call_and_nobody_knows_how_long() -> None:
    breaker = CircuitBreaker("p", config(mode="forced_open"))
    with pytest.raises(CircuitOpen) as refused:
        await breaker.call(answer)
    assert refused.value.retry_after is None
    await asyncio.sleep(1e6)
    with pytest.raises(CircuitOpen):
        breaker.check("a")
    assert (breaker.is_open, breaker.all_closed, breaker.get_stats()["observed"]) == (True, False, "closed")


async def test_forced_closed_admits_every_call_and_counts_towards_nothing() -> None:
    breaker = CircuitBreaker("p", config(mode="forced_closed"))
    await fail(breaker, 50)
    breaker.check("a")
    assert (breaker.is_closed, breaker.all_closed) == (True, True)
    stats = breaker.get_stats()
    assert (stats["state"], stats["observed"], stats["failures"]) == ("closed", "closed", 50)


async def test_one_that_only_observes_refuses_nobody_and_says_what_it_would_have_done() -> None:
    told: list[str] = []
    breaker = CircuitBreaker(
        "p",
        config(
            mode="observe_only",
            on_open=lambda _: told.append("open"),
            on_half_open=lambda _: told.append("half"),
            on_close=lambda _: told.append("close"),
        ),
    )
    await fail(breaker, 7)
    breaker.check("p")
    assert (breaker.is_closed, breaker.all_closed) == (True, True)
    stats = breaker.get_stats()
    assert (stats["state"], stats["observed"], stats["refusals"], stats["failures"]) == ("closed", "open", 5, 7)
    await asyncio.sleep(10)
    assert await breaker.call(answer) == "ok"
    assert told == ["open", "half", "close"]


async def test_the_decision_can_be_taken_and_given_back_and_what_is_known_is_kept() -> None:
    breaker = CircuitBreaker("p", CONFIG)
    await fail(breaker, 2)
    breaker.set_mode(BreakerMode.FORCED_CLOSED)
    assert await breaker.call(answer) == "ok"
    breaker.set_mode(BreakerMode.FORCED_OPEN)
    await asyncio.sleep(100)
    with pytest.raises(CircuitOpen):
        await breaker.call(answer)
    breaker.set_mode(BreakerMode.AUTO)
    assert (breaker.mode, breaker.get_state()) == (BreakerMode.AUTO, CircuitState.HALF_OPEN)
    assert await breaker.call(answer) == "ok"
    assert breaker.is_closed


async def test_resetting_leaves_the_mode_as_it_is() -> None:
    breaker = CircuitBreaker("p", config(mode="forced_open"))
    breaker.reset()
    assert breaker.is_open


MODES = st.sampled_from(list(BreakerMode))
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("mode"), MODES),
        st.tuples(st.just("tick"), st.sampled_from([1.0, 10.0])),
        st.tuples(st.just("call"), st.sampled_from(Outcome)),
    ),
    max_size=40,
)


@given(events=EVENTS, rate=st.none() | st.just(0.5))
def test_forced_states_hold_and_one_that_observes_never_refuses_whatever_happens(
    events: list[tuple[str, Any]], rate: float | None
) -> None:
    breaker = CircuitBreaker("p", config(failure_rate_threshold=rate, minimum_throughput=2))

    async def play() -> None:
        for kind, what in events:
            if kind == "mode":
                breaker.set_mode(what)
            elif kind == "tick":
                await asyncio.sleep(what)
            else:
                refuses = _refuses(breaker)
                if breaker.mode is BreakerMode.FORCED_OPEN:
                    assert refuses
                elif breaker.mode is not BreakerMode.AUTO:
                    assert not refuses
                if not refuses:
                    breaker.report(breaker.admit("a"), "a", what)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(play())


def _refuses(breaker: CircuitBreaker) -> bool:
    try:
        breaker.check("a")
    except CircuitOpen:
        return True
    return False


async def test_a_check_says_what_admit_would_and_takes_no_permit() -> None:
    breaker = CircuitBreaker("p", CONFIG)
    breaker.check("p")
    await fail(breaker, 2)
    with pytest.raises(CircuitOpen) as refused:
        breaker.check("p")
    assert refused.value.retry_after == 10
    breaker.check("b")  # would be an early probe
    await asyncio.sleep(10)
    for _ in range(5):
        breaker.check("p")
    breaker.admit("p")
    with pytest.raises(CircuitOpen):
        breaker.check("p")
    assert breaker.get_stats()["refusals"] == 2


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


def shut(manager: CircuitBreakerManager, target: str, **call: Any) -> CircuitBreaker:
    breaker = manager.of_call(FakeCall(target=target, **call))
    while not breaker.refuses_all:
        breaker.report(breaker.admit("a"), "a", Outcome.FAILURE)
    return breaker


async def test_a_provider_has_one_breaker_whatever_the_model_unless_each_model_is_to_have_its_own() -> None:
    manager = CircuitBreakerManager(lambda name: config(scope="model" if name == "each" else "provider"))
    one, other, none = (manager.of_call(FakeCall(target="all", model=model)) for model in ("m", "n", None))
    assert one is other is none
    one, other, none = (manager.of_call(FakeCall(target="each", model=model)) for model in ("m", "n", None))
    assert [breaker.name for breaker in (one, other, none)] == ["each/m", "each/n", "each"]
    assert manager.of_call(FakeCall(target="each", model="m")) is one
    assert list(manager.get_all_stats()) == ["all", "each/m", "each/n", "each"]


async def test_the_breaker_of_a_part_is_that_of_the_model_it_last_called() -> None:
    manager = CircuitBreakerManager(lambda _: config(scope="model"))
    assert manager.of_part("p", "a") is None
    for model in ("m", "n"):
        breaker = manager.of_call(FakeCall(model=model))
        assert manager.of_part("p", "a") is breaker
    assert CircuitBreakerManager().of_part("p", "a") is None


async def test_the_manager_checks_a_call_at_its_breaker() -> None:
    manager = CircuitBreakerManager(lambda _: config(scope="model"))
    shut(manager, "p", model="m")
    with pytest.raises(CircuitOpen, match="p/m"):
        manager.check(FakeCall(model="m"))
    manager.check(FakeCall(model="n"))


def probes(manager: CircuitBreakerManager, target: str, times: int = 3, **call: Any) -> int:
    """How many of so many calls are admitted; each of them fails."""
    breaker, admitted = manager.of_call(FakeCall(target=target, **call)), 0
    for _ in range(times):
        if not _refuses(breaker):
            breaker.report(breaker.admit("a"), "a", Outcome.FAILURE)
            admitted += 1
    return admitted


async def test_a_provider_may_be_met_for_the_first_time_while_all_are_reset() -> None:
    def met(breaker: CircuitBreaker) -> None:
        manager.get_or_create(f"new beside {breaker.name}", CircuitBreakerConfig())

    manager = CircuitBreakerManager(lambda name: CircuitBreakerConfig(failure_threshold=1, on_close=met))
    for name in ("a", "b"):
        await fail(manager.get_or_create(name))
    manager.reset_all()
    assert list(manager.get_all_stats()) == ["a", "b", "new beside a", "new beside b"]


async def test_in_panic_each_provider_is_probed_once_early_in_each_open_time() -> None:
    manager = CircuitBreakerManager(lambda _: config(panic=True))
    for name in "pq":
        shut(manager, name)
    assert [manager.of_call(FakeCall(target=name)).get_state() for name in "pq"] == [CircuitState.HALF_OPEN] * 2
    assert [probes(manager, name) for name in "pq"] == [1, 1]
    assert [manager.of_call(FakeCall(target=name)).get_state() for name in "pq"] == [CircuitState.OPEN] * 2
    await asyncio.sleep(10)
    assert [probes(manager, name, 1) for name in "pq"] == [1, 1]  # the ordinary probes: open again
    assert [probes(manager, name) for name in "pq"] == [1, 1]


async def test_there_is_no_panic_by_default_nor_for_one_provider_nor_while_one_is_not_open() -> None:
    manager = CircuitBreakerManager(lambda _: CONFIG)
    for name in "pq":
        shut(manager, name)
    assert [probes(manager, name) for name in "pq"] == [0, 0]
    alone = CircuitBreakerManager(lambda _: config(panic=True, scope="model"))
    for model in "mn":
        shut(alone, "p", model=model)
    assert [probes(alone, "p", model=model) for model in "mn"] == [0, 0]
    mixed = CircuitBreakerManager(lambda _: config(panic=True))
    for name in "pq":
        shut(mixed, name)
    healthy = mixed.of_call(FakeCall(target="r"))
    assert [probes(mixed, name) for name in "pq"] == [0, 0]
    healthy.set_mode(BreakerMode.OBSERVE_ONLY)
    assert [probes(mixed, name) for name in "pq"] == [0, 0]
    healthy.set_mode(BreakerMode.FORCED_OPEN)
    assert [probes(mixed, name) for name in "pqr"] == [1, 1, 0]


async def test_there_is_no_panic_while_the_time_of_another_provider_is_over() -> None:
    manager = CircuitBreakerManager(lambda name: config(panic=True, timeout=5 if name == "q" else 10))
    for name in "pq":
        shut(manager, name)
    await asyncio.sleep(5)
    assert probes(manager, "p") == 0
    assert probes(manager, "q", 1) == 1  # its ordinary probe: open again
    assert probes(manager, "p") == 1


async def test_the_manager_knows_of_a_circuit_that_is_open_from_the_first() -> None:
    manager = CircuitBreakerManager(lambda _: config(mode="forced_open"))
    breaker = manager.get_or_create("p")
    assert not manager.all_closed
    breaker.set_mode(BreakerMode.AUTO)
    assert manager.all_closed


# ── the policy ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def queue(call: Any, next: Any, /) -> Any:
    await asyncio.sleep(100)
    return await next(call)


async def test_time_in_a_queue_before_the_call_is_sent_is_no_slow_call() -> None:
    options = config(slow_call_rate_threshold=0.5, slow_call_duration=5, minimum_throughput=1)
    for seconds, expected in ((5, CircuitState.CLOSED), (6, CircuitState.OPEN)):
        manager = CircuitBreakerManager(lambda _: options)

        async def send(_: Any, seconds: float = seconds) -> None:
            await asyncio.sleep(seconds)

        call = FakeCall()
        await compose([queue, Breaker(manager)], send)(call)
        assert manager.of_call(call).get_state() is expected
        assert [told["state"] for _, told in call.events] == ([] if expected is CircuitState.CLOSED else ["open"])


async def test_an_event_names_the_model_where_each_has_its_own_breaker() -> None:
    manager = CircuitBreakerManager(lambda _: config(failure_threshold=1, scope="model"))

    async def send(_: Any) -> None:
        raise ProviderError("down", "p", status_code=503)

    call = FakeCall(model="m")
    with pytest.raises(ProviderError):
        await Breaker(manager)(call, send)
    assert call.events == [("circuit_breaker", {"provider": "p", "part": "a", "state": "open", "model": "m"})]


@pytest.mark.parametrize("firm", [True, False])
async def test_a_probe_lost_by_its_run_frees_its_place_at_the_deadline_if_that_cannot_move(firm: bool) -> None:
    manager = CircuitBreakerManager(lambda _: config(probe_lease=60))
    breaker = shut(manager, "p")
    await asyncio.sleep(10)
    now = asyncio.get_running_loop().time()
    breaker.admit("a", Deadline(now + 3, 3000, firm))
    await asyncio.sleep(2.99)
    assert _refuses(breaker)
    await asyncio.sleep(0.02)
    assert _refuses(breaker) is not firm
    await asyncio.sleep(57)
    assert not _refuses(breaker)


@pytest.mark.parametrize(
    "fields",
    [
        {"failure_rate_threshold": 0},
        {"failure_rate_threshold": 1.1},
        {"slow_call_rate_threshold": 0},
        {"slow_call_duration": 0},
        {"minimum_throughput": 0},
        {"timeout_factor": 0.5},
        {"max_timeout": 0},
        {"mode": "open"},
        {"scope": "tool"},
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
