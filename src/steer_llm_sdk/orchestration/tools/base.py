"""A bundle tool answers one request k times and hands back the answers with what they agree on."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.evidence import Limits, parse_path
from steer_llm_sdk.evidence.policy import Fields, Policies
from steer_llm_sdk.models.events import StreamDeltaEvent
from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.orchestration._call import current_scope
from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle
from steer_llm_sdk.orchestration.options import BUDGET_KEYS, invalid_option
from steer_llm_sdk.orchestration.tool_registry import Tool
from steer_llm_sdk.streaming.manager import EventManager

Options = TypeVar("Options", bound=BaseModel)

StopRule: TypeAlias = Literal["curtail", "pcurtail", "certified", "distance"]

MAX_K = 10
_LIMITS = ("max_fields", "max_diffs", "max_bytes")


_OF_THE_RUN = frozenset({"seed", "temperature", "streaming", "idempotency_key"})
"""What a run may add to the options of any tool, and BundleOptions has no field for."""


class BundleOptions(BaseModel):
    """The options of a bundle tool.

    `k` replicates, 2 to 10 unless the tool declares a higher `max_k`, of which at most `max_parallel` run at once;
    `seeds` has one for each, else the tool derives them.

    A tool that supports it stops before k by the rule `stop`, with `risk` and `floor` as of
    `steer_llm_sdk.evidence.should_stop`, when it holds for every field; "distance": when the mean pairwise distance is
    at most `epsilon`. Only as many run at once as are sure to be counted before a rule can hold, so that none is asked
    in vain. `latency="min"` asks for all k at once and waits for all. When fewer than `min_valid` can become valid, no
    more are asked for.

    Budgets take `ms`, `tokens`, `cost_usd`; the global one is the run's and is enforced by the run. `bundle_limits`
    takes `max_fields`, `max_diffs`, `max_bytes`: how much the summary may report. `extra` holds what the run adds
    and has no field here: `seed` and `temperature` of a deterministic run, `streaming`, `idempotency_key`.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)

    k: int = Field(default=3, ge=2)
    seeds: list[int] | None = None
    stop: StopRule = "curtail"
    risk: float = Field(default=0.01, gt=0, lt=1)
    floor: float = Field(default=0.0, ge=0, le=1)
    latency: Literal["min"] | None = None
    min_valid: int = Field(default=1, ge=1)
    epsilon: float = Field(default=0.2, ge=0, le=1)
    schema_uri: str | None = None
    per_replicate_budget: dict[str, float] | None = None
    global_budget: dict[str, float] | None = None
    bundle_limits: dict[str, int] | None = None
    max_parallel: int = Field(default=10, ge=1)
    timeout_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    trace_id: str | None = None
    request_id: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)

    @property
    def limits(self) -> Limits:
        return Limits(**(self.bundle_limits or {}))

    @field_validator("k")
    @classmethod
    def _check_k(cls, k: int, info: ValidationInfo) -> int:
        ceiling = (info.context or {}).get("max_k", MAX_K)
        if k > ceiling:
            raise ValueError(f"at most {ceiling} replicates; a tool that means more declares a higher max_k")
        return k

    @field_validator("per_replicate_budget", "global_budget")
    @classmethod
    def _check_budget(cls, budget: dict[str, float] | None) -> dict[str, float] | None:
        for key, value in (budget or {}).items():
            if key not in BUDGET_KEYS:
                raise ValueError(f"{key!r} is no budget; the keys are {', '.join(BUDGET_KEYS)}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{key} = {value} cannot be kept; give a positive finite number")
        return budget

    @field_validator("bundle_limits")
    @classmethod
    def _check_limits(cls, limits: dict[str, int] | None) -> dict[str, int] | None:
        for key, value in (limits or {}).items():
            if key not in _LIMITS:
                raise ValueError(f"{key!r} is no limit; the keys are {', '.join(_LIMITS)}")
            if value < 0:
                raise ValueError(f"{key} = {value} cannot be kept; give 0 or more")
        return limits

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int] | None, info: ValidationInfo) -> list[int] | None:
        # More than k are fine: a planner with little money may have lowered k under the caller's seeds.
        k = info.data.get("k", 0)
        if seeds is not None and len(seeds) < k:
            raise ValueError(f"{len(seeds)} for {k} replicates; give one for each, or none")
        return seeds


