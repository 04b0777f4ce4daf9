"""/metrics: what telemetry measures of the orchestrators of a service, as Prometheus reads it."""

from __future__ import annotations

from importlib.util import find_spec

from starlette.responses import Response

from steer_llm_sdk._install import install_line
from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.service.problems import Problem

_NEEDED = ("opentelemetry.exporter.prometheus", "opentelemetry.sdk.metrics", "prometheus_client")


class Scrape:
    """The metrics of these orchestrators, in a registry of their own: what else a process counts is not told here.

    Spans go where the process sends its own. An orchestrator that somebody has instrumented before keeps to the
    providers that it was given, and is not measured a second time.
    """

    def __init__(self, *orchestrators: ReliableOrchestrator) -> None:
        self._missing = not all(_is_there(name) for name in _NEEDED)
        if self._missing:
            return
        # Of the extra `otel`, which a service need not have.
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.sdk.metrics import MeterProvider
        from prometheus_client import CollectorRegistry

        from steer_llm_sdk.telemetry import instrument

        self._registry = CollectorRegistry()
        reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=self._registry)
        meters = MeterProvider(metric_readers=[reader], shutdown_on_exit=False)
        for orchestrator in orchestrators:
            instrument(orchestrator, meter_provider=meters)

    def response(self, accept: str) -> Response:
        """The text, in the format that `accept` asks for: that of Prometheus, or OpenMetrics. 501 without the extra."""
        if self._missing:
            raise Problem(501, f"metrics need the extra `otel`: {install_line('otel')}")
        from prometheus_client.exposition import choose_encoder

        encode, kind = choose_encoder(accept)
        return Response(encode(self._registry), headers={"Content-Type": kind})


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False
