"""Every snippet of the documentation runs and prints what it says; every link leads somewhere; every name is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from steer_llm_sdk.cli.exits import Exit
from steer_llm_sdk.errors import ErrorCategory, OrchestratorError, ProviderError
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration import OrchestrationOutput
from steer_llm_sdk.orchestration._call import Attempt
from steer_llm_sdk.orchestration.models import BundleSummary
from steer_llm_sdk.orchestration.tools import LLMBundleTool
from steer_llm_sdk.reliability import CircuitBreaker, RetryPolicy
from steer_llm_sdk.reliability.budget import charge_of_failure
from steer_llm_sdk.reliability.circuit_breaker import Outcome
from steer_llm_sdk.reliability.classify import classify

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted((*DOCS.glob("*.md"), ROOT / "README.md"))

RUN = ("python", "sh")
NOT_RUN = ("text", "toml", "json", "mermaid", "output")
"""`output` is what the snippet before it prints."""

INTERPRETER = """
import contextlib, io, json, sys
names = {"__name__": "__main__"}
for line in sys.stdin:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(json.loads(line), "snippet", "exec"), names)
    print(json.dumps(out.getvalue()), flush=True)
"""
STAY_HERE = """
import ipaddress, sys
def hook(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and not ipaddress.ip_address(args[1][0]).is_loopback:
        raise RuntimeError(f"a snippet tried to reach {args[1][0]}")
sys.addaudithook(hook)
"""


@dataclass(frozen=True)
class Fence:
    line: int
    kind: str
    text: str


def fences(page: Path) -> Iterator[Fence]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield Fence(text.count("\n", 0, found.start()) + 1, found[1], found[2])


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Walkthrough:
    """The snippets of one page, in order: the Python ones share their names, all of them a folder."""

    def __init__(self, folder: Path) -> None:
        (folder / "sitecustomize.py").write_text(STAY_HERE, encoding="utf-8")
        self._folder = folder
        bin_ = Path(sys.executable).parent
        self._env = {"PATH": f"{bin_}:{os.environ['PATH']}", "HOME": str(folder), "PYTHONPATH": str(folder)}
        self._python = subprocess.Popen(
            [sys.executable, "-c", INTERPRETER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env=self._env,
            text=True,
        )

    def __enter__(self) -> Walkthrough:
        return self

    def __exit__(self, *_: object) -> None:
        self._python.communicate(timeout=60)

    def run(self, fence: Fence) -> str:
        return self._run_python(fence.text) if fence.kind == "python" else self._run_shell(fence.text)

    def _run_python(self, code: str) -> str:
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps(code) + "\n")
        self._python.stdin.flush()
        printed = self._python.stdout.readline()
        assert printed, "the snippet raised; its traceback is on stderr"
        return str(json.loads(printed))

    def _run_shell(self, commands: str) -> str:
        ran = subprocess.run(
            ["sh", "-eu", "-c", commands],
            cwd=self._folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


@pytest.mark.parametrize("page", [page for page in PAGES if any(f.kind in RUN for f in fences(page))], ids=name_of)
def test_every_snippet_of_the_page_runs_and_prints_what_it_says(page: Path, tmp_path: Path) -> None:
    printed = ""
    with Walkthrough(tmp_path) as walkthrough:
        for fence in fences(page):
            if fence.kind in RUN:
                printed = walkthrough.run(fence)
            elif fence.kind == "output":
                assert printed == fence.text, f"{page.name}:{fence.line}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_fence_says_whether_it_runs(page: Path) -> None:
    kinds = {fence.kind for fence in fences(page)}
    assert kinds <= {*RUN, *NOT_RUN}
    assert page.read_text(encoding="utf-8").count("\n```") % 2 == 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://)([^)#]*)(#[^)]*)?\)", text)
    assert [path for path, _ in links if path and not (page.parent / path).exists()] == []
    anchors = {f"#{_anchor(title)}" for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    assert [anchor for path, anchor in links if not path and anchor not in anchors] == []


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_the_index_has_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and f"({page.name})" not in index] == []


def words_of(name: str) -> set[str]:
    """What stands in backticks on a page."""
    text = (DOCS / name).read_text(encoding="utf-8")
    return {word for quoted in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"[\w.]+", quoted)}


def test_every_error_is_explained() -> None:
    assert LLMBundleTool  # loads the module of the errors that it alone raises
    names = {error.__name__ for base in (OrchestratorError, ProviderError) for error in _below(base)}
    ours = {name for name in names if not name.startswith("_")}
    assert ours - words_of("errors.md") == set()
    assert {category.value for category in ErrorCategory} - words_of("errors.md") == set()


def _below(base: type[Exception]) -> Iterator[type[Exception]]:
    for error in base.__subclasses__():
        if error.__module__.startswith("steer_llm_sdk."):
            yield error
            yield from _below(error)


def test_the_table_of_codes_says_what_the_code_does() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    written = {
        row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \| ([\w ]+) \|$", text, re.MULTILINE)
    }
    assert {row: what_happens(error) for row, error in one_of_each().items()} == written


def one_of_each() -> dict[str, ProviderError]:
    kinds = [kind for kind in _below(ProviderError) if kind.CATEGORY is not None and issubclass(kind, ProviderError)]
    by_category = {kind.CATEGORY: kind for kind in reversed(kinds) if kind.__base__ is ProviderError}
    return {each.value: by_category.get(each, ProviderError)("x", "p") for each in ErrorCategory}


def what_happens(error: ProviderError) -> tuple[str, str, str]:
    worst = Amount(100, 1.0)
    charged = {worst: "the worst case", Amount(): "nothing"}[charge_of_failure(error, worst)]
    counts = CircuitBreaker("p").judge(error) is Outcome.FAILURE
    return ("yes" if RetryPolicy().allows(classify(error)) else "no", "yes" if counts else "no", charged)


def test_every_exit_code_is_explained() -> None:
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert [code for code in Exit if f"| {int(code)} |" not in text] == []


def test_every_field_of_an_output_is_explained() -> None:
    words = words_of("reading-an-output.md")
    assert OrchestrationOutput.model_fields.keys() - words == set()
    assert Attempt.__annotations__.keys() - words == set()
    shown = {word.removeprefix("summary.") for word in words}
    assert BundleSummary.model_fields.keys() - shown == set()
