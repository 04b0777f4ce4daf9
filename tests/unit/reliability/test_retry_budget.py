"""The retry budget: a share of recent first attempts, plus a few."""

from __future__ import annotations

import asyncio
import itertools
import random
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.reliability.retry_budget import SLICES, RetryBudget, RetryBudgetConfig, Window, draw, first

CFG = RetryBudgetConfig(ratio=0.2, minimum=3, window=10)


def drawn(window: Window, now: float, cfg: RetryBudgetConfig, times: int) -> tuple[Window, int]:
    granted = 0
    for _ in range(times):
        window, allowed = draw(window, now, cfg)
        granted += allowed
    return window, granted


def test_a_quiet_provider_has_the_minimum_and_no_more() -> None:
    assert drawn(Window(), 0, CFG, 10)[1] == 3


def test_first_attempts_add_their_share() -> None:
    window = Window()
    for _ in range(50):
        window = first(window, 0.5, CFG)
    assert drawn(window, 0.5, CFG, 100)[1] == 13


def test_what_is_older_than_the_window_counts_no_more() -> None:
    window = Window()
    for _ in range(50):
        window = first(window, 0.5, CFG)
    window, _ = drawn(window, 0.5, CFG, 100)
    assert drawn(window, 9.9, CFG, 1)[1] == 0
    assert drawn(window, 10.0, CFG, 100)[1] == 3
    assert drawn(window, 1e6, CFG, 100)[1] == 3


def test_what_happened_a_while_ago_leaves_slice_by_slice() -> None:
    window = Window()
    for second in range(10):
        for _ in range(10):
            window = first(window, second, CFG)
    assert drawn(window, 9, CFG, 100)[1] == 23
    assert drawn(window, 12, CFG, 100)[1] == 17


def test_a_ratio_of_nothing_and_no_minimum_refuse_all() -> None:
    cfg = RetryBudgetConfig(ratio=0, minimum=0)
    assert drawn(first(Window(), 0, cfg), 0, cfg, 5)[1] == 0


def test_a_clock_that_stands_or_goes_back_is_taken_for_the_same_slice() -> None:
    window = first(Window(), 5, CFG)
    assert first(window, 4, CFG)._replace(firsts=1) == window


def test_the_ring_keeps_its_size_whatever_the_traffic() -> None:
    window = Window()
    for step in range(5000):
        window = first(window, step * 0.37, CFG)
        window, _ = draw(window, step * 0.37, CFG)
    assert len(window.older) == SLICES - 1


events = st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=200)
configs = st.builds(
    RetryBudgetConfig, ratio=st.floats(0, 2), minimum=st.integers(0, 5), window=st.sampled_from([0.5, 1.0, 10.0])
)


@given(events, configs)
def test_one_more_is_allowed_exactly_while_the_extra_ones_of_the_window_are_below_the_minimum_and_the_share(
    steps: list[tuple[bool, float]], cfg: RetryBudgetConfig
) -> None:
    window, now = Window(), 0.0
    firsts: list[float] = []
    extras: list[float] = []
    for is_first, pause in steps:
        now += pause
        if is_first:
            window = first(window, now, cfg)
            firsts.append(now)
            continue
        window, allowed = draw(window, now, cfg)
        began = int(now * SLICES / cfg.window) - SLICES + 1
        made, more = (sum(int(at * SLICES / cfg.window) >= began for at in each) for each in (firsts, extras))
        assert allowed is (more + 1 <= cfg.minimum + cfg.ratio * made)
        extras += [now] * allowed


@given(events)
def test_over_a_whole_run_the_extra_attempts_are_a_share_of_the_first_and_the_minimum_of_each_window(
    steps: list[tuple[bool, float]],
) -> None:
    window, now, firsts, extras = Window(), 0.0, 0, 0
    for is_first, pause in steps:
        now += pause
        if is_first:
            window, firsts = first(window, now, CFG), firsts + 1
        else:
            window, allowed = draw(window, now, CFG)
            extras += allowed
    windows = now // (CFG.window * (1 - 1 / SLICES)) + 1
    assert extras <= CFG.minimum * windows + 2 * CFG.ratio * firsts


