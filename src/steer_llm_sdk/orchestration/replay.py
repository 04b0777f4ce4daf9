"""Replay: a keyed run as a piece of work that belongs to its key."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import quote

from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.reliability.canonical import fingerprint
from steer_llm_sdk.reliability.deadline import Deadline
from steer_llm_sdk.reliability.idempotency import Work


def keyed(
    tenant: str,
    key: str,
    asked: Mapping[str, Any],
    run: Callable[[Deadline], Coroutine[Any, Any, OrchestrationOutput]],
    *,
    budget: Mapping[str, float] | None,
    remember_failures: bool,
    run_unprotected: bool,
) -> Work[OrchestrationOutput]:
    """`asked` is what the caller sent: request, tool_name or None, tool_options. It tells requests apart."""
    return Work(
        # The separator is quoted away, so that no tenant and key run together with another pair.
        key=f"{quote(tenant, safe='')}:{key}",
        name=key,
        fingerprint=fingerprint(asked),
        run=run,
        dump=_dump_all if remember_failures else _dump_successes,
        load=_load,
        copy=_copy,
        terms=budget,
        run_unprotected=run_unprotected,
    )


def _dump_all(output: OrchestrationOutput) -> bytes | None:
    """Everything final: a failure that a later try could cure is not remembered."""
    errors = (output.errors or {}).values() if output.status == "failed" else ()
    return None if any(info.get("is_retryable") for info in errors) else output.model_dump_json().encode()


def _dump_successes(output: OrchestrationOutput) -> bytes | None:
    return None if output.status == "failed" else _dump_all(output)


def _load(remembered: bytes) -> OrchestrationOutput:
    output = OrchestrationOutput.model_validate_json(remembered)
    output.replayed = True
    return output


def _copy(output: OrchestrationOutput) -> OrchestrationOutput:
    return output.model_copy(deep=True, update={"replayed": True})
