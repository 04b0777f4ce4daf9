"""Budgets that instances share, on real servers: never over, whatever crashes or is silent."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from servers import Server
from shared_kit import FaultyBoard, Instances, drained, standing, until, until_found
from steer_llm_sdk import Budget
from steer_llm_sdk.errors import BudgetExceeded, StoreUnavailable
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.reliability.budget import picos
from steer_llm_sdk.reliability.shared import link, owners
from steer_llm_sdk.reliability.shared.board import open_board
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, err

AT_ONCE = 0.3
TEAM = Budget("team", usd=1.0)
KEY = "budget:ever:team"


class Priced(ScriptedTool):
    """Takes at most 100 tokens and a tenth of a dollar."""

    def worst_case(self, request: Any, options: Any) -> Amount:
        return Amount(100, 0.1)


def paid(usd: float = 0.04, **more: Any) -> Any:
    return OK("x", usage={"total_tokens": 40}, cost_usd=usd, **more)


def runner(instances: Instances, *steps: Any, patience: float = 5.0) -> ReliableOrchestrator:
    registry = ToolRegistry()
    registry.register_tool(Priced("t", *steps))
    config = ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=1))
    return ReliableOrchestrator(None, config, registry=registry, shared=instances.state(patience))


async def spend(orchestrator: ReliableOrchestrator, *budgets: Budget) -> str:
    try:
        return (await orchestrator.run("q", "t", None, {"budgets": list(budgets) or [TEAM]})).status
    except BudgetExceeded:
        return "exceeded"


async def account(url: str, key: str = KEY) -> tuple[int, int]:
    """Trillionths of a dollar spent, and reserved."""
    found = (await standing(url, key))["account"]
    return found["spent_usd"], found["reserved_usd"]


async def test_what_one_instance_spends_is_gone_for_all(instances: Instances, url: str) -> None:
    here, there = runner(instances, paid(0.09)), runner(instances, paid(0.09))
    ends = [await spend(each) for _ in range(7) for each in (here, there)]
    assert ends.count("succeeded") == 11
    assert ends[-1] == "exceeded"
    assert await account(url) == (picos(0.99), 0)
    await until(lambda: here.budgets["team"]["spent"]["usd"] == 0.99)


async def test_the_error_says_which_budget_and_how_much(instances: Instances) -> None:
    here, there = runner(instances, paid(0.08)), runner(instances, paid(0.08))
    for _ in range(12):
        await spend(here)
    with pytest.raises(BudgetExceeded, match=r"cost budget 'team' exceeded: 1\.06 > 1"):
        await there.run("q", "t", None, {"budgets": [TEAM]})


async def test_spent_and_reserved_are_never_above_the_limit_and_nothing_is_lost(instances: Instances, url: str) -> None:
    runners = [runner(instances, paid(0.07, after=0.01)) for _ in range(4)]
    over = asyncio.Event()
    watching = asyncio.create_task(_watch(url, picos(1.0) or 0, over))
    ends = await asyncio.gather(*(spend(each) for each in runners for _ in range(20)))
    over.set()
    assert await watching > 0
    assert ends.count("succeeded") >= 10
    assert await account(url) == (picos(0.07 * ends.count("succeeded")), 0)


async def _watch(url: str, limit: int, over: asyncio.Event) -> int:
    """How often it looked."""
    looks = 0
    board = open_board(url)
    try:
        while not over.is_set():
            looks += 1
            ((entry,), _) = await board.read([(KEY, -1)])
            if entry is not None and entry.text is not None:
                found = json.loads(entry.text)["account"]
                assert found["spent_usd"] >= 0
                assert 0 <= found["reserved_usd"] <= limit - found["spent_usd"]
            await asyncio.sleep(0.002)
    finally:
        await board.aclose()
    return looks


async def test_several_budgets_are_reserved_all_or_none(instances: Instances, url: str) -> None:
    here = runner(instances, paid())
    rich, poor = Budget("rich", usd=100.0), Budget("poor", usd=0.05)
    with pytest.raises(BudgetExceeded, match="'poor'"):
        await here.run("q", "t", None, {"budgets": [rich, poor]})
    await until(lambda: here.budgets["rich"]["reserved"]["usd"] == 0)
    assert await account(url, "budget:ever:rich") == (0, 0)


async def test_the_runs_own_budget_holds_too(instances: Instances) -> None:
    here = runner(instances, paid())
    with pytest.raises(BudgetExceeded, match="tokens budget exceeded: 100 > 99"):
        await here.run("q", "t", None, {"budgets": [TEAM], "budget": {"tokens": 99}})


async def test_a_call_above_its_reservation_closes_the_account_for_all_until_it_is_opened_again(
    instances: Instances,
) -> None:
    here, there = runner(instances, paid(0.2)), runner(instances, paid())
    assert await spend(here) == "succeeded"
    await until(lambda: here.budgets["team"]["overrun"])
    assert await spend(there) == "exceeded"
    there.budget_accounts.reopen("team")
    assert await spend(there) == "succeeded"


async def test_a_budget_that_the_work_has_passed_raises_with_the_output(instances: Instances) -> None:
    with pytest.raises(BudgetExceeded, match="cost budget 'team' exceeded: 2 > 1") as caught:
        await runner(instances, paid(2.0)).run("q", "t", None, {"budgets": [TEAM]})
    assert caught.value.output.content == "x"


@pytest.mark.parametrize("step", [err(503), err(TimeoutError), HANG], ids=["refused", "timed out", "cancelled"])
async def test_however_a_call_ends_its_reservation_does(instances: Instances, url: str, step: Any) -> None:
    here = runner(instances, step)
    run = asyncio.create_task(spend(here))
    if step is HANG:
        await until(lambda: here.budgets.get("team", {}).get("reserved", {}).get("usd") == 0.1)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
    else:
        assert await run == "failed"
    await until(lambda: here.budgets["team"]["reserved"]["usd"] == 0)
    spent, reserved = await account(url)
    assert (spent in (0, picos(0.1)), reserved) == (True, 0)


async def test_who_is_cancelled_at_any_moment_leaves_nothing_reserved(instances: Instances, url: str) -> None:
    here = runner(instances, *[paid(0.001)] * 60)
    large = Budget("large", usd=1000.0)
    for turns in range(25):
        run = asyncio.create_task(spend(here, large))
        for _ in range(turns):
            await asyncio.sleep(0)
        run.cancel()
        await asyncio.wait([run])

    async def free() -> bool:
        return (await account(url, "budget:ever:large"))[1] == 0

    await drained(here.executor.shared)
    await until_found(free)


def cell_of(orchestrator: ReliableOrchestrator) -> Any:
    return next(cell for cell in orchestrator.executor.shared.link.cells if cell.key == KEY)


# ── leases ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "LEASE", 2.0)
    monkeypatch.setattr(owners, "RENEW", 0.1)


@pytest.mark.usefixtures("short_leases")
async def test_what_a_crashed_instance_had_reserved_is_charged_by_its_estimate(instances: Instances, url: str) -> None:
    here, there = runner(instances, HANG), runner(instances, paid())
    run = asyncio.create_task(spend(here))
    await until(lambda: here.budgets.get("team", {}).get("reserved", {}).get("usd") == 0.1)
    instances.states[0].close()  # It says nothing more.
    await asyncio.sleep(2.3)
    assert await spend(there) == "succeeded"
    assert await account(url) == (picos(0.14), 0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


@pytest.mark.usefixtures("short_leases")
async def test_an_instance_that_lives_keeps_what_it_holds_for_longer_than_a_lease(
    instances: Instances, url: str
) -> None:
    here, there = runner(instances, paid(0.04, after=4.0)), runner(instances, paid())
    run = asyncio.create_task(spend(here))
    await asyncio.sleep(3.0)
    assert await spend(there) == "succeeded"
    assert await account(url) == (picos(0.04), picos(0.1))
    assert await run == "succeeded"
    assert await account(url) == (picos(0.08), 0)


@pytest.mark.usefixtures("short_leases")
async def test_who_comes_back_after_his_lease_is_not_charged_twice(
    instances: Instances, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = runner(instances, paid(0.04, after=4.0), paid(0.04)), runner(instances, paid())
    run = asyncio.create_task(spend(here))
    await until(lambda: here.budgets.get("team", {}).get("reserved", {}).get("usd") == 0.1)
    monkeypatch.setattr(cell_of(here), "keep", lambda: None)  # Its process is asleep.
    await asyncio.sleep(2.3)
    assert await spend(there) == "succeeded"
    assert await run == "succeeded"
    assert await account(url) == (picos(0.14), 0)
    assert await spend(here) == "succeeded"
    assert await account(url) == (picos(0.18), 0)


# ── a store that does not answer ─────────────────────────────────────────────────────────────────────────────────────


async def test_while_the_store_is_silent_each_has_its_part_of_what_was_left_and_all_is_charged_when_it_is_back(
    instances: Instances, url: str, server: Server
) -> None:
    runners = [runner(instances, paid(0.1), patience=AT_ONCE) for _ in range(2)]
    assert [await spend(each) for each in runners] == ["succeeded"] * 2
    await until(lambda: {each.budgets["team"]["spent"]["usd"] for each in runners} == {0.2})
    for each in runners:  # They know of one another.
        await spend(each)
    server.pause()
    try:
        ends = [[await spend(each) for _ in range(8)] for each in runners]
        assert [end.count("succeeded") for end in ends] == [3, 3]
    finally:
        server.resume()
    await until(lambda: not any(cell_of(each).alone for each in runners))
    assert await account(url) == (picos(1.0), 0)
    assert await spend(runners[0]) == "exceeded"


async def test_what_was_reserved_before_the_silence_is_settled_after_it(
    instances: Instances, url: str, server: Server
) -> None:
    here = runner(instances, paid(0.04, after=0.6), patience=AT_ONCE)
    run = asyncio.create_task(spend(here))
    await until(lambda: here.budgets.get("team", {}).get("reserved", {}).get("usd") == 0.1)
    server.pause()
    try:
        assert await run == "succeeded"
    finally:
        server.resume()
    await until(lambda: not cell_of(here).alone)
    assert await account(url) == (picos(0.04), 0)


async def test_a_store_that_never_answered_admits_nothing_for_nobody_knows_what_is_left() -> None:
    instances = Instances("redis://127.0.0.1:1/0")
    try:
        output = await runner(instances, paid(), patience=AT_ONCE).run("q", "t", None, {"budgets": [TEAM]})
        assert "has never said what is left of budget 'team'" in output.content["error"]["message"]
    finally:
        instances.close()


async def test_a_store_that_was_killed_and_started_again_goes_on_where_it_was(
    instances: Instances, url: str, server: Server
) -> None:
    here, there = (runner(instances, paid(0.1), patience=AT_ONCE) for _ in range(2))
    assert [await spend(each) for each in (here, there)] == ["succeeded"] * 2
    await spend(here)
    await until(lambda: there.budgets["team"]["spent"]["usd"] == 0.3)  # What one of them gives back to the store.
    server.kill()
    assert await spend(here) == "succeeded"
    server.start()
    await until(lambda: here.executor.shared.link.up)
    await until(lambda: here.budgets["team"]["spent"]["usd"] == 0.4)


class HeardBefore:
    """A board that does what it is asked, tells of it, and then loses the answer to the swap of that number."""

    def __init__(self, board: Any, of: link.Link, number: int) -> None:
        self._board = board
        self._link = of
        self._left = number

    async def swap(self, key: str, *given: Any, **more: Any) -> Any:
        done = await self._board.swap(key, *given, **more)
        self._left -= 1
        if self._left == 0:
            ((entry,), _) = await self._board.read([(key, -1)])
            self._link._hear(key, entry)
            raise ConnectionError("lost")
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._board, name)


@pytest.mark.parametrize("number", [1, 2], ids=["reserved", "settled"])
async def test_what_is_heard_before_its_answer_is_lost_is_not_done_twice(
    instances: Instances, url: str, number: int
) -> None:
    here = runner(instances, paid(0.04))
    await spend(here)
    shared = here.executor.shared
    assert shared is not None
    whole = shared.link._board
    shared.link._board = HeardBefore(whole, shared.link, number)  # type: ignore[assignment]  # It has all of a board.
    assert await spend(here) == "succeeded"
    await until(lambda: shared.link.outages == 1 and shared.link.up)
    end = asyncio.get_running_loop().time() + 10
    while (found := await account(url)) != (picos(0.08), 0):
        assert asyncio.get_running_loop().time() < end, found
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("seed", range(3))
async def test_over_a_line_that_loses_requests_and_answers_nothing_is_charged_twice_or_forgotten(
    instances: Instances, url: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each instance knows what its calls took; the store has the sum of it, to the last trillionth."""
    monkeypatch.setattr(link, "REFRESH", 0.02)
    dice = random.Random(seed)
    charged = 0
    boards = []

    def steps() -> list[Any]:
        return [paid(round(dice.uniform(0, 0.1), 3), after=dice.uniform(0, 0.05)) for _ in range(40)]

    runners = [runner(instances, *steps()) for _ in range(3)]
    for each in runners:
        link_of = each.executor.shared.link
        link_of._board = FaultyBoard(link_of._board, dice)  # type: ignore[assignment]
        boards.append(link_of._board)
    large = Budget("large", usd=1000.0)

    async def caller(each: ReliableOrchestrator, rest: Callable[[], float]) -> None:
        nonlocal charged
        for _ in range(10):
            try:
                output = await each.run("q", "t", None, {"budgets": [large]})
            except StoreUnavailable:
                continue
            if output.status == "succeeded":
                charged += picos(output.cost_usd) or 0
            await asyncio.sleep(rest())

    await asyncio.gather(*(caller(each, lambda: dice.uniform(0, 0.03)) for each in runners for _ in range(3)))
    for board in boards:
        board.heal()  # type: ignore[attr-defined]
    await until(lambda: all(each.executor.shared.link.up for each in runners))
    end = asyncio.get_running_loop().time() + 10
    while (found := await account(url, "budget:ever:large")) != (charged, 0):  # What was lost is on its way again.
        assert asyncio.get_running_loop().time() < end, (found, charged)
        await asyncio.sleep(0.02)
    assert charged > 0
