"""Structured output: from a model's text to a JSON value of the form that was asked for, or the reason why not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.evidence.validation import (
    CLOSING,
    OPENING,
    TOKEN,
    InvalidAnswer,
    InvalidSchema,
    adapter_of,
    checked_by_schema,
    checked_by_type,
    read_json,
)

__all__ = ["InvalidAnswer", "OutputSchema", "Parsed", "clean_text", "read_answer"]

_WRAP: Final = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSchema:
    """The form an answer must have. `schema` is what the model is told.

    Providers want an object at the root, so any other form travels as `{"answer": ...}`: `wrapped` says so. `check`
    turns a parsed value into the JSON value to hand on, or raises InvalidAnswer.
    """

    schema: Mapping[str, Any]
    check: Callable[[Any], Any]
    wrapped: bool
    is_text: bool

    @classmethod
    def of(cls, output_type: Any) -> OutputSchema | None:
        """From a pydantic model, any type pydantic understands, or a JSON Schema as a mapping; None, like str, is text.

        InvalidRequest where it is none of these. A schema's `$ref` is followed within the schema only: nothing is
        fetched, and no file is read.
        """
        if output_type is None or output_type is str:
            return None
        try:
            if isinstance(output_type, Mapping):
                return cls._made(output_type, checked_by_schema(output_type))
            adapter = adapter_of(output_type)
            return cls._made(adapter.json_schema(), checked_by_type(adapter))
        except InvalidSchema as error:
            raise InvalidRequest("output_type", output_type, str(error)) from error

    @classmethod
    def _made(cls, schema: Mapping[str, Any], check: Callable[[Any], Any]) -> OutputSchema:
        wrapped = not _is_object(schema)
        told = _in_object(schema) if wrapped else schema
        return cls(schema=told, check=check, wrapped=wrapped, is_text=_root(schema).get("type") == "string")

    def accepts(self, value: Any) -> bool:
        """Whether a value, such as a consensus of several answers, has the form."""
        try:
            self.check(value)
        except InvalidAnswer:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Parsed:
    value: Any
    warnings: tuple[str, ...] = ()


def read_answer(text: str, output: OutputSchema) -> Parsed:
    """The value in `text`: strict JSON, else the first fenced block that is JSON, else the first balanced object.

    Line breaks and tabs may stand in its strings unescaped. A value that was not strict JSON comes with a warning. The
    inside of an object is never taken, nor a fenced block in it, whether the object is whole, broken or unfinished: an
    answer that was cut off is not usable. InvalidAnswer says what was wrong.
    """
    try:
        found, warnings = _find_json(text, output)
    except InvalidAnswer:
        if not output.is_text or not text.strip():
            raise
        found, warnings = text.strip(), ("the answer was plain text where JSON was asked for",)
    return Parsed(output.check(_unwrapped(found) if output.wrapped else found), warnings)


def clean_text(text: str) -> Parsed:
    """Text that every JSON writer can write: half a character (a lone surrogate) becomes U+FFFD, with a warning."""
    try:
        text.encode()
    except UnicodeEncodeError:
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return Parsed(whole, ("broken characters in the answer were replaced",))
    return Parsed(text)


# Finding JSON in what a model wrote.

_FENCE = re.compile(r"```[\w+-]*[ \t]*\r?\n(.*?)```", re.DOTALL)
_BRACKET = re.compile(r"[\[{]")


def _find_json(text: str, output: OutputSchema) -> tuple[Any, tuple[str, ...]]:
    text = text.strip().removeprefix("\ufeff")
    if not text:
        raise InvalidAnswer("the answer is empty; answer with JSON")
    try:
        return read_json(text)
    except InvalidAnswer as error:
        failure = error
    for candidate, warning in _inside(text, output):
        try:
            value, more = read_json(candidate)
        except InvalidAnswer as error:
            # If the text begins as JSON, its own error is reported, else that of the JSON inside it.
            failure = failure if text[0] in "{[" else error
        else:
            if output.wrapped or isinstance(value, dict):
                return value, (warning, *more)
    raise failure


def _inside(text: str, output: OutputSchema) -> Iterator[tuple[str, str]]:
    for block in _fenced(text):
        yield block, "the JSON was taken out of a fenced block"
    regions = _balanced(text)
    objects = [region for region in regions if region[0] == "{"]
    for region in objects[:1] or (regions[:1] if output.wrapped else []):
        yield region, "the JSON was taken out of the text around it"


def _fenced(text: str) -> Iterator[str]:
    """What is in each fence that does not begin within brackets."""
    at, fence = 0, _FENCE.search(text)
    while fence is not None:
        bracket = _BRACKET.search(text, at, fence.start())
        if bracket is None:
            yield fence[1]
            at = fence.end()
        else:
            at = _closed(text, bracket.start()) or len(text)
        if at > fence.start():
            fence = _FENCE.search(text, at)


def _balanced(text: str) -> list[str]:
    """Every stretch from a bracket that is in no other to the one that closes it."""
    regions = []
    bracket = _BRACKET.search(text)
    while bracket is not None and (end := _closed(text, bracket.start())) is not None:
        regions.append(text[bracket.start() : end])
        bracket = _BRACKET.search(text, end)
    return regions


def _closed(text: str, start: int) -> int | None:
    """The end of what the bracket at `start` opens; None where nothing closes it."""
    depth = 0
    for token in TOKEN.finditer(text, start):
        depth += (token[0] in OPENING) - (token[0] in CLOSING)
        if depth == 0:
            return token.end()
    return None


# Forms whose root is no object.

_DEFINITIONS: Final = ("$defs", "definitions")
"""Where a schema keeps what its `$ref` name; the second is draft-07's."""


