"""until: back in time, whatever the work does with its cancellation."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from steer_llm_sdk.reliability.deadline import GRACE, Deadline, Late, until


@pytest.fixture
def unseen() -> Iterator[list[dict[str, Any]]]:
    """What the loop complains of: an exception that nobody has looked at, a task that was destroyed."""
    complaints: list[dict[str, Any]] = []
    logger = logging.getLogger("asyncio")
    handler = _Keep(complaints)
    logger.addHandler(handler)
    yield complaints
    logger.removeHandler(handler)


class _Keep(logging.Handler):
    def __init__(self, kept: list[dict[str, Any]]) -> None:
        super().__init__()
        self.kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append({"message": record.getMessage()})


def now() -> float:
    return asyncio.get_running_loop().time()


async def after(seconds: float, result: Any = "done") -> Any:
    await asyncio.sleep(seconds)
    if isinstance(result, BaseException):
        raise result
    return result


async def answered() -> str:
    return "done"


async def deaf(seconds: float, result: Any = "late") -> Any:
    """Works for so long and does not listen to any cancellation."""
    end = now() + seconds
    while (left := end - now()) > 0:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(left)
    if isinstance(result, BaseException):
        raise result
    return result


def others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def test_work_that_never_waits_takes_no_turn_of_the_loop_where_a_task_can_begin_at_once() -> None:
    turned: list[bool] = []
    asyncio.get_running_loop().call_soon(turned.append, True)
    assert await until(math.inf, answered()) == "done"
    assert turned == ([] if sys.version_info >= (3, 13) else [True])


async def test_work_that_is_done_in_time_gives_its_result_at_its_time() -> None:
    assert await until(10, after(3)) == "done"
    assert now() == 3
    assert not others()


async def test_work_that_fails_in_time_raises_what_it_raised() -> None:
    with pytest.raises(KeyError, match="x"):
        await until(10, after(3, KeyError("x")))
    assert now() == 3


async def test_work_that_is_done_in_the_last_moment_is_in_time() -> None:
    assert await until(10, after(9.999999)) == "done"


@pytest.mark.real_time
async def test_work_after_work_that_never_waits_does_not_hold_up_a_deadline_round_it_all() -> None:
    ends = time.monotonic() + 5

    async def one_after_the_other() -> None:
        while time.monotonic() < ends:
            await until(math.inf, answered())

    with pytest.raises(Late):
        await until(now() + 0.02, one_after_the_other())


async def test_work_that_listens_is_stopped_at_the_deadline() -> None:
    with pytest.raises(Late) as caught:
        await until(10, after(3600))
    assert (now(), caught.value.finished, caught.value.result) == (10, False, None)
    assert not others()


async def test_work_that_swallows_its_cancellation_is_left_behind_after_the_grace() -> None:
    with pytest.raises(Late) as caught:
        await until(10, deaf(60))
    assert now() == pytest.approx(10 + GRACE)
    assert not caught.value.finished
    assert len(others()) == 1
    await asyncio.sleep(60)
    assert not others()


async def test_work_that_returns_within_the_grace_was_paid_for_and_is_handed_over() -> None:
    with pytest.raises(Late) as caught:
        await until(10, deaf(10 + GRACE / 2, "paid"))
    assert (caught.value.finished, caught.value.result) == (True, "paid")
    assert now() == pytest.approx(10 + GRACE / 2)


async def test_work_that_returns_nothing_within_the_grace_has_finished_too() -> None:
    with pytest.raises(Late) as caught:
        await until(10, deaf(10 + GRACE / 2, None))
    assert (caught.value.finished, caught.value.result) == (True, None)


async def test_work_that_fails_within_the_grace_is_late_and_nothing_else(unseen: list[Any]) -> None:
    with pytest.raises(Late) as caught:
        await until(10, deaf(10 + GRACE / 2, KeyError("x")))
    assert not caught.value.finished
    await _collect()
    assert unseen == []


async def test_what_work_that_was_left_behind_raises_later_is_logged(
    caplog: pytest.LogCaptureFixture, unseen: list[Any]
) -> None:
    with pytest.raises(Late):
        await until(10, deaf(20, KeyError("later")))
    await asyncio.sleep(60)
    assert "left behind failed later: KeyError('later')" in caplog.text
    await _collect()
    assert unseen == []


async def test_a_deadline_that_has_passed_stops_the_work_at_its_first_wait() -> None:
    await asyncio.sleep(10)
    with pytest.raises(Late):
        await until(5, after(3600))
    assert now() == 10


async def test_without_end_it_waits_for_the_work() -> None:
    assert await until(math.inf, after(10**6)) == "done"


async def test_cancelling_the_caller_cancels_the_work_and_waits_for_it_to_stop(unseen: list[Any]) -> None:
    cleaned: list[float] = []

    async def tidy() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(GRACE / 2)
            cleaned.append(now())

    caller = asyncio.create_task(until(100, tidy()))
    await asyncio.sleep(1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert cleaned == [1 + GRACE / 2]
    assert not others()
    await _collect()
    assert unseen == []


async def test_cancelling_the_caller_of_work_that_then_fails_is_a_cancellation(unseen: list[Any]) -> None:
    async def spiteful() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise KeyError("instead") from None

    caller = asyncio.create_task(until(100, spiteful()))
    await asyncio.sleep(1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await _collect()
    assert unseen == []


async def test_cancelling_the_caller_of_deaf_work_leaves_the_work_behind_after_the_grace() -> None:
    caller = asyncio.create_task(until(100, deaf(50)))
    await asyncio.sleep(1)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert now() == pytest.approx(1 + GRACE)


async def test_cancelling_the_caller_twice_does_not_wait_for_the_grace(unseen: list[Any]) -> None:
    caller = asyncio.create_task(until(100, deaf(50, KeyError("x"))))
    await asyncio.sleep(1)
    caller.cancel()
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert now() == 1
    await asyncio.sleep(100)
    await _collect()
    assert unseen == []


async def test_a_deadline_says_what_is_left_and_never_less_than_nothing() -> None:
    deadline = Deadline.after(1500, now())
    assert (deadline.at, deadline.limit_ms, deadline.remaining()) == (1.5, 1500, 1.5)
    await asyncio.sleep(1)
    assert deadline.remaining() == 0.5
    await asyncio.sleep(1)
    assert deadline.remaining() == 0


async def _collect() -> None:
    """Exceptions that nobody has looked at are told when their task is collected."""
    for _ in range(3):
        await asyncio.sleep(0)
        gc.collect()
