"""What a run comes back with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf

from steer_llm_sdk.errors import OrchestratorError
from steer_llm_sdk.models.plain import copied
from steer_llm_sdk.orchestration._html import as_html
from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle


class RunFailed(OrchestratorError):
    """`raise_for_status()` of an output that failed; `.output` is that output.

    `__cause__` is the exception of the tool, or AllToolsFailed with those of all, where the output comes from the run
    itself; a replayed one, a copy or one that was read from JSON has the message only.
    """

    def __init__(self, output: OrchestrationOutput) -> None:
        error = (output.content or {}).get("error", {}) if isinstance(output.content, dict) else {}
        failed = list(output.errors or ())
        who = f"tool '{failed[0]}': " if len(failed) == 1 else ""
        super().__init__(f"the run failed: {who}{error.get('message', 'no reason was given')}")
        self.output = output


class OrchestrationOutput(BaseModel):
    """An answer, what it cost, and who gave it.

    `content` is any JSON value. `usage` and `cost_usd` are the sums over all attempts of the run; `cost_usd` None means
    that a price is unknown. `cost_breakdown` is USD by tool. `per_agent` has one entry per tool that was tried.
    `replayed` marks a remembered output; it is no part of `==`.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)
    # A slot, which pydantic does not know: no part of ==, of JSON or of a copy, and free for an output that succeeds.
    __slots__ = ("_cause",)
    if TYPE_CHECKING:
        _cause: Exception | None = None

    # InstanceOf: a dict as it is. Copying these three takes a quarter of what validating an output takes.
    content: Any
    usage: InstanceOf[dict[str, Any]] = Field(default_factory=dict)
    cost_usd: float | None = None
    cost_breakdown: dict[str, float] = Field(default_factory=dict)
    elapsed_ms: int
    per_agent: InstanceOf[dict[str, Any]] = Field(default_factory=dict)
    status: Literal["succeeded", "partial", "failed"] = "succeeded"
    errors: dict[str, Any] | None = None
    metadata: InstanceOf[dict[str, Any]] = Field(default_factory=dict)
    replayed: bool = Field(default=False, exclude=True)

    @property
    def evidence(self) -> EvidenceBundle | None:
        """The evidence bundle in `content`, typed; None where the tool gave none. Its totals are the output's."""
        raw = self.content.get("evidence_bundle") if isinstance(self.content, dict) else None
        if raw is None:
            return None
        totals = {"usage_total": copied(self.usage), "cost_total_usd": self.cost_usd}
        return EvidenceBundle.model_validate({**totals, **raw})

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Every attempt that was sent, by the time it started: tool, provider, times in ms, outcome, error."""
        lines = [line for entry in self.per_agent.values() for line in entry.get("timeline", ())]
        return sorted(lines, key=lambda line: line["started_ms"])

    @property
    def passed_over(self) -> dict[str, str]:
        """Tools that the plan would have put first, each with the reason why not, such as an open circuit breaker.
        They were sent nothing, so no line of `attempts` is theirs."""
        plan = self.metadata.get("plan")
        found = plan.get("passed_over") if isinstance(plan, dict) else None
        return dict(found) if isinstance(found, dict) else {}

    def raise_for_status(self) -> OrchestrationOutput:
        """This output, or RunFailed if its status is "failed", raised from the tool's exception."""
        if self.status == "failed":
            raise RunFailed(self) from getattr(self, "_cause", None)
        return self

    def _repr_html_(self) -> str:
        """What a notebook shows: status, content, cost and the timeline of the attempts; nothing in it is live."""
        return as_html(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OrchestrationOutput):
            return NotImplemented
        names = type(self).model_fields.keys() - {"replayed"}
        return all(getattr(self, name) == getattr(other, name) for name in names)
