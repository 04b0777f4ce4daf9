"""From a model's text to the value that was asked for, or a sentence why not."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.tools.structured import InvalidAnswer, OutputSchema, clean_text, read_answer


class Fact(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    born: date | None = None


NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def schema(output_type: Any) -> OutputSchema:
    made = OutputSchema.of(output_type)
    assert made is not None
    return made


def read(text: str, output_type: Any = NUMBER) -> Any:
    return read_answer(text, schema(output_type)).value


@pytest.mark.parametrize("output_type", [None, str])
def test_text_needs_no_schema(output_type: Any) -> None:
    assert OutputSchema.of(output_type) is None


def test_strict_json_is_taken_without_a_warning() -> None:
    parsed = read_answer(' {"n": 1}\n', schema(NUMBER))
    assert (parsed.value, parsed.warnings) == ({"n": 1}, ())


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ('```json\n{"n": 1}\n```', "fenced"),
        ('Here it is:\n```\n{"n": 1}\n```\nand that is all.', "fenced"),
        ('```python\nprint(1)\n```\nso\n```json\n{"n": 1}\n```', "fenced"),
        ('The answer is {"n": 1}. {"n": 2} is not.', "text around"),
        ('As [1] says: {"n": 1}', "text around"),
        ('As [1] says:\n```json\n{"n": 1}\n```', "fenced"),
        ('```python\nd = {}\n```\nso\n```json\n{"n": 1}\n```', "fenced"),
        ('```python\nprint("{")\n```\nso\n```json\n{"n": 1}\n```', "fenced"),
        ('```json\n{"n": 2,}\n```\nNo:\n```json\n{"n": 1}\n```', "fenced"),
        ('\ufeff{"n": 1}', None),
        ('```json {"n": 1} ```', "text around"),
        ('{"n": 1, "why": "so\nthat\tis"}', "control characters"),
    ],
)
def test_json_in_a_fence_or_in_prose_is_taken_with_a_warning(text: str, warning: str | None) -> None:
    parsed = read_answer(text, schema({**NUMBER, "additionalProperties": True}))
    assert parsed.value["n"] == 1
    assert [warning in told for told in parsed.warnings] == ([] if warning is None else [True])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the answer is empty"),
        ("  \n", "the answer is empty"),
        ("I do not know.", "not valid JSON: Expecting value at line 1, column 1"),
        ('{"n": 1', "not valid JSON"),
        ('{"n": 1, "n": 2}', 'the key "n" is in one object twice'),
        ('{"n": NaN}', "NaN is no JSON value"),
        ('{"n": -Infinity}', "-Infinity is no JSON value"),
        ('{"n": 1e999}', "the number 1e999 is too large"),
        ('{"n": ' + "9" * 5000 + "}", "not usable JSON"),
        ('{"n": "\\ud800"}', "half a character"),
        ("[" * 10_000 + "]" * 10_000, "nested deeper than 200 levels"),
        ('{"n": "x"}', 'does not fit the schema: n: "x" is not of type "integer"'),
        ("{}", '"n" is a required property'),
        ("[1]", "is not of type"),
        ("7", "is not of type"),
        ('[{"n": 1}, {"n": 2}]', "is not of type"),
        ('Both: [{"n": 1}, {"n": 2}]', "not valid JSON"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InvalidAnswer) as caught:
        read(text)
    assert sentence in str(caught.value)


def test_the_inside_of_an_unfinished_object_is_no_answer() -> None:
    cut_off = '{"why": "because", "nested": {"n": 1}, "n": '
    with pytest.raises(InvalidAnswer, match="not valid JSON"):
        read(cut_off)


@pytest.mark.parametrize(
    "text",
    [
        '{"why": "my draft was\n```json\n{"n": 1}\n```\nbut that is wrong, so", "n": ',
        'Final: {"why": "```json\n{"n": 1}\n```", "n": 2',
        '{"why": "no:\n```json\n{\\"n\\": 1}\n```", "n": 2,}',
        'First [this, then\n```json\n{"n": 1}\n```',
    ],
)
def test_a_fence_within_an_unfinished_or_broken_object_is_no_answer(text: str) -> None:
    with pytest.raises(InvalidAnswer, match="not valid JSON"):
        read(text, {"type": "object"})


def test_a_fence_after_an_object_is_read() -> None:
    assert read('Instead of {"n": "```"} take\n```json\n[1, 2]\n```', list[int]) == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        '{"' + '\\"' * 12_000,
        'x {"' + '\\"' * 12_000,
        "{" + '"' * 12_001,
        "{" + ",".join(f'"k{i}": 1' for i in range(12_000)) + ', "n": 1, "n": 1}',
        "[]" * 12_000,
        '{"```\n"}' * 20_000,
        "x [" * 12_000 + "```\n1\n```",
        "```\n{1\n```\n" * 10_000,
    ],
    ids=lambda text: text[:8],
)
def test_what_is_no_answer_is_refused_in_a_time_that_grows_with_its_length_only(text: str) -> None:
    started = time.process_time()
    with pytest.raises(InvalidAnswer):
        read(text)
    assert time.process_time() - started < 2


def test_the_inside_of_a_broken_object_is_no_answer() -> None:
    with pytest.raises(InvalidAnswer, match="twice"):
        read('{"a": {"n": 1}, "a": {"n": 2}}')


def test_line_breaks_in_strings_are_kept() -> None:
    parsed = read_answer('```json\n{"why": "a\nb"}\n```', schema({"type": "object"}))
    assert parsed.value == {"why": "a\nb"}
    assert len(parsed.warnings) == 2


def test_brackets_in_strings_are_text() -> None:
    text = 'So: {"n": 1, "why": "} ] \\" {"}'
    assert read(text, {"type": "object"}) == {"n": 1, "why": '} ] " {'}


def test_many_problems_are_told_five_at_a_time() -> None:
    wide = {"type": "object", "properties": {f"f{i}": {"type": "string"} for i in range(9)}}
    with pytest.raises(InvalidAnswer, match="and 4 more"):
        read(json.dumps({f"f{i}": i for i in range(9)}), wide)


def test_a_long_value_is_not_told_in_full() -> None:
    with pytest.raises(InvalidAnswer) as caught:
        read(json.dumps({"n": "x" * 10_000}))
    assert len(str(caught.value)) < 400


# Pydantic models and types.


def test_a_pydantic_model_gives_a_json_value_of_its_form() -> None:
    assert read('{"name": "Ada", "born": "1815-12-10"}', Fact) == {"name": "Ada", "born": "1815-12-10"}
    assert read('{"name": "Ada"}', Fact) == {"name": "Ada", "born": None}


def test_a_pydantic_model_names_what_does_not_fit() -> None:
    with pytest.raises(InvalidAnswer, match="born: Input should be a valid date"):
        read('{"name": "Ada", "born": "soon"}', Fact)


def test_a_dataclass_will_do() -> None:
    @dataclass
    class Pair:
        left: int
        right: tuple[int, int]

    assert read('{"left": 1, "right": [2, 3]}', Pair) == {"left": 1, "right": [2, 3]}


def test_the_form_of_a_model_is_told_as_it_is() -> None:
    told = schema(Fact)
    assert not told.wrapped
    assert told.schema == Fact.model_json_schema()


@pytest.mark.parametrize(
    ("output_type", "value"),
    [(int, 7), (list[int], [1, 2]), (Fact | None, None), (dict[str, int] | list[int], [3]), (bool, True)],
)
def test_a_form_that_is_no_object_travels_in_one(output_type: Any, value: Any) -> None:
    told = schema(output_type)
    assert told.wrapped
    assert (told.schema["type"], told.schema["required"]) == ("object", ["answer"])
    assert read(json.dumps({"answer": value}), output_type) == value


def test_definitions_stay_at_the_root_when_a_form_is_wrapped() -> None:
    told = schema(list[Fact]).schema
    assert "Fact" in told["$defs"]
    assert told["properties"]["answer"]["items"] == {"$ref": "#/$defs/Fact"}


def test_definitions_under_their_old_name_stay_at_the_root_too() -> None:
    numbers = {"type": "array", "items": {"$ref": "#/definitions/N"}, "definitions": {"N": {"type": "integer"}}}
    told = schema(numbers).schema
    assert told["definitions"] == {"N": {"type": "integer"}}
    assert told["properties"]["answer"] == {"type": "array", "items": {"$ref": "#/definitions/N"}}
    assert not schema({"$ref": "#/definitions/N", "definitions": {"N": NUMBER}}).wrapped


def test_a_definition_of_anything_is_a_form() -> None:
    anything = {"$ref": "#/$defs/x", "$defs": {"x": True}}
    assert schema(anything).wrapped
    assert read('{"answer": [1]}', anything) == [1]


@pytest.mark.parametrize("ref", ["#", "#/items", "#/anyOf/0"])
def test_a_form_that_is_no_object_does_not_refer_to_its_own_root(ref: str) -> None:
    tree = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": ref}}], "items": {"type": "string"}}
    with pytest.raises(InvalidRequest, match=r'refer to "#/\$defs/NAME"') as caught:
        schema(tree)
    assert str(caught.value).startswith(f"output_type: {ref!r} cannot be used")


def test_an_object_may_refer_to_its_own_root() -> None:
    tree = {"type": "object", "properties": {"inner": {"$ref": "#"}}, "additionalProperties": False}
    assert read('{"inner": {"inner": {}}}', tree) == {"inner": {"inner": {}}}


def test_the_wrapping_may_be_left_out() -> None:
    assert read("[1, 2]", list[int]) == [1, 2]
    assert read("The list: [1, 2]", list[int]) == [1, 2]
    assert read('[{"name": "Ada"}]', list[Fact]) == [{"name": "Ada", "born": None}]


def test_a_choice_of_words_is_understood_without_quotes() -> None:
    parsed = read_answer(" yes\n", schema(Literal["yes", "no"]))
    assert (parsed.value, parsed.warnings) == ("yes", ("the answer was plain text where JSON was asked for",))
    assert read('{"answer": "no"}', Literal["yes", "no"]) == "no"
    with pytest.raises(InvalidAnswer, match="'yes' or 'no'"):
        read("perhaps", Literal["yes", "no"])


def test_a_model_that_writes_what_json_cannot_say_does_not_fit() -> None:
    class Odd(BaseModel):
        x: float = float("nan")

    with pytest.raises(InvalidAnswer, match="the answer does not fit: nan is not a JSON number"):
        read("{}", Odd)


def test_a_recursive_model_is_an_object() -> None:
    class Node(BaseModel):
        name: str
        inner: list[Node] = []

    Node.model_rebuild()
    assert not schema(Node).wrapped
    assert read('{"name": "a", "inner": [{"name": "b"}]}', Node)["inner"][0]["name"] == "b"


class Opaque:
    pass


@pytest.mark.parametrize("output_type", [Opaque, 5, "NoSuchType", Opaque()])
def test_what_is_no_output_type_is_refused_by_name(output_type: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"output_type: .* give a pydantic model, a type or a JSON Schema"):
        OutputSchema.of(output_type)


def test_a_consensus_can_be_checked() -> None:
    assert schema(Fact).accepts({"name": "Ada", "born": None})
    assert not schema(Fact).accepts({"name": "Ada", "dead": True})


# JSON Schema.


@pytest.mark.parametrize(
    ("given_schema", "reason"),
    [
        ({"type": "strin"}, "no JSON Schema"),
        ({"$ref": "http://127.0.0.1:9/schema.json"}, "is not followed; put the definition into the schema"),
        ({"type": "object", "properties": {"a": {"$ref": "https://example.com/x"}}}, "is not followed"),
        ({"type": "number", "maximum": float("nan")}, "nan is not a JSON number"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_by_name(given_schema: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match="output_type") as caught:
        OutputSchema.of(given_schema)
    assert reason in str(caught.value)


def test_a_schema_reads_no_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"type": "string"}')
    with pytest.raises(InvalidRequest, match="is not followed"):
        OutputSchema.of({"$ref": secret.as_uri()})


def test_a_schema_refers_to_its_own_definitions() -> None:
    told = {"$ref": "#/$defs/N", "$defs": {"N": NUMBER}}
    assert not schema(told).wrapped
    assert read('{"n": 2}', told) == {"n": 2}


def test_the_callers_schema_is_not_written() -> None:
    given_schema = {
        "type": "array",
        "items": {"type": "integer"},
        "$schema": "https://json-schema.org/draft/2020-12/schema",
    }
    before = json.dumps(given_schema)
    assert read("[1]", given_schema) == [1]
    assert json.dumps(given_schema) == before


# Text.


def test_text_with_half_a_character_is_made_whole_with_a_warning() -> None:
    assert clean_text("a\ud83d\ude00b").value == "a\U0001f600b"
    assert clean_text("a\ud800b").value == "a\ufffdb"
    assert clean_text("a\ud800b").warnings
    assert clean_text("\u202eabc\x00 \U0001f600").warnings == ()


@given(st.text(alphabet='{}[]",:\\`\n1nN ', max_size=60))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with suppress(InvalidAnswer):
        read(text, {"type": "object"})


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    ),
    st.sampled_from(["{}", "```json\n{}\n```", "Sure:\n\n```\n{}\n```\nDone."]),
)
def test_any_object_comes_back_out_of_what_models_put_round_it(value: dict[str, Any], around: str) -> None:
    text = around.replace("{}", json.dumps(value, ensure_ascii=True))
    assert read(text, {"type": "object"}) == value
