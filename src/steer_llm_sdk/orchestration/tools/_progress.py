"""How far a bundle has come: whether the answers suffice, how many more may be asked for at once, how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from steer_llm_sdk.evidence import Calibrator, StopDecision, pairwise_distance, stability
from steer_llm_sdk.evidence._field_votes import FieldVotes
from steer_llm_sdk.evidence.policy import Fields, Policies
from steer_llm_sdk.evidence.stopping import Counts
from steer_llm_sdk.orchestration.models.evidence_bundle import Replicate
from steer_llm_sdk.orchestration.tools.base import BundleOptions


@dataclass(slots=True)
class Progress:
    """Told of each replicate as it arrives. `trace` has for each: its id, and stability and need after it."""

    options: BundleOptions
    fields: Fields | Policies | None = None
    trace: list[dict[str, Any]] = field(default_factory=list)
    decision: StopDecision = field(init=False)
    _votes: FieldVotes = field(init=False)
    _valid: list[Any] = field(default_factory=list)
    _apart: float = 0.0

    def __post_init__(self) -> None:
        self._votes = FieldVotes(self.options.k, self.fields)
        self.decision = self._decide()

    def add(self, replicate: Replicate) -> None:
        valid = replicate.quality.valid
        self._votes.add(replicate.data, valid=valid)
        if valid and self.options.stop == "distance":
            self._apart += sum(
                pairwise_distance((replicate.data, each), fields=self.fields)[0][1] for each in self._valid
            )
        if valid:
            self._valid.append(replicate.data)
        self.decision = self._decide()
        now = {"stability": round(self.decision.stability, 4), "need": self.decision.need}
        self.trace.append({"replicate_id": replicate.id, "valid": valid, **now})

    @property
    def need(self) -> int:
        """How many may run at once, so that each of them is sure to be counted before a rule can hold."""
        return self.options.k if self.options.latency == "min" else self.decision.need

    @property
    def reason(self) -> str | None:
        """Why to stop; None while more are wanted."""
        return None if self.options.latency == "min" else self.decision.reason

    @property
    def mean_distance(self) -> float | None:
        n = len(self._valid)
        return self._apart / (n * (n - 1) / 2) if n > 1 else None

    def stability(self) -> float:
        """The mean over the fields of the probability that the leader is what is said most often."""
        return fmean(stability(_votes_of(counts)) for counts in self._votes.leaves().values())

    def trust(self, calibrator: Calibrator) -> float:
        """The mean over the fields: the share of them that can be expected to be right."""
        return fmean(calibrator.trust(_votes_of(counts)) for counts in self._votes.leaves().values())

    def _decide(self) -> StopDecision:
        options = self.options
        if options.stop != "distance":
            return self._votes.decision(options.stop, options.risk, options.floor, options.min_valid)
        found = self._votes.decision("curtail", options.risk, options.floor, options.min_valid)
        if found.reason in ("too_many_invalid", "futile", "complete"):
            return found
        short = max(2, options.min_valid) - len(self._valid)
        near = self.mean_distance is not None and self.mean_distance <= options.epsilon and short <= 0
        need = 0 if near else min(max(1, short), max(1, options.k - self._votes.n))
        reason: Literal["distance"] | None = "distance" if near else None
        return StopDecision(stop=near, reason=reason, leader=found.leader, stability=found.stability, need=need)


def _votes_of(counts: Counts) -> list[int]:
    return [answer for answer, count in enumerate(counts) for _ in range(count)]


def cost_saved(costs: Sequence[float | None], k: int) -> float | None:
    """What the replicates that were not asked for would have cost, at the mean price of the others; None unknown."""
    known = [cost for cost in costs if cost is not None]
    return fmean(known) * (k - len(costs)) if known and len(known) == len(costs) else None
