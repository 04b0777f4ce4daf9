"""Loads the client libraries of models before a run starts its clock."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from steer_llm_sdk.providers.models import endpoint_of, resolve_model
from steer_llm_sdk.providers.pydantic_ai_adapter import load


def load_clients(models: Iterable[str], err: Console) -> None:
    """Import the client libraries of these models. This takes seconds, which should count against no deadline.

    InvalidRequest for a model that cannot be asked, and with the line that installs the extra `llm` if it is missing.
    """
    wires = []
    for model in models:
        resolve_model(model)  # It looks for the extra, which `endpoint_of` does not.
        wires.append(endpoint_of(model).wire)
    with err.status("loading the model clients"):
        for wire in dict.fromkeys(wires):
            load(wire)
