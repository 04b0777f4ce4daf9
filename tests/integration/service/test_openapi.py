"""What schemathesis makes up from the service's own description never makes it fail, nor answer what is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from served import Service

from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.testing import OK, ScriptedTool, err

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
CASES = 12
"""Made up for each operation, besides those that cover each keyword of its schema."""


@pytest.mark.timeout(180)  # Some five hundred requests, on a machine that may be busy.
def test_every_request_that_fits_or_breaks_the_description_has_an_answer_that_is_described(
    serve: Callable[..., Service], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tool = ScriptedTool("t", err(503), OK({"answer": 1}), OK(), err(ValueError("no")), OK())
    service = serve(tool, SimpleBundleTool(), simulated=True)
    with service.client() as client:
        client.post("/v1/runs", json={"request": "x", "tool_name": "t"})
    report = tmp_path / "report.json"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
            *("--checks", CHECKS, "--seed", "1", "--max-examples", str(CASES), "--no-shrink"),
            *("--request-timeout", "60", "--continue-on-failure", "--warnings", "off"),
            *("--report", "json", "--report-json-path", str(report)),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr
    told = json.loads(report.read_text())
    assert (told["complete"], told["failures"], told["errors"]) == (True, [], [])
    assert told["operations"]["tested"] == told["operations"]["total"] >= 17
    assert told["test_cases"]["generated"] > 300
    assert told["valid_rates"]["POST /v1/runs"]["fuzzing"]["accepted"] > 0
    assert [record.getMessage() for record in caplog.records if record.name.startswith("steer_llm_sdk.service")] == []
