"""Whether an answer has the form that was asked for: a JSON Schema, a type, or a check of one's own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn, TypeAlias, get_origin

import pydantic

from steer_llm_sdk.evidence._json import json_value
from steer_llm_sdk.evidence._leaves import MAX_DEPTH

Check: TypeAlias = Callable[[Any], Any]
"""From a JSON value to the JSON value to go on with; InvalidAnswer says what is wrong with it."""

_SHOWN: Final = 5
"""Validation errors that are listed; more would not help a model that is asked again."""


class InvalidAnswer(ValueError):
    """An answer does not have the form asked for. The message is a sentence that a model can act on."""


class InvalidSchema(ValueError):
    """What was given as a schema is none. The message says what to give."""


def check_of(schema: Any) -> Check:
    """The check of `schema`: a JSON Schema as a mapping, a pydantic model or other type, or a callable.

    A callable is given the JSON value; the answer is valid if it returns something true, and invalid if it raises. A
    type's check returns what the type makes of the value, as JSON. InvalidSchema where it is none of these.
    """
    if isinstance(schema, Mapping):
        return checked_by_schema(schema)
    if isinstance(schema, type) or get_origin(schema) is not None or not callable(schema):
        return checked_by_type(adapter_of(schema))
    return _checked_by_call(schema)


def checked_by_type(adapter: pydantic.TypeAdapter[Any]) -> Check:
    def check(value: Any) -> Any:
        try:
            # As JSON, so that dates, enums and tuples are read from what JSON has for them.
            return json_value(adapter.dump_python(adapter.validate_json(json.dumps(value)), mode="json", by_alias=True))
        except pydantic.ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            raise _mismatch([(problem["loc"], problem["msg"]) for problem in problems]) from None
        except (ValueError, RecursionError) as error:
            raise InvalidAnswer(f"the answer does not fit: {shortened(str(error))}") from None

    return check


def adapter_of(output_type: Any) -> pydantic.TypeAdapter[Any]:
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(output_type)
        adapter.json_schema()
    except (pydantic.PydanticUserError, NameError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidSchema(f"give a pydantic model, a type or a JSON Schema ({reason})") from error
    return adapter


def checked_by_schema(schema: Mapping[str, Any]) -> Check:
    """A schema's `$ref` is followed within the schema only: nothing is fetched, and no file is read."""
    # Loaded here because only a schema given as a mapping needs the validator.
    import jsonschema_rs

    elsewhere: list[str] = []

    def fetch_nothing(uri: str) -> NoReturn:
        elsewhere.append(uri)
        raise ValueError(uri)

    try:
        validator = jsonschema_rs.validator_for(json_value(schema), retriever=fetch_nothing)
    except (ValueError, RecursionError) as error:
        reason = f"it is no JSON Schema: {shortened(str(error).splitlines()[0])}"
        if elsewhere:
            reason = (
                f"$ref to {shortened(elsewhere[0])} is not followed; put the definition into the schema, under $defs"
            )
        raise InvalidSchema(reason) from error

    def check(value: Any) -> Any:
        if not validator.is_valid(value):
            raise _mismatch([(error.instance_path, error.message) for error in validator.iter_errors(value)])
        return value

    return check


def _checked_by_call(call: Callable[[Any], Any]) -> Check:
    def check(value: Any) -> Any:
        try:
            accepted = call(value)
        except Exception as error:  # Whatever a caller's own check raises is its reason.
            raise InvalidAnswer(f"the check refused it: {shortened(f'{type(error).__name__}: {error}')}") from error
        if not accepted:
            raise InvalidAnswer(f"the check refused it: it returned {shortened(repr(accepted))}")
        return value

    return check


def _mismatch(problems: Sequence[tuple[Sequence[str | int], str]]) -> InvalidAnswer:
    told = [f"{'.'.join(map(str, path)) or 'the answer'}: {shortened(message)}" for path, message in problems[:_SHOWN]]
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return InvalidAnswer(f"the JSON does not fit the schema: {'; '.join(told)}{more}")


def shortened(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


# Reading JSON text.

OPENING: Final = ("{", "[")
CLOSING: Final = ("}", "]")
# A string that does not end is one token with all that follows, so that no text is read twice.
TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)


def read_json(text: str) -> tuple[Any, tuple[str, ...]]:
    """The value of a JSON text, with a warning where its strings have unescaped line breaks.

    InvalidAnswer for what is no JSON, or no JSON to work with: a key twice in one object, NaN, a number that is too
    large, half a character, nesting deeper than 200 levels.
    """
    _check_nesting(text)
    try:
        return _parsed(text, strict=True), ()
    except json.JSONDecodeError as error:
        failure = InvalidAnswer(f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    try:
        # The most frequent mistake, and one with only one meaning: a line break within a string.
        return _parsed(text, strict=False), ("the JSON had line breaks or other control characters in its strings",)
    except json.JSONDecodeError:
        raise failure from None


def _parsed(text: str, *, strict: bool) -> Any:
    hooks: dict[str, Any] = {
        "object_pairs_hook": _no_duplicates,
        "parse_float": _finite,
        "parse_constant": _no_constant,
    }
    try:
        return json_value(json.loads(text, strict=strict, **hooks))
    except (InvalidAnswer, json.JSONDecodeError):
        raise
    except ValueError as error:
        raise InvalidAnswer(f"not usable JSON: {error}") from None


def _check_nesting(text: str) -> None:
    depth = 0
    for token in TOKEN.finditer(text):
        depth += (token[0] in OPENING) - (token[0] in CLOSING)
        if depth > MAX_DEPTH:
            raise InvalidAnswer(f"the JSON is nested deeper than {MAX_DEPTH} levels")


def _no_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise InvalidAnswer(f'the key "{shortened(key)}" is in one object twice')
        made[key] = value
    return made


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise InvalidAnswer(f"the number {shortened(digits)} is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    raise InvalidAnswer(f"{name} is no JSON value; use null")
