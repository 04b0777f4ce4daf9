"""Which version of a tool a caller gets."""

from __future__ import annotations

import asyncio
import random
import warnings
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.errors import InvalidRequest, NoEligibleTool, StoreUnavailable, ToolNotFound, VersionUnavailable
from steer_llm_sdk.orchestration import Orchestrator, ReliabilityConfig, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.orchestration.canaries import ENOUGH, Seen, why_worse
from steer_llm_sdk.orchestration.planning import PlanningRule, PlanRequest, RuleAction, RuleBasedPlanner, shared_sums
from steer_llm_sdk.orchestration.release_files import read_releases, write_releases
from steer_llm_sdk.orchestration.versions import (
    ACTIVE,
    Release,
    deprecated,
    is_in_share,
    place_of,
    satisfies,
    wanted,
)
from steer_llm_sdk.reliability import IdempotencyManager, RetryPolicy
from steer_llm_sdk.reliability.stores.memory import MemoryStore
from steer_llm_sdk.reliability.stores.sums import MemorySums
from steer_llm_sdk.streaming.manager import EventManager
from steer_llm_sdk.testing import OK, RecordedEvents, ScriptedTool, err

TODAY = date(2026, 6, 1)


class Days:
    today = TODAY

    def __call__(self) -> date:
        return self.today


def registry(*versions: str, name: str = "t", days: Days | None = None) -> ToolRegistry:
    tools = ToolRegistry(today=days or Days())
    for version in versions:
        tools.register_tool(ScriptedTool(name, OK(version), version=version))
    return tools


def version_of(tools: ToolRegistry, asked: str, **who: str) -> str:
    return tools.resolve(asked, who).version


# What a name asks for


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("text_analyzer", None),
        ("text_analyzer>=1.2,<2", ("text_analyzer", ">=1.2,<2")),
        ("text_analyzer >= 1.2", ("text_analyzer", ">= 1.2")),
        ("text_analyzer==1.4.1", ("text_analyzer", "==1.4.1")),
        ("text_analyzer~=1.4", ("text_analyzer", "~=1.4")),
        ("text_analyzer@1.4.1", ("text_analyzer", "===1.4.1")),
        ("a b@blue", ("a b", "===blue")),
        (">=1", None),
        ("a>=", None),
        ("a@", None),
    ],
)
def test_a_name_may_ask_for_versions(text: str, found: tuple[str, str] | None) -> None:
    assert wanted(text) == found


@pytest.mark.parametrize(
    ("version", "spec", "does"),
    [
        ("1.4.1", ">=1.2,<2", True),
        ("2.0", ">=1.2,<2", False),
        ("1.10", ">=1.9", True),
        ("2.0rc1", ">=1.2", False),
        ("2.0rc1", ">=2.0rc1", True),
        ("blue", ">=1", False),
        ("blue", "===blue", True),
        ("1.0", "nonsense", False),
    ],
)
def test_versions_are_compared_as_pep_440_says(version: str, spec: str, does: bool) -> None:
    assert satisfies(version, spec) is does


def test_the_highest_version_that_does_is_found() -> None:
    tools = registry("1.9", "1.10", "2.0", "3.0rc1")
    assert version_of(tools, "t") == "2.0"
    assert version_of(tools, "t>=1.2,<2") == "1.10"
    assert version_of(tools, "t==1.9") == version_of(tools, "t@1.9") == "1.9"
    assert version_of(tools, "t>=3.0rc1") == "3.0rc1"
    assert [tool.version for tool in tools.versions("t").values()] == ["3.0rc1", "1.9", "1.10", "2.0"]


def test_pre_releases_are_found_where_there_is_nothing_else() -> None:
    assert version_of(registry("1.0rc1", "1.0rc2"), "t") == "1.0rc2"


