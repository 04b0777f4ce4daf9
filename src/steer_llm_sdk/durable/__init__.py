"""Runs that outlive the process that began them. They need the extra `durable`."""

from steer_llm_sdk.durable._extra import runs_of
from steer_llm_sdk.durable.orchestrator import DurableOrchestrator, RunCancelled
from steer_llm_sdk.durable.queues import QueueLimits
from steer_llm_sdk.durable.runner import RunInfo, Runner

__all__ = ["DurableOrchestrator", "QueueLimits", "RunCancelled", "RunInfo", "Runner", "runs_of"]
