"""What `steer.toml` and the environment say, for the commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer_llm_sdk.orchestration.reliable_orchestrator import ReliableOrchestrator
from steer_llm_sdk.orchestration.tool_registry import ToolRegistry
from steer_llm_sdk.providers.models import MODEL_VARIABLE

if TYPE_CHECKING:
    from steer_llm_sdk.settings import Settings


def configured() -> Settings | None:
    """None where nothing is, which spares loading what reads it."""
    nested = any(name.upper().startswith(("STEER_RELIABILITY", "STEER_OPTIONS", "STEER_CONFIG")) for name in os.environ)
    if not nested and not os.environ.get("STEER_STORE") and not Path("steer.toml").is_file():
        return None
    from steer_llm_sdk.settings import load_settings

    return load_settings()


def name_the_model() -> None:
    """The model of the settings is asked as if STEER_MODEL named it."""
    settings = configured()
    if settings is not None and settings.model:
        os.environ.setdefault(MODEL_VARIABLE, settings.model)


def default_options() -> dict[str, Any]:
    """Of a run, where the command line says nothing else."""
    settings = configured()
    if settings is None:
        return {}
    return {name: getattr(settings.options, name) for name in settings.options.model_fields_set}


def orchestrator(registry: ToolRegistry, store: str | None = None) -> ReliableOrchestrator:
    """`store` goes before the one of the settings."""
    settings = configured()
    if settings is None:
        return ReliableOrchestrator(registry=registry, store=store)
    return ReliableOrchestrator(
        registry=registry, reliability_config=settings.reliability, store=store or settings.store
    )
