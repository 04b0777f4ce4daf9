"""Mechanisms: retry, hedging, silence, rate limits, breakers, budgets, deadlines, idempotency, and what errors mean.

None of them has heard of tools.
"""

from steer_llm_sdk.errors import ErrorCategory
from steer_llm_sdk.reliability.budget import Budget, BudgetAccounts
from steer_llm_sdk.reliability.circuit import CircuitState
from steer_llm_sdk.reliability.circuit_breaker import (
    BreakerMode,
    CircuitBreaker,
    CircuitBreakerConfig,
    CircuitBreakerManager,
)
from steer_llm_sdk.reliability.classify import ErrorClassification, ErrorClassifier
from steer_llm_sdk.reliability.hedging import HedgingPolicy
from steer_llm_sdk.reliability.idempotency import IdempotencyManager
from steer_llm_sdk.reliability.rate_limit import RateLimit
from steer_llm_sdk.reliability.retry import CategoryRetry, RetryPolicy
from steer_llm_sdk.reliability.retry_budget import RetryBudgetConfig

__all__ = [
    "BreakerMode",
    "Budget",
    "BudgetAccounts",
    "CategoryRetry",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerManager",
    "CircuitState",
    "ErrorCategory",
    "ErrorClassification",
    "ErrorClassifier",
    "HedgingPolicy",
    "IdempotencyManager",
    "RateLimit",
    "RetryBudgetConfig",
    "RetryPolicy",
]
