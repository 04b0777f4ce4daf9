"""`steer-llm run` from the command line to recorded answers and back, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steer_llm_sdk.cli.exits import Exit
from steer_llm_sdk.cli.main import app
from steer_llm_sdk.providers.simulated import SimulatedServer

QUESTION = "crux-test-#24"
MODEL = "recorded:gpt-4o-2024-05-13"
RIGHT = "[45, 3, 61, 39, 27, 47]"


class Ran:
    def __init__(self, *arguments: str, stdin: bytes | None = None, env: dict[str, str] | None = None) -> None:
        result = CliRunner().invoke(app, ["run", *arguments], input=stdin, env=env)
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def schema(tmp_path: Path) -> str:
    form = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(form), encoding="utf-8")
    return str(path)


def test_the_answer_is_on_stdout_and_everything_else_on_stderr() -> None:
    ran = Ran(QUESTION, "--model", MODEL)
    assert ran.code == Exit.OK
    assert RIGHT in ran.out
    assert "answering" not in ran.out
    first, last = ran.err.splitlines()
    assert first.startswith(f"steer-llm: answering: {MODEL} (what real models once answered; nothing is sent or spent)")
    assert last.startswith(f"succeeded · ask by {MODEL.removeprefix('recorded:')} · 1 call · ")


def test_json_on_stdout_is_the_whole_output_and_nothing_else() -> None:
    ran = Ran(QUESTION, "--model", MODEL, "--json")
    assert ran.json["status"] == "succeeded"
    assert ran.json["metadata"]["simulated"] is True
    assert ran.json["cost_usd"] > 0


def test_steer_model_answers_where_no_model_is_named() -> None:
    ran = Ran(QUESTION, "--json", env={"STEER_MODEL": MODEL})
    assert ran.json["metadata"]["model"] == "gpt-4o-2024-05-13"
    assert "named by STEER_MODEL" in ran.err


def test_a_named_model_goes_before_steer_model() -> None:
    ran = Ran(QUESTION, "--model", MODEL, "--json", env={"STEER_MODEL": "openai:never-asked"})
    assert ran.json["metadata"]["model"] == "gpt-4o-2024-05-13"


def test_a_question_comes_from_standard_input_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "q").write_text(QUESTION, encoding="utf-8")
    assert RIGHT in Ran("-", "--model", MODEL, stdin=QUESTION.encode()).out
    assert RIGHT in Ran(f"@{tmp_path}/q", "--model", MODEL).out


def test_k_answers_become_votes(schema: str) -> None:
    ran = Ran(QUESTION, "--model", "recorded:demo", "-k", "4", "--schema", schema, "--option", "seeds=[0, 1, 2, 5]")
    assert ran.code == Exit.OK
    (row,) = (line.split("  ") for line in ran.out.splitlines() if line.startswith("answer"))
    assert [part.strip() for part in row if part.strip()] == ["answer", f'"{RIGHT}"', "4 of 4"]
    assert "4 of 4 answers valid" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_a_bundle_that_is_not_whole_is_partial(schema: str) -> None:
    """Two of these ten models answered null where a string was asked for, also when asked again."""
    seeds = json.dumps(list(range(10)))
    ran = Ran("crux-test-#640", "-m", "recorded:demo", "-k", "10", "--schema", schema, "-o", f"seeds={seeds}", "--json")
    assert ran.code == Exit.PARTIAL
    assert ran.json["content"]["evidence_bundle"]["meta"]["k_completed"] == 8


def test_a_model_that_fails_is_followed_by_the_next() -> None:
    closed = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "sk-test-000000"}
    ran = Ran(QUESTION, "-m", "openai:gpt-5-mini", "-m", MODEL, "--json", env=closed)
    assert ran.code == Exit.OK
    assert ran.json["metadata"]["model"] == "gpt-4o-2024-05-13"
    assert "sk-test" not in ran.out + ran.err


def test_streamed_text_is_the_same_text_once() -> None:
    assert Ran(QUESTION, "-m", MODEL, "--stream").out == Ran(QUESTION, "-m", MODEL).out


async def test_text_of_an_attempt_that_broke_is_told_from_the_answer_which_is_printed_once() -> None:
    async with SimulatedServer(faults="reset:first=1,chunks=8") as server:
        env = {"OPENAI_BASE_URL": f"{server.base_url}/v1", "OPENAI_API_KEY": "none"}
        model = "openai:gpt-4o-2024-05-13"
        ran = await asyncio.to_thread(Ran, QUESTION, "-m", model, "--stream", env=env)
        whole = await asyncio.to_thread(Ran, QUESTION, "-m", model, env=env)
    fragment, answer = ran.out.split("\n```json", 1)
    assert (ran.code, f"```json{answer}") == (Exit.OK, whole.out)
    assert fragment.startswith("```json")
    assert "the text so far does not count; the answer begins anew" in ran.err


def test_streamed_json_is_one_event_a_line_and_the_output_last() -> None:
    lines = [json.loads(line) for line in Ran(QUESTION, "-m", MODEL, "--stream", "--json").out.splitlines()]
    assert [line["event"]["type"] for line in lines[:-1] if line["event"]["type"] != "delta"] == [
        "start",
        "usage",
        "complete",
    ]
    text = "".join(line["event"]["delta"] for line in lines[:-1] if line["event"]["type"] == "delta")
    assert text == lines[-1]["output"]["content"]


def test_a_question_that_was_not_recorded_is_refused_with_a_sentence() -> None:
    ran = Ran("Who are you?", "--model", MODEL)
    assert ran.code == Exit.BAD_INPUT
    assert ran.out == ""
    assert "100 questions and no others" in ran.err


def test_a_budget_that_does_not_allow_the_request_is_refused_before_it_is_sent() -> None:
    ran = Ran(QUESTION, "--model", MODEL, "--budget", "tokens=3")
    assert ran.code == Exit.BUDGET
    assert ran.out == ""
    assert "tokens budget exceeded" in ran.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hello", "--model", "gpt-4o"], "write one of openai:NAME"),
        (["hello", "--model", "recorded:nobody"], "recorded:demo"),
        (["hello", "--model", "openai:gpt-5-mini"], "OPENAI_API_KEY"),
        (["hello", "--model", MODEL, "-k", "11"], "at most 10"),
        (["hello", "--model", MODEL, "--option", "colour=blue"], "colour"),
        (["hello", "--tool", "nobody"], "Tool 'nobody' not found"),
        (["hello", "--tool", "text_analyzer", "--schema", "x.json"], "--schema"),
        (["hello", "--model", MODEL, "--schema", "/no/such/file"], "--schema"),
        (["hello", "--model", MODEL, "--timeout", "nan"], "--timeout"),
        (["hello", "--timeout", "abc"], "steer-llm: Invalid value for '--timeout': "),
        (["--batch", "x", "--max-parallel", "0"], "steer-llm: Invalid value for '--max-parallel': "),
        (["hello", "--nosuch"], "steer-llm: No such option: --nosuch"),
        ([], "steer-llm: TEXT is missing; give a question"),
        (["hello", "--model", MODEL, "--idempotency-key", ""], "idempotency_key"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(arguments: list[str], said: str) -> None:
    ran = Ran(*arguments)
    assert (ran.code, ran.out) == (Exit.BAD_INPUT, "")
    assert said in ran.err
    assert len(ran.err.splitlines()) <= 2  # who answers, and what is wrong


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hello", "-k", "5"], "-k needs --model"),
        (["hello", "--tool", "text_analyzer", "-k", "5"], "text_analyzer answers once"),
        (["hello", "-o", "temperature=0"], "temperature needs --model"),
        (["hello", "--fields", "answer"], "name one with --model"),
        (["hello", "--model", MODEL, "--fields", "answer"], "--fields needs -k"),
        (["hello", "--model", MODEL, "-k", "0"], "at most 10"),
        (["hello", "--model", "recorded:gpt-4"], "the nearest are recorded:gpt-4-0314"),
        (
            ["hello", "--model", "recorded:nosuch"],
            "cannot be used; recorded:demo is all models",
        ),
    ],
)
def test_what_would_change_nothing_is_refused(arguments: list[str], said: str) -> None:
    ran = Ran(*arguments)
    assert (ran.code, ran.out) == (Exit.BAD_INPUT, "")
    assert said in ran.err


def test_a_list_of_models_in_the_environment_is_refused() -> None:
    ran = Ran("hello", env={"STEER_MODEL": "openai:a,openai:b"})
    assert ran.code == Exit.BAD_INPUT
    assert "one model name is expected" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        ([QUESTION, "--model", MODEL, "--budget", "tokens=3"], Exit.BUDGET, "BudgetExceeded"),
        (["@/no/such/file", "--model", MODEL], Exit.BAD_INPUT, "InvalidRequest"),
        (["hello", "--tool", "nobody"], Exit.BAD_INPUT, "ToolNotFound"),
    ],
)
def test_an_error_is_json_too_where_json_was_asked_for(arguments: list[str], code: Exit, error: str) -> None:
    ran = Ran(*arguments, "--json")
    assert ran.code == code
    assert ran.json["error"]["type"] == error
    assert ran.json["error"]["message"] in ran.err


def test_answers_are_compared_by_the_fields_that_are_named() -> None:
    ran = Ran(
        QUESTION,
        "-m",
        "recorded:demo",
        "-k",
        "4",
        "--fields",
        "answer",
        "-o",
        "seeds=[0, 1, 2, 5]",
        "-o",
        "latency=min",
    )
    assert ran.code == Exit.OK
    assert f'answer  "{RIGHT}"  4 of 4' in ran.out


def test_a_text_that_was_cut_off_is_partial_and_says_so() -> None:
    ran = Ran(QUESTION, "-m", MODEL, "-o", "max_tokens=20")
    assert ran.code == Exit.PARTIAL
    assert "warning: the answer was cut off at max_tokens = 20" in ran.err.splitlines()


def test_replicates_that_all_fail_in_the_same_way_are_told_of_once() -> None:
    ran = Ran(QUESTION, "-m", MODEL, "-k", "3", "-o", "max_tokens=20")
    assert ran.code == Exit.FAILED
    assert "ask: all 3: the answer was cut off at max_tokens = 20" in ran.err.splitlines()


def test_a_tool_that_is_given_a_model_is_announced_with_it() -> None:
    for named in (["-o", f"model={MODEL}"], ["--model", MODEL]):
        first = Ran("A text.", "--tool", "text_analyzer", *named).err.splitlines()[0]
        assert first.startswith(f"steer-llm: answering: text_analyzer with {MODEL}")


def test_a_text_without_a_model_is_counted_on_this_machine_even_where_a_key_is_set() -> None:
    ran = Ran("A short text. It has two sentences.", "--json", env={"OPENAI_API_KEY": "sk-test-000000"})
    assert ran.code == Exit.OK
    assert ran.err == (
        "steer-llm: answering: text_analyzer, by counting on this machine; no language model is called\n"
    )
    assert ran.json["content"]["counts"]["sentences"] == 2
    assert ran.json["metadata"]["local"] is True
    assert "sk-test" not in ran.out


def test_a_long_text_is_counted_within_its_budget() -> None:
    ran = Ran("-", "--json", "--budget", "tokens=1000", stdin=("One more sentence. " * 100_000).encode())
    assert ran.code == Exit.OK
    assert ran.json["content"]["counts"]["sentences"] == 100_000


TALKATIVE = """
from steer_llm_sdk import tool
print("imported")
@tool
async def talkative(text: str) -> str:
    print("asked")
    return text
