"""`steer-llm plan check`, rules in files for `plan explain`, and `steer-llm tools list|canary|promote|deprecate`."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steer_llm_sdk import get_global_registry
from steer_llm_sdk.cli.main import app

RULES = """
[[rule]]
name = "essays"
when = { type = "essay" }
pin = "writer"
fallbacks = ["reader"]

[[rule]]
name = "german essays"
when = { type = "essay", language = "de" }
pin = "lektor"

[[rule]]
name = "policy"
when = { tenant = "acme" }
forbid = "writer"
"""
TOOLS = """
from steer_llm_sdk import get_global_registry
from steer_llm_sdk.testing import ScriptedTool

for tool in (ScriptedTool("reader"), ScriptedTool("writer", version="1.0"), ScriptedTool("writer", version="2.0")):
    get_global_registry().register_tool(tool)
"""


class Ran:
    def __init__(self, *arguments: str) -> None:
        result = CliRunner().invoke(app, arguments)
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[str]:
        return [" ".join(line.split()) for line in self.out.splitlines()]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "rules.toml").write_text(RULES, encoding="utf-8")
    (tmp_path / "my_tools.py").write_text(TOOLS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEER_RELEASES", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    get_global_registry().clear()
    sys.modules.pop("my_tools", None)


# plan check


def test_what_is_wrong_with_rules_is_said_with_file_and_line() -> None:
    ran = Ran("plan", "check", "rules.toml", "--tools", "my_tools")
    assert ran.code == 2
    assert ran.out.splitlines() == [
        "rules.toml:8: rule german essays: missing tool: tool lektor: it is not registered",
        "rules.toml:8: rule german essays: shadowed: rule essays matches whenever it does, and is asked first (line 2)",
    ]
    assert ran.err == ""


def test_without_tools_it_is_said_that_they_were_not_looked_at() -> None:
    ran = Ran("plan", "check", "rules.toml")
    assert len(ran.out.splitlines()) == 1
    assert "whether the tools are there was not looked at" in ran.err


def test_rules_with_nothing_wrong_are_said_to_have_nothing_wrong(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("rule:\n  - name: r\n    pin: reader\n", encoding="utf-8")
    ran = Ran("plan", "check", "good.yaml", "--tools", "my_tools")
    assert (ran.code, ran.out) == (0, "1 rule, nothing wrong with it\n")


def test_a_file_that_cannot_be_read_has_its_problems_listed_like_the_others(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('[[rule]]\nname = "r"\n[[rule]]\npin = 5\n', encoding="utf-8")
    ran = Ran("plan", "check", "bad.toml")
    assert ran.code == 2
    assert [line.split(": ")[0] for line in ran.out.splitlines()] == ["bad.toml:1", "bad.toml:3", "bad.toml:4"]
    found = Ran("plan", "check", "bad.toml", "--json").json
    assert [problem["kind"] for problem in found["problems"]] == ["unreadable"] * 3


def test_the_findings_are_json_where_that_is_asked_for() -> None:
    found = Ran("plan", "check", "rules.toml", "--json").json
    assert found["rules"] == 3
    (problem,) = found["problems"]
    assert {key: problem[key] for key in ("path", "line", "rule", "kind")} == {
        "path": "rules.toml",
        "line": 8,
        "rule": "german essays",
        "kind": "shadowed",
    }


def test_the_rules_of_a_planner_are_checked_too(tmp_path: Path) -> None:
    code = "from steer_llm_sdk.orchestration.planning import *\nplanner = RuleBasedPlanner([PlanningRule('mute')])\n"
    (tmp_path / "mute.py").write_text(code, encoding="utf-8")
    ran = Ran("plan", "check", "--planner", "mute:planner", "--json")
    sys.modules.pop("mute", None)
    assert (ran.code, [problem["kind"] for problem in ran.json["problems"]]) == (2, ["unusable"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check"], "give files of rules, or --planner"),
        (["check", "nowhere.toml"], "No such file"),
        (["check", "rules.toml", "--tools", "nowhere"], "No module named 'nowhere'"),
        (["check", "rules.toml", "--tools", "json:dumps"], "it is a function; name a ToolRegistry, or an orchestrator"),
        (["explain", "x", "--rules", "rules.toml", "--planner", "a:b"], "give rules by files or by a planner"),
    ],
)
def test_a_check_that_cannot_be_made_says_so(arguments: list[str], said: str) -> None:
    ran = Ran("plan", *arguments)
    assert ran.code in (1, 2)
    assert said in ran.err


# plan explain


def test_a_request_is_explained_by_rules_from_a_file() -> None:
    asked = '{"type": "essay", "tenant": "acme"}'
    ran = Ran("plan", "explain", asked, "--rules", "rules.toml", "--tools", "my_tools")
    assert ran.rows[0] == "reader: Matched rule: essays"
    assert "essays 0 decides for writer, reader" in ran.rows
    assert "policy 0 forbids writer" in ran.rows
    assert "writer 2.0 ? ? rule policy forbids it" in ran.rows


@pytest.mark.parametrize("name", ["registry", "orchestrator"])
def test_tools_of_a_registry_of_ones_own_are_named_with_it(name: str, tmp_path: Path) -> None:
    own = TOOLS.replace("get_global_registry()", "registry").replace(
        "import get_global_registry", "import ToolRegistry"
    )
    own = own.replace("\nfor tool", "\nregistry = ToolRegistry()\nfor tool")
    own += "\nfrom steer_llm_sdk import ReliableOrchestrator\norchestrator = ReliableOrchestrator(registry=registry)\n"
    (tmp_path / "my_tools.py").write_text(own, encoding="utf-8")
    tools = ("--tools", f"my_tools:{name}")
    assert "writer" in Ran("tools", "list", *tools).out
    ran = Ran("plan", "explain", '{"type": "essay", "tenant": "acme"}', "--rules", "rules.toml", *tools)
    assert ran.rows[0] == "reader: Matched rule: essays"


def test_a_restriction_that_leaves_nobody_is_said_to_be_what_decides(tmp_path: Path) -> None:
    rule = '\n[[rule]]\nname = "nobody"\nwhen = { tenant = "acme" }\nrestrict = "lektor"\n'
    (tmp_path / "rules.toml").write_text(RULES + rule, encoding="utf-8")
    asked = '{"type": "essay", "tenant": "acme"}'
    ran = Ran("plan", "explain", asked, "--rules", "rules.toml", "--tools", "my_tools")
    assert ran.code == 2
    assert any(row.startswith("nobody 0 leaves only lektor") for row in ran.rows)
    assert any(row.startswith("policy 0 forbids writer") for row in ran.rows)
    assert any("matches for writer, reader; none of its tools can serve" in row for row in ran.rows)
    assert "another one decides" not in ran.out


def test_what_was_seen_of_a_tool_is_shown(tmp_path: Path) -> None:
    code = """
