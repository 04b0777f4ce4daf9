"""The service over real HTTP on this machine, in a thread of the tests, set up as `steer-llm serve` does."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn

from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.reliability import RetryPolicy
from steer_llm_sdk.service import create_app
from steer_llm_sdk.service._server import PatientProtocol

CERTIFICATES = ssl.create_default_context()
Refused = Callable[[str, bytes], dict[str, Any]]
QUICK = RetryPolicy(initial_delay=0.01, max_delay=5.0)


@dataclass(frozen=True)
class Service:
    url: str
    orchestrator: ReliableOrchestrator

    def client(self, key: str | None = None) -> httpx2.Client:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=10, verify=CERTIFICATES)

    def ended(self, client: httpx2.Client, run_id: str) -> dict[str, Any]:
        """The run, once it is over: its events end then."""
        client.get(f"/v1/runs/{run_id}/events")
        shown: dict[str, Any] = client.get(f"/v1/runs/{run_id}").json()
        return shown


@contextmanager
def serving(
    *tools: Tool,
    retry: RetryPolicy = QUICK,
    reliability: ReliabilityConfig | None = None,
    http: Any = PatientProtocol,
    **options: Any,
) -> Iterator[Service]:
    registry = ToolRegistry()
    for tool in tools:
        registry.register_tool(tool)
    config = reliability or ReliabilityConfig(retry_policy=retry)
    orchestrator = ReliableOrchestrator(reliability_config=config, registry=registry)
    app = create_app(orchestrator, **options)
    setup = uvicorn.Config(app, port=0, log_level="warning", http=http, ws="none", server_header=False)
    listener = setup.bind_socket()
    server = uvicorn.Server(setup)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < end
        time.sleep(0.005)
    try:
        yield Service(f"http://127.0.0.1:{listener.getsockname()[1]}", orchestrator)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()
