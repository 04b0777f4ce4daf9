"""Part 1: import paths, names, signatures and defaults that callers rely on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from steer_llm_sdk.models import events
from steer_llm_sdk.orchestration import (
    BundleMetadata,
    BundleOptions,
    BundleSummary,
    BundleTool,
    Disagreement,
    EvidenceBundle,
    OrchestrationConfig,
    OrchestrationOutput,
    Orchestrator,
    PlanDecision,
    PlanRequest,
    ReliabilityConfig,
    ReliableOrchestrator,
    Replicate,
    ReplicateQuality,
    Tool,
    ToolRegistry,
    get_global_registry,
)
from steer_llm_sdk.orchestration.planning import (
    PlanningRule,
    RuleAction,
    RuleBasedPlanner,
    RuleCondition,
    ToolMetadata,
    create_budget_aware_rule,
    create_keyword_based_rule,
    create_type_based_rule,
)
from steer_llm_sdk.reliability import (
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerManager,
    ErrorCategory,
    IdempotencyManager,
    RetryPolicy,
)
from steer_llm_sdk.streaming.manager import EventManager

MODULES = {
    "orchestration": """Orchestrator ReliableOrchestrator BaseOrchestrator OrchestrationOutput OrchestrationConfig
        ReliabilityConfig Tool ToolRegistry get_global_registry BundleTool BundleOptions EvidenceBundle Replicate
        ReplicateQuality BundleMetadata BundleSummary Disagreement OrchestratorError ToolExecutionError BudgetExceeded
        ConflictError Planner PlanRequest PlanDecision RuleBasedPlanner PlanningRule""",
    "orchestration.base": "BaseOrchestrator OrchestrationOutput",
    "orchestration.orchestrator": "Orchestrator",
    "orchestration.reliable_orchestrator": "ReliableOrchestrator",
    "orchestration.options": "OrchestrationConfig",
    "orchestration.errors": "OrchestratorError ToolExecutionError BudgetExceeded ConflictError",
    "orchestration.tool_registry": "Tool ToolRegistry get_global_registry",
    "orchestration.models": "EvidenceBundle Replicate ReplicateQuality BundleMetadata BundleSummary Disagreement",
    "orchestration.models.evidence_bundle": """EvidenceBundle Replicate ReplicateQuality BundleMetadata BundleSummary
        Disagreement""",
    "orchestration.tools": "BundleTool BundleOptions",
    "orchestration.tools.base": "BundleTool BundleOptions",
    "orchestration.tools.examples.simple_bundle": "SimpleBundleTool",
    "orchestration.planning": """Planner PlanRequest PlanDecision ToolMetadata ExecutionStrategy RuleBasedPlanner
        PlanningRule RuleCondition RuleAction create_type_based_rule create_keyword_based_rule
        create_budget_aware_rule""",
    "orchestration.planning.planner": "Planner PlanRequest PlanDecision ToolMetadata ExecutionStrategy",
    "orchestration.planning.rule_based": """RuleBasedPlanner PlanningRule RuleCondition RuleAction
        create_type_based_rule create_keyword_based_rule create_budget_aware_rule""",
    "orchestration.reliability": "ReliabilityConfig ReliableToolExecutor RetryPolicy CircuitBreakerConfig",
    "reliability": """RetryPolicy CircuitBreaker CircuitBreakerConfig CircuitBreakerManager CircuitState ErrorCategory
        ErrorClassification ErrorClassifier IdempotencyManager""",
    "reliability.idempotency": "IdempotencyManager",
    "streaming.manager": "EventManager",
    "models.events": """StreamEvent StreamStartEvent StreamDeltaEvent StreamUsageEvent StreamCompleteEvent
        StreamErrorEvent""",
    "providers.base": "ProviderError",
}


@pytest.mark.parametrize(
    ("module", "name"), [(path, name) for path, names in MODULES.items() for name in names.split()]
)
def test_the_name_can_be_imported_from_the_path(module: str, name: str) -> None:
    found = getattr(import_module(f"steer_llm_sdk.{module}"), name)
    assert getattr(found, "__name__", name) == name


def test_a_class_is_the_same_wherever_it_is_imported_from() -> None:
    paths: dict[str, set[int]] = {}
    for module, names in MODULES.items():
        for name in names.split():
            paths.setdefault(name, set()).add(id(getattr(import_module(f"steer_llm_sdk.{module}"), name)))
    assert {name for name, found in paths.items() if len(found) > 1} == set()


@pytest.mark.parametrize("module", ["steer_llm_sdk", "steer_llm_sdk.orchestration", "steer_llm_sdk.reliability"])
def test_all_lists_what_is_public_and_nothing_that_is_not_there(module: str) -> None:
    package = import_module(module)
    assert sorted(package.__all__) == sorted(set(package.__all__))
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────

REQUIRED = object()
FIELDS: dict[type[BaseModel], dict[str, Any]] = {
    OrchestrationConfig: {
        "max_parallel": 10,
        "budget": None,
        "deterministic": False,
        "streaming": False,
        "retry_on_failure": True,
        "max_retries": None,
        "timeout_ms": None,
        "per_agent_timeout_ms": None,
        "trace_id": None,
        "request_id": None,
        "idempotency_key": None,
        "tenant": "default",
        "redactor_cb": None,
        "metadata": {},
        "quality_requirements": None,
        "enable_circuit_breaker": True,
        "enable_fallback": True,
    },
    OrchestrationOutput: {
        "content": REQUIRED,
        "usage": {},
        "cost_usd": None,
        "cost_breakdown": {},
        "elapsed_ms": REQUIRED,
        "per_agent": {},
        "status": "succeeded",
        "errors": None,
        "metadata": {},
    },
    RetryPolicy: {
        "max_attempts": 3,
        "initial_delay": 1.0,
        "max_delay": 60.0,
        "backoff_factor": 2.0,
        "jitter_factor": 0.5,
        "retry_on_timeout": True,
        "retry_on_rate_limit": True,
        "retry_on_server_error": True,
        "retry_on_network_error": True,
        "respect_retry_after": True,
        "exponential_backoff": True,
        "max_total_delay": 300.0,
    },
    CircuitBreakerConfig: {
        "failure_threshold": 5,
        "success_threshold": 2,
        "timeout": 60.0,
        "half_open_requests": 3,
        "window_size": 60.0,
        "on_open": None,
        "on_close": None,
        "on_half_open": None,
    },
    ReliabilityConfig: {
        "retry_policy": RetryPolicy(),
        "circuit_breaker_configs": {},
        "enable_fallback": True,
        "max_fallback_attempts": 2,
        "max_total_retry_time": 300.0,
        "max_total_attempts": 10,
    },
    BundleOptions: {
        "k": 3,
        "seeds": None,
        "epsilon": 0.2,
        "schema_uri": None,
        "per_replicate_budget": None,
        "global_budget": None,
        "bundle_limits": None,
        "max_parallel": 10,
        "timeout_ms": None,
        "trace_id": None,
        "request_id": None,
    },
    BundleMetadata: {
        "task": REQUIRED,
        "k": REQUIRED,
        "k_completed": None,
        "model": None,
        "seeds": [],
        "early_stopped": False,
        "early_stop_reason": None,
        "total_elapsed_ms": None,
        "schema_uri": None,
    },
    Replicate: {"id": REQUIRED, "data": None, "usage": {}, "elapsed_ms": None, "seed": None, "model": None},
    ReplicateQuality: {"valid": True, "errors": [], "warnings": [], "schema_version": None},
    BundleSummary: {
        "consensus": None,
        "disagreements": [],
        "pairwise_distance": None,
        "distributions": None,
        "confidence": None,
        "truncated": False,
        "truncation_info": None,
    },
    Disagreement: {"field": REQUIRED, "values": REQUIRED, "replicate_ids": REQUIRED},
    EvidenceBundle: {
        "meta": REQUIRED,
        "replicates": REQUIRED,
        "usage_total": {},
        "cost_total_usd": None,
        "cost_breakdown": {},
        "metadata": {},
    },
    PlanRequest: {
        "budget": None,
        "quality_requirements": None,
        "previous_failures": [],
        "circuit_breaker_states": {},
        "user_preferences": {},
    },
    PlanDecision: {
        "selected_tool": REQUIRED,
        "tool_options": {},
        "fallback_tools": [],
        "execution_strategy": "single",
        "estimated_cost": None,
        "estimated_duration_ms": None,
        "confidence": 1.0,
        "reasoning": "",
        "metadata": {},
    },
    ToolMetadata: {
        "name": REQUIRED,
        "version": "1.0.0",
        "description": "",
        "supported_models": [],
        "default_options": {},
        "capabilities": [],
        "resource_requirements": {},
    },
    RuleCondition: {"attribute_path": REQUIRED, "operator": REQUIRED, "value": None, "custom_matcher": None},
    RuleAction: {
        "tool_name": REQUIRED,
        "tool_options": {},
        "fallback_tools": [],
        "execution_strategy": "single",
        "option_transformer": None,
    },
    PlanningRule: {"name": REQUIRED, "priority": 0, "conditions": [], "action": None, "description": None},
}


@pytest.mark.parametrize(("model", "fields"), FIELDS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_the_model_has_the_fields_with_their_defaults(model: type[BaseModel], fields: dict[str, Any]) -> None:
    for name, default in fields.items():
        field = model.model_fields[name]
        if default is REQUIRED:
            assert field.is_required(), name
        else:
            assert not field.is_required(), name
            assert field.get_default(call_default_factory=True) == default, name


@pytest.mark.parametrize("model", FIELDS, ids=lambda x: x.__name__)
def test_a_field_that_nobody_knows_is_an_error(model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="tpyo"):
        model.model_validate({"tpyo": 1})


def test_probe_lease_is_the_timeout_where_it_is_not_given() -> None:
    assert CircuitBreakerConfig(timeout=7).lease == 7
    assert CircuitBreakerConfig(timeout=7, probe_lease=3).lease == 3


@pytest.mark.parametrize(
    "given",
    [
        {"max_parallel": 0},
        {"max_parallel": 21},
        {"max_retries": -1},
        {"max_retries": 6},
        {"timeout_ms": 99},
        {"per_agent_timeout_ms": 99},
        {"budget": {"dollars": 1}},
        {"budget": {"tokens": 0}},
        {"budget": {"ms": -1}},
        {"budget": {"cost_usd": float("inf")}},
        {"budget": {"cost_usd": float("nan")}},
        {"budget": {"tokens": "many"}},
        {"budget": {"tokens": True}},
        {"budget": 5},
        {"idempotency_key": ""},
        {"timeout": 100},
    ],
)
def test_an_option_that_cannot_be_used_is_an_error_that_names_it(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(given))):
        OrchestrationConfig(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"max_parallel": 1},
        {"max_parallel": 20},
        {"max_retries": 0},
        {"max_retries": 5},
        {"timeout_ms": 100},
        {"per_agent_timeout_ms": 100},
        {"budget": {"ms": 1, "tokens": 1, "cost_usd": 1e-6}},
        {"budget": {}},
    ],
)
def test_an_option_at_its_limit_is_taken(given: dict[str, Any]) -> None:
    assert OrchestrationConfig(**given).model_dump(include=set(given)) == given


@pytest.mark.parametrize(
    ("provider", "expected"),
    [
        ("openai", (5, 60, 300, 2)),
        ("anthropic", (3, 120, 300, 1)),
        ("xai", (4, 90, 300, 2)),
        ("anybody", (5, 60, 300, 2)),
    ],
)
def test_the_built_in_breakers_by_provider(provider: str, expected: tuple[float, ...]) -> None:
    config = ReliabilityConfig().breaker_for(provider)
    assert (config.failure_threshold, config.timeout, config.window_size, config.success_threshold) == expected


def test_a_callers_breakers_are_laid_over_the_built_in_ones() -> None:
    config = ReliabilityConfig(circuit_breaker_configs={"openai": CircuitBreakerConfig(failure_threshold=9)})
    assert config.breaker_for("openai").failure_threshold == 9
    assert config.breaker_for("anthropic").failure_threshold == 3


def test_the_error_categories() -> None:
    expected = """authentication rate_limit validation server_error network timeout content_filter not_found
        permission_denied conflict unknown"""
    assert set(expected.split()) <= {category.value for category in ErrorCategory}


# ── signatures ───────────────────────────────────────────────────────────────────────────────────────────────────────


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """(name, default) of what can be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [p for p in inspect.signature(function).parameters.values() if p.kind in kinds and p.name != "self"]
    return [(p.name, REQUIRED if p.default is p.empty else p.default) for p in found]


