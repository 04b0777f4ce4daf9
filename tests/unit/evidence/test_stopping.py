"""When votes suffice, against tables, exact enumeration and scipy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import beta as beta_function
from scipy.stats import beta as beta_distribution
from scipy.stats import dirichlet_multinomial

from steer_llm_sdk.evidence import should_stop, stability, support
from steer_llm_sdk.evidence.stopping import RULES, THETAS, Standing, _Urn, evidence_for, is_certified, will_keep

Votes = Sequence[Hashable]

short_votes = st.lists(st.sampled_from(["a", "b", "c", "d", None]), max_size=7)
rules = st.sampled_from(RULES)


# ── oracles ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def led_through_every_future(votes: Votes, k: int) -> bool:
    """Whether the leader has more votes than any other answer whatever comes: every multiset of further votes."""
    tally = Counter(vote for vote in votes if vote is not None)
    if not tally:
        return False
    leader, left = max(tally, key=tally.__getitem__), k - len(votes)
    for future in combinations_with_replacement([*tally, "unseen", None], left):
        final = tally + Counter(vote for vote in future if vote is not None)
        if any(final[other] >= final[leader] for other in final if other != leader):
            return False
    return True


def kept_in_an_urn(counts: Sequence[int], left: int) -> Fraction:
    """1 less the expected number of rivals that overtake, vote by vote for each theta, in whole numbers."""

    @cache
    def overtaking(standing: tuple[int, ...], theta: Fraction, draws: int) -> Fraction:
        if draws == 0:
            return Fraction(sum(votes > standing[0] for votes in standing[1:]))
        everything = sum(standing) + theta
        grown = [(*standing[:i], votes + 1, *standing[i + 1 :]) for i, votes in enumerate(standing)]
        seen = sum(v * overtaking(g, theta, draws - 1) for v, g in zip(standing, grown, strict=True))
        return (seen + theta * overtaking((*standing, 1), theta, draws - 1)) / everything

    thetas = [Fraction(str(theta)) for theta in THETAS]
    odds = [
        theta ** len(counts) / math.prod((theta + i for i in range(sum(counts))), start=Fraction(1)) for theta in thetas
    ]
    expected = [overtaking(tuple(counts), theta, left) for theta in thetas]
    return 1 - sum((o * e for o, e in zip(odds, expected, strict=True)), Fraction(0)) / sum(odds)


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("votes", "k", "stop", "reason", "leader", "need"),
    [
        ("", 3, False, None, None, 2),
        ("", 5, False, None, None, 3),
        ("a", 1, True, "decided", "a", 0),
        ("a", 3, False, None, "a", 1),
        ("aa", 3, True, "decided", "a", 0),
        ("ab", 3, False, None, "a", 1),
        ("abb", 3, True, "decided", "b", 0),
        ("abc", 3, True, "complete", "a", 0),
        ("aab", 5, False, None, "a", 1),
        ("aaba", 5, True, "decided", "a", 0),
        ("aaaaa", 10, False, None, "a", 1),
        ("aaaaaa", 10, True, "decided", "a", 0),
        # An invalid vote is one of the k, and for nobody.
        ("--", 3, False, None, None, 1),
        ("-a", 3, False, None, "a", 1),
        ("--a", 3, True, "decided", "a", 0),
        ("---", 3, True, "too_many_invalid", None, 0),
        ("aa--", 5, True, "decided", "a", 0),
        ("aaabbb", 4, True, "complete", "a", 0),
    ],
)
def test_votes_stop_when_nobody_can_draw_level(
    votes: str, k: int, stop: bool, reason: str | None, leader: str | None, need: int
) -> None:
    decision = should_stop([None if vote == "-" else vote for vote in votes], k)
    assert (decision.stop, decision.reason, decision.leader, decision.need) == (stop, reason, leader, need)


@pytest.mark.parametrize(
    ("votes", "k", "rule", "risk", "stop", "reason", "need"),
    [
        ("aaa", 10, "pcurtail", 0.01, True, "converged", 0),
        ("aa", 10, "pcurtail", 0.01, False, None, 1),
        ("aa", 10, "pcurtail", 0.05, True, "converged", 0),
        ("aa", 3, "pcurtail", 0.01, True, "decided", 0),
        ("a-", 3, "pcurtail", 0.01, True, "converged", 0),
        # Nine of ten alike are evidence of 56.8 of the 2 / 0.05 = 40 that are needed, eight are 31.9.
        ("aaaaaaaa", 10, "certified", 0.05, False, None, 1),
        ("aaaaaaaaa", 10, "certified", 0.05, True, "certified", 0),
        # No ten votes can be evidence of 2 / 0.01 = 200: decided is all that is left.
        ("aaaaa", 10, "certified", 0.01, False, None, 1),
        ("aaaaaa", 10, "certified", 0.01, True, "decided", 0),
        # The leader came second, so that its certificate costs 2 ** 2 / 0.05.
        ("baaaaaaaaaa", 20, "certified", 0.05, False, None, 3),
    ],
)
def test_the_other_rules(votes: str, k: int, rule: str, risk: float, stop: bool, reason: str, need: int) -> None:
    decision = should_stop([None if vote == "-" else vote for vote in votes], k, rule=rule, risk=risk)  # type: ignore[arg-type]
    assert (decision.stop, decision.reason, decision.need) == (stop, reason, need)


@pytest.mark.parametrize(
    ("votes", "k", "rule", "floor", "reason"),
    [
        ("abcd", 5, "curtail", 0.5, "futile"),
        ("abca", 5, "curtail", 0.5, None),
        ("abcd", 5, "curtail", 0.4, None),
        ("abcdefg", 10, "curtail", 0.6, "futile"),
        ("abcdef", 10, "curtail", 0.5, None),
        ("abcdefgh", 14, "pcurtail", 0.5, "futile"),
        ("abcdefgh", 14, "curtail", 0.5, None),
        ("a", 10, "pcurtail", 0.5, None),
        ("", 10, "pcurtail", 0.5, None),
        ("aaaaaa", 10, "curtail", 1.0, "decided"),
    ],
)
def test_votes_are_futile_when_no_answer_can_have_the_share_that_is_asked_for(
    votes: str, k: int, rule: str, floor: float, reason: str | None
) -> None:
    assert should_stop(list(votes), k, rule=rule, floor=floor).reason == reason  # type: ignore[arg-type]


def test_votes_stop_when_too_few_can_be_valid() -> None:
    assert should_stop([None, None, "a"], 4, min_valid=3).reason == "too_many_invalid"
    assert should_stop([None, "a"], 4, min_valid=3).reason is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rule": "majority"}, "rule = 'majority' is unknown; the rules are curtail, pcurtail, certified"),
        ({"risk": 0.0}, "risk = 0.0: give a probability"),
        ({"risk": 1}, "risk = 1: give a probability"),
        ({"risk": math.nan}, "risk = nan: give a probability"),
        ({"floor": 1.5}, "floor = 1.5: give a share"),
        ({"k": 0}, "k = 0: give the number of votes"),
        ({"k": 2.5}, "k = 2.5: give the number of votes"),
        ({"k": math.nan}, "k = nan: give the number of votes"),
        ({"risk": "low"}, "risk = 'low': give a probability"),
        ({"floor": "x"}, "floor = 'x': give a share"),
        ({"min_valid": 4}, "min_valid = 4: give a whole number of votes from 0 to k = 3"),
        ({"votes": [["a"]]}, r"votes: \['a'\] cannot be counted; give a text or a number for each answer"),
        ({"votes": None}, "votes: None is no list of votes"),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        should_stop(**{"votes": ["a"], "k": 3, **given})


def test_a_vote_of_nan_is_an_invalid_one() -> None:
    nan = math.nan
    assert should_stop([nan, nan, "a"], 5) == should_stop([None, None, "a"], 5)
    assert (stability([nan, "a"]), support([nan, "a"])) == (stability(["a"]), 0.5)


def test_a_thousand_votes_are_no_trouble() -> None:
    assert should_stop(["a"] * 600, 2000, rule="certified").reason == "certified"
    assert should_stop(["a"] * 1200, 2000, rule="certified").reason == "certified"
    assert will_keep((1500, 1400), 2000) == pytest.approx(0.998, abs=0.001)
    assert will_keep((3, 1), 2000) == pytest.approx(will_keep((3, 1), 1000), abs=0.002)


# ── properties ───────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=300)
@given(short_votes, st.integers(0, 4))
def test_curtailment_holds_exactly_if_no_future_takes_the_lead_away(votes: Votes, left: int) -> None:
    k = len(votes) + left
    if k:
        assert (should_stop(votes, k).reason == "decided") == led_through_every_future(votes, k)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 5))
def test_stability_is_that_of_an_urn_drawn_from_vote_by_vote(counts: list[int], left: int) -> None:
    exact = float(max(Fraction(0), kept_in_an_urn(sorted(counts, reverse=True), left)))
    assert will_keep(counts, left) == pytest.approx(exact, abs=1e-10)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 4), st.integers(1, 12))
def test_a_rival_overtakes_with_the_probability_that_scipy_has(one: int, other: int, rest: int, left: int) -> None:
    """The difference that a rival makes to the stability, its votes and its leader's being a Dirichlet-multinomial."""
    first, second = max(one, other), min(one, other)
    n, answers = first + second + rest, 2 + rest
    expected, total = 0.0, 0.0
    for theta in THETAS:
        odds = math.exp(answers * math.log(theta) + math.lgamma(theta) - math.lgamma(theta + n))
        urn = dirichlet_multinomial([first, second, rest + theta], left)
        ahead = [
            (lead, gain, left - lead - gain)
            for gain in range(left + 1)
            for lead in range(left - gain + 1)
            if second + gain > first + lead
        ]
        expected += odds * sum(float(urn.pmf(each)) for each in ahead)
        total += odds
    urn_of_ours = _Urn((first, second, *[1] * rest), left)
    assert urn_of_ours.overtakes(second) == pytest.approx(expected / total, abs=1e-10)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.sampled_from("abc"), max_size=12),
    st.integers(1, 20),
    st.sampled_from(["curtail", "pcurtail"]),
    st.sampled_from([0.01, 0.05, 0.2]),
)
def test_need_is_the_least_number_of_votes_for_the_leader_with_which_the_rule_holds(
    votes: list[str], k: int, rule: str, risk: float
) -> None:
    votes = votes[:k]
    decision = should_stop(votes, k, rule=rule, risk=risk)  # type: ignore[arg-type]
    leader = decision.leader or "a"
    stops = [
        more
        for more in range(k - len(votes) + 1)
        if should_stop([*votes, *[leader] * more], k, rule=rule, risk=risk).stop  # type: ignore[arg-type]
    ]
    assert decision.need == stops[0]


