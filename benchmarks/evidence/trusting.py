"""Calibration replayed on recorded answers: how near trust is to what is right, and what acting on it risks."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Final
from unittest.mock import patch

from recordings import Question
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GroupKFold, cross_val_predict

from steer_llm_sdk.evidence import Calibrator, confidence, stability, stopping
from steer_llm_sdk.evidence.confidence import area_under_roc, expected_calibration_error
from steer_llm_sdk.evidence.equivalence import shingles, unlikeness

_doubt = confidence._platt
OTHER_WAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "as it is": {},
    "a wider prior: offset N(0, 4), slope N(1, 1/4)": {"_OFFSET_VARIANCE": 4.0, "_SLOPE": 1.0, "_SLOPE_VARIANCE": 0.25},
    "offset N(0, 1), slope N(1, 1/4)": {"_SLOPE": 1.0, "_SLOPE_VARIANCE": 0.25},
    "not averaged over what labels leave open": {"_platt": lambda rows: (*_doubt(rows)[:2], (0.0, 0.0, 0.0))},
    "no ceiling": {"_ceilings": lambda cases: ((-99.0, 0.9999),)},
    "isotonic from the first label": {"ISOTONIC_FROM": 1},
}
OTHER_URNS: Final[Mapping[str, Sequence[float]]] = {
    "0.1, 0.5, 2, 10 (as it is)": (0.1, 0.5, 2.0, 10.0),
    "0.03, 0.1, 0.3, 1, 3, 10": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "0.1, 1, 10": (0.1, 1.0, 10.0),
    "0.01 … 100, nine of them": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    "1 alone": (1.0,),
    "0.3 alone": (0.3,),
}

Told = list[tuple[float, bool]]
Drawn = tuple[list[str | None], bool]


def drawn(questions: Sequence[Question], k: int, rng: random.Random) -> list[Drawn]:
    """k votes on each question in random order, and whether their leader, the first seen of several, is right."""
    cases = []
    for question in rng.sample(questions, len(questions)):
        votes = question.drawn(rng, k)
        valid = [vote for vote in votes if vote is not None]
        leader = max(dict.fromkeys(valid), key=valid.count, default=None)
        cases.append((votes, leader in question.right))
    return cases


def fitted(cases: Sequence[Drawn], k: int, tasks: Sequence[str] | None = None) -> Calibrator:
    votes, correct = zip(*cases, strict=True) if cases else ((), ())
    # What it says of itself is not asked for here, and takes ten times as long as the rest.
    with patch.object(confidence, "_left_out", lambda *cases, **given: [(0.5, True)]):
        return Calibrator.fit(votes, correct, k=k, model=None, tasks=tasks)


@dataclass(slots=True)
class Selective:
    """What was told of the answers to questions that were not in the labels, by task."""

    told: dict[str, Told] = field(default_factory=lambda: defaultdict(list))

    def acted(self, threshold: float, task: str | None = None) -> list[bool]:
        tasks = [task] if task is not None else list(self.told)
        return [right for name in tasks for trust, right in self.told[name] if trust >= threshold]

    def coverage(self, threshold: float, task: str | None = None) -> float:
        """The share that is acted on; over tasks, each weighs the same."""
        tasks = [task] if task is not None else list(self.told)
        return fmean(fmean(trust >= threshold for trust, _ in self.told[name]) for name in tasks)

    def area(self) -> float:
        """The AUROC of all that was told."""
        return area_under_roc([each for told in self.told.values() for each in told]) or 0.0

    def curve(self) -> list[tuple[float, float]]:
        """Coverage and the share that is wrong, in %, from the most trusted answers on; tasks weigh the same."""
        weight = {task: 1 / len(told) / len(self.told) for task, told in self.told.items()}
        every = [(trust, right, weight[task]) for task, told in self.told.items() for trust, right in told]
        every.sort(key=lambda each: -each[0])
        points, covered, wrong = [], 0.0, 0.0
        for place, (trust, right, share) in enumerate(every):
            covered, wrong = covered + share, wrong + share * (not right)
            last = place + 1 == len(every)
            if (last or every[place + 1][0] < trust) and covered > 0.02:
                points.append((100 * covered, 100 * wrong / covered))
        return points[:: max(1, len(points) // 150)] + points[-1:]


def within_tasks(tasks: dict[str, list[Question]], k: int, labels: int, repeats: int, least: int = 50) -> Selective:
    """Calibrated on `labels` questions of a task, told of the others of that task."""
    found = Selective()
    for task, questions in tasks.items():
        if len(questions[0].votes) < k or len(questions) < labels + least:
            continue
        for repeat in range(repeats):
            cases = drawn(questions, k, random.Random(repeat))
            calibrator = fitted(cases[:labels], k)
            found.told[task] += [(calibrator.trust(votes), right) for votes, right in cases[labels:]]
    return found


def across_tasks(groups: Iterable[dict[str, list[Question]]], k: int, labels: int, repeats: int) -> Selective:
    """Calibrated on `labels` questions of each other task of the group, told of a task that was not among them."""
    found = Selective()
    for group in groups:
        usable = {task: questions for task, questions in group.items() if len(questions[0].votes) >= k}
        if len(usable) < 2:
            continue
        for repeat in range(repeats):
            rng = random.Random(repeat)
            cases = {task: drawn(questions, k, rng) for task, questions in usable.items()}
            for task in usable:
                others = {name: each[:labels] for name, each in cases.items() if name != task}
                names = [name for name, each in others.items() for _ in each]
                calibrator = fitted([case for each in others.values() for case in each], k, tasks=names)
                found.told[task] += [(calibrator.trust(votes), right) for votes, right in cases[task]]
    return found


def by_family(tasks: dict[str, list[Question]]) -> list[dict[str, list[Question]]]:
    """Tasks answered by the same model, or the same kind of ensemble: trust is refused across them."""
    families = ("strictjson_gpt4o", "zeroeval", "cruxeval", "gpt35_T0")
    return [{name: each for name, each in tasks.items() if name.startswith(family)} for family in families]


@dataclass(frozen=True, slots=True)
class Error:
    """`floor`: the ECE that a predictor which is exactly right would have on as few answers, by chance."""

    ece: float
    floor: float
    auroc: float | None
    tasks: int


def calibration_error(tasks: dict[str, list[Question]], k: int, labels: int, repeats: int, least: int) -> Error:
    """Means over tasks with at least `least` questions besides the labels, each with up to k votes."""
    errors, floors, areas = [], [], []
    for questions in tasks.values():
        votes = min(k, len(questions[0].votes))
        if len(questions) < labels + least:
            continue
        of_task: list[tuple[float, float, float | None]] = []
        for repeat in range(repeats):
            rng = random.Random(repeat)
            cases = drawn(questions, votes, rng)
            calibrator = fitted(cases[:labels], votes)
            told = [(calibrator.trust(each), right) for each, right in cases[labels:]]
            luck = [(trust, rng.random() < trust) for trust, _ in told]
            area = area_under_roc(told)
            of_task.append((expected_calibration_error(told), expected_calibration_error(luck), area))
        errors.append(fmean(each[0] for each in of_task))
        floors.append(fmean(each[1] for each in of_task))
        areas += [fmean(area for *_, area in of_task if area is not None)]
    return Error(fmean(errors), fmean(floors), fmean(areas), len(errors))


def told_apart(questions: Sequence[Question], k: int, repeats: int) -> float | None:
    """AUROC of stability, which trust follows."""
    told = [
        (stability(votes), right)
        for repeat in range(repeats)
        for votes, right in drawn(questions, k, random.Random(repeat))
    ]
    return area_under_roc(told)


def unanimous(questions: Sequence[Question], k: int) -> tuple[float, float]:
    """How often k answers are all the same, and how often they are then right."""
    cases = [case for repeat in range(5) for case in drawn(questions, k, random.Random(repeat))]
    agreed = [right for votes, right in cases if len(set(votes)) == 1 and votes[0] is not None]
    return len(agreed) / len(cases), fmean(agreed) if agreed else math.nan


def counted(votes: Sequence[str | None]) -> list[float]:
    """What the counts say: the first four by rank, invalid ones, answers, their entropy."""
    counts = sorted(Counter(vote for vote in votes if vote is not None).values(), reverse=True)
    entropy = -sum(n / len(votes) * math.log(n / len(votes)) for n in counts)
    return [*(counts + [0] * 4)[:4], votes.count(None), len(counts), entropy]


def worded(votes: Sequence[str | None]) -> list[float]:
    """What the texts say: the length of the leader, the mean length, and how alike the others are to the leader."""
    valid = [vote for vote in votes if vote is not None]
    leader = max(dict.fromkeys(valid), key=valid.count, default="")
    alike = [1 - unlikeness(leader, vote, shingles(leader), shingles(vote)) for vote in valid]
    return [len(leader), fmean(map(len, valid)) if valid else 0, sum(alike) / len(votes)]


def by_forest(questions: Sequence[Question], k: int, *seen: Callable[[Sequence[str | None]], list[float]]) -> float:
    """AUROC of the best that can be learned from what is `seen` of the votes, with labels of the same task."""
    rows, right, groups = [], [], []
    for repeat in range(5):
        order = random.Random(repeat)
        for number, question in enumerate(questions):
            (votes, good), *_ = drawn([question], k, order)
            rows.append([number for each in seen for number in each(votes)])
            right.append(good)
            groups.append(number)
    forest = RandomForestClassifier(100, min_samples_leaf=20, random_state=0)
    told = cross_val_predict(forest, rows, right, groups=groups, cv=GroupKFold(5), method="predict_proba")[:, 1]
    return area_under_roc(list(zip(map(float, told), right, strict=True))) or 0.0


@contextmanager
def changed(changes: Mapping[str, Any]) -> Iterator[None]:
    with patch.multiple(confidence, **changes) if changes else patch.object(confidence, "VERSION", confidence.VERSION):
        yield


@contextmanager
def urns(thetas: Sequence[float]) -> Iterator[None]:
    """As long as it lasts, stopping predicts with these."""
    for cached in (stopping._will_keep, stopping._odds):
        cached.cache_clear()
    with patch.object(stopping, "THETAS", tuple(thetas)):
        yield
    for cached in (stopping._will_keep, stopping._odds):
        cached.cache_clear()


def standard_error(right: Sequence[bool], independent: int) -> float:
    share = fmean(right)
    return math.sqrt(max(share * (1 - share), 0.01) / max(1, independent))