def test_a_tool_whose_name_looks_like_a_specifier_is_found_by_its_name() -> None:
    tools = registry("1.0", name="a>=1")
    assert tools.resolve("a>=1").name == "a>=1"
    assert tools.get_tool("a>=1") is tools.resolve("a>=1")


def test_versions_that_are_not_there_are_said_with_those_that_are() -> None:
    with pytest.raises(ToolNotFound, match=r"Tool 't>=3' not found\. Available tools: t@1\.0, t@2\.0"):
        registry("1.0", "2.0").resolve("t>=3")
    with pytest.raises(InvalidRequest, match="ask for versions as in"):
        registry("1.0").resolve("t>=one")
    with pytest.raises(ToolNotFound, match="Tool 'u>=1' not found"):
        registry("1.0").resolve("u>=1")
    assert registry("1.0").get_tool("t>=3") is None


@pytest.mark.parametrize("text", ["t>=>", "t>=", "t==", "t@", "t>=one", "u >= ", "t!=="])
def test_what_asks_for_versions_in_a_way_that_cannot_be_read_is_no_missing_tool(text: str) -> None:
    with pytest.raises(InvalidRequest, match="ask for versions as in"):
        registry("1.0").resolve(text)


@pytest.mark.parametrize("text", ["t!", "t=1", "~t", "tool: t?"])
def test_a_name_with_a_sign_that_begins_no_specifier_is_a_name(text: str) -> None:
    with pytest.raises(ToolNotFound):
        registry("1.0").resolve(text)


@pytest.mark.parametrize("same", ["1.0", "1", "v1.0.0", "1.0.0.0"])
def test_a_version_that_is_the_same_written_differently_is_refused(same: str) -> None:
    tools = registry("1.0.0")
    for replace in (False, True):
        with pytest.raises(ValueError, match=rf"version {same} is the same as 1\.0\.0, which is registered"):
            tools.register_tool(ScriptedTool("t", version=same), replace=replace)
    assert list(tools.versions("t")) == ["1.0.0"]


@pytest.mark.parametrize("other", ["1.0.1", "1.0.0rc1", "1.0.0+local", "blue"])
def test_a_version_that_only_looks_alike_is_another_one(other: str) -> None:
    assert len(registry("1.0.0", other, "green").versions("t")) == 3


async def test_a_fallback_whose_versions_cannot_be_read_is_passed_over_as_one_that_is_not_there() -> None:
    tools = registry("1.0")
    rule = PlanningRule("r", 0, [], RuleAction("t", {}, ["t>=>"]))
    output = await ReliableOrchestrator(RuleBasedPlanner([rule]), registry=tools).run("q")
    assert (output.status, output.metadata["plan"]["missing_tools"]) == ("succeeded", ["t>=>"])


def test_an_installed_tool_is_found_by_versions_too() -> None:
    assert ToolRegistry().resolve("text_analyzer>=1").name == "text_analyzer"
    assert ToolRegistry().get_tool("text_analyzer>=99") is None


# Canaries


