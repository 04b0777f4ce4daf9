"""How long until a budget starts anew, as an error says it."""

from __future__ import annotations

import pytest

from steer_llm_sdk.errors import BudgetExceeded


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.25, "0.25 s"), (59, "59 s"), (1800, "30 min"), (7199, "2 h 0 min"), (74_800, "20 h 47 min"), (1e6, "11 days")],
)
def test_a_budget_says_in_words_when_it_starts_anew(seconds: float, said: str) -> None:
    error = BudgetExceeded("cost", 1.0, 2.0, budget="team", resets_in=seconds)
    assert str(error).endswith(f"; it starts anew in {said}")
