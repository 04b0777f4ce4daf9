"""Stopping rules replayed on recorded answers, and what each saves and costs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean

from recordings import Question, accuracy, plurality

from steer_llm_sdk.evidence import weights_by_agreement
from steer_llm_sdk.evidence.stopping import Counts, Rule, Standing, decide, is_certified, is_decided

Stops = Callable[[Counts, int, int], bool]
"""Of the votes per answer, most first, how many votes are in, and k."""


def ours(rule: Rule, risk: float = 0.01) -> Stops:
    @cache
    def stops(counts: Counts, n: int, k: int) -> bool:
        return decide(Standing(counts, n, k, rank=1), rule, risk).stop

    return stops


@cache
def beta_095(counts: Counts, n: int, k: int) -> bool:
    """Adaptive-Consistency's criterion: P(theta > 1/2 | Beta(v1 + 1, v2 + 1)) >= 0.95, exactly."""
    first, second = (*counts, 0, 0)[:2]
    total = first + second + 1
    return sum(math.comb(total, i) for i in range(first + 1)) / 2**total >= 0.95


def fixed_urn(risk: float) -> Stops:
    """Predictive curtailment with one urn for all questions: half a ball for each answer and half for all unseen."""

    @cache
    def stops(counts: Counts, n: int, k: int) -> bool:
        if is_decided(Standing(counts, n, k)):
            return True
        if not counts or n >= k:
            return False
        left, total = k - n, sum(counts) + (len(counts) + 1) / 2
        rivals = [(counts[0] - votes, votes + 0.5) for votes in counts[1:]] + [(counts[0], 0.5)]
        return sum(_overtakes(counts[0] + 0.5, rival, total, left, behind) for behind, rival in rivals) <= risk

    return stops


def window(width: int) -> Stops:
    """Early-stopping self-consistency: a whole window of equal answers."""
    return lambda counts, n, k: len(counts) == 1 and n >= width and counts[0] == n


def share(threshold: float, least: int) -> Stops:
    return lambda counts, n, k: n >= least and bool(counts) and counts[0] >= threshold * n


@dataclass(slots=True)
class Tally:
    """Sums over runs. `change` is of accuracy against that of all k votes, by question for its standard error."""

    runs: int = 0
    used: int = 0
    same: float = 0.0
    change: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    used_by_task: dict[str, list[int]] = field(default_factory=dict)
    same_by_task: dict[str, list[bool]] = field(default_factory=dict)

    def with_(self, other: Tally) -> Tally:
        """Of runs on other questions as well."""
        tasks = self.used_by_task.keys() | other.used_by_task.keys()
        return Tally(
            self.runs + other.runs,
            self.used + other.used,
            self.same + other.same,
            {**self.change, **other.change},
            {task: self.used_by_task.get(task, []) + other.used_by_task.get(task, []) for task in tasks},
            {task: self.same_by_task.get(task, []) + other.same_by_task.get(task, []) for task in tasks},
        )

    def saved(self, k: int) -> float:
        return 1 - self.used / self.runs / k

    def saved_by_task(self, k: int) -> float:
        return fmean(1 - fmean(used) / k for used in self.used_by_task.values())

    @property
    def agreement(self) -> float:
        return self.same / self.runs

    @property
    def worst_agreement(self) -> float:
        return min(fmean(same) for same in self.same_by_task.values())

    @property
    def accuracy_change(self) -> tuple[float, float]:
        """In percentage points, with its standard error over questions."""
        means = [100 * fmean(changes) for changes in self.change.values()]
        mean = fmean(means)
        return mean, math.sqrt(sum((each - mean) ** 2 for each in means)) / len(means)


def replayed(questions: Iterable[Question], k: int, stops: Stops, orders: int, seed: int = 0) -> Tally:
    """Each question `orders` times with k of its answers in random order. Ties for the lead are shared."""
    rng, tally = random.Random(seed), Tally()
    for question in questions:
        if len(question.votes) < k:
            continue
        for _ in range(orders):
            votes = question.drawn(rng, k)
            n = stopped_at(votes, k, stops)
            early, late = plurality(votes[:n]), plurality(votes)
            same = bool(early & late) or (not early and not late)
            tally.runs += 1
            tally.used += n
            tally.same += same
            changed = accuracy(early, question) - accuracy(late, question)
            tally.change.setdefault((question.task, question.id), []).append(changed)
            tally.used_by_task.setdefault(question.task, []).append(n)
            tally.same_by_task.setdefault(question.task, []).append(same)
    return tally


