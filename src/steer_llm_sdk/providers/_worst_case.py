"""The most tokens a request can use, which are reserved before it is sent."""

from __future__ import annotations

import json
import re

from steer_llm_sdk.providers.base import Image, ModelRequest

MAX_TOKENS = 4096
"""Sent where the request names no limit: the most that every model takes."""

MAX_TOKENS_THINKING = 16384
"""The same for models that reason by default: their reasoning counts as output."""

_BYTES_PER_TOKEN = 3
_PER_MESSAGE = 8
_PER_IMAGE = 4800

_REASONS_BY_DEFAULT = re.compile(r"o\d|gpt-(?:[5-9]|1\d)(?!\d)(?!.*chat)|claude-[a-z]+-(?:[5-9]|\d\d)\b", re.ASCII)


def max_tokens_of(request: ModelRequest, model: str) -> int:
    if request.max_tokens is not None:
        return request.max_tokens
    return MAX_TOKENS_THINKING if _REASONS_BY_DEFAULT.match(model) else MAX_TOKENS


def input_tokens(request: ModelRequest) -> int:
    """An upper estimate: English has four bytes to a token, and few texts have fewer than three."""
    contents = [message.content for message in request.messages]
    parts = [part for content in contents for part in ((content,) if isinstance(content, str) else content)]
    texts = [part for part in parts if isinstance(part, str)]
    if request.schema is not None:
        texts.append(json.dumps(request.schema, ensure_ascii=False))
    size = sum(len(text.encode("utf-8", errors="replace")) for text in texts)
    images = sum(isinstance(part, Image) for part in parts)
    return -(-size // _BYTES_PER_TOKEN) + _PER_MESSAGE * len(contents) + _PER_IMAGE * images
