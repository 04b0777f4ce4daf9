"""Every error of a command is an exit code and a sentence; with --json it is on stdout, too."""

from __future__ import annotations

import json

import pytest
import typer

from steer_llm_sdk.cli.exits import errors_as_exits


def test_a_bug_keeps_its_traceback_and_is_told_as_json_where_that_was_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for as_json in (True, False):
        with pytest.raises(KeyError), errors_as_exits(as_json=as_json):
            raise KeyError("a bug")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["error"]["type"] == "KeyError"


def test_leaving_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    for leaving in (typer.Exit(3), typer.Abort()):
        with pytest.raises(type(leaving)), errors_as_exits(as_json=True):
            raise leaving
    assert capsys.readouterr().out == ""
