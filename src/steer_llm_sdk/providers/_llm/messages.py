"""Turns a request into the client library's types, and refuses what the model cannot take before it is sent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_ai.messages import (
    BinaryContent,
    ImageUrl,
    ModelMessage,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.messages import ModelRequest as Turn
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.settings import ModelSettings

from steer_llm_sdk.errors import RequestRejected
from steer_llm_sdk.providers._endpoint import Endpoint
from steer_llm_sdk.providers._worst_case import max_tokens_of
from steer_llm_sdk.providers.base import Image, Message, ModelRequest

_IMAGE_TYPE = re.compile(r"image/[\w.+-]+", re.ASCII)
_LONGEST_KEY = 255
_PROMPTED = "Answer with one JSON value that fits this JSON Schema, and with nothing else:\n"


def settings_of(request: ModelRequest, endpoint: Endpoint, model: Model[Any]) -> ModelSettings:
    """The settings of the request, without those that the library would drop with a warning."""
    settings = ModelSettings(max_tokens=max_tokens_of(request, endpoint.model))
    if request.temperature is not None and _takes_temperature(model.profile):
        settings["temperature"] = request.temperature
    if request.seed is not None and "seed" not in model.unsupported_settings:
        settings["seed"] = request.seed
    if request.idempotency_key is not None and endpoint.wire == "openai":
        settings["extra_headers"] = {"Idempotency-Key": _as_header(request.idempotency_key)}
    return settings


def _as_header(key: str) -> str:
    """The key where a header can carry it; else its SHA-256, which is the same for the same key."""
    if len(key) <= _LONGEST_KEY and key.isascii() and key.isprintable() and key == key.strip():
        return key
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _takes_temperature(profile: Mapping[str, Any]) -> bool:
    if profile.get("anthropic_disallows_sampling_settings", False):
        return False
    if not profile.get("openai_supports_reasoning", False):
        return True
    efforts = profile.get("openai_reasoning_efforts")
    can_be_off = profile.get("openai_supports_reasoning_effort_none", False) if efforts is None else "none" in efforts
    return bool(can_be_off and not profile.get("thinking_enabled_by_default", False))


def ignored_of(request: ModelRequest, sent: bytes) -> tuple[str, ...]:
    """The settings that were asked for and did not go out."""
    asked = [name for name in ("seed", "temperature") if getattr(request, name) is not None]
    if not asked:
        return ()
    body = json.loads(sent)
    return tuple(name for name in asked if name not in body)


def output_of(request: ModelRequest, endpoint: Endpoint, model: Model[Any]) -> ModelRequestParameters:
    if not _is_native(request.schema, endpoint, model):
        return ModelRequestParameters()
    schema = OutputObjectDefinition(json_schema=dict(request.schema or {}), name="answer")
    return ModelRequestParameters(output_mode="native", output_object=schema)


def _is_native(schema: Mapping[str, Any] | None, endpoint: Endpoint, model: Model[Any]) -> bool:
    """Whether the API enforces the schema: only the providers' own APIs do so in the same way, and only for objects."""
    own = endpoint.official or endpoint.recorded
    return (
        schema is not None
        and schema.get("type") == "object"
        and own
        and model.profile.get("supports_json_schema_output", False)
    )


def messages_of(request: ModelRequest, endpoint: Endpoint, model: Model[Any]) -> list[ModelMessage]:
    """Raises RequestRejected for what the model cannot take, naming the field."""
    check(request, endpoint, model)
    messages = request.messages
    if request.schema is not None and not _is_native(request.schema, endpoint, model):
        messages = _with_schema(messages, request.schema)
    return [_turn(message) for message in messages]


def _with_schema(messages: Sequence[Message], schema: Mapping[str, Any]) -> tuple[Message, ...]:
    """The messages with the schema at the end of the first system message."""
    asked = _PROMPTED + json.dumps(schema, ensure_ascii=False)
    first = messages[0]
    if first.role != "system":
        return (Message("system", asked), *messages)
    return (Message("system", f"{_text(first)}\n\n{asked}"), *messages[1:])


def _turn(message: Message) -> ModelMessage:
    if message.role == "assistant":
        return ModelResponse(parts=[TextPart(_text(message))])
    if message.role == "system":
        return Turn(parts=[SystemPromptPart(_text(message))])
    if isinstance(message.content, str):
        return Turn(parts=[UserPromptPart(message.content)])
    return Turn(parts=[UserPromptPart([_content(part) for part in message.content])])


def _text(message: Message) -> str:
    """The text of a message that has been checked to have no images."""
    return message.content if isinstance(message.content, str) else "\n".join(map(str, message.content))


def _content(part: str | Image) -> UserContent:
    if isinstance(part, str):
        return part
    if part.data is not None:
        return BinaryContent(part.data, media_type=part.media_type)
    url = part.url or ""
    # Anthropic takes no data: URL; as bytes both take it.
    return BinaryContent.from_data_uri(url) if url.startswith("data:") else ImageUrl(url)


def check(request: ModelRequest, endpoint: Endpoint, model: Model[Any]) -> None:
    for field, problem in _problems(request, endpoint, model):
        raise RequestRejected(f"{field}: {endpoint.name} {problem}", endpoint.target, code="not_supported")


def _problems(request: ModelRequest, endpoint: Endpoint, model: Model[Any]) -> Iterator[tuple[str, str]]:
    if not request.messages:
        yield "messages", "needs at least one message"
    elif all(message.role == "system" for message in request.messages):
        yield "messages", "needs a message of the user; add one with role 'user'"
    if request.max_tokens is not None and request.max_tokens < 1:
        yield "max_tokens", f"cannot answer in {request.max_tokens} tokens; give 1 or more"
    late_system = endpoint.wire == "openai" or model.profile.get("supports_inline_system_prompts", False)
    begun = False
    for number, message in enumerate(request.messages):
        begun = begun or message.role != "system"
        if message.role == "system" and begun and not late_system:
            yield f"messages[{number}].role", "takes system messages only before all others; move it to the front"
        if not isinstance(message.content, str):
            yield from _image_problems(f"messages[{number}]", message, endpoint, model)


def _image_problems(where: str, message: Message, endpoint: Endpoint, model: Model[Any]) -> Iterator[tuple[str, str]]:
    for number, part in enumerate(message.content):
        if not isinstance(part, Image):
            continue
        field = f"{where}.content[{number}]"
        if not _takes_images(endpoint, model):
            yield field, "takes no images; leave the image out, or name a model that reads images"
        if message.role != "user":
            yield field, f"takes images from the user, not in a message of the {message.role}; move the image to one"
        if (part.url is None) == (part.data is None):
            yield field, "needs an image as a url or as data, one of the two"
        if part.data is not None and not _IMAGE_TYPE.fullmatch(part.media_type):
            yield f"{field}.media_type", f"takes no {part.media_type!r} as an image; write image/png, image/jpeg, ..."


def _takes_images(endpoint: Endpoint, model: Model[Any]) -> bool:
    if endpoint.takes_images is not None:
        return endpoint.takes_images
    return bool(model.profile.get("supports_image_input", True))
