"""What both wire formats share: a question asked of a model, its reply, an error, and how tokens are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from steer_llm_sdk.providers.simulated._http import Headers
from steer_llm_sdk.providers.simulated._meter import Reading

PER_MESSAGE = 4
"""Tokens added for each message, for its role and delimiters."""

PIECE = 16
"""Characters of text in one event of a stream."""

LIMIT_REQUESTS, LIMIT_TOKENS = 10_000, 2_000_000
"""What the rate limit headers claim. Nothing enforces them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request. `max_tokens` None: no limit. `question` is the text of the first user message."""

    model: str
    question: str
    input_tokens: int
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """`id` is the part after the prefix of the format; `created` is in seconds since 1970."""

    id: str
    model: str
    text: str
    finish: Literal["stop", "length"]
    input_tokens: int
    output_tokens: int
    created: int
    include_usage: bool = False


class ApiError(Exception):
    """An error as a provider reports it: by status, and by `code` where one status has several meanings."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param


class Wire(Protocol):
    """One wire format."""

    @property
    def name(self) -> str: ...

    def ask(self, body: Mapping[str, Any]) -> Ask:
        """Read a request. Raises ApiError with the field's name."""
        ...

    def whole(self, reply: Reply) -> bytes:
        """The answer in one piece."""
        ...

    def events(self, reply: Reply) -> Iterator[bytes]:
        """The answer as server-sent events, end marker included."""
        ...

    def empty(self, reply: Reply, *, stream: bool) -> bytes:
        """A complete response without an answer in it: no choices, no content."""
        ...

    def ends(self, event: bytes) -> bool:
        """Whether the event belongs to the ending: the finish reason, or what follows it."""
        ...

    def error(self, error: ApiError, request_id: str) -> bytes: ...

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        """The error as it stands inside a stream."""
        ...

    def headers(self, request_id: str, now: float) -> Headers:
        """Request id and rate limits. `now` is in seconds since 1970."""
        ...

    def quota(self, reading: Reading, now: float) -> Headers:
        """The headers of a limit on requests that is kept."""
        ...

    def models(self, models: Mapping[str, Mapping[str, Any]]) -> bytes:
        """The list of models, each with what else is known of it."""
        ...

    def model(self, name: str, more: Mapping[str, Any]) -> bytes: ...


def estimate_tokens(text: str) -> int:
    """One token per four bytes of UTF-8, rounded up: the rule of thumb for English, the same for every model.

    The recording has no token counts, and tokenisers differ; this is stable and close enough for budgets.
    """
    return -(-len(text.encode("utf-8")) // 4)


def cut(text: str, max_tokens: int | None) -> str:
    """The longest beginning that is at most `max_tokens` by that estimate."""
    if max_tokens is None or estimate_tokens(text) <= max_tokens:
        return text
    return text.encode("utf-8")[: max_tokens * 4].decode("utf-8", errors="ignore")


def pieces(text: str) -> Iterator[str]:
    return (text[start : start + PIECE] for start in range(0, len(text), PIECE))


def text_of(content: object, where: str) -> str:
    """The text of a message's content: a string, nothing, or a list of parts of which the text parts count."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ApiError(400, f"{where}: expected a string or a list of content parts", param=where)
    texts = [part.get("text", "") for part in content if part.get("type") == "text"]
    return "\n".join(text for text in texts if isinstance(text, str))


def messages_of(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Role and text of each message. Raises ApiError naming the message that is not valid."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages: a list with at least one message is required", param="messages")
    read = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, f"messages.{number}: expected an object with role and content", param="messages")
        read.append((message["role"], text_of(message.get("content"), f"messages.{number}.content")))
    return read


def first_question(messages: list[tuple[str, str]]) -> str:
    return next((text for role, text in messages if role == "user"), "")


def count_input(texts: list[str]) -> int:
    return sum(PER_MESSAGE + estimate_tokens(text) for text in texts)


def string_in(body: Mapping[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise ApiError(400, f"{field}: a non-empty string is required", param=field)
    return value


def integer_in(body: Mapping[str, Any], field: str, *, least: int | None = None) -> int | None:
    value = body.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise ApiError(400, f"{field}: expected an integer{bound}", param=field)
    return value


def dump(value: object) -> bytes:
    # Half a surrogate pair is no UTF-8; as the escape with a backslash, which JSON has too, it can be sent.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="backslashreplace")