def names(text: str) -> list[tuple[str, Any]]:
    return [(name, None) for name in text.split()]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Orchestrator.run, [("request", REQUIRED), *names("tool_name tool_options options event_manager")]),
        (ReliableOrchestrator.run, [("request", REQUIRED), *names("tool_name tool_options options event_manager")]),
        (ReliableOrchestrator, names("planner reliability_config idempotency_manager")),
        (Tool.execute, [("request", REQUIRED), *names("options event_manager")]),
        (Tool.validate_request, [("request", REQUIRED)]),
        (IdempotencyManager, [("ttl_seconds", 900), ("max_entries", 1000)]),
        (IdempotencyManager.get, [("key", REQUIRED)]),
        (IdempotencyManager.store, [("key", REQUIRED), ("value", REQUIRED)]),
        (CircuitBreaker, [("name", REQUIRED), ("config", None)]),
        (RuleBasedPlanner, [("rules", None)]),
        (
            EventManager,
            names("on_start on_delta on_usage on_complete on_error request_id trace_id sdk_version on_create_event"),
        ),
        (
            create_budget_aware_rule,
            [("tool_name", REQUIRED), ("low_budget_k", 2), ("high_budget_k", 5), ("priority", 8)],
        ),
        (create_type_based_rule, [("request_type", REQUIRED), ("tool_name", REQUIRED), ("priority", 10)]),
        (
            create_keyword_based_rule,
            [("keywords", REQUIRED), ("attribute", REQUIRED), ("tool_name", REQUIRED), ("priority", 5)],
        ),
    ],
    ids=lambda x: getattr(x, "__qualname__", ""),
)
def test_the_signature(function: Callable[..., Any], expected: list[tuple[str, Any]]) -> None:
    assert parameters(function) == expected


