"""Canaries that are judged by the runs of several processes, on the real servers."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

RUNS = """
import asyncio, sys
from steer_llm_sdk import ReliableOrchestrator, ToolRegistry
from steer_llm_sdk.testing import ScriptedTool

class Tool(ScriptedTool):
    async def execute(self, request, options=None, event_manager=None):
        if self.version == "2.0":
            raise RuntimeError("a bad build")
        return "fine"

async def main(url, first, callers):
    tools = ToolRegistry()
    for version in ("1.0", "2.0"):
        tools.register_tool(Tool("t", version=version))
    tools.canary("t", "2.0", 0.5)
    tools.share_canaries(url)
    await tools.aclose()  # What the others have seen is known before the first run.
    async with ReliableOrchestrator(registry=tools) as runner:
        served = []
        for n in range(first, first + callers):
            options = {"tenant": f"c{n}", "enable_circuit_breaker": False, "retry_on_failure": False}
            served.append((await runner.run("q", "t", options=options)).metadata["tool_version"])
    await tools.aclose()
    print(served.count("2.0"), tools.release_of("t", "2.0").share)

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'canaries.db'}"
    return str(request.getfixturevalue(f"{request.param}_url"))


def served_by_a_process(url: str, first: int, callers: int = 45) -> tuple[int, float]:
    """How many callers got the canary, and its share in the end."""
    command = [sys.executable, "-c", textwrap.dedent(RUNS), url, str(first), str(callers)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    served, share = ran.stdout.split()
    return int(served), float(share)


def test_a_canary_that_no_process_has_seen_enough_of_is_taken_back_by_what_all_have_seen(
    url: str, tmp_path: Path
) -> None:
    alone = f"sqlite:///{tmp_path / 'alone.db'}"
    served, share = served_by_a_process(alone, 45)
    assert (served < 30, share) == (True, 0.5)
    first, share = served_by_a_process(url, 0)
    assert (first < 30, share) == (True, 0.5)
    then, share = served_by_a_process(url, 45)
    assert (first + then <= 45, then < served, share) == (True, True, 0.0)
    last, share = served_by_a_process(url, 90)
    assert (last <= 1, share) == (True, 0.0)
