"""An engine in memory, and virtual time: what a crash does is told apart from what a database does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from steer_llm_sdk.testing import VirtualTimeLoop


@pytest.hookimpl(tryfirst=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualTimeLoop}
