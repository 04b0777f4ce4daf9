"""A name of an earlier version says what it is called now."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

import steer_llm_sdk
from steer_llm_sdk._names import RENAMED, looked_up

MIGRATING = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("statement", "new"),
    [
        ("from steer_llm_sdk import EnhancedOrchestrator", "ReliableOrchestrator"),
        ("from steer_llm_sdk.orchestration import EnhancedOrchestrator", "ReliableOrchestrator"),
        ("from steer_llm_sdk.orchestration import OrchestratorOptions", "OrchestrationConfig"),
        ("from steer_llm_sdk.orchestration import OrchestratorResult", "OrchestrationOutput"),
        ("from steer_llm_sdk.orchestration.options import OrchestratorOptions", "OrchestrationConfig"),
        ("from steer_llm_sdk.orchestration.base import OrchestratorResult", "OrchestrationOutput"),
        ("from steer_llm_sdk.orchestration.orchestrator import OrchestratorResult", "OrchestrationOutput"),
        ("from steer_llm_sdk.orchestration.planning import PlanningContext", "PlanRequest"),
        ("from steer_llm_sdk.orchestration.planning.planner import PlanningResult", "PlanDecision"),
        ("from steer_llm_sdk.orchestration.planning.rule_based import PlanningContext", "PlanRequest"),
        ("import steer_llm_sdk.orchestration.orchestrator_v2", "reliable_orchestrator"),
        ("from steer_llm_sdk.orchestration import orchestrator_v2", "reliable_orchestrator"),
        (
            "from steer_llm_sdk.orchestration.orchestrator_v2 import EnhancedOrchestrator",
            "orchestrator_v2 is called reliable_orchestrator",
        ),
    ],
)
def test_importing_a_renamed_name_raises_import_error_with_the_new_one(statement: str, new: str) -> None:
    with pytest.raises(ImportError, match=f"{new} now; docs/migrating.md lists"):
        exec(statement)


def test_using_a_renamed_name_as_an_attribute_says_so_too() -> None:
    with pytest.raises(ImportError, match="PlanningResult is called PlanDecision now"):
        import_module("steer_llm_sdk.orchestration").PlanningResult  # noqa: B018


@pytest.mark.parametrize("old", RENAMED)
def test_every_new_name_is_there_and_every_old_one_is_in_the_guide(old: str) -> None:
    orchestration = import_module("steer_llm_sdk.orchestration")
    assert hasattr(orchestration, RENAMED[old])
    assert f"`{old}`" in MIGRATING
    assert f"`{RENAMED[old]}`" in MIGRATING


def test_a_name_that_never_was_is_missing_as_in_any_module() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Nobody'"):
        exec("from steer_llm_sdk.orchestration import Nobody")
    with pytest.raises(AttributeError, match="module 'steer_llm_sdk' has no attribute 'nobody'"):
        steer_llm_sdk.nobody  # noqa: B018


def test_a_name_may_be_loaded_when_it_is_first_used() -> None:
    assert looked_up("m", {"sqrt": "math"})("sqrt")(9) == 3
