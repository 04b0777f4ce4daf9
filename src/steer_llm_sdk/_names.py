"""Names that a module is asked for and does not have: those of earlier versions, and those that are loaded late."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
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

    `late` maps names to the modules from which they are loaded when they are first used; a module may be such a name.
    """

    def find(name: str) -> Any:
        if name in RENAMED:
            raise renamed(name)
        if late is not None and name in late:
            home = import_module(late[name])
            found = home if late[name] == f"{module}.{name}" else getattr(home, name)
            # Kept, so that the next look finds it where any other name is.
            vars(sys.modules[module])[name] = found
            return found
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find


def renamed(name: str) -> ImportError:
    # An AttributeError would reach the caller of `from ... import ...` without its message.
    return ImportError(f"{name} is called {RENAMED[name]} now; docs/migrating.md lists every renamed name", name=name)
