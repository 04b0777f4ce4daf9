"""Runs the experiments in virtual time and prints what each has found; exits with 1 where a mark is missed.

    python benchmarks/sim/run.py [--only NAME] [--plots FOLDER]

Each experiment compares the library with what else is done. At least one of the others must miss the mark, or the
experiment would show nothing; that is checked too. Same seeds, same figures.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from kit import Finding

EXPERIMENTS = (
    "hedging",
    "hedging_under_load",
    "retry_storm",
    "dead_provider",
    "partial_outage",
    "retry_after",
    "recovery",
    "jitter",
)
IMAGES = Path(__file__).parents[2] / "docs" / "img"


def table(finding: Finding) -> str:
    head = ["", *finding.columns, "mark held"]
    rows = [[arm.name, *arm.cells, "yes" if arm.held else "NO"] for arm in finding.arms]
    return "\n".join((_line(head), _line(["---"] + ["---:"] * (len(head) - 1)), *map(_line, rows)))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def report(finding: Finding) -> str:
    verdict = "held" if finding.held else "MISSED"
    if not finding.can_fail:
        verdict += "; SHOWS NOTHING: all of the others hold it too"
    images = "\n".join(f"![{finding.title}](img/{name})" for name in finding.charts)
    mark = f"Mark: {finding.mark}: **{verdict}**."
    return "\n\n".join((f"## {finding.title}", f"{finding.setting}.", mark, table(finding), images)) + "\n"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=EXPERIMENTS, action="append", help="may be repeated")
    options.add_argument("--plots", type=Path, default=IMAGES, help="where the SVGs go")
    given = options.parse_args()
    given.plots.mkdir(parents=True, exist_ok=True)
    names, held, begun = given.only or EXPERIMENTS, 0, time.monotonic()
    for name in names:
        finding: Finding = importlib.import_module(name).experiment()
        print(report(finding), flush=True)
        for file, svg in finding.charts.items():
            (given.plots / file).write_text(svg, encoding="utf-8")
        held += finding.held and finding.can_fail
    print(f"{held} of {len(names)} marks held")
    print(f"in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return 0 if held == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
