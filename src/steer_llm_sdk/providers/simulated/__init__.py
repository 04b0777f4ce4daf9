"""Answers that real models once gave, served over the real wire formats by a local server, with faults on request.

What is in the recording and what is not: `data/README.md`. What the server makes up: `server`. The faults: `faults`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steer_llm_sdk.providers.simulated.faults import Fault, FaultPlan, parse_fault
    from steer_llm_sdk.providers.simulated.recording import Answer, Question, Recording, shipped_recording
    from steer_llm_sdk.providers.simulated.server import SimulatedServer
    from steer_llm_sdk.providers.simulated.shared import shared_recorded_server

__all__ = [
    "Answer",
    "Fault",
    "FaultPlan",
    "Question",
    "Recording",
    "SimulatedServer",
    "parse_fault",
    "shared_recorded_server",
    "shipped_recording",
]

_HOMES = {
    **dict.fromkeys(("Fault", "FaultPlan", "parse_fault"), "faults"),
    **dict.fromkeys(("Answer", "Question", "Recording", "shipped_recording"), "recording"),
    "SimulatedServer": "server",
    "shared_recorded_server": "shared",
}


def __getattr__(name: str) -> object:
    """Load what is asked for, when it is: most programs name no recorded model, and none pays for the server then."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
