"""What Prometheus gets from /metrics, and who gets it."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from steer_llm_sdk.errors import ProviderUnavailable
from steer_llm_sdk.orchestration import ReliabilityConfig, ReliableOrchestrator, Tool, ToolRegistry
from steer_llm_sdk.reliability import CircuitBreakerConfig, RateLimit, RetryPolicy
from steer_llm_sdk.service import Key, KeyRing, create_app

Samples = dict[str, list[tuple[dict[str, str], float]]]


class Answers(Tool):
    """Answers, after `failures` failures."""

    name = ""

    def __init__(self, name: str, provider: str, failures: int = 0) -> None:
        self.name = name
        self.provider = provider
        self._failures = failures

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        if self._failures:
            self._failures -= 1
            raise ProviderUnavailable("it is down", str(self.provider), 503)
        return {"content": "yes", "usage": {"input_tokens": 3, "output_tokens": 2}, "cost_usd": 0.25}


def orchestrator(*tools: Tool) -> ReliableOrchestrator:
    registry = ToolRegistry()
    for tool in tools:
        registry.register_tool(tool)
    config = ReliabilityConfig(
        retry_policy=RetryPolicy(max_attempts=2, initial_delay=0.001),
        circuit_breaker_configs={"broken": CircuitBreakerConfig(failure_threshold=2)},
        rate_limits={"acme": RateLimit(requests_per_minute=6000)},
    )
    return ReliableOrchestrator(reliability_config=config, registry=registry)


@asynccontextmanager
async def served(runner: ReliableOrchestrator, **more: Any) -> AsyncIterator[httpx2.AsyncClient]:
    app = create_app(runner, **more)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1") as client,
    ):
        yield client


async def run(client: httpx2.AsyncClient, tool: str, **options: Any) -> None:
    answer = await client.post("/v1/runs", json={"request": "q", "tool_name": tool, "options": options})
    assert answer.status_code == 200, answer.text


async def scrape(client: httpx2.AsyncClient) -> Samples:
    """The samples by name, read by the parser of Prometheus's own client."""
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


async def test_runs_retries_and_an_open_breaker_are_told() -> None:
    runner = orchestrator(Answers("good", "acme", failures=1), Answers("bad", "broken", failures=99))
    async with served(runner) as client:
        await run(client, "good", budgets=[{"name": "team", "usd": 5, "per": "day"}])
        await run(client, "bad", enable_fallback=False)
        found = await scrape(client)
    assert ({"gen_ai_provider_name": "acme"}, 1) in found["steer_retries_total"]
    assert sorted(found["steer_breaker_state"], key=str) == [
        ({"gen_ai_provider_name": "acme"}, 0),
        ({"gen_ai_provider_name": "broken"}, 2),
    ]
    runs = {(labels["gen_ai_workflow_name"], labels["error_type"]): value for labels, value in found[DURATION]}
    assert runs == {("good", ""): 1, ("bad", "ProviderUnavailable"): 1}
    assert found["steer_cost_USD_total"] == [({"gen_ai_tool_name": "good"}, 0.25)]
    assert ({"steer_budget": "default/team", "steer_unit": "usd"}, 5) in found["steer_budget_limit"]


DURATION = "gen_ai_invoke_workflow_duration_seconds_count"


async def test_the_chat_passage_is_measured_and_its_calls_counted_once() -> None:
    async with served(orchestrator(), simulated=True) as client:
        question = (await client.get("/v1/models/recorded:demo")).json()["question"]
        body = {"model": "recorded:demo", "messages": [{"role": "user", "content": question}]}
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        found = await scrape(client)
    assert [(labels["gen_ai_workflow_name"], value) for labels, value in found[DURATION]] == [("chat", 1)]
    ((_, attempts),) = found["steer_attempts_total"]
    assert attempts == 1
    used = {labels["gen_ai_token_type"]: value for labels, value in found["gen_ai_client_token_usage_total"]}
    usage = answer.json()["usage"]
    assert used == {"input": usage["prompt_tokens"], "output": usage["completion_tokens"]}


async def test_no_sample_is_there_twice() -> None:
    async with served(orchestrator(Answers("good", "acme"))) as client:
        await asyncio.gather(*(run(client, "good", budgets=[{"name": "team", "usd": 5}]) for _ in range(3)))
        found = await scrape(client)
    twice = [
        (name, labels) for name, each in found.items() for labels, _ in each if [x for x, _ in each].count(labels) > 1
    ]
    assert twice == []


async def test_two_services_of_one_process_tell_each_their_own() -> None:
    async with served(orchestrator(Answers("a", "acme"))) as one, served(orchestrator(Answers("b", "acme"))) as other:
        await run(one, "a")
        await run(other, "b")
        assert [labels["gen_ai_workflow_name"] for labels, _ in (await scrape(one))[DURATION]] == ["a"]
        assert [labels["gen_ai_workflow_name"] for labels, _ in (await scrape(other))[DURATION]] == ["b"]


async def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    async with served(orchestrator(Answers("good", "acme"))) as client:
        await run(client, "good")
        answer = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize(("secret", "status"), [("", 401), ("plain", 403), ("admin", 200)])
async def test_where_keys_are_the_metrics_of_all_tenants_need_an_admins(secret: str, status: int) -> None:
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("plain", "admin")}
    keys = KeyRing(tuple(Key(tenant="team", sha256=hashed, admin=name == "admin") for name, hashed in hashes.items()))
    async with served(orchestrator(), keys=keys) as client:
        answer = await client.get("/metrics", headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == status


async def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("opentelemetry.exporter.prometheus", "prometheus_client"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr("steer_llm_sdk.service.metrics.find_spec", lambda name: None)
    async with served(orchestrator(Answers("good", "acme"))) as client:
        await run(client, "good")
        answer = await client.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (501, "application/problem+json")
    assert "[otel]" in answer.json()["detail"]
    assert "opentelemetry.exporter.prometheus" not in sys.modules
