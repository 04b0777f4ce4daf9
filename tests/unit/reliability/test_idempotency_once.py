"""once: one key, one piece of work, however many callers come and go."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest

from steer_llm_sdk.errors import ConflictError, InFlight, StoreUnavailable
from steer_llm_sdk.reliability import IdempotencyManager
from steer_llm_sdk.reliability.deadline import Deadline, Late
from steer_llm_sdk.reliability.idempotency import LEASE, PATIENCE, Hangar, Heart, Work, once
from steer_llm_sdk.reliability.stores import POLL, Changed, Claim, Store
from steer_llm_sdk.reliability.stores.memory import MemoryStore
from steer_llm_sdk.testing import run_in_virtual_time

Result = list[str]


@dataclass
class Written(Work[Result]):
    """Work that is put together for a test."""

    key: str
    name: str
    mark: str | bytes
    run: Any = None
    dump: Any = None
    load: Any = None
    copy: Any = None
    terms: Any = None
    run_unprotected: bool = False
    wait: bool = True
    note: Any = lambda what, why, result: None


@dataclass
class Job:
    """A job of so many seconds that is counted each time it runs."""

    seconds: float = 10.0
    fails: BaseException | None = None
    runs: int = 0
    deadlines: list[Deadline] = field(default_factory=list)
    cancelled: int = 0

    async def run(self, deadline: Deadline) -> Result:
        self.runs += 1
        self.deadlines.append(deadline)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fails is not None:
            raise self.fails
        return [f"run {self.runs}"]

    def work(self, key: str = "k", fingerprint: str = "f", **changes: Any) -> Work[Result]:
        fields: dict[str, Any] = {
            "key": key,
            "name": key,
            "mark": fingerprint,
            "run": self.run,
            "dump": lambda result: ",".join(result).encode(),
            "load": lambda kept: ["loaded", kept.decode()],
            "copy": lambda result: ["copied", *result],
        }
        return Written(**{**fields, **changes})


def now() -> float:
    return asyncio.get_running_loop().time()


def within(seconds: float) -> Deadline:
    return Deadline.after(seconds * 1000, now())


def others() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def test_the_first_gets_the_result_itself_and_a_later_one_what_was_remembered() -> None:
    manager, job = IdempotencyManager(), Job()
    assert await once(manager, job.work(), None) == ["run 1"]
    assert await once(manager, job.work(), None) == ["loaded", "run 1"]
    assert job.runs == 1
    assert not others()
    assert manager.hangar.flights == {}


async def test_those_who_come_while_it_runs_join_and_each_gets_a_copy_of_his_own() -> None:
    manager, job = IdempotencyManager(), Job()
    ends = await asyncio.gather(*(once(manager, job.work(), None) for _ in range(5)))
    assert ends == [["run 1"], *[["copied", "copied", "run 1"]] * 4]
    assert len({id(end) for end in ends}) == 5
    assert (job.runs, now()) == (1, 10)


async def test_what_the_first_writes_into_his_result_is_seen_by_nobody_who_joined() -> None:
    manager, job = IdempotencyManager(), Job()

    async def first() -> None:
        result = await once(manager, job.work(), None)
        result.append("written")

    _, joined = await asyncio.gather(first(), once(manager, job.work(), None))
    assert "written" not in joined


async def test_what_failed_fails_for_all_and_is_not_remembered() -> None:
    manager, job = IdempotencyManager(), Job(fails=KeyError("x"))
    ends = await asyncio.gather(*(once(manager, job.work(), None) for _ in range(3)), return_exceptions=True)
    assert [type(end) for end in ends] == [KeyError] * 3
    with pytest.raises(KeyError):
        await once(manager, job.work(), None)
    assert job.runs == 2


async def test_a_result_that_is_not_to_be_remembered_frees_the_key_for_any_request() -> None:
    manager, job = IdempotencyManager(), Job()
    await once(manager, job.work(dump=lambda _: None), None)
    assert await once(manager, job.work(fingerprint="g"), None) == ["run 2"]


async def test_a_result_that_cannot_be_written_down_is_still_handed_over(caplog: pytest.LogCaptureFixture) -> None:
    def dump(_: Result) -> bytes:
        raise ValueError("no JSON")

    manager, job = IdempotencyManager(), Job()
    assert await once(manager, job.work(dump=dump), None) == ["run 1"]
    assert "a result cannot be remembered: no JSON" in caplog.text
    assert await once(manager, job.work(), None) == ["run 2"]


async def test_another_fingerprint_is_a_conflict_while_it_runs_and_afterwards() -> None:
    manager, job = IdempotencyManager(), Job()
    running = asyncio.create_task(once(manager, job.work(), None))
    await asyncio.sleep(1)
    with pytest.raises(ConflictError, match="used with different request") as caught:
        await once(manager, job.work(fingerprint="g"), None)
    assert (caught.value.key, caught.value.idempotency_key) == ("k", "k")
    await running
    with pytest.raises(ConflictError):
        await once(manager, job.work(fingerprint="g"), None)
    assert job.runs == 1


async def test_work_that_has_ended_when_its_task_is_made_is_not_joined_later() -> None:
    """As with asyncio.eager_task_factory, which Python 3.11 does not have."""

    def eager(loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Future[Any]:
        ended = loop.create_future()
        try:
            work.send(None)
        except StopIteration as end:
            ended.set_result(end.value)
        return ended

    async def run(deadline: Deadline) -> Result:
        times.append(deadline.remaining())
        return ["x"]

    times: list[float] = []
    manager, work = IdempotencyManager(), Job().work(run=run, dump=lambda _: None)
    asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory", eager))
    try:
        for _ in range(2):
            assert await once(manager, work, within(5)) == ["x"]
    finally:
        asyncio.get_running_loop().set_task_factory(None)
    assert times == [5, 5]


@pytest.mark.real_time
async def test_replay_after_replay_does_not_hold_up_who_else_is_there() -> None:
    manager, job, ends = IdempotencyManager(), Job(seconds=0), time.monotonic() + 5

    async def one_after_the_other() -> None:
        while time.monotonic() < ends:
            await once(manager, job.work(), None)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await one_after_the_other()


async def test_work_that_asks_for_its_own_key_waits_for_itself_as_long_as_it_said_and_leaves_nothing() -> None:
    manager, asked = IdempotencyManager(), 0

    async def run(_: Deadline) -> Result:
        nonlocal asked
        asked += 1
        return await once(manager, work, within(5))

    work = Job().work(run=run)
    for _ in range(3):
        with pytest.raises(Late):
            await once(manager, work, within(1))
    assert len(others()) == 1
    await asyncio.sleep(5)
    assert (asked, others(), manager.hangar.flights) == (1, set(), {})


async def test_in_memory_work_for_others_ends_when_the_last_of_them_has_left_before_his_time() -> None:
    store, job = MemoryStore(), Job()
    leads, elsewhere = IdempotencyManager(store=store), IdempotencyManager(store=store)
    leader = asyncio.create_task(once(leads, job.work(), within(1)))
    await asyncio.sleep(0)
    waits = asyncio.create_task(once(elsewhere, job.work(), within(30)))
    with pytest.raises(Late):
        await leader
    await asyncio.sleep(2)
    assert (job.runs, job.cancelled) == (1, 0)
    waits.cancel()
    await asyncio.sleep(2 * POLL)
    assert (job.cancelled, waits.cancelled(), others()) == (1, True, set())


async def test_other_keys_are_other_work() -> None:
    manager, job = IdempotencyManager(), Job()
    await asyncio.gather(once(manager, job.work("a"), None), once(manager, job.work("b"), None))
    assert job.runs == 2


# ── deadlines ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_one_alone_is_late_at_his_deadline_and_takes_the_work_along() -> None:
    manager, job = IdempotencyManager(), Job()
    with pytest.raises(Late) as caught:
        await once(manager, job.work(), within(4))
    assert (now(), job.cancelled, caught.value.finished) == (4, 1, False)
    assert not others()


async def test_work_that_still_finishes_in_the_grace_is_late_handed_over_and_remembered() -> None:
    async def run(_: Deadline) -> Result:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return ["paid"]
        return []

    manager, job = IdempotencyManager(), Job()
    with pytest.raises(Late) as caught:
        await once(manager, job.work(run=run), within(4))
    assert (caught.value.finished, caught.value.result) == (True, ["paid"])
    assert await once(manager, job.work(), None) == ["loaded", "paid"]


async def test_work_that_fails_in_the_grace_is_late_and_nothing_else() -> None:
    async def run(_: Deadline) -> Result:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise KeyError("x") from None
        return []

    with pytest.raises(Late):
        await once(IdempotencyManager(), Job().work(run=run), within(4))


async def test_the_first_with_the_shorter_deadline_leaves_the_work_to_the_one_who_joined() -> None:
    manager, job = IdempotencyManager(), Job()
    first = asyncio.create_task(once(manager, job.work(), within(4)))
    await asyncio.sleep(1)
    joined = asyncio.create_task(once(manager, job.work(), within(100)))
    with pytest.raises(Late):
        await first
    assert now() == 4
    assert await joined == ["copied", "run 1"]
    assert (job.runs, job.cancelled, now()) == (1, 0, 10)


async def test_the_work_knows_the_latest_deadline_of_those_who_wait() -> None:
    manager, job = IdempotencyManager(), Job()
    first = asyncio.create_task(once(manager, job.work(), within(20)))
    await asyncio.sleep(1)
    (shared,) = job.deadlines
    assert (shared.at, shared.firm) == (20, False)
    joined = asyncio.create_task(once(manager, job.work(), within(50)))
    await asyncio.sleep(0)
    assert shared.at == 51
    endless = asyncio.create_task(once(manager, job.work(), None))
    await asyncio.sleep(0)
    assert shared.at == float("inf")
    await asyncio.gather(first, joined, endless)


async def test_a_first_who_is_cancelled_leaves_the_work_to_the_one_who_joined() -> None:
    manager, job = IdempotencyManager(), Job()
    first = asyncio.create_task(once(manager, job.work(), None))
    await asyncio.sleep(1)
    joined = asyncio.create_task(once(manager, job.work(), None))
    await asyncio.sleep(1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await joined == ["copied", "run 1"]
    assert (job.runs, job.cancelled) == (1, 0)


async def test_the_last_who_is_cancelled_takes_the_work_along_and_frees_the_key() -> None:
    manager, job = IdempotencyManager(), Job()
    callers = [asyncio.create_task(once(manager, job.work(), None)) for _ in range(3)]
    await asyncio.sleep(1)
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)
    assert job.cancelled == 1
    assert not others()
    assert await once(manager, job.work(fingerprint="g"), None) == ["run 2"]


async def test_one_who_comes_while_the_work_is_being_cancelled_does_it_anew() -> None:
    stop = asyncio.Event()

    async def slow_to_stop(_: Deadline) -> Result:
        try:
            await asyncio.sleep(3600)
        finally:
            stop.set()
            await asyncio.sleep(0.01)
        return []

    manager, job = IdempotencyManager(), Job()
    first = asyncio.create_task(once(manager, job.work(run=slow_to_stop), None))
    await asyncio.sleep(1)
    first.cancel()
    await stop.wait()
    assert await once(manager, job.work(), None) == ["run 1"]
    assert now() == pytest.approx(1 + POLL + 10)


async def test_work_that_was_left_behind_and_still_holds_the_key_is_waited_for_and_not_bought_twice() -> None:
    deaf_until = 3.0

    async def deaf(_: Deadline) -> Result:
        while now() < deaf_until:
            try:
                await asyncio.sleep(deaf_until - now())
            except asyncio.CancelledError:
                continue
        return ["after all"]

    manager, job = IdempotencyManager(), Job()
    with pytest.raises(Late):
        await once(manager, job.work(run=deaf), within(1))
    assert await once(manager, job.work(), None) == ["loaded", "after all"]
    assert job.runs == 0


async def test_work_that_cancels_itself_is_cancelled_and_not_late() -> None:
    async def run(_: Deadline) -> Result:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await once(IdempotencyManager(), Job().work(run=run), None)


# ── stores ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Broken(Store):
    """A store that fails where it is told to."""

    def __init__(self, *calls: str) -> None:
        self.calls = calls
        self.released: list[int] = []
        self.settled: list[bytes] = []

    def __repr__(self) -> str:
        return "broken://"

    async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
        self._maybe("claim")
        return Claim("ours", 7)

    async def renew(self, key: str, token: int, lease: float) -> bool:
        self._maybe("renew")
        return True

    async def settle(self, key: str, token: int, result: bytes) -> bool:
        self._maybe("settle")
        self.settled.append(result)
        return True

    async def release(self, key: str, token: int) -> bool:
        self._maybe("release")
        self.released.append(token)
        return True

    def _maybe(self, call: str) -> None:
        if call in self.calls:
            raise ConnectionError("down")


class Elsewhere(IdempotencyManager):
    def __init__(self, store: Any) -> None:
        super().__init__()
        self.hangar = Hangar(store)


async def test_a_keyed_run_whose_store_is_down_is_not_started() -> None:
    job = Job()
    with pytest.raises(StoreUnavailable, match=r"ConnectionError.*run_unprotected") as caught:
        await once(Elsewhere(Broken("claim")), job.work(), None)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert job.runs == 0


async def test_it_runs_unprotected_where_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    job = Job()
    assert await once(Elsewhere(Broken("claim")), job.work(run_unprotected=True), None) == ["run 1"]
    assert "the run is unprotected" in caplog.text


async def test_a_store_that_misses_a_renewal_does_not_change_the_result(caplog: pytest.LogCaptureFixture) -> None:
    store, job = Broken("renew"), Job(seconds=3 * LEASE)
    assert await once(Elsewhere(store), job.work(), None) == ["run 1"]
    assert "did not answer" in caplog.text
    assert store.released == []


Notes = list[tuple[str, Result | None]]


def noting(notes: Notes) -> Any:
    return lambda what, why, result: notes.append((what, result))


async def test_a_result_that_the_store_does_not_take_is_handed_over_marked_and_written_when_the_store_is_back() -> None:
    store, job, notes = Broken("settle"), Job(), Notes()
    assert await once(Elsewhere(store), job.work(note=noting(notes)), None) == ["run 1"]
    assert now() == pytest.approx(job.seconds + PATIENCE)
    assert notes == [("not_remembered", ["run 1"])]
    store.calls = ()
    await asyncio.sleep(1)
    assert not others()
    assert store.settled == [b"run 1"]
    assert store.released == []


async def test_a_result_that_the_store_never_takes_is_not_tried_for_longer_than_a_lease() -> None:
    job = Job()
    await once(Elsewhere(Broken("settle")), job.work(), None)
    await asyncio.sleep(LEASE)
    assert not others()


async def test_an_unprotected_run_is_noted_before_it_starts_and_in_its_result() -> None:
    notes, seen = Notes(), []
    job = Job()

    async def run(deadline: Deadline) -> Result:
        seen.extend(notes)
        return await job.run(deadline)

    work = job.work(run=run, run_unprotected=True, note=noting(notes))
    result = await once(Elsewhere(Broken("claim")), work, None)
    assert seen == [("unprotected", None)]
    assert notes == [("unprotected", None), ("unprotected", result)]


async def test_a_store_that_says_nothing_is_down_after_its_time_and_a_late_claim_is_given_back() -> None:
    class Slow(Broken):
        async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
            await asyncio.sleep(PATIENCE + 1)
            return Claim("ours", 9)

    store, job = Slow(), Job()
    with pytest.raises(StoreUnavailable, match="within 2 s"):
        await once(Elsewhere(store), job.work(), None)
    assert now() == pytest.approx(PATIENCE)
    await asyncio.sleep(2)
    assert (store.released, job.runs) == ([9], 0)


@pytest.mark.parametrize("seconds", [0.5, 1.5])
async def test_a_caller_who_is_cancelled_while_it_claims_leaves_no_claim_behind(seconds: float) -> None:
    class Slow(Broken):
        async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
            await asyncio.sleep(1)
            return Claim("ours", 9)

    store = Slow()
    caller = asyncio.create_task(once(Elsewhere(store), Job().work(), None))
    await asyncio.sleep(seconds)
    caller.cancel()
    await asyncio.sleep(2)
    assert store.released == [9]
    assert not others()


@pytest.mark.parametrize("turns", range(6))
async def test_a_claim_that_is_granted_in_the_moment_of_a_cancellation_is_given_back(turns: int) -> None:
    class Racing(Broken):
        async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
            await asyncio.sleep(1)
            caller.cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            return Claim("ours", 9)

    store = Racing()
    caller = asyncio.create_task(once(Elsewhere(store), Job().work(), None))
    await asyncio.sleep(2)
    assert caller.cancelled()
    assert store.released == [9]
    assert not others()


async def test_one_who_is_not_to_wait_is_told_when_to_ask_again() -> None:
    class Theirs(Broken):
        async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
            return Claim("theirs", left=0.4)

    manager, job = IdempotencyManager(), Job()
    running = asyncio.create_task(once(manager, job.work(), None))
    await asyncio.sleep(1)
    with pytest.raises(InFlight, match="under way; ask again in 1 s") as caught:
        await once(manager, job.work(wait=False), None)
    assert (caught.value.key, caught.value.idempotency_key, caught.value.retry_after) == ("k", "k", 1)
    with pytest.raises(ConflictError):
        await once(manager, job.work(wait=False, fingerprint="g"), None)
    await running
    assert await once(manager, job.work(wait=False), None) == ["loaded", "run 1"]
    with pytest.raises(InFlight) as caught:
        await once(Elsewhere(Theirs()), job.work(wait=False), None)
    assert caught.value.retry_after == 0.4


# ── one store, two managers: two processes ───────────────────────────────────────────────────────────────────────────


class Apart(Store):
    """A store that others share, as one on a server is: it says whether somebody waits elsewhere."""

    def __init__(self) -> None:
        self.keys = MemoryStore(clock=now)
        self.until = 0.0

    def __repr__(self) -> str:
        return "apart://"

    async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
        claim = await self.keys.claim(key, fingerprint, lease, ttl)
        if claim.kind == "ours":
            self.until = 0.0
        return claim

    async def renew(self, key: str, token: int, lease: float) -> bool:
        return await self.keys.renew(key, token, lease)

    async def settle(self, key: str, token: int, result: bytes) -> bool:
        return await self.keys.settle(key, token, result)

    async def release(self, key: str, token: int) -> bool:
        return await self.keys.release(key, token)

    @asynccontextmanager
    async def watch(self, key: str, seconds: float) -> AsyncIterator[Changed]:
        self.until = max(self.until, now() + seconds)
        yield lambda most: asyncio.sleep(min(most, POLL))

    async def wanted(self, key: str, token: int) -> float:
        return max(0.0, self.until - now())


def two() -> tuple[IdempotencyManager, IdempotencyManager]:
    store = Apart()
    return Elsewhere(store), Elsewhere(store)


async def test_a_leader_that_leaves_works_on_for_one_who_waits_in_another_process() -> None:
    here, there = two()
    mine, theirs = Job(), Job()
    leader = asyncio.create_task(once(here, mine.work(), within(3)))
    await asyncio.sleep(1)
    follower = asyncio.create_task(once(there, theirs.work(), within(60)))
    with pytest.raises(Late):
        await leader
    assert now() == pytest.approx(3, abs=0.05)
    assert await follower == ["loaded", "run 1"]
    assert now() == pytest.approx(10, abs=2 * POLL)
    assert (mine.runs, mine.cancelled, theirs.runs) == (1, 0, 0)
    assert mine.deadlines[0].at == pytest.approx(61, abs=0.1)


async def test_a_leader_that_is_cancelled_works_on_for_one_who_waits_in_another_process() -> None:
    here, there = two()
    mine, theirs = Job(), Job()
    leader = asyncio.create_task(once(here, mine.work(), None))
    await asyncio.sleep(1)
    follower = asyncio.create_task(once(there, theirs.work(), None))
    await asyncio.sleep(1)
    leader.cancel()
    assert await follower == ["loaded", "run 1"]
    assert (mine.runs, mine.cancelled, theirs.runs) == (1, 0, 0)


async def test_one_who_waits_is_known_to_each_owner_in_turn() -> None:
    store = Apart()
    first, second, third = Job(fails=KeyError("x")), Job(), Job()
    one = asyncio.create_task(once(Elsewhere(store), first.work(), None))
    await asyncio.sleep(1)
    two = asyncio.create_task(once(Elsewhere(store), second.work(), None))
    await asyncio.sleep(0.01)
    three = asyncio.create_task(once(Elsewhere(store), third.work(), None))
    await asyncio.gather(one, return_exceptions=True)
    await asyncio.sleep(1)
    two.cancel()
    assert await three == ["loaded", "run 1"]
    assert (second.runs, second.cancelled, third.runs) == (1, 0, 0)


async def test_work_that_goes_on_for_others_can_be_joined_here_again() -> None:
    here, there = two()
    mine = Job()
    leader = asyncio.create_task(once(here, mine.work(), within(3)))
    await asyncio.sleep(1)
    follower = asyncio.create_task(once(there, Job().work(), within(60)))
    await asyncio.gather(leader, return_exceptions=True)
    assert await once(here, mine.work(), None) == ["copied", "run 1"]
    assert await follower == ["loaded", "run 1"]


async def test_work_that_nobody_waits_for_any_longer_is_given_up() -> None:
    here, there = two()
    mine, theirs = Job(seconds=30), Job(seconds=30)
    leader = asyncio.create_task(once(here, mine.work(), within(3)))
    await asyncio.sleep(1)
    follower = asyncio.create_task(once(there, theirs.work(), within(6)))
    await asyncio.gather(leader, follower, return_exceptions=True)
    await asyncio.sleep(1)
    assert (mine.cancelled, theirs.runs) == (1, 0)
    assert not others()
    assert (await here.claims.claim("k", "other", 1, 1)).kind == "ours"


async def test_who_closes_the_manager_gives_up_what_goes_on_for_others() -> None:
    here, there = two()
    mine, theirs = Job(), Job()
    leader = asyncio.create_task(once(here, mine.work(), within(3)))
    await asyncio.sleep(1)
    follower = asyncio.create_task(once(there, theirs.work(), within(60)))
    await asyncio.gather(leader, return_exceptions=True)
    await here.aclose()
    assert await follower == ["run 1"]
    assert (mine.cancelled, theirs.runs) == (1, 1)


async def test_who_lost_the_key_hands_over_the_result_that_stands() -> None:
    here, there = two()
    mine, theirs = Job(seconds=2 * LEASE), Job(seconds=1, runs=5)
    with patch.object(Heart, "keep"):  # The owner gives no sign of life.
        leader = asyncio.create_task(once(here, mine.work(), None))
        await asyncio.sleep(LEASE + 1)
    assert await once(there, theirs.work(), None) == ["run 6"]
    assert await leader == ["loaded", "run 6"]


async def test_who_lost_the_key_to_one_who_gave_it_back_writes_his_result() -> None:
    here, there = two()
    mine, theirs = Job(seconds=2 * LEASE), Job(seconds=1, fails=KeyError("x"))
    with patch.object(Heart, "keep"):
        leader = asyncio.create_task(once(here, mine.work(), None))
        await asyncio.sleep(LEASE + 1)
        with pytest.raises(KeyError):
            await once(there, theirs.work(), None)
        assert await leader == ["run 1"]
    assert await once(there, theirs.work(), None) == ["loaded", "run 1"]


async def test_a_write_whose_answer_was_lost_is_no_lost_key() -> None:
    class Forgetful(Apart):
        async def settle(self, key: str, token: int, result: bytes) -> bool:
            await super().settle(key, token, result)
            return await super().settle(key, token, result)  # as one who did not hear of the first

    store = Forgetful()
    assert await once(Elsewhere(store), Job().work(), None) == ["run 1"]


async def test_a_release_that_fails_does_not_hide_why_the_work_failed() -> None:
    with pytest.raises(KeyError):
        await once(Elsewhere(Broken("release")), Job(fails=KeyError("x")).work(), None)


async def test_a_lease_is_renewed_at_a_third_of_it_while_the_work_goes_on() -> None:
    renewed: list[float] = []

    class Watched(Broken):
        async def renew(self, key: str, token: int, lease: float) -> bool:
            renewed.append(now())
            return lease == LEASE

    await once(Elsewhere(Watched()), Job(seconds=LEASE - 1).work(), None)
    await asyncio.sleep(10 * LEASE)
    assert renewed == pytest.approx([LEASE / 3, 2 * LEASE / 3])


async def test_a_result_held_elsewhere_is_waited_for() -> None:
    class Theirs(Broken):
        async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
            return Claim("theirs") if now() < 5 else Claim("settled", 1, b"theirs")

    job = Job()
    assert await once(Elsewhere(Theirs()), job.work(), None) == ["loaded", "theirs"]
    assert job.runs == 0
    assert now() == pytest.approx(5, abs=2 * POLL)


async def test_one_who_waits_for_a_result_held_elsewhere_is_late_at_his_deadline() -> None:
    class Theirs(Broken):
        async def claim(self, key: str, fingerprint: str, lease: float, ttl: float) -> Claim:
            return Claim("theirs")

    with pytest.raises(Late):
        await once(Elsewhere(Theirs()), Job().work(), within(3))
    assert now() == pytest.approx(3)


# ── a plain cache ────────────────────────────────────────────────────────────────────────────────────────────────────


class Dict(IdempotencyManager):
    """As a caller might write it: nothing but get and store, and an __init__ of its own."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    async def get(self, key: str) -> Any:
        return self.kept.get(key)

    async def store(self, key: str, value: Any) -> None:
        self.kept[key] = value