@given(st.text(max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_only_adds_callers(key: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    who = {"tenant": key}
    if is_in_share("t", "2.0", Release(state="canary", share=small), who):
        assert is_in_share("t", "2.0", Release(state="canary", share=large), who)
    assert not is_in_share("t", "2.0", Release(state="canary", share=0.0), who)
    assert is_in_share("t", "2.0", Release(state="canary", share=1.0), who)


def test_a_share_is_of_callers_and_each_version_has_its_own() -> None:
    callers = [str(number) for number in range(4000)]
    early = {key for key in callers if place_of("t@2.0", key) < 0.2}
    assert 0.17 < len(early) / len(callers) < 0.23
    other = {key for key in callers if place_of("t@3.0", key) < 0.2}
    assert 0.02 < len(early & other) / len(callers) < 0.06


def test_a_canary_goes_to_its_share_and_the_others_keep_the_active_version() -> None:
    tools = registry("1.0", "2.0")
    tools.canary("t", "2.0", 0.5)
    found = {tenant: version_of(tools, "t", tenant=tenant) for tenant in map(str, range(50))}
    assert set(found.values()) == {"1.0", "2.0"}
    assert found == {tenant: version_of(tools, "t", tenant=tenant) for tenant in found}
    assert tools.get_tool("t") is tools.versions("t")["1.0"]
    tools.canary("t", "2.0", 0.8)
    later = {tenant: version_of(tools, "t", tenant=tenant) for tenant in found}
    assert all(later[tenant] == "2.0" for tenant, version in found.items() if version == "2.0")
    tools.promote("t", "2.0")
    assert {version_of(tools, "t", tenant=tenant) for tenant in found} == {"2.0"}
    tools.canary("t", "2.0", 0.0)
    assert {version_of(tools, "t", tenant=tenant) for tenant in found} == {"1.0"}


def test_a_canary_can_be_asked_for_and_a_range_does_not_reach_it() -> None:
    tools = registry("1.0", "2.0")
    tools.canary("t", "2.0", 0.0)
    assert version_of(tools, "t==2.0") == version_of(tools, "t@2.0") == "2.0"
    assert version_of(tools, "t>=1") == "1.0"
    with pytest.raises(VersionUnavailable, match=r"version 2\.0 is a canary, and this caller is not in its share of 0"):
        tools.resolve("t>=2")


def test_callers_may_be_told_apart_by_another_key() -> None:
    tools = registry("1.0", "2.0")
    tools.canary("t", "2.0", 0.5, key="user")
    by_user = {version_of(tools, "t", tenant="one", user=str(number)) for number in range(20)}
    assert by_user == {"1.0", "2.0"}


# Deprecation


def test_a_deprecated_version_is_chosen_only_where_there_is_no_other() -> None:
    tools = registry("1.0", "2.0")
    tools.deprecate("t", "2.0", successor="u")
    assert version_of(tools, "t") == "1.0"
    assert version_of(tools, "t>=2") == "2.0"
    tools.deprecate("t", "1.0")
    assert version_of(tools, "t") == "2.0"


def test_from_its_sunset_on_nobody_gets_a_version_and_the_successor_is_named() -> None:
    days = Days()
    tools = registry("1.0", days=days)
    tools.deprecate("t", "1.0", sunset=date(2026, 7, 1), successor="t>=2")
    assert version_of(tools, "t") == "1.0"
    days.today = date(2026, 7, 1)
    for asked in ("t", "t==1.0", "t<2"):
        with pytest.raises(VersionUnavailable) as caught:
            tools.resolve(asked)
        assert str(caught.value) == "Tool 't' version 1.0 was withdrawn on 2026-07-01; use t>=2"
        assert caught.value.successor == "t>=2"
    assert tools.get_tool("t") is None
    assert tools.planning_view()["t"].unavailable == str(caught.value)
    tools.register_tool(ScriptedTool("t", version="2.0"))
    assert version_of(tools, "t") == "2.0"
    assert [told.version for told in tools.planning_view()["t"].versions] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"state": "beta"},
        {"share": 1.1},
        {"share": True},
        {"share": float("nan")},
        {"margin": "little"},
        {"margin": -0.1},
        {"key": ""},
        {"since": "2026-01-01"},
        {"sunset": 5},
        {"successor": 5},
    ],
)
def test_a_release_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(fields))):
        Release(**fields)


# In runs


async def test_a_run_gets_the_versions_that_its_tool_name_asks_for_and_says_which() -> None:
    tools = registry("1.4.1", "2.0")
    for runner in (Orchestrator(tools), ReliableOrchestrator(registry=tools)):
        output = await runner.run("q", "t>=1.2,<2")
        assert (output.content, output.metadata["tool_version"]) == ("1.4.1", "1.4.1")
        assert (await runner.run("q", "t")).metadata["tool_version"] == "2.0"
        with pytest.raises(ToolNotFound):
            await runner.run("q", "t>=3")


