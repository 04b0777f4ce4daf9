"""What a bundle of repeated answers says: the replicates, where they agree, and what that cost."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from steer_llm_sdk.evidence._json import Json, json_value
from steer_llm_sdk.evidence.models import BundleSummary, Disagreement, Model, Replicate, ReplicateQuality

__all__ = [
    "BundleMetadata",
    "BundleSummary",
    "Disagreement",
    "EvidenceBundle",
    "Json",
    "Replicate",
    "ReplicateQuality",
    "json_value",
]


class BundleMetadata(Model):
    """`k` replicates were asked for, `k_completed` are valid; an EvidenceBundle counts them where nobody said.

    With fewer than `min_valid` a run is partial, whatever made it stop.
    """

    task: str
    k: int = Field(ge=1)
    k_completed: int | None = Field(default=None, ge=0)
    min_valid: int = Field(default=1, ge=1)
    model: str | None = None
    seeds: list[int] = Field(default_factory=list)
    early_stopped: bool = False
    early_stop_reason: str | None = None
    total_elapsed_ms: int | float | None = Field(default=None, ge=0)
    schema_uri: str | None = None


class EvidenceBundle(Model):
    """Repeated answers to one request. `cost_total_usd` is None where the price of any of them is unknown."""

    meta: BundleMetadata
    replicates: list[Replicate]
    summary: BundleSummary = Field(default_factory=BundleSummary)
    usage_total: dict[str, Any] = Field(default_factory=dict)
    cost_total_usd: float | None = Field(default=None, ge=0)
    cost_breakdown: dict[str, float] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _count_and_tell_apart(self) -> EvidenceBundle:
        ids = [replicate.id for replicate in self.replicates]
        if len(set(ids)) < len(ids):
            twice = sorted({name for name in ids if ids.count(name) > 1})
            raise ValueError(f"replicates: the id {twice[0]!r} is there twice; give each replicate its own")
        if self.meta.k_completed is None:
            valid = sum(replicate.quality.valid for replicate in self.replicates)
            # A copy: the metadata may be the caller's object.
            self.meta = self.meta.model_copy(update={"k_completed": valid})
        return self

    def to_html(self) -> str:
        """A page that says all of it: agreement by field and replicate, differences word by word, distances, stopping,
        cost. It loads and runs nothing, and every word in it is escaped."""
        # Loaded here: few runs are looked at.
        from steer_llm_sdk.orchestration._evidence_page import as_page

        return as_page(self)

    def to_markdown(self) -> str:
        """The same in Markdown, without the distances."""
        from steer_llm_sdk.orchestration._evidence_text import as_markdown

        return as_markdown(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the page as a block."""
        from steer_llm_sdk.orchestration._evidence_page import as_block

        return as_block(self)