@settings(deadline=None, max_examples=100)
@given(short_votes, st.integers(1, 12), rules, st.data())
def test_fewer_than_need_further_votes_never_stop(votes: Votes, k: int, rule: str, data: st.DataObject) -> None:
    """So that as many may be asked for at once, and none is wasted. An invalid one brings the end nearer by one."""
    votes = votes[:k]
    need = should_stop(votes, k, rule=rule).need  # type: ignore[arg-type]
    if need > 1:
        more = data.draw(st.lists(st.sampled_from("abcde"), max_size=need - 1))
        assert not should_stop([*votes, *more], k, rule=rule).stop  # type: ignore[arg-type]


def test_a_certificate_that_one_vote_would_put_out_of_reach_needs_one() -> None:
    assert should_stop("a" * 7, 12, rule="certified").need == 1
    assert should_stop("aaaaaaab", 12, rule="certified").reason == "decided"
    assert should_stop("a" * 12, 12, rule="certified").reason == "certified"


@given(st.permutations("aaabbc"), rules)
def test_counts_alone_decide_but_for_the_certificate(votes: list[str], rule: str) -> None:
    given_order, sorted_order = (should_stop(order, 9, rule=rule) for order in (votes, sorted(votes)))  # type: ignore[arg-type]
    assert given_order.stability == sorted_order.stability
    assert given_order.leader == "a"
    if rule != "certified":
        assert given_order == sorted_order


