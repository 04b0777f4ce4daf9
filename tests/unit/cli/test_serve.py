"""What a process of the service does before it serves."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from steer_llm_sdk.cli.serve import COLLECTED, _loaded
from steer_llm_sdk.providers.pydantic_ai_adapter import LOADER


@pytest.fixture
def collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.enable()


@pytest.mark.usefixtures("collector")
def test_the_collector_is_spared_what_was_loaded_and_looks_seldom_from_then_on() -> None:
    seen: list[bool] = []
    may_end = threading.Event()

    def made() -> Any:
        seen.append(gc.isenabled())
        loader = threading.Thread(target=may_end.wait, name=LOADER)
        loader.start()
        threading.Timer(0.05, may_end.set).start()
        return loader

    spared = gc.get_freeze_count()
    loader: Any = _loaded(made)
    assert (seen, loader.is_alive()) == ([False], False)
    assert gc.get_freeze_count() > spared
    assert (gc.isenabled(), gc.get_threshold()) == (True, COLLECTED)
    assert COLLECTED[0] > 700  # the interpreter's own
