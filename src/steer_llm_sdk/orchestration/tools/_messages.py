"""From a request to the messages a model gets, with errors that name the field."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, cast

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.models.evidence_bundle import json_value
from steer_llm_sdk.providers.base import Image, Message

Role = Literal["system", "user", "assistant"]

TEXT_KEYS: Final = ("prompt", "query", "text")
"""The keys of a request that are the user's words, in the order in which they are put together."""
PLANNING_KEYS: Final = frozenset({"type", "options"})
"""Keys of a request that are for the planner; they are not sent to a model."""
ROLES: Final = ("system", "user", "assistant")


def messages_of(request: Any, instructions: str | None = None) -> tuple[Message, ...]:
    """The messages of a request; `instructions` first, as the system's.

    A request with `messages` is sent as these. Otherwise the first of `prompt`, `query`, `text` is the user's message,
    and every other key is added below it under its name: strings as they are, other values as JSON. `type` and
    `options` are for the planner and are left out. A str is sent as a user's message.
    """
    request = {"query": request} if isinstance(request, str) else request
    if not isinstance(request, Mapping):
        raise InvalidRequest("request", request, "give a text, or a mapping with `query` or `messages`")
    head = (Message("system", instructions),) if instructions else ()
    if request.get("messages") is not None:
        return (*head, *_listed(request))
    return (*head, Message("user", _rendered(request)))


def _rendered(request: Mapping[str, Any]) -> str:
    keys = [key for key in TEXT_KEYS if request.get(key) is not None]
    for key in keys:
        if not isinstance(request[key], str):
            raise InvalidRequest(key, request[key], "give a text; other values go under keys of their own")
        if not request[key].strip():
            raise InvalidRequest(key, request[key], "there is nothing in it to answer; give some text")
        _as_text(key, request[key])
    others = [key for key in request if key not in (*TEXT_KEYS, *PLANNING_KEYS, "messages")]
    parts = [request[keys[0]]] if keys else []
    parts += [f"{key}:\n{_as_text(key, request[key])}" for key in (*keys[1:], *others)]
    if not parts:
        raise InvalidRequest("request", dict(request), "give the words for the model under `query`, or `messages`")
    return "\n\n".join(parts)


def _as_text(key: str, value: Any) -> str:
    try:
        plain = json_value(value)
        return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, indent=2)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(str(key), value, f"give a JSON value ({error})") from None


def _listed(request: Mapping[str, Any]) -> tuple[Message, ...]:
    given = request["messages"]
    doubled = [key for key in TEXT_KEYS if request.get(key) is not None]
    if doubled:
        raise InvalidRequest(doubled[0], request[doubled[0]], "put it into `messages`, or leave `messages` out")
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or not given:
        raise InvalidRequest("messages", given, 'give a list of {"role": ..., "content": ...}')
    messages = tuple(_message(f"messages[{index}]", message) for index, message in enumerate(given))
    if not any(message.role == "user" for message in messages):
        raise InvalidRequest("messages", [message.role for message in messages], "one of them must be the user's")
    return messages


def _message(field: str, given: Any) -> Message:
    if isinstance(given, Message):
        return given
    if not isinstance(given, Mapping):
        raise InvalidRequest(field, given, 'give {"role": ..., "content": ...}')
    unknown = [key for key in given if key not in ("role", "content")]
    if unknown:
        raise InvalidRequest(f"{field}.{unknown[0]}", given[unknown[0]], "a message has `role` and `content`")
    role = given.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"{field}.role", role, f"the roles are {', '.join(ROLES)}")
    return Message(cast(Role, role), _content(f"{field}.content", given.get("content")))


def _content(field: str, given: Any) -> str | tuple[str | Image, ...]:
    if isinstance(given, str):
        if not given.strip():
            raise InvalidRequest(field, given, "there is nothing in it; give some text")
        return _as_text(field, given)
    if not isinstance(given, Sequence) or isinstance(given, (bytes, bytearray)) or not given:
        raise InvalidRequest(field, given, "give a text, or a list of text and image_url parts")
    return tuple(_part(f"{field}[{index}]", part) for index, part in enumerate(given))


def _part(field: str, given: Any) -> str | Image:
    if isinstance(given, str):
        return _as_text(field, given)
    if isinstance(given, Image):
        return given
    kind = given.get("type") if isinstance(given, Mapping) else None
    if kind == "text" and isinstance(given.get("text"), str):
        return _as_text(f"{field}.text", given["text"])
    if kind == "image_url":
        url = given.get("image_url")
        return _image(f"{field}.image_url", url.get("url") if isinstance(url, Mapping) else url)
    raise InvalidRequest(field, given, 'give {"type": "text", "text": ...} or {"type": "image_url", "image_url": ...}')


def _image(field: str, url: Any) -> Image:
    if isinstance(url, str) and url.startswith(("https://", "http://")):
        return Image(url=url)
    head, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    media_type = head.removeprefix("data:").removesuffix(";base64")
    if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
        raise InvalidRequest(field, url, "give an http(s) URL, or data:image/png;base64,...")
    try:
        return Image(data=base64.b64decode(data, validate=True), media_type=media_type)
    except ValueError as error:
        raise InvalidRequest(field, head, f"what follows is not base64 ({error})") from None