def stopped_at(votes: Sequence[Hashable], k: int, stops: Stops) -> int:
    counted: dict[Hashable, int] = {}
    for n, vote in enumerate(votes):
        if stops(tuple(sorted(counted.values(), reverse=True)), n, k):
            return n
        if vote is not None:
            counted[vote] = counted.get(vote, 0) + 1
    return len(votes)


@dataclass(slots=True)
class Certificates:
    runs: int = 0
    given: int = 0
    wrong: int = 0
    right_answers: float = 0.0
    used: int = 0


def certified(questions: Iterable[Question], k: int, delta: float, orders: int, *, hard: bool = False) -> Certificates:
    """Certificates on draws with replacement from each question's pool, of which the most frequent answer is known.

    Wrong is a certificate for an answer that is not the most frequent one of the pool, alone or level. `hard`: only
    questions whose leader has less than 0.6 of the pool.
    """
    rng, found = random.Random(1), Certificates()
    for question in questions:
        mode = plurality(question.votes)
        top = sum(vote in mode for vote in question.votes) / max(1, len(mode)) / len(question.votes)
        if len(question.votes) < 30 or not mode or (hard and top >= 0.6):
            continue
        for _ in range(orders):
            n, leader = _until_certified(rng.choices(question.votes, k=k), k, delta)
            found.runs += 1
            found.used += n
            if leader is not None:
                found.given += 1
                found.wrong += leader not in mode
                found.right_answers += leader in question.right
    return found


def _until_certified(votes: Sequence[str | None], k: int, delta: float) -> tuple[int, str | None]:
    counted: dict[str, int] = {}
    for n, vote in enumerate(votes, start=1):
        if vote is None:
            continue
        counted[vote] = counted.get(vote, 0) + 1
        leader = max(counted, key=counted.__getitem__)
        if vote is leader or counted[vote] == counted[leader]:
            rank = list(counted).index(leader) + 1
            if _is_certified(tuple(sorted(counted.values(), reverse=True))[:2], rank, delta):
                return n, leader
    return len(votes), None


@cache
def _is_certified(counts: Counts, rank: int, delta: float) -> bool:
    return is_certified(Standing(counts, sum(counts), sum(counts), "leader", rank), delta)


def _overtakes(leader: float, rival: float, total: float, left: int, behind: int) -> float:
    """Of `left` draws from a Polya urn the rival gets over `behind` more than the leader."""
    both = leader + rival
    found = 0.0
    for m in range(behind + 1, left + 1):
        ours_of_all = _beta_binomial(m, left, both, total - both)
        least = (m + behind) // 2 + 1
        found += ours_of_all * sum(_beta_binomial(b, m, rival, leader) for b in range(least, m + 1))
    return found


@cache
def _beta_binomial(k: int, n: int, alpha: float, beta: float) -> float:
    if beta < 1e-9:
        return float(k == n)
    logs = (
        math.lgamma(k + alpha)
        + math.lgamma(n - k + beta)
        - math.lgamma(n + alpha + beta)
        - math.lgamma(alpha)
        - math.lgamma(beta)
        + math.lgamma(alpha + beta)
    )
    return math.comb(n, k) * math.exp(logs)


def weighed(questions: Sequence[Question], k: int, past: int, orders: int) -> tuple[float, float]:
    """Accuracy on the questions that are held out, in %: of the most votes, and of the most weight.

    The weights come from k answers to `past` of the other questions each; no label is looked at.
    """
    rng, sources = random.Random(3), range(len(questions[0].votes))
    known = [question for question in questions if not question.held_out][:past]
    weights = weights_by_agreement([{str(n): q.votes[n] for n in rng.sample(sources, k)} for q in known])
    found: tuple[list[float], list[float]] = [], []
    for question in (question for question in questions if question.held_out):
        for _ in range(orders):
            drawn = [n for n in rng.sample(sources, k) if question.votes[n] is not None]
            for weigh, right in zip((lambda n: 1.0, lambda n: weights.get(str(n), 1.0)), found, strict=True):
                right.append(accuracy(_heaviest([(question.votes[n], weigh(n)) for n in drawn]), question))
    return 100 * fmean(found[0]), 100 * fmean(found[1])


def _heaviest(votes: Iterable[tuple[str | None, float]]) -> frozenset[str]:
    heavy: dict[str, float] = {}
    for vote, weight in votes:
        if vote is not None:
            heavy[vote] = heavy.get(vote, 0.0) + weight
    most = max(heavy.values(), default=0.0)
    return frozenset(vote for vote, weight in heavy.items() if weight > most - 1e-9)
