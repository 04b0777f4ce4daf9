"""What orchestration hands back about repeated answers."""

from steer_llm_sdk.orchestration.models.evidence_bundle import (
    BundleMetadata,
    BundleSummary,
    Disagreement,
    EvidenceBundle,
    Replicate,
    ReplicateQuality,
)

__all__ = [
    "BundleMetadata",
    "BundleSummary",
    "Disagreement",
    "EvidenceBundle",
    "Replicate",
    "ReplicateQuality",
]
