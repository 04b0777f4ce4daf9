"""Loads the client libraries of models before a run starts its clock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from rich.console import Console

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.models import endpoint_of, resolve_model
from steer_llm_sdk.providers.pydantic_ai_adapter import load


def load_clients(models: Iterable[str], err: Console) -> None:
    """Import the client libraries of these models. This takes seconds, which should count against no deadline.

    A model that cannot be asked is passed over: whoever asks it says so, if anybody does.
    """
    wires = []
    for model in models:
        with contextlib.suppress(InvalidRequest):
            resolve_model(model)
            wires.append(endpoint_of(model).wire)
    with err.status("loading the model clients"):
        for wire in dict.fromkeys(wires):
            load(wire)
