"""The contract is tested in virtual time, through the public interface."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from steer_llm_sdk.testing import VirtualTimeLoop


@pytest.hookimpl(tryfirst=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualTimeLoop}
