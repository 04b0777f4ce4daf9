"""A name of an earlier version says what it is called now."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

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
        ("from steer_llm_sdk.orchestration.reliable_orchestrator import EnhancedOrchestrator", "ReliableOrchestrator"),
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


def test_a_name_may_be_loaded_when_it_is_first_used_and_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    module, part = ModuleType("m"), ModuleType("m.part")
    monkeypatch.setitem(sys.modules, "m", module)
    monkeypatch.setitem(sys.modules, "m.part", part)
    find = looked_up("m", {"sqrt": "math", "part": "m.part"})
    assert find("sqrt")(9) == 3
    assert find("part") is part
    assert vars(module)["sqrt"](9) == 3


@pytest.mark.parametrize("package", ["steer_llm_sdk", "steer_llm_sdk.orchestration"])
def test_every_public_name_is_there_and_a_prompt_can_complete_it(package: str) -> None:
    module = import_module(package)
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        assert getattr(module, name).__name__ == name


def test_the_modules_of_a_package_are_its_attributes_without_an_import_of_their_own() -> None:
    code = "import steer_llm_sdk as s; print(s.orchestration.planning.rule_based.RuleBasedPlanner.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "RuleBasedPlanner\n"