async def test_a_subclass_with_only_get_and_store_is_a_plain_cache_of_finished_results() -> None:
    cache, job = Dict(), Job()
    ends = await asyncio.gather(*(once(cache, job.work(), None) for _ in range(2)))
    assert ends[0] == ["run 1"]
    assert list(cache.kept) == ["k"]
    assert await once(cache, job.work(), None) == ["loaded", "run 1"]
    with pytest.raises(ConflictError):
        await once(cache, job.work(fingerprint="g"), None)
    assert job.runs == 1


async def test_a_plain_cache_remembers_no_failure() -> None:
    cache, job = Dict(), Job(fails=KeyError("x"))
    with pytest.raises(KeyError):
        await once(cache, job.work(), None)
    assert cache.kept == {}


# ── loops and memory ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_manager_serves_one_loop_after_another() -> None:
    manager, job = IdempotencyManager(), Job()
    assert run_in_virtual_time(once(manager, job.work(), None)) == ["run 1"]
    assert run_in_virtual_time(once(manager, job.work(), None)) == ["loaded", "run 1"]


async def test_another_thread_that_ends_with_the_same_key_in_the_same_moment_takes_nobodys_result() -> None:
    class Raced(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            return self.pop(key, default)  # What was just found is taken out before who found it can do so.

    manager, job = IdempotencyManager(), Job()
    manager.hangar.flights = Raced()
    assert await once(manager, job.work(), None) == ["run 1"]


def test_a_loop_that_ends_in_the_middle_of_the_work_frees_the_key() -> None:
    manager, job = IdempotencyManager(), Job()

    async def begin() -> None:
        asyncio.create_task(once(manager, job.work(), None))  # noqa: RUF006 - the loop ends before the task does
        await asyncio.sleep(1)

    run_in_virtual_time(begin())
    assert run_in_virtual_time(once(manager, job.work(), None)) == ["run 2"]


async def test_the_manager_keeps_what_callers_give_it_for_so_long_and_so_many() -> None:
    manager = IdempotencyManager(max_entries=2)
    assert await manager.get("a") is None
    for key in "ab":
        await manager.store(key, key.upper())
    assert await manager.get("a") == "A"
    await manager.store("c", "C")
    assert [await manager.get(key) for key in "abc"] == ["A", None, "C"]


async def test_what_callers_keep_is_forgotten_after_its_time() -> None:
    manager = IdempotencyManager(ttl_seconds=1e-9)
    await manager.store("a", "A")
    assert await manager.get("a") is None


@pytest.mark.parametrize("fields", [{"ttl_seconds": 0}, {"ttl_seconds": float("nan")}, {"max_entries": 0}])
def test_a_manager_that_could_keep_nothing_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        IdempotencyManager(**fields)


async def test_a_key_whose_work_was_cancelled_before_its_first_step_is_free() -> None:
    """Who ends a program cancels all tasks at once, also those that were made in this turn of the loop. There are none
    in a loop that does the first step at once, so this one has a task factory of its own."""
    manager, job, me = IdempotencyManager(), Job(), asyncio.current_task()

    def cancel_all() -> None:
        for task in asyncio.all_tasks() - {me}:
            task.cancel()

    loop = asyncio.get_running_loop()
    loop.set_task_factory(lambda loop, work, **more: asyncio.Task(work, loop=loop))
    first = asyncio.create_task(once(manager, job.work(), None))
    loop.call_soon(cancel_all)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert job.runs == 0
    assert await once(manager, job.work(), None) == ["run 1"]
    assert manager.hangar.flights == {}


async def test_a_failure_in_the_moment_in_which_the_last_caller_leaves_is_not_logged_as_one_that_nobody_saw() -> None:
    manager, loop = IdempotencyManager(), asyncio.get_running_loop()
    callers: list[asyncio.Task[Result]] = []
    logged: list[Any] = []
    loop.set_exception_handler(lambda _, context: logged.append(context["message"]))

    async def fails(_: Deadline) -> Result:
        await asyncio.sleep(10)
        callers[0].cancel()
        raise KeyError("x")

    callers.append(asyncio.create_task(once(manager, Job().work(run=fails), None)))
    await asyncio.wait(callers)
    assert (callers.pop().cancelled(), now()) == (True, 10)
    gc.collect()
    assert logged == []
