"""The client libraries of models, loaded while nobody's time is running."""

from __future__ import annotations

from importlib import import_module

from rich.console import Console

from steer_llm_sdk.providers.models import resolve_model


def load_clients(err: Console) -> None:
    """Import what talks to models. It takes seconds, and they belong to no run, no attempt and no deadline.

    InvalidRequest with the line that installs it, where the extra `llm` is missing.
    """
    resolve_model("recorded:demo")
    with err.status("loading the model clients"):
        import_module("openai")
        import_module("steer_llm_sdk.providers._llm.client")
