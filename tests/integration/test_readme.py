"""What the README says works, works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("  #")[0].strip() for line in README.splitlines() if line.startswith("    .venv/bin/steer-llm")
]
SERVES_FOR_EVER = ("simulate", "record", "serve")


def test_its_snippet_runs_as_it_stands() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "succeeded {'answer': '[45, 3, 61, 39, 27, 47]'} 0.9375\n"


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.split()[1].startswith(SERVES_FOR_EVER)])
def test_its_commands_run_as_they_stand(command: str) -> None:
    _, *arguments = shlex.split(command)
    subprocess.run([sys.executable, "-m", "steer_llm_sdk.cli", *arguments], cwd=ROOT, timeout=60, check=True)


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).is_file()]


def test_it_is_one_screen() -> None:
    assert len(README.splitlines()) <= 50