async def test_a_rule_may_ask_for_versions_and_fall_back_to_others() -> None:
    tools = registry("1.0", "1.5", "2.0")
    planner = RuleBasedPlanner([PlanningRule("old", action=RuleAction("t<2", {}, ["t==1.0"]))])
    runner = ReliableOrchestrator(planner, registry=tools)
    output = await runner.run("q")
    assert (output.content, output.metadata["plan"]["tool_version"]) == ("1.5", "1.5")
    decision = planner.decide("q", tools.planning_view())
    assert (decision.selected_tool, decision.tool_version) == ("t", "1.5")
    gone = RuleBasedPlanner([PlanningRule("none", action=RuleAction("t>=3", {}, ["t"]))])
    decision = gone.decide("q", tools.planning_view())
    assert decision.metadata["passed_over"] == {"t>=3": "no version of it that can be chosen satisfies >=3"}
    assert decision.tool_version == "2.0"


async def test_the_context_may_ask_for_versions() -> None:
    view = registry("1.0", "2.0").planning_view()
    decision = RuleBasedPlanner().decide("q", view, PlanRequest(versions={"t": "<2"}))
    assert (decision.selected_tool, decision.tool_version) == ("t", "1.0")


async def test_planned_runs_of_a_canary_go_to_its_share() -> None:
    tools = registry("1.0", "2.0")
    tools.canary("t", "2.0", 0.5)
    runner = ReliableOrchestrator(registry=tools)
    for tenant in map(str, range(12)):
        expected = version_of(tools, "t", tenant=tenant)
        for _ in range(2):
            output = await runner.run("q", options={"tenant": tenant})
            assert output.metadata["tool_version"] == output.metadata["plan"]["tool_version"] == expected


async def test_a_version_that_serves_some_tenants_serves_them_whoever_else_asked_before() -> None:
    tools = registry("1.0.0", "2.0.0")
    tools.canary("t", "2.0.0", share=0.5)
    callers = [f"tenant {number}" for number in range(20)]
    inside = [name for name in callers if version_of(tools, "t", tenant=name) == "2.0.0"]
    outside = next(name for name in callers if name not in inside)
    tools.versions("t")["2.0.0"].tenants = tuple(inside)
    runner = ReliableOrchestrator(registry=tools)
    asked = [inside[0], outside, inside[1], outside, inside[0]]
    answers = [(await runner.run("q", options={"tenant": tenant})).content for tenant in asked]
    assert answers == ["2.0.0", "1.0.0", "2.0.0", "1.0.0", "2.0.0"]


async def test_a_rule_may_name_a_version_that_serves_some_tenants_beside_one_that_serves_all() -> None:
    tools = registry("1.0.0", "2.0.0")
    tools.versions("t")["1.0.0"].tenants = ("acme",)
    rule = PlanningRule("old", action=RuleAction("t<2"))
    runner = ReliableOrchestrator(RuleBasedPlanner([rule]), registry=tools)
    for _ in range(70):  # So often, that decisions are handed out again.
        assert (await runner.run("q", options={"tenant": "acme"})).content == "1.0.0"
    with pytest.raises(NoEligibleTool, match="it serves acme only, and the tenant is other"):
        await runner.run("q", options={"tenant": "other"})


async def test_a_fallback_serves_only_its_tenants_too() -> None:
    first, second = ScriptedTool("first", err(400)), ScriptedTool("second")
    second.tenants = ("acme",)
    tools = ToolRegistry()
    for tool in (first, second):
        tools.register_tool(tool)
    rule = PlanningRule("r", action=RuleAction("first", fallback_tools=["second"]))
    runner = ReliableOrchestrator(RuleBasedPlanner([rule]), registry=tools)
    for tenant, status in (("other", "failed"), ("acme", "succeeded"), ("other", "failed")):
        assert (await runner.run("q", options={"tenant": tenant})).status == status
    assert len(second.calls) == 1


