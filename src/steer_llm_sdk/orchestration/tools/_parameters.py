"""A function's parameters as the JSON Schema of a request, and the way from a request back to a call."""

from __future__ import annotations

import inspect
import json
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model
from pydantic.json_schema import PydanticJsonSchemaWarning

from steer_llm_sdk.errors import MISSING, InvalidRequest
from steer_llm_sdk.orchestration.tools._messages import PLANNING_KEYS

_TOLD = 3
"""Errors that are reported besides the first one."""


class _Secret:
    """Is shown in an error instead of a value."""

    def __repr__(self) -> str:
        return "(a secret)"


_SECRET = _Secret()


@dataclass(frozen=True, slots=True)
class Arguments:
    """The checked values by parameter."""

    parameters: Parameters
    values: Mapping[str, Any]

    def call(self, options: dict[str, Any], event_manager: Any) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments for the function."""
        given = {"options": options, "event_manager": event_manager}
        values = {**self.values, **{name: given[name] for name in self.parameters.injected}}
        args = []
        for name in self.parameters.positional:
            if name not in values:
                break
            args.append(values.pop(name))
        return args, values


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """`fields` maps each parameter to its field in `model`; `injected` are those that a request may not set."""

    where: str
    signature: inspect.Signature
    model: type[BaseModel]
    schema: dict[str, Any]
    fields: Mapping[str, str]
    injected: frozenset[str]
    positional: Sequence[str] = ()
    text: str | None = None
    first_takes_mapping: bool = False
    secret: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Parameters:
        """TypeError where the function cannot be called from a request."""
        where = getattr(function, "__qualname__", repr(function))
        signature = _signature(function, where)
        hints = _hints(function, signature, where)
        injected = frozenset(_injected(signature, hints))
        asked = [p for p in signature.parameters.values() if p.name not in injected]
        named = [p for p in asked if p.kind is not p.VAR_KEYWORD]
        fields = {p.name: f"parameter_{number}" for number, p in enumerate(named)}
        model = _model(where, asked, hints, fields)
        schema = _schema(model, where)
        properties = schema.get("properties", {})
        return cls(
            where=where,
            signature=signature.replace(parameters=asked),
            model=model,
            schema=schema,
            fields=fields,
            injected=injected,
            positional=[p.name for p in named if p.kind is p.POSITIONAL_ONLY],
            text=_text_parameter(properties),
            first_takes_mapping=bool(named) and _takes(properties[named[0].name], "object"),
            secret=frozenset(name for name, schema in properties.items() if schema.get("writeOnly")),
        )

    def read(self, request: Any) -> Arguments:
        """The arguments in a request. InvalidRequest names the parameter, what was given and what is allowed."""
        values = self._by_parameter(request)
        checked = self._checked(values)
        extra = checked.model_extra or {}
        known = {name: getattr(checked, self.fields[name]) for name in values if name in self.fields}
        return Arguments(self, {**known, **{name: value for name, value in extra.items() if name in values}})

    def request_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The request that stands for a call. TypeError where the function could not be called so."""
        if len(args) == 1 and not kwargs and isinstance(args[0], Mapping) and not self.first_takes_mapping:
            return args[0]
        bound = self.signature.bind_partial(*args, **kwargs)
        values = dict(bound.arguments)
        for parameter in self.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                values.update(values.pop(parameter.name, {}))
        return values

    def _by_parameter(self, request: Any) -> Mapping[str, Any]:
        if isinstance(request, str):
            request = {"query": request}
        if not isinstance(request, Mapping):
            raise InvalidRequest("request", request, f"give a mapping with {self._listed() or 'nothing in it'}")
        if self.text is not None and request.keys() - PLANNING_KEYS == {"query"} and "query" not in self.fields:
            request = {**{key: value for key, value in request.items() if key != "query"}, self.text: request["query"]}
        return {key: value for key, value in request.items() if key in self.fields or key not in PLANNING_KEYS}

    def _checked(self, values: Mapping[str, Any]) -> BaseModel:
        """As the schema says: "5" is no integer. What JSON has no type for (a tuple, a date) is taken in JSON's form
        and in Python's."""
        try:
            return self.model.model_validate(values, strict=True)
        except ValidationError as error:
            refused = error
        try:
            return self.model.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            # A request that is not JSON is judged as Python.
            refused = refused if error.errors()[0]["type"] == "json_invalid" else error
        except (TypeError, ValueError, RecursionError):
            pass
        raise self._refusal(refused) from None

    def _refusal(self, error: ValidationError) -> InvalidRequest:
        problems = [self._problem(details) for details in error.errors(include_url=False)]
        (name, given, remedy), *more = problems
        further = "; ".join(f"{other}: {what}" for other, _, what in more[:_TOLD])
        return InvalidRequest(name, given, remedy + (f"; also {further}" if further else ""))

    def _problem(self, details: Any) -> tuple[str, Any, str]:
        path = ".".join(map(str, details["loc"])) or "request"
        name = path.partition(".")[0]
        if details["type"] == "missing":
            return path, MISSING, f"give it{self._wanted(name)}"
        if details["type"] == "extra_forbidden" and len(details["loc"]) == 1:
            there = self._listed()
            return path, details["input"], f"leave it out: the parameters are {there}" if there else "leave it out"
        message = details["msg"].removeprefix("Input ").removeprefix("Value error, ")
        return path, _SECRET if name in self.secret else details["input"], f"it {message}{self._wanted(name)}"

    def _wanted(self, name: str) -> str:
        schema = {key: value for key, value in self.schema.get("properties", {}).get(name, {}).items() if key in _SHOWN}
        return f" (schema: {json.dumps(schema, default=str)[:_SCHEMA_LENGTH]})" if schema else ""

    def _listed(self) -> str:
        return ", ".join(self.fields)


