"""What a closed circuit counts, number by number: the streak, the slices, and what is evidence enough."""

from __future__ import annotations

from typing import Any

import pytest

from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerConfig
from steer_llm_sdk.reliability.tally import SLICES, SPANS, Counts, Rates, Streak, Tally, Trip


def config(**fields: Any) -> CircuitBreakerConfig:
    return CircuitBreakerConfig(**{"failure_threshold": 3, "window_size": 16, **fields})


EXACT, MANY = config(), config(failure_threshold=SPANS + 4)
RATES = config(
    failure_threshold=1000,
    window_size=10,
    failure_rate_threshold=0.5,
    slow_call_rate_threshold=0.8,
    minimum_throughput=4,
)
HALF = config(failure_threshold=1000, window_size=10, failure_rate_threshold=0.5, minimum_throughput=4)

# ── the streak ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cfg", "times", "spans"),
    [
        (EXACT, [0, 0, 0.5, 1.5], [(0, 2), (0.5, 1), (1.5, 1)]),
        (config(failure_threshold=SPANS), [0, 0.5], [(0, 1), (0.5, 1)]),
        (config(failure_threshold=SPANS + 1), [0, 0.5], [(0, 2)]),
        (MANY, [0, 1, 1.001, 2.001, 2.002], [(0, 2), (1.001, 2), (2.002, 1)]),
        (MANY, [0, 16], [(0, 1), (16, 1)]),
        (MANY, [0, 16, 16.5], [(16, 2)]),
        (MANY, [0, 16.001], [(16.001, 1)]),
    ],
)
def test_failures_are_kept_in_spans_of_a_sixteenth_or_one_by_one(
    cfg: CircuitBreakerConfig, times: list[float], spans: list[tuple[float, int]]
) -> None:
    streak = Streak()
    counted = [streak.add("a", at, cfg) for at in times]
    assert streak.spans == [(start, {"a": count}) for start, count in spans]
    assert counted[-1] == streak.total == streak.of("a") == sum(count for _, count in spans)


def test_a_streak_counts_by_part_and_forgets_by_part() -> None:
    streak = Streak()
    for at, part, count in ((0, "a", 1), (0, "b", 2), (0, "b", 1), (1, "b", 1), (2, "a", 4), (2, "a", 2)):
        streak.add(part, at, EXACT, count)
    assert (streak.total, streak.of("a"), streak.of("b"), streak.of("c")) == (11, 7, 4, 0)
    assert streak.parts == {"a", "b"}
    twin = streak.copy()
    streak.forget("b")
    assert streak == Streak(7, [(0, {"a": 1}), (2, {"a": 6})])
    streak.forget("c")
    assert streak.total == 7
    assert twin == Streak(11, [(0, {"a": 1, "b": 3}), (1, {"b": 1}), (2, {"a": 6})]), "a copy is its own"
    streak.clear()
    assert streak == Streak()
    assert twin.expire(16, EXACT) == 11
    assert twin.expire(16.5, EXACT) == 7
    assert twin == Streak(7, [(1, {"b": 1}), (2, {"a": 6})])
    assert twin.expire(100, EXACT) == 0
    assert twin == Streak()


def test_what_is_added_expires_what_is_older_than_the_window() -> None:
    streak = Streak()
    assert [streak.add("a", at, EXACT, 2) for at in (0, 0, 1, 16, 17, 33.5)] == [2, 4, 6, 8, 6, 2]
    assert streak.spans == [(33.5, {"a": 2})]


# ── the slices ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_counts_can_be_taken_out_and_copied() -> None:
    counts = Counts(10, 6, 3)
    twin = counts.copy()
    counts.take_out(Counts(4, 3, 1))
    assert (counts, twin) == (Counts(6, 3, 2), Counts(10, 6, 3))


@pytest.mark.parametrize(
    ("counts", "cfg", "too_many"),
    [
        (Counts(4, 2, 0), RATES, True),
        (Counts(3, 3, 3), RATES, False),
        (Counts(5, 2, 0), RATES, False),
        (Counts(5, 0, 4), RATES, True),
        (Counts(6, 0, 4), RATES, False),
        (Counts(4, 0, 4), HALF, False),
        (Counts(4, 4, 0), config(slow_call_rate_threshold=0.8, minimum_throughput=4), False),
    ],
)
def test_a_share_is_too_high_from_its_threshold_and_enough_calls_on(
    counts: Counts, cfg: CircuitBreakerConfig, too_many: bool
) -> None:
    assert counts.too_many(cfg) is too_many


def test_each_call_is_counted_once_for_all_for_its_part_and_in_its_slice() -> None:
    rates = Rates()
    for now, part, failed, slow in (
        *(
            (0.5, "a", True, False),
            (0.9, "a", True, True),
            (0.95, "a", False, True),
            (1.0, "b", False, True),
            (0.2, "a", False, False),
        ),
    ):
        own = rates.add(part, now, 10, failed, slow)
        assert own is rates.parts[part]
    assert (rates.newest, rates.whole) == (1, Counts(5, 2, 3))
    assert rates.parts == {"a": Counts(4, 2, 2), "b": Counts(1, 0, 1)}
    assert rates.ring[0] == {"a": Counts(3, 2, 2)}
    assert rates.ring[1] == {"b": Counts(1, 0, 1), "a": Counts(1, 0, 0)}, "a time that is past is taken for now"
    twin = rates.copy()
    rates.forget("a")
    rates.forget("c")
    assert (rates.whole, rates.parts) == (Counts(1, 0, 1), {"b": Counts(1, 0, 1)})
    assert [counted for counted in rates.ring if counted] == [{"b": Counts(1, 0, 1)}]
    assert twin.whole == Counts(5, 2, 3), "a copy is its own"
    assert (twin.newest, len(twin.ring)) == (1, SLICES)
    assert twin.ring[0] == {"a": Counts(3, 2, 2)}
    assert twin.parts == {"a": Counts(4, 2, 2), "b": Counts(1, 0, 1)}


