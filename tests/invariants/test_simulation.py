"""A few seeds of the whole system. `sh scripts/prove simulate` plays a thousand, and plants defects."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from invariants.scenario import drawn
from invariants.watch import simulate
from steer_llm_sdk.reliability.retry import RetryPolicy


@pytest.mark.parametrize("seed", range(2000, 2015))
def test_every_promise_holds(seed: int) -> None:
    simulated = simulate(seed)
    assert simulated.broken == (), f"sh scripts/prove simulate --seed {seed} prints what happened"
    assert simulated.runs > 10


def test_a_seed_plays_the_same_every_time_and_another_seed_another() -> None:
    assert simulate(7).log == simulate(7).log
    assert simulate(7).log != simulate(8).log


def test_some_seed_has_each_kind_of_trouble() -> None:
    scenarios = [drawn(seed) for seed in range(200)]
    kinds = {outage.kind for scenario in scenarios for plan in scenario.providers for outage in plan.outages}
    assert kinds == {"503", "429 asks", "silence", "reset"}
    log = " ".join(line for seed in range(12) for line in simulate(seed).log)
    for word in ("deaf", "drip", "400", "CancelledError", "BudgetExceeded", "ConflictError", "replayed", "StoreUnava"):
        assert word in log, word


def test_a_broken_promise_is_noticed() -> None:
    with patch.object(RetryPolicy, "wait", lambda self, error, attempt, jitter: self.delay(attempt, jitter)):
        broken = [what for seed in range(10) for what in simulate(seed).broken]
    assert any("earlier than the server wants" in what for what in broken)