_SHOWN = ("type", "anyOf", "items", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern", "format")
_SCHEMA_LENGTH = 160


def _signature(function: Callable[..., Any], where: str) -> inspect.Signature:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where}: its parameters cannot be read ({error}); wrap it in a function of yours") from error
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise TypeError(f"{where}: *{parameter.name} has no name in a request; take a list")
        if parameter.name in ("self", "cls") and parameter.annotation is parameter.empty:
            raise TypeError(f"{where}: a method has no {parameter.name} in a request; use tool(instance.method)")
    return signature


def _hints(function: Callable[..., Any], signature: inspect.Signature, where: str) -> dict[str, Any]:
    """The type hints of the parameters, without that of `event_manager`: its class is often imported for type checkers
    only."""
    raw = {p.name: p.annotation for p in signature.parameters.values() if p.annotation is not p.empty}
    raw = {name: hint for name, hint in raw.items() if name != "event_manager"}
    names = getattr(inspect.unwrap(getattr(function, "func", function)), "__globals__", {})
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__=raw), globalns=names, include_extras=True)
    except (NameError, SyntaxError, TypeError, AttributeError) as error:
        raise TypeError(
            f"{where}: a type hint cannot be resolved ({error}); define the type at the top of the module"
        ) from error


def _injected(signature: inspect.Signature, hints: Mapping[str, Any]) -> Iterator[str]:
    if "event_manager" in signature.parameters:
        yield "event_manager"
    if "options" in signature.parameters and _is_mapping(hints.get("options")):
        yield "options"


def _is_mapping(hint: Any) -> bool:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_is_mapping(part) for part in typing.get_args(hint))
    origin = typing.get_origin(hint) or hint
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _model(
    where: str, asked: Sequence[inspect.Parameter], hints: Mapping[str, Any], fields: Mapping[str, str]
) -> type[BaseModel]:
    extra = [p for p in asked if p.kind is p.VAR_KEYWORD]
    made: dict[str, Any] = {
        fields[p.name]: (
            hints.get(p.name, Any),
            Field(alias=p.name) if p.default is p.empty else Field(default=p.default, alias=p.name),
        )
        for p in asked
        if p.kind is not p.VAR_KEYWORD
    }
    base = _base(hints.get(extra[0].name, Any)) if extra else _Closed
    try:
        return create_model(where.rpartition(".")[2], __base__=base, **made)
    except PydanticUserError as error:
        raise TypeError(f"{where}: {_first_sentence(error)}") from error


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _base(extra: Any) -> type[BaseModel]:
    """A model that takes further keys, with values of the type that the function's ** declares."""
    annotations = {"__pydantic_extra__": dict[str, extra]}
    body = {"__annotations__": annotations, "model_config": ConfigDict(extra="allow"), "__module__": __name__}
    return type("_Open", (BaseModel,), body)


def _schema(model: type[BaseModel], where: str) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            # A default that is no JSON value is simply left out of the schema.
            warnings.simplefilter("ignore", PydanticJsonSchemaWarning)
            return model.model_json_schema()
    except PydanticUserError as error:
        raise TypeError(f"{where}: a parameter has no JSON Schema: {_first_sentence(error)}") from error


def _first_sentence(error: Exception) -> str:
    return str(error).splitlines()[0].split(". ")[0]


def _text_parameter(properties: Mapping[str, Any]) -> str | None:
    """Where a text request goes: the first parameter that is a text, or the only one if it may be anything."""
    texts = (name for name, schema in properties.items() if _takes(schema, "string", exactly=True))
    only = next(iter(properties), None) if len(properties) == 1 else None
    return next(texts, only if only is not None and _takes(properties[only], "string") else None)


def _takes(schema: Mapping[str, Any], kind: str, *, exactly: bool = False) -> bool:
    """Whether the schema allows values of that kind; one that names no type allows them all, unless `exactly`."""
    if "anyOf" in schema:
        return any(_takes(part, kind, exactly=exactly) for part in schema["anyOf"])
    if "$ref" in schema:
        return kind == "object"
    if (
        "enum" in schema
        or "const" in schema
        or schema.get("format") in ("date", "date-time", "uuid", "time", "duration")
    ):
        return False
    return schema["type"] == kind if "type" in schema else not exactly