@pytest.mark.parametrize(
    ("now", "kept"),
    [
        (9.99, {"a": 2, "b": 1}),
        (10.0, {"a": 1, "b": 1}),
        (11.0, {"b": 1}),
        (12.0, {}),
        (19.0, {}),
        (20.0, {}),
        (21.0, {}),
        (25.0, {}),
        (2e9, {}),
    ],
)
def test_what_is_older_than_ten_slices_is_taken_out_slice_by_slice(now: float, kept: dict[str, int]) -> None:
    rates = Rates()
    for at, part in ((0.0, "a"), (1.5, "a"), (2.0, "b")):
        rates.add(part, at, 10, True, True)
    rates.add("new", now, 10, False, False)
    assert {part: each.calls for part, each in rates.parts.items()} == {**kept, "new": 1}
    assert rates.whole == Counts(sum(kept.values()) + 1, sum(kept.values()), sum(kept.values()))
    assert rates.newest == int(now)


# ── what is enough ───────────────────────────────────────────────────────────────────────────────────────────────────


def play(cfg: CircuitBreakerConfig, calls: str, tally: Tally | None = None) -> tuple[Tally, list[Trip | None]]:
    """One call a second: its part, then f(ailed), F (failed slowly), o(k) or O (slowly)."""
    tally = tally or Tally()
    trips = []
    for now, (part, how) in enumerate(calls.split()):
        if how in "fF":
            trips.append(tally.failed(part, now, cfg, how == "F", 0.0))
        else:
            trips.append(tally.succeeded(part, now, cfg, how == "O"))
    return tally, trips


AB, ALONE = Trip(frozenset("ab")), Trip(frozenset("a"), alone=True)


@pytest.mark.parametrize(
    ("cfg", "calls", "trip"),
    [
        (EXACT, "af bf af", AB),
        (EXACT, "af af bo af", ALONE),
        (EXACT, "af bo af", None),
        (EXACT, "af ao af af", None),
        (EXACT, "af af bo ao af", None),
        (HALF, "ao ao af af", Trip(frozenset("a"))),
        (HALF, "ao ao ao af", None),
        (HALF, "af af", None),
        (HALF, "ao bf bf af", AB),
        (HALF, "af ao bf bo", None),
        (HALF, "bo bo bo bo af af af af", ALONE),
        (HALF, "bo bo bo ao af af af", ALONE),
        (HALF, "bo bo bf bf af af af", AB),
        (RATES, "aO aO aO aO", Trip(frozenset("a"))),
        (RATES, "aO aO aO ao", None),
        (RATES, "bo bO aO aO aO aO aO aO aO", AB),
        (RATES, "aO bO aO bO", AB),
    ],
)
def test_the_evidence_is_enough_for_all_or_for_one_part_alone(
    cfg: CircuitBreakerConfig, calls: str, trip: Trip | None
) -> None:
    assert play(cfg, calls)[1][-1] == trip


def test_what_is_forgotten_of_a_part_is_no_evidence_any_more() -> None:
    cfg = config(failure_threshold=100, failure_rate_threshold=0.9, minimum_throughput=100)
    tally, _ = play(cfg, "af af bo cf af")
    tally.failed("a", 5, config(failure_threshold=100), False, 7.0)
    tally.failed("c", 5, config(failure_threshold=100), False, 3.0)
    twin = tally.copy()
    tally.forget("a")
    assert tally.streak.parts == {"c"}
    assert (tally.aside, tally.asked) == ({}, {"c": 8.0})
    assert tally.rates is not None
    assert set(tally.rates.parts) == {"b", "c"}
    assert twin.aside == {"a": Streak(2, [(0, {"a": 2})])}, "a copy is its own"
    assert twin.asked == {"a": 12.0, "c": 8.0}
    assert twin.streak.of("a") == 2
    assert twin.rates is not None
    assert twin.rates.parts["a"].calls == 3
    assert Tally().copy() == Tally()


def test_the_latest_of_what_a_part_asked_for_counts_until_it_succeeds() -> None:
    tally, cfg = Tally(), config(failure_threshold=100)
    for now, asked in ((0, 50), (10, 20), (20, 0)):
        tally.failed("a", now, cfg, False, asked)
    tally.failed("b", 30, cfg, False, 5)
    assert tally.asked == {"a": 50, "b": 35}
    tally.succeeded("a", 31, cfg, False)
    assert tally.asked == {"b": 35}
    assert tally.aside == {"b": Streak(1, [(30, {"b": 1})])}
    assert tally.streak == Streak()
    tally.failed("c", 0.25, cfg, False, 0.5)
    assert tally.asked["c"] == 0.75
