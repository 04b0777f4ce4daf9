"""The libraries that a command loads before the clock of its run starts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from steer_llm_sdk.cli import _clients, _command
from steer_llm_sdk.cli._command import Command
from steer_llm_sdk.errors import InvalidRequest

CLAUDE = "recorded:claude-3-5-sonnet-20240620"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    wires: list[str] = []
    monkeypatch.setattr(_clients, "load", wires.append)
    monkeypatch.setattr(_command, "complain", lambda _: None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return wires


def test_each_format_is_loaded_once(loaded: list[str]) -> None:
    _clients.load_clients([CLAUDE, "recorded:demo", "ollama:x"], Console(file=io.StringIO()))
    assert loaded == ["anthropic", "openai"]


def test_a_model_that_cannot_be_asked_is_refused_before_anything_is_loaded(loaded: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="openai:without-a-key"):
        _clients.load_clients(["recorded:demo", "openai:without-a-key"], Console(file=io.StringIO()))
    assert loaded == []


def test_a_command_loads_the_others_and_leaves_the_refusal_to_who_asks(loaded: list[str]) -> None:
    named = ("nonsense", "openai:without-a-key", CLAUDE)
    Command(tool=None, tool_name="t", tool_options={}, options={}, who=None, named=named).announce()
    assert loaded == ["anthropic"]
