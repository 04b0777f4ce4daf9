"""Answers that real models once gave, served over the real wire formats by a local server, with faults on request.

What is in the recording and what is not: `data/README.md`. What the server says and does not say: `server`.
"""

from __future__ import annotations

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
