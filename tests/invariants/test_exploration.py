"""Every short history of the reducers. `sh scripts/prove explore` goes deeper, and plants defects."""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest.mock import patch

import pytest

from invariants import account_model, circuit_model, limit_model, retry_budget_model
from invariants.account_model import account_models
from invariants.attempts_model import WAYS
from invariants.choices import Choices, every_way
from invariants.circuit_model import circuit_models, unknown_fields
from invariants.claim_model import ClaimModel
from invariants.explore import Exploration, Explored, Model
from invariants.limit_model import limit_models
from invariants.retry_budget_model import retry_budget_models
from invariants.sharing_model import sharing_models
from steer_llm_sdk.reliability.circuit import Circuit

MODELS: list[Model[Any]] = [*circuit_models(), *account_models(), *limit_models(), *retry_budget_models(), ClaimModel()]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_no_short_history_breaks_a_promise(model: Model[Any]) -> None:
    explored = Exploration(model).run(depth=7)
    assert explored.broken is None, show(explored)
    assert explored.states > 50


@pytest.mark.parametrize("model", sharing_models(), ids=lambda model: model.name)
def test_no_short_history_of_instances_that_share_a_circuit_breaks_a_promise(model: Model[Any]) -> None:
    explored = Exploration(model).run(depth=5)
    assert explored.broken is None, show(explored)
    assert explored.states > 500


@pytest.mark.parametrize("name", WAYS)
def test_no_way_in_which_a_provider_can_answer_breaks_a_promise(name: str) -> None:
    assert WAYS[name]() > 50


def test_the_models_know_every_field_of_what_they_tell_apart() -> None:
    assert unknown_fields() == []
    assert account_model.unknown_fields() == []
    assert limit_model.unknown_fields() == []
    assert retry_budget_model.unknown_fields() == []


def test_a_broken_promise_is_found_and_the_way_to_it_is_told() -> None:
    def whoever_reports(circuit: Circuit, permit: Any, *rest: Any, **more: Any) -> Circuit:
        if permit.part is None:
            permit = dataclasses.replace(permit, generation=circuit.whole.generation)
        return whole(circuit, permit, *rest, **more)

    whole = Circuit.report
    with patch.object(circuit_model.Circuit, "report", whoever_reports):
        explored = Exploration(circuit_models()[0]).run(depth=10)
    assert explored.broken == "a report from an earlier generation has no effect"
    assert len(explored.way) == explored.depth > 3


def test_every_way_is_every_combination_of_choices() -> None:
    seen: list[tuple[object, ...]] = []

    def body(choices: Choices) -> None:
        first = choices.choose(1, 2)
        seen.append((first, choices.choose("x", "y", "z") if first == 2 else None))

    assert every_way(body) == 4
    assert seen == [(1, None), (2, "x"), (2, "y"), (2, "z")]


def show(explored: Explored) -> str:
    return f"{explored.broken}\n  " + "\n  ".join(explored.way)