"""


@pytest.fixture
def talkative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return f"{_module('talks', TALKATIVE, tmp_path, monkeypatch)}:talkative"


def _module(name: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the folder that commands now run in."""
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_what_a_tool_prints_is_on_stderr_where_json_was_asked_for(talkative: str) -> None:
    ran = Ran("q", "--tool", talkative, "--json")
    assert ran.json["content"] == "q"
    assert "imported\n" in ran.err
    assert "asked\n" in ran.err


def test_what_a_tool_prints_is_no_line_of_a_stream_of_json(talkative: str) -> None:
    ran = Ran("q", "--tool", talkative, "--json", "--stream")
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [next(iter(line)) for line in lines] == ["event", "event", "output"]
    assert "asked\n" in ran.err


def test_what_a_tool_prints_is_not_in_the_account_of_a_batch(talkative: str) -> None:
    Path("in.jsonl").write_text('"a"\n"b"\n', encoding="utf-8")
    ran = Ran("--batch", "in.jsonl", "--out", "out.jsonl", "--tool", talkative, "--json")
    assert ran.json["succeeded"] == 2
    assert ran.err.count("asked\n") == 2


ODD = """
import asyncio
from steer_llm_sdk import tool

@tool
def nan(q: str) -> object:
    return float("nan")

@tool
async def slow(q: str) -> str:
    await asyncio.sleep(60)
    return q
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return _module("odd", ODD, tmp_path, monkeypatch)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_what_json_has_no_form_for_is_told_on_stderr(odd: str, form: list[str]) -> None:
    ran = Ran("q", "--tool", f"{odd}:nan", *form)
    assert ran.code == Exit.OK
    assert "warning: not all of it was JSON: nan is not a JSON number" in ran.err


def test_that_the_time_was_up_is_said_once_and_without_six_decimals(odd: str) -> None:
    ran = Ran("q", "--tool", f"{odd}:slow", "--timeout", "0.1")
    assert ran.code == Exit.BUDGET
    assert ran.err.count("time budget exceeded") == 1
    assert re.search(r"exceeded: \d+(\.\d)? ms > 100 ms$", ran.err, re.MULTILINE)


def test_why_an_answer_is_partial_is_said_beside_the_json_too() -> None:
    ran = Ran(QUESTION, "-m", MODEL, "-o", "max_tokens=20", "--json")
    assert ran.code == Exit.PARTIAL
    assert "steer-llm: partial: warning: the answer was cut off at max_tokens = 20" in ran.err.splitlines()


def test_without_json_a_tool_prints_where_it_likes(talkative: str) -> None:
    assert "asked\n" in Ran("q", "--tool", talkative).out


BROKEN = """
from steer_llm_sdk import tool
from steer_llm_sdk.errors import InvalidRequest

@tool
def bug(text: str) -> str:
    return int(text)

@tool
def picky(text: str) -> str:
    raise InvalidRequest("text", text, "give a number")
"""


@pytest.mark.parametrize(("name", "code"), [("bug", Exit.FAILED), ("picky", Exit.BAD_INPUT)])
def test_a_bug_of_a_tool_is_no_bad_input_and_its_word_on_the_request_is(
    name: str, code: Exit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _module("broken_tools", BROKEN, tmp_path, monkeypatch)
    assert Ran("x", "--tool", f"{module}:{name}").code == code
