"""Pure statistics of repeated answers: replicates in, numbers out. No async, no I/O, the standard library only."""

from typing import TYPE_CHECKING

from steer_llm_sdk._names import looked_up
from steer_llm_sdk.evidence._leaves import ABSENT, MAX_DEPTH, at, parse_path

if TYPE_CHECKING:
    from steer_llm_sdk.evidence._limits import Limits
    from steer_llm_sdk.evidence.confidence import Calibrator, stability, support
    from steer_llm_sdk.evidence.distance import mean_distance, pairwise_distance
    from steer_llm_sdk.evidence.ensemble import weights_by_agreement
    from steer_llm_sdk.evidence.policy import FieldPolicy
    from steer_llm_sdk.evidence.stopping import StopDecision, should_stop
    from steer_llm_sdk.evidence.summary import summarize

__all__ = [
    "ABSENT",
    "MAX_DEPTH",
    "Calibrator",
    "FieldPolicy",
    "Limits",
    "StopDecision",
    "at",
    "mean_distance",
    "pairwise_distance",
    "parse_path",
    "should_stop",
    "stability",
    "summarize",
    "support",
    "weights_by_agreement",
]

# A run whose tool makes no bundle counts nothing.
_LATE = {
    "FieldPolicy": f"{__name__}.policy",
    "Limits": f"{__name__}._limits",
    **dict.fromkeys(("mean_distance", "pairwise_distance"), f"{__name__}.distance"),
    **dict.fromkeys(("Calibrator", "stability", "support"), f"{__name__}.confidence"),
    **dict.fromkeys(("StopDecision", "should_stop"), f"{__name__}.stopping"),
    "summarize": f"{__name__}.summary",
    "weights_by_agreement": f"{__name__}.ensemble",
}

if not TYPE_CHECKING:  # A type checker would take any name to be there.
    __getattr__ = looked_up(__name__, _LATE)
