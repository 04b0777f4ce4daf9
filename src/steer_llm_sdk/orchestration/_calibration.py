"""From which score on the answer of a cheap tool may be trusted, learned from scored answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.evidence.confidence import area_under_roc

LEAST_AUROC = 0.65
"""A verifier that tells right from wrong no better than this is no reason to stop at a cheap answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """From which score on an answer is right as often as was asked.

    `bound` is infinite where no score is good enough: then every answer is escalated. `right_at_least` is the lower
    bound of the share that is right from there on, over `answers` scored ones.
    """

    bound: float
    auroc: float
    right_at_least: float
    answers: int

    def __post_init__(self) -> None:
        if not self.auroc >= LEAST_AUROC:
            raise InvalidRequest(
                "auroc",
                round(self.auroc, 4),
                f"a verifier that tells right from wrong no better than {LEAST_AUROC} cannot stop a cascade; "
                "use a better one, or the dear tool alone",
            )

    @classmethod
    def of(cls, scored: Iterable[tuple[float, bool]], target: float, *, confidence: float = 0.9) -> Calibration:
        """The lowest bound above which `target` of the answers are right, by the lower bound of Wilson's interval with
        this one-sided `confidence`, so that a lucky sample is not taken for a good verifier. InvalidRequest where the
        AUROC of the scores is below LEAST_AUROC."""
        pairs = sorted(((float(score), bool(right)) for score, right in scored), reverse=True)
        if not 0 < target < 1:
            raise InvalidRequest("target", target, "give a share between 0 and 1")
        area = auroc(pairs)
        z = _quantile(confidence)
        bound, lowest, right = math.inf, 0.0, 0
        for count, (score, is_right) in enumerate(pairs, 1):
            right += is_right
            tied = count < len(pairs) and pairs[count][0] == score
            least = wilson_lower(right, count, z)
            if not tied and least >= target:
                bound, lowest = score, least
        return cls(bound=bound, auroc=area, right_at_least=lowest, answers=len(pairs))


def auroc(pairs: Sequence[tuple[float, bool]]) -> float:
    """The chance that a right answer has a higher score than a wrong one; InvalidRequest where one kind is missing."""
    area = area_under_roc(pairs)
    if area is None:
        right = sum(is_right for _, is_right in pairs)
        raise InvalidRequest("scored", f"{right} right and {len(pairs) - right} wrong answers", "give some of both")
    return area


def wilson_lower(right: int, count: int, z: float) -> float:
    """Lower bound of a share (Wilson 1927)."""
    share, square = right / count, z * z
    spread = z * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return (share + square / (2 * count) - spread) / (1 + square / count)


def _quantile(confidence: float) -> float:
    if not 0.5 <= confidence < 1:
        raise InvalidRequest("confidence", confidence, "give a number from 0.5 to below 1")
    return NormalDist().inv_cdf(confidence)
