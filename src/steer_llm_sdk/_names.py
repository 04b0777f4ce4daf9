"""Names that a module is asked for and does not have: those of earlier versions, and those that are loaded late."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

RENAMED: Mapping[str, str] = {
    "EnhancedOrchestrator": "ReliableOrchestrator",
    "OrchestratorOptions": "OrchestrationConfig",
    "OrchestratorResult": "OrchestrationOutput",
    "PlanningContext": "PlanRequest",
    "PlanningResult": "PlanDecision",
    "orchestrator_v2": "reliable_orchestrator",
}
"""From the name that callers of earlier versions know to the one it has."""


def looked_up(module: str, late: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """The `__getattr__` of a module: ImportError with the new name for a renamed one, AttributeError for any other.

    `late` maps names to the modules from which they are loaded when they are first used.
    """

    def find(name: str) -> Any:
        if name in RENAMED:
            raise renamed(name)
        if late is not None and name in late:
            return getattr(import_module(late[name]), name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


def answer_for_renamed(modules: Iterable[str]) -> None:
    """Let these modules, which are loaded, say what a renamed name is called."""
    for module in modules:
        vars(sys.modules[module]).setdefault("__getattr__", looked_up(module))


def renamed(name: str) -> ImportError:
    # An AttributeError would reach the caller of `from ... import ...` without its message.
    return ImportError(f"{name} is called {RENAMED[name]} now; docs/migrating.md lists every renamed name", name=name)
