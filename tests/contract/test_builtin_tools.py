"""**Built-in and installed tools never displace a user's.**

Installed packages are found by their entry points; a package made for the test is put on the path of a fresh process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import steer_llm_sdk

TOOLS = """
from steer_llm_sdk.testing import OK, ScriptedTool

class Installed(ScriptedTool):
    def __init__(self):
        super().__init__("installed_tool", OK("installed"), description="came with a package")

made = ScriptedTool("made_tool", OK("made"))
no_tool = dict
"""
ENTRY_POINTS = """
[steer_llm_sdk.tools]
installed_tool = acme_tools:Installed
made_tool = acme_tools:made
broken_tool = acme_tools:nothing_there
missing_tool = no_such_package:Tool
no_tool = acme_tools:no_tool
text_analyzer = steer_llm_sdk.orchestration.tools.text_analyzer:TextAnalyzer
"""
BEGIN = """
import asyncio, json
from steer_llm_sdk import Orchestrator, ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.testing import OK, ScriptedTool

registry = ToolRegistry()

def run(runner, *names):
    return asyncio.run(runner.run("some text about tools", *names))

def told(**facts):
    print(json.dumps(facts))
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with one installed package that declares tools, three of which cannot be loaded."""
    (tmp_path / "acme_tools.py").write_text(TOOLS)
    info = tmp_path / "acme_tools-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-tools\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return tmp_path


def facts(packages: Path, script: str) -> tuple[dict[str, Any], str]:
    """What a fresh process with these packages on its path tells, and what it logged."""
    source = Path(steer_llm_sdk.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": f"{source}:{packages}", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_they_are_found_by_name_when_the_registry_has_none_of_that_name(packages: Path) -> None:
    told, _ = facts(
        packages,
        """
        registry.register_tool(ScriptedTool("mine"))
        outputs = [run(kind(registry=registry), name)
                   for kind in (Orchestrator, ReliableOrchestrator) for name in ("installed_tool", "made_tool")]
        told(contents=[output.content for output in outputs], listed=list(registry.list_tools()),
             has=registry.has_tool("installed_tool"))
        """,
    )
    assert told == {"contents": ["installed", "made"] * 2, "listed": ["mine"], "has": True}


def test_they_are_planned_only_when_nothing_else_is_registered(packages: Path) -> None:
    told, _ = facts(
        packages,
        """
        runner = ReliableOrchestrator(registry=registry)
        alone = run(runner)
        registry.register_tool(ScriptedTool("mine", OK("mine")))
        beside = run(runner)
        registry.unregister_tool("mine")
        again = run(runner)
        told(alone=alone.metadata["tool_name"], beside=beside.content, again=again.metadata["tool_name"])
        """,
    )
    assert told["alone"] in ("installed_tool", "made_tool", "text_analyzer")
    assert told["beside"] == "mine"
    assert told["again"] == told["alone"]


def test_clear_does_not_lose_them(packages: Path) -> None:
    told, _ = facts(
        packages,
        """
        registry.register_tool(ScriptedTool("mine"))
        for clear in (registry.clear, registry._tools.clear):
            clear()
            assert run(Orchestrator(registry), "installed_tool").content == "installed"
        told(removed=registry.unregister_tool("installed_tool"), still=registry.has_tool("installed_tool"))
        """,
    )
    assert told == {"removed": False, "still": True}


def test_registering_a_tool_of_the_same_name_simply_wins(packages: Path) -> None:
    told, _ = facts(
        packages,
        """
        registry.register_tool(ScriptedTool("text_analyzer", OK("mine"), version="0.0.1"))
        mine = run(Orchestrator(registry), "text_analyzer").content
        registry.unregister_tool("text_analyzer")
        told(mine=mine, theirs=run(Orchestrator(registry), "text_analyzer").content != "mine")
        """,
    )
    assert told == {"mine": "mine", "theirs": True}


def test_one_that_cannot_be_loaded_takes_no_other_with_it_and_is_named_in_the_log(packages: Path) -> None:
    told, log = facts(
        packages,
        """
        content = run(Orchestrator(registry), "installed_tool").content
        broken = ("broken_tool", "missing_tool", "no_tool")
        told(content=content, has={name: registry.has_tool(name) for name in broken})
        """,
    )
    assert told == {"content": "installed", "has": {"broken_tool": False, "missing_tool": False, "no_tool": False}}
    assert all(name in log for name in ("broken_tool", "missing_tool", "no_tool"))


def test_a_tool_that_nobody_has_is_told_with_the_names_of_all_there_are(packages: Path) -> None:
    told, _ = facts(
        packages,
        """
        registry.register_tool(ScriptedTool("mine"))
        try:
            run(Orchestrator(registry), "nobody")
        except ValueError as error:
            told(message=str(error))
        """,
    )
    for name in ("mine", "installed_tool", "made_tool", "text_analyzer"):
        assert name in told["message"]
