"""What the stores on servers have in common: clients that belong to one loop each, and who is woken by what."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

from steer_llm_sdk.errors import InvalidRequest, StoreUnavailable
from steer_llm_sdk.reliability.stores import POLL, Changed
from steer_llm_sdk.reliability.stores._url import secrets_of, shown

LONGEST = 1.0
"""Seconds between two looks at a key although nobody said that it changed."""
FOREVER = 1e9
"""Seconds: 31 years, and every server can reckon with it."""
CONNECT = 2.0
"""Seconds to connect in."""

_P = TypeVar("_P")


class PerLoop(Generic[_P]):
    """One of something for each event loop: what is connected on one loop cannot be used on another."""

    def __init__(self, make: Callable[[], _P], close: Callable[[_P], Coroutine[Any, Any, None]]) -> None:
        self._make = make
        self._close = close
        self._lock = threading.Lock()
        self._made: dict[asyncio.AbstractEventLoop, _P] = {}

    def get(self) -> _P:
        loop = asyncio.get_running_loop()
        made = self._made.get(loop)
        if made is None:
            with self._lock:
                for other in [other for other in self._made if other.is_closed()]:
                    del self._made[other]
                made = self._made.setdefault(loop, self._make())
        return made

    async def aclose(self) -> None:
        with self._lock:
            made, self._made = self._made, {}
        here = asyncio.get_running_loop()
        for loop, one in made.items():
            if loop is here:
                await self._close(one)
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._close(one), loop))


class Wakes:
    """Who waits for which key on one loop."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def of(self, key: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        self._waiting.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            others = self._waiting[key]
            others.discard(event)
            if not others:
                del self._waiting[key]

    def wake(self, key: str) -> None:
        for event in self._waiting.get(key, ()):
            event.set()

    def wake_all(self) -> None:
        for key in self._waiting:
            self.wake(key)


class Listener(ABC):
    """Hears on one connection of its loop which keys came free. While it cannot, whoever waits looks for himself."""

    def __init__(self) -> None:
        self.wakes = Wakes()
        self._task: asyncio.Task[None] | None = None
        self._hears = asyncio.Event()

    @abstractmethod
    async def listen(self, hears: Callable[[], None]) -> None:
        """Call `hears` once everything that is said from now on will be heard; then hand it to `wakes` until the
        connection ends."""

    @asynccontextmanager
    async def waiting(self, key: str) -> AsyncIterator[Changed]:
        with self.wakes.of(key) as woken:
            await self._start()

            async def changed(most: float) -> None:
                try:
                    async with asyncio.timeout(min(most, LONGEST if self._hears.is_set() else POLL)):
                        await woken.wait()
                except TimeoutError:
                    pass
                woken.clear()

            yield changed

    async def _start(self) -> None:
        """Returns once it hears, or where it does not come to that."""
        if self._task is None or self._task.done():
            self._hears.clear()
            self._task = asyncio.get_running_loop().create_task(self._listen())
        hears = asyncio.ensure_future(self._hears.wait())
        try:
            await asyncio.wait((self._task, hears), timeout=CONNECT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hears.cancel()

    async def _listen(self) -> None:
        try:
            await self.listen(self._hears.set)
        except Exception:
            pass  # The store says what is wrong with it when it is asked for a key.
        finally:
            self._hears.clear()
            self.wakes.wake_all()

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))


class Where:
    """A URL that is never shown as it is."""

    def __init__(self, url: str) -> None:
        self.shown = shown(url)
        self._secrets = secrets_of(url)

    def said(self, error: BaseException) -> str:
        if self._secrets is None:
            return type(error).__name__  # It may quote what it took for a host.
        says = str(error)
        for secret in self._secrets:
            says = says.replace(secret, "***")
        return " ".join(says.split())

    def unusable(self, client: str, error: BaseException) -> InvalidRequest:
        return InvalidRequest("store", self.shown, f"{client} says: {self.said(error)}")

    def unavailable(self, error: BaseException) -> StoreUnavailable:
        """To be raised without its cause, in whose text or frames a password could stand."""
        return StoreUnavailable(f"{self.shown} did not answer: {type(error).__name__}: {self.said(error)}")
