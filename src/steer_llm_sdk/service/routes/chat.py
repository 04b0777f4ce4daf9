"""/v1/chat/completions and /v1/messages, for clients of OpenAI's and of Anthropic's format; /v1/models."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import Response

from steer_llm_sdk.service.formats import ANTHROPIC, OPENAI
from steer_llm_sdk.service.routes._shared import State, asking


def add(app: FastAPI, state: State) -> None:
    book = state.book

    @app.post("/v1/chat/completions", response_model=None, openapi_extra=_passed_on("messages"))
    async def chat(request: Request) -> Response:
        """OpenAI's chat completions, under the policies."""
        book.require_room()
        return await state.chat.complete(OPENAI, request, asking(request))

    @app.post("/v1/messages", response_model=None, openapi_extra=_passed_on("messages", "max_tokens"))
    async def messages(request: Request) -> Response:
        """Anthropic's messages, under the policies."""
        book.require_room()
        return await state.chat.complete(ANTHROPIC, request, asking(request))

    state.ways |= {("POST", OPENAI.path): chat, ("POST", ANTHROPIC.path): messages}

    @app.get("/v1/models", response_model=None)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": state.chat.models()}

    @app.get("/v1/models/{name:path}", response_model=None)
    async def model(name: str) -> dict[str, Any]:
        return state.chat.model(name)


def _passed_on(*needed: str) -> dict[str, Any]:
    """How a body is described that the service does not read: `model` and `stream` are looked at, the rest goes on."""
    known = {
        "model": {"type": "string"},
        "messages": {"type": "array", "items": {"type": "object"}},
        "stream": {"type": "boolean"},
        "max_tokens": {"type": "integer", "minimum": 1},
    }
    schema = {"type": "object", "required": ["model", *needed], "properties": known}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
