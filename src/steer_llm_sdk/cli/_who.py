"""One line, before anything is spent, that names the model or tool that will answer."""

from __future__ import annotations

from collections.abc import Sequence

from steer_llm_sdk.orchestration.tool_registry import Tool
from steer_llm_sdk.orchestration.tools.text_analyzer import TextAnalyzer
from steer_llm_sdk.providers._endpoint import LOCAL_SERVERS
from steer_llm_sdk.providers.models import MODEL_VARIABLE


def who_answers(models: Sequence[str], source: str) -> str:
    """The models in the order they are tried, and who named them: "--model" or "STEER_MODEL"."""
    return f"answering: {_in_order(models, source)}"


def which_tool(tool: Tool, configured: str | None, named: Sequence[str] = (), source: str = "--model") -> str:
    """For a tool. `configured` is what STEER_MODEL names, which only the text analyzer goes by; `named` are the models
    that the tool is given besides, and `source` says by what."""
    analyses = isinstance(tool, TextAnalyzer)
    name = tool.name if analyses else f"the tool {tool.name}"
    if named:
        return f"answering: {name} with {_in_order(named, source)}"
    if not analyses:
        return f"answering: {name}" + (f": {tool.description}" if tool.description else "")
    if configured is None:
        return f"answering: {name}, by counting on this machine; no language model is called"
    return f"answering: {name} with {_in_order([configured], MODEL_VARIABLE)}"


def _in_order(models: Sequence[str], source: str) -> str:
    first, *others = map(_described, models)
    then = f"; if that fails {', then '.join(others)}" if others else ""
    return f"{first}, named by {source}{then}"


def _described(model: str) -> str:
    prefix, _, name = model.partition(":")
    if prefix == "recorded":
        return f"{model} (what real models once answered; nothing is sent or spent)"
    if prefix in LOCAL_SERVERS:
        return f"{name} by {prefix} on this machine"
    return model
