"""Waiting for the first of several things. The sleep function is passed in, so that tests do not wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

Sleep: TypeAlias = Callable[[float], Awaitable[object]]


async def wait(sleep: Sleep, seconds: float) -> None:
    await sleep(seconds)


async def first_of(*waits: Coroutine[Any, Any, object]) -> int:
    """Wait until one of them is done and cancel the others. Returns its place; what it raised is raised."""
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        return next(place for place, task in enumerate(tasks) if task in done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
