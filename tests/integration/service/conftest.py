"""What the tests of the service share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from served import Service, serving

from steer_llm_sdk.testing import SimulatedProvider


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    with ExitStack() as stack:
        yield lambda *tools, **options: stack.enter_context(serving(*tools, **options))


@pytest.fixture
def provider() -> Iterator[SimulatedProvider]:
    with SimulatedProvider() as running:
        yield running
