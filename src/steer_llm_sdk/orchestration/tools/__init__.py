"""Tools: the base of those that answer k times, and those that ask a language model."""

from steer_llm_sdk.orchestration.tools.base import BundleOptions, BundleTool
from steer_llm_sdk.orchestration.tools.llm import LLMBundleTool, LLMTool

__all__ = ["BundleOptions", "BundleTool", "LLMBundleTool", "LLMTool"]
