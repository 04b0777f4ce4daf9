"""BundleTool and BundleOptions: what a bundle tool of one's own is given and gives."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from pydantic import ValidationError

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import (
    BundleMetadata,
    BundleOptions,
    BundleSummary,
    BundleTool,
    EvidenceBundle,
    Orchestrator,
    ReliableOrchestrator,
    Replicate,
    ToolRegistry,
)
from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.streaming.manager import EventManager
from steer_llm_sdk.testing import RecordedEvents


class Dice(BundleTool):
    name = "dice"
    default_options = MappingProxyType({"k": 4})

    def __init__(self) -> None:
        self.seen: list[BundleOptions] = []

    async def _execute_bundle(
        self, request: Any, options: BundleOptions, event_manager: EventManager | None
    ) -> EvidenceBundle:
        self.seen.append(options)
        await self.emit_event(event_manager, "bundle_started", {"k": options.k})
        seeds = options.seeds or self._generate_seeds(options.k)
        return EvidenceBundle(
            meta=BundleMetadata(task="roll", k=options.k, seeds=seeds),
            replicates=[Replicate(id=f"r{number}", data=seed) for number, seed in enumerate(seeds)],
            summary=BundleSummary(consensus=None),
        )


async def options_of(**given: Any) -> BundleOptions:
    tool = Dice()
    await tool.execute("q", given)
    return tool.seen[0]


def test_the_defaults() -> None:
    options = BundleOptions()
    assert options.model_dump() == {
        "k": 3,
        "seeds": None,
        "stop": "curtail",
        "risk": 0.01,
        "floor": 0.0,
        "latency": None,
        "min_valid": 1,
        "epsilon": 0.2,
        "schema_uri": None,
        "per_replicate_budget": None,
        "global_budget": None,
        "bundle_limits": None,
        "max_parallel": 10,
        "timeout_ms": None,
        "trace_id": None,
        "request_id": None,
        "extra": {},
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 1}, "greater than or equal to 2"),
        ({"k": 11}, "at most 10 replicates"),
        ({"k": 3, "seeds": [1, 2]}, "2 for 3 replicates"),
        ({"epsilon": 1.5}, "less than or equal to 1"),
        ({"max_parallel": 0}, "greater than or equal to 1"),
        ({"timeout_ms": 0}, "greater than 0"),
        ({"bundle_limits": {"max_pages": 1}}, "'max_pages' is no limit"),
        ({"bundle_limits": {"max_diffs": -1}}, "max_diffs = -1 cannot be kept"),
        ({"per_replicate_budget": {"tokens": 0}}, "tokens = 0.0 cannot be kept"),
        ({"global_budget": {"usd": 1}}, "'usd' is no budget"),
        ({"n": 3}, "Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BundleOptions(**given)


def test_more_seeds_than_replicates_are_fine() -> None:
    assert BundleOptions(k=2, seeds=[1, 2, 3]).seeds == [1, 2, 3]


async def test_the_tool_gets_typed_options_over_its_defaults() -> None:
    assert (await options_of()).k == 4
    assert (await options_of(k=5, max_parallel=2)).model_dump(include={"k", "max_parallel"}) == {
        "k": 5,
        "max_parallel": 2,
    }


async def test_what_a_run_adds_and_has_no_field_is_in_extra() -> None:
    options = await options_of(seed=1, temperature=0, streaming=True, idempotency_key="k")
    assert options.extra == {"seed": 1, "temperature": 0, "streaming": True, "idempotency_key": "k"}


@pytest.mark.parametrize("name", ["epsilom", "zz", "", "model", "extra"])
@pytest.mark.parametrize("tool", [Dice(), SimpleBundleTool()])
async def test_any_other_option_is_refused_before_anything_is_made(tool: BundleTool, name: str) -> None:
    says = f"^{name}: 0.1 cannot be used; there is no such option; there are .*epsilon, "
    with pytest.raises(InvalidRequest, match=says):
        await tool.execute("some words", {name: 0.1})
    with pytest.raises(InvalidRequest, match=says):
        tool.validate_options({name: 0.1})


@pytest.mark.parametrize("tool", [Dice(), SimpleBundleTool(name="dice")])
async def test_every_option_that_a_run_can_add_is_taken(tool: BundleTool) -> None:
    registry = ToolRegistry()
    registry.register_tool(tool)
    options = {
        "deterministic": True,
        "streaming": True,
        "timeout_ms": 5000,
        "budget": {"tokens": 5000},
        "idempotency_key": "k",
        "max_parallel": 2,
    }
    output = await ReliableOrchestrator(registry=registry).run("some words", "dice", options=options)
    assert output.status == "succeeded"


async def test_a_tool_may_have_options_of_its_own() -> None:
    class DiceOptions(BundleOptions):
        sides: int = 6

    class OddDice(Dice):
        options_type = DiceOptions

    tool = OddDice()
    await tool.execute("q", {"sides": 20, "seed": 3})
    (options,) = tool.seen
    assert isinstance(options, DiceOptions)
    assert (options.sides, options.extra) == (20, {"seed": 3})


async def test_a_tool_may_declare_a_higher_ceiling() -> None:
    class ManyDice(Dice):
        max_k = 50

    assert (await ManyDice().execute("q", {"k": 50})).meta.k == 50
    with pytest.raises(InvalidRequest, match=r"^k: 51 cannot be used; at most 50 replicates"):
        await ManyDice().execute("q", {"k": 51})


@pytest.mark.parametrize(("k", "started"), [(None, 1), (5, 1), (6, 0)])
async def test_the_declared_cost_of_each_replicate_is_set_aside(k: int | None, started: int) -> None:
    class PricedDice(Dice):
        resource_requirements = MappingProxyType({"estimated_cost_per_run": 0.01})

    tool = PricedDice()
    registry = ToolRegistry()
    registry.register_tool(tool)
    given = {} if k is None else {"k": k}
    run = Orchestrator(registry=registry).run("q", "dice", tool_options=given, options={"budget": {"cost_usd": 0.05}})
    if started:
        await run
    else:
        with pytest.raises(BudgetExceeded, match="cost budget exceeded"):
            await run
    assert len(tool.seen) == started


def test_a_bundle_that_declares_no_cost_sets_nothing_aside() -> None:
    assert Dice().worst_case("q", {"k": 5}) == Amount()


async def test_the_callers_options_are_not_written() -> None:
    options = {"k": 2, "seed": 1}
    await Dice().execute("q", options)
    assert options == {"k": 2, "seed": 1}


def test_seeds_are_always_the_same_and_bundles_of_two_seeds_share_none() -> None:
    tool = Dice()
    assert tool._generate_seeds(4) == [0, 1, 2, 3]
    assert tool._generate_seeds(10) == tool._generate_seeds(10)
    assert not {*tool._generate_seeds(10, 1)} & {*tool._generate_seeds(10, 2)}
    assert all(0 <= seed < 2**31 for seed in tool._generate_seeds(10, 2**60))


async def test_an_event_is_a_delta_with_its_type_and_data() -> None:
    events = RecordedEvents()
    await Dice().execute("q", {}, events)
    assert [(event.type, event.delta) for event in events.all] == [  # type: ignore[attr-defined]
        ("delta", {"event_type": "bundle_started", "data": {"k": 4}})
    ]


async def test_under_an_orchestrator_the_run_adds_its_own() -> None:
    registry, tool = ToolRegistry(), Dice()
    registry.register_tool(tool)
    output = await Orchestrator(registry=registry).run(
        "q", "dice", options={"max_parallel": 3, "timeout_ms": 9000, "request_id": "r", "budget": {"tokens": 9}}
    )
    (options,) = tool.seen
    assert (options.k, options.max_parallel, options.timeout_ms, options.request_id) == (4, 3, 9000, "r")
    assert options.global_budget == {"tokens": 9}
    assert output.metadata["bundle_meta"]["k_completed"] == 4
