"""When to stop asking the same question again: votes in, a decision out.

`n` votes are in, of at most `k`; `r = k - n` are to come. Votes for one answer are equal and hashable; None is an
invalid one, which uses up a draw and is for nobody. The leader has v1 votes, the runner-up v2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import mul
from typing import Final, Literal, TypeAlias, get_args

Rule: TypeAlias = Literal["curtail", "pcurtail", "certified"]
Reason: TypeAlias = Literal[
    "decided",
    "converged",
    "certified",
    "distance",
    "futile",
    "too_many_invalid",
    "budget",
    "deadline",
    "complete",
]
"""decided: nobody can catch up with the leader. converged: it is very unlikely that anybody does. certified: the leader
is the model's most frequent answer. distance: the answers are near each other. futile: no answer can have the share
that was asked for. complete: all k are in, and the rule did not hold. The others say what was exceeded or ran out.
"""

RULES: Final[tuple[Rule, ...]] = get_args(Rule)

PRIOR: Final = 0.5
"""Pseudo-votes of each answer that was seen, and of all those that were not seen together."""

Counts: TypeAlias = tuple[int, ...]
"""Votes per answer, most first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopDecision:
    """`leader` is the answer with most votes, the first seen of several; None where no vote is valid.

    `stability` is the probability that the leader still leads, alone or level, when all k votes are in (`will_keep`).
    `need` is the least number of further votes after which the rule can hold: with so many in flight, none is wasted.
    0 exactly if `stop`. `reason` is None while not to stop.
    """

    stop: bool
    reason: Reason | None
    leader: Hashable
    stability: float
    need: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What the votes so far amount to. `rank`: the leader was the rank-th answer to appear, from 1; 0: no leader."""

    counts: Counts
    n: int
    k: int
    leader: Hashable = None
    rank: int = 0

    @classmethod
    def of(cls, votes: Iterable[Hashable], k: int) -> Standing:
        n, tally = 0, dict[Hashable, int]()
        for vote in votes:
            n += 1
            if vote is not None:
                tally[vote] = tally.get(vote, 0) + 1
        if not tally:
            return cls((), n, k)
        leader = max(tally, key=tally.__getitem__)
        rank = next(place for place, answer in enumerate(tally, start=1) if answer is leader)
        return cls(tuple(sorted(tally.values(), reverse=True)), n, k, leader, rank)

    @property
    def left(self) -> int:
        return max(0, self.k - self.n)

    @property
    def invalid(self) -> int:
        return self.n - sum(self.counts)

    def ahead(self, votes: int) -> Standing:
        """After so many further votes for the leader; without one, for the first answer of all."""
        first, *others = self.counts or (0,)
        counts = tuple(filter(None, (first + votes, *others)))
        return Standing(counts, self.n + votes, self.k, self.leader, self.rank or min(votes, 1))


def should_stop(
    votes: Sequence[Hashable],
    k: int,
    *,
    rule: Rule = "curtail",
    risk: float = 0.01,
    floor: float = 0.0,
    min_valid: int = 1,
) -> StopDecision:
    """Whether the votes, in order of arrival, suffice; at the latest when all k are in.

    - "curtail": nobody can draw level with the leader any more, v1 - v2 > r (Wald 1947). Never changes the answer.
    - "pcurtail": the probability that anybody overtakes the leader is at most `risk` (Lan, Simon and Halperin 1982, on
      a Polya urn).
    - "certified": the leader is the answer that the model gives most often, wrongly with probability at most `risk`,
      however often one looks (a betting e-process). It says nothing of the truth. Where the certificate is out of
      reach within k, votes stop when they are decided.

    `floor` is the share of k that an answer must reach to be of use: the votes are futile as soon as none can reach
    it ("pcurtail": with probability at most `risk`). They also stop when fewer than `min_valid` can become valid.
    ValueError names an argument that cannot be used.
    """
    check_rule(rule, risk, floor)
    if k < 1:
        raise ValueError(f"k = {k}: give the number of votes that are asked for, 1 or more")
    return decide(Standing.of(votes, k), rule, risk, floor, min_valid)


def check_rule(rule: str, risk: float, floor: float = 0.0) -> None:
    if rule not in RULES:
        raise ValueError(f"rule = {rule!r} is unknown; the rules are {', '.join(RULES)}")
    if not 0 < risk < 1:
        raise ValueError(f"risk = {risk}: give a probability between 0 and 1, such as 0.01")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor = {floor}: give a share of k from 0 to 1")


def decide(standing: Standing, rule: Rule, risk: float, floor: float = 0.0, min_valid: int = 1) -> StopDecision:
    """`should_stop` of a standing."""
    reason = _reason(standing, rule, risk, floor, min_valid)
    return StopDecision(
        stop=reason is not None,
        reason=reason,
        leader=standing.leader,
        stability=will_keep(standing.counts, standing.left),
        need=0 if reason is not None else _need(standing, rule, risk),
    )


def _reason(standing: Standing, rule: Rule, risk: float, floor: float, min_valid: int) -> Reason | None:
    if standing.k - standing.invalid < min_valid:
        return "too_many_invalid"
    held = _RULES[rule](standing, risk)
    if held is not None:
        return held
    if standing.left == 0:
        return "complete"
    if floor and is_futile(standing, floor, risk if rule == "pcurtail" else 0.0):
        return "futile"
    return None


def _need(standing: Standing, rule: Rule, risk: float) -> int:
    """By bisection: further votes for the leader bring every rule nearer, and k of them are always enough."""
    holds = _RULES[rule]
    low, high = 0, standing.left
    while high - low > 1:
        middle = (low + high) // 2
        if holds(standing.ahead(middle), risk) is None:
            low = middle
        else:
            high = middle
    return high


# ── the rules ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _curtail(standing: Standing, risk: float) -> Reason | None:
    return "decided" if is_decided(standing) else None


def _pcurtail(standing: Standing, risk: float) -> Reason | None:
    if is_decided(standing):
        return "decided"
    return "converged" if will_keep(standing.counts, standing.left) >= 1 - risk and standing.left else None


def _certify(standing: Standing, risk: float) -> Reason | None:
    if is_certified(standing, risk):
        return "certified"
    out_of_reach = not is_certified(standing.ahead(standing.left), risk)
    return "decided" if out_of_reach and is_decided(standing) else None


_RULES: Final[Mapping[Rule, Callable[[Standing, float], Reason | None]]] = {
    "curtail": _curtail,
    "pcurtail": _pcurtail,
    "certified": _certify,
}


def is_decided(standing: Standing) -> bool:
    """v1 - v2 > r."""
    first, second = (*standing.counts, 0, 0)[:2]
    return first - second > standing.left


def is_certified(standing: Standing, risk: float) -> bool:
    """Whether the evidence against the runner-up is at least 2**rank / risk.

    The leader was chosen by looking, so the risk is spent over the order in which answers first appeared: risk / 2 on
    the first, risk / 4 on the second, and so on. By Ville's inequality a wrong certificate ever comes with probability
    at most `risk`. (Cordero-Encinar and Duncan, arXiv:2510.17472; Ota et al., arXiv:2605.05873.)
    """
    if not standing.counts:
        return False
    first, second = (*standing.counts, 0)[:2]
    return evidence_for(first, second) * risk >= 2.0**standing.rank


def evidence_for(leader: int, rival: int) -> float:
    """The e-value against "the leader is no more likely than the rival"; a wager spread evenly over (1/2, 1].

    2**(a+b+1) B(a+1, b+1) P(theta > 1/2 | Beta(a+1, b+1)) with a = leader - 1, because the vote that made the answer a
    candidate cannot speak for it, and b = rival. Computed in whole numbers.
    """
    a, b = leader - 1, rival
    n = a + b + 1
    try:
        return sum(math.comb(n, i) for i in range(a + 1)) / (n * math.comb(n - 1, a))
    except OverflowError:
        return math.inf


def is_futile(standing: Standing, floor: float, risk: float = 0.0) -> bool:
    """Whether no answer can have `floor` x k votes in the end; with `risk`, whether one does at most so probably."""
    target, left = math.ceil(floor * standing.k - 1e-9), standing.left
    counts = (*standing.counts, 0)
    if counts[0] + left < target:
        return True
    return risk > 0 and sum(_reaches(standing.counts, votes, left, target) for votes in counts) <= risk


# ── what the votes to come may do ────────────────────────────────────────────────────────────────────────────────────


def will_keep(counts: Sequence[int], left: int) -> float:
    """The probability that the leader still leads, alone or level, after `left` more votes; 0.0 without a leader.

    The votes to come are drawn from a Polya urn in which each answer has its votes + 1/2 balls, and all answers not
    yet seen 1/2 together: 1 less the sum over the rivals of the probability that one overtakes, a lower bound.
    """
    return _will_keep(tuple(sorted(counts, reverse=True)), left) if counts else 0.0


@lru_cache(maxsize=4096)
def _will_keep(counts: Counts, left: int) -> float:
    first, *others = counts
    if left == 0:
        return 1.0
    total = sum(counts) + PRIOR * (len(counts) + 1)
    overtaken = sum(
        others.count(votes) * _overtakes(first + PRIOR, votes + PRIOR, total, left, first - votes)
        for votes in set(others)
    )
    overtaken += _overtakes(first + PRIOR, PRIOR, total, left, first)
    return max(0.0, 1.0 - overtaken)


def _overtakes(leader: float, rival: float, total: float, left: int, behind: int) -> float:
    """The probability that of `left` draws the rival gets over `behind` more than the leader.

    In a Polya urn the draws of leader, rival and all others are independent negative binomials, given that they add up
    to `left`; the ratio of the three is chosen so that `left` is near their mean and nothing underflows that matters.
    """
    if behind >= left:
        return 0.0
    ratio = left / (total + left)
    lead, over, rest = (_draws(weight, left, ratio) for weight in (leader, rival, total - leader - rival))
    rest.reverse()
    ways = 0.0
    for b in range(behind + 1, left + 1):
        # The leader gets 0 .. min(b - behind - 1, left - b), the others what is left.
        most = min(b - behind, left - b + 1)
        ways += over[b] * sum(map(mul, lead[:most], rest[b : b + most]))
    return ways / _draw(total, left, ratio)


def _draws(weight: float, left: int, ratio: float) -> list[float]:
    return [_draw(weight, count, ratio) for count in range(left + 1)]


def _draw(weight: float, count: int, ratio: float) -> float:
    """The negative binomial probability of `count`; a weight of nothing is never drawn."""
    if weight <= 0:
        return float(count == 0)
    log = math.lgamma(weight + count) - math.lgamma(weight) - math.lgamma(count + 1)
    return math.exp(log + count * math.log(ratio) + weight * math.log1p(-ratio))


@lru_cache(maxsize=4096)
def _reaches(counts: Counts, votes: int, left: int, target: int) -> float:
    """The probability that an answer with `votes` has `target` after `left` more: a beta-binomial tail."""
    if votes >= target:
        return 1.0
    if votes + left < target:
        return 0.0
    total = sum(counts) + PRIOR * (len(counts) + 1)
    ratio = left / (total + left)
    own, rest = _draws(votes + PRIOR, left, ratio), _draws(total - votes - PRIOR, left, ratio)
    return sum(own[gain] * rest[left - gain] for gain in range(target - votes, left + 1)) / _draw(total, left, ratio)