async def test_a_rule_that_names_a_version_looks_at_the_length_of_each_request() -> None:
    tools = registry("1.0.0", "2.0.0")
    tools.versions("t")["1.0.0"].context_window = 100
    runner = ReliableOrchestrator(RuleBasedPlanner([PlanningRule("old", action=RuleAction("t<2"))]), registry=tools)
    for _ in range(70):
        assert (await runner.run("q")).content == "1.0.0"
    with pytest.raises(NoEligibleTool, match="its context window is 100 tokens"):
        await runner.run("long " * 1000)


async def test_who_gives_no_tenant_is_told_apart_by_his_key_or_trace() -> None:
    tools = registry("1.0", "2.0")
    tools.canary("t", "2.0", 0.5)
    runner = Orchestrator(tools)
    found = {
        key: (await runner.run("q", "t", options={"trace_id": key})).metadata["tool_version"] for key in "abcdefghij"
    }
    assert set(found.values()) == {"1.0", "2.0"}
    for key, version in found.items():
        assert (await runner.run("q", "t", options={"trace_id": key})).metadata["tool_version"] == version
    tools.canary("t", "2.0", 0.5, key="user")
    by_user = [
        (await runner.run("q", "t", options={"metadata": {"user": str(n)}, "trace_id": "a"})).metadata["tool_version"]
        for n in range(10)
    ]
    assert set(by_user) == {"1.0", "2.0"}


async def test_a_run_keeps_the_version_that_it_began_with() -> None:
    tools = ToolRegistry()

    class Deploys(ScriptedTool):
        async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
            tools.register_tool(ScriptedTool("t", OK("new"), version="2.0"), replace=True)
            tools.deprecate("t", "1.0", sunset=TODAY)
            tools.unregister_tool("t", "1.0")
            return await super().execute(request, options, event_manager)

    tools.register_tool(Deploys("t", err(503), OK("old"), version="1.0"))
    runner = ReliableOrchestrator(registry=tools)
    output = await runner.run("q", "t")
    assert (output.content, output.metadata["tool_version"]) == ("old", "1.0")
    assert output.per_agent["t"]["attempts"] == 2
    assert (await runner.run("q", "t")).content == "new"


async def test_a_replay_is_of_the_version_that_answered_and_a_deploy_is_no_conflict() -> None:
    tools = registry("1.0")
    runner = ReliableOrchestrator(registry=tools)
    options = {"idempotency_key": "k"}
    first = await runner.run("q", options=options)
    tools.register_tool(ScriptedTool("t", OK("2.0"), version="2.0"))
    again = await runner.run("q", options=options)
    assert again == first
    assert (again.replayed, again.metadata["tool_version"]) == (True, "1.0")


class SharedStore(MemoryStore):
    """A store that another process could share."""


async def test_whoever_takes_a_key_over_goes_by_the_versions_of_who_had_it() -> None:
    store = SharedStore()

    async def died(tools: ToolRegistry) -> None:
        """A process that planned and then was gone: its claim is given back, and no result is remembered."""
        async with ReliableOrchestrator(registry=tools, store=store) as runner:
            output = await runner.run("q", options={"idempotency_key": "k", "max_retries": 0})
            assert (output.status, output.metadata["tool_version"]) == ("failed", "1.0")

    old = ToolRegistry()
    old.register_tool(ScriptedTool("t", OK(), version="0.9"))
    old.register_tool(ScriptedTool("t", err(503), version="1.0"))
    await died(old)
    new = registry("0.9", "1.0", "2.0")
    async with ReliableOrchestrator(registry=new, store=store) as runner:
        output = await runner.run("q", options={"idempotency_key": "k"})
        assert (output.content, output.metadata["plan"]["tool_version"]) == ("1.0", "1.0")
        assert (await runner.run("q", options={"idempotency_key": "other"})).content == "2.0"
        assert (await runner.run("q", options={"idempotency_key": "k"})).replayed


