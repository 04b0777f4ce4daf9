"""Loads the client libraries of models before a run starts its clock."""

from __future__ import annotations

from importlib import import_module

from rich.console import Console

from steer_llm_sdk.providers.models import resolve_model


def load_clients(err: Console) -> None:
    """Import the client libraries. This takes seconds, which should count against no deadline.

    InvalidRequest with the line that installs it, if the extra `llm` is missing.
    """
    resolve_model("recorded:demo")
    with err.status("loading the model clients"):
        import_module("openai")
        import_module("steer_llm_sdk.providers._llm.client")