class BundleTool(Tool):
    """Subclass it with `name` and `_execute_bundle`.

    `options_type` is a subclass of BundleOptions where the tool has options of its own; any other option is refused.
    `max_k` is the most replicates it makes. `supports_early_stop`: it may stop before k by what it has
    seen. `supports_streaming`: it emits events while it works.
    """

    options_type: ClassVar[type[BundleOptions]] = BundleOptions
    max_k: int = MAX_K
    supports_early_stop: bool = False
    supports_streaming: bool = False

    @abstractmethod
    async def _execute_bundle(
        self, request: Any, options: BundleOptions, event_manager: EventManager | None
    ) -> EvidenceBundle: ...

    async def execute(
        self,
        request: Any,
        options: dict[str, Any] | None = None,
        event_manager: EventManager | None = None,
    ) -> EvidenceBundle:
        """Read the options and make the bundle. InvalidRequest names an option that cannot be used."""
        return await self._execute_bundle(request, self._read_options(options or {}), event_manager)

    def validate_options(self, options: Mapping[str, Any]) -> None:
        self._read_options(options)

    def worst_case(self, request: Any, options: Mapping[str, Any]) -> Amount:
        """What k replicates take; the class declares the cost of one."""
        one, k = super().worst_case(request, options), self._read_options(options).k
        return Amount(one.tokens * k, None if one.cost_usd is None else one.cost_usd * k)

    def _read_options(self, given: Mapping[str, Any]) -> BundleOptions:
        merged = {**self.default_options, **given}
        fields = self.options_type.model_fields.keys() - {"extra"}
        known = {key: value for key, value in merged.items() if key in fields}
        extra = {key: value for key, value in merged.items() if key not in fields}
        for name, value in extra.items():
            if name not in _OF_THE_RUN:
                there_are = ", ".join(sorted(fields | _OF_THE_RUN))
                raise InvalidRequest(name, value, f"there is no such option; there are {there_are}")
        return read_options(self.options_type, {**known, "extra": extra}, max_k=self.max_k)

    def _generate_seeds(self, k: int, seed: int = 0) -> list[int]:
        """k seeds in a row, always the same for the same `seed`; bundles of two seeds share none. 31 bits each."""
        return [(seed * 1000 + index) % 2**31 for index in range(k)]

    async def emit_event(self, event_manager: EventManager | None, event_type: str, data: Mapping[str, Any]) -> None:
        """Send one fact as a delta event, if there is an event manager."""
        if event_manager is not None:
            await event_manager.emit_delta(StreamDeltaEvent({"event_type": event_type, "data": dict(data)}))


def own_limit(timeout_ms: float | None) -> float | None:
    """The seconds that a tool keeps to by itself under its option `timeout_ms`; None: it has no limit of its own.

    A run hands its `timeout_ms` to its tools so that they can plan with it. It keeps that deadline itself: of callers
    with one key, one that joins may have more time.
    """
    scope = current_scope()
    is_the_runs = scope is not None and scope.run.options.timeout_ms == timeout_ms
    return None if timeout_ms is None or is_the_runs else timeout_ms / 1000


def read_options(model: type[Options], given: Mapping[str, Any], **context: Any) -> Options:
    """`given` as the option model of a tool. InvalidRequest names the option, its value and what is allowed."""
    try:
        return model.model_validate(dict(given), context=context)
    except ValidationError as error:
        raise invalid_option(error, model.model_fields.keys() - {"extra"}) from error


def checked_fields(fields: Fields | None, output_type: Any = None) -> Policies:
    """The policies of the fields that are named, over those in the annotations of `output_type`."""
    if fields is None or isinstance(fields, Mapping):
        try:
            return Policies.of(fields, output_type)
        except ValueError as error:
            raise InvalidRequest("fields", fields, str(error)) from None
    if isinstance(fields, str) or not fields:
        raise InvalidRequest(
            "fields", fields, 'give a list of dotted paths, such as ["answer"], FieldPolicies by path, or None for all'
        )
    for path in fields:
        try:
            parse_path(path)
        except ValueError as error:
            raise InvalidRequest("fields", path, str(error)) from None
    return Policies.of(list(fields), output_type)
