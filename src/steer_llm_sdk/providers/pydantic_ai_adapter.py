"""A ModelAdapter on pydantic-ai's direct requests. The libraries take seconds to import, so they are loaded late."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from steer_llm_sdk.models.usage import Amount
from steer_llm_sdk.providers._endpoint import Endpoint, Wire
from steer_llm_sdk.providers.base import ModelReply, ModelRequest
from steer_llm_sdk.providers.simulated.shared import shared_recorded_server

if TYPE_CHECKING:
    from steer_llm_sdk.providers._llm.client import Client
    from steer_llm_sdk.providers._llm.prices import Pricing


@dataclass(frozen=True, slots=True)
class _Held:
    """A client, and the generator by which its event loop closes it."""

    client: Client
    keeper: AsyncGenerator[None, None]


LOADER = "steer-load-llm"
"""The name of each thread that imports libraries."""


@cache
def load_in_background(wire: Wire) -> None:
    """Import the libraries of this format, once per process, so that no request waits for them while its clock runs."""
    threading.Thread(target=_load_quietly, args=(wire,), name=LOADER, daemon=True).start()


def _load_quietly(wire: Wire) -> None:
    # A missing library is reported by the request that needs it.
    with contextlib.suppress(ImportError):
        load(wire)


def load(wire: Wire) -> None:
    """Import what talks to models that speak this format, and the table of prices. It takes seconds."""
    import_module("steer_llm_sdk.providers._llm.client")
    import_module(f"steer_llm_sdk.providers._llm.{wire}_wire")
    import_module("genai_prices.data")


class PydanticAIAdapter:
    """One model at one endpoint with one key; a ModelAdapter.

    Connections belong to an event loop, so each loop that asks gets its own client. It is closed by `aclose`, or when
    its loop ends, whichever comes first; `asyncio.run` may be called any number of times.
    """

    def __init__(self, endpoint: Endpoint, pricing: Pricing | None = None) -> None:
        self._endpoint = endpoint
        self._pricing = pricing
        self._held: dict[asyncio.AbstractEventLoop, _Held] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"PydanticAIAdapter({self.name!r}, target={self.target!r})"

    @property
    def name(self) -> str:
        return self._endpoint.name

    @property
    def target(self) -> str:
        return self._endpoint.target

    async def prepare(self) -> None:
        await self._client()

    async def request(self, request: ModelRequest, on_text: Callable[[str], None] | None = None) -> ModelReply:
        """One attempt. `on_text` gets each piece of text as it comes; what it raises is passed on as it is."""
        client = await self._client()
        return await client.ask(request, on_text)

    def worst_case(self, request: ModelRequest) -> Amount:
        """Tokens: a third of the bytes of text and schema, 8 for each message, 4800 for each image, and `max_tokens`
        (where the request names none, what is sent: 4096, or 16384 to a model that reasons by default).
        """
        from steer_llm_sdk.providers._llm.prices import worst_case

        return worst_case(request, self._endpoint, self._pricing)

    async def aclose(self) -> None:
        """Close the connections of the running loop. Those of other loops close when their loop does.

        Requests under way are finished on the connections they have; the next one opens new ones.
        """
        with self._lock:
            held = self._held.pop(asyncio.get_running_loop(), None)
        if held is not None:
            await held.keeper.aclose()

    async def _client(self) -> Client:
        loop = asyncio.get_running_loop()
        held = self._held.get(loop)
        return (await self._open(loop) if held is None else held).client

    async def _open(self, loop: asyncio.AbstractEventLoop) -> _Held:
        # Imports take seconds the first time, certificates milliseconds: neither may stop the loop.
        client = await asyncio.to_thread(_client_for, self._endpoint, self._pricing)
        with self._lock:
            for ended in [other for other in self._held if other.is_closed()]:
                del self._held[ended]
            if loop in self._held:
                return self._held[loop]
            held = self._held[loop] = _Held(client, _until_the_loop_ends(client))
        await anext(held.keeper)
        return held


def _client_for(endpoint: Endpoint, pricing: Pricing | None) -> Client:
    from steer_llm_sdk.providers._llm.client import Client

    base_url = shared_recorded_server() if endpoint.base_url is None else endpoint.base_url
    return Client(endpoint, base_url, pricing)


async def _until_the_loop_ends(client: Client) -> AsyncGenerator[None, None]:
    """Once started, a loop closes its generators before it ends, while connections can still be closed in order."""
    try:
        yield
    finally:
        await client.aclose()
