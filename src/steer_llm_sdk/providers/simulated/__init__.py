"""Answers that real models once gave, served over the real wire formats by a local server, with faults on request.

What is in the recording and what is not: `data/README.md`. What the server makes up: `server`. The faults: `faults`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steer_llm_sdk._names import looked_up

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

# Most programs name no recorded model: a module here is loaded when one of its names is used.
_LATE = {
    name: f"{__name__}.{module}"
    for module, names in {
        "faults": ("Fault", "FaultPlan", "parse_fault"),
        "recording": ("Answer", "Question", "Recording", "shipped_recording"),
        "server": ("SimulatedServer",),
        "shared": ("shared_recorded_server",),
    }.items()
    for name in names
}

if not TYPE_CHECKING:  # A type checker would take any name to be there.
    __getattr__ = looked_up(__name__, _LATE)
