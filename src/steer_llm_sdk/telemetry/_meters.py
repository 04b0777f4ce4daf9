"""The metrics of an orchestrator: histograms and counters of its runs, and gauges of what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from steer_llm_sdk.models.usage import tokens_by_side
from steer_llm_sdk.orchestration._call import Attempt
from steer_llm_sdk.telemetry import names

STATES = {"closed": 0, "half_open": 1, "open": 2}
"""What the gauge of a breaker shows."""


class Meters:
    def __init__(self, meter: Meter, orchestrator: Any) -> None:
        def seconds(name: str, description: str) -> Any:
            return meter.create_histogram(
                name, unit="s", description=description, explicit_bucket_boundaries_advisory=list(names.SECONDS)
            )

        self._run = seconds(names.WORKFLOW_DURATION, "Duration of runs")
        self._tool = seconds(names.TOOL_DURATION, "Duration of attempts of a tool")
        self._queue = seconds(names.QUEUE_WAIT, "Time in the queue of a rate limit")
        self._tokens = meter.create_counter(names.TOKENS, unit="{token}", description="Tokens used")
        self._spent = meter.create_counter(names.SPENT, unit="USD", description="Money spent")
        self._attempts = meter.create_counter(names.ATTEMPTS, description="Attempts, by how they ended")
        self._retries = meter.create_counter(names.RETRIES, description="Retries")
        self._fallbacks = meter.create_counter(names.FALLBACKS, description="Fallbacks from one tool to another")
        self._hedges = meter.create_counter(names.HEDGES, description="Hedged attempts")
        self._replays = meter.create_counter(names.REPLAYS, description="Runs answered from memory")
        self._changes = meter.create_counter(names.BREAKER_CHANGES, description="Changes of breakers, by new state")
        self._stability = meter.create_histogram(
            names.STABILITY,
            description="Stability of evidence bundles",
            explicit_bucket_boundaries_advisory=[0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99],
        )
        gauges = _gauges.get(meter)
        if gauges is None:
            gauges = _gauges[meter] = _Gauges(meter)
        gauges.watched.add(orchestrator)

    def told(self, kind: str, data: Mapping[str, Any]) -> None:
        """A delta event of a run."""
        who = {names.PROVIDER: data["provider"]} if isinstance(data.get("provider"), str) else {}
        if kind == "retry_attempt":
            self._retries.add(1, who)
        elif kind == "fallback":
            self._fallbacks.add(1, {names.TOOL: str(data.get("from"))})
        elif kind == "hedge":
            self._hedges.add(1, who)
        elif kind == "circuit_breaker":
            self._changes.add(1, {**who, names.STATE: str(data.get("state"))})

    def ended(
        self,
        seconds: float,
        tool_name: str | None,
        output: Any,
        error: BaseException | None,
        lines: Iterable[Attempt],
    ) -> None:
        """A run. The `lines` of its timeline are asked where it has no output that has them."""
        failed = type(error).__name__ if error is not None else None
        answered = None if output is None else output.metadata.get("tool_name")
        labels: dict[str, Any] = {names.WORKFLOW: answered or tool_name or "unknown"}
        if output is not None and failed is None and output.status == "failed" and isinstance(output.content, dict):
            failed = output.content.get("error", {}).get("type", "error")
        if failed is not None:
            labels[names.ERROR_TYPE] = failed
        self._run.record(seconds, labels)
        if output is None:
            for line in lines:
                if line["outcome"] != "running":  # It was left behind.
                    self._attempted(line["tool"], line)
        elif output.replayed:
            self._replays.add(1, labels)
        else:
            for name, entry in output.per_agent.items():
                self._tried(name, entry)
            self._evidence(output)

    def _tried(self, name: str, entry: Mapping[str, Any]) -> None:
        tool = {names.TOOL: name}
        for kind, used in tokens_by_side(entry.get("usage") or {}).items():
            if used > 0:
                self._tokens.add(used, {**tool, names.TOKEN_TYPE: kind})
        if entry.get("cost_usd"):
            self._spent.add(entry["cost_usd"], tool)
        for line in entry.get("timeline", ()):
            self._attempted(name, line)
            if "queued_ms" in line:
                self._queue.record(line["queued_ms"] / 1000, {names.PROVIDER: line["provider"]})

    def _attempted(self, tool: str, line: Attempt) -> None:
        labels = {names.TOOL: tool, names.PROVIDER: line["provider"], names.OUTCOME: line["outcome"]}
        self._attempts.add(1, labels)
        self._tool.record(line["elapsed_ms"] / 1000, labels)

    def _evidence(self, output: Any) -> None:
        content = output.content
        bundle = content.get("evidence_bundle") if isinstance(content, dict) else None
        summary = bundle.get("summary") if isinstance(bundle, dict) else None
        confidence = summary.get("confidence") if isinstance(summary, dict) else None
        if isinstance(confidence, (int, float)):
            self._stability.record(confidence, {names.TOOL: str(output.metadata.get("tool_name"))})


class _Gauges:
    """What the orchestrators of one meter hold now; those that share a provider or a budget have one line together.

    They are made once for each meter: an SDK that is given a second gauge of a name takes no notice of it.
    """

    def __init__(self, meter: Meter) -> None:
        self.watched: WeakSet[Any] = WeakSet()
        meter.create_observable_gauge(
            names.BREAKER_STATE, [self._breakers], description="0 closed, 1 half open, 2 open, by provider"
        )
        meter.create_observable_gauge(names.BUDGET_SPENT, [self._budget("spent")], description="Spent of a budget")
        meter.create_observable_gauge(names.BUDGET_LIMIT, [self._budget("limit")], description="Limit of a budget")
        meter.create_observable_gauge(names.QUEUE_DEPTH, [self._depth], description="Calls waiting for a rate limit")

    def _breakers(self, _: CallbackOptions) -> Iterable[Observation]:
        """The worst state of each provider."""
        worst: dict[str, int] = {}
        for each in list(self.watched):
            for name, stats in each.executor.breakers.get_all_stats().items():
                worst[name] = max(worst.get(name, 0), STATES[stats["state"]])
        return [Observation(state, {names.PROVIDER: name}) for name, state in worst.items()]

    def _budget(self, part: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            most: dict[tuple[str, str], float] = {}
            for each in list(self.watched):
                for name, account in each.budgets.items():
                    for unit, value in dict(account.get(part) or {}).items():
                        if isinstance(value, (int, float)):
                            most[name, unit] = max(most.get((name, unit), 0.0), float(value))
            return [Observation(value, {names.BUDGET: name, names.UNIT: unit}) for (name, unit), value in most.items()]

        return observe

    def _depth(self, _: CallbackOptions) -> Iterable[Observation]:
        """The sum of the queues, those of one executor counted once."""
        found = {id(each.executor): each.executor.limits for each in list(self.watched)}
        waiting: Counter[str] = Counter()
        for limits in found.values():
            waiting.update({} if limits is None else limits.waiting())
        return [Observation(count, {names.PROVIDER: target}) for target, count in waiting.items()]


_gauges: WeakKeyDictionary[Meter, _Gauges] = WeakKeyDictionary()
