"""Pure statistics of repeated answers: replicates in, numbers out. No async, no I/O, the standard library only."""

from steer_llm_sdk.evidence._leaves import ABSENT, MAX_DEPTH, at, parse_path
from steer_llm_sdk.evidence._report import Difference, Limits, Summary
from steer_llm_sdk.evidence.distance import mean_distance, pairwise_distance
from steer_llm_sdk.evidence.summary import summarize

__all__ = [
    "ABSENT",
    "MAX_DEPTH",
    "Difference",
    "Limits",
    "Summary",
    "at",
    "mean_distance",
    "pairwise_distance",
    "parse_path",
    "summarize",
]
