"""Tools: the base of those that answer k times, those that ask a language model, and functions as tools."""

from typing import TYPE_CHECKING

from steer_llm_sdk._names import looked_up

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration._call import Spent, protected
    from steer_llm_sdk.orchestration.tools.base import BundleOptions, BundleTool
    from steer_llm_sdk.orchestration.tools.function import FunctionTool, tool
    from steer_llm_sdk.orchestration.tools.llm import LLMBundleTool, LLMTool

__all__ = [
    "BundleOptions",
    "BundleTool",
    "FunctionTool",
    "LLMBundleTool",
    "LLMTool",
    "Spent",
    "protected",
    "tool",
]

# Their modules are loaded when one of them is used: an import of the orchestrators does not pay for them.
_LATE = {
    **dict.fromkeys(("Spent", "protected"), "steer_llm_sdk.orchestration._call"),
    **dict.fromkeys(("BundleOptions", "BundleTool"), "steer_llm_sdk.orchestration.tools.base"),
    **dict.fromkeys(("FunctionTool", "tool"), "steer_llm_sdk.orchestration.tools.function"),
    **dict.fromkeys(("LLMBundleTool", "LLMTool"), "steer_llm_sdk.orchestration.tools.llm"),
}

if not TYPE_CHECKING:  # A type checker would take any name to be there.
    __getattr__ = looked_up(__name__, _LATE)