from steer_llm_sdk import get_global_registry
from steer_llm_sdk.orchestration.planning import RuleBasedPlanner
from steer_llm_sdk.testing import ScriptedTool

get_global_registry().register_tool(ScriptedTool("reader"))
planner = RuleBasedPlanner()
for _ in range(30):
    planner.statistics.record(None, "reader", "1.0.0", succeeded=True, cost_usd=0.25, duration_ms=100)
"""
    (tmp_path / "seen.py").write_text(code, encoding="utf-8")
    ran = Ran("plan", "explain", "x", "--planner", "seen:planner")
    sys.modules.pop("seen", None)
    assert "reader 1.0.0 $0.25 0.1 s 97%, 30 runs seen selected" in ran.rows


def test_of_many_rules_those_are_shown_that_were_looked_at(tmp_path: Path) -> None:
    many = "".join(f'[[rule]]\nname = "r{n}"\nwhen.type = "k{n}"\npin = "reader"\n' for n in range(200))
    (tmp_path / "many.toml").write_text(many, encoding="utf-8")
    ran = Ran("plan", "explain", '{"type": "k7"}', "--rules", "many.toml", "--tools", "my_tools")
    assert "r7 0 decides for reader" in ran.rows
    assert not any(row.startswith("r8 ") for row in ran.rows)
    assert any(row.startswith("199 more rules were not looked at") for row in ran.rows)
    account = Ran("plan", "explain", '{"type": "k7"}', "--rules", "many.toml", "--json").json
    assert [rule["name"] for rule in account["rules"] if rule["looked_at"]] == ["r7"]


# tools


def test_each_version_is_listed_with_how_far_it_is_released() -> None:
    Ran("tools", "canary", "writer", "2.0", "0.1", "--key", "user")
    Ran("tools", "deprecate", "writer", "1.0", "--since", "2026-01-01", "--sunset", "2027-01-01", "--successor", "w")
    Ran("tools", "canary", "writer", "3.0", "0")
    ran = Ran("tools", "list", "--versions", "--tools", "my_tools")
    text = " ".join(ran.rows)
    assert "reader 1.0.0 active" in text
    assert "writer 3.0 canary for 0 of callers by tenant; not registered here" in text
    assert "writer 2.0 canary for 0.1 of callers by user" in text
    assert "writer 1.0 deprecated since 2026-01-01 sunset 2027-01-01 successor w" in text
    found = Ran("tools", "list", "--versions", "--tools", "my_tools", "--json").json
    assert {
        "tool": "writer",
        "version": "2.0",
        "registered": True,
        "state": "canary",
        "share": 0.1,
        "key": "user",
    } in found


def test_a_version_is_promoted_and_what_it_was_is_said() -> None:
    Ran("tools", "canary", "writer", "2.0", "0.1")
    ran = Ran("tools", "promote", "writer", "2.0")
    assert (ran.code, ran.out) == (0, "writer@2.0: active, was canary for 0.1 of callers by tenant (releases.toml)\n")
    assert "writer" not in Path("releases.toml").read_text(encoding="utf-8")


def test_a_deprecation_begins_today_unless_it_is_said() -> None:
    told = Ran("tools", "deprecate", "writer", "1.0", "--json").json
    assert told["is"] == {"state": "deprecated", "since": str(date.today())}
    assert (told["was"], told["file"]) == ({"state": "active"}, "releases.toml")


def test_the_file_is_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_RELEASES", str(tmp_path / "by_variable.toml"))
    Ran("tools", "canary", "writer", "2.0", "0.1")
    Ran("tools", "canary", "writer", "2.0", "0.1", "--releases", "by_option.toml")
    assert {path.name for path in tmp_path.glob("by_*")} == {"by_variable.toml", "by_option.toml"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["canary", "writer", "2.0", "1.5"], "share: 1.5 cannot be used; give a number from 0 to 1"),
        (["deprecate", "writer", "1.0", "--sunset", "soon"], "--sunset: 'soon' cannot be used; write a day"),
        (
            ["deprecate", "writer", "1.0", "--since", "2027-01-01", "--sunset", "2026-01-01"],
            "--sunset: '2026-01-01' cannot be used; give a day from 2027-01-01 on",
        ),
        (["list", "--tools", "nowhere"], "No module named 'nowhere'"),
        (["promote", "writer"], "Missing argument 'VERSION'"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], said: str) -> None:
    ran = Ran("tools", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert not Path("releases.toml").exists()


def test_a_file_that_is_broken_is_left_as_it_is() -> None:
    Path("releases.toml").write_text("broken", encoding="utf-8")
    ran = Ran("tools", "canary", "writer", "2.0", "0.1")
    assert ran.code == 2
    assert "it is not TOML" in ran.err
    assert Path("releases.toml").read_text(encoding="utf-8") == "broken"


def test_a_name_that_no_tool_has_yet_is_warned_of_and_one_that_is_installed_or_written_is_not() -> None:
    warned = Ran("tools", "promote", "nobody", "1.0")
    assert (warned.code, "no tool 'nobody' is installed, nor is there one in releases.toml" in warned.err) == (0, True)
    assert Ran("tools", "promote", "text_analyzer", "1.0").err == ""
    Ran("tools", "canary", "writer", "2.0", "0.1")
    assert Ran("tools", "promote", "writer", "2.0").err == ""


def test_what_a_module_prints_is_not_in_the_json() -> None:
    Path("loud.py").write_text("print('loud')\nfrom my_tools import *\n", encoding="utf-8")
    for command in (["tools", "list"], ["plan", "explain", "q"]):
        ran = Ran(*command, "--tools", "loud", "--json")
        assert (ran.code, bool(ran.json)) == (0, True)
        sys.modules.pop("loud", None)
