"""Stability, support and trust, with scipy and scikit-learn as oracles."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Hashable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import gamma
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from steer_llm_sdk.evidence import Calibrator, stability, support
from steer_llm_sdk.evidence.confidence import (
    PROMISE,
    _Case,
    _isotonic,
    _platt,
    area_under_roc,
    expected_calibration_error,
)

Labels = tuple[list[list[Hashable]], list[bool]]

votes_lists = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=10)
labelled = st.lists(st.tuples(votes_lists, st.booleans()), min_size=1, max_size=40)


def questions(n: int, seed: int = 0, skill: float = 0.0, k: int = 10) -> Labels:
    """Questions of mixed difficulty: the more a model wavers, the more often it is wrong."""
    rng = random.Random(seed)
    votes, correct = [], []
    for _ in range(n):
        p = rng.betavariate(2, 1)
        drawn = ["yes" if rng.random() < p else rng.choice(["no", "maybe", None]) for _ in range(k)]
        votes.append(list[Hashable](drawn))
        leader = max((v for v in drawn if v), key=drawn.count, default=None)
        correct.append(leader is not None and rng.random() < 1 / (1 + math.exp(-(3 * support(drawn) - 1 + skill))))
    return votes, correct


def fitted(n: int, seed: int = 0, **given: Any) -> Calibrator:
    return Calibrator.fit(*questions(n, seed), **{"k": 10, "model": "m", **given})


# ── without labels ───────────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_stability_is_the_integral_that_scipy_has(counts: list[int]) -> None:
    counts.sort(reverse=True)
    votes = [answer for answer, count in enumerate(counts) for _ in range(count)]

    def density(x: float) -> float:
        rivals = math.prod(gamma.cdf(x, count + 1) for count in [*counts[1:], 0])
        return float(gamma.pdf(x, counts[0] + 1) * rivals)

    assert stability(votes) == pytest.approx(quad(density, 0, 80, limit=200)[0], abs=1e-6)


@pytest.mark.parametrize(
    ("votes", "expected_support"),
    [([], 0.0), ([None], 0.0), (["a"], 1.0), (["a", None], 0.5), (["a", "b", "a", None], 0.5)],
)
def test_invalid_votes_lower_support_but_not_stability(votes: list[Hashable], expected_support: float) -> None:
    assert support(votes) == expected_support
    assert stability([*votes, None]) == stability(votes)


def test_of_two_equal_answers_neither_is_stable() -> None:
    assert stability(["a"] * 50 + ["b"] * 50) == pytest.approx(0.5, abs=0.001)
    assert stability(["a"] * 1000 + ["b"] * 900) == pytest.approx(0.989, abs=0.001)
    assert stability([]) == 0.0


@given(votes_lists)
def test_one_more_vote_for_the_leader_lowers_neither(votes: list[Hashable]) -> None:
    valid = [vote for vote in votes if vote is not None]
    leader = max(valid, key=valid.count, default="a")
    assert support([*votes, leader]) >= support(votes)
    assert stability([*votes, leader]) >= stability(votes) - 1e-6


# ── against scikit-learn ─────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(-30, 30).map(lambda i: i / 8), st.booleans()), min_size=2, max_size=60))
def test_the_isotonic_curve_is_that_of_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    scores, right = zip(*pairs, strict=True)
    expected = IsotonicRegression().fit(scores, np.array(right, float))
    ours = _isotonic([_Case(score, good) for score, good in pairs])
    for score, value in ours:
        assert value == pytest.approx(float(expected.predict([score])[0]), abs=1e-7)


def test_the_logistic_curve_is_that_of_scikit_learn() -> None:
    """Its penalty is on coefficients of one scale around 0: ours is brought there by scaling and an offset."""
    rng = random.Random(3)
    scores = [rng.gauss(1, 2) for _ in range(200)]
    right = [rng.random() < 1 / (1 + math.exp(-(0.5 + 0.6 * score))) for score in scores]
    offset, slope, _ = _platt([(score, float(good), 1.0, 0.0) for score, good in zip(scores, right, strict=True)])
    # Coefficients u = offset and w = 4 (slope - 0.75) both have variance 1; the part of 0.75 is known beforehand, and
    # scikit-learn cannot be told so. At the optimum the gradient must vanish; its solver is asked without any penalty.
    p = [1 / (1 + math.exp(-(offset + slope * score))) for score in scores]
    assert sum(good - q for good, q in zip(right, p, strict=True)) == pytest.approx(offset, abs=1e-5)
    pull = sum((good - q) * score for good, q, score in zip(right, p, scores, strict=True))
    assert pull == pytest.approx((slope - 0.75) * 16, abs=1e-5)
    many = [(score, 1000.0 * good, 1000.0, 0.0) for score, good in zip(scores, right, strict=True)]
    free = LogisticRegression(C=math.inf, tol=1e-10).fit(np.array(scores)[:, None], right)
    assert _platt(many)[:2] == pytest.approx((free.intercept_[0], free.coef_[0, 0]), abs=0.01)


@given(st.lists(st.tuples(st.integers(0, 20).map(lambda i: i / 20), st.booleans()), min_size=1, max_size=80))
def test_the_measures_are_those_of_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    told, right = (list(each) for each in zip(*pairs, strict=True))
    area = area_under_roc(pairs)
    if len(set(right)) == 1:
        assert area is None
    else:
        assert area == pytest.approx(roc_auc_score(right, told))
    # scikit-learn leaves bins open on the other side, so values on an edge are moved off it.
    off_edge = [(trust * 0.98 + 0.005, good) for trust, good in pairs]
    shares, means = calibration_curve(right, [trust for trust, _ in off_edge], n_bins=10)
    filled = [n for n in np.histogram([trust for trust, _ in off_edge], bins=np.linspace(0, 1, 11))[0] if n]
    expected = sum(abs(s - m) * n for s, m, n in zip(shares, means, filled, strict=True)) / len(pairs)
    assert expected_calibration_error(off_edge) == pytest.approx(expected)


def test_the_brier_score_is_of_labels_that_were_left_out() -> None:
    votes, correct = questions(60)
    report = Calibrator.fit(votes, correct, k=10, model="m").report()
    told = [0.0] * 60
    for fold in range(10):
        rest = [i for i in range(60) if i % 10 != fold]
        curve = Calibrator.fit([votes[i] for i in rest], [correct[i] for i in rest], k=10, model="m")
        for i in range(fold, 60, 10):
            if any(votes[i]):
                told[i] = curve.trust(votes[i])
    assert report["brier"] == pytest.approx(brier_score_loss(correct, told))


# ── trust ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None, max_examples=60)
@given(labelled, votes_lists)
def test_trust_is_a_probability_and_never_one(labels: list[tuple[list[Hashable], bool]], votes: list[Hashable]) -> None:
    calibrator = Calibrator.fit(*map(list, zip(*labels, strict=True)), k=10, model="m")  # type: ignore[arg-type]
    assert 0 <= calibrator.trust(votes) < 1


def test_not_even_ten_thousand_right_answers_make_it_one() -> None:
    calibrator = Calibrator.fit([["a"] * 5] * 10_000, [True] * 10_000, k=5, model="m")
    assert calibrator.method == "isotonic"
    assert 0.999 < calibrator.trust(["a"] * 5) < 1


def test_a_promise_above_nine_tenths_needs_labels_that_bear_it_out() -> None:
    def unanimous(n: int) -> float:
        return Calibrator.fit([["a"] * 5] * n, [True] * n, k=5, model="m").trust(["a"] * 5)

    assert unanimous(5) <= PROMISE
    assert unanimous(15) <= 15 / 16
    assert 0.95 <= unanimous(60) <= 60 / 61


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 700), st.integers(0, 5))
def test_more_agreement_is_never_less_trust(n: int, seed: int) -> None:
    calibrator = fitted(n, seed)
    trusts = [calibrator.trust(["a"] * agreed + ["b"] * (10 - agreed)) for agreed in range(5, 11)]
    assert trusts == sorted(trusts)


def test_trust_is_the_share_that_is_right() -> None:
    calibrator = fitted(3000, seed=1)
    votes, correct = questions(3000, seed=2)
    told = [(calibrator.trust(each), right) for each, right in zip(votes, correct, strict=True)]
    assert expected_calibration_error(told) < 0.03
    sure = [right for trust, right in told if trust >= 0.85]
    assert sum(sure) / len(sure) > 0.84


def test_without_a_valid_vote_there_is_nothing_to_trust() -> None:
    assert fitted(30).trust([]) == fitted(30).trust([None] * 10) == 0.0


def test_the_order_of_votes_and_labels_does_not_matter() -> None:
    votes, correct = questions(80)
    shuffled = list(zip(votes, correct, strict=True))
    random.Random(1).shuffle(shuffled)
    other = Calibrator.fit([v[::-1] for v, _ in shuffled], [c for _, c in shuffled], k=10, model="m")
    assert other.trust(["a"] * 7 + ["b"] * 3) == pytest.approx(fitted(80).trust(["b"] * 3 + ["a"] * 7), abs=1e-9)


def test_without_labels_it_is_stability_and_says_that_it_is_uncalibrated() -> None:
    calibrator = Calibrator.fit([], [], k=5, model="m")
    assert calibrator.report()["status"] == "uncalibrated"
    assert not calibrator.calibrated
    assert calibrator.trust(["a", "a", "b"]) == pytest.approx(stability(["a", "a", "b"]))
    assert calibrator.trust(["a"] * 5) < 1


# ── where it holds ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "other"}, "model = 'other': this calibrator is of model = 'm' and says nothing of others"),
        ({"k": 5}, "k = 5: this calibrator is of k = 10"),
    ],
)
def test_another_model_or_k_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(30).trust(["a"], **given)


def test_more_votes_than_k_are_refused() -> None:
    with pytest.raises(ValueError, match="votes: 11 of a calibrator for k = 10"):
        fitted(30).trust(["a"] * 11)


def test_another_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="rule = 'pcurtail': this calibrator is of rule = 'curtail'"):
        fitted(30, rule="curtail").check(rule="pcurtail")
    fitted(30).check(rule="pcurtail")


def test_a_rule_cuts_the_votes_where_it_would_have_stopped() -> None:
    late = ["a", "a", "a", "b", "b", "b", "b", "b", "b", "b"]
    cut = Calibrator.fit([late] * 30, [True] * 30, k=10, model="m", rule="pcurtail")
    assert cut.trust(["a"] * 3) == Calibrator.fit([["a"] * 3] * 30, [True] * 30, k=10, model="m").trust(["a"] * 3)


def test_further_tasks_are_trusted_less_the_more_tasks_differ() -> None:
    def of_tasks(*skills: float) -> Calibrator:
        sets = [questions(80, seed, skill) for seed, skill in enumerate(skills)]
        votes, correct = [v for s in sets for v in s[0]], [c for s in sets for c in s[1]]
        tasks = [str(number) for number in range(len(skills)) for _ in range(80)]
        return Calibrator.fit(votes, correct, k=10, model="m", tasks=tasks)

    alike, apart = of_tasks(0, 0, 0, 0, 0, 0), of_tasks(-2, 2, -2, 2, -2, 2)
    assert alike.report()["tasks"] == 6
    assert alike.report()["task_spread"] < 0.7 < 1.3 < apart.report()["task_spread"]
    assert apart.trust(["a"] * 10) < alike.trust(["a"] * 10) - 0.03


def test_one_task_alone_says_little_of_the_next() -> None:
    votes, correct = [["a"] * 5] * 200, [i % 25 != 0 for i in range(200)]
    same = Calibrator.fit(votes, correct, k=5, model="m")
    other = Calibrator.fit(votes, correct, k=5, model="m", tasks=["one"] * 200)
    assert other.trust(["a"] * 5) < 0.95 < same.trust(["a"] * 5)


# ── keeping it ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [0, 30, 600])
def test_it_comes_back_from_json_as_it_was(n: int) -> None:
    calibrator = fitted(n, date="2026-01-31", rule="curtail")
    assert Calibrator.from_json(calibrator.to_json()) == calibrator
    assert calibrator.report()["date"] == "2026-01-31"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not the JSON of a calibrator"),
        ("{}", "not the JSON of a calibrator"),
        ('{"version": 1, "k": 3}', "not the JSON of a calibrator"),
        ('{"version": 1, "k": 3, "curve": {}}', "not the JSON of a calibrator"),
        ('{"version": 99, "k": 3}', "version 99 of a calibrator; this library reads 1"),
        ("no json", "Expecting value"),
    ],
)
def test_what_is_no_calibrator_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calibrator.from_json(text)


def test_the_json_is_plain() -> None:
    data = json.loads(fitted(30).to_json())
    assert (data["version"], data["k"], data["model"], data["method"], data["n"]) == (1, 10, "m", "platt", 30)


@pytest.mark.parametrize(
    ("votes", "correct", "given", "message"),
    [
        ([["a"]], [], {}, "correct: 0 for 1 questions"),
        ([["a"]], [True], {"tasks": []}, "tasks: 0 for 1 questions"),
        ([["a"] * 4], [True], {"k": 3}, "question 0: 4 votes, but k = 3"),
        ([["a"]], [True], {"k": 0}, "k = 0: give the number"),
        ([["a"]], [True], {"k": "3"}, "k = '3': give the number"),
        ([["a"]], [True], {"model": ""}, "model = '': name the model"),
        ([["a"]], ["no"], {}, "question 0: correct is 'no'; give True or False"),
        ([["a"], [["a"]]], [True, True], {}, r"votes: \['a'\] cannot be counted"),
        ([5], [True], {}, "votes: 5 is no list of votes"),
        ([["a"]], [True], {"rule": "majority"}, "rule = 'majority' is unknown"),
    ],
)
def test_labels_that_do_not_fit_together_are_refused(
    votes: Any, correct: Any, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Calibrator.fit(votes, correct, **{"k": 3, "model": "m", **given})


def test_all_ten_alike_are_trusted_more_than_nine_of_ten() -> None:
    labelled = [(["a"] * 10, True)] * 30 + [(["a"] * 9 + ["b"], True)] * 20 + [(["a"] * 9 + ["b"], False)] * 10
    fitted = Calibrator.fit([votes for votes, _ in labelled], [right for _, right in labelled], k=10, model="m")
    assert fitted.trust(["a"] * 10) > fitted.trust(["a"] * 9 + ["b"]) + 0.01


def test_a_calibrator_whose_json_says_no_clip_tells_what_it_told() -> None:
    votes = [["a"] * 10, ["a"] * 9 + ["b"], ["a"] * 6 + ["b"] * 4] * 20
    data = json.loads(Calibrator.fit(votes, [True, True, False] * 20, k=10, model="m").to_json())
    assert data["curve"].pop("clip") == 0.003
    data["curve"] |= {"ceilings": [[-99.0, 0.999]], "offset": 0.0, "slope": 1.0, "covariance": [0.0, 0.0, 0.0]}
    read = Calibrator.from_json(json.dumps(data))
    assert read.trust(votes[0]) == read.trust(votes[1]) == read.report()["highest"] == pytest.approx(0.99)
    assert Calibrator.from_json(read.to_json()) == read


def test_for_further_tasks_the_most_agreement_is_told_less_far_apart() -> None:
    votes = [["a"] * 10, ["a"] * 9 + ["b"], ["a"] * 6 + ["b"] * 4] * 20
    fitted = Calibrator.fit(votes, [True, True, False] * 20, k=10, model="m", tasks=["x", "y", "z"] * 20)
    assert fitted.trust(votes[0]) == fitted.trust(votes[1])
