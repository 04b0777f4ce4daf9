"""Signs of life, and who is started beside one that shows none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.reliability.silence import Life, Quiet, first_of


def now() -> float:
    return asyncio.get_running_loop().time()


# ── what silence is ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_that_was_not_sent_is_silent() -> None:
    assert Quiet().due(10) is None


def test_one_that_was_sent_is_silent_until_it_begins_or_ends() -> None:
    sent = Quiet().sent(5)
    assert sent.due(10) == 15
    assert sent.alive(8).due(10) is None
    assert sent.ended(False, 8).due(10) is None
    assert sent.alive(8).ended(True, 9) == Quiet(since=9)


def test_the_time_between_two_attempts_is_no_silence() -> None:
    assert Quiet().sent(0).ended(False, 4).sent(9).due(10) == 19


def test_of_several_attempts_the_first_byte_of_any_is_a_sign_of_life() -> None:
    three = Quiet().sent(0).sent(1).sent(2)
    assert three.due(10) == 10
    assert three.alive(6).due(10) is None
    assert three.alive(6).ended(True, 7).due(10) == 17


def test_what_somebody_nearer_answers_is_no_silence_and_its_clock_begins_when_he_has_done_what_he_can() -> None:
    covered = Quiet().sent(0).cover(1, 0).cover(1, 0)
    assert covered.due(10) is None
    assert covered.cover(-1, 4).due(10) is None
    assert covered.cover(-1, 4).cover(-1, 5).due(10) == 15


@given(st.lists(st.tuples(st.sampled_from(["sent", "alive", "ended"]), st.floats(0, 5)), max_size=60))
def test_it_is_due_exactly_while_some_are_under_way_and_none_has_begun(steps: list[tuple[str, float]]) -> None:
    quiet, at = Quiet(), 0.0
    for step, pause in steps:
        at += pause
        if step == "sent":
            quiet = quiet.sent(at)
        elif step == "alive" and quiet.silent:
            quiet = quiet.alive(at)
        elif step == "ended" and quiet.silent + quiet.begun:
            quiet = quiet.ended(quiet.begun > 0, at)
        due = quiet.due(10)
        assert (due is not None) is (quiet.silent > 0 and quiet.begun == 0)
        assert due is None or due <= at + 10
        assert min(quiet.silent, quiet.begun) >= 0


# ── watching ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_silence_is_told_once_when_it_has_lasted() -> None:
    told: list[float] = []
    life = Life(10, lambda _: told.append(now()))
    life.sent()
    await asyncio.sleep(100)
    life.sent()
    await asyncio.sleep(100)
    assert (told, life.silent) == ([10], True)


async def test_a_sign_of_life_in_time_is_no_silence_and_the_next_attempt_has_all_its_time() -> None:
    told: list[float] = []
    life = Life(10, lambda _: told.append(now()))
    pulse = life.sent()
    await asyncio.sleep(9)
    pulse.alive()
    pulse.alive()
    await asyncio.sleep(50)
    pulse.ended()
    await asyncio.sleep(50)
    life.sent()
    await asyncio.sleep(50)
    assert told == [9 + 50 + 50 + 10]


async def test_one_that_begins_late_is_no_longer_silent() -> None:
    life = Life(10)
    pulse = life.sent()
    await asyncio.sleep(20)
    assert life.silent
    pulse.alive()
    assert (life.silent, life.sent_at, life.sign_at) == (False, 0, 20)


async def test_who_watches_more_sees_what_each_sees() -> None:
    told: list[str] = []
    tool = Life(10, lambda _: told.append("tool"))
    one, other = Life(4, lambda _: told.append("one"), tool), Life(parent=tool)
    one.sent()
    await asyncio.sleep(5)
    pulse = other.sent()
    await asyncio.sleep(1)
    pulse.alive()
    await asyncio.sleep(50)
    assert told == ["one"]
    pulse.ended()
    await asyncio.sleep(10)
    assert told == ["one", "tool"]


async def test_one_that_is_watched_later_is_silent_since_it_was_sent() -> None:
    told: list[float] = []
    life = Life(10, watching=False)
    life.sent().ended()
    await asyncio.sleep(3)
    life.sent()
    await asyncio.sleep(4)
    life.watch(lambda _: told.append(now()))
    await asyncio.sleep(50)
    assert told == [13]


@pytest.mark.parametrize("sign", ["alive", "ended", "covered"])
async def test_what_went_before_it_was_watched_is_not_forgotten(sign: str) -> None:
    told: list[float] = []
    life = Life(10, watching=False)
    pulse = life.sent()
    if sign == "covered":
        life.cover(1)
    else:
        getattr(pulse, sign)()
    life.watch(lambda _: told.append(now()))
    await asyncio.sleep(50)
    assert told == []
    if sign == "covered":
        life.cover(-1)
        await asyncio.sleep(50)
        assert told == [60]


async def test_what_is_closed_tells_nobody() -> None:
    told: list[float] = []
    life = Life(10, lambda _: told.append(now()))
    life.sent()
    life.close()
    await asyncio.sleep(50)
    assert told == []


async def test_a_loss_is_known_to_all_that_is_watched_within() -> None:
    outer = Life(10)
    inner = Life(parent=Life(parent=outer))
    inner.sent()
    await asyncio.sleep(11)
    assert (inner.was_lost, inner.timed_out) == (False, False)
    outer.lost = outer.blamed = True
    assert (inner.was_lost, inner.timed_out) == (True, True)


# ── the race ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Runner:
    """Sends after `queue` seconds, begins `begins` after that, and comes to `end` `takes` after it was sent."""

    def __init__(self, end: Any = "ok", *, takes: float = 1, queue: float = 0, begins: float | None = None) -> None:
        self.end, self.takes, self.queue, self.begins = end, takes, queue, begins
        self.started: float | None = None
        self.stopped: float | None = None
        self.life: Life | None = None

    async def __call__(self, life: Life) -> Any:
        self.started, self.life = now(), life
        try:
            await asyncio.sleep(self.queue)
            pulse = life.sent()
            try:
                if self.begins is not None:
                    await asyncio.sleep(self.begins)
                    pulse.alive()
                await asyncio.sleep(self.takes - (self.begins or 0))
            finally:
                pulse.ended()
        except asyncio.CancelledError:
            self.stopped = now()
            raise
        if isinstance(self.end, Exception):
            raise self.end
        return self.end


class Told:
    def __init__(self, *, stop_after_failure: bool = False, refuse: bool = False) -> None:
        self.failures: list[tuple[int, str]] = []
        self.asked: list[tuple[int, bool, float]] = []
        self.stop_after_failure, self.refuse = stop_after_failure, refuse

    def may_start(self, number: int, beside: bool) -> bool:
        self.asked.append((number, beside, now()))
        return not self.refuse

    def failed(self, number: int, error: Exception) -> bool:
        self.failures.append((number, str(error)))
        return not self.stop_after_failure


async def race(*runners: Any, told: Told | None = None, parent: Life | None = None) -> Any:
    told = told or Told()
    before = asyncio.all_tasks()
    try:
        return await first_of(runners, after=10, may_start=told.may_start, failed=told.failed, parent=parent)
    finally:
        assert asyncio.all_tasks() <= before


DOWN = KeyError("down")


async def test_the_first_alone_answers_where_it_gives_a_sign_of_life() -> None:
    first, second = Runner("slow", takes=300, begins=9), Runner()
    assert await race(first, second) == (0, "slow")
    assert second.started is None


async def test_who_answers_without_waiting_needs_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def quick(life: Life) -> str:
        life.sent().ended()
        return "quick"

    timers: list[Any] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_at", lambda *timer: timers.append(timer))
    assert await race(quick, Runner()) == (0, "quick")
    assert timers == []


async def test_one_that_began_before_it_had_to_wait_is_not_silent() -> None:
    async def begun(life: Life) -> str:
        life.sent().alive()
        await asyncio.sleep(300)
        return "slow"

    assert await race(begun, Runner()) == (0, "slow")


async def test_beside_a_silent_one_the_next_is_started_and_the_first_answer_wins() -> None:
    first, second, third = Runner(takes=1000), Runner("quick", takes=2), Runner()
    told = Told()
    assert await race(first, second, third, told=told) == (1, "quick")
    assert (second.started, now(), first.stopped, third.started) == (10, 12, 12, None)
    assert told.asked == [(1, True, 10)]
    assert first.life is not None
    assert (first.life.lost, first.life.blamed) == (True, True)
    assert second.life is not None
    assert not second.life.lost


async def test_one_that_began_late_is_not_blamed_for_a_silence() -> None:
    first = Runner(takes=1000, begins=10.5)
    assert await race(first, Runner("quick", takes=2)) == (1, "quick")
    assert first.life is not None
    assert (first.life.lost, first.life.blamed) == (True, False)


async def test_an_honest_slow_answer_may_still_come_first() -> None:
    first, second = Runner("slow", takes=15), Runner(takes=1000)
    assert await race(first, second) == (0, "slow")
    assert (second.started, second.stopped) == (10, 15)


async def test_without_a_next_one_the_silent_one_is_left_alone() -> None:
    assert await race(Runner("at last", takes=1000)) == (0, "at last")
    first, second = Runner(DOWN), Runner("at last", takes=1000)
    assert await race(first, second) == (1, "at last")


async def test_each_silent_one_gets_another_beside_it() -> None:
    told = Told()
    assert await race(*(Runner(takes=1000) for _ in range(3)), Runner("quick"), told=told) == (3, "quick")
    assert told.asked == [(1, True, 10), (2, True, 20), (3, True, 30)]


async def test_a_queue_is_no_silence() -> None:
    first, second = Runner("ok", queue=60, takes=9), Runner()
    assert await race(first, second) == (0, "ok")
    assert second.started is None


async def test_after_a_failure_the_next_is_started_at_once() -> None:
    told = Told()
    assert await race(Runner(DOWN), Runner("b"), told=told) == (1, "b")
    assert told.asked == [(1, False, 1)]
    assert told.failures == [(0, "'down'")]


async def test_one_that_fails_while_another_is_under_way_starts_nobody() -> None:
    first, second, third = Runner("slow", takes=15), Runner(DOWN), Runner()
    assert await race(first, second, third) == (0, "slow")
    assert third.started is None


async def test_where_all_fail_there_is_no_answer() -> None:
    told = Told()
    assert await race(Runner(DOWN, takes=12), Runner(DOWN, takes=1), told=told) is None
    assert told.failures == [(1, "'down'"), (0, "'down'")]


async def test_a_failure_after_which_nobody_may_follow_ends_it_when_all_under_way_have_ended() -> None:
    told = Told(stop_after_failure=True)
    assert await race(Runner(DOWN), Runner("b"), told=told) is None
    assert await race(Runner("slow", takes=15), Runner(DOWN), Runner(), told=told) == (0, "slow")


async def test_where_a_late_start_is_refused_the_silent_one_goes_on_alone_for_good() -> None:
    told = Told(refuse=True)
    second = Runner()
    assert await race(Runner("slow", takes=99), second, told=told) == (0, "slow")
    assert (second.started, told.asked) == (None, [(1, True, 10)])


async def test_while_there_is_a_next_one_a_silence_is_answered_here_and_then_by_who_watches_all() -> None:
    told: list[float] = []
    parent = Life(10, lambda _: told.append(now()))
    assert await race(Runner("slow", takes=100), Runner(takes=1000), parent=parent) == (0, "slow")
    assert told == [20]


@pytest.mark.parametrize("end", ["answers", "fails", "is cancelled"])
async def test_when_it_has_ended_a_silence_is_seen_again_by_who_watches_all(end: str) -> None:
    """Though there was a next one that was not started."""
    told: list[float] = []
    life = Life(10, lambda _: told.append(now()))

    async def within() -> None:
        first = Runner(DOWN if end == "fails" else "a", takes=4)
        await race(first, Runner(), told=Told(stop_after_failure=True), parent=life)

    ended = asyncio.create_task(within())
    await asyncio.sleep(3)
    if end == "is cancelled":
        ended.cancel()
    await asyncio.wait([ended])
    began = now()
    life.sent()
    await asyncio.sleep(60)
    assert told == [began + 10]


async def test_one_that_is_deaf_to_its_end_does_not_hold_up_the_answer() -> None:
    async def deaf(life: Life) -> str:
        life.sent()
        end = now() + 60
        while now() < end:
            try:
                await asyncio.sleep(end - now())
            except asyncio.CancelledError:
                continue
        return "late"

    told = Told()
    assert await first_of((deaf, Runner("b")), after=10, may_start=told.may_start, failed=told.failed) == (1, "b")
    assert now() == pytest.approx(11.02)
    await asyncio.sleep(60)


async def test_an_answer_that_ignores_the_end_of_all_is_not_lost() -> None:
    async def deaf(life: Life) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return "just in time"
        return "never"

    task = asyncio.create_task(first_of((deaf, Runner()), after=10, may_start=Told().may_start, failed=Told().failed))
    await asyncio.sleep(1)
    task.cancel()
    assert await task == (0, "just in time")


@pytest.mark.parametrize("at", [0, 0.5, 10, 10.5, 11])
async def test_who_cancels_the_race_leaves_nobody_running(at: float) -> None:
    first, second = Runner(takes=1000), Runner(takes=1000)
    before = asyncio.all_tasks()
    task = asyncio.create_task(race(first, second))
    await asyncio.sleep(at)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
    assert first.life is None or not first.life.lost


async def test_what_is_told_of_a_failure_may_end_it_all() -> None:
    def failed(number: int, error: Exception) -> bool:
        raise RuntimeError("enough") from error

    first = Runner(takes=1000)
    with pytest.raises(RuntimeError, match="enough"):
        await first_of((first, Runner(DOWN)), after=10, may_start=lambda *_: True, failed=failed)
    assert first.stopped == 11


async def test_one_of_no_time_is_told_in_a_loop_that_does_the_first_step_of_a_task_at_once() -> None:
    """Python 3.11 has no such loop; `eager` stands in for it there, and takes the first step only."""

    def eager(loop: asyncio.AbstractEventLoop, work: Any, **given: Any) -> Any:
        done = loop.create_future()
        try:
            work.send(None)
        except StopIteration as end:
            done.set_result(end.value)
        except KeyError as error:
            done.set_exception(error)
        return done

    async def fails(_: Life) -> str:
        raise KeyError("x")

    async def answers(_: Life) -> str:
        return "answer"

    def yes(*_: Any) -> bool:
        return True

    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory", eager))
    try:
        won = await first_of([fails, fails, answers], after=1, may_start=yes, failed=yes)
    finally:
        loop.set_task_factory(None)
    assert (won, now()) == ((2, "answer"), 0)
