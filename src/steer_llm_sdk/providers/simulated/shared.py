"""One server of the recording for the whole process, which the `recorded:` models ask."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from concurrent.futures import Future

from steer_llm_sdk.providers import simulated


class _Shared:
    """The server in a thread with its own event loop, so that it does not depend on the loop of any caller."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._started: Future[str] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="steer-recorded", daemon=True)
        self._thread.start()
        self.base_url = self._started.result()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with simulated.SimulatedServer() as server:
                self._started.set_result(server.base_url)
                await self._stop.wait()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)  # raised where the server was asked for

    def close(self) -> None:
        if self.pid == os.getpid():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=2.0)


_lock = threading.Lock()
_shared: _Shared | None = None


def shared_recorded_server() -> str:
    """The base URL of a server of the shipped recording, started when first asked for and stopped when Python exits.

    Any thread may ask. A forked child gets a server of its own, since threads do not survive a fork.
    """
    global _shared
    with _lock:
        if _shared is None or _shared.pid != os.getpid():
            _shared = _Shared()
            atexit.register(_shared.close)
        return _shared.base_url
