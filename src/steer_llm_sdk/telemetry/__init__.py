"""OpenTelemetry spans and metrics, and logs with the ids of the run. Nothing below knows of any of it."""

from __future__ import annotations

from importlib.util import find_spec

from steer_llm_sdk._install import install_line

if find_spec("opentelemetry") is None:
    raise ImportError(f"telemetry needs the extra `otel`: {install_line('otel')}")

from steer_llm_sdk.telemetry._instrument import instrument
from steer_llm_sdk.telemetry.logs import JsonLines, with_run_ids

__all__ = ["JsonLines", "instrument", "with_run_ids"]
