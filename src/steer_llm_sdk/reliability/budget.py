"""What one run may spend, has spent, and has set aside for calls that are under way.

Before an attempt its worst case is reserved; afterwards the reservation becomes what was really used. So
spent + reserved <= limit holds at every instant, as long as no call takes more than its worst case. If one does, the
excess is recorded and nothing more is admitted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from steer_llm_sdk.errors import BudgetExceeded, InvalidRequest, ProviderError
from steer_llm_sdk.models.usage import Amount, tokens_of
from steer_llm_sdk.reliability.classify import classify

if TYPE_CHECKING:
    from steer_llm_sdk.reliability._pipeline import Call, Next


COST_SLACK = 1e-10
"""USD by which a sum may pass its limit: sums of decimal prices are not exact in binary."""


def excess(
    token_limit: float | None, cost_limit: float | None, tokens: float, cost_usd: float
) -> tuple[str, float, float] | None:
    """Which limit is passed, the limit, and the amount that passes it; None where none is."""
    if token_limit is not None and tokens > token_limit:
        return "tokens", token_limit, tokens
    if cost_limit is not None and cost_usd > cost_limit + COST_SLACK:
        return "cost", cost_limit, cost_usd
    return None


class Ledger:
    """The account of one run. `tokens` and `cost_usd` are limits; None is no limit."""

    __slots__ = ("cost_usd", "reserved_cost", "reserved_tokens", "spent_cost", "spent_tokens", "tokens")

    def __init__(self, tokens: float | None = None, cost_usd: float | None = None) -> None:
        self.tokens = tokens
        self.cost_usd = cost_usd
        self.spent_tokens = 0
        self.spent_cost = 0.0
        self.reserved_tokens = 0
        self.reserved_cost = 0.0

    @property
    def tokens_left(self) -> float:
        """What may still be reserved; infinite without a limit."""
        return math.inf if self.tokens is None else self.tokens - self.spent_tokens - self.reserved_tokens

    @property
    def cost_left(self) -> float:
        return math.inf if self.cost_usd is None else self.cost_usd - self.spent_cost - self.reserved_cost

    def reserve(self, worst: Amount) -> None:
        """Set `worst` aside. Raises BudgetExceeded, with nothing set aside, where that would pass a limit."""
        over = excess(self.tokens, self.cost_usd, self.spent_tokens, self.spent_cost)
        if over is not None:
            raise BudgetExceeded(*over)
        if worst.tokens > self.tokens_left:
            assert self.tokens is not None
            raise BudgetExceeded("tokens", self.tokens, self.tokens - self.tokens_left + worst.tokens)
        if self.cost_usd is not None:
            if worst.cost_usd is None:
                raise InvalidRequest(
                    "budget.cost_usd",
                    self.cost_usd,
                    "the price of the model is unknown; declare one, or drop the limit",
                )
            if worst.cost_usd > self.cost_left + COST_SLACK:
                raise BudgetExceeded("cost", self.cost_usd, self.cost_usd - self.cost_left + worst.cost_usd)
        self.reserved_tokens += worst.tokens
        self.reserved_cost += worst.cost_usd or 0.0

    def settle(self, worst: Amount, actual: Amount) -> None:
        """Turn a reservation into what was used. An unknown cost is charged as it was reserved."""
        self.reserved_tokens -= worst.tokens
        self.reserved_cost -= worst.cost_usd or 0.0
        self.spent_tokens += actual.tokens
        self.spent_cost += (worst.cost_usd or 0.0) if actual.cost_usd is None else actual.cost_usd


def charge_of_failure(error: BaseException, worst: Amount) -> Amount:
    """What a failed call is charged: what it is known to have used, nothing if it was refused, else its worst case."""
    if isinstance(error, ProviderError) and error.usage:
        return Amount(tokens_of(error.usage), None)
    return worst if classify(error).maybe_billed else Amount()


class Reserve:
    """The policy: reserve, call, settle. Exactly one settlement for each reservation, whatever ends the call."""

    async def __call__(self, call: Call, next: Next[Any, Any], /) -> Any:
        worst, ledger = call.worst_case, call.ledger
        if ledger is None:
            return await next(call)
        ledger.reserve(worst)
        actual = worst
        try:
            result = await next(call)
            actual = call.spent(result)
            return result
        except BaseException as error:
            actual = charge_of_failure(error, worst)
            raise
        finally:
            ledger.settle(worst, actual)