# ── the certificate ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("leader", "rival"), [(1, 0), (2, 0), (9, 0), (10, 3), (25, 20), (40, 12)])
def test_the_evidence_is_the_integral_that_scipy_has(leader: int, rival: int) -> None:
    a, b = leader - 1, rival
    expected = 2.0 ** (a + b + 1) * beta_function(a + 1, b + 1) * beta_distribution.sf(0.5, a + 1, b + 1)
    assert evidence_for(leader, rival) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("delta", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("answers", [2, 3])
def test_among_equally_likely_answers_a_certificate_ever_comes_with_probability_at_most_delta(
    delta: float, answers: int
) -> None:
    """Exactly, over every order of 60 (30) draws: all that is certified here is wrong."""
    draws = 60 if answers == 2 else 30
    open_states: dict[tuple[int, ...], float] = {(): 1.0}  # Votes in the order of first appearance.
    wrong = 0.0
    for n in range(1, draws + 1):
        after: Counter[tuple[int, ...]] = Counter()
        for counts, probability in open_states.items():
            for index in range(answers):
                if index > len(counts):
                    continue
                seen = index < len(counts)
                grown = tuple(c + (i == index) for i, c in enumerate(counts)) if seen else (*counts, 1)
                share = 1 / answers if seen else (answers - len(counts)) / answers
                after[grown] += probability * share
        open_states = {}
        for counts, probability in after.items():
            leader = counts.index(max(counts))
            standing = Standing(tuple(sorted(counts, reverse=True)), n, draws, leader, leader + 1)
            if is_certified(standing, delta):
                wrong += probability
            else:
                open_states[counts] = probability
    assert 0 < wrong <= delta
