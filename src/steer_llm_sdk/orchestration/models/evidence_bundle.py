"""What a bundle of repeated answers says: the replicates, where they agree, and what that cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticSerializationError, to_jsonable_python

from steer_llm_sdk.evidence import MAX_DEPTH

if TYPE_CHECKING:
    from steer_llm_sdk.evidence import Summary


def json_value(value: Any, depth: int = 0) -> Any:
    """A copy of `value` in plain JSON types. ValueError for what JSON cannot say: NaN, half a character, an object."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return _number(value)
    if depth >= MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels; flatten it")
    if isinstance(value, Mapping):
        return {_key(key): json_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item, depth + 1) for item in value]
    return json_value(_plain(value), depth + 1)


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text with half a character (a lone surrogate) at {error.start}; replace it") from None
    return value


def _number(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a JSON number; use null or a string")
    return value


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"key {key!r} is no string; JSON objects have string keys")
    return _text(key)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        raise ValueError(f"{type(value).__name__} is no JSON value: {error}") from None


Json = Annotated[Any, BeforeValidator(json_value)]


class _Model(BaseModel):
    # Built when first used: an import that never makes a bundle does not pay for it.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)


class ReplicateQuality(_Model):
    """Whether a replicate counts. An invalid one stays in the denominator of every share of the votes."""

    valid: bool = True
    errors: list[str] = []
    warnings: list[str] = []
    schema_version: str | None = None


class Replicate(_Model):
    """One answer. `data` is any JSON value, null for an answer that is none; `model` is the one that gave it."""

    id: str = Field(min_length=1)
    data: Json = None
    quality: ReplicateQuality = Field(default_factory=ReplicateQuality)
    usage: dict[str, Any] = {}
    elapsed_ms: int | float | None = Field(default=None, ge=0)
    seed: int | None = None
    model: str | None = None


class BundleMetadata(_Model):
    """`k` replicates were asked for, `k_completed` are valid; an EvidenceBundle counts them where nobody said."""

    task: str
    k: int = Field(ge=1)
    k_completed: int | None = Field(default=None, ge=0)
    model: str | None = None
    seeds: list[int] = []
    early_stopped: bool = False
    early_stop_reason: str | None = None
    total_elapsed_ms: int | float | None = Field(default=None, ge=0)
    schema_uri: str | None = None


class Disagreement(_Model):
    """A field on which valid replicates differ: `values[i]` is what `replicate_ids[i]` said.

    A valid replicate that is not listed did not give the field; one that said null is listed with null.
    """

    field: str
    values: list[Json]
    replicate_ids: list[str]


class BundleSummary(_Model):
    """Where the replicates agree. `confidence` is None exactly where there is no consensus.

    `confidence` is the share of all replicates, invalid ones included, that gave the consensus, averaged over the
    fields: how stable the answer is, not how likely it is to be true. `pairwise_distance` has a row for each valid
    replicate, sorted by id. `distributions` maps each field to counts and, for numbers, min, median and max.
    """

    consensus: Json = None
    disagreements: list[Disagreement] = []
    pairwise_distance: list[list[float]] | None = None
    distributions: dict[str, Any] | None = None
    confidence: float | None = Field(default=None, ge=0, le=1)
    truncated: bool = False
    truncation_info: dict[str, Any] | None = None

    @classmethod
    def of(cls, summary: Summary) -> BundleSummary:
        """The model of what `steer_llm_sdk.evidence.summarize` found."""
        return cls(
            consensus=summary.consensus,
            disagreements=[
                Disagreement(field=d.field, values=list(d.values), replicate_ids=list(d.replicate_ids))
                for d in summary.disagreements
            ],
            pairwise_distance=None if summary.pairwise_distance is None else [*map(list, summary.pairwise_distance)],
            distributions=None if summary.distributions is None else dict(summary.distributions),
            confidence=summary.confidence,
            truncated=summary.truncated,
            truncation_info=None if summary.truncation_info is None else dict(summary.truncation_info),
        )


class EvidenceBundle(_Model):
    """Repeated answers to one request. `cost_total_usd` is None where the price of any of them is unknown."""

    meta: BundleMetadata
    replicates: list[Replicate]
    summary: BundleSummary = Field(default_factory=BundleSummary)
    usage_total: dict[str, Any] = {}
    cost_total_usd: float | None = Field(default=None, ge=0)
    cost_breakdown: dict[str, float] = {}
    metadata: dict[str, Any] = {}

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
