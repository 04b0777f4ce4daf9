"""What is believed from sums, when a cell forgets, and how a budget is paced."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.orchestration.planning.beliefs import Beliefs, Line, Seen
from steer_llm_sdk.orchestration.planning.change import Watch, kept, watched
from steer_llm_sdk.orchestration.planning.pacing import Paced, Pacing


def told(beliefs: Beliefs, task: str, arm: str, *rewards: float) -> None:
    for reward in rewards:
        beliefs.add((task, arm), Seen(runs=1, reward=reward))


def test_nothing_seen_is_believed_to_be_one_half() -> None:
    belief = Beliefs().reward("summary", "a@1")
    assert (belief.mean, belief.runs) == (0.5, 0)


def test_a_cell_without_runs_is_believed_to_be_what_the_tool_is_elsewhere() -> None:
    beliefs = Beliefs()
    told(beliefs, "summary", "a@1", *[1.0] * 190)
    assert beliefs.reward("code", "a@1").mean == pytest.approx(195 / 200)
    assert beliefs.reward("code", "a@1").runs == 0


def test_many_runs_of_a_cell_weigh_more_than_the_tool_elsewhere() -> None:
    beliefs = Beliefs()
    told(beliefs, "summary", "a@1", *[1.0] * 200)
    told(beliefs, "code", "a@1", *[0.0] * 100)
    assert beliefs.reward("code", "a@1").mean < 0.1
    assert beliefs.reward("summary", "a@1").mean > 0.95


def test_a_new_version_starts_from_its_predecessor_and_soon_stands_alone() -> None:
    beliefs = Beliefs()
    told(beliefs, "code", "a@1.9", *[1.0] * 500)
    told(beliefs, "code", "a@1.10", 0.0)
    assert 0.7 < beliefs.reward("code", "a@1.10").mean < 0.95
    told(beliefs, "code", "a@1.10", *[0.0] * 30)
    assert beliefs.reward("code", "a@1.10").mean < 0.2


def test_an_older_version_inherits_nothing_from_a_newer_one() -> None:
    beliefs = Beliefs()
    told(beliefs, "code", "a@2.0", *[1.0] * 500)
    told(beliefs, "code", "a@1.0", 1.0)
    alone = Beliefs()
    told(alone, "code", "a@1.0", 1.0)
    assert beliefs.reward("code", "a@1.0") == alone.reward("code", "a@1.0")


@given(st.lists(st.tuples(st.sampled_from(["x", "y"]), st.sampled_from(["a@1", "b@1"]), st.floats(0, 1))))
def test_the_order_of_what_was_seen_does_not_matter(seen: list[tuple[str, str, float]]) -> None:
    one, other = Beliefs(), Beliefs()
    for task, arm, reward in seen:
        told(one, task, arm, reward)
    for task, arm, reward in reversed(seen):
        told(other, task, arm, reward)
    for task in ("x", "y"):
        for arm in ("a@1", "b@1"):
            assert one.reward(task, arm).mean == pytest.approx(other.reward(task, arm).mean)


def test_the_cost_of_a_request_follows_its_length() -> None:
    line = Line()
    for length in (100, 400, 900, 1600, 2500):
        line = line.plus(Line.point(length, 0.001 + 2e-6 * length))
    assert line.at(5000) == pytest.approx(0.011)
    assert Line().at(100) is None
    assert Line().plus(Line.point(10, 0.5)).at(99) == 0.5


def run_of(watch: Watch, chance: float, count: int, rng: random.Random) -> tuple[Watch, int]:
    alarms = 0
    for _ in range(count):
        watch, changed = watched(watch, float(rng.random() < chance))
        alarms += changed
    return watch, alarms


def test_a_tool_that_gets_worse_is_noticed_within_a_window() -> None:
    noticed = 0
    for seed in range(50):
        rng = random.Random(seed)
        watch, _ = run_of(Watch(), 0.9, 300, rng)
        noticed += run_of(watch, 0.3, 60, rng)[1] > 0
    assert noticed == 50


def test_a_tool_that_stays_as_it_is_hardly_ever_looks_changed() -> None:
    alarms = sum(run_of(Watch(), 0.7, 1000, random.Random(seed))[1] for seed in range(50))
    assert alarms <= 3


def test_after_a_change_only_the_last_window_is_kept() -> None:
    watch, _ = run_of(Watch(), 1.0, 200, random.Random(0))
    changed = False
    while not changed:
        watch, changed = watched(watch, 0.0)
    runs, total = kept(watch)
    assert runs <= 50
    assert total < runs


def test_the_price_rises_while_too_much_is_spent_and_falls_to_zero_again() -> None:
    paced = Paced(Pacing(budget_usd=1.0, requests=100))
    for _ in range(10):
        paced = paced.admit(0.02, 0.02).settle(0.02, 0.02)
    dear = paced.price
    assert dear > 0.05
    for _ in range(60):
        paced = paced.admit(0.001, 0.001).settle(0.001, 0.001)
    assert paced.price == 0.0


def test_what_is_reserved_counts_until_it_is_known() -> None:
    paced = Paced(Pacing(budget_usd=1.0, requests=10)).admit(0.1, 0.6)
    assert not paced.admits(0.5)
    assert paced.settle(0.6, 0.1).admits(0.9)
    assert not paced.settle(0.6, 0.1).admits(0.91)


@pytest.mark.parametrize(("budget", "requests"), [(0, 10), (-1, 10), (float("inf"), 10), (1.0, 0)])
def test_a_budget_that_is_none_is_refused(budget: float, requests: int) -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        Pacing(budget_usd=budget, requests=requests)
