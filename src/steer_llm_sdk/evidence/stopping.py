"""When to stop asking the same question again: votes in, a decision out.

`n` votes are in, of at most `k`; `r = k - n` are to come. Votes for one answer are equal and hashable; None, or a
NaN, is an invalid one, which uses up a draw and is for nobody. The leader has v1 votes, the runner-up v2.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from operator import mul
from typing import Any, Final, Literal, TypeAlias, get_args

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
            if vote is not None and vote == vote:  # NaN is the answer of nobody.
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
    - "pcurtail": the probability that anybody overtakes the leader is at most `risk` (Lan, Simon and Halperin
      1982, on the urn of `will_keep`).
    - "certified": the leader is the answer that the model gives most often, wrongly with probability at most `risk`,
      however often one looks (a betting e-process). It says nothing of the truth. Where the certificate is out of
      reach within k, votes stop when they are decided.

    `floor` is the share of k that an answer must reach to be of use: the votes are futile as soon as none can reach
    it ("pcurtail": with probability at most `risk`). They also stop when fewer than `min_valid` can become valid.
    ValueError names an argument that cannot be used.
    """
    check_rule(rule, risk, floor)
    check_k(k)
    if not isinstance(min_valid, int) or not 0 <= min_valid <= k:
        raise ValueError(f"min_valid = {min_valid!r}: give a whole number of votes from 0 to k = {k}")
    try:
        standing = Standing.of(votes, k)
    except TypeError as error:
        raise uncountable(votes) from error
    return decide(standing, rule, risk, floor, min_valid)


def check_rule(rule: str, risk: float, floor: float = 0.0) -> None:
    if rule not in RULES:
        raise ValueError(f"rule = {rule!r} is unknown; the rules are {', '.join(RULES)}")
    if not isinstance(risk, (int, float)) or not 0 < risk < 1:
        raise ValueError(f"risk = {risk!r}: give a probability between 0 and 1, such as 0.01")
    if not isinstance(floor, (int, float)) or not 0 <= floor <= 1:
        raise ValueError(f"floor = {floor!r}: give a share of k from 0 to 1")


def check_k(k: int) -> None:
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k = {k!r}: give the number of votes that are asked for, a whole one of 1 or more")


def uncountable(votes: Any) -> ValueError:
    """Why votes cannot be counted, and what to give."""
    if not isinstance(votes, Iterable):
        return ValueError(f"votes: {votes!r} is no list of votes; give one, with None for an invalid vote")
    odd = next((vote for vote in votes if not _is_hashable(vote)), None)
    return ValueError(f"votes: {odd!r} cannot be counted; give a text or a number for each answer, or use summarize")


def _is_hashable(vote: Any) -> bool:
    try:
        hash(vote)
    except TypeError:
        return False
    return True


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
    """By bisection: further votes for the leader bring every rule nearer; with `high` of them it is decided."""
    holds = _RULES[rule]
    first, second = (*standing.counts, 0, 0)[:2]
    high = standing.left if rule == "certified" else (standing.left - first + second) // 2 + 1
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if holds(standing.ahead(middle), risk) is None:
            low = middle
        else:
            high = middle
    return _given_up(standing, risk, high) if rule == "certified" else high


