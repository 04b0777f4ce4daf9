"""Fakes for your own tests: small working implementations of the library's interfaces.

`ScriptedTool` plays a script of answers and failures, `RecordedEvents` keeps the events of a run, and with
`VirtualTimeLoop` and `run_in_virtual_time` hours of waiting take milliseconds.
"""

from steer_llm_sdk.testing.clock import Deadlock, VirtualTimeLoop, run_in_virtual_time
from steer_llm_sdk.testing.events import RecordedEvents
from steer_llm_sdk.testing.tools import HANG, OK, ScriptedCall, ScriptedTool, Step, err, stubborn

__all__ = [
    "HANG",
    "OK",
    "Deadlock",
    "RecordedEvents",
    "ScriptedCall",
    "ScriptedTool",
    "Step",
    "VirtualTimeLoop",
    "err",
    "run_in_virtual_time",
    "stubborn",
]
