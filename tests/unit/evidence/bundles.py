"""Bundles that the tests of reports show."""

from __future__ import annotations

from typing import Any

from steer_llm_sdk.evidence import summarize
from steer_llm_sdk.orchestration.models import BundleMetadata, EvidenceBundle, Replicate, ReplicateQuality

HOSTILE = (
    "<script>window.hit=1</script><img src=x onerror='window.hit=1'>\"'&</style></pre></table>`|*[x](javascript:1)"
)


def bundle_of(*answers: Any, invalid: int = 0, **changes: Any) -> EvidenceBundle:
    replicates = [
        Replicate(
            id=f"r{n}", data=answer, model=("small", "large")[n % 2], elapsed_ms=n * 100, usage={"total_tokens": n}
        )
        for n, answer in enumerate(answers, start=1)
    ]
    bad = ReplicateQuality(valid=False, errors=["InvalidOutput: no JSON"])
    replicates += [Replicate(id=f"x{n}", quality=bad) for n in range(1, invalid + 1)]
    given: dict[str, Any] = {
        "meta": BundleMetadata(task="t", k=len(replicates), total_elapsed_ms=1234),
        "replicates": replicates,
        "summary": summarize(replicates),
        "usage_total": {"total_tokens": 1500},
        "cost_total_usd": 0.0125,
        "cost_breakdown": {"large": 0.0125},
    }
    return EvidenceBundle(**{**given, **changes})


def stopped(bundle: EvidenceBundle, reason: str) -> EvidenceBundle:
    """The same, stopped early, with the trace that a tool leaves."""
    meta = bundle.meta.model_copy(update={"k": 9, "early_stopped": True, "early_stop_reason": reason})
    trace = [
        {"replicate_id": each.id, "valid": each.quality.valid, "stability": 0.5 + 0.1 * n, "need": 3 - n}
        for n, each in enumerate(bundle.replicates[:3])
    ]
    told = {"rule": "pcurtail", "reason": reason, "k": 9, "asked": 3, "cost_saved_usd": 0.025, "trace": trace}
    return bundle.model_copy(update={"meta": meta, "metadata": {"stopping": told}})


def hostile() -> EvidenceBundle:
    """With what a browser might obey in every field that has room for it."""
    replicates = [
        Replicate(
            id=f"{HOSTILE}{n}",
            data={HOSTILE: value, "n": n, "t": f"{HOSTILE} {'word ' * 200}{n}"},
            model=f"{HOSTILE}{n % 2}",
            elapsed_ms=n,
        )
        for n, value in enumerate([HOSTILE, HOSTILE + "x", None, [HOSTILE], {HOSTILE: HOSTILE}])
    ]
    bad = ReplicateQuality(valid=False, errors=[HOSTILE])
    replicates.append(Replicate(id=f"{HOSTILE}bad", quality=bad, model=HOSTILE))
    summary = summarize(replicates).model_copy(
        update={"warnings": [HOSTILE], "truncated": True, "truncation_info": {HOSTILE: HOSTILE}}
    )
    trace = [{"replicate_id": HOSTILE, "stability": HOSTILE, "need": HOSTILE, "valid": False}, HOSTILE]
    return EvidenceBundle(
        meta=BundleMetadata(
            task=HOSTILE, k=6, model=HOSTILE, early_stopped=True, early_stop_reason=HOSTILE, schema_uri=HOSTILE
        ),
        replicates=replicates,
        summary=summary,
        cost_breakdown={HOSTILE: 0.1},
        metadata={"stopping": {"reason": HOSTILE, "asked": HOSTILE, "cost_saved_usd": HOSTILE, "trace": trace}},
    )
