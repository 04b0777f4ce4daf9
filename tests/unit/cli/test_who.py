"""One line says who answers, before anything is spent."""

from __future__ import annotations

import pytest

from steer_llm_sdk.cli._who import which_tool, who_answers
from steer_llm_sdk.orchestration.tools.text_analyzer import TextAnalyzer
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
    assert which_tool(ScriptedTool("t", description="counts words"), None) == "answering: the tool t: counts words"
    assert which_tool(ScriptedTool("t"), "openai:x") == "answering: the tool t"


def test_the_text_analyzer_says_that_no_model_is_called_unless_one_is_configured() -> None:
    alone = "answering: text_analyzer, by counting on this machine; no language model is called"
    assert which_tool(TextAnalyzer(), None) == alone
    with_model = "answering: text_analyzer with openai:gpt-5-mini, named by STEER_MODEL"
    assert which_tool(TextAnalyzer(), "openai:gpt-5-mini") == with_model


def test_a_tool_that_is_given_a_model_is_named_with_it() -> None:
    recorded = "recorded:demo (what real models once answered; nothing is sent or spent), named by --option model"
    analyzer = which_tool(TextAnalyzer(), "openai:x", ["recorded:demo"], "--option model")
    assert analyzer == f"answering: text_analyzer with {recorded}"
    other = which_tool(ScriptedTool("t"), None, ["openai:a", "openai:b"])
    assert other == "answering: the tool t with openai:a, named by --model; if that fails openai:b"
