"""Models that speak OpenAI's format."""

from __future__ import annotations

from openai import AsyncOpenAI
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

from steer_llm_sdk.providers._endpoint import Endpoint
from steer_llm_sdk.providers._llm.exchange import WatchedClient


def model(endpoint: Endpoint, base_url: str, http: WatchedClient, key: str) -> OpenAIChatModel:
    url = f"{base_url}/v1" if endpoint.recorded else base_url
    openai = AsyncOpenAI(api_key=key, base_url=url, http_client=http, max_retries=0, timeout=http.timeout)
    if endpoint.official:
        return OpenAIChatModel(endpoint.model, provider=OpenAIProvider(openai_client=openai))
    if endpoint.recorded:
        # The first user message is the question: nothing else may be sent in that role.
        asked = OpenAIModelProfile(openai_system_prompt_role="system")
        return OpenAIChatModel(endpoint.model, provider=OpenAIProvider(openai_client=openai), profile=asked)
    # Every server of this format takes `max_tokens`; not every one takes its successor, or two system messages.
    profile = OpenAIModelProfile(
        openai_chat_supports_max_completion_tokens=False, openai_chat_supports_multiple_system_messages=False
    )
    provider = OpenAICompatibleProvider(endpoint.provider, openai_client=openai)
    return OpenAIChatModel(endpoint.model, provider=provider, profile=profile)
