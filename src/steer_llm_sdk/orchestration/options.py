"""What a caller may ask of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.reliability.budget import MOST, Budget, is_amount

A_YEAR = 31_536_000_000
"""In ms: the longest a run may take."""
BUDGET_KEYS = ("ms", "tokens", "cost_usd")
_REQUIREMENTS = {"min_confidence": 1, "min_quality": MOST, "max_latency_ms": MOST, "max_cost_usd": MOST}
"""What our planners read of `quality_requirements`, and how much it may be."""


class OrchestrationConfig(BaseModel):
    """Options of one run. It is read, never written: one config may serve any number of runs at once.

    `budget` takes `ms`, `tokens` and `cost_usd`. `budgets` are shared with other runs of the orchestrator: each call is
    reserved from all of them, or is not made. `timeout_ms` and `budget["ms"]` set one deadline, the earlier wins.
    `per_agent_timeout_ms` bounds each attempt and each replicate. `max_retries` n allows n + 1 attempts; unset, the
    retry policy decides. `metadata` is copied into every event and into the output under "user".
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)

    max_parallel: int = Field(default=10, ge=1, le=20)
    budget: dict[str, float] | None = None
    budgets: tuple[Budget, ...] = ()
    deterministic: bool = False
    streaming: bool = False
    retry_on_failure: bool = True
    max_retries: int | None = Field(default=None, ge=0, le=5)
    timeout_ms: int | None = Field(default=None, ge=100, le=A_YEAR)
    per_agent_timeout_ms: int | None = Field(default=None, ge=100, le=A_YEAR)
    trace_id: str | None = None
    request_id: str | None = None
    idempotency_key: str | None = None
    tenant: str = "default"
    redactor_cb: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    quality_requirements: dict[str, Any] | None = None
    enable_circuit_breaker: bool = True
    enable_fallback: bool = True

    @field_validator("budget", mode="before")
    @classmethod
    def _check_budget(cls, budget: Any) -> Any:
        if budget is None:
            return None
        if not isinstance(budget, dict):
            raise ValueError(f"give a dict with {', '.join(BUDGET_KEYS)}")
        for key, value in budget.items():
            if key not in BUDGET_KEYS:
                raise ValueError(f"{key!r} is no budget; the keys are {', '.join(BUDGET_KEYS)}")
            if not is_amount(value, A_YEAR if key == "ms" else MOST):
                raise ValueError(f"for {key!r} give a positive finite number")
        return dict(budget)

    @field_validator("budgets")
    @classmethod
    def _check_budgets(cls, budgets: tuple[Budget, ...]) -> tuple[Budget, ...]:
        names = [budget.name for budget in budgets]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is there twice; name each budget once")
        return budgets

    @field_validator("quality_requirements")
    @classmethod
    def _check_requirements(cls, wanted: dict[str, Any] | None) -> dict[str, Any] | None:
        """Other names than these are for planners of one's own."""
        for name, most in _REQUIREMENTS.items():
            value = None if wanted is None else wanted.get(name)
            none_at_all = value == 0 and type(value) in (int, float)
            if value is not None and not none_at_all and not is_amount(value, most):
                raise ValueError(f"for {name!r} give a number from 0{' to 1' if most == 1 else ''}")
        return wanted

    @field_validator("idempotency_key", "request_id", "trace_id", "tenant")
    @classmethod
    def _check_id(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("it holds half a character (a lone surrogate); give whole text")
        if not 0 < len(value) <= 512 or value.isspace():
            raise ValueError("give 1 to 512 characters, not all of them blank")
        return value

    @property
    def limit_ms(self) -> float | None:
        """The one deadline of the run in ms from its start; None for none."""
        timeout, budget = self.timeout_ms, self.budget
        own = None if budget is None else budget.get("ms")
        if timeout is None or own is None:
            return timeout if own is None else own
        return min(timeout, own)


def invalid_option(error: ValidationError, known: Iterable[str], within: str | None = None) -> InvalidRequest:
    """The first problem as one sentence: the option, what was given, what would do. `within` comes before its name."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = [str(part) for part in first["loc"]]
    name = ".".join(place if within is None else (within, *place)) or "options"
    if first["type"] == "extra_forbidden" and len(place) == 1:
        return InvalidRequest(name, first["input"], f"there is no such option; there are {', '.join(sorted(known))}")
    message = first["msg"].removeprefix("Value error, ")
    if message.startswith("Input "):
        message = f"it {message.removeprefix('Input ')}"
    return InvalidRequest(name, first["input"], message)


if not TYPE_CHECKING:
    __getattr__ = looked_up(__name__)  # Says what a renamed name is called now.