def test_the_attributes_of_a_reliable_orchestrator_are_named_as_its_parameters() -> None:
    planner, config, manager = RuleBasedPlanner(), ReliabilityConfig(), IdempotencyManager()
    made = ReliableOrchestrator(planner, config, manager)
    assert (made.planner, made.reliability_config, made.idempotency_manager) == (planner, config, manager)
    assert made.registry is get_global_registry()
    assert isinstance(ReliableOrchestrator().planner, RuleBasedPlanner)


def test_an_orchestrator_uses_the_global_registry_unless_one_is_given() -> None:
    mine = ToolRegistry()
    assert Orchestrator().registry is get_global_registry()
    assert Orchestrator(registry=mine).registry is mine


@pytest.mark.parametrize(
    ("owner", "members"),
    [
        (CircuitBreaker, "call get_state get_stats is_open is_closed is_half_open reset"),
        (CircuitBreakerManager, "get_or_create get get_all_stats reset_all"),
        (ToolRegistry, "register_tool get_tool list_tools get_tool_metadata has_tool unregister_tool clear"),
        (EventManager, "emit_start emit_delta emit_usage emit_complete emit_error"),
        (BundleTool, "_execute_bundle supports_early_stop supports_streaming _generate_seeds emit_event"),
        (RuleBasedPlanner, "add_rule plan validate_tool_availability estimate_cost estimate_duration"),
        (RetryPolicy, "should_retry_category"),
    ],
)
def test_the_class_has_the_members(owner: type, members: str) -> None:
    assert [name for name in members.split() if not hasattr(owner, name)] == []


def test_what_a_tool_declares_unless_it_says_otherwise() -> None:
    assert (Tool.version, Tool.description, Tool.provider) == ("1.0.0", "", None)
    assert [list(declared) for declared in (Tool.supported_models, Tool.capabilities)] == [[], []]
    assert [dict(declared) for declared in (Tool.default_options, Tool.resource_requirements)] == [{}, {}]
    assert Tool.__abstractmethods__ == {"name", "execute"}


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (events.StreamStartEvent(), "start"),
        (events.StreamDeltaEvent("d"), "delta"),
        (events.StreamDeltaEvent(delta="d", chunk_index=1, is_json=True), "delta"),
        (events.StreamUsageEvent({}), "usage"),
        (events.StreamCompleteEvent(), "complete"),
        (events.StreamErrorEvent(ValueError("x")), "error"),
    ],
)
def test_an_event_needs_nothing_but_its_payload(event: events.StreamEvent, kind: str) -> None:
    assert isinstance(event, events.StreamEvent)
    assert (event.type, event.provider, event.model, event.request_id) == (kind, "", "", "")
    assert dict(event.metadata) == {}
    assert event.timestamp == 0
