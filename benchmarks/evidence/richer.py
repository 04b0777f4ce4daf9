"""Trust from more of the votes than how stable they are: whether that tells right from wrong any better.

Logistic in the logit of the stability and in further features, with strong priors, so that few labels suffice. Features
and priors were compared on the questions that are not held out.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any, Final

import numpy as np
from recordings import Question
from trusting import Drawn, drawn

from steer_llm_sdk.evidence import confidence, stability
from steer_llm_sdk.evidence.confidence import area_under_roc, expected_calibration_error
from steer_llm_sdk.evidence.equivalence import shingles, unlikeness

K: Final = 10
FOLDS: Final = 5
COUNTS: Final = ("share", "distinct", "singles")
TEXTS: Final = ("length", "others", "alike")
CHEAP: Final = ("distinct", "entropy", "invalid", *TEXTS)
EVERY: Final = ("share", "singles", *CHEAP, "digits", "signs", "variety")
FAMILIES: Final = {"crux": "programs", "gsm": "sums", "math-l5": "sums", "aqua": "choices", "collegemath": "choices"}
"""By a part of its name the kind of questions of a task: what is learned from one says least of another kind."""


@dataclass(frozen=True, slots=True)
class Way:
    """`centred`: the prior has the mean of what is learned of tasks of other kinds, else 0."""

    features: Sequence[str] = ()
    centred: bool = False
    clip: float = confidence._CLIP

    @property
    def variance(self) -> float:
        return 0.01 if self.centred else 0.04


WAYS: Final[Mapping[str, Way]] = {
    "stability alone, within 0.01 … 0.99": Way(clip=0.01),
    "stability alone, within 0.003 … 0.997 (as it is)": Way(),
    "+ length of the leading answer": Way(("length",)),
    "+ counts: share, distinct and single answers": Way(COUNTS),
    "+ counts, prior from tasks of other kinds": Way(COUNTS, centred=True),
    "+ texts: length, that of the others, likeness": Way(TEXTS),
    "+ texts, prior from tasks of other kinds": Way(TEXTS, centred=True),
    "+ **texts, distinct, entropy, invalid**": Way(CHEAP),
    "+ these six, prior from tasks of other kinds": Way(CHEAP, centred=True),
    "+ all of these, and characters": Way(EVERY),
    "+ all, prior from tasks of other kinds": Way(EVERY, centred=True),
}
PLAIN, CHOSEN = Way(), WAYS["+ **texts, distinct, entropy, invalid**"]


def seen_in(votes: Sequence[str | None]) -> dict[str, float]:
    valid = [vote for vote in votes if vote is not None]
    counts = sorted(Counter(valid).values(), reverse=True)
    leader = max(dict.fromkeys(valid), key=valid.count, default="")
    others = [vote for vote in valid if vote != leader]
    length, size = math.log1p(len(leader)), max(1, len(leader))
    return {
        "stability": stability(votes),
        "share": max(counts, default=0) / len(votes),
        "distinct": math.log(max(1, len(counts))),
        "singles": counts.count(1) / len(votes),
        "entropy": -sum(n / len(votes) * math.log(n / len(votes)) for n in counts),
        "invalid": votes.count(None) / len(votes),
        "length": length,
        "others": fmean(math.log1p(len(vote)) for vote in others) - length if others else 0.0,
        "alike": fmean(_alike(leader, vote) for vote in others) if others else 1.0,
        "digits": sum(map(str.isdigit, leader)) / size,
        "signs": sum(not character.isalnum() for character in leader) / size,
        "variety": len(set(leader)) / size,
    }


@cache
def _alike(left: str, right: str) -> float:
    return 1 - unlikeness(left, right, shingles(left), shingles(right))


@dataclass(frozen=True, slots=True)
class Table:
    """A row for each question: its features by name, and whether the leader is right."""

    columns: Mapping[str, Any]
    right: Any

    @classmethod
    def of(cls, cases: Sequence[Drawn]) -> Table:
        rows = [seen_in(votes) for votes, _ in cases]
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        return cls(columns, np.array([float(right) for _, right in cases]))


class Study:
    """`tasks` whose replicates vary. The same draws for every way, so that ways differ by what they are alone."""

    def __init__(self, tasks: Mapping[str, Sequence[Question]], repeats: int) -> None:
        self._kinds = {task: next(kind for part, kind in FAMILIES.items() if part in task) for task in tasks}
        self._repeats = range(repeats)
        parts: dict[str, Callable[[Question], bool]] = {
            "chosen on": lambda question: not question.held_out,
            "held out": lambda question: question.held_out,
            "all": lambda question: True,
        }
        self._tables = {
            (part, task): [
                Table.of(drawn(list(filter(among, questions)), K, random.Random(repeat))) for repeat in self._repeats
            ]
            for part, among in parts.items()
            for task, questions in tasks.items()
        }

    def measured(self, way: Way, part: str, labels: int | None, least: int = 15) -> dict[str, tuple[float, float]]:
        """For each task AUROC and ECE on what was not labelled; `labels` None: four fifths of each task in turn."""
        measured = {}
        for task in self._kinds:
            tables = self._tables[part, task]
            if labels is not None and len(tables[0].right) < labels + least:
                continue
            found = [self._told(way, task, table, labels) for table in tables]
            area = fmean(area_under_roc(told) or 0.5 for told in found)
            measured[task] = area, fmean(map(expected_calibration_error, found))
        return measured

    def _told(self, way: Way, task: str, table: Table, labels: int | None) -> list[tuple[float, bool]]:
        place, n = np.arange(len(table.right)), len(table.right)
        labelled = [place < labels] if labels is not None else [place % FOLDS != fold for fold in range(FOLDS)]
        middle, spread = self._scale(way, task)
        rows = _rows(table, way, middle, spread)
        told = np.full(n, np.nan)
        for known in labelled:
            fit = _fitted(rows[known], table.right[known], self._centre(way, task), _variances(way))
            told[~known] = _averaged(rows[~known], *fit)
        kept = ~np.isnan(told)
        return list(zip(told[kept].tolist(), (table.right[kept] > 0).tolist(), strict=True))

    def _elsewhere(self, task: str) -> list[Table]:
        """Of the tasks of other kinds, the questions that are not held out."""
        return [self._tables["chosen on", each][0] for each in self._kinds if self._kinds[each] != self._kinds[task]]

    @cache  # noqa: B019 - one study lives as long as the run.
    def _scale(self, way: Way, task: str) -> tuple[Any, Any]:
        means = [[table.columns[name].mean() for name in way.features] for table in self._elsewhere(task)]
        middle = np.mean(means, axis=0)
        squares = [
            [((table.columns[name] - at) ** 2).mean() for name, at in zip(way.features, middle, strict=True)]
            for table in self._elsewhere(task)
        ]
        return middle, np.sqrt(np.mean(squares, axis=0)) + 1e-9

    @cache  # noqa: B019 - as above.
    def _centre(self, way: Way, task: str) -> Any:
        flat = np.array([0.0, 0.75, *[0.0] * len(way.features)])
        if not way.centred:
            return flat
        middle, spread = self._scale(way, task)
        wide = np.array([1.0, 1 / 16, *[0.04] * len(way.features)])
        found = [
            _fitted(_rows(table, way, middle, spread), table.right, flat, wide)[0] for table in self._elsewhere(task)
        ]
        return np.concatenate([flat[:2], np.mean(found, axis=0)[2:]])


def _variances(way: Way) -> Any:
    """Offset and slope as in `Calibrator`."""
    return np.array([1.0, 1 / 16, *[way.variance] * len(way.features)])


def _rows(table: Table, way: Way, middle: Any, spread: Any) -> Any:
    scaled = [(table.columns[name] - at) / by for name, at, by in zip(way.features, middle, spread, strict=True)]
    p = np.clip(table.columns["stability"], way.clip, 1 - way.clip)
    return np.column_stack([np.ones(len(table.right)), np.log(p / (1 - p)), *scaled])


def _fitted(rows: Any, right: Any, centre: Any, variances: Any) -> tuple[Any, Any]:
    """The posterior mode by Newton's method with halved steps, and the covariance there."""

    def loss(weights: Any) -> float:
        logits = rows @ weights
        prior = ((weights - centre) ** 2 / variances).sum() / 2
        return float((np.logaddexp(0, logits) - right * logits).sum() + prior)

    def curvature(weights: Any) -> tuple[Any, Any]:
        p = 1 / (1 + np.exp(-rows @ weights))
        return p, (rows * (p * (1 - p))[:, None]).T @ rows + np.diag(1 / variances)

    weights, now = centre, loss(centre)
    for _ in range(50):
        p, hessian = curvature(weights)
        step = np.linalg.solve(hessian, rows.T @ (right - p) - (weights - centre) / variances)
        size = 1.0
        while (tried := loss(weights + size * step)) > now and size > 1e-9:
            size /= 2
        if now - tried < 1e-9:
            break
        weights, now = weights + size * step, tried
    return weights, np.linalg.inv(curvature(weights)[1])


def _averaged(rows: Any, weights: Any, covariance: Any) -> Any:
    variance = np.einsum("ij,jk,ik->i", rows, covariance, rows)
    return 1 / (1 + np.exp(-(rows @ weights) / np.sqrt(1 + math.pi * variance / 8)))
