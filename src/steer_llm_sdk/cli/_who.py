"""One line, before anything is spent: who is going to answer."""

from __future__ import annotations

from collections.abc import Sequence

from steer_llm_sdk.orchestration.tool_registry import Tool

ON_THIS_MACHINE = frozenset({"ollama", "vllm", "llamacpp"})


def who_answers(models: Sequence[str], source: str) -> str:
    """The models in the order they are tried, and who named them: "--model" or "STEER_MODEL"."""
    first, *others = map(_described, models)
    then = f"; if that fails {', then '.join(others)}" if others else ""
    return f"answering: {first}, named by {source}{then}"


def which_tool(tool: Tool) -> str:
    """For a tool that was found rather than named with a model."""
    said = f": {tool.description}" if tool.description else ""
    return f"answering: the tool {tool.name}{said}"


def _described(model: str) -> str:
    prefix, _, name = model.partition(":")
    if prefix == "recorded":
        return f"{model} (what real models once answered; nothing is sent or spent)"
    if prefix in ON_THIS_MACHINE:
        return f"{name} by {prefix} on this machine"
    return model
