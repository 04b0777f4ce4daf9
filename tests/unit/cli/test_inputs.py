"""Words on the command line become values, or one sentence and exit code 2."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from steer_llm_sdk.cli import _inputs as inputs
from steer_llm_sdk.cli.exits import Exit


def refused(capsys: pytest.CaptureFixture[str], caught: pytest.ExceptionInfo[typer.Exit]) -> str:
    """The one line that was said on stderr, after checking that it was one line and the code is right."""
    assert caught.value.exit_code == Exit.BAD_INPUT
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


def give_stdin(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(raw)))


def test_text_is_taken_as_it_is() -> None:
    assert inputs.read_text("  why? \x00 🦜 ‏שלום ") == "  why? \x00 🦜 ‏שלום "


def test_a_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    give_stdin(monkeypatch, "\ufeffgrüß\n".encode())
    assert inputs.read_text("-") == "grüß\n"


def test_an_at_sign_reads_a_file(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("from a file", encoding="utf-8")
    assert inputs.read_text(f"@{tmp_path}/q.txt") == "from a file"


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_empty_text_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        inputs.read_text(text)
    assert "TEXT" in refused(capsys, caught)


def test_empty_standard_input_is_refused_by_that_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_stdin(monkeypatch, b"")
    with pytest.raises(typer.Exit) as caught:
        inputs.read_text("-")
    assert "standard input" in refused(capsys, caught)


def test_bytes_that_are_no_text_are_refused_with_their_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_stdin(monkeypatch, b"abc\xff\xfe")
    with pytest.raises(typer.Exit) as caught:
        inputs.read_text("-")
    assert "byte 3" in refused(capsys, caught)


@pytest.mark.parametrize("path", ["@/no/such/file", "@", "@a\0b"])
def test_a_file_that_cannot_be_read_is_refused(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        inputs.read_text(path)
    assert "name a file that can be read" in refused(capsys, caught)


def test_option_values_are_json_where_they_can_be() -> None:
    given = ["k=3", "name=plain text", 'list=["a", 1]', "flag=true", "empty=", "eq=a=b"]
    assert inputs.read_options(given) == {
        "k": 3,
        "name": "plain text",
        "list": ["a", 1],
        "flag": True,
        "empty": "",
        "eq": "a=b",
    }


@pytest.mark.parametrize("pair", ["k", "=3", " =3"])
def test_an_option_without_name_or_value_is_refused(pair: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        inputs.read_options([pair])
    assert "NAME=VALUE" in refused(capsys, caught)


def test_budgets_come_one_by_one_or_with_commas() -> None:
    assert inputs.read_budget(["tokens=1000,cost_usd=0.05", " ms = 5000 "]) == {
        "tokens": 1000,
        "cost_usd": 0.05,
        "ms": 5000,
    }
    assert inputs.read_budget([]) is None


@pytest.mark.parametrize(
    "pair", ["coins=3", "tokens", "tokens=", "tokens=many", "tokens=0", "ms=-1", "ms=nan", "ms=inf"]
)
def test_a_budget_that_is_none_is_refused(pair: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        inputs.read_budget([pair])
    assert "--budget" in refused(capsys, caught)


def test_a_timeout_is_seconds_and_becomes_whole_ms() -> None:
    assert [inputs.read_timeout(seconds) for seconds in (None, 0.1, 1.2345, 60)] == [None, 100, 1234, 60000]


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.05, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        inputs.read_timeout(seconds)
    assert "--timeout" in refused(capsys, caught)


def test_a_schema_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"type": "object"}), encoding="utf-8")
    assert inputs.read_schema(str(tmp_path / "s.json")) == {"type": "object"}
    assert inputs.read_schema(None) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_a_file_that_is_no_schema_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.json").write_text(text, encoding="utf-8")
    with pytest.raises(typer.Exit) as caught:
        inputs.read_schema(str(tmp_path / "s.json"))
    assert "--schema" in refused(capsys, caught)


def test_a_schema_may_stand_on_the_command_line() -> None:
    assert inputs.read_schema(' {"type": "object"}') == {"type": "object"}


def test_a_schema_on_the_command_line_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        inputs.read_schema('{"type": ')
    assert "the schema must be a JSON Schema" in refused(capsys, caught)


def test_fields_make_the_schema_that_has_them() -> None:
    paths = inputs.read_fields(["answer", "person.name", "$"])
    assert paths == [("answer",), ("person", "name"), ()]
    assert inputs.schema_with(paths) == {
        "type": "object",
        "properties": {
            "answer": {},
            "person": {"type": "object", "properties": {"name": {}}, "required": ["name"]},
        },
        "required": ["answer", "person"],
    }


def test_a_field_that_is_no_path_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        inputs.read_fields(["a..b"])
    assert "--fields" in refused(capsys, caught)


def test_an_at_sign_alone_is_told_what_belongs_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught:
        inputs.read_text("@")
    assert "behind the @, as in @README.md" in refused(capsys, caught)


def test_a_pipe_that_nobody_writes_to_is_refused_and_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(typer.Exit) as caught:
        inputs.read_text(f"@{tmp_path / 'pipe'}")
    assert "it is a pipe or a device" in refused(capsys, caught)
