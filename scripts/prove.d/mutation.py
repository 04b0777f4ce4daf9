"""The reducers, changed a little in one place at a time by mutmut: the fast unit tests must notice each change.

    sh scripts/prove mutation [MODULE…] [--list]

It works on a copy, on one core, at low priority. A change that no test notices survives. Those that change nothing
which anybody could see stand in EQUIVALENT, each with the reason; any other survivor is a gap in the tests. So is a
reason that is needed no more. mutmut does not change properties, nor the defaults of fields and constants of a module.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "steer_llm_sdk.reliability"
KILLED, SURVIVED, NO_TEST = (1, 3), (0,), (5, 33)
TIMED_OUT = (-24, 24, 36, 152, 255)
"""What mutmut notes of a change: the exit code of the tests, or of what stopped them."""

# What takes long comes last: tests with a loop, then properties, with few examples that are the same in every run.
CONFTEST = '''
import gc

_configure = pytest_configure


def pytest_configure(config: pytest.Config) -> None:
    _configure(config)
    gc.freeze()  # pytest collects garbage several times in a run; what is there by now is none.
    settings.register_profile("mutation", deadline=None, derandomize=True, database=None, max_examples=30)
    settings.load_profile("mutation")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: [item.get_closest_marker(name) is not None for name in ("hypothesis", "asyncio")])
'''


@dataclass(frozen=True)
class Module:
    """`tests` below tests/unit/reliability, without `test_` and `.py`. `only`: the classes and functions that count."""

    name: str
    tests: Sequence[str]
    only: Sequence[str] = ()

    @property
    def file(self) -> str:
        return f"src/{PACKAGE.replace('.', '/')}/{self.name.replace('.', '/')}.py"

    @property
    def patterns(self) -> list[str]:
        """Of the names that mutmut gives to the changes: `x_function` and `xǁClassǁmethod`, with a number."""
        names = [f"xǁ{each}ǁ*" if each.lstrip("_")[0].isupper() else f"x_{each}__mutmut_*" for each in self.only]
        return [f"{PACKAGE}.{self.name}.{each}" for each in names or ["x*"]]


MODULES = (
    Module("circuit", ("circuit_reducer", "circuit_breaker_object")),
    Module("tally", ("tally", "circuit_reducer", "circuit_breaker_object")),
    Module(
        "budget",
        ("ledger", "budget_accounts"),
        ("Budget", "picos", "Claim", "Account", "window", "excess"),
    ),
    Module("retry_budget", ("retry_budget",)),
    Module("retry", ("retry_policy", "retry_after", "policies_alone"), ("RetryPolicy", "AttemptLimit")),
    Module("hedging", ("hedging",), ("HedgingPolicy", "Latencies")),
    Module("stores.memory", ("memory_store",)),
    Module(
        "rate_limit",
        ("rate_limit_reducer", "rate_limiter"),
        (
            *("Bucket", "State", "admit", "enqueue", "due_at", "finish", "withdraw"),
            *("block", "heed", "_learned", "advance", "wake_at", "_shorter"),
        ),
    ),
)


@dataclass(frozen=True)
class Change:
    """A line of a function (`Class.method`) and what became of it; lines are joined where it is several."""

    function: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.function}\n    - {self.old}\n    + {self.new}"


EQUIVALENT: dict[str, dict[Change, str]] = {}
"""By module, the changes that nobody could notice, and why."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(each.name for each in MODULES))
    options.add_argument("--list", action="store_true", help="print the equivalent changes with the reasons, and stop")
    given = options.parse_args()
    unknown = set(given.modules) - {each.name for each in MODULES}
    if unknown:
        options.error(f"no such module: {', '.join(sorted(unknown))}")
    chosen = [each for each in MODULES if each.name in given.modules or not given.modules]
    if given.list:
        for module in chosen:
            for change, reason in EQUIVALENT.get(module.name, {}).items():
                print(f"{module.name}: {change}\n    {reason}")
        return 0
    install()
    os.nice(15)
    started, total = time.monotonic(), Counter[str]()
    for module in chosen:
        total += tried(module)
    print(f"in {time.monotonic() - started:.0f} s; equivalent: {total['equivalent']}")
    print(f"caught/planted: {total['killed']}/{total['mutants'] - total['equivalent']}")
    return 1 if total["gaps"] else 0


