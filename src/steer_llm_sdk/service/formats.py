"""What differs between OpenAI's and Anthropic's way to ask for a completion; chat.py has what they share."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FROM_CLIENT = re.compile(r"(openai-(organization|project|beta)|anthropic-[a-z-]+|x-client-request-id)$")
"""Headers of a client that are meant for the provider. Who asks us, and with which key, is none of its business."""
_PASSED_ON = r"x-ratelimit-|retry-after|(x-should-retry|content-type|x-simulated|(x-)?request-id)$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """`name` is also the prefix of models that are named without one. `path` comes behind the host, or behind a base
    URL that has the /v1 already. `usual_headers` go to a provider where the client has none of that name; headers of an
    answer that match `headers_out` go to the client. `counts` are the names of the tokens used."""

    name: str
    title: str
    path: str
    usual_headers: Mapping[str, str]
    headers_out: re.Pattern[str]
    counts: tuple[str, ...]

    def key(self, secret: str) -> dict[str, str]:
        """The header that has the key of a provider."""
        if not secret:
            return {}
        return {"x-api-key": secret} if self is ANTHROPIC else {"Authorization": f"Bearer {secret}"}

    def url(self, base_url: str) -> str:
        """`base_url` as its official client takes it."""
        return base_url + (self.path if self is ANTHROPIC else self.path.removeprefix("/v1"))

    def is_answer(self, body: Any) -> bool:
        if not isinstance(body, dict):
            return False
        # Anthropic's may be empty: a model that has nothing to say ends its turn.
        return body.get("type") == "message" if self is ANTHROPIC else bool(body.get("choices"))

    def usage(self, *told: Any) -> dict[str, int]:
        """The tokens of an answer, or of what the events of a stream tell, the last one's word for each."""
        found: dict[str, int] = {}
        for body in told:
            body = body if isinstance(body, dict) else {}
            message = body.get("message")
            for place in (message if isinstance(message, dict) else {}, body):
                usage = place.get("usage")
                usage = usage if isinstance(usage, dict) else {}
                found |= {name: usage[name] for name in self.counts if type(usage.get(name)) is int}
        return found

    def ends(self, data: bytes) -> bool:
        """Whether the data of an event says that a stream is complete."""
        if self is OPENAI:
            return data == b"[DONE]"
        return b"message_stop" in data and parsed(data).get("type") == "message_stop"

    def error(self, status: int, message: str, kind: Any, field: Any = None, code: Any = None) -> dict[str, Any]:
        if self is ANTHROPIC:
            kind = _KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": message}}
        return {"error": {"message": message, "type": kind, "param": field, "code": code}}

    def error_event(self, message: str, kind: Any, code: Any) -> bytes:
        """How a stream ends that broke."""
        name = b"event: error\n" if self is ANTHROPIC else b""
        return b"%sdata: %s\n\n" % (name, json.dumps(self.error(502, message, kind, code=code)).encode())


def parsed(data: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


OPENAI = Format(
    name="openai",
    title="OpenAI",
    path="/v1/chat/completions",
    usual_headers={},
    headers_out=re.compile(f"(openai-|{_PASSED_ON})"),
    counts=("prompt_tokens", "completion_tokens", "total_tokens"),
)
ANTHROPIC = Format(
    name="anthropic",
    title="Anthropic",
    path="/v1/messages",
    usual_headers={"anthropic-version": "2023-06-01"},
    headers_out=re.compile(f"(anthropic-ratelimit-|{_PASSED_ON})"),
    counts=("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"),
)
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
