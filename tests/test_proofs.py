"""The defects that `prove planted`, `planning` and `pythons` plant can be planted, and their tests are there.

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
DEFECTS = [defect for name in ("planted", "planning", "pythons") for defect in _proof(name).DEFECTS]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_what_a_planted_defect_replaces_is_there_once_and_so_are_its_tests(defect: Any) -> None:
    _, text, planted = PLANTED.applied(defect, ROOT / "src")
    assert planted != text
    assert [path for path in PLANTED.tests_for(defect) if not (ROOT / path).exists()] == []
