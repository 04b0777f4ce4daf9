"""What repeated answers say, in the form that is handed on: answers, where they agree, and where they do not."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from steer_llm_sdk.evidence._json import Json, json_value

JsonList = Annotated[list[Any], BeforeValidator(json_value)]


class Model(BaseModel):
    # Built when first used: an import that never makes a bundle does not pay for it.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)


class ReplicateQuality(Model):
    """Whether a replicate counts. An invalid one stays in the denominator of every share of the votes."""

    valid: bool = True
    errors: list[str] = []
    warnings: list[str] = []
    schema_version: str | None = None


class Replicate(Model):
    """One answer. `data` is any JSON value, null for an answer that is none; `model` is the one that gave it."""

    id: str = Field(min_length=1)
    data: Json = None
    quality: ReplicateQuality = Field(default_factory=ReplicateQuality)
    usage: dict[str, Any] = {}
    elapsed_ms: int | float | None = Field(default=None, ge=0)
    seed: int | None = None
    model: str | None = None


class Answer(Model):
    """One of the answers to a contested field. `share` is its part of all votes by weight, invalid ones included.

    `excerpt` is where a long text differs from the consensus, `…` on either side standing for what is left out.
    """

    value: Any
    votes: int
    share: float
    replicate_ids: list[str]
    excerpt: str | None = None


class Disagreement(Model):
    """A field on which valid replicates differ: `values[i]` is what `replicate_ids[i]` said.

    A valid replicate that is not listed did not give the field; one that said null is listed with null. `answers` are
    the different ones, most votes first, and `more` is how many are not listed there; `absent` are those that have the
    object but not this field in it. `support` is the share of all votes that the consensus's value has, `entropy` that
    of the answers in nats, and `severity` the mean distance of an answer from the consensus, 0 to 1.
    """

    field: str
    values: JsonList
    replicate_ids: list[str]
    support: float | None = None
    entropy: float | None = None
    severity: float | None = None
    answers: list[Answer] = []
    more: int = 0
    absent: list[str] = []


class Standing(Model):
    """One valid replicate among the others. `agreement` is the share of the fields in which it gave the consensus.

    `distance` is its mean distance to the others, and `outlier` how many times the usual spread (1.4826 x the median
    distance to the median, at least 0.02) that is above the median: from 3.5 on, look at it.
    """

    agreement: float
    distance: float | None = None
    outlier: float | None = None


class ModelAgreement(Model):
    """What one of several models gave. `agreement` is the mean of its valid replicates', None without one."""

    replicates: int
    valid: int
    agreement: float | None = None


class BundleSummary(Model):
    """Where the replicates agree. `confidence` is None exactly where there is no consensus.

    `support` is the share of all replicates, invalid ones included, that gave the consensus, averaged over the fields:
    how stable the answer is, not how likely it is to be true; `stability` the probability that it is what is said most
    often; `trust` the probability that it is right, where a calibrator could tell; the two are set by a bundle.
    `confidence` is one of the three, and `confidence_is` says which.
    `nearest` is the valid replicate that agrees most with the consensus, `medoid` the one nearest to all others.
    `consensus_from` is the replicate whose whole answer is the consensus, because the field-wise one did not fit the
    schema. `invalid` has the reasons why replicates do not count. `pairwise_distance` has a row for each valid
    replicate, sorted by id; `standing` has each of these, `models` each of several models. `distributions` maps each
    field to its counts and, for numbers, to what they are like. `warnings` tells of a judge or a rule that failed, and
    of a path in `fields` or a name in `weights` that no replicate has.
    """

    consensus: Json = None
    disagreements: list[Disagreement] = []
    pairwise_distance: list[list[float]] | None = None
    distributions: dict[str, Any] | None = None
    confidence: float | None = Field(default=None, ge=0, le=1)
    truncated: bool = False
    truncation_info: dict[str, Any] | None = None
    confidence_is: Literal["support", "stability", "trust"] | None = None
    support: float | None = Field(default=None, ge=0, le=1)
    stability: float | None = Field(default=None, ge=0, le=1)
    trust: float | None = Field(default=None, ge=0, lt=1)
    nearest: str | None = None
    medoid: str | None = None
    consensus_from: str | None = None
    invalid: dict[str, list[str]] = {}
    standing: dict[str, Standing] | None = None
    models: dict[str, ModelAgreement] | None = None
    warnings: list[str] = []
