"""Replay: a keyed run as a piece of work that belongs to its key."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from functools import cache, lru_cache
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration._call import Run
from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.reliability.canonical import MAX_DEPTH, canonical_json, is_plain, plain_json
from steer_llm_sdk.reliability.deadline import Deadline
from steer_llm_sdk.reliability.idempotency import Work


class KeyedRun(Work[OrchestrationOutput]):
    """A run as work that belongs to its key. `do` does it, and `config` has the fields of a ReliabilityConfig."""

    __slots__ = ("_config", "_do", "_run")

    def __init__(
        self, run: Run, do: Callable[[Run], Coroutine[Any, Any, OrchestrationOutput]], config: Mapping[str, Any]
    ) -> None:
        self.key = key_of(run)
        self.name = run.given["idempotency_key"]
        said = canonical_request(run)
        # To hash a short one takes longer than to compare it.
        self.mark = said if len(said) <= _SHORT else sha256(said).hexdigest()
        self._run = run
        self._do = do
        self._config = config

    @property
    def terms(self) -> Any:  # One who joins is not ended by the limits of whoever led.
        run, given = self._run, self._run.given
        return None if run.plain or not (given["budget"] or given["budgets"]) else (given["budget"], given["budgets"])

    @property
    def run_unprotected(self) -> bool:
        return bool(self._config["on_store_down"] == "run_unprotected")

    @property
    def wait(self) -> bool:
        return bool(self._config["on_duplicate"] == "wait")

    def run(self, deadline: Deadline) -> Coroutine[Any, Any, OrchestrationOutput]:
        run = self._run
        run.deadline = deadline
        return self._do(run)

    def dump(self, output: OrchestrationOutput) -> bytes | None:
        """Everything final: a failure that a later try could cure is not remembered."""
        fields = output.__dict__
        if fields["status"] == "failed" and (
            not self._config["remember_failures"]
            or any(info.get("is_retryable") for info in (output.errors or {}).values())
        ):
            return None
        try:
            return _encoder()(fields)
        except TypeError:  # An integer past 64 bits, for one, which takes five times as long.
            return _output().dump_json(output)

    def load(self, kept: bytes) -> OrchestrationOutput:
        output = OrchestrationOutput.model_validate_json(kept)
        output.replayed = True
        return output

    def copy(self, output: OrchestrationOutput) -> OrchestrationOutput:
        return output.model_copy(deep=True, update={"replayed": True})

    def note(self, what: str, why: str, output: OrchestrationOutput | None) -> None:
        if output is None:
            self._run.tell("warning", {"idempotency": what, "message": why})
        else:
            output.metadata["idempotency"] = what


_SHORT = 256
"""Bytes: twice what the hash of a longer request takes in memory, with the overhead of both."""


def key_of(run: Run) -> str:
    given = run.given
    return f"{_quoted(given['tenant'])}:{given['idempotency_key']}"


def fingerprint_of(run: Run) -> str:
    """SHA-256 of what tells requests apart, in hex."""
    return sha256(canonical_request(run)).hexdigest()


def canonical_request(run: Run) -> bytes:
    """What tells requests apart: request, tool_name or None, and tool_options, in canonical JSON."""
    request, options = run.request, {**run.tool_options} if run.tool_options else {}
    asked = {"request": request, "tool_name": run.tool_name, "tool_options": options}
    try:
        if is_plain(request, MAX_DEPTH - 1) and (not options or is_plain(options, MAX_DEPTH - 1)):
            return plain_json(asked)
        return canonical_json(asked)
    except InvalidRequest:
        for name, part in asked.items():
            try:
                canonical_json(part)
            except InvalidRequest as error:  # It speaks of a request, which the options are none of.
                raise InvalidRequest(name, error.given, error.remedy) from None
        raise


@lru_cache
def _quoted(tenant: str) -> str:
    """The separator is quoted away, so that no tenant and key run together with another pair."""
    return quote(tenant, safe="")


@cache
def _output() -> TypeAdapter[OrchestrationOutput]:
    return TypeAdapter(OrchestrationOutput)


@cache
def _encoder() -> Callable[[Any], bytes]:
    import orjson

    return orjson.dumps
