"""All that one orchestrator shares with others through one store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from steer_llm_sdk.reliability.shared.breaker import SharedBreakers
from steer_llm_sdk.reliability.shared.budgets import SharedAccounts
from steer_llm_sdk.reliability.shared.limits import SharedRateLimits
from steer_llm_sdk.reliability.shared.link import PATIENCE, Link
from steer_llm_sdk.reliability.shared.retry_budget import SharedRetryBudget

if TYPE_CHECKING:
    from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerConfig
    from steer_llm_sdk.reliability.rate_limit import RateLimit
    from steer_llm_sdk.reliability.retry_budget import RetryBudgetConfig


class SharedState:
    """`url`: redis://…, rediss://… or postgresql://…; connects, on a thread of its own, when it is first used.

    `patience`: seconds that the store gets for an answer, before this instance goes on alone. InvalidRequest where the
    URL is of no server.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE) -> None:
        self.link = Link(url, patience=patience)

    def breakers(self, config_for: Callable[[str], CircuitBreakerConfig]) -> SharedBreakers:
        return SharedBreakers(self.link, config_for)

    def limits(self, limit_for: Callable[[str], RateLimit | None]) -> SharedRateLimits:
        return SharedRateLimits(limit_for, self.link)

    def retry_budget(self, config: RetryBudgetConfig) -> SharedRetryBudget:
        return SharedRetryBudget(config, self.link)

    def budget_accounts(self) -> SharedAccounts:
        return SharedAccounts(self.link)

    def close(self) -> None:
        """Blocks until what waits is in the store, for a second at most. What is used afterwards is not shared."""
        self.link.close()

    def __repr__(self) -> str:
        return f"SharedState({self.link.at!r})"
