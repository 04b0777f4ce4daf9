"""Fakes for your own tests: small working implementations of the library's interfaces.

`ScriptedTool` plays a script of answers and failures, `RecordedEvents` keeps the events of a run, and with
`VirtualTimeLoop` and `run_in_virtual_time` hours of waiting take milliseconds, in an order drawn from a seed if you
give one. `SimulatedProvider` serves recorded answers over real HTTP; `steer_llm_sdk.testing.fixtures` has it as a
fixture for pytest.
"""

from steer_llm_sdk.testing.clock import Deadlock, VirtualTimeLoop, run_in_virtual_time
from steer_llm_sdk.testing.events import RecordedEvents
from steer_llm_sdk.testing.provider import SimulatedProvider
from steer_llm_sdk.testing.tools import HANG, OK, ScriptedCall, ScriptedTool, Step, err, stubborn
from steer_llm_sdk.testing.weather import outage, sometimes

__all__ = [
    "HANG",
    "OK",
    "Deadlock",
    "RecordedEvents",
    "ScriptedCall",
    "ScriptedTool",
    "SimulatedProvider",
    "Step",
    "VirtualTimeLoop",
    "err",
    "outage",
    "run_in_virtual_time",
    "sometimes",
    "stubborn",
]
