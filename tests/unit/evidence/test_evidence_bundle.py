"""The models of a bundle: what they take, and what they refuse by name."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from answers import json_values
from hypothesis import given
from pydantic import BaseModel, ValidationError

from steer_llm_sdk.orchestration.models import (
    BundleMetadata,
    BundleSummary,
    Disagreement,
    EvidenceBundle,
    Replicate,
    ReplicateQuality,
)


def bundle(**changes: Any) -> EvidenceBundle:
    given: dict[str, Any] = {
        "meta": BundleMetadata(task="t", k=3, model="m", seeds=[1, 2, 3]),
        "replicates": [
            Replicate(id="r1", data={"x": 1}, usage={"total_tokens": 3}, elapsed_ms=12, seed=1, model="m"),
            Replicate(id="r2", data={"x": 1.5}),
            Replicate(id="r3", quality=ReplicateQuality(valid=False, errors=["no JSON"])),
        ],
        "summary": BundleSummary(
            consensus={"x": 1},
            disagreements=[Disagreement(field="x", values=[1, 1.5], replicate_ids=["r1", "r2"])],
            pairwise_distance=[[0.0, 1.0], [1.0, 0.0]],
            distributions={"x": {"min": 1}},
            confidence=1 / 3,
        ),
        "usage_total": {"total_tokens": 3},
        "cost_total_usd": 0.01,
        "cost_breakdown": {"m": 0.01},
        "metadata": {"simulated": True},
    }
    return EvidenceBundle(**{**given, **changes})


def test_a_bundle_survives_json() -> None:
    made = bundle()
    assert EvidenceBundle.model_validate_json(made.model_dump_json()) == made
    assert EvidenceBundle.model_validate(made.model_dump()) == made


@given(json_values)
def test_any_json_value_is_data(value: Any) -> None:
    replicate = Replicate(id="r1", data=value)
    assert replicate.data == value
    assert Replicate.model_validate_json(replicate.model_dump_json()) == replicate


def test_the_defaults_say_nothing_that_is_not_known() -> None:
    summary = BundleSummary()
    assert summary.model_dump() == {
        "consensus": None,
        "disagreements": [],
        "pairwise_distance": None,
        "distributions": None,
        "confidence": None,
        "truncated": False,
        "truncation_info": None,
        "confidence_is": None,
        "support": None,
        "stability": None,
        "trust": None,
        "nearest": None,
        "medoid": None,
        "consensus_from": None,
        "invalid": {},
        "standing": None,
        "models": None,
        "warnings": [],
    }
    made = EvidenceBundle(meta=BundleMetadata(task="t", k=2), replicates=[])
    assert (made.usage_total, made.cost_total_usd, made.cost_breakdown, made.metadata) == ({}, None, {}, {})
    assert made.meta.model_dump() == {
        "task": "t",
        "k": 2,
        "k_completed": 0,
        "min_valid": 1,
        "model": None,
        "seeds": [],
        "early_stopped": False,
        "early_stop_reason": None,
        "total_elapsed_ms": None,
        "schema_uri": None,
    }


def test_k_completed_is_the_number_of_valid_replicates_where_nobody_said() -> None:
    assert bundle().meta.k_completed == 2
    assert bundle(meta=BundleMetadata(task="t", k=3, k_completed=1)).meta.k_completed == 1


def test_the_callers_metadata_is_not_written() -> None:
    meta = BundleMetadata(task="t", k=3)
    bundle(meta=meta)
    assert meta.k_completed is None


def test_the_callers_data_is_not_shared() -> None:
    data = {"x": [1]}
    replicate = Replicate(id="r1", data=data)
    data["x"].append(2)
    assert replicate.data == {"x": [1]}


def test_models_and_dates_become_json() -> None:
    class Point(BaseModel):
        x: int
        day: date

    replicate = Replicate(id="r1", data=[Point(x=1, day=date(2026, 1, 2)), (1, 2)])
    assert replicate.data == [{"x": 1, "day": "2026-01-02"}, [1, 2]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (float("nan"), "nan is not a JSON number"),
        ({"a": [float("inf")]}, "inf is not a JSON number"),
        ({1: "a"}, "key 1 is no string"),
        ("a\ud800", "half a character"),
        ({"\udfff": 1}, "half a character"),
        (object(), "object is no JSON value"),
    ],
)
def test_what_json_cannot_say_is_refused_with_a_sentence(data: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Replicate(id="r1", data=data)


def test_nesting_ten_thousand_deep_is_refused_with_a_sentence() -> None:
    deep: Any = 1
    for _ in range(10_000):
        deep = {"a": deep}
    with pytest.raises(ValidationError, match="nested deeper than 200 levels"):
        Replicate(id="r1", data=deep)


@pytest.mark.parametrize("confidence", [-0.1, 1.1, float("nan")])
def test_a_confidence_lies_in_0_to_1(confidence: float) -> None:
    with pytest.raises(ValidationError, match="confidence"):
        BundleSummary(confidence=confidence)


@pytest.mark.parametrize(
    "made",
    [
        lambda: ReplicateQuality(ok=True),  # type: ignore[call-arg]
        lambda: Replicate(id="r1", text="x"),  # type: ignore[call-arg]
        lambda: BundleMetadata(task="t", k=3, n=3),  # type: ignore[call-arg]
        lambda: BundleSummary(agreement=1),  # type: ignore[call-arg]
        lambda: bundle(cost=1),
    ],
)
def test_an_unknown_field_is_an_error(made: Any) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        made()


def test_two_replicates_with_one_id_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="the id 'r1' is there twice"):
        bundle(replicates=[Replicate(id="r1"), Replicate(id="r1")])
