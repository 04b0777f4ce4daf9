"""Replay: a keyed run as a piece of work that belongs to its key."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import cache, lru_cache, partial
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration._call import Run
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.reliability.canonical import fingerprint, fingerprint_of
from steer_llm_sdk.reliability.deadline import Deadline
from steer_llm_sdk.reliability.idempotency import Work


def keyed(
    run: Run,
    work: Callable[[Deadline], Coroutine[Any, Any, OrchestrationOutput]],
    config: Mapping[str, Any],
) -> Work[OrchestrationOutput]:
    """`config`: the fields of a ReliabilityConfig. One who joins is not ended by the limits of whoever led."""
    given = run.given
    return Work(
        key_of(run),
        given["idempotency_key"],
        mark_of(run),
        work,
        _dump_all if config["remember_failures"] else _dump_successes,
        _load,
        _copy,
        None if run.plain or not (given["budget"] or given["budgets"]) else (given["budget"], given["budgets"]),
        config["on_store_down"] == "run_unprotected",
        config["on_duplicate"] == "wait",
        partial(_note, run),
    )


def _note(run: Run, what: str, why: str, output: OrchestrationOutput | None) -> None:
    if output is None:
        run.tell("warning", {"idempotency": what, "message": why})
    else:
        output.metadata["idempotency"] = what


def key_of(run: Run) -> str:
    given = run.given
    return f"{_quoted(given['tenant'])}:{given['idempotency_key']}"


def mark_of(run: Run) -> str:
    """What tells requests apart: request, tool_name or None, and tool_options."""
    asked = {"request": run.request, "tool_name": run.tool_name, "tool_options": {**run.tool_options}}
    try:
        return fingerprint_of(asked)
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
    fields = vars(output)
    if fields["status"] == "failed" and any(info.get("is_retryable") for info in (output.errors or {}).values()):
        return None
    try:
        return _encoder()(fields)
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
