"""A FastAPI application of your own that uses the library: one endpoint, two tools, a fallback.

uvicorn --app-dir examples fastapi_app:app
curl -d '{"city": "Bonn"}' -H 'Content-Type: application/json' http://127.0.0.1:8000/weather
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from steer_llm_sdk.errors import ProviderError
from steer_llm_sdk.orchestration import ReliableOrchestrator, Tool, ToolRegistry


class Station(Tool):
    """Stands for a service that is down today."""

    name = "station"
    capabilities = ("weather",)

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        raise ProviderError("the station does not answer", "station", status_code=503, retry_after=60)


class Almanac(Tool):
    """Knows less, and is always there."""

    name = "almanac"
    capabilities = ("weather",)

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        return {"content": {"city": request["city"], "weather": "mild, as a rule"}, "cost_usd": 0.0}


registry = ToolRegistry()
registry.register_tool(Station())
registry.register_tool(Almanac())
orchestrator = ReliableOrchestrator(registry=registry)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with orchestrator:
        yield


app = FastAPI(lifespan=lifespan)


class Place(BaseModel):
    city: str


@app.post("/weather")
async def weather(place: Place) -> dict[str, Any]:
    output = await orchestrator.run(place.model_dump(), options={"timeout_ms": 5000})
    if output.status == "failed":
        raise HTTPException(503, output.content["error"]["message"])
    return {**output.content, "from": output.metadata["tool_name"], "tried": list(output.per_agent)}
