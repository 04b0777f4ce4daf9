"""Server-sent events as bytes: where one ends and the next begins."""

from __future__ import annotations

from collections.abc import AsyncIterator

from steer_llm_sdk.providers.simulated._http import HttpResponse

BREAK = b"\n\n"


def is_stream(response: HttpResponse) -> bool:
    return response.header("content-type").startswith("text/event-stream")


async def events_in(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a stream between its events. What follows the last blank line comes last, as it is."""
    pending = b""
    async for piece in pieces:
        *events, pending = (pending + piece).replace(b"\r\n", b"\n").split(BREAK)
        for event in events:
            yield event + BREAK
    if pending:
        yield pending
