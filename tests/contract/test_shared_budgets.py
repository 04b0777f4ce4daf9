"""Budgets that runs share: `budgets=[Budget("team-a", usd=50, per="day")]`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from contract.kit import STEADY, Model, failed, now, plain, registry, reliable
from steer_llm_sdk import Budget, OrchestrationConfig, ReliableOrchestrator
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import BudgetExceeded, Orchestrator, ReliabilityConfig
from steer_llm_sdk.orchestration.tools import LLMBundleTool, LLMTool
from steer_llm_sdk.providers.base import ProviderError
from steer_llm_sdk.reliability.budget import BudgetAccounts, Claim, picos
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, err, run_in_virtual_time, stubborn

BOTH = pytest.mark.parametrize("orchestrator", [plain, reliable])
A_DAY = 86400


class Priced(ScriptedTool):
    """Takes at most 100 tokens and half a dollar."""

    def worst_case(self, request: Any, options: Any) -> Amount:
        return Amount(100, 0.5)


def paid(usd: float = 0.25, tokens: int = 40, after: float = 0.0) -> Any:
    return OK("x", usage={"total_tokens": tokens}, cost_usd=usd, after=after)


@BOTH
async def test_the_account_says_limit_spent_reserved_and_when_it_starts_anew(orchestrator: Any) -> None:
    runner = orchestrator(Priced("t", paid(after=10)))
    runner.budget_accounts = BudgetAccounts(now)
    assert runner.budgets == {}
    options = {"budgets": [Budget("team-a", usd=50, per="day"), Budget("all", tokens=1000)]}
    run = asyncio.create_task(runner.run("q", "t", None, options))
    await asyncio.sleep(5)
    under_way = {"spent": {"tokens": 0, "usd": 0}, "reserved": {"tokens": 100, "usd": 0.5}, "overrun": False}
    assert runner.budgets == {
        "team-a": {"limit": {"tokens": None, "usd": 50}, "resets_in": A_DAY - 5, **under_way},
        "all": {"limit": {"tokens": 1000, "usd": None}, "resets_in": None, **under_way},
    }
    await run
    done = {"spent": {"tokens": 40, "usd": 0.25}, "reserved": {"tokens": 0, "usd": 0}, "overrun": False}
    assert runner.budgets["all"] == {"limit": {"tokens": 1000, "usd": None}, "resets_in": None, **done}


@BOTH
async def test_runs_at_the_same_time_reserve_against_one_another(orchestrator: Any) -> None:
    tool = Priced("t", paid(after=10))
    runner = orchestrator(tool)
    options = OrchestrationConfig(budgets=(Budget("team", usd=1.2),))
    ends = await asyncio.gather(*(runner.run("q", "t", None, options) for _ in range(5)), return_exceptions=True)
    assert [type(end).__name__ for end in ends] == ["OrchestrationOutput"] * 2 + ["BudgetExceeded"] * 3
    assert len(tool.calls) == 2


async def test_the_error_names_the_budget_and_says_when_it_starts_anew_and_then_it_does() -> None:
    runner = reliable(Priced("t", paid()))
    runner.budget_accounts = BudgetAccounts(now)
    options = {"budgets": [Budget("team", usd=0.6, per="hour")]}
    await asyncio.sleep(1800)
    await runner.run("q", "t", None, options)
    with pytest.raises(BudgetExceeded) as caught:
        await runner.run("q", "t", None, options)
    assert str(caught.value) == "cost budget 'team' exceeded: 0.75 > 0.6; it starts anew in 30 min"
    error = caught.value
    assert (error.budget, error.budget_type, error.limit, error.actual) == ("team", "cost", 0.6, 0.75)
    assert (error.resets_in, error.retry_after, error.output) == (1800, 1800, None)
    await asyncio.sleep(error.resets_in)
    assert (await runner.run("q", "t", None, options)).status == "succeeded"


@BOTH
async def test_several_budgets_and_the_runs_own_are_reserved_all_or_none(orchestrator: Any) -> None:
    runner = orchestrator(Priced("t"))
    shared = [Budget("rich", usd=100), Budget("poor", usd=0.4)]
    with pytest.raises(BudgetExceeded, match="'poor'"):
        await runner.run("q", "t", None, {"budgets": shared, "budget": {"tokens": 1000}})
    with pytest.raises(BudgetExceeded, match="tokens budget exceeded: 100 > 99"):
        await runner.run("q", "t", None, {"budgets": shared[:1], "budget": {"tokens": 99}})
    nothing = {"tokens": 0, "usd": 0}
    assert [(a["spent"], a["reserved"]) for a in runner.budgets.values()] == [(nothing, nothing)] * 2


@BOTH
async def test_the_same_name_with_other_numbers_is_refused_with_a_sentence(orchestrator: Any) -> None:
    tool = Priced("t", paid())
    runner = orchestrator(tool)
    await runner.run("q", "t", None, {"budgets": [Budget("team", usd=50, per="day")]})
    with pytest.raises(InvalidRequest, match=r"its name is taken by .*usd=50.*give the same numbers or another name"):
        await runner.run("q", "t", None, {"budgets": [Budget("team", usd=60, per="day")]})
    assert len(tool.calls) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([Budget("team", usd=1), Budget("team", usd=1)], "'team' is there twice"),
        ([{"name": "team"}], "it limits nothing"),
        ([{"name": "team", "usd": -1}], "positive"),
        ([{"name": "team", "usd": 1, "each": "day"}], "each"),
        (["team"], "budgets"),
        (5, "budgets"),
    ],
)
async def test_budgets_that_cannot_be_kept_are_refused_with_a_sentence(given: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        await reliable(Priced("t")).run("q", "t", None, {"budgets": given})
    assert caught.value.field.startswith("options.budgets")


async def test_a_budget_can_be_written_as_a_mapping() -> None:
    runner = reliable(Priced("t", paid()))
    await runner.run("q", "t", None, {"budgets": [{"name": "team", "usd": 50, "per": "day"}]})
    await runner.run("q", "t", None, {"budgets": [Budget("team", usd=50, per="day")]})
    assert runner.budgets["team"]["spent"]["usd"] == 0.5


async def test_accounts_belong_to_the_orchestrator_unless_it_is_given_some() -> None:
    options = {"budgets": [Budget("team", usd=1)]}
    mine, other = reliable(Priced("t", paid())), reliable(Priced("t", paid()))
    await mine.run("q", "t", None, options)
    assert other.budgets == {}
    accounts, tools = BudgetAccounts(), registry(Priced("t", paid()))
    for runner in (
        Orchestrator(tools, budget_accounts=accounts),
        ReliableOrchestrator(None, registry=tools, budget_accounts=accounts),
    ):
        await runner.run("q", "t", None, options)
    assert accounts.view()["team"]["spent"]["usd"] == 0.5
    assert runner.budgets == accounts.view()


async def test_an_exceeded_budget_that_is_found_after_the_work_has_the_output() -> None:
    tool = Priced("t", paid(usd=2.0))
    with pytest.raises(BudgetExceeded, match="cost budget 'team' exceeded: 2 > 1") as caught:
        await reliable(tool).run("q", "t", None, {"budgets": [Budget("team", usd=1)]})
    assert (caught.value.output.content, caught.value.output.cost_usd) == ("x", 2.0)
    assert caught.value.affected_agents == ["t"]


@BOTH
async def test_an_unknown_price_is_refused_before_the_call_also_by_a_shared_budget(orchestrator: Any) -> None:
    class Unpriced(Model):
        def worst_case(self, request: Any) -> Amount:
            return Amount(20, None)

    model = Unpriced()
    info = failed(await orchestrator(LLMTool("t", model)).run("q", "t", None, {"budgets": [Budget("team", usd=1)]}))
    assert "price=Price(input=" in info["message"]
    assert model.requests == []


async def test_a_model_without_max_tokens_gets_what_the_shared_budget_leaves() -> None:
    class Counts(Model):
        def worst_case(self, request: Any) -> Amount:
            return Amount(10 + (request.max_tokens or 4096), 0.0)

    model = Counts()
    output = await reliable(LLMTool("t", model)).run("q", "t", None, {"budgets": [Budget("team", tokens=110)]})
    assert (output.status, model.requests[0].max_tokens) == ("succeeded", 100)


async def test_a_batch_shares_one_budget() -> None:
    tool = Priced("t", paid(after=1))
    done = await reliable(tool).run_many(range(10), 3, tool_name="t", options={"budgets": [Budget("batch", usd=1.1)]})
    assert 2 <= len(done.succeeded) <= 4
    assert len(done.succeeded) * 0.25 <= 1.1
    assert {type(error) for error in done.failures.values()} == {BudgetExceeded}


async def test_a_bundle_stops_where_a_shared_budget_ends() -> None:
    model = Model(after=1)
    output = await reliable(LLMBundleTool("t", model, k=10)).run(
        "q", "t", None, {"budgets": [Budget("team", tokens=45)], "max_parallel": 1}
    )
    assert (output.status, output.evidence.meta.early_stop_reason) == ("partial", "budget")
    assert output.usage["total_tokens"] <= 45


# ── a storm ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Watched(BudgetAccounts):
    """Checks after every step that no account is over its limit; counts what was reserved and what was settled."""

    def __init__(self, clock: Any) -> None:
        super().__init__(clock)
        self.reserved = self.settled = 0
        self.charged = 0

    def reserve(self, held: Sequence[Any], claim: Claim) -> None:
        super().reserve(held, claim)
        self.reserved += 1
        self.check()

    def settle(self, held: Sequence[Any], claim: Claim, actual: Claim) -> Any:
        done = super().settle(held, claim, actual)
        self.settled += 1
        self.charged += actual.tokens
        self.check()
        return done

    def check(self) -> None:
        for account in self.view().values():
            for unit, limit in account["limit"].items():
                if limit is not None:
                    assert picos(account["spent"][unit] + account["reserved"][unit]) <= picos(limit)
                assert account["reserved"][unit] >= 0


@pytest.mark.parametrize("seed", range(8))
def test_many_runs_that_fail_hang_and_are_cancelled_never_pass_a_budget_and_settle_each_reservation_once(
    seed: int,
) -> None:
    dice = random.Random(seed)

    def step() -> Any:
        return dice.choice(
            [
                paid(dice.uniform(0, 0.5), dice.randint(0, 100), after=dice.uniform(0, 3)),
                OK("uncounted", after=dice.uniform(0, 3)),
                err(503, after=dice.uniform(0, 1)),
                err(503, usage={"total_tokens": dice.randint(0, 100)}),
                err(TimeoutError, after=1),
                err(ProviderError("broken", "p"), after=0.1),
                HANG,
                stubborn(dice.uniform(1, 9), paid(0.1, 10)),
                stubborn(5, err(503)),
            ]
        )

    async def storm() -> None:
        accounts = Watched(now)
        tool = Priced("t", *(step() for _ in range(2000)))
        runner = ReliableOrchestrator(
            None, ReliabilityConfig(retry_policy=STEADY), registry=registry(tool), budget_accounts=accounts
        )
        minute, ever = Budget("minute", tokens=900, usd=4.0, per="minute"), Budget("ever", tokens=12_000)

        async def caller(n: int) -> str:
            await asyncio.sleep(dice.uniform(0, 150))
            options = {
                "budgets": [minute, ever] if n % 3 else [ever],
                "per_agent_timeout_ms": dice.choice([1000, 2000, None]),
                "timeout_ms": dice.choice([2500, 20_000]),
                "budget": dice.choice([None, {"tokens": 250}, {"cost_usd": 1.0}]),
                "enable_circuit_breaker": False,
            }
            run = asyncio.create_task(runner.run("q", "t", None, options))
            if dice.random() < 0.25:
                await asyncio.sleep(dice.uniform(0, 2))
                run.cancel()
            (end,) = await asyncio.gather(run, return_exceptions=True)
            return type(end).__name__

        ends = await asyncio.gather(*(caller(n) for n in range(300)))
        await asyncio.sleep(100)
        assert {"OrchestrationOutput", "BudgetExceeded", "CancelledError"} == set(ends)
        assert accounts.reserved == accounts.settled > 100
        view = accounts.view()
        assert [account["reserved"] for account in view.values()] == [{"tokens": 0, "usd": 0}] * 2
        assert view["ever"]["spent"]["tokens"] == accounts.charged

    run_in_virtual_time(storm())
