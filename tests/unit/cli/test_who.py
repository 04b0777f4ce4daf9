"""One line says who answers, before anything is spent."""

from __future__ import annotations

import pytest

from steer_llm_sdk.cli._who import which_tool, who_answers
from steer_llm_sdk.testing import ScriptedTool


@pytest.mark.parametrize(
    ("models", "source", "line"),
    [
        (["openai:gpt-5-mini"], "--model", "answering: openai:gpt-5-mini, named by --model"),
        (["openai:gpt-5-mini"], "STEER_MODEL", "answering: openai:gpt-5-mini, named by STEER_MODEL"),
        (["ollama:llama3.2"], "--model", "answering: llama3.2 by ollama on this machine, named by --model"),
        (
            ["recorded:demo"],
            "--model",
            "answering: recorded:demo (what real models once answered; nothing is sent or spent), named by --model",
        ),
        (
            ["openai:a", "anthropic:b", "vllm:c"],
            "--model",
            "answering: openai:a, named by --model; if that fails anthropic:b, then c by vllm on this machine",
        ),
    ],
)
def test_models_are_named_in_the_order_they_are_tried(models: list[str], source: str, line: str) -> None:
    assert who_answers(models, source) == line


def test_a_tool_that_was_found_is_named_with_what_it_does() -> None:
    assert which_tool(ScriptedTool("t", description="counts words")) == "answering: the tool t: counts words"
    assert which_tool(ScriptedTool("t")) == "answering: the tool t"
