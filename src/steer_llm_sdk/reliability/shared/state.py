"""All that one orchestrator shares with others through one store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from steer_llm_sdk.reliability.shared.breaker import SharedBreakers
from steer_llm_sdk.reliability.shared.link import PATIENCE, Link

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerConfig


class SharedState:
    """`url`: redis://…, rediss://… or postgresql://…; connects, on a thread of its own, when it is first used.

    `patience`: seconds that the store gets for an answer, before this instance goes on alone. InvalidRequest where the
    URL is of no server.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE) -> None:
        self.link = Link(url, patience=patience)

    def breakers(self, config_for: Callable[[str], CircuitBreakerConfig]) -> SharedBreakers:
        return SharedBreakers(self.link, config_for)

    def close(self) -> None:
        """Blocks until what waits is in the store, for a second at most. What is used afterwards is not shared."""
        self.link.close()

    def __repr__(self) -> str:
        return f"SharedState({self.link.at!r})"
