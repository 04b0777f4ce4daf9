"""The defects that `prove planted` and `prove planning` plant can be planted, and the tests that notice them are there.

The proofs take long and are run by hand; that they have lost what they replace is seen here.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def _proof(name: str) -> Any:
    spec = spec_from_file_location(f"prove_{name}", ROOT / "scripts" / "prove.d" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLANTED = _proof("planted")
PLANNING = _proof("planning")


@pytest.mark.parametrize("defect", [*PLANTED.DEFECTS, *PLANNING.DEFECTS], ids=lambda defect: defect.name)
def test_what_a_planted_defect_replaces_is_there_once_and_so_are_its_tests(defect: Any) -> None:
    _, text, planted = PLANTED.applied(defect, ROOT / "src")
    assert planted != text
    assert [path for path in PLANTED.tests_for(defect) if not (ROOT / path).exists()] == []
