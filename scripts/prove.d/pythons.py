"""The tests of runs and of their policies on each newer Python that is here, where a task takes its first step at once.

    sh scripts/prove pythons [PYTHON…]

PYTHON: a command or a path; without any, those of python3.13 and python3.14 that start. Each gets a copy of this
project with everything installed anew. Then defects are planted that only such a Python can show.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from planted import DEADLINE, KEYS, ROOT, Planted, plant_each

TESTS = ("tests/unit/reliability", "tests/unit/orchestration", "tests/unit/testing", "tests/contract", "tests/compose")
MORE = ("tests/invariants",)
"""Searches of many histories: they must pass; no defect is planted for them."""

DEFECTS = (
    Planted(
        "the first step waits for a turn of the loop after all",
        DEADLINE,
        '_EAGER: Mapping[str, Any] = {"eager_start": True} if sys.version_info >= (3, 13) else {}\n',
        "_EAGER: Mapping[str, Any] = {}\n",
        TESTS,
    ),
    Planted(
        "work that has ended at its first step is waited for",
        DEADLINE,
        "        if not task.done():  # Work that never waits needs no timer.\n",
        "        if True:\n",
        TESTS,
    ),
    Planted(
        "keyed work that has ended at its first step is still under way",
        KEYS,
        "    if not task.done():  # It is, for work that never waits where a task takes its first step at once.\n",
        "    if True:\n",
        TESTS,
    ),
    Planted(
        "keyed work is not known in its first step",
        KEYS,
        "        hangar.flights[work.key] = flight\n    try:\n",
        "    try:\n",
        TESTS,
    ),
    Planted(
        "run after run of no time does not let the loop turn",
        DEADLINE,
        "    return known\n",
        "    return False\n",
        TESTS,
    ),
    Planted(
        "one that answers at once beside another is not known to its race",
        "reliability/silence.py",
        "        begin = self._loop.create_task if self._running else partial(new_task, self._loop)\n",
        "        begin = partial(new_task, self._loop)\n",
        TESTS,
    ),
)


def starts(python: str) -> str | None:
    """Its version, as "3.13.0"; None where it does not start, or has no venv."""
    program = "import ensurepip, platform, venv; print(platform.python_version())"
    try:
        ran = subprocess.run([python, "-c", program], capture_output=True, text=True)
    except OSError:
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def prove_on(python: str, folder: Path) -> int:
    """The tests and the defects with that Python, in a copy of the project; the exit code."""
    copy = folder / "copy"
    ignored = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, copy, ignore=ignored)
    subprocess.run(["sh", "scripts/setup", "dev"], cwd=copy, env={**os.environ, "PYTHON": python}, check=True)
    here = [str(copy / ".venv/bin/python"), str(copy / "scripts/prove.d/pythons.py"), "--here"]
    return subprocess.run(here, cwd=copy).returncode


def here() -> int:
    """The same with the Python that runs this."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", *TESTS, *MORE], cwd=ROOT, capture_output=True, text=True
    )
    print(f"Python {sys.version.split()[0]}: {ran.stdout.strip().rpartition(chr(10))[2]}", flush=True)
    if ran.returncode:
        print("\n".join(line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))))
        return ran.returncode
    with tempfile.TemporaryDirectory() as folder:
        return plant_each(DEFECTS, Path(folder))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("pythons", nargs="*", metavar="PYTHON", default=["python3.13", "python3.14"])
    options.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.here:
        return here()
    found = {python: version for python in given.pythons if (version := starts(python)) is not None}
    newer = [python for python, version in found.items() if tuple(map(int, version.split(".")[:2])) >= (3, 13)]
    if not newer:
        print(f"none of {', '.join(given.pythons)} is a Python from 3.13 on that starts here; name one by its path")
        return 1
    failed = 0
    for python in newer:
        with tempfile.TemporaryDirectory() as folder:
            failed |= prove_on(python, Path(folder))
    return failed


if __name__ == "__main__":
    sys.exit(main())
