"""Replay: a keyed run as a piece of work that belongs to its key."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import TypeAdapter

from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.reliability.canonical import fingerprint
from steer_llm_sdk.reliability.deadline import Deadline

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration._call import Run
    from steer_llm_sdk.orchestration.reliability import ReliabilityConfig


class KeyedRun:
    """The `Work` of a run: its caller's limits are its terms, so that one who joins is not ended by whoever led.

    What tells requests apart is what the caller sent: request, tool_name or its absence, tool_options.
    """

    __slots__ = ("_do", "_remember_failures", "_run", "fingerprint", "key", "name", "run_unprotected", "terms")

    def __init__(
        self, run: Run, do: Callable[[Run], Coroutine[Any, Any, OrchestrationOutput]], config: ReliabilityConfig
    ) -> None:
        options = run.options
        assert options.idempotency_key is not None
        self.name = options.idempotency_key
        self.key = f"{_quoted(options.tenant)}:{self.name}"
        sent = {"request": run.request, "tool_name": run.tool_name, "tool_options": {**run.tool_options}}
        self.fingerprint = fingerprint(sent)
        self.terms = options.budget, options.budgets
        self.run_unprotected = config.on_store_down == "run_unprotected"
        self._remember_failures = config.remember_failures
        self._run = run
        self._do = do

    def run(self, shared: Deadline) -> Coroutine[Any, Any, OrchestrationOutput]:
        self._run.deadline = shared
        return self._do(self._run)

    def dump(self, output: OrchestrationOutput) -> bytes | None:
        """Everything final: a failure that a later try could cure is not remembered."""
        if output.status == "failed":
            errors = (output.errors or {}).values()
            if not self._remember_failures or any(info.get("is_retryable") for info in errors):
                return None
        return _encoder()(output)

    def load(self, remembered: bytes) -> OrchestrationOutput:
        output = OrchestrationOutput.model_validate_json(remembered)
        output.replayed = True
        return output

    def copy(self, output: OrchestrationOutput) -> OrchestrationOutput:
        return output.model_copy(deep=True, update={"replayed": True})


@lru_cache
def _quoted(tenant: str) -> str:
    """The separator is quoted away, so that no tenant and key run together with another pair."""
    return quote(tenant, safe="")


@cache
def _encoder() -> Callable[[OrchestrationOutput], bytes]:
    """JSON by orjson, which takes a quarter of pydantic's time. An output is plain JSON nearly always; what orjson does
    not write exactly as pydantic does, it is told to refuse."""
    import orjson

    general = TypeAdapter(OrchestrationOutput).dump_json
    plain_only = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

    def encode(output: OrchestrationOutput) -> bytes:
        try:
            return orjson.dumps(vars(output), option=plain_only)
        except TypeError:
            return general(output)

    return encode
