"""Models that speak Anthropic's format."""

from __future__ import annotations

from anthropic import AsyncAnthropic
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider

from steer_llm_sdk.providers._endpoint import Endpoint
from steer_llm_sdk.providers._llm.exchange import WatchedClient


def model(endpoint: Endpoint, base_url: str, http: WatchedClient, key: str) -> AnthropicModel:
    client = AsyncAnthropic(
        api_key=key,
        base_url=base_url.removesuffix("/v1"),
        http_client=http,
        max_retries=0,
        timeout=http.timeout,
    )
    return AnthropicModel(endpoint.model, provider=AnthropicProvider(anthropic_client=client))
