"""`steer-llm plan explain`, `doctor` and `tools`: what there is, what would be chosen, and why."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steer_llm_sdk import __version__, get_global_registry
from steer_llm_sdk.cli.main import app
from steer_llm_sdk.providers.simulated.faults import KINDS

APP = """
from steer_llm_sdk import get_global_registry
from steer_llm_sdk.orchestration.planning import (
    PlanningRule, RuleAction, RuleBasedPlanner, RuleCondition, create_type_based_rule,
)
from steer_llm_sdk.testing import ScriptedTool

cost = {"estimated_cost_per_run": 0.01, "estimated_duration_ms": 1500}
for tool in (ScriptedTool("reader", resource_requirements=cost), ScriptedTool("writer", version="2.0")):
    get_global_registry().register_tool(tool)

planner = RuleBasedPlanner([
    create_type_based_rule("essay", "writer", fallback_tools=["reader"]),
    PlanningRule("long", 5, [RuleCondition("length", "gt", 100)], RuleAction("reader", {"k": 4})),
    PlanningRule("unready", 1),
])
number = 5
"""


class Ran:
    def __init__(self, *arguments: str, stdin: bytes | None = None) -> None:
        result = CliRunner().invoke(app, arguments, input=stdin)
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def _my_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "my_app.py").write_text(APP, encoding="utf-8")
    (tmp_path / "broken_app.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    get_global_registry().clear()
    sys.modules.pop("my_app", None)


def explain(*arguments: str) -> Ran:
    return Ran("plan", "explain", *arguments)


# plan explain


@pytest.mark.usefixtures("_my_app")
def test_each_rule_is_shown_with_the_condition_that_failed() -> None:
    ran = explain('{"length": 120, "type": "letter"}', "--planner", "my_app:planner")
    assert ran.code == 0
    rows = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert rows[0] == "reader: Matched rule: long"
    assert "type_essay 10 does not match for writer, reader" in rows
    assert '✗ type equals "essay": it is "letter"' in rows
    assert "long 5 decides for reader" in rows
    assert "✓ length gt 100" in rows
    assert "unready 1 skipped: it has no action" in rows


@pytest.mark.usefixtures("_my_app")
def test_each_candidate_is_shown_with_cost_and_duration() -> None:
    ran = explain('{"length": 120}', "--planner", "my_app:planner")
    rows = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert "reader 1.0.0 $0.04 1.5 s selected" in rows
    assert "writer 2.0 ? ? can serve" in rows


@pytest.mark.usefixtures("_my_app")
def test_json_is_the_whole_account_and_nothing_else_on_stdout() -> None:
    account = explain('{"type": "essay"}', "--planner", "my_app:planner", "--json").json
    assert account["decision"]["selected_tool"] == "writer"
    assert account["decision"]["fallback_tools"] == ["reader"]
    assert [rule["decides"] for rule in account["rules"]] == [True, False, False]
    assert account["rules"][1]["conditions"][0]["holds"] is False
    assert {tool["name"]: tool["fallback"] for tool in account["tools"]} == {"reader": True, "writer": False}


@pytest.mark.usefixtures("_my_app")
def test_a_circuit_or_a_failure_can_be_supposed() -> None:
    open_ = explain('{"type": "essay"}', "--planner", "my_app:planner", "--open", "writer", "--json").json
    assert open_["decision"]["selected_tool"] == "reader"
    (writer,) = (tool for tool in open_["tools"] if tool["name"] == "writer")
    assert "circuit breaker is open" in writer["reason"]
    failed = explain('{"type": "essay"}', "--planner", "my_app:planner", "--failed", "writer", "--json").json
    assert next(tool["failed_before"] for tool in failed["tools"] if tool["name"] == "writer")


def test_without_a_planner_it_is_what_a_plain_run_goes_by() -> None:
    account = explain("some text", "--json").json
    assert account["decision"]["selected_tool"] == "text_analyzer"
    assert account["decision"]["metadata"]["selection_method"] == "default"
    assert account["rules"] == []


def test_a_budget_is_part_of_the_decision() -> None:
    assert explain("text", "--json").json["decision"]["tool_options"]["k"] == 3
    assert explain("text", "--budget", "tokens=500", "--json").json["decision"]["tool_options"]["k"] == 2


def test_where_no_tool_can_serve_it_says_why_and_exits_as_a_run_would() -> None:
    ran = explain("text", "--open", "text_analyzer")
    assert ran.code == 2
    assert "its circuit breaker is open" in ran.out
    assert "No tools available" in ran.err


@pytest.mark.usefixtures("_my_app")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{bad", "--planner", "my_app:planner"], "REQUEST: '{bad' cannot be used; it is not JSON"),
        (["", "--planner", "my_app:planner"], "REQUEST: '' cannot be used"),
        (["x", "--planner", "my_app"], "write MODULE:NAME, as in my_app:planner"),
        (["x", "--planner", "nowhere:planner"], "No module named 'nowhere'"),
        (["x", "--planner", "my_app:nothing"], "has no attribute 'nothing'"),
        (["x", "--planner", "broken_app:planner"], "ZeroDivisionError"),
        (["x", "--planner", "my_app:number"], "it is an int; only a RuleBasedPlanner can say why"),
        (["x", "--planner", "my_app:planner", "--open", "nobody"], "--open: 'nobody' cannot be used; the tools are"),
        (["x", "--budget", "tokens=-1"], "give a positive number after the ="),
    ],
)
def test_what_cannot_be_explained_is_said_in_one_line(arguments: list[str], said: str) -> None:
    ran = explain(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


def test_words_that_would_move_a_cursor_are_not_shown() -> None:
    assert "\x1b" not in explain('{"type": "\\u001b[2J"}').out


# doctor


def test_doctor_says_what_is_here_and_exits_with_0() -> None:
    ran = Ran("doctor")
    assert (ran.code, ran.err) == (0, "")
    said = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert said["steer_llm_sdk"].startswith(__version__)
    assert said["openai"] == version("openai")
    assert said["idempotency"].startswith("memory")
    assert "plain run" in ran.out
    assert "no language model is called" in " ".join(ran.out.split())


def test_doctor_names_keys_and_never_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123456")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "https://user:password@proxy.example")
    for ran in (Ran("doctor"), Ran("doctor", "--json")):
        assert "OPENAI_API_KEY" in ran.out
        assert "ANTHROPIC_BASE_URL" in ran.out
        assert "secret" not in ran.out + ran.err
        assert "password" not in ran.out + ran.err


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("recorded:demo", None),
        ("openai:gpt-5-mini", "set OPENAI_API_KEY"),
        ("nonsense", "write one of openai:NAME"),
    ],
)
def test_doctor_says_what_would_answer_a_plain_run_and_why_not(
    model: str, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEER_MODEL", model)
    plain = Ran("doctor", "--json").json["plain_run"]
    assert plain["by"] == model
    assert plain["problem"] is None if problem is None else problem in plain["problem"]


def test_doctor_as_json_has_every_fact() -> None:
    found = Ran("doctor", "--json").json
    assert found["version"] == __version__
    assert found["keys"] == []
    assert found["idempotency_store"] == {"store": "memory", "problem": None}
    assert found["tools"]["text_analyzer"] == "1.0.0"
    assert found["recorded"]["questions"] == 100
    assert found["clients"]["pydantic-ai-slim"] == version("pydantic-ai-slim")
    assert found["price_table"].startswith("20")


# tools


def test_tools_lists_name_version_and_what_it_does() -> None:
    ran = Ran("tools")
    assert "text_analyzer" in ran.out
    assert Ran("tools", "--json").json["text_analyzer"]["capabilities"] == ["analysis", "text"]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["plan", "explain", ""], "InvalidRequest", "REQUEST: '' cannot be used"),
        (["plan", "explain", "hello", "--open", "nobody"], "InvalidRequest", "the tools are text_analyzer"),
        (["plan", "explain", "hello", "--budget", "tokens=NaN"], "InvalidRequest", "give a positive number"),
        (["plan", "explain", '{"a": NaN}'], "InvalidRequest", "NaN is no JSON value"),
        (["plan", "explain", "@/no/such/file"], "InvalidRequest", "name a file that can be read"),
        (["plan", "explain"], "UsageError", "Missing argument 'REQUEST'"),
        (["doctor", "--nope"], "UsageError", "No such option: --nope"),
        (["tools", "more"], "UsageError", "No such command 'more'"),
        (["nobody"], "UsageError", "No such command 'nobody'"),
        (["run", "hello", "--max-parallel", "x"], "UsageError", "'--max-parallel'"),
    ],
)
def test_an_error_is_json_on_stdout_and_words_on_stderr(arguments: list[str], error: str, said: str) -> None:
    ran = Ran(*arguments, "--json")
    assert ran.code == 2
    assert ran.json["error"]["type"] == error
    assert ran.json["error"]["code"] == "validation"
    assert said in ran.json["error"]["message"]
    assert ran.err.strip()


def test_a_plan_that_no_tool_can_carry_out_has_the_error_beside_the_account() -> None:
    ran = explain("hello", "--open", "text_analyzer", "--json")
    assert ran.code == 2
    assert ran.json["error"]["type"] == "NoEligibleTool"
    assert ran.json["error"]["message"] == ran.json["refusal"]
    assert ran.json["decision"] is None
    assert ran.err == f"steer-llm: {ran.json['refusal']}\n"


@pytest.mark.parametrize("command", ["doctor", "tools"])
def test_an_installation_that_cannot_be_read_is_told_as_json(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise OSError(13, "Permission denied")

    monkeypatch.setattr(f"steer_llm_sdk.cli.{command}.installed_tools", broken)
    ran = Ran(command, "--json")
    assert ran.code == 1
    assert "Permission denied" in ran.json["error"]["message"]
    assert "Permission denied" in ran.err


def test_words_after_two_dashes_ask_for_no_json() -> None:
    ran = Ran("tools", "--", "--json")
    assert (ran.code, ran.out) == (2, "")


@pytest.mark.usefixtures("_my_app")
def test_a_tool_above_the_budget_is_said_to_be() -> None:
    asked = ('{"type": "essay"}', "--planner", "my_app:planner", "--budget", "cost_usd=0.0001")
    assert "exceeds the budget of $0.0001" in " ".join(explain(*asked).out.split())
    over = {tool["name"]: tool["over_budget"] for tool in explain(*asked, "--json").json["tools"]}
    assert "exceeds the budget of $0.0001" in over.values()
    enough = explain('{"type": "essay"}', "--planner", "my_app:planner", "--budget", "cost_usd=1000", "--json").json
    assert {tool["over_budget"] for tool in enough["tools"]} == {None}


@pytest.mark.usefixtures("_my_app")
def test_a_tool_of_ones_own_that_is_installed_nowhere_is_run_by_its_module(tmp_path: Path) -> None:
    (tmp_path / "own_app.py").write_text(
        "from steer_llm_sdk import tool\n@tool\ndef twice(n: int) -> int:\n    return 2 * n\n", encoding="utf-8"
    )
    assert Ran("run", '{"n": 21}', "--tool", "own_app:twice").out == "42\n"
    refused = Ran("run", "x", "--tool", "my_app:number")
    assert (refused.code, "it is an int; name a function with @tool" in refused.err) == (2, True)


def test_doctor_and_help_keep_to_eighty_columns() -> None:
    assert max(map(len, Ran("doctor").out.splitlines())) <= 80


@pytest.mark.parametrize("command", [[], ["run"], ["simulate"], ["plan"], ["plan", "explain"], ["demo"]])
def test_help_does_not_call_a_flag_a_bool(command: list[str]) -> None:
    assert "bool" not in Ran(*command, "--help").out


def test_the_help_of_simulate_has_every_kind_of_fault() -> None:
    words = set(re.split(r"[\s,.]+", Ran("simulate", "--help").out))
    assert set(KINDS) - words == set()
