"""Whatever the shell is given and cannot use: one line on stderr that says what would do, nothing on stdout, code 2."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steer_llm_sdk.cli import _inputs as inputs
from steer_llm_sdk.cli.exits import Exit
from steer_llm_sdk.cli.main import app
from steer_llm_sdk.providers.simulated import SimulatedServer

QUESTION = "crux-test-#24"
MODEL = "recorded:gpt-4o-2024-05-13"
DEEP = '{"a":' * 10_000 + "1" + "}" * 10_000


class Ran:
    def __init__(self, *arguments: str, stdin: bytes | None = None, env: dict[str, str] | None = None) -> None:
        result = CliRunner().invoke(app, arguments, input=stdin, env=env)
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    def refused(self, *said: str) -> None:
        """One line, of a length that a terminal can bear."""
        assert (self.code, self.out) == (Exit.BAD_INPUT, ""), self.err
        (line,) = self.err.splitlines()
        assert line.startswith("steer-llm: ")
        assert len(line) < 700
        for part in said:
            assert part in line


def ask(*arguments: str) -> Ran:
    return Ran("run", QUESTION, "-m", MODEL, *arguments)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# texts


@pytest.mark.parametrize("text", ["", "  \n", "@nowhere.txt", "@.", "@"])
def test_a_text_that_is_none_is_refused(text: str) -> None:
    Ran("run", text).refused("cannot be used; ")


def test_no_text_at_all_is_refused_with_all_the_ways_to_give_one() -> None:
    Ran("run").refused("@FILE", "standard input", "--batch FILE")


def test_a_file_that_is_no_utf_8_is_refused_with_the_place() -> None:
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    Ran("run", "@latin.txt").refused("@latin.txt: b'\\xe9' cannot be used; the text must be UTF-8; byte 3 is not")
    Ran("run", "-", stdin=b"\xff").refused("standard input: b'\\xff'")


def test_a_file_that_is_too_large_is_refused_with_the_size_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MOST_BYTES", 2_000_000)
    Path("large.txt").write_bytes(b"x" * 2_000_001)
    Ran("run", "@large.txt").refused("'large.txt' cannot be used; it has more than 2 MB")


@pytest.mark.parametrize(
    "text", ["word " * 2_000_000, "one\x00two", "😀 three", "\u202eשלם עולם", "\ufeffmark", "\x1b[31mred"]
)
def test_a_text_of_any_kind_and_length_is_counted(text: str) -> None:
    Path("text.txt").write_text(text, encoding="utf-8")
    ran = Ran("run", "@text.txt", "--json")
    assert ran.code == Exit.OK
    assert json.loads(ran.out)["status"] == "succeeded"


def test_what_is_shown_moves_no_cursor() -> None:
    Ran("run", "x", "--tool", "\x1b[2Jnobody").refused("Tool '[2Jnobody' not found")


# models, tools, options


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("", "write one of openai:NAME"),
        ("openai:", "write one of openai:NAME"),
        (":gpt", "write one of openai:NAME"),
        ("gpt-4o", "write one of openai:NAME"),
        ("x" * 5000, "write one of openai:NAME"),
        ("recorded:nobody", "recorded:demo"),
        ("openai:gpt-5-mini", "OPENAI_API_KEY"),
    ],
)
def test_a_model_that_nobody_knows_is_refused(model: str, said: str) -> None:
    Ran("run", QUESTION, "-m", model).refused("model: ", said)
    Ran("run", QUESTION, env={"STEER_MODEL": model or "?"}).refused("model: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tool", "nobody"], "Available tools: text_analyzer"),
        (["--tool", ""], "Available tools: text_analyzer"),
        (["-k", "3"], "-k: 3 cannot be used"),
        (["--tool", "text_analyzer", "-o", "sentences=0"], "sentences: 0 cannot be used"),
        (["--tool", "text_analyzer", "-o", "words=1"], "there is no such option; there are"),
        (["--schema", "schema.json"], "--schema: "),
        (["--out", "out.jsonl"], "--out: 'out.jsonl' cannot be used; it belongs to --batch FILE"),
        (["--max-parallel", "3"], "--max-parallel: 3 cannot be used; it belongs to --batch FILE"),
        (["--retry-failed"], "--retry-failed: True cannot be used; it belongs to --batch FILE"),
    ],
)
def test_what_nothing_is_there_for_is_refused(arguments: list[str], said: str) -> None:
    Path("schema.json").write_text('{"type": "object"}', encoding="utf-8")
    Ran("run", "some text", *arguments).refused(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "temperature=hot"], "temperature: 'hot' cannot be used; it should be a valid number"),
        (["-o", "temperature=NaN"], "temperature: 'NaN' cannot be used"),
        (["-o", "max_tokens=0"], "max_tokens: 0 cannot be used"),
        (["-o", "max_tokens=1e400"], "max_tokens: '1e400' cannot be used"),
        (["-o", "seed=" + "[" * 10_000], "seed: '[[["),
        (["-o", "seed=" + "9" * 5000], "seed: '999"),
        (["-o", "model=gpt-4o"], "write one of openai:NAME"),
        (["-o", "colour=red"], "colour: 'red' cannot be used"),
        (["-o", "colour"], "--option: 'colour' cannot be used; write NAME=VALUE"),
        (["-o", "=5"], "--option: '=5' cannot be used; write NAME=VALUE"),
        (["-k", "0"], "-k: 0 cannot be used"),
        (["-k", "1000000"], "-k: 1000000 cannot be used"),
        (["-k", "3", "-o", "seeds=[1]"], "seeds: [1] cannot be used; 1 for 3 replicates"),
        (["-k", "3", "-o", "epsilon=2"], "epsilon: 2 cannot be used"),
        (["--budget", "tokens=many"], "--budget: 'tokens=many' cannot be used"),
        (["--budget", "tokens=nan"], "--budget: 'tokens=nan' cannot be used"),
        (["--budget", "euros=1"], "write one of ms=NUMBER, tokens=NUMBER, cost_usd=NUMBER"),
        (["--timeout", "0"], "--timeout: 0.0 cannot be used"),
        (["--timeout", "nan"], "--timeout: nan cannot be used"),
        (["--timeout", "1e300"], "--timeout: 1e+300 cannot be used"),
        (["--idempotency-key", " "], "options.idempotency_key: ' ' cannot be used"),
        (["--idempotency-key", "x" * 600], "give 1 to 512 characters"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_name(arguments: list[str], said: str) -> None:
    ask(*arguments).refused(said)


@pytest.mark.parametrize("key", ["two\nlines", "ключ", "x" * 500, " padded"])
def test_a_key_of_any_characters_can_be_sent(key: str, tmp_path: Path) -> None:
    assert ask("--idempotency-key", key, "--store", f"sqlite:///{tmp_path}/keys.db").code == Exit.OK


# schemas


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (DEEP, "it is nested too deep"),
        ('{"properties":' * 300 + "{}" + "}" * 300, "nested deeper than 200 levels"),
        ('{"minimum": NaN}', "NaN is no JSON value"),
        ('{"minimum": 1e999}', "inf is not a JSON number"),
        ("{", "it is not JSON: "),
        ("", "it is not JSON: "),
        ("[]", "the file must be a JSON object"),
        ('{"type": "strng"}', "it is no JSON Schema"),
        ('{"type": "string", "pattern": "("}', "it is no JSON Schema"),
        ('{"$ref": "http://schemas.example/x.json"}', "$ref to http://schemas.example/x.json is not followed"),
        ('{"$ref": "file:///etc/passwd"}', "$ref to file:///etc/passwd is not followed"),
        ('{"$ref": "other.json"}', "is not followed; put the definition into the schema, under $defs"),
    ],
)
def test_a_schema_that_is_none_is_refused(schema: str, said: str) -> None:
    Path("schema.json").write_text(schema, encoding="utf-8")
    ask("--schema", "schema.json").refused(said)


@pytest.mark.parametrize("path", ["nowhere.json", ".", ""])
def test_a_schema_that_is_not_there_is_refused(path: str) -> None:
    ask("--schema", path).refused(f"--schema: '{path}' cannot be used; name a file that can be read")


def test_a_schema_that_is_no_text_is_refused() -> None:
    Path("schema.json").write_bytes(b"\xff\xfe\x00")
    ask("--schema", "schema.json").refused("it is not UTF-8: byte 0")


# batches: the line is named, nobody is asked, and nothing is written


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{bad", "it is not JSON: "),
        (
            "plain words",
            "Expecting value at column 1; give a text in quotes, or an object, on one line",
        ),
        ("NaN", "NaN is no JSON value"),
        (DEEP, "it is nested too deep"),
        ("9" * 5000, "Exceeds the limit"),
        ('"a\\ud800"', "half a character"),
        ("5", '5 cannot be used; give a text, or an object such as {"request": "..."}'),
        ("null", "None cannot be used"),
        ('""', "request: '' cannot be used"),
        ('{"request": ""}', "request: '' cannot be used"),
        ('{"request": 5}', "request: 5 cannot be used; give a text or an object"),
        ('{"query": "x"}', "query: 'x' cannot be used; the keys of a line are request, tool_name"),
        ('{"request": {"query": 5}}', "query: 5 cannot be used"),
        ('{"request": "x", "id": 5}', "id: 5 cannot be used"),
        ('{"request": "x", "id": "first"}', "id: 'first' cannot be used; line 1 has it already"),
        ('{"request": "x", "tool_name": "nobody"}', "Tool 'nobody' not found"),
        ('{"request": "x", "tool_name": 5}', "tool_name: 5 cannot be used"),
        ('{"request": "x", "tool_options": []}', "tool_options: [] cannot be used; give an object"),
        ('{"request": "x", "tool_options": {"temperature": "hot"}}', "temperature: 'hot' cannot be used"),
        ('{"request": "x", "tool_options": {"model": "gpt-4o"}}', "model: 'gpt-4o' cannot be used"),
        ('{"request": "x", "options": 5}', "options: 5 cannot be used; give an object"),
        ('{"request": "x", "options": {"colour": 1}}', "options.colour: 1 cannot be used"),
        ('{"request": "x", "options": {"budget": {"tokens": -1}}}', "options.budget: "),
    ],
)
async def test_a_line_that_cannot_be_served_is_named_before_anybody_is_asked(line: str, said: str) -> None:
    Path("in.jsonl").write_text(f'{{"request": "x", "id": "first"}}\n\n{line}\n', encoding="utf-8")
    async with SimulatedServer() as server:
        env = {"OPENAI_BASE_URL": f"{server.base_url}/v1"}
        arguments = ("run", "--batch", "in.jsonl", "--out", "out.jsonl", "-m", "openai:gpt-4o")
        ran = await asyncio.to_thread(Ran, *arguments, env=env)
    ran.refused("in.jsonl, line 3: ", said)
    assert server.requests == 0
    assert not Path("out.jsonl").exists()


def test_a_line_that_is_no_utf_8_is_named() -> None:
    Path("in.jsonl").write_bytes(b'"x"\n"\xff"\n')
    Ran("run", "--batch", "in.jsonl", "--out", "out.jsonl").refused("in.jsonl, line 2: ", "it is not UTF-8: byte 1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "nowhere.jsonl", "--out", "out.jsonl"], "--batch: 'nowhere.jsonl' cannot be used; name a file"),
        (["--batch", "empty.jsonl", "--out", "out.jsonl"], "there is no request in it"),
        (["--batch", "in.jsonl"], "--out is missing; name a file"),
        (["--batch", "in.jsonl", "--out", "in.jsonl"], "that is the file of requests"),
        (["--batch", "in.jsonl", "--out", "."], "name a file that can be written"),
        (["--batch", "in.jsonl", "--out", "no/where.jsonl"], "name a file that can be written"),
        (["some text", "--batch", "in.jsonl", "--out", "out.jsonl"], "TEXT: 'some text' cannot be used"),
        (["--batch", "in.jsonl", "--out", "out.jsonl", "--stream"], "--stream: True cannot be used"),
        (["--batch", "in.jsonl", "--out", "out.jsonl", "--idempotency-key", "k"], "--idempotency-key: 'k' cannot be"),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_name(arguments: list[str], said: str) -> None:
    Path("in.jsonl").write_text('"x"\n', encoding="utf-8")
    Path("empty.jsonl").write_text("\n\n", encoding="utf-8")
    Ran("run", *arguments).refused(said)
    assert not Path("out.jsonl").exists()
    assert Path("in.jsonl").read_text(encoding="utf-8") == '"x"\n'


# the other commands


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["plan", "explain", "x", "--rules", "nowhere.toml"], "--rules"),
        (["plan", "check", "nowhere.toml"], "FILE"),
        (["calibrate", "nowhere.toml"], "labels"),
    ],
)
def test_a_file_that_is_not_there_is_refused_by_name(arguments: list[str], field: str) -> None:
    Ran(*arguments).refused(f"{field}: 'nowhere.toml' cannot be used; name a file that can be read (No such file")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "--fault", "503:rate=2"], "fault.rate: '2' cannot be used"),
        (["simulate", "--fault", "flood"], "fault.kind: 'flood' cannot be used"),
        (["simulate", "--upstream", "nowhere"], "upstream: 'nowhere' cannot be used"),
        (["simulate", "--upstream", "http://"], "upstream: 'http://' cannot be used"),
        (["record", "--upstream", "nowhere", "--out", "x"], "upstream: 'nowhere' cannot be used"),
        (["record", "--upstream", "http://127.0.0.1:9", "--out", "no/where"], "out: 'no/where' cannot be used"),
    ],
)
def test_servers_that_cannot_be_started_say_why(arguments: list[str], said: str) -> None:
    Ran(*arguments).refused(said)


def test_an_argument_of_broken_bytes_is_refused_or_read_and_never_a_traceback() -> None:
    ran: Any = subprocess.run(
        [sys.executable, "-m", "steer_llm_sdk.cli", "run", b"a\xff", "-m", MODEL],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (Exit.BAD_INPUT, b"")
    assert b"half a character" in ran.stderr
    assert b"Traceback" not in ran.stderr
