"""What Prometheus gets from /metrics, who gets it, and that the dashboard and the alerts ask for what is there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from steer_llm_sdk.errors import ProviderUnavailable
from steer_llm_sdk.orchestration import (
    PlanningRule,
    ReliabilityConfig,
    ReliableOrchestrator,
    RuleBasedPlanner,
    Tool,
    ToolRegistry,
)
from steer_llm_sdk.orchestration.planning import RuleAction
from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.reliability import CircuitBreakerConfig, HedgingPolicy, RateLimit, RetryPolicy
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


async def run(client: httpx2.AsyncClient, tool: str | None, **options: Any) -> None:
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


# ── deploy/ ──────────────────────────────────────────────────────────────────────────────────────────────────────────

DEPLOY = Path(__file__).parents[3] / "deploy"
WORDS = frozenset(["sum", "max", "by", "rate", "increase", "histogram_quantile", "and", "ignoring", "group_left"])


class Stalls(Answers):
    """Its third attempt has no end; another one beside it has."""

    calls = 0

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        self.calls += 1
        if self.calls == 3:
            await asyncio.Event().wait()
        return "done"


class Holds(Answers):
    """Goes on until somebody waits for its provider."""

    runner: ReliableOrchestrator | None = None

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        runner, self.runner = self.runner, None
        while runner is not None and runner.executor.limits.waiting()[str(self.provider)] == 0:
            await asyncio.sleep(0)
        return "done"


@pytest.fixture(scope="module")
def exported() -> Samples:
    return asyncio.run(everything())


async def everything() -> Samples:
    """What is told once all that is measured has happened."""
    registry, holds = ToolRegistry(), Holds("holds", "narrow")
    for tool in (
        Answers("good", "acme"),
        Answers("bad", "broken", failures=99),
        Stalls("stalls", "slow"),
        holds,
        SimpleBundleTool(lambda request, seed: {"answer": 1}),
    ):
        registry.register_tool(tool)
    config = ReliabilityConfig(
        retry_policy=RetryPolicy(max_attempts=2, initial_delay=0.001),
        circuit_breaker_configs={"broken": CircuitBreakerConfig(failure_threshold=2)},
        rate_limits={"narrow": RateLimit(max_concurrent=1)},
        hedging=HedgingPolicy(min_samples=2, slow_factor=1e9, busy_factor=1e9, max_ratio=1),
    )
    planner = RuleBasedPlanner([PlanningRule("any", action=RuleAction("bad", fallback_tools=["good"]))])
    holds.runner = runner = ReliableOrchestrator(planner, config, registry=registry)
    async with served(runner) as client:
        for _ in range(2):
            await run(client, "good", idempotency_key="k", budgets=[{"name": "team", "usd": 5}])
        await run(client, None)
        await run(client, "bad", enable_fallback=False)
        for _ in range(3):
            await run(client, "stalls")
        await asyncio.gather(run(client, "holds"), run(client, "holds"))
        await run(client, "simple_bundle")
        return await scrape(client)


def asked_for(expression: str) -> tuple[set[str], set[str]]:
    """The metrics that an expression of Prometheus reads, and the labels that it knows them by."""
    plain = re.sub(r'"[^"]*"|\[[^]]*\]', "", expression)
    labels = re.findall(r"(?:by|ignoring) \(([^)]*)\)", plain) + re.findall(r"\{([^}]*)\}", plain)
    rest = re.sub(r"(?:by|ignoring) \([^)]*\)|\{[^}]*\}", "", plain)
    names = set(re.findall(r"[A-Za-z_]\w*", rest)) - WORDS
    return names, {label for each in labels for label in re.findall(r"[A-Za-z_]\w*", each)}


def test_an_expression_names_its_metrics_and_its_labels() -> None:
    expression = 'histogram_quantile(0.95, sum by (le, a) (rate(b_bucket{c!="d e"}[5m]))) / ignoring (f) g > 3'
    assert asked_for(expression) == ({"b_bucket", "g"}, {"le", "a", "c", "f"})


def expressions() -> dict[str, str]:
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
    shown = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }
    return {**shown, **{rule["alert"]: rule["expr"] for rule in alerts()}}


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


@pytest.mark.parametrize("expression", expressions().values(), ids=expressions())
def test_what_a_panel_or_an_alert_asks_for_is_exported(expression: str, exported: Samples) -> None:
    metrics, labels = asked_for(expression)
    assert metrics
    assert metrics - exported.keys() == set()
    assert labels <= {label for name in metrics for sample, _ in exported[name] for label in sample}
    assert [expression.count(left) for left in "({["] == [expression.count(right) for right in ")}]"]


def test_every_metric_is_on_the_dashboard(exported: Samples) -> None:
    asked = {name for expression in expressions().values() for name in asked_for(expression)[0]}
    families = {re.sub(r"_(total|bucket|count|sum|created)$", "", name) for name in exported}
    assert families - {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in asked} == set()


def test_an_alert_says_how_bad_it_is_and_what_it_means() -> None:
    for rule in alerts():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        named = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert named <= asked_for(rule["expr"])[1]


def test_the_panels_of_the_dashboard_have_their_own_places_and_names() -> None:
    panels = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    for key in (lambda panel: panel["id"], lambda panel: panel["title"], lambda panel: str(panel["gridPos"])):
        assert len({key(panel) for panel in panels}) == len(panels)
    for panel in panels:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert named <= asked_for(target["expr"])[1]
