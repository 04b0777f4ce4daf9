"""Tools to read and to start from."""

from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool

__all__ = ["SimpleBundleTool"]
