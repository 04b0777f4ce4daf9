"""A real endpoint as upstream: requests and responses pass through unchanged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from steer_llm_sdk._install import install_line
from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers._endpoint import is_address, without_password
from steer_llm_sdk.providers.simulated._http import HttpRequest, HttpResponse
from steer_llm_sdk.providers.simulated._wire import ApiError

if TYPE_CHECKING:
    import httpx2

_HOP = {
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}


class ProxyUpstream:
    """Forwards to `url` ("https://api.openai.com", with or without "/v1"), keys included.

    Streams pass through event by event; other answers are read whole. A connection that cannot be made is a 502 that
    says so; one that breaks later breaks the client's too. After `timeout` seconds of silence a request fails.
    A user and password in `url` are sent, and never shown. Needs the extra `llm`.
    """

    def __init__(self, url: str, *, timeout: float = 600.0) -> None:
        shown = without_password(url)
        try:
            import httpx2
        except ImportError as error:
            raise InvalidRequest("upstream", shown, f"to forward to it, {install_line('llm')}") from error
        if not is_address(url):
            raise InvalidRequest("upstream", shown, "give an address with a host, like https://api.openai.com")
        self._httpx = httpx2
        self._base = url.rstrip("/").removesuffix("/v1")
        self._shown = without_password(self._base)
        self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(timeout, connect=10.0))

    async def respond(self, request: HttpRequest) -> HttpResponse:
        response = await self._send(request)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw]
        kept = [(name, value) for name, value in headers if name.lower() not in _HOP]
        streams = response.headers.get("content-type", "").startswith("text/event-stream")
        body = self._passed_through(response) if streams else await self._read(response)
        return HttpResponse(status=response.status_code, headers=kept, body=body, close=response.aclose)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _send(self, request: HttpRequest) -> httpx2.Response:
        url = self._base + request.target + ("?" + request.query if request.query else "")
        headers = {name: value for name, value in request.headers.items() if name not in _HOP}
        # Not compressed: faults and recordings are cut where events end.
        headers["accept-encoding"] = "identity"
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        try:
            sent = self._client.build_request(request.method, url, headers=raw, content=request.body)
            return await self._client.send(sent, stream=True)
        except self._httpx.InvalidURL as error:
            raise ApiError(400, f"The path cannot be passed on to {self._shown}: {error}") from error
        except self._httpx.TransportError as error:
            raise ApiError(502, f"{self._shown} gave no answer: {type(error).__name__}: {error}") from error

    async def _read(self, response: httpx2.Response) -> bytes:
        try:
            return await response.aread()
        except self._httpx.TransportError as error:
            await response.aclose()
            raise ConnectionAbortedError(f"{self._shown} broke off its answer") from error

    async def _passed_through(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        try:
            async for piece in response.aiter_bytes():
                yield piece
        except self._httpx.TransportError as error:
            raise ConnectionAbortedError(f"{self._shown} broke off its answer") from error
