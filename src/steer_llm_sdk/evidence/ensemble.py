"""What the votes of several models are worth, learned from how they agree: no labels."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import Final

LEAST_QUESTIONS: Final = 50
"""Questions below which all models weigh the same: agreement on few says more of the questions than of the models."""
_ROUNDS: Final = 20
_START: Final = 0.7
_LEAST, _MOST = 0.01, 0.99
_LEAST_WEIGHT: Final = 0.01


def weights_by_agreement(answers: Sequence[Mapping[str, Hashable]]) -> dict[str, float]:
    """The weight of each model's vote, for `summarize(weights=...)`; their mean is 1.

        past = [{"big": "a", "small": "b", "other": "a"}, {"big": "c", "other": "c"}, ...]
        summarize(replicates, weights=weights_by_agreement(past))

    `answers` has a mapping for each past question, of the same kind as those to come, from the models that answered to
    what they said; None is an invalid answer. A model gives the right one with probability p, and one of the wrong ones
    else; p and the right answers are estimated in turns from nothing but the answers (one-coin Dawid and Skene 1979, of
    answers that are not known before), and the weight is ln(p (C + 3) / (1 - p)) with C answers to a question. Fewer
    than 50 questions, or models that all agree: every weight is 1. Models that repeat each other's mistakes are taken
    to confirm each other.
    """
    models = list(dict.fromkeys(model for each in answers for model in each))
    answered = [each for each in answers if any(vote is not None for vote in each.values())]
    if len(answered) < LEAST_QUESTIONS:
        return dict.fromkeys(models, 1.0)
    skill = dict.fromkeys(models, _START)
    for _ in range(_ROUNDS):
        before, skill = skill, _skill(answered, skill)
        if max(abs(skill[model] - before[model]) for model in models) < 1e-4:
            break
    classes = fmean(len(_said(each)) for each in answered)
    weights = {model: max(_LEAST_WEIGHT, _weight(p, classes)) for model, p in skill.items()}
    mean = fmean(weights.values())
    return {model: weight / mean for model, weight in weights.items()}


def _skill(answers: Sequence[Mapping[str, Hashable]], skill: Mapping[str, float]) -> dict[str, float]:
    """How often each model gives the right answer, by how likely each answer is right. One right and one wrong answer
    are added to each, so that none is certain."""
    right, asked = dict.fromkeys(skill, 1.0), dict.fromkeys(skill, 2.0)
    for each in answers:
        likely = _likely(each, skill)
        for model, vote in each.items():
            asked[model] += 1
            right[model] += 0.0 if vote is None else likely[vote]
    return {model: min(_MOST, max(_LEAST, right[model] / asked[model])) for model in skill}


def _likely(votes: Mapping[str, Hashable], skill: Mapping[str, float]) -> dict[Hashable, float]:
    """The probability of each answer that it is the right one; what is left is of an answer that nobody gave."""
    logs = dict.fromkeys(_said(votes), 0.0)
    for model, vote in votes.items():
        if vote is not None:
            logs[vote] += _weight(skill[model], len(logs))
    most = max(0.0, *logs.values())
    odds = {vote: math.exp(log - most) for vote, log in logs.items()}
    whole = math.fsum(odds.values()) + math.exp(-most)
    return {vote: each / whole for vote, each in odds.items()}


def _weight(p: float, classes: float) -> float:
    return math.log(p * (classes + 3) / (1 - p))


def _said(votes: Mapping[str, Hashable]) -> dict[Hashable, None]:
    return dict.fromkeys(vote for vote in votes.values() if vote is not None)
