"""The recorded answers: who is in them, how a question is found, and who answers next."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

import pytest

from steer_llm_sdk.providers.simulated import Answer, Question, Recording, shipped_recording


def question(id: str, text: str, models: Iterable[str]) -> Question:
    return Question(id=id, text=text, gold="1", answers={name: Answer(name, f"{name} says", "raw") for name in models})


def recording(*models: str) -> Recording:
    return Recording.of(name="r", source="s", models=models, questions=[question("q1", "How many?", models)])


def test_a_hundred_questions_were_answered_by_51_models_12_of_them_in_their_own_words() -> None:
    shipped = shipped_recording()
    kinds = [answer.kind for question in shipped.questions for answer in question.answers.values()]
    assert (len(shipped.questions), len(shipped.models)) == (100, 51)
    assert (kinds.count("raw"), kinds.count("extracted")) == (1200, 3900)
    assert all(tuple(question.answers) == shipped.models for question in shipped.questions)


def test_every_extracted_answer_is_served_as_json_and_what_could_not_be_extracted_as_null() -> None:
    answers = [
        json.loads(answer.text)["answer"]
        for question in shipped_recording().questions
        for answer in question.answers.values()
        if answer.kind == "extracted"
    ]
    assert {type(answer) for answer in answers} == {str, type(None)}
    assert answers.count(None) == 23


def test_raw_replies_are_as_the_models_gave_them_and_most_are_no_json() -> None:
    replies = [
        answer.text
        for question in shipped_recording().questions
        for answer in question.answers.values()
        if answer.kind == "raw"
    ]
    assert sum(_is_json(reply) for reply in replies) == 90


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_source_commit_and_licences_come_with_the_recording() -> None:
    folder = resources.files("steer_llm_sdk.providers.simulated").joinpath("data")
    assert "8c1485edf12c6efb5f69135a562927c5ad484059" in shipped_recording().source
    assert "Apache License" in folder.joinpath("LICENSE-ZeroEval.txt").read_text("utf-8")
    assert "MIT License" in folder.joinpath("LICENSE-CRUXEval.txt").read_text("utf-8")


def test_a_question_is_found_by_its_words_whatever_the_white_space_and_by_its_id() -> None:
    shipped = shipped_recording()
    first = shipped.questions[0]
    assert shipped.find(first.text.replace("\n", "\r\n  ") + "\n") is first
    assert shipped.find(" crux-test-#0 ") is first


@pytest.mark.parametrize("text", ["", "What is the meaning of life?", "crux-test-#1", "CRUX-TEST-#0"])
def test_a_question_that_was_not_recorded_is_not_found(text: str) -> None:
    assert shipped_recording().find(text) is None


def test_two_models_with_the_same_plain_name_stay_two() -> None:
    both = recording("GPT-4", "gpt4")
    assert (both.model_named("GPT-4"), both.model_named("gpt4")) == ("GPT-4", "gpt4")
    assert both.model_named("Gpt_4") is None
    assert [answer.model for answer in both.questions[0].answers.values()] == ["GPT-4", "gpt4"]


def test_a_model_may_be_named_in_any_case_with_its_prefix_or_as_the_pool() -> None:
    one = recording("GPT-4")
    assert [one.model_named(name) for name in ("gpt-4", "recorded:GPT-4", "demo", "recorded:demo")] == [
        "GPT-4",
        "GPT-4",
        "demo",
        "demo",
    ]
    assert one.model_named("gpt-5") is None


def test_the_order_in_which_models_take_turns_depends_on_the_question_alone() -> None:
    first, second = shipped_recording().questions[:2]
    orders = [shipped_recording().in_turn(each) for each in (first, first, second)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(shipped_recording().models)


def test_the_order_does_not_depend_on_the_order_of_the_source() -> None:
    one, other = recording("a", "b", "c", "d"), recording("d", "c", "b", "a")
    assert one.in_turn(one.questions[0]) == other.in_turn(other.questions[0])


def test_what_is_recorded_is_read_once() -> None:
    assert shipped_recording() is shipped_recording()


def test_a_question_does_not_spill_its_answers_into_a_log() -> None:
    shown: Any = repr(shipped_recording())
    assert len(shown) < 4000
