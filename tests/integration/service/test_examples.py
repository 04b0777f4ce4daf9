"""What is in examples/ runs as it stands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from served import Service
from starlette.testclient import TestClient

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_the_official_client_asks_the_service(serve: Callable[..., Service]) -> None:
    service = serve(simulated=True)
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / "service_client.py"), service.url],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    whole, streamed = ran.stdout.split("\nstreamed: ")
    assert whole.removeprefix("whole: ").strip()
    assert streamed.strip()


def test_an_application_falls_back_to_its_second_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import fastapi_app

    with TestClient(fastapi_app.app) as client:
        told = client.post("/weather", json={"city": "Bonn"}).json()
    assert told == {"city": "Bonn", "weather": "mild, as a rule", "from": "almanac", "tried": ["station", "almanac"]}
