"""The virtual clock: it jumps where nothing can happen in between, and only there."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from steer_llm_sdk.testing import Deadlock, VirtualTimeLoop, clock, run_in_virtual_time


async def test_hours_pass_in_no_time() -> None:
    loop, began = asyncio.get_running_loop(), time.monotonic()
    before = loop.time()
    await asyncio.sleep(3 * 3600)
    assert loop.time() - before == 3 * 3600
    assert time.monotonic() - began < 1


async def test_more_than_the_longest_single_wait_of_a_loop_passes_exactly() -> None:
    await asyncio.sleep(40 * 24 * 3600)
    assert asyncio.get_running_loop().time() == 40 * 24 * 3600


async def test_timers_fire_in_the_order_of_their_times() -> None:
    order: list[str] = []

    async def say(name: str, delay: float) -> None:
        await asyncio.sleep(delay)
        order.append(name)

    await asyncio.gather(say("late", 100), say("early", 0.001), say("between", 50))
    assert order == ["early", "between", "late"]


async def test_the_clock_stands_still_while_code_runs() -> None:
    loop, began = asyncio.get_running_loop(), time.monotonic()
    before = loop.time()
    while time.monotonic() < began + 0.002:
        await asyncio.sleep(0)
    assert loop.time() == before


async def test_a_timeout_fires_at_its_time_round_what_never_ends() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(600):
            await loop.create_future()
    assert loop.time() == 600


def test_waiting_for_ever_is_a_deadlock_where_no_timer_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "GRACE", 0.002)
    with pytest.raises(Deadlock, match="nothing can wake one"):
        run_in_virtual_time(_never())


async def test_a_thread_can_still_wake_a_loop_that_waits_for_nothing_else() -> None:
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[str] = loop.create_future()
    threading.Timer(0.005, loop.call_soon_threadsafe, (woken.set_result, "woken")).start()
    assert await woken == "woken"


async def test_the_clock_does_not_jump_over_an_answer_that_is_on_its_way() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        threading.Timer(0.01, theirs.send, (b"answer",)).start()
        async with asyncio.timeout(30):
            assert await asyncio.get_running_loop().sock_recv(ours, 100) == b"answer"
        assert asyncio.get_running_loop().time() < 10


async def test_a_timeout_round_real_io_fires_after_that_much_real_time() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.get_running_loop().sock_recv(ours, 100)
        assert time.monotonic() - began >= 0.0099


async def test_the_clock_does_not_jump_over_work_in_a_thread() -> None:
    async with asyncio.timeout(30):
        assert await asyncio.to_thread(_after, 0.005, "done") == "done"
    before = asyncio.get_running_loop().time()
    await asyncio.sleep(1000)
    assert asyncio.get_running_loop().time() == before + 1000


def test_a_run_of_its_own_returns_what_main_returns_and_shuts_its_threads_down() -> None:
    async def main() -> tuple[float, str]:
        await asyncio.sleep(7)
        word = await asyncio.to_thread(_after, 0.0, "word")
        return asyncio.get_running_loop().time(), word

    now, word = run_in_virtual_time(main())
    assert word == "word"
    assert 7 <= now < 8


def test_an_exception_of_main_comes_through() -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_in_virtual_time(main())


def test_two_loops_have_two_clocks() -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as one, asyncio.Runner(loop_factory=VirtualTimeLoop) as two:
        one.run(asyncio.sleep(5))
        two.run(asyncio.sleep(11))
        assert (one.get_loop().time(), two.get_loop().time()) == (5, 11)


async def _never() -> None:
    await asyncio.get_running_loop().create_future()


def _after(seconds: float, word: str) -> str:
    time.sleep(seconds)
    return word


def test_timers_go_off_after_years_of_virtual_time() -> None:
    async def main() -> float:
        for _ in range(3):
            await asyncio.sleep(1e8)
            await asyncio.sleep(0.1)
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(main()) == pytest.approx(3e8 + 0.3)