@given(events, configs)
def test_the_same_events_lead_to_the_same_decisions(steps: list[tuple[bool, float]], cfg: RetryBudgetConfig) -> None:
    def play() -> list[object]:
        window, now, seen = Window(), 0.0, []
        for is_first, pause in steps:
            now += pause
            window, allowed = (first(window, now, cfg), None) if is_first else draw(window, now, cfg)
            seen.append((window, allowed))
        return seen

    assert play() == play()


async def test_each_provider_has_a_budget_of_its_own() -> None:
    budget = RetryBudget(RetryBudgetConfig(minimum=1, ratio=0, window=10))
    assert [budget.draw(target) for target in ("a", "a", "b")] == [True, False, True]
    await asyncio.sleep(10)
    assert budget.draw("a")


async def test_what_a_provider_had_is_kept_while_it_counts_however_many_others_come() -> None:
    budget = RetryBudget(RetryBudgetConfig(minimum=0, ratio=1, window=20))
    now = asyncio.get_running_loop().time
    await asyncio.sleep(1000 - now())
    for _ in range(3):
        budget.first("drawn", now())
    assert budget.draw("drawn")
    budget.first("counted", now())
    await asyncio.sleep(19.8)
    for number in range(3000):
        budget.first(str(number), now())
        await budget.ask(f"asked {number}")
    asked = [await budget.ask(name) for name in ("drawn", "drawn", "drawn", "counted", "counted")]
    assert asked == [True, True, False, True, False]


async def test_providers_that_count_no_more_are_forgotten() -> None:
    budget = RetryBudget(RetryBudgetConfig(minimum=0, ratio=1, window=10))
    held: list[int] = []
    tracemalloc.start()
    for round_ in range(12):
        for number in range(600):
            budget.first(f"counted {round_} {number}", asyncio.get_running_loop().time())
            budget.draw(f"drawn {round_} {number}")
        held.append(tracemalloc.get_traced_memory()[0])
        await asyncio.sleep(20)
    tracemalloc.stop()
    assert held[-1] < 1.2 * max(held[2:5])


@pytest.mark.parametrize("window", [0.5, 1.0, 30.0])
async def test_the_budgets_of_an_orchestrator_decide_as_the_windows_do(window: float) -> None:
    cfg, chance = RetryBudgetConfig(ratio=0.5, minimum=1, window=window), random.Random(11)
    budget, windows = RetryBudget(cfg), {"a": Window(), "b": Window()}
    allowed = 0
    for _ in range(1500):
        target, now = chance.choice("ab"), asyncio.get_running_loop().time()
        if chance.random() < 0.6:
            budget.first(target, now)
            windows[target] = first(windows[target], now, cfg)
        else:
            windows[target], expected = draw(windows[target], now, cfg)
            assert budget.draw(target) is expected
            allowed += expected
        await asyncio.sleep(chance.choice((0, 0, 0.002, 0.02)) * window)
    assert 100 < allowed < 500


def test_with_one_call_in_five_failing_at_random_nothing_is_refused_and_with_all_failing_the_load_stays_bounded() -> (
    None
):
    """100 calls a second, three attempts each, for a minute, on the default budget."""

    def load(fails: Iterator[bool]) -> tuple[float, float]:
        cfg, window = RetryBudgetConfig(), Window()
        made = answered = 0
        for number in range(6000):
            now = number / 100
            made += 1
            window = first(window, now, cfg)
            for attempt in itertools.count(1):
                if not next(fails):
                    answered += 1
                    break
                if attempt == 3:
                    break
                window, allowed = draw(window, now, cfg)
                if not allowed:
                    break
                made += 1
        return answered / 6000, made / 6000

    chance = random.Random(1)
    success, calls = load(chance.random() < 0.2 for _ in itertools.count())
    assert success >= 0.97
    assert calls <= 1.25
    success, calls = load(itertools.repeat(True))
    assert (success, calls <= 1.27) == (0, True)


@pytest.mark.parametrize("fields", [{"ratio": -0.1}, {"minimum": -1}, {"window": 0}, {"share": 0.2}])
def test_a_budget_that_cannot_be_used_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        RetryBudgetConfig(**fields)  # type: ignore[arg-type]
