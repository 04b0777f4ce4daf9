"""From beliefs to a choice: the gate, the chances, the draw."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.orchestration.planning.choosing import (
    Candidate,
    best,
    chance_to_beat,
    chances,
    chances_to_be_best,
    drawn,
    passes,
)


def candidate(name: str, reward: float, *, support: float = 100.0, worth: float | None = None) -> Candidate:
    sd = (reward * (1 - reward) / (support + 11)) ** 0.5
    return Candidate(name, reward if worth is None else worth, reward, sd, support, support + 10)


HOME = candidate("home", 0.6)


@pytest.mark.parametrize(
    ("other", "goes_through"),
    [
        (candidate("a little better", 0.62), False),
        (candidate("much better", 0.75), True),
        (candidate("much better by four runs", 0.75, support=4), False),
        (candidate("better by no run of its own", 0.99, support=0), False),
        (candidate("worse and cheap", 0.5, worth=0.9), True),
    ],
    ids=lambda value: value.name if isinstance(value, Candidate) else None,
)
def test_the_default_is_left_only_for_a_gain_beyond_its_error(other: Candidate, goes_through: bool) -> None:
    assert passes(other, HOME, 1.0) is goes_through
    assert best([HOME, other], 0, 1.0) == int(goes_through)


def test_without_a_default_the_greatest_utility_is_taken() -> None:
    assert best([candidate("a", 0.5), candidate("b", 0.51)], None, 1.0) == 1


def test_an_explored_tool_that_does_not_pass_gives_its_chances_to_the_default_and_a_new_one_keeps_them() -> None:
    seen, unseen = candidate("seen", 0.6, support=30), candidate("unseen", 0.6, support=2)
    home, of_seen, of_unseen = chances([HOME, seen, unseen], 0, 1.0, 10_000)
    assert of_seen < 0.001
    assert of_unseen > 0.2
    assert home > 0.5


def test_the_floor_falls_with_the_root_of_the_decisions() -> None:
    hopeless = candidate("hopeless", 0.01, support=1000)
    floors = [chances([HOME, hopeless], 0, 1.0, decided)[1] for decided in (0, 3, 15)]
    assert all(a / b == pytest.approx(2.0) for a, b in pairwise(floors))
    assert floors[0] > 0


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 0.5)), min_size=1, max_size=12),
)
def test_chances_add_up_to_one(beliefs: list[tuple[float, float]]) -> None:
    found = chances_to_be_best([mean for mean, _ in beliefs], [sd for _, sd in beliefs])
    assert sum(found) == pytest.approx(1.0)
    assert min(found) >= 0


@pytest.mark.parametrize("seed", range(8))
def test_chances_are_how_often_a_draw_is_the_greatest(seed: int) -> None:
    rng = random.Random(seed)
    means = [rng.uniform(0.3, 0.7) for _ in range(5)]
    sds = [rng.uniform(0.02, 0.2) for _ in range(5)]
    counts = [0] * 5
    for _ in range(20_000):
        values = [rng.gauss(mean, sd) for mean, sd in zip(means, sds, strict=True)]
        counts[values.index(max(values))] += 1
    found = chances_to_be_best(means, sds)
    assert all(abs(chance - count / 20_000) < 0.03 for chance, count in zip(found, counts, strict=True))


def test_a_number_falls_on_its_place() -> None:
    assert [drawn([0.2, 0.5, 0.3], number) for number in (0.0, 0.19, 0.2, 0.69, 0.7, 0.999999)] == [0, 0, 1, 1, 2, 2]


def test_one_that_is_known_to_be_better_beats_the_other() -> None:
    assert chance_to_beat(candidate("a", 0.9), candidate("b", 0.1)) == pytest.approx(1.0)
    assert chance_to_beat(HOME, HOME) == pytest.approx(0.5)
