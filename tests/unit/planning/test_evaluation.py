"""What a log says of a planner: estimates that come near the truth, bounds that forbid, and how much is missing."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.planning import LearnedPlanner, ToolMetadata
from steer_llm_sdk.orchestration.planning.evaluation import evaluate, read_log

TRUTH = {("code", "odd"): 0.8, ("code", "good"): 0.5, ("poem", "odd"): 0.2, ("poem", "good"): 0.7}
LEARNED, DEFAULT = (0.8 + 0.7) / 2, (0.5 + 0.7) / 2


def explored(count: int, seed: int = 0, share: float = 0.3) -> Iterator[str]:
    """A log of a planner that took the default and tried the other one with a chance of `share`."""
    rng = random.Random(seed)
    for _ in range(count):
        task = rng.choice(["code", "poem"])
        odd = rng.random() < share
        tool = "odd" if odd else "good"
        yield json.dumps(
            {
                "type": task,
                "candidates": ["odd", "good"],
                "tool": tool,
                "propensity": share if odd else 1 - share,
                "default": "good",
                "reward": float(rng.random() < TRUTH[task, tool]),
                "cost_usd": 0.001 if odd else 0.002,
            }
        )


def test_estimates_come_near_the_truth_and_a_gain_that_is_shown_is_promoted() -> None:
    found = evaluate(read_log(explored(4000)))
    for value in (found.policy.snips, found.policy.direct, found.policy.dr):
        assert value == pytest.approx(LEARNED, abs=0.03)
    assert found.reference == "good"
    assert found.reference_value.dr == pytest.approx(DEFAULT, abs=0.03)
    assert found.promote
    assert found.needed == 0
    assert found.gain_low < LEARNED - DEFAULT < found.gain_high


@pytest.mark.parametrize("seed", range(4))
def test_the_bounds_hold_the_truth_of_a_policy(seed: int) -> None:
    value = evaluate(read_log(explored(1500, seed))).singles["odd"]
    assert value.low - 0.01 <= 0.5 <= value.high + 0.01


def test_a_short_log_is_not_enough_and_says_how_much_is_missing() -> None:
    found = evaluate(read_log(explored(80)), margin=0.0)
    assert not found.promote
    assert found.needed is None or found.needed > 0
    assert "do not promote" in found.verdict


def test_what_was_always_certain_cannot_be_judged() -> None:
    certain = [line._replace(propensity=1.0) for line in read_log(explored(200))]
    with pytest.raises(InvalidRequest, match="propensity 1"):
        evaluate(certain)


def test_with_every_score_known_the_values_are_exact_and_there_is_an_oracle() -> None:
    lines = [
        json.dumps(
            {
                "type": task,
                "query": "q",
                "scores": {"odd": TRUTH[task, "odd"], "good": TRUTH[task, "good"]},
                "costs": {"odd": 0.001, "good": 0.002},
            }
        )
        for task in ("code", "poem")
        for _ in range(100)
    ]
    found = evaluate(read_log(lines), default="good")
    assert found.policy.dr == pytest.approx(LEARNED)
    assert found.oracle == pytest.approx(LEARNED)
    assert found.singles["odd"].dr == pytest.approx(0.5)
    assert found.random.dr == pytest.approx(0.55)
    assert found.policy.cost_usd == pytest.approx(0.0015)
    assert found.at_fixed_quality is not None
    assert found.at_fixed_quality["cost"] <= 0.75
    assert found.unseen_tasks == {"code": 0.0, "poem": 0.0}


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"tool": "a"}',
        '{"tool": "a", "candidates": ["a"], "propensity": 0, "reward": 1}',
        '{"tool": "a", "candidates": ["b"], "propensity": 1, "reward": 1}',
        '{"tool": "a", "candidates": ["a"], "propensity": 1, "reward": 2}',
        '{"scores": {"a": -1}}',
        '{"tool": "a", "candidates": ["a"], "propensity": 1, "reward": 1, "decision_id": ["x"]}',
    ],
)
def test_a_line_that_is_none_is_refused_with_its_number(line: str) -> None:
    good: Any = list(explored(2))
    with pytest.raises(InvalidRequest, match="line 3"):
        read_log([*good, line])


def test_of_several_lines_of_one_decision_the_last_one_counts() -> None:
    once = [json.loads(line) | {"decision_id": str(number)} for number, line in enumerate(explored(300))]
    first_guess = [line | {"reward": 1.0 - line["reward"]} for line in once[:100]]
    told_twice = evaluate(read_log(map(json.dumps, [*first_guess, *once])))
    told_once = evaluate(read_log(map(json.dumps, once)))
    assert (told_twice.decisions, told_twice.replaced) == (300, 100)
    assert (told_once.decisions, told_once.replaced) == (300, 0)
    assert told_twice.policy == told_once.policy
    assert told_twice.gain_low == told_once.gain_low


async def test_a_decision_that_is_fed_back_several_times_is_one_decision() -> None:
    lines: list[str] = []
    tools = {name: ToolMetadata(name=name) for name in ("odd", "good")}
    planner = LearnedPlanner("good", explore="thompson", log=lines.append, chance=random.Random(3).random)
    for number in range(60):
        decision = await planner.plan({"type": "code", "query": "q"}, tools)
        for reward in (0.0, 1.0, float(number % 2)):
            await planner.feedback(decision.metadata["decision_id"], reward)
    found = evaluate(read_log(lines))
    assert (len(lines), found.decisions, found.replaced) == (180, 60, 120)
    assert found.random.direct < 0.9


def test_a_short_log_is_not_made_longer_by_saying_the_same_again() -> None:
    lines = [json.loads(line) | {"decision_id": str(number)} for number, line in enumerate(explored(30))]
    with pytest.raises(InvalidRequest, match="30 decisions with a reward"):
        evaluate(read_log(map(json.dumps, lines * 5)))


def test_a_reference_that_is_not_in_the_log_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="odd"):
        evaluate(read_log(explored(100)), default="nobody")


def test_what_is_no_better_is_not_promoted_and_no_number_of_decisions_is_named() -> None:
    lines = [json.loads(line) for line in explored(300)]
    for line in lines:
        line["reward"] = 1.0 if line["tool"] == "good" else 0.0
    found = evaluate(read_log(map(json.dumps, lines)))
    assert (found.promote, found.gain, found.needed) == (False, 0.0, None)