def _root(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema itself, or what its root refers to among its own definitions."""
    ref = schema.get("$ref")
    for place in _DEFINITIONS:
        if isinstance(ref, str) and ref.startswith(f"#/{place}/"):
            definition = schema.get(place, {}).get(ref.removeprefix(f"#/{place}/"))
            # `true` is a definition too: of anything.
            return definition if isinstance(definition, Mapping) else schema
    return schema


def _is_object(schema: Mapping[str, Any]) -> bool:
    return _root(schema).get("type") == "object"


def _in_object(schema: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_moved_refs(schema)
    inner = {key: value for key, value in schema.items() if key not in (*_DEFINITIONS, "$schema", "$id")}
    outer = {key: schema[key] for key in ("$schema", *_DEFINITIONS) if key in schema}
    return {
        "type": "object",
        "properties": {_WRAP: inner},
        "required": [_WRAP],
        "additionalProperties": False,
        **outer,
    }


def _refuse_moved_refs(part: Any) -> None:
    """InvalidRequest for a `$ref` into what is not at the root any more when it travels in an object."""
    if isinstance(part, Mapping):
        ref = part.get("$ref")
        if isinstance(ref, str) and _is_moved(ref):
            reason = (
                'the schema is no object and is sent as {"answer": ...}, so its root is elsewhere; '
                'put what this $ref means under $defs and refer to "#/$defs/NAME"'
            )
            raise InvalidRequest("output_type", ref, reason)
    elif not isinstance(part, Sequence) or isinstance(part, str):
        return
    for inner in part.values() if isinstance(part, Mapping) else part:
        _refuse_moved_refs(inner)


def _is_moved(ref: str) -> bool:
    return ref == "#" or (ref.startswith("#/") and not ref.startswith(tuple(f"#/{name}/" for name in _DEFINITIONS)))


def _unwrapped(value: Any) -> Any:
    """A model may leave out the wrapping; then the value is the answer as it stands."""
    return value[_WRAP] if isinstance(value, dict) and value.keys() == {_WRAP} else value
