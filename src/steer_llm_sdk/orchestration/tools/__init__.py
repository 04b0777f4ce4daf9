"""Tools: the base of those that answer k times, those that ask a language model, and functions as tools."""

from typing import TYPE_CHECKING

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.orchestration.tools.base import BundleOptions, BundleTool
from steer_llm_sdk.orchestration.tools.llm import LLMBundleTool, LLMTool

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.tools.function import FunctionTool, tool

__all__ = ["BundleOptions", "BundleTool", "FunctionTool", "LLMBundleTool", "LLMTool", "tool"]

# Their module is loaded when one of them is used: who writes no function as a tool does not pay for it.
_LATE = dict.fromkeys(("FunctionTool", "tool"), "steer_llm_sdk.orchestration.tools.function")

if not TYPE_CHECKING:  # A type checker would take any name to be there.
    __getattr__ = looked_up(__name__, _LATE)
