"""One line, before anything is spent: who is going to answer."""

from __future__ import annotations

import os
from collections.abc import Sequence

from steer_llm_sdk.orchestration.tool_registry import Tool
from steer_llm_sdk.orchestration.tools.text_analyzer import MODEL_VARIABLE, TextAnalyzer

ON_THIS_MACHINE = frozenset({"ollama", "vllm", "llamacpp"})


def configured_model() -> str | None:
    """What STEER_MODEL names."""
    return os.environ.get(MODEL_VARIABLE, "").strip() or None


def who_answers(models: Sequence[str], source: str) -> str:
    """The models in the order they are tried, and who named them: "--model" or "STEER_MODEL"."""
    first, *others = map(_described, models)
    then = f"; if that fails {', then '.join(others)}" if others else ""
    return f"answering: {first}, named by {source}{then}"


def which_tool(tool: Tool, configured: str | None) -> str:
    """For a tool that was named or found without a model; `configured` is what STEER_MODEL names."""
    if not isinstance(tool, TextAnalyzer):
        said = f": {tool.description}" if tool.description else ""
        return f"answering: the tool {tool.name}{said}"
    if configured is None:
        return f"answering: {tool.name}, by counting on this machine; no language model is called"
    return f"answering: {tool.name} with {_described(configured)}, named by STEER_MODEL"


def _described(model: str) -> str:
    prefix, _, name = model.partition(":")
    if prefix == "recorded":
        return f"{model} (what real models once answered; nothing is sent or spent)"
    if prefix in ON_THIS_MACHINE:
        return f"{name} by {prefix} on this machine"
    return model