def install() -> None:
    """mutmut is in no set-up, for nothing but this needs it."""
    if importlib.util.find_spec("mutmut") is not None:
        return
    wanted = ["--require-hashes", "-r", str(ROOT / "requirements/prove.txt")]
    uv = [str(ROOT / ".venv/bin/uv"), "pip", "install", "--quiet", "--system-certs", "--python", sys.executable]
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    if subprocess.run([*uv, *wanted], check=False).returncode:
        subprocess.run([*pip, *wanted], check=True)


def tried(module: Module) -> Counter[str]:
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        prepare(module, copy)
        ended = run_mutmut(copy, "run", "--max-children", "1", *module.patterns)
        meta = json.loads((copy / "mutants" / f"{module.file}.meta").read_text(encoding="utf-8"))
        codes = {
            name: code
            for name, code in meta["exit_code_by_key"].items()
            if any(fnmatch.fnmatch(name, pattern) for pattern in module.patterns)
        }
        if not codes or None in codes.values():
            raise SystemExit(f"{module.name}: mutmut tried nothing, or stopped\n{ended}")
        survivors = [(name, changed(copy, name)) for name, code in codes.items() if code not in (*KILLED, *TIMED_OUT)]
    known = EQUIVALENT.get(module.name, {})
    gaps = [(name, change) for name, change in survivors if change not in known]
    stale = [change for change in known if change not in {change for _, change in survivors}]
    for name, change in gaps:
        print(f"{module.name}: SURVIVED{' (no test runs it)' if codes[name] in NO_TEST else ''}: {change}")
    for change in stale:
        print(f"{module.name}: called equivalent, but did not survive: {change}")
    killed = sum(code in (*KILLED, *TIMED_OUT) for code in codes.values())
    endless = sum(code in TIMED_OUT for code in codes.values())
    print(
        f"{module.name}: {len(codes)} mutants, {killed} killed ({endless} never ended), {len(survivors)} survived, "
        f"{len(survivors) - len(gaps)} of them equivalent, in {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return Counter(
        mutants=len(codes), killed=killed, equivalent=len(survivors) - len(gaps), gaps=len(gaps) + len(stale)
    )


def prepare(module: Module, copy: Path) -> None:
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "tests/conftest.py").open("a", encoding="utf-8") as conftest:
        conftest.write(CONFTEST)
    tests = [f"tests/unit/reliability/test_{name}.py" for name in module.tests]
    settings = {
        "source_paths": ["src"],
        "only_mutate": [module.file],
        # Each worker starts from the tests as they were collected, whatever other runs have done to them.
        "process_isolation": "forkserver",
        # mutmut has a limit of time of its own, and nobody reads what the tests say.
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "--timeout=0", "--tb=no", "--no-summary"],
        "pytest_add_cli_args_test_selection": [path for path in tests if (ROOT / path).exists()],
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (copy / "pyproject.toml").write_text("\n".join([text, "[tool.mutmut]", *lines, ""]), encoding="utf-8")


def run_mutmut(copy: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {ran.returncode}\n{ran.stdout[-4000:]}{ran.stderr}")
    return ran.stdout[-4000:]


def changed(copy: Path, name: str) -> Change:
    found = re.search(r"\.x(?:ǁ(?P<cls>.+)ǁ|_)(?P<function>.+?)__mutmut_\d+$", name)
    assert found is not None, name
    function = found["function"] if found["cls"] is None else f"{found['cls']}.{found['function']}"
    lines = run_mutmut(copy, "show", name).splitlines()
    return Change(function, " ".join(marked("-", lines)), " ".join(marked("+", lines)))


def marked(mark: str, lines: Sequence[str]) -> Iterator[str]:
    """The lines of a difference that have gone, or that have come."""
    for line in lines:
        if line.startswith(mark) and not line.startswith(mark * 3):
            yield line[1:].strip()


if __name__ == "__main__":
    sys.exit(main())
