"""What the demo says of its models, prices and questions is so."""

from __future__ import annotations

import pytest
from genai_prices import Usage, calc_price

from steer_llm_sdk.cli import _demo_setup as setup
from steer_llm_sdk.orchestration.tools.structured import OutputSchema, read_answer
from steer_llm_sdk.providers.simulated import Question, shipped_recording


def question(name: str) -> Question:
    found = shipped_recording().find(name)
    assert found is not None
    return found


def answer(name: str, model: str) -> str:
    form = OutputSchema.of(setup.Solved)
    assert form is not None
    said: str = read_answer(question(name).answers[model].text, form).value["answer"]
    return said


@pytest.mark.parametrize("model", setup.PRICES)
def test_its_prices_are_those_of_the_price_table(model: str) -> None:
    listed = [calc_price(usage, model).total_price for usage in (Usage(input_tokens=10**6), Usage(output_tokens=10**6))]
    assert listed == [setup.PRICES[model].input, setup.PRICES[model].output]


@pytest.mark.parametrize("name", setup.QUESTIONS)
@pytest.mark.parametrize("model", [setup.FIRST, setup.SECOND])
def test_both_models_answered_its_questions_in_readable_json(name: str, model: str) -> None:
    assert answer(name, model)


def test_they_differ_on_the_second_question_and_are_wrong_together_on_the_fifth() -> None:
    both = [[answer(name, model) for model in (setup.FIRST, setup.SECOND)] for name in setup.QUESTIONS]
    differing = [number for number, (one, other) in enumerate(both, start=1) if one != other]
    right = [setup.bare(question(name).gold) for name in setup.QUESTIONS]
    wrong = [number for number, ((one, _), gold) in enumerate(zip(both, right, strict=True), start=1) if one != gold]
    assert (differing, wrong) == ([2], [5])


@pytest.mark.parametrize(("written", "said"), [("'x'", "x"), (' "x" ', "x"), ("x", "x"), ("''", "")])
def test_quotes_round_a_string_make_no_other_answer(written: str, said: str) -> None:
    assert setup.bare(written) == said
