"""Spending a budget over the requests it is for: a price that rises while too much is spent, and falls after.

    price <- max(0, price + eta (c / cbar - 1)),   cbar = what is left / requests still expected

(dual descent; Balseiro and Gur 2019). What a request may cost at most is reserved before it is sent, so the limit holds
whatever the price does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

RATE = 0.01
ENDING = 0.5
CUSHION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """`budget_usd` for about `requests` requests. When it is used up, planning raises BudgetExceeded."""

    budget_usd: float
    requests: int

    def __post_init__(self) -> None:
        if not 0 < self.budget_usd < float("inf"):
            raise ValueError(f"budget_usd: {self.budget_usd!r} cannot be used; give USD above 0")
        if self.requests < 1:
            raise ValueError(f"requests: {self.requests!r} cannot be used; give how many are expected, 1 or more")


@dataclass(frozen=True, slots=True)
class Paced:
    """USD. `price` is how much reward a request must gain for costing as much as the default tool."""

    pacing: Pacing
    spent: float = 0.0
    reserved: float = 0.0
    admitted: int = 0
    price: float = 0.0

    @property
    def left(self) -> float:
        return self.pacing.budget_usd - self.spent - self.reserved

    @property
    def fair_share(self) -> float:
        """What one request may take, were the rest shared out evenly."""
        return max(self.left, 0.0) / max(self.pacing.requests - self.admitted, 1)

    def admits(self, most: float) -> bool:
        return most <= self.left

    def leaves_enough(self, most: float, least: float) -> bool:
        """Whether each of the requests that are still expected could have `least` after it, some a little more."""
        expected = self.pacing.requests - self.admitted - 1
        return most + (least * (expected + CUSHION) if expected > 0 else 0.0) <= self.left

    def admit(self, expected: float, most: float) -> Paced:
        """One more request, expected to cost `expected` and at most `most`."""
        share = self.fair_share
        # Towards the end little is left to make up for a price that is wrong.
        rate = max(RATE, ENDING / max(self.pacing.requests - self.admitted, 1))
        step = rate * (expected / share - 1) if share > 0 else rate
        return replace(
            self, reserved=self.reserved + most, admitted=self.admitted + 1, price=max(0.0, self.price + step)
        )

    def settle(self, reserved: float, actual: float) -> Paced:
        """It has cost `actual`: 0 where it was given up before anything was sent."""
        return replace(self, reserved=max(self.reserved - reserved, 0.0), spent=self.spent + actual)
