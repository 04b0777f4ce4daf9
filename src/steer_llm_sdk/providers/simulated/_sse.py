"""Server-sent events as bytes: where one ends and the next begins."""

from __future__ import annotations

from collections.abc import AsyncIterator

from steer_llm_sdk.providers.simulated._http import HttpResponse

BREAK = b"\n\n"


def is_stream(response: HttpResponse) -> bool:
    return response.header("content-type").startswith("text/event-stream")


async def events_in(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a stream between its events, with every line end as \\n. What follows the last blank line comes last."""
    pending = b""
    async for piece in pieces:
        data = pending + piece
        # A \r at the end may be half of a \r\n.
        whole = len(data) - data.endswith(b"\r")
        *events, pending = _lines(data[:whole]).split(BREAK)
        pending += data[whole:]
        for event in events:
            yield event + BREAK
    if pending:
        yield _lines(pending)


def _lines(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
