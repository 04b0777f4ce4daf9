"""What the shell offers while an option is typed."""

from __future__ import annotations

from steer_llm_sdk.orchestration.tool_registry import installed_tools
from steer_llm_sdk.providers.models import PREFIXES
from steer_llm_sdk.providers.simulated.recording import shipped_recording


def tool_names(incomplete: str) -> list[str]:
    return [name for name in installed_tools() if name.startswith(incomplete)]


def model_names(incomplete: str) -> list[str]:
    """The prefixes, and behind recorded: the names there are."""
    known = [f"{prefix}:" for prefix in PREFIXES]
    if incomplete.startswith("recorded:"):
        known = [f"recorded:{name}" for name in ("demo", *shipped_recording().models)]
    return [name for name in known if name.startswith(incomplete)]
