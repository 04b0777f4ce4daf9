"""The notebook of examples/ runs as it stands, and says what is written in it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[3] / "examples" / "evidence.ipynb"


def told(path: Path) -> list[Any]:
    """What each cell of code printed; of a report its titles, for times and widths are never the same twice."""
    found: list[Any] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        outputs = cell.get("outputs", ())
        report = "".join("".join(output.get("data", {}).get("text/html", ())) for output in outputs)
        printed = "".join("".join(output.get("text", ())) for output in outputs)
        if outputs:
            found.append(re.findall("<h[12]>(.*?)</h", report) if report else printed)
    return found


def test_the_notebook_gives_the_outputs_that_it_shows(tmp_path: Path) -> None:
    ran = tmp_path / "ran.ipynb"
    command = [sys.executable, "-W", "ignore", "-m", "jupyter", "execute", str(NOTEBOOK), f"--output={ran}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = told(NOTEBOOK)
    assert len(shown) == 4
    assert len(shown[2]) >= 4
    assert told(ran) == shown


def test_it_names_no_path_of_a_machine_and_holds_no_error() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)
    assert '"output_type": "error"' not in text
    assert "stderr" not in text
