"""OpenTelemetry spans and metrics, and logs with the ids of the run. Nothing below knows of any of it."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("opentelemetry") is None:
    raise ImportError("telemetry needs the extra `otel`: pip install 'steer_llm_sdk[otel]'")

from steer_llm_sdk.telemetry._instrument import instrument
from steer_llm_sdk.telemetry.logs import JsonLines, with_run_ids

__all__ = ["JsonLines", "instrument", "with_run_ids"]
