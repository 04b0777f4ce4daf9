"""Replay: a keyed run as a piece of work that belongs to its key."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import cache, lru_cache
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter

from steer_llm_sdk.errors import InvalidRequest
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
    limits: object,
    remember_failures: bool,
    run_unprotected: bool,
    wait: bool,
    note: Callable[[str, str, OrchestrationOutput | None], None],
) -> Work[OrchestrationOutput]:
    """`asked` is what the caller sent: request, tool_name or None, tool_options. It tells requests apart.

    `limits` are the caller's own: one who joins is not ended by those of whoever led. The rest as in Work.
    """
    return Work(
        f"{_quoted(tenant)}:{key}",
        key,
        _mark_of(asked),
        run,
        _dump_all if remember_failures else _dump_successes,
        _load,
        _copy,
        limits,
        run_unprotected,
        wait,
        note,
    )


def _mark_of(asked: Mapping[str, Any]) -> str:
    try:
        return fingerprint(asked)
    except InvalidRequest:
        for name, part in asked.items():
            try:
                fingerprint(part)
            except InvalidRequest as error:  # It speaks of a request, which the options are none of.
                raise InvalidRequest(name, error.given, error.remedy) from None
        raise


@lru_cache
def _quoted(tenant: str) -> str:
    """The separator is quoted away, so that no tenant and key run together with another pair."""
    return quote(tenant, safe="")


def _dump_all(output: OrchestrationOutput) -> bytes | None:
    """Everything final: a failure that a later try could cure is not remembered."""
    if output.status == "failed" and any(info.get("is_retryable") for info in (output.errors or {}).values()):
        return None
    try:
        return _encoder()(vars(output))
    except TypeError:  # An integer past 64 bits, for one, which takes five times as long.
        return _output().dump_json(output)


def _dump_successes(output: OrchestrationOutput) -> bytes | None:
    return None if output.status == "failed" else _dump_all(output)


@cache
def _output() -> TypeAdapter[OrchestrationOutput]:
    return TypeAdapter(OrchestrationOutput)


@cache
def _encoder() -> Callable[[Any], bytes]:
    import orjson

    return orjson.dumps


def _load(remembered: bytes) -> OrchestrationOutput:
    output = OrchestrationOutput.model_validate_json(remembered)
    output.replayed = True
    return output


def _copy(output: OrchestrationOutput) -> OrchestrationOutput:
    return output.model_copy(deep=True, update={"replayed": True})
