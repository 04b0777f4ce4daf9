"""The adapter contract: what a tool may ask of a model, and what it gets back. No client library appears here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from steer_llm_sdk.errors import ProviderError
from steer_llm_sdk.models.quota import RateLimitStatus
from steer_llm_sdk.models.usage import Amount

__all__ = ["Image", "Message", "ModelAdapter", "ModelReply", "ModelRequest", "ProviderError"]

trace_headers: ContextVar[Mapping[str, str] | None] = ContextVar("steer_llm_sdk.trace_headers", default=None)
"""Headers that the HTTP requests of the running attempt carry, so that a provider's own trace is a part of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image in a message: a `url`, or `data` with its `media_type` ("image/png")."""

    url: str | None = None
    data: bytes | None = field(default=None, repr=False)
    media_type: str = "image/png"


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["system", "user", "assistant"]
    content: str | tuple[str | Image, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One request to one model. None is the provider's default; for `max_tokens` it is the adapter's.

    `schema` is the JSON Schema the answer must have. `timeout` limits the whole call, `first_byte_timeout` the wait for
    the first byte of the answer, `chunk_timeout` the wait between two bytes; all in seconds, None is no such limit.
    `on_first_byte` is called when that byte comes: an adapter that does not call it is taken to be silent to its end.
    """

    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    timeout: float | None = None
    first_byte_timeout: float | None = None
    chunk_timeout: float | None = None
    idempotency_key: str | None = None
    on_first_byte: Callable[[], None] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """`usage` has input_tokens, output_tokens, total_tokens, and cache and reasoning tokens where reported.

    `cost_usd` None: the price is unknown. `simulated`: a recording answered. `local`: a server on loopback did.
    `ignored` names the settings of the request that the model cannot take ("seed"). `rate_limit`: what the answer said
    of the provider's limits.
    """

    text: str
    model: str
    usage: Mapping[str, Any] = field(default_factory=dict)
    cost_usd: float | None = None
    request_id: str | None = None
    finish_reason: str | None = None
    simulated: bool = False
    local: bool = False
    ignored: tuple[str, ...] = ()
    rate_limit: RateLimitStatus | None = None


@runtime_checkable
class ModelAdapter(Protocol):
    """One model at one endpoint with one key. Raises ProviderError and its subclasses, else only cancellation."""

    @property
    def name(self) -> str:
        """As the caller wrote it: "openai:gpt-5-mini"."""
        ...

    @property
    def target(self) -> str:
        """What a breaker protects: the provider, and its base URL where that is not the usual one."""
        ...

    async def prepare(self) -> None:
        """Load the libraries and open the client; nothing the second time. Called before an attempt is timed."""
        ...

    async def request(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelReply:
        """Send it as a stream; `on_text` gets each piece of text when it arrives. Never retries."""
        ...

    def worst_case(self, request: ModelRequest) -> Amount:
        """Input plus `max_tokens` at list price: what is reserved before the call."""
        ...

    async def aclose(self) -> None: ...
