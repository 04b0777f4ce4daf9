"""One model at one endpoint on one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib import import_module
from typing import Any, TypeVar

from pydantic_ai.direct import model_request_stream
from pydantic_ai.messages import (
    ModelResponse,
    ModelResponseStreamEvent,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
)
from pydantic_ai.models import Model, StreamedResponse
from pydantic_ai.usage import RequestUsage

from steer_llm_sdk.errors import BadResponse, ContentFiltered, ProviderTimeout, TruncatedStream
from steer_llm_sdk.providers._endpoint import Endpoint
from steer_llm_sdk.providers._llm.errors import as_provider_error
from steer_llm_sdk.providers._llm.exchange import Exchange, WatchedClient, current_exchange, http_client
from steer_llm_sdk.providers._llm.messages import ignored_of, messages_of, output_of, settings_of
from steer_llm_sdk.providers._llm.prices import Pricing, cost_of
from steer_llm_sdk.providers.base import ModelReply, ModelRequest

T = TypeVar("T")


class Client:
    def __init__(self, endpoint: Endpoint, base_url: str, pricing: Pricing | None) -> None:
        self._endpoint = endpoint
        self._pricing = pricing
        self._http = http_client(endpoint, base_url)
        self._model = _model(endpoint, base_url, self._http)
        self._asking, self._closing = 0, False

    async def aclose(self) -> None:
        """Close the connections: now, or when the last request under way has ended."""
        self._closing = True
        if not self._asking:
            await self._http.aclose()

    async def ask(self, request: ModelRequest, on_text: Callable[[str], None] | None) -> ModelReply:
        self._asking += 1
        try:
            return await self._ask(request, on_text)
        finally:
            self._asking -= 1
            if self._closing and not self._asking:
                await self._http.aclose()

    async def _ask(self, request: ModelRequest, on_text: Callable[[str], None] | None) -> ModelReply:
        call = _Call(request, self._endpoint, self._model)
        token = current_exchange.set(call.exchange)
        try:
            async with asyncio.timeout(request.timeout) as limit:
                response = await call.run(on_text)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise call.overdue() from error
        finally:
            current_exchange.reset(token)
        return self._reply(request, response, call.exchange)

    def _reply(self, request: ModelRequest, response: ModelResponse, exchange: Exchange) -> ModelReply:
        usage = usage_of(response.usage)
        model = response.model_name or self._endpoint.model
        simulated = self._endpoint.recorded or "x-simulated" in exchange.headers
        return ModelReply(
            text=_text(response),
            model=self._endpoint.scrub(model),
            usage=usage,
            cost_usd=cost_of(usage, model, self._endpoint, self._pricing, recorded=simulated),
            request_id=exchange.request_id,
            finish_reason=response.finish_reason,
            simulated=simulated,
            local=self._endpoint.local and not simulated,
            ignored=ignored_of(request, exchange.body),
            rate_limit=exchange.rate_limit,
        )


def _model(endpoint: Endpoint, base_url: str, http: WatchedClient) -> Model[Any]:
    """Each of the two libraries takes about a second to import, and most programs need one."""
    wire: Any = import_module(f"steer_llm_sdk.providers._llm.{endpoint.wire}_wire")
    model: Model[Any] = wire.model(endpoint, base_url, http, endpoint.api_key.get_secret_value() or _NO_KEY)
    return model


_NO_KEY = "none"
"""A placeholder for the client libraries, which require a key where the server needs none. It is not sent."""


class _Call:
    """One request under way."""

    def __init__(self, request: ModelRequest, endpoint: Endpoint, model: Model[Any]) -> None:
        self._request, self._endpoint, self._model = request, endpoint, model
        self.exchange = Exchange.of(request)

    async def run(self, on_text: Callable[[str], None] | None) -> ModelResponse:
        async with AsyncExitStack() as stack:
            stream = await self._translated(self._open(stack))
            events = aiter(stream)
            while (event := await self._translated(anext(events, None))) is not None:
                if on_text is not None and (text := _piece(event)):
                    on_text(text)
            response = stream.get()
            await self._translated(stack.aclose())
        self._require_answer(response)
        return response

    async def _open(self, stack: AsyncExitStack) -> StreamedResponse:
        request, endpoint, model = self._request, self._endpoint, self._model
        opening = model_request_stream(
            model,
            messages_of(request, endpoint, model),
            model_settings=settings_of(request, endpoint, model),
            model_request_parameters=output_of(request, endpoint, model),
        )
        return await stack.enter_async_context(opening)

    async def _translated(self, step: Awaitable[T]) -> T:
        """`step`, with what the library raises turned into a ProviderError.

        It is raised outside of the handler: otherwise the original, which may hold the key, would be its context.
        """
        try:
            return await step
        except Exception as error:
            failure = as_provider_error(error, self._endpoint, self.exchange)
        raise failure

    def overdue(self) -> ProviderTimeout:
        return ProviderTimeout(
            f"{self._endpoint.name}: no complete answer within {self._request.timeout:g} s (timeout); "
            "the call may have been billed",
            self._endpoint.target,
            request_id=self.exchange.request_id,
        )

    def _require_answer(self, response: ModelResponse) -> None:
        """Raise if the stream ended without an answer that can be used."""
        exchange, name, target = self.exchange, self._endpoint.name, self._endpoint.target
        usage, request_id = usage_of(response.usage), exchange.request_id
        if response.finish_reason == "content_filter":
            says = f"{name}: the provider withheld the answer"
            raise ContentFiltered(says, target, request_id=request_id, code="content_filter", usage=usage)
        if exchange.truncated and (response.provider_details or {}).get("finish_reason") is None:
            says = f"{name}: the stream stopped without a finish reason or an end marker"
            raise TruncatedStream(says, target, request_id=request_id)
        if not response.parts and response.finish_reason != "length":
            says = f"{name}: an answer without content: no choice, no text"
            raise BadResponse(says, target, request_id=request_id, usage=usage)


def _piece(event: ModelResponseStreamEvent) -> str:
    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
        return event.part.content
    if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
        return event.delta.content_delta
    return ""


def _text(response: ModelResponse) -> str:
    return "".join(part.content for part in response.parts if isinstance(part, TextPart))


def usage_of(usage: RequestUsage) -> dict[str, int]:
    """Token counts: input includes the cache, output includes reasoning. Empty where the provider reported none."""
    if usage.unmeasured_requests or not usage.has_values():
        return {}
    counts = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }
    more = {
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.output_reasoning_tokens,
    }
    return counts | {name: count for name, count in more.items() if count}
