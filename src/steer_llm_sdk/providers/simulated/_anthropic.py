"""Anthropic's messages on the wire."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from steer_llm_sdk.providers.simulated._http import Headers
from steer_llm_sdk.providers.simulated._meter import Reading
from steer_llm_sdk.providers.simulated._wire import (
    LIMIT_REQUESTS,
    LIMIT_TOKENS,
    ApiError,
    Ask,
    Reply,
    count_input,
    dump,
    first_question,
    integer_in,
    messages_of,
    pieces,
    string_in,
    text_of,
)

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STOP = {"stop": "end_turn", "length": "max_tokens"}
_ENDINGS = (b"event: message_delta\n", b"event: message_stop\n")


class AnthropicWire:
    name = "anthropic"

    def ask(self, body: Mapping[str, Any]) -> Ask:
        limit = integer_in(body, "max_tokens", least=1)
        if limit is None:
            raise ApiError(400, "max_tokens: an integer is required", param="max_tokens")
        messages = messages_of(body)
        system = text_of(body.get("system"), "system")
        texts = [text for _, text in messages]
        return Ask(
            model=string_in(body, "model"),
            question=first_question(messages),
            input_tokens=count_input([system, *texts] if system else texts),
            stream=body.get("stream") is True,
            max_tokens=limit,
        )

    def whole(self, reply: Reply) -> bytes:
        content = [{"type": "text", "text": reply.text}]
        return dump(_message(reply, content, _STOP[reply.finish], reply.output_tokens))

    def events(self, reply: Reply) -> Iterator[bytes]:
        yield _event("message_start", message=_message(reply, [], None, 1))
        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        yield _event("ping")
        for piece in pieces(reply.text):
            yield _event("content_block_delta", index=0, delta={"type": "text_delta", "text": piece})
        yield _event("content_block_stop", index=0)
        yield from self._closing(reply)

    def _closing(self, reply: Reply) -> Iterator[bytes]:
        delta = {"stop_reason": _STOP[reply.finish], "stop_sequence": None}
        yield _event("message_delta", delta=delta, usage=_usage(reply, reply.output_tokens))
        yield _event("message_stop")

    def empty(self, reply: Reply, *, stream: bool) -> bytes:
        if stream:
            start = _event("message_start", message=_message(reply, [], None, 1))
            return start + b"".join(self._closing(reply))
        return dump(_message(reply, [], _STOP[reply.finish], reply.output_tokens))

    def ends(self, event: bytes) -> bool:
        return event.lstrip().startswith(_ENDINGS)

    def error(self, error: ApiError, request_id: str) -> bytes:
        kind = _TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        return dump({"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id})

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        return b"event: error\ndata: " + self.error(error, request_id) + b"\n\n"

    def headers(self, request_id: str, now: float) -> Headers:
        reset = _time(int(now) + 1)
        limits = (("requests", LIMIT_REQUESTS, LIMIT_REQUESTS - 1), ("tokens", LIMIT_TOKENS, LIMIT_TOKENS))
        prefix = "anthropic-ratelimit"
        rates = [
            header
            for name, limit, left in limits
            for header in (
                (f"{prefix}-{name}-limit", str(limit)),
                (f"{prefix}-{name}-remaining", str(left)),
                (f"{prefix}-{name}-reset", reset),
            )
        ]
        return (("request-id", request_id), *rates)

    def quota(self, reading: Reading, now: float) -> Headers:
        prefix = "anthropic-ratelimit-requests"
        return (
            (f"{prefix}-limit", str(reading.limit)),
            (f"{prefix}-remaining", str(reading.remaining)),
            (f"{prefix}-reset", _time(math.ceil(now + reading.reset))),
        )

    def models(self, models: Mapping[str, Mapping[str, Any]]) -> bytes:
        data = [_model(name, more) for name, more in models.items()]
        return dump({"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]})

    def model(self, name: str, more: Mapping[str, Any]) -> bytes:
        return dump(_model(name, more))


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _message(reply: Reply, content: list[dict[str, Any]], stop: str | None, output_tokens: int) -> dict[str, Any]:
    return {
        "id": f"msg_{reply.id}",
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": _usage(reply, output_tokens),
    }


def _usage(reply: Reply, output_tokens: int) -> dict[str, int]:
    return {
        "input_tokens": reply.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
    }


def _event(kind: str, **data: Any) -> bytes:
    return b"event: " + kind.encode("ascii") + b"\ndata: " + dump({"type": kind, **data}) + b"\n\n"


def _model(name: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z", **more}
