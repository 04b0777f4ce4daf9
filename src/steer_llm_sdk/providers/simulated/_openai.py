"""OpenAI's chat completions on the wire."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
)

_DONE = b"data: [DONE]\n\n"
_TYPES = {429: ("requests", "rate_limit_exceeded"), 401: ("invalid_request_error", "invalid_api_key")}


class OpenAIWire:
    name = "openai"

    def ask(self, body: Mapping[str, Any]) -> Ask:
        if body.get("n") not in (None, 1):
            raise ApiError(400, "n: this server gives one choice per request; send n requests", param="n")
        messages = messages_of(body)
        options = body.get("stream_options")
        limit = integer_in(body, "max_completion_tokens", least=1)
        return Ask(
            model=string_in(body, "model"),
            question=first_question(messages),
            input_tokens=count_input([text for _, text in messages]),
            stream=body.get("stream") is True,
            include_usage=isinstance(options, dict) and options.get("include_usage") is True,
            max_tokens=limit if limit is not None else integer_in(body, "max_tokens", least=1),
            seed=integer_in(body, "seed"),
        )

    def whole(self, reply: Reply) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None, "annotations": []}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
        return dump({**_head(reply, "chat.completion"), "choices": [choice], "usage": _usage(reply)})

    def events(self, reply: Reply) -> Iterator[bytes]:
        yield _chunk(reply, {"role": "assistant", "content": "", "refusal": None})
        for piece in pieces(reply.text):
            yield _chunk(reply, {"content": piece})
        yield _chunk(reply, {}, reply.finish)
        yield from self._closing(reply)

    def _closing(self, reply: Reply) -> Iterator[bytes]:
        if reply.include_usage:
            yield _event({**_head(reply, "chat.completion.chunk"), "choices": [], "usage": _usage(reply)})
        yield _DONE

    def empty(self, reply: Reply, *, stream: bool) -> bytes:
        if stream:
            return b"".join(self._closing(reply))
        return dump({**_head(reply, "chat.completion"), "choices": [], "usage": _usage(reply)})

    def ends(self, event: bytes) -> bool:
        data = event.partition(b"data:")[2].strip()
        if not data.startswith(b"{"):
            return data == b"[DONE]"
        choices = json.loads(data).get("choices")
        return not choices or choices[0].get("finish_reason") is not None

    def error(self, error: ApiError, request_id: str) -> bytes:
        default = "server_error" if error.status >= 500 else "invalid_request_error"
        kind, code = _TYPES.get(error.status, (default, None))
        if error.code == "insufficient_quota":
            kind = error.code
        detail = {"message": error.message, "type": kind, "param": error.param, "code": error.code or code}
        return dump({"error": detail})

    def error_event(self, error: ApiError, request_id: str) -> bytes:
        return b"data: " + self.error(error, request_id) + b"\n\n"

    def headers(self, request_id: str, now: float) -> Headers:
        return (
            ("x-request-id", request_id),
            ("openai-version", "2020-10-01"),
            ("openai-processing-ms", "1"),
            ("x-ratelimit-limit-requests", str(LIMIT_REQUESTS)),
            ("x-ratelimit-limit-tokens", str(LIMIT_TOKENS)),
            ("x-ratelimit-remaining-requests", str(LIMIT_REQUESTS - 1)),
            ("x-ratelimit-remaining-tokens", str(LIMIT_TOKENS)),
            ("x-ratelimit-reset-requests", "6ms"),
            ("x-ratelimit-reset-tokens", "0s"),
        )

    def quota(self, reading: Reading, now: float) -> Headers:
        minutes, seconds = divmod(reading.reset, 60)
        reset = f"{int(minutes)}m{seconds:.3f}s" if minutes else f"{seconds:.3f}s"
        return (
            ("x-ratelimit-limit-requests", str(reading.limit)),
            ("x-ratelimit-remaining-requests", str(reading.remaining)),
            ("x-ratelimit-reset-requests", reset),
        )

    def models(self, models: Mapping[str, Mapping[str, Any]]) -> bytes:
        return dump({"object": "list", "data": [_model(name, more) for name, more in models.items()]})

    def model(self, name: str, more: Mapping[str, Any]) -> bytes:
        return dump(_model(name, more))


def _head(reply: Reply, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{reply.id}",
        "object": kind,
        "created": reply.created,
        "model": reply.model,
        "service_tier": "default",
        "system_fingerprint": None,
    }


def _chunk(reply: Reply, delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    usage: dict[str, Any] = {"usage": None} if reply.include_usage else {}
    return _event({**_head(reply, "chat.completion.chunk"), "choices": [choice], **usage})


def _event(value: object) -> bytes:
    return b"data: " + dump(value) + b"\n\n"


def _usage(reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": reply.input_tokens,
        "completion_tokens": reply.output_tokens,
        "total_tokens": reply.input_tokens + reply.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _model(name: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "recording", **more}