async def test_a_pinned_version_that_is_gone_is_replaced() -> None:
    store = SharedStore()
    options = {"idempotency_key": "k", "max_retries": 0}
    old = ToolRegistry()
    old.register_tool(ScriptedTool("t", OK(), version="0.9"))
    old.register_tool(ScriptedTool("t", err(503), version="1.0"))
    async with Orchestrator(old, idempotency_manager=IdempotencyManager(store=store)) as runner:
        assert (await runner.run("q", "t", options=options)).status == "failed"
    async with Orchestrator(registry("2.0", "3.0"), idempotency_manager=IdempotencyManager(store=store)) as runner:
        assert (await runner.run("q", "t", options=options)).content == "3.0"


async def test_whoever_gets_a_deprecated_version_is_warned_where_he_stands_and_by_an_event() -> None:
    tools = registry("1.0")
    tools.deprecate("t", "1.0", since=date(2026, 1, 1), sunset=date(2026, 7, 1), successor="t>=2")
    says = "Tool 't' version 1.0 is deprecated since 2026-01-01 and will be withdrawn on 2026-07-01; use t>=2"
    told: list[Any] = []
    runner = Orchestrator(tools)
    with pytest.warns(DeprecationWarning, match="deprecated") as caught:
        await runner.run("q", "t", event_manager=EventManager(on_delta=told.append))
    (warning,) = caught
    assert (str(warning.message), Path(warning.filename).name) == (says, Path(__file__).name)
    assert [event.delta for event in told if "tool_deprecated" in str(event.delta)] == [
        {"event_type": "tool_deprecated", "data": {"tool_name": "t", "tool_version": "1.0", "message": says}}
    ]


async def test_the_warning_is_shown_once_for_each_place() -> None:
    tools = registry("1.0")
    tools.deprecate("t", "1.0")
    runner = Orchestrator(tools)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            await runner.run("q", "t")
        await runner.run("q", "t")
    assert len(caught) == 2


async def test_a_version_past_its_sunset_is_refused() -> None:
    tools = registry("1.0")
    tools.deprecate("t", "1.0", sunset=TODAY, successor="u")
    with pytest.raises(VersionUnavailable, match="use u"):
        await Orchestrator(tools).run("q", "t")
    with pytest.raises(ValueError, match=r"No tools available.*use u"):
        await ReliableOrchestrator(registry=tools).run("q")


async def test_each_version_is_told_to_the_planner_apart() -> None:
    tools = registry("1.0", "2.0")
    planner = RuleBasedPlanner([PlanningRule("r", action=RuleAction("t<2"))])
    runner = ReliableOrchestrator(planner, registry=tools)
    for _ in range(3):
        await runner.run("q")
    assert (planner.statistics.runs("t", "1.0"), planner.statistics.runs("t", "2.0")) == (3, 0)


