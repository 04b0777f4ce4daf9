"""Fixtures for pytest. In your conftest.py:

pytest_plugins = ["steer_llm_sdk.testing.fixtures"]
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from steer_llm_sdk.testing.provider import SimulatedProvider

__all__ = ["simulated_provider"]


@pytest.fixture
def simulated_provider() -> Iterator[SimulatedProvider]:
    """A provider without faults, for one test; see SimulatedProvider."""
    with SimulatedProvider() as provider:
        yield provider
