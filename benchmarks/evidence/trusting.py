"""Calibration replayed on recorded answers: how near trust is to what is right, and what acting on it risks."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from recordings import Question

from steer_llm_sdk.evidence import Calibrator, stability
from steer_llm_sdk.evidence.confidence import area_under_roc, expected_calibration_error

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


def standard_error(right: Sequence[bool], independent: int) -> float:
    share = fmean(right)
    return math.sqrt(max(share * (1 - share), 0.01) / max(1, independent))
