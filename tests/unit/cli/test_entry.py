"""What is typed before the command is loaded."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from steer_llm_sdk.cli import __main__


class Interrupts:
    """Somebody who presses Ctrl-C while a module is being imported."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self.module:
            raise KeyboardInterrupt


def test_ctrl_c_while_the_command_is_loaded_is_an_interrupt_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = "steer_llm_sdk.cli.main"
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupts(module), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "steer-llm: interrupted\n")
