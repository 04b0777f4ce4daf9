"""What the tests reach of the engine: its lines, and the ways out of its branches. Fails where 5 % or more is missed.

    .venv/bin/python scripts/covered.py [--data FILE]

The tests run in one process, at low priority; those that drive the engine in another process count for nothing here.
`--data` reads what an earlier run has kept, and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WANTED = 95.0
PACKAGES = {
    "orchestration": ("src/steer_llm_sdk/orchestration/",),
    "planning": ("src/steer_llm_sdk/orchestration/planning/",),
    "reliability": ("src/steer_llm_sdk/reliability/",),
}
"""A file counts for the longest of these paths that it is in."""
TESTS = (
    *("tests/unit", "tests/contract", "tests/compose", "tests/invariants"),
    *("tests/integration/shared", "tests/integration/stores", "tests/integration/tools", "tests/integration/cli"),
)


def kept_by_a_run(data: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--cov-branch", "--cov-report="]
    command += [f"--cov=steer_llm_sdk.{name}" for name in ("orchestration", "reliability")]
    os.nice(10)
    subprocess.run([*command, *TESTS], cwd=ROOT, env={**os.environ, "COVERAGE_FILE": str(data)}, check=True)


def found_in(data: Path) -> Mapping[str, Counter[str]]:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, "-m", "coverage", "json", "-q", f"--data-file={data}", "-o", report.name]
        subprocess.run(command, cwd=ROOT, check=True)
        files: Mapping[str, Any] = json.load(report)["files"]
    sums: dict[str, Counter[str]] = {name: Counter() for name in PACKAGES}
    for file, found in files.items():
        within = [(len(path), name) for name, paths in PACKAGES.items() for path in paths if file.startswith(path)]
        if within:
            sums[max(within)[1]].update({name: count for name, count in found["summary"].items() if type(count) is int})
    return sums


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = given.data or Path(folder, "data")
        if given.data is None:
            kept_by_a_run(data)
        sums = found_in(data)
    print("| package | lines | ways out of branches | together |\n|---|---|---|---|")
    missed = False
    for name, found in sums.items():
        lines, branches = (
            (found["covered_lines"], found["num_statements"]),
            (found["covered_branches"], found["num_branches"]),
        )
        shares = [100 * got / of for got, of in (lines, branches, (lines[0] + branches[0], lines[1] + branches[1]))]
        missed |= min(shares) < WANTED
        print(
            f"| `{name}` | {shares[0]:.1f} % of {lines[1]} | {shares[1]:.1f} % of {branches[1]} | {shares[2]:.1f} % |"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