def _given_up(standing: Standing, risk: float, most: int) -> int:
    """The least number of further votes, `most` at most, after which a certificate can be out of reach and the answer
    decided: votes against the leader end the hope of one. For each number of these, as few as will do are for the
    runner-up, whom they bring nearer, and the others for nobody."""
    counts, n, left = standing.counts, standing.n, standing.left
    if not counts:
        firsts = (Standing((1,), n + 1, standing.k, rank=1), Standing((), n + 1, standing.k))
        return most if left < 2 else 1 + min(_given_up(after, risk, most - 1) for after in firsts)
    first, second = (*counts, 0)[:2]
    # Of two that lead, the one that appeared later may come to lead alone, and needs more.
    enough = 2.0 ** (len(counts) if first == second else standing.rank) / risk
    for against in range(min(left, most)):
        best = first + left - against
        rival = bisect_left(range(against + 1), True, key=lambda more: evidence_for(best, second + more) < enough)
        if rival <= against:
            short = left - (against - rival) - (first - second)
            most = min(most, against + (short // 2 + 1 if short >= 0 else 0))
    return max(most, 1)


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
    if not standing.counts or not risk:
        return False
    return sum(_reaches(standing.counts, votes, left, target) for votes in counts) <= risk


# ── what the votes to come may do ────────────────────────────────────────────────────────────────────────────────────


def will_keep(counts: Sequence[int], left: int) -> float:
    """The probability that the leader still leads, alone or level, after `left` more votes; 0.0 without a leader.

    1 less the expected number of rivals that overtake it, a lower bound. The votes to come are drawn from an urn in
    which each answer has its votes as balls and all answers not yet seen have theta, shared out as they come (Ewens).
    How varied the answers to one question are differs by orders of magnitude between questions, so theta is taken to be
    anything from 0.1 to 10 with even odds on the logarithm, and the votes so far say which: three alike speak for a
    small one, three that differ for a large one.
    """
    return _will_keep(tuple(sorted(counts, reverse=True)), left) if counts else 0.0


THETAS: Final = (0.1, 0.5, 2.0, 10.0)


@lru_cache(maxsize=4096)
def _will_keep(counts: Counts, left: int) -> float:
    first, *others = counts
    if left == 0:
        return 1.0
    urn = _Urn(counts, left)
    rivals = {votes: others.count(votes) for votes in others if first - votes < left}
    overtaken = sum(times * urn.overtakes(votes) for votes, times in rivals.items())
    return max(0.0, 1.0 - overtaken - (urn.unseen_overtake() if first < left else 0.0))


class _Urn:
    """`left` draws from a mixture of Polya urns.

    The draws of the leader, of a rival and of all others are independent negative binomials, given that they add up to
    `left`. Their common ratio cancels; it is chosen so that `left` is near the mean, and nothing that matters
    underflows. Only the others' share depends on theta, so the mixture is one of that share alone.
    """

    def __init__(self, counts: Counts, left: int) -> None:
        self._first, self._seen, self._left = counts[0], sum(counts), left
        self._ratio = left / (self._seen + left)
        self._leader = _draws(self._first, left, self._ratio)
        whole = [_draw(self._seen + theta, left, self._ratio) for theta in THETAS]
        self._odds = [odds / of for odds, of in zip(_odds(len(counts), self._seen), whole, strict=True)]

    def overtakes(self, votes: int) -> float:
        """The probability that a rival with `votes` gets ahead."""
        gains = _draws(votes, self._left, self._ratio)
        return self._ahead(gains, self._first - votes, self._others(votes, self._odds))

    def unseen_overtake(self) -> float:
        """The expected number of answers that were not seen yet and get ahead. One of size b has weight theta / b."""
        gains = [0.0, *(self._ratio**size / size for size in range(1, self._left + 1))]
        odds = [theta * odds for theta, odds in zip(THETAS, self._odds, strict=True)]
        return self._ahead(gains, self._first, self._others(0, odds))

    def _others(self, rival: int, odds: Sequence[float]) -> list[float]:
        """The share of all others, by how many draws are theirs, `left` first."""
        rest = self._seen - self._first - rival
        shares = [_draws(rest + theta, self._left, self._ratio) for theta in THETAS]
        mixed = [sum(map(mul, odds, each)) for each in zip(*shares, strict=True)]
        mixed.reverse()
        return mixed

    def _ahead(self, gains: Sequence[float], behind: int, others: Sequence[float]) -> float:
        """Summed over all draws in which the rival gets over `behind` more than the leader."""
        left, total = self._left, 0.0
        for gain in range(behind + 1, left + 1):
            # The leader gets 0 .. min(gain - behind - 1, left - gain), the others what is left.
            most = min(gain - behind, left - gain + 1)
            total += gains[gain] * sum(map(mul, self._leader[:most], others[gain : gain + most]))
        return total


@lru_cache(maxsize=1024)
def _odds(answers: int, votes: int) -> list[float]:
    """How likely each theta is, given that so many votes were for so many answers (Ewens' sampling formula)."""
    logs = [answers * math.log(theta) + math.lgamma(theta) - math.lgamma(theta + votes) for theta in THETAS]
    most = max(logs)
    weights = [math.exp(log - most) for log in logs]
    return [weight / sum(weights) for weight in weights]


def _draws(weight: float, left: int, ratio: float) -> list[float]:
    """The negative binomial probabilities of 0 .. left."""
    start = weight * math.log1p(-ratio)
    if start < -600:
        return [_draw(weight, count, ratio) for count in range(left + 1)]
    steps = ((weight + count) / (count + 1) * ratio for count in range(left))
    return list(accumulate(steps, mul, initial=math.exp(start)))


def _draw(weight: float, count: int, ratio: float) -> float:
    log = math.lgamma(weight + count) - math.lgamma(weight) - math.lgamma(count + 1)
    return math.exp(log + count * math.log(ratio) + weight * math.log1p(-ratio))


@lru_cache(maxsize=4096)
def _reaches(counts: Counts, votes: int, left: int, target: int) -> float:
    """The probability that an answer with `votes` has `target` after `left` more; with 0: all unseen ones as one."""
    if votes >= target:
        return 1.0
    if votes + left < target:
        return 0.0
    seen = sum(counts)
    ratio, reached = left / (seen + left), 0.0
    for theta, odds in zip(THETAS, _odds(len(counts), seen), strict=True):
        own, rest = _draws(votes or theta, left, ratio), _draws(seen - votes + (theta if votes else 0), left, ratio)
        ways = sum(own[gain] * rest[left - gain] for gain in range(target - votes, left + 1))
        reached += odds * ways / _draw(seen + theta, left, ratio)
    return reached