# The file


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "releases.toml"
    assert read_releases(path) == {}
    releases = {
        'a "b"\\': {"1.0": Release(state="canary", share=0.25, key="user")},
        "t": {"1.0": Release(state="deprecated", since=TODAY, sunset=TODAY, successor="t>=2"), "2.0": ACTIVE},
    }
    write_releases(path, releases)
    assert read_releases(path) == {**releases, "t": {"1.0": releases["t"]["1.0"]}}
    assert [file.name for file in tmp_path.iterdir()] == ["releases.toml"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x", "it is not TOML"),
        ("t = 1", r"releases\.t: 1 cannot be used; write \[t\.\"VERSION\"\] above the fields"),
        ('[t]\n"1" = 2', "give fields: key, margin, share, since, state, successor, sunset"),
        ('[t."1"]\nshape = 1', "there is no such field"),
        ('[t."1"]\nshare = 2', r"releases\.t@1\.share: 2 cannot be used; give a number from 0 to 1"),
        ('[t."1"]\nsunset = 2026-01-01T00:00:00', r"releases\.t@1\.sunset: .* give a date"),
    ],
)
def test_a_file_that_cannot_be_used_says_where(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "releases.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequest, match=says):
        read_releases(path)


async def test_a_registry_follows_the_file_and_keeps_what_it_knows_where_the_file_breaks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "releases.toml"
    tools = registry("1.0", "2.0")
    tools.follow(path, every=0)
    runner = ReliableOrchestrator(registry=tools)

    async def version() -> str:
        return str((await runner.run("q")).metadata["tool_version"])

    assert await version() == "2.0"
    write_releases(path, {"t": {"2.0": Release(state="canary", share=0.0)}})
    assert await version() == "1.0"
    path.write_text("broken", encoding="utf-8")
    assert await version() == "1.0"
    assert "it is not TOML" in caplog.text
    path.unlink()
    assert await version() == "2.0"


class Fails(ScriptedTool):
    """Fails this share of its runs."""

    def __init__(self, version: str, share: float, chance: random.Random) -> None:
        super().__init__("t", version=version)
        self._share, self._chance = share, chance

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        await asyncio.sleep(0.01)
        if self._chance.random() < self._share:
            raise ConnectionError("down")
        return "fine"


def failing(stable: float, canary: float, seed: int = 0, **options: Any) -> tuple[ToolRegistry, ReliableOrchestrator]:
    chance, tools = random.Random(seed), ToolRegistry()
    for version, share in (("1.0", stable), ("2.0", canary)):
        tools.register_tool(Fails(version, share, chance))
    tools.canary("t", "2.0", 0.5, **options)
    reliability = ReliabilityConfig(retry_policy=RetryPolicy(max_attempts=1))
    return tools, ReliableOrchestrator(registry=tools, reliability_config=reliability)


async def versions_served(runner: ReliableOrchestrator, callers: int, name: str | None = "t") -> list[str]:
    options = {"enable_circuit_breaker": False}
    outputs = [await runner.run("q", name, options={**options, "tenant": f"c{n}"}) for n in range(callers)]
    return [output.metadata["tool_version"] for output in outputs]


@pytest.mark.parametrize("name", ["t", None])
async def test_a_canary_that_fails_more_goes_to_nobody_any_more_and_says_so(
    name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    tools, runner = failing(0.05, 0.6)
    told = RecordedEvents()
    served = await versions_served(runner, 200, name)
    assert 30 <= served.count("2.0") <= 45
    assert set(served[-50:]) == {"1.0"}
    assert tools.release_of("t", "2.0").share == 0.0
    assert "a canary, goes to nobody any more" in caplog.text
    # Given out anew it gets a new chance.
    tools.canary("t", "2.0", 0.5)
    for n in range(200):
        await runner.run("q", name, options={"tenant": f"d{n}", "enable_circuit_breaker": False}, event_manager=told)
    assert [data["tool_version"] for data in told.data("canary_taken_back")] == ["2.0"]


async def test_a_canary_that_is_no_worse_or_is_not_watched_stays() -> None:
    for seed in range(20):
        tools, runner = failing(0.1, 0.1, seed)
        await versions_served(runner, 200)
        assert tools.release_of("t", "2.0").share == 0.5
    tools, runner = failing(0.0, 1.0, margin=None)
    await versions_served(runner, 150)
    assert tools.release_of("t", "2.0").share == 0.5


def test_a_canary_whose_answers_are_trusted_less_is_worse() -> None:
    def seen(confidence: float, runs: int) -> Seen:
        found = Seen()
        for n in range(runs):
            found = found.plus(Seen.once(True, confidence + 0.05 * (-1) ** n))
        return found

    assert why_worse(seen(0.6, 30), seen(0.9, 30), 0.05) is not None
    assert why_worse(seen(0.6, 29), seen(0.9, 100), 0.05) is None
    assert why_worse(seen(0.6, 100), seen(0.9, 29), 0.05) is None
    assert why_worse(seen(0.87, 1000), seen(0.9, 1000), 0.05) is None
    assert why_worse(seen(0.9, 100), seen(0.6, 100), 0.05) is None


class Down(MemorySums):
    """Does not answer while it is down."""

    down = False

    async def add(self, space: str, rows: Any) -> None:
        if self.down:
            raise StoreUnavailable("down")
        await super().add(space, rows)


async def test_registries_that_share_a_store_judge_a_canary_together() -> None:
    store = Down()
    (tools, runner), (others, other) = failing(0.0, 1.0), failing(0.0, 1.0, seed=1)
    for registry in (tools, others):
        registry.share_canaries(store)
    assert 15 <= (await versions_served(runner, 40)).count("2.0") < ENOUGH
    await tools.aclose()
    assert tools.release_of("t", "2.0").share == 0.5
    served = await versions_served(other, 40)
    assert 0 < served.count("2.0") < ENOUGH
    assert others.release_of("t", "2.0").share == 0.0
    # Who has seen too little himself hears of it, at his next run.
    await others.aclose()
    await tools.aclose()
    assert (await versions_served(runner, 40)).count("2.0") <= 1
    assert tools.release_of("t", "2.0").share == 0.0
    # The same canary, in a process that has just begun, is as bad as it was; another share is another trial.
    late, runner = failing(0.0, 1.0, seed=2)
    late.share_canaries(store)
    assert (await versions_served(runner, 40)).count("2.0") <= 2
    late.canary("t", "2.0", 0.6)
    assert (await versions_served(runner, 20)).count("2.0") >= 5


async def test_a_store_that_is_down_holds_nobody_up_and_hears_of_all_runs_later(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("EVERY", "ALONE"):
        monkeypatch.setattr(shared_sums, name, 0.0)
    store = Down()
    tools, runner = failing(0.0, 0.0)
    tools.share_canaries(store)
    store.down = True
    served = await versions_served(runner, 20)
    await tools.aclose()
    assert caplog.text.count("what is seen of canaries is not shared: down") == 1
    assert (await store.since("canaries", 0))[1] == {}
    store.down = False
    served += await versions_served(runner, 20)
    await tools.aclose()
    rows = (await store.since("canaries", 0))[1]
    assert {key.rpartition("\x1f")[2]: row[0] for key, row in rows.items()} == Counter(served)


async def test_what_was_taken_back_stays_so_until_the_file_says_something_else(tmp_path: Path) -> None:
    tools, runner = failing(0.0, 1.0)
    path = tmp_path / "releases.toml"
    both = Release(state="canary", share=0.5)
    write_releases(path, {"t": {"2.0": both}})
    tools.follow(path, every=0.0)
    await versions_served(runner, 150)
    assert tools.release_of("t", "2.0").share == 0.0
    write_releases(path, {"t": {"2.0": both}, "u": {"1.0": both}})
    assert set(await versions_served(runner, 20)) == {"1.0"}
    write_releases(path, {"t": {"2.0": Release(state="canary", share=0.6, margin=1.0)}})
    assert set(await versions_served(runner, 20)) == {"1.0", "2.0"}
    assert read_releases(path)["t"]["2.0"].margin == 1.0


def test_a_sunset_before_the_deprecation_is_refused_and_one_that_has_been_needs_no_beginning() -> None:
    with pytest.raises(InvalidRequest, match="sunset: '2026-01-01' cannot be used; give a day from 2026-02-01 on"):
        Release(state="deprecated", since=date(2026, 2, 1), sunset=date(2026, 1, 1))
    assert deprecated(None, date(2020, 1, 1), None, TODAY).since == date(2020, 1, 1)
    assert deprecated(None, date(2999, 1, 1), None, TODAY).since == TODAY
