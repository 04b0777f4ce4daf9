"""The numbers against those of scipy, numpy and scikit-learn; numpy's path against the one without it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from answers import answers
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from sklearn.metrics import pairwise_distances

from steer_llm_sdk.evidence import pairwise_distance
from steer_llm_sdk.evidence._reading import Ballot, Reading
from steer_llm_sdk.evidence.distance import distances
from steer_llm_sdk.evidence.distributions import describe, entropy, median_ranks
from steer_llm_sdk.evidence.equivalence import clusters, shingles, unlikeness
from steer_llm_sdk.evidence.policy import FieldPolicy, Policies

NUMBERS = st.lists(st.integers(-50, 50) | st.floats(-50, 50, width=32), min_size=1, max_size=60)


@given(NUMBERS)
def test_the_moments_and_quantiles_are_numpys(numbers: list[float]) -> None:
    found = describe(numbers)
    assert found["n"] == len(numbers)
    assert found["mean"] == pytest.approx(np.mean(numbers), abs=1e-12)
    assert found["stdev"] == (pytest.approx(np.std(numbers, ddof=1), abs=1e-9) if len(numbers) > 1 else None)
    for name, q in {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}.items():
        assert found[name] == np.quantile(numbers, q, method="inverted_cdf")
        assert found[name] in numbers
    apart = [abs(number - found["median"]) for number in numbers]
    assert found["mad"] == pytest.approx(np.quantile(apart, 0.5, method="inverted_cdf"))


@pytest.mark.parametrize("n", [3, 4, 5, 9, 10, 30, 101, 400])
def test_the_interval_of_the_median_is_that_of_infinitely_many_bootstrap_samples(n: int) -> None:
    half = (n + 1) // 2
    at_most = [stats.binom.sf(half - 1, n, rank / n) for rank in range(1, n + 1)]
    low = next(rank for rank, p in enumerate(at_most) if p >= 0.025)
    high = next(rank for rank, p in enumerate(at_most) if p >= 0.975)
    assert median_ranks(n) == (low, high)


def test_it_is_what_scipy_finds_by_drawing() -> None:
    numbers = list(np.random.default_rng(7).normal(10, 2, size=25))
    drawn = stats.bootstrap(
        (numbers,),
        lambda x, axis: np.quantile(x, 0.5, axis=axis, method="inverted_cdf"),
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert describe(numbers)["median_interval"] == pytest.approx(list(drawn.confidence_interval))


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=12))
def test_the_entropy_is_scipys(weights: list[float]) -> None:
    assert entropy(Counter(weights)) == pytest.approx(stats.entropy(weights), abs=1e-12)


@given(st.lists(st.text("abc ", min_size=1, max_size=9), min_size=2, max_size=9, unique=True), st.floats(0.05, 0.95))
def test_clusters_of_texts_are_those_of_complete_linkage(texts: list[str], similarity: float) -> None:
    """Where no two distances are alike; where they are, scipy's order of joining is another one."""
    shingled = [shingles(text) for text in texts]
    k = len(texts)
    matrix = np.array([[unlikeness(texts[i], texts[j], shingled[i], shingled[j]) for j in range(k)] for i in range(k)])
    heights = squareform(matrix)
    if len(set(heights)) < len(heights) or any(abs(heights - (1 - similarity)) < 1e-9):
        return
    expected = hierarchy.fcluster(hierarchy.linkage(heights, "complete"), 1 - similarity, "distance")
    found = clusters(
        dict.fromkeys(texts, 1.0), dict(zip(texts, texts, strict=True)), FieldPolicy(similarity=similarity)
    )
    for i in range(k):
        for j in range(k):
            assert (found[texts[i]] == found[texts[j]]) == (expected[i] == expected[j])


@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=2, max_size=6))
def test_the_distance_of_answers_without_degrees_is_the_hamming_distance(rows: list[list[int]]) -> None:
    found = pairwise_distance([{f"f{place}": "xyz"[value] for place, value in enumerate(row)} for row in rows])
    assert found == pytest.approx(pairwise_distances(rows, metric="hamming"))


@given(st.lists(answers, max_size=7))
def test_the_distances_with_numpy_equal_those_without(data: list[Any]) -> None:
    reading = Reading([Ballot(str(number), answer) for number, answer in enumerate(data)], Policies.of(None))
    assert distances(reading, numpy=True) == distances(reading, numpy=False)


def test_many_distances_with_numpy_equal_those_without() -> None:
    draw = np.random.default_rng(3)
    data = [
        {"n": float(draw.normal(100, 9)), "c": "abc"[draw.integers(3)], "t": f"in {draw.integers(9)} words", "o": None}
        for _ in range(120)
    ]
    reading = Reading([Ballot(str(number), answer) for number, answer in enumerate(data)], Policies.of(None))
    assert distances(reading, numpy=True) == distances(reading, numpy=False)


def test_few_or_huge_numbers_are_described_as_far_as_they_can_be() -> None:
    assert describe([]) == {}
    assert describe([1e200, 1.0]) == {}
    one = describe([5])
    assert (one["stdev"], one["median_interval"], one["mad"], one["median"]) == (None, None, 0, 5)
    assert math.isclose(describe([0.1] * 10)["mean"], 0.1)
