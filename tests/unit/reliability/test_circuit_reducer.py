"""The circuit as a value: every transition, told by tables; then every short history, searched for a broken promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.reliability.circuit import (
    Circuit,
    CircuitState,
    Closed,
    HalfOpen,
    Open,
    Outcome,
    Permit,
    Refusal,
)
from steer_llm_sdk.reliability.circuit_breaker import CircuitBreakerConfig
from steer_llm_sdk.reliability.tally import SLICES, SPANS, Rates, Tally

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
OK, FAIL, NEUTRAL = Outcome.SUCCESS, Outcome.FAILURE, Outcome.NEUTRAL
CONFIG = CircuitBreakerConfig(
    failure_threshold=3, success_threshold=2, timeout=10, half_open_requests=2, window_size=60, probe_lease=5
)


@dataclass
class Play:
    """A circuit and a clock; `admit` keeps the permit, `report` hands it back."""

    cfg: CircuitBreakerConfig = CONFIG
    now: float = 0.0
    circuit: Circuit = field(default_factory=Circuit)

    def admit(self, part: str = "a") -> Permit:
        answer = self.ask(part)
        assert isinstance(answer, Permit), f"refused: {answer}"
        return answer

    def refused(self, part: str = "a") -> float:
        answer = self.ask(part)
        assert isinstance(answer, Refusal), f"admitted: {answer}"
        assert answer.retry_after is not None
        return answer.retry_after

    def ask(self, part: str = "a") -> Permit | Refusal:
        self.circuit, answer = self.circuit.admit(part, self.now, self.cfg)
        return answer

    def report(
        self, permit: Permit, outcome: Outcome, part: str = "a", *, took: float = 0.0, asked: float = 0.0
    ) -> None:
        self.circuit = self.circuit.report(permit, part, outcome, self.now, self.cfg, took=took, asked=asked)

    def call(self, outcome: Outcome, part: str = "a", *, took: float = 0.0, asked: float = 0.0) -> None:
        self.report(self.admit(part), outcome, part, took=took, asked=asked)

    def script(self, outcomes: str, part: str = "a") -> Play:
        """One call for each letter, a second apart: f(ailure), o(k), n(eutral)."""
        for letter in outcomes:
            self.call({"f": FAIL, "o": OK, "n": NEUTRAL}[letter], part)
            self.now += 1
        return self

    def state(self, part: str | None = None) -> CircuitState:
        return self.circuit.state(self.now, part)


# ── closed ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("", CLOSED),
        ("ff", CLOSED),
        ("fff", OPEN),
        ("ffoff", CLOSED),
        ("ffofff", OPEN),
        ("ffnf", OPEN),
        ("ffnnnn", CLOSED),
        ("nnnnnn", CLOSED),
        ("oooff", CLOSED),
        ("offoffoff", CLOSED),
    ],
)
def test_so_many_failures_in_a_row_open_it_and_a_success_begins_anew(outcomes: str, state: CircuitState) -> None:
    assert Play().script(outcomes).state() is state


@pytest.mark.parametrize(("gap", "state"), [(58, OPEN), (58.001, CLOSED)])
def test_a_failure_older_than_the_window_is_forgotten(gap: float, state: CircuitState) -> None:
    play = Play().script("f")  # at 0, the clock then shows 1
    play.call(FAIL)
    play.now += gap + 1
    play.call(FAIL)
    assert play.state() is state


def test_a_threshold_of_one_opens_at_the_first_failure() -> None:
    play = Play(CircuitBreakerConfig(failure_threshold=1))
    play.call(FAIL)
    assert play.state() is OPEN


# ── open ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def opened(cfg: CircuitBreakerConfig = CONFIG, *, by: tuple[str, ...] = ("a",)) -> Play:
    """Opened at 0 by failures of these parts in turn."""
    play = Play(cfg)
    for n in range(cfg.failure_threshold):
        play.call(FAIL, by[n % len(by)])
    assert play.state() is OPEN
    return play


def test_an_open_circuit_refuses_and_says_when_a_probe_is_due() -> None:
    play = opened()
    play.now = 4
    assert play.refused() == 6


def test_after_its_time_an_open_circuit_is_half_open_and_admits_a_probe() -> None:
    play = opened()
    play.now = 9.999
    assert play.state() is OPEN
    play.refused()
    play.now = 10
    assert play.state() is HALF_OPEN
    play.admit()
    assert play.state() is HALF_OPEN


def test_a_call_sent_before_it_opened_changes_nothing_when_it_comes_back() -> None:
    for outcome in Outcome:
        play = Play()
        late = play.admit()
        play.script("fff")
        before = play.circuit
        play.report(late, outcome)
        assert play.circuit == before


# ── half-open ────────────────────────────────────────────────────────────────────────────────────────────────────────


def half_open(cfg: CircuitBreakerConfig = CONFIG) -> Play:
    play = opened(cfg)
    play.now = cfg.timeout
    return play


@given(limit=st.integers(1, 12))
def test_exactly_as_many_of_fifty_callers_probe_as_may(limit: int) -> None:
    play = half_open(CONFIG.model_copy(update={"half_open_requests": limit}))
    answers = [play.ask() for _ in range(50)]
    assert sum(isinstance(answer, Permit) for answer in answers) == limit


def test_a_refused_caller_is_told_when_the_first_place_may_be_free() -> None:
    play = half_open()
    play.admit()
    play.now += 2
    play.admit()
    assert play.refused() == 3


def test_enough_successes_close_it() -> None:
    play = half_open()
    play.call(OK)
    assert play.state() is HALF_OPEN
    play.call(OK)
    assert play.state() is CLOSED


def test_a_reported_probe_gives_its_place_to_another() -> None:
    play = half_open()
    first, _ = play.admit(), play.admit()
    play.refused()
    play.report(first, OK)
    play.admit()
    play.refused()


def test_one_failed_probe_opens_it_again_for_the_whole_time() -> None:
    play = half_open()
    first, second = play.admit(), play.admit()
    play.report(first, OK)
    play.now += 1
    play.report(second, FAIL)
    assert play.refused() == 10


def test_the_other_probes_of_a_half_open_time_that_has_ended_change_nothing() -> None:
    for outcome in Outcome:
        play = half_open()
        first, late = play.admit(), play.admit()
        play.report(first, FAIL)
        before = play.circuit
        play.report(late, outcome)
        assert play.circuit == before


def test_a_probe_of_an_earlier_half_open_time_neither_closes_nor_opens_a_later_one() -> None:
    for outcome in Outcome:
        play = half_open()
        first, late = play.admit(), play.admit()
        play.report(first, FAIL)
        play.now += 10
        play.admit()
        before = play.circuit
        play.report(late, outcome)
        assert play.circuit == before


def test_a_cancelled_probe_frees_its_place_and_counts_for_nothing() -> None:
    play = half_open()
    probes = [play.admit(), play.admit()]
    play.refused()
    for probe in probes:
        play.report(probe, NEUTRAL)
    assert play.state() is HALF_OPEN
    assert [isinstance(play.ask(), Permit) for _ in range(3)] == [True, True, False]


def test_a_probe_that_never_reports_frees_its_place_when_its_lease_ends() -> None:
    play = half_open()
    play.admit()
    play.admit()
    play.now += 4.5
    play.refused()
    play.now += 0.5
    play.admit()


def test_a_probe_that_was_given_up_and_answers_after_all_changes_nothing() -> None:
    for outcome in Outcome:
        play = half_open()
        lost, _ = play.admit(), play.admit()
        play.now += 5
        play.admit()
        before = play.circuit
        play.report(lost, outcome)
        assert play.circuit == before


def test_a_probe_reported_twice_counts_once() -> None:
    play = half_open()
    probe = play.admit()
    play.report(probe, OK)
    play.report(probe, OK)
    assert play.state() is HALF_OPEN


def test_more_successes_than_places_are_collected_in_several_rounds() -> None:
    play = half_open(CONFIG.model_copy(update={"half_open_requests": 1, "success_threshold": 3}))
    states = []
    for _ in range(3):
        play.call(OK)
        states.append(play.state())
    assert states == [HALF_OPEN, HALF_OPEN, CLOSED]


def test_a_circuit_that_waits_for_no_time_still_limits_its_probes() -> None:
    play = Play(CONFIG.model_copy(update={"timeout": 0.0, "probe_lease": None})).script("fff")
    assert play.state() is HALF_OPEN
    assert [isinstance(play.ask(), Permit) for _ in range(4)] == [True, True, False, False]


def test_a_circuit_that_has_closed_counts_from_nothing() -> None:
    play = half_open().script("oo")
    assert play.script("ff").state() is CLOSED
    assert play.script("f").state() is OPEN


# ── localisation ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_part_is_admitted_once_as_an_early_probe() -> None:
    play = opened()
    play.refused("a")
    play.admit("b")
    assert play.refused("b") == 10
    play.refused("c")


def test_an_early_probe_that_succeeds_narrows_the_circuit_to_the_part_that_failed() -> None:
    play = opened()
    play.call(OK, "b")
    assert (play.state(), play.state("a"), play.state("b")) == (CLOSED, OPEN, CLOSED)
    assert play.refused("a") == 10
    play.script("oooo", "b")


def test_an_early_probe_that_fails_confirms_that_all_parts_are_down() -> None:
    play = opened()
    play.call(FAIL, "b")
    for part in "abc":
        play.refused(part)
        assert play.state(part) is OPEN


def test_an_early_probe_that_is_cancelled_may_be_made_again() -> None:
    play = opened()
    play.call(NEUTRAL, "b")
    play.call(OK, "c")
    assert (play.state(), play.state("a")) == (CLOSED, OPEN)


def test_an_early_probe_that_is_lost_may_be_made_again_when_its_lease_ends() -> None:
    play = opened()
    lost = play.admit("b")
    play.now = 4.999
    play.refused("b")
    play.now = 5
    play.admit("b")
    before = play.circuit
    play.report(lost, OK, "b")
    assert play.circuit == before


def test_where_several_parts_failed_there_is_no_early_probe() -> None:
    play = opened(by=("a", "b"))
    play.refused("c")


def test_an_observer_sees_that_another_part_would_be_admitted_early() -> None:
    play = opened()
    assert (play.state(), play.state("a"), play.state("b")) == (OPEN, OPEN, HALF_OPEN)
    probe = play.admit("b")
    assert play.state("b") is OPEN
    play.report(probe, FAIL, "b")
    assert play.state("b") is OPEN


def test_a_part_that_fails_among_the_successes_of_others_is_cut_off_alone() -> None:
    play = Play()
    for _ in range(2):
        play.call(FAIL, "a")
        play.call(OK, "b")
    assert play.state("a") is CLOSED
    play.call(FAIL, "a")
    assert (play.state(), play.state("a"), play.state("b")) == (CLOSED, OPEN, CLOSED)
    play.refused("a")
    play.admit("b")


def test_a_success_of_the_part_itself_begins_its_own_count_anew() -> None:
    play = Play()
    for _ in range(4):
        play.script("ff", "a")
        play.call(OK, "b")  # clears the count of the whole, not that of a
        play.call(OK, "a")
    assert (play.state(), play.state("a")) == (CLOSED, CLOSED)
    play.script("ff", "a")
    play.call(OK, "b")
    play.call(FAIL, "a")
    assert play.state("a") is OPEN


def test_what_a_part_that_was_cut_off_had_failed_does_not_count_against_the_others() -> None:
    play = Play()
    play.call(FAIL, "a")
    play.call(OK, "b")
    play.script("ff", "a")
    assert (play.state(), play.state("a")) == (CLOSED, OPEN)
    play.script("ff", "b")
    assert play.state() is CLOSED
    play.script("f", "b")
    assert play.state() is OPEN


def test_what_others_failed_still_counts_when_a_part_is_cut_off() -> None:
    play = Play()
    play.script("ff", "a")
    play.call(OK, "b")
    play.call(FAIL, "c")
    play.call(FAIL, "a")
    assert (play.state(), play.state("a")) == (CLOSED, OPEN)
    play.script("ff", "b")
    assert play.state() is OPEN


def test_the_failures_of_a_part_are_forgotten_after_the_window_among_the_successes_of_others_too() -> None:
    for gap, state in ((31, CLOSED), (30, OPEN)):
        play = Play(now=1000)
        for _ in range(3):
            play.call(FAIL, "a")
            play.call(OK, "b")
            play.now += gap
        play.now -= gap
        assert play.state("a") is state


def test_a_part_that_was_cut_off_is_probed_and_comes_back_alone() -> None:
    play = opened()
    play.call(OK, "b")
    play.now = 10
    assert play.state("a") is HALF_OPEN
    assert [isinstance(play.ask("a"), Permit) for _ in range(5)] == [True, True, False, False, False]
    play.now = 15
    play.call(OK, "a")
    play.call(OK, "a")
    assert (play.state(), play.state("a")) == (CLOSED, CLOSED)


def test_a_part_that_was_cut_off_and_fails_its_probe_stays_cut_off_alone() -> None:
    play = opened()
    play.call(OK, "b")
    play.now = 10
    play.call(FAIL, "a")
    assert (play.state(), play.state("a")) == (CLOSED, OPEN)
    assert play.refused("a") == 10


def test_late_answers_of_a_part_that_was_cut_off_change_nothing() -> None:
    for outcome in Outcome:
        play = Play()
        late = play.admit("a")
        play.script("fff", "a")
        play.call(OK, "b")
        before = play.circuit
        play.report(late, outcome, "a")
        assert play.circuit == before


def test_late_answers_of_any_part_from_before_a_circuit_was_narrowed_change_nothing() -> None:
    for outcome in Outcome:
        play = Play()
        late = play.admit("c")
        play.script("fff", "a")
        play.call(OK, "b")
        play.script("ff", "b")
        before = play.circuit
        play.report(late, outcome, "c")
        assert play.circuit == before


def test_the_probes_of_a_part_do_not_answer_for_its_later_time() -> None:
    play = opened()
    play.call(OK, "b")
    play.now = 10
    first, late = play.admit("a"), play.admit("a")
    play.report(first, FAIL, "a")
    play.now = 20
    play.admit("a")
    before = play.circuit
    play.report(late, OK, "a")
    play.report(late, FAIL, "a")
    assert play.circuit == before


def test_a_part_that_was_cut_off_waits_while_all_others_fail_too() -> None:
    play = opened()
    play.call(OK, "b")
    play.now = 5
    play.script("fff", "b")
    assert play.state() is OPEN
    play.now = 11
    play.refused("a")


def test_two_parts_can_be_cut_off_while_a_third_is_served() -> None:
    play = Play()
    for _ in range(3):
        play.call(FAIL, "a")
        play.call(OK, "c")
        play.call(FAIL, "b")
        play.call(OK, "c")
    assert [play.state(part) for part in "abc"] == [OPEN, OPEN, CLOSED]


def test_the_probes_after_the_time_may_come_from_any_part() -> None:
    play = opened()
    play.now = 10
    play.call(OK, "b")
    play.call(OK, "c")
    assert play.state("a") is CLOSED


def test_a_second_part_that_fails_its_probe_confirms_that_all_are_down() -> None:
    play = opened()
    play.now = 10
    play.call(FAIL, "b")
    play.refused("c")


# ── shares of the calls ──────────────────────────────────────────────────────────────────────────────────────────────

RATE = CircuitBreakerConfig(
    failure_threshold=1000, failure_rate_threshold=0.5, minimum_throughput=4, timeout=10, window_size=60
)
SLOW = CircuitBreakerConfig(
    failure_threshold=1000,
    slow_call_rate_threshold=0.5,
    slow_call_duration=3,
    minimum_throughput=4,
    success_threshold=1,
    timeout=10,
    window_size=60,
)


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("fff", CLOSED),
        ("ffff", OPEN),
        ("foof", OPEN),
        ("ffoo", CLOSED),  # a call that went well opens nothing
        ("ffoof", OPEN),
        ("ooooff", CLOSED),
        ("oooofff", CLOSED),
        ("oooooff", CLOSED),
        ("oofof", CLOSED),
        ("oofoff", OPEN),
        ("nnnnff", CLOSED),
    ],
)
def test_a_share_of_failures_of_enough_calls_opens_it(outcomes: str, state: CircuitState) -> None:
    assert Play(RATE).script(outcomes).state() is state


def test_without_the_option_no_share_of_failures_opens_it() -> None:
    assert Play(RATE.model_copy(update={"failure_rate_threshold": None})).script("fo" * 50).state() is CLOSED


@pytest.mark.parametrize(("calls", "threshold"), [(10, 0.1), (10, 0.3), (10, 0.7), (30, 0.1), (3, 1 / 3), (7, 1.0)])
def test_a_share_that_equals_the_threshold_is_enough(calls: int, threshold: float) -> None:
    cfg = RATE.model_copy(update={"failure_rate_threshold": threshold, "minimum_throughput": calls})
    failures = round(calls * threshold)
    assert Play(cfg).script("o" * (calls - failures) + "f" * failures).state() is OPEN
    assert Play(cfg).script("o" * (calls - failures + 1) + "f" * (failures - 1)).state() is CLOSED


def test_calls_older_than_the_window_count_for_no_share() -> None:
    for gap, state in ((50, OPEN), (61, CLOSED)):
        play = Play(RATE)
        for _ in range(3):
            play.call(FAIL)
        play.now = gap
        play.call(FAIL)
        assert play.state() is state


def test_the_window_slides_call_by_slice() -> None:
    play = Play(RATE.model_copy(update={"minimum_throughput": 1, "failure_rate_threshold": 0.9}))
    for second in range(0, 60, 6):  # ten successes, one in each slice
        play.now = second
        play.call(OK)
    for n in range(1, 9):  # each failure takes the place of the oldest success
        play.now = 54 + 6 * n
        play.call(FAIL)
        assert play.state() is CLOSED
    play.now += 6
    play.call(FAIL)
    assert play.state() is OPEN


@pytest.mark.parametrize(("took", "state"), [(3, CLOSED), (3.001, OPEN), (100, OPEN)])
def test_a_share_of_calls_slower_than_allowed_opens_it(took: float, state: CircuitState) -> None:
    play = Play(SLOW)
    for seconds in (0, took, 0, took):
        play.call(OK, took=seconds)
    assert play.state() is state


def test_a_slow_failure_is_a_slow_call_as_well() -> None:
    play = Play(SLOW)
    for outcome in (OK, OK, FAIL, FAIL):
        play.call(outcome, took=100 if outcome is FAIL else 0)
    assert play.state() is OPEN


def test_without_the_option_no_slow_call_counts() -> None:
    play = Play(SLOW.model_copy(update={"slow_call_rate_threshold": None}))
    for _ in range(10):
        play.call(OK, took=100)
    assert play.state() is CLOSED


def test_a_slow_probe_opens_it_again_where_slow_calls_count_and_else_closes_it() -> None:
    for threshold, state in ((0.5, OPEN), (None, CLOSED)):
        play = Play(SLOW)
        for _ in range(4):
            play.call(OK, took=100)
        play.cfg = SLOW.model_copy(update={"slow_call_rate_threshold": threshold})
        play.now = 10
        play.call(OK, took=100)
        assert play.state() is state


def test_a_success_does_not_begin_a_share_anew() -> None:
    assert Play(RATE).script("ffof").state() is OPEN


def test_a_circuit_that_has_closed_counts_its_shares_from_nothing() -> None:
    play = Play(RATE).script("ffff")
    play.now = 20
    assert play.script("oo").state() is CLOSED
    assert play.script("fff").state() is CLOSED


def test_all_failures_of_one_part_make_an_early_probe_of_another_possible() -> None:
    play = Play(RATE).script("ffff")
    play.call(OK, "b")
    assert (play.state(), play.state("a")) == (CLOSED, OPEN)


def test_a_part_whose_share_is_too_high_is_cut_off_alone_where_the_calls_of_others_went_well() -> None:
    play = Play(RATE)
    play.script("oooo", "b")
    play.script("ofof", "a")
    assert (play.state(), play.state("a"), play.state("b")) == (CLOSED, OPEN, CLOSED)


def test_where_the_calls_of_others_went_badly_as_well_the_provider_is_down() -> None:
    play = Play(RATE)
    for part in "ab":
        play.script("of", part)
    assert play.state() is OPEN
    play.refused("c")


def test_the_calls_of_a_part_that_was_cut_off_are_taken_out_of_the_share() -> None:
    play = Play(RATE)
    play.script("ofoooo", "b")
    play.script("ffff", "a")
    assert (play.state(), play.state("a")) == (CLOSED, OPEN)
    assert play.script("ff", "b").state() is CLOSED  # 3 of 8
    assert play.script("ff", "b").state() is OPEN  # 5 of 10


# ── how long it stays open ───────────────────────────────────────────────────────────────────────────────────────────

ESCALATING = CONFIG.model_copy(update={"timeout_factor": 2.0, "max_timeout": 35.0})


def test_each_failed_probe_makes_the_open_time_longer_up_to_the_maximum() -> None:
    play = opened(ESCALATING)
    times = []
    for _ in range(5):
        times.append(play.refused())
        play.now += times[-1]
        play.call(FAIL)
    assert times == [10, 20, 35, 35, 35]


def test_without_a_factor_the_open_time_stays_the_same() -> None:
    play = opened()
    for _ in range(3):
        assert play.refused() == 10
        play.now += 10
        play.call(FAIL)


@pytest.mark.parametrize(("healthy", "expected"), [(59, 20), (60, 10)])
def test_a_circuit_that_was_closed_for_a_window_begins_with_the_first_open_time_again(
    healthy: float, expected: float
) -> None:
    play = opened(ESCALATING)
    play.now = 10
    play.call(OK)
    play.call(OK)
    assert play.state() is CLOSED
    play.now += healthy
    for _ in range(3):
        play.call(FAIL)
    assert play.refused() == expected


def test_the_open_time_of_a_part_that_was_cut_off_alone_grows_too() -> None:
    play = opened(ESCALATING)
    play.call(OK, "b")
    play.now = 10
    play.call(FAIL, "a")
    assert play.refused("a") == 20
    play.now = 30
    play.call(OK, "a")
    play.call(OK, "a")
    for _ in range(3):
        play.call(OK, "b")
        play.call(FAIL, "a")
    assert play.refused("a") == 35


def test_an_open_time_beyond_every_number_is_the_maximum() -> None:
    play = opened(CONFIG.model_copy(update={"timeout_factor": 1e300, "max_timeout": 50.0}))
    for _ in range(3):
        play.now += play.refused()
        play.call(FAIL)
        assert play.refused() == 50


@pytest.mark.parametrize(("asked", "expected"), [(5, 10), (25, 25), (1e9, 35)])
def test_it_stays_open_as_long_as_a_failure_asked_for_within_the_maximum(asked: float, expected: float) -> None:
    for script in ("fff", "half"):
        play = Play(ESCALATING.model_copy(update={"timeout_factor": 1.0}))
        for _ in range(3):
            play.call(FAIL, asked=asked if script == "fff" else 0)
        if script == "half":
            play.now = 10
            play.call(FAIL, asked=asked)
        assert play.refused() == expected


def test_the_maximum_never_shortens_the_timeout() -> None:
    assert opened(CONFIG.model_copy(update={"max_timeout": 1.0})).refused() == 10


def test_what_an_earlier_failure_asked_for_counts_from_when_it_was_asked_and_a_success_takes_it_back() -> None:
    play = Play()
    play.call(FAIL, asked=30)
    play.now = 5
    play.call(FAIL)
    play.call(FAIL)
    assert play.refused() == 25
    play = Play()
    play.call(FAIL, asked=30)
    play.script("offf")
    assert play.refused() < 10


def test_an_early_probe_that_fails_and_asks_for_more_time_gets_it() -> None:
    play = opened()
    play.call(FAIL, "b", asked=40)
    assert play.refused() == 40


# ── leases that end with a deadline ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("within", "lease"), [(None, 5), (2.0, 2), (100.0, 5)])
def test_a_probe_holds_its_place_no_longer_than_its_caller_waits(within: float | None, lease: float) -> None:
    cfg = CONFIG.model_copy(update={"half_open_requests": 1})
    for part, start in (("b", 0.0), ("a", 10.0)):  # an early probe, and one after the time
        play = opened(cfg)
        play.now = start
        play.circuit, answer = play.circuit.admit(part, play.now, cfg, within=within)
        assert isinstance(answer, Permit)
        play.now = start + lease - 0.001
        play.refused(part)
        play.now = start + lease
        play.admit(part)


# ── panic ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def panic(play: Play, part: str = "a") -> Permit | Refusal:
    play.circuit, answer = play.circuit.admit(part, play.now, play.cfg, panic=True)
    return answer


def test_in_panic_one_early_probe_is_admitted_in_each_open_time() -> None:
    for outcome in (FAIL, NEUTRAL):
        play = opened()
        probe = panic(play)
        assert isinstance(probe, Permit)
        assert isinstance(panic(play), Refusal)
        play.report(probe, outcome)
        assert [isinstance(panic(play, part), Refusal) for part in "ab"] == [True, True]
        play.now = 10
        play.call(FAIL)
        assert isinstance(panic(play), Permit)


def test_in_panic_there_is_no_second_early_probe_beside_that_of_another_part() -> None:
    play = opened()
    play.call(FAIL, "b")
    assert isinstance(panic(play), Refusal)


@pytest.mark.parametrize(("threshold", "state"), [(1, CLOSED), (2, HALF_OPEN)])
def test_a_success_in_panic_is_the_first_of_those_that_close_it(threshold: int, state: CircuitState) -> None:
    play = opened(CONFIG.model_copy(update={"success_threshold": threshold}))
    probe = panic(play)
    assert isinstance(probe, Permit)
    play.report(probe, OK)
    assert play.state() is state


# ── every short history ──────────────────────────────────────────────────────────────────────────────────────────────

TINY = CircuitBreakerConfig(
    failure_threshold=2, success_threshold=1, timeout=2, half_open_requests=1, window_size=3, probe_lease=1
)


@dataclass(frozen=True)
class Sent:
    """A call under way: `lane` tells whose probe it is, None for an ordinary call; `until` is the end of its lease."""

    permit: Permit
    part: str
    lane: str | None
    until: float


@dataclass(frozen=True)
class World:
    circuit: Circuit
    now: float = 0.0
    sent: tuple[Sent, ...] = ()

    @property
    def key(self) -> str:
        """Two worlds with one key go on alike: clocks count from now, and numbers only tell apart."""
        names: dict[int, int] = {}

        def name(number: int) -> int:
            return names.setdefault(number, len(names))

        def lane(of: Closed | Open | HalfOpen) -> object:
            if isinstance(of, Closed):
                return "closed", name(of.generation)
            if isinstance(of, Open):
                early = of.early and (of.early[0], of.early[1] - self.now)
                return "open", name(of.generation), max(of.until - self.now, 0), sorted(of.blamed), early, of.confirmed
            probes = [(serial, end - self.now) for serial, end in of.probes]
            return "half", name(of.generation), sorted(of.blamed), of.confirmed, of.successes, probes

        circuit = self.circuit
        tally = circuit.tally
        streaks = sorted(
            (part, [(at - self.now, counts) for at, counts in streak.spans])
            for part, streak in [("", tally.streak), *tally.aside.items()]
        )
        narrowed = sorted((part, lane(of)) for part, of in circuit.narrowed.items())
        sent = [
            (name(s.permit.generation), s.permit.part, s.permit.serial, s.part, s.until - self.now) for s in self.sent
        ]
        return repr((lane(circuit.whole), narrowed, streaks, sent))


def admitted(world: World, part: str) -> World | None:
    circuit, answer = world.circuit.admit(part, world.now, TINY)
    if isinstance(answer, Refusal):
        assert circuit == world.circuit, "a refusal changes nothing"
        return None
    lane = None if answer.serial == 0 else f"{answer.part}@{answer.generation}"
    sent = Sent(answer, part, lane, world.now + TINY.lease)
    return replace(world, circuit=circuit, sent=(*world.sent, sent))


def reported(world: World, sent: Sent, outcome: Outcome) -> World:
    before = world.circuit
    circuit = before.report(sent.permit, sent.part, outcome, world.now, TINY)
    own = before.whole if sent.permit.part is None else before.narrowed.get(sent.permit.part)
    if own is None or own.generation != sent.permit.generation:
        assert circuit == before, "a report from an earlier generation has no effect"
    if outcome is NEUTRAL:
        assert health(circuit) == health(before), "a cancelled call says nothing"
    return replace(world, circuit=circuit, sent=tuple(other for other in world.sent if other is not sent))


def health(circuit: Circuit) -> object:
    """All that a call that says nothing must leave alone: everything but the probes under way."""

    def lane(of: Closed | Open | HalfOpen) -> object:
        if isinstance(of, Open):
            return replace(of, early=None)
        return replace(of, probes=()) if isinstance(of, HalfOpen) else of

    return lane(circuit.whole), {part: lane(of) for part, of in circuit.narrowed.items()}, circuit.tally


def steps(world: World) -> Iterator[World]:
    yield replace(world, now=world.now + 1)
    if len(world.sent) < 3:
        for part in "ab":
            after = admitted(world, part)
            if after is not None:
                yield after
    for sent in world.sent:
        for outcome in Outcome:
            yield reported(world, sent, outcome)


def check_probes(world: World) -> None:
    live: dict[str, int] = {}
    for sent in world.sent:
        if sent.lane is not None and world.now < sent.until:
            live[sent.lane] = live.get(sent.lane, 0) + 1
    assert all(count <= TINY.half_open_requests for count in live.values()), live


def check_liveness(world: World) -> None:
    """However it came to this: if the provider answers from now on, every part is soon served as usual."""
    for part in "ab":
        play = Play(TINY, world.now, world.circuit)
        for _ in range(8):
            play.now += 1
            answer = play.ask(part)
            if isinstance(answer, Permit):
                play.report(answer, OK, part)
        assert play.state(part) is CLOSED, f"{part} is never served again"


def test_no_short_history_breaks_a_promise() -> None:
    """Never more live probes of a generation than may be, no effect across generations, no effect of cancelled calls,
    and always a way back: over every sequence of admissions, outcomes, losses and seconds of two parts."""
    seen: set[str] = set()
    worlds = [World(Circuit())]
    for _ in range(9):
        found: dict[str, World] = {}
        for world in worlds:
            for after in steps(world):
                key = after.key
                if key not in seen:
                    seen.add(key)
                    found[key] = after
        worlds = list(found.values())
        for world in worlds:
            check_probes(world)
            check_liveness(world)
    assert len(seen) > 1000


# ── long histories of every option ───────────────────────────────────────────────────────────────────────────────────


def seconds(*values: float) -> st.SearchStrategy[float]:
    return st.sampled_from(values)


CONFIGS = st.builds(
    CircuitBreakerConfig,
    failure_threshold=st.sampled_from([1, 2, 3, 40]),
    success_threshold=st.integers(1, 3),
    timeout=seconds(0, 1, 10),
    half_open_requests=st.integers(1, 3),
    window_size=seconds(2, 60),
    probe_lease=st.none() | seconds(0.5, 5),
    failure_rate_threshold=st.none() | seconds(0.2, 0.5, 1),
    slow_call_rate_threshold=st.none() | seconds(0.5, 1),
    slow_call_duration=seconds(1),
    minimum_throughput=st.integers(1, 4),
    timeout_factor=seconds(1, 2),
    max_timeout=seconds(5, 50),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("tick"), seconds(0.1, 1, 5, 30)),
        st.tuples(st.just("admit"), st.sampled_from("abc"), st.none() | seconds(0.3, 3), st.booleans()),
        st.tuples(st.just("report"), st.integers(0, 9), st.sampled_from(Outcome), seconds(0, 2), seconds(0, 20)),
    ),
    max_size=60,
)


@given(cfg=CONFIGS, steps_=STEPS)
def test_no_history_of_any_configuration_breaks_a_promise(cfg: CircuitBreakerConfig, steps_: list[Any]) -> None:
    play = Play(cfg)
    sent: list[Sent] = []
    for kind, *how in steps_:
        before, as_it_was = play.circuit, repr(play.circuit)
        if kind == "tick":
            play.now += how[0]
        elif kind == "admit":
            part, within, in_panic = how
            play.circuit, answer = before.admit(part, play.now, cfg, within=within, panic=in_panic)
            if isinstance(answer, Refusal):
                assert play.circuit is before
            else:
                lane = None if answer.serial == 0 else f"{answer.part}@{answer.generation}"
                lease = cfg.lease if within is None else min(cfg.lease, within)
                sent.append(Sent(answer, part, lane, play.now + lease))
        elif sent:
            index, outcome, took, asked = how
            call = sent.pop(index % len(sent))
            play.report(call.permit, outcome, call.part, took=took, asked=asked)
            own = before.whole if call.permit.part is None else before.narrowed.get(call.permit.part)
            if own is None or own.generation != call.permit.generation:
                assert play.circuit == before, "a report from an earlier generation has no effect"
            if outcome is NEUTRAL:
                assert health(play.circuit) == health(before), "a cancelled call says nothing"
        assert repr(before) == as_it_was, "a circuit is a value"
        check_live_probes(play, sent)
    check_that_it_recovers(play)


def check_live_probes(play: Play, sent: list[Sent]) -> None:
    live = [call.lane for call in sent if call.lane is not None and play.now < call.until]
    assert all(live.count(lane) <= play.cfg.half_open_requests for lane in live)


def check_that_it_recovers(play: Play) -> None:
    """Within the rest of the open time and one lease, whoever calls is admitted, and served as usual ever after."""
    for part in "abc":
        again = Play(play.cfg, play.now, play.circuit)
        waits = 0.0
        while again.state(part) is not CLOSED:
            answer = again.ask(part)
            if isinstance(answer, Refusal):
                assert answer.retry_after is not None
                again.now += answer.retry_after + 1e-6
                waits += answer.retry_after
            else:
                again.report(answer, OK, part)
        assert waits <= 2 * (max(play.cfg.timeout, play.cfg.max_timeout) + play.cfg.lease)


# ── what is counted ──────────────────────────────────────────────────────────────────────────────────────────────────

HISTORY = st.lists(st.tuples(st.floats(0, 20), st.sampled_from("ffffo")), max_size=200)


@given(threshold=st.integers(1, 16), history=HISTORY)
def test_up_to_sixteen_failures_in_a_row_are_counted_exactly(threshold: int, history: list[tuple[float, str]]) -> None:
    cfg = CircuitBreakerConfig(failure_threshold=threshold, window_size=30)
    tally, now, failures = Tally(), 0.0, list[float]()
    for gap, outcome in history:
        now += gap
        if outcome == "o":
            tally.succeeded("a", now, cfg, False)
            failures = []
            continue
        failures = [at for at in [*failures, now] if now - at <= 30]
        trip = tally.failed("a", now, cfg, False, 0.0)
        assert (trip is not None) == (len(failures) >= threshold)
        if trip is not None:
            return


@given(threshold=st.integers(17, 60), gaps=st.lists(st.floats(0, 3), min_size=100, max_size=300))
def test_more_are_counted_to_a_sixteenth_of_the_window_and_never_an_older_one(
    threshold: int, gaps: list[float]
) -> None:
    cfg = CircuitBreakerConfig(failure_threshold=threshold, window_size=32)
    tally, now, failures = Tally(), 0.0, list[float]()
    for gap in gaps:
        now += gap
        failures.append(now)
        if tally.failed("a", now, cfg, False, 0.0) is not None:
            assert sum(now - at <= 32 for at in failures) >= threshold
            return
        assert sum(now - at <= 30 for at in failures) < threshold


@given(calls=st.lists(st.tuples(st.floats(0, 8), st.sampled_from("ab"), st.booleans()), max_size=200))
def test_the_calls_of_a_rate_are_those_of_nine_tenths_of_the_window_or_a_little_more(
    calls: list[tuple[float, str, bool]],
) -> None:
    rates, now, sent = Rates(), 0.0, list[tuple[float, str, bool]]()
    for gap, part, failed in calls:
        now += gap
        sent.append((now, part, failed))
        own = rates.add(part, now, 30.0, failed, False)
        for counts, whose in ((rates.whole, "ab"), (own, part)):
            fewest, most = (
                [(failed) for at, part, failed in sent if now - at < size and part in whose]
                for size in (26.999, 30.001)
            )
            assert len(fewest) <= counts.calls <= len(most)
            assert sum(fewest) <= counts.failed <= sum(most)


def test_what_is_kept_does_not_grow_with_what_is_counted() -> None:
    cfg = CircuitBreakerConfig(failure_threshold=10**6, failure_rate_threshold=1, minimum_throughput=10**6)
    tally = Tally()
    for n in range(20_000):
        tally.failed("a", n / 100, cfg, False, 0.0)
    assert tally.streak.total > 5000
    assert len(tally.streak.spans) <= SPANS + 1
    assert rates_kept(tally) <= SLICES


def rates_kept(tally: Tally) -> int:
    assert tally.rates is not None
    return sum(len(counted) for counted in tally.rates.ring)


# ── every move, field by field ───────────────────────────────────────────────────────────────────────────────────────

A, B = frozenset("a"), frozenset("b")
DOUBLE = CONFIG.model_copy(update={"timeout_factor": 2.0, "max_timeout": 300.0})
HALF = HalfOpen(6, A, probes=((8, 14.0), (9, 20.0)), relapses=2)
NARROWED = Circuit(
    whole=Closed(4), narrowed={"a": Open(5, 10.0, A, confirmed=True, relapses=1)}, serial=9, generation=5
)
OPENED = Circuit(whole=Open(3, 50.0, A, relapses=1), serial=7, generation=3)


@pytest.mark.parametrize(
    ("moved", "lane"),
    [
        (lambda: Closed(4, 100, 2).tripped(A, 110, 0, DOUBLE), Open(5, 150, A, relapses=2)),
        (lambda: Closed(4, 100, 2).tripped(A, 110, 55, DOUBLE), Open(5, 165, A, relapses=2)),
        (lambda: Closed(4, 0, 2).tripped(A | B, 60, 0, DOUBLE), Open(5, 70, A | B)),
        (lambda: Closed(4, 0, 2).tripped(A, 59.9, 0, DOUBLE), Open(5, 99.9, A, relapses=2)),
        (lambda: Open(5, 150, A, (3, 9), True, 2, True, True).half_open(), HalfOpen(6, A, True, relapses=2)),
        (lambda: HALF.reported(Permit(6, serial=9), "a", FAIL, 12, DOUBLE, 0), Open(7, 92, A, relapses=3)),
        (lambda: HALF.reported(Permit(6, serial=9), "a", FAIL, 12, DOUBLE, 90), Open(7, 102, A, relapses=3)),
        (
            lambda: HALF.reported(Permit(6, serial=8), "b", FAIL, 12, DOUBLE, 0),
            Open(7, 92, A | B, confirmed=True, relapses=3),
        ),
        (
            lambda: replace(HALF, confirmed=True).reported(Permit(6, serial=9), "a", FAIL, 12, DOUBLE, 0),
            Open(7, 92, A, confirmed=True, relapses=3),
        ),
        (lambda: HALF.reported(Permit(6, serial=9), "a", NEUTRAL, 12, DOUBLE, 0), replace(HALF, probes=((8, 14.0),))),
        (
            lambda: HALF.reported(Permit(6, serial=8), "a", OK, 12, DOUBLE, 0),
            replace(HALF, probes=((9, 20.0),), successes=1),
        ),
        (lambda: replace(HALF, successes=1).reported(Permit(6, serial=9), "a", OK, 12, DOUBLE, 0), Closed(7, 12, 3)),
        (lambda: HALF.reported(Permit(6, serial=7), "a", FAIL, 12, DOUBLE, 0), HALF),
    ],
)
def test_a_lane_moves_to_the_next_generation_with_what_it_knows(moved: Callable[[], object], lane: object) -> None:
    assert moved() == lane


def test_a_place_is_free_when_its_lease_ends() -> None:
    assert HALF.live(13.9) == ((8, 14.0), (9, 20.0))
    assert HALF.live(14) == ((9, 20.0),)


@pytest.mark.parametrize(
    ("lane", "now", "early", "panic"),
    [
        (Open(1, 10, A), 9.9, True, True),
        (Open(1, 10, A), 10, False, False),
        (Open(1, 10, B), 5, False, True),
        (Open(1, 10, A | frozenset("c")), 5, False, True),
        (Open(1, 10, A, early=(3, 6)), 5.9, False, True),
        (Open(1, 10, A, early=(3, 6), probed=True), 6, True, False),
        (Open(1, 10, A, confirmed=True), 5, False, True),
        (Open(1, 10, A, probed=True, panicked=True), 5, False, False),
    ],
)
def test_who_may_probe_an_open_lane_before_its_time(lane: Open, now: float, early: bool, panic: bool) -> None:
    assert (lane.admits_early("b", now), lane.admits_in_panic(now)) == (early, panic)


@pytest.mark.parametrize(
    ("circuit", "asked", "moved", "answer"),
    [
        (Circuit(), ("a", 1.0), Circuit(), Permit(0)),
        (Circuit(whole=Closed(4)), ("a", 1.0), Circuit(whole=Closed(4)), Permit(4)),
        (NARROWED, ("b", 12.0), NARROWED, Permit(4)),
        (NARROWED, ("a", 9.0), NARROWED, Refusal(1.0)),
        (
            NARROWED,
            ("a", 12.0),
            replace(
                NARROWED,
                narrowed={"a": HalfOpen(6, A, True, probes=((9, 17.0),), relapses=1)},
                serial=10,
                generation=6,
            ),
            Permit(6, "a", 9),
        ),
        (
            OPENED,
            ("b", 20.0),
            replace(OPENED, whole=Open(3, 50.0, A, early=(7, 25.0), relapses=1, probed=True), serial=8),
            Permit(3, serial=7),
        ),
        (OPENED, ("a", 20.0), OPENED, Refusal(30.0)),
        (replace(OPENED, narrowed={"b": Open(2, 0.0, B)}), ("b", 20.0), None, Refusal(30.0)),
        (
            OPENED,
            ("a", 50.0),
            replace(OPENED, whole=HalfOpen(4, A, probes=((7, 55.0),), relapses=1), serial=8, generation=4),
            Permit(4, serial=7),
        ),
        (Circuit(whole=HALF, generation=6), ("a", 13.5), None, Refusal(0.5)),
        (
            Circuit(whole=HALF, serial=10, generation=9),
            ("a", 14.0),
            Circuit(whole=replace(HALF, probes=((9, 20.0), (10, 19.0))), serial=11, generation=9),
            Permit(6, serial=10),
        ),
    ],
)
def test_who_is_admitted_and_what_that_changes(
    circuit: Circuit, asked: tuple[str, float], moved: Circuit | None, answer: object
) -> None:
    assert circuit.admit(*asked, CONFIG) == (circuit if moved is None else moved, answer)


def test_in_panic_the_permit_is_noted_as_such() -> None:
    lane = Open(3, 50.0, A, early=(7, 22.0), relapses=1, probed=True, panicked=True)
    assert OPENED.admit("a", 20.0, CONFIG, within=2, panic=True) == (
        replace(OPENED, whole=lane, serial=8),
        Permit(3, serial=7),
    )
    assert not OPENED.admit("b", 20.0, CONFIG, panic=True)[0].whole.panicked  # type: ignore[union-attr]


EARLY = replace(OPENED, whole=Open(3, 50.0, A, early=(7, 25.0), relapses=1, probed=True), serial=8)
PANICKED = replace(EARLY, whole=replace(EARLY.whole, panicked=True))
PROBED = Circuit(
    whole=Closed(4),
    narrowed={"a": HalfOpen(6, A, True, probes=((9, 17.0),), relapses=1), "c": Open(1, 2.0, frozenset("c"))},
    serial=10,
    generation=6,
)


@pytest.mark.parametrize(
    ("circuit", "permit", "part", "outcome", "asked", "moved"),
    [
        (
            EARLY,
            Permit(3, serial=7),
            "b",
            OK,
            0.0,
            Circuit(
                whole=Closed(4, 21.0),
                narrowed={"a": Open(5, 50.0, A, confirmed=True, relapses=1)},
                serial=9,
                generation=5,
            ),
        ),
        (
            EARLY,
            Permit(3, serial=7),
            "b",
            FAIL,
            40.0,
            replace(EARLY, whole=Open(3, 61.0, A | B, confirmed=True, relapses=1, probed=True)),
        ),
        (
            EARLY,
            Permit(3, serial=7),
            "b",
            FAIL,
            1e9,
            replace(EARLY, whole=Open(3, 321.0, A | B, confirmed=True, relapses=1, probed=True)),
        ),
        (
            EARLY,
            Permit(3, serial=7),
            "b",
            FAIL,
            0.0,
            replace(EARLY, whole=Open(3, 50.0, A | B, confirmed=True, relapses=1, probed=True)),
        ),
        (EARLY, Permit(3, serial=7), "b", NEUTRAL, 0.0, replace(EARLY, whole=replace(EARLY.whole, early=None))),
        (EARLY, Permit(3, serial=6), "b", OK, 0.0, EARLY),
        (OPENED, Permit(3, serial=7), "b", OK, 0.0, OPENED),
        (
            PANICKED,
            Permit(3, serial=7),
            "a",
            OK,
            0.0,
            replace(PANICKED, whole=HalfOpen(4, A, successes=1, relapses=1), serial=9, generation=4),
        ),
        (
            PANICKED,
            Permit(3, serial=7),
            "a",
            FAIL,
            0.0,
            replace(PANICKED, whole=replace(PANICKED.whole, early=None)),
        ),
        (
            Circuit(whole=HALF, serial=10, generation=6),
            Permit(6, serial=9),
            "b",
            FAIL,
            0.0,
            Circuit(whole=Open(7, 101.0, A | B, confirmed=True, relapses=3), serial=11, generation=7),
        ),
        (
            PROBED,
            Permit(6, "a", 9),
            "a",
            FAIL,
            70.0,
            replace(
                PROBED,
                narrowed={**PROBED.narrowed, "a": Open(7, 91.0, A, confirmed=True, relapses=2)},
                serial=11,
                generation=7,
            ),
        ),
        (
            PROBED,
            Permit(6, "a", 9),
            "a",
            OK,
            0.0,
            replace(
                PROBED,
                narrowed={**PROBED.narrowed, "a": HalfOpen(6, A, True, successes=1, relapses=1)},
                serial=11,
            ),
        ),
        (PROBED, Permit(6, "a", 8), "a", OK, 0.0, PROBED),
        (PROBED, Permit(5, "a", 9), "a", OK, 0.0, PROBED),
        (PROBED, Permit(6, "b", 9), "b", OK, 0.0, PROBED),
        (PROBED, Permit(6, "c", 9), "c", OK, 0.0, PROBED),
    ],
)
def test_what_a_report_changes(
    circuit: Circuit, permit: Permit, part: str, outcome: Outcome, asked: float, moved: Circuit
) -> None:
    after = circuit.report(permit, part, outcome, 21.0, DOUBLE, asked=asked)
    assert after == moved
    assert circuit.record(permit, part, outcome, 21.0, DOUBLE, 0.0, asked) == moved


@pytest.mark.parametrize(
    ("factor", "recovered"), [(1.0, {"d": Closed(3)}), (2.0, {"d": Closed(3), "a": Closed(7, 21.0, 2)})]
)
def test_a_part_that_comes_back_is_remembered_where_its_next_time_depends_on_it(
    factor: float, recovered: dict[str, Closed]
) -> None:
    cfg = CONFIG.model_copy(update={"success_threshold": 1, "timeout_factor": factor})
    circuit = replace(PROBED, recovered={"d": Closed(3)})
    assert circuit.report(Permit(6, "a", 9), "a", OK, 21.0, cfg) == replace(
        circuit, narrowed={"c": PROBED.narrowed["c"]}, recovered=recovered, serial=11, generation=7
    )


def test_a_success_in_panic_that_is_enough_closes_it_from_then_on() -> None:
    cfg = DOUBLE.model_copy(update={"success_threshold": 1})
    assert PANICKED.report(Permit(3, serial=7), "a", OK, 21.0, cfg).whole == Closed(5, 21.0, 2)


def test_a_part_that_fails_again_soon_is_cut_off_for_longer() -> None:
    cfg = DOUBLE.model_copy(update={"failure_threshold": 2})
    circuit = Circuit(whole=Closed(4), recovered={"a": Closed(7, 90.0, 2)}, serial=11, generation=7)
    for now, part, outcome in ((91.0, "a", FAIL), (92.0, "b", OK), (93.0, "a", FAIL)):
        circuit = circuit.report(Permit(4), part, outcome, now, cfg, asked=0.0)
    assert circuit.narrowed == {"a": Open(8, 133.0, A, confirmed=True, relapses=2)}
    assert (circuit.whole, circuit.generation, circuit.tally) == (Closed(4), 8, Tally())


def test_what_opens_it_empties_the_tally_and_takes_the_next_generation() -> None:
    circuit = Circuit(whole=Closed(4, 0.0, 1), serial=11, generation=9)
    for part in "aba":
        circuit = circuit.report(Permit(4), part, FAIL, 30.0, DOUBLE, asked=25.0 if part == "b" else 0.0)
    assert circuit == Circuit(whole=Open(5, 55.0, A | B, relapses=1), serial=12, generation=9)


def test_a_report_leaves_the_circuit_before_it_as_it_was() -> None:
    circuit = Circuit()
    after = circuit.report(Permit(0), "a", FAIL, 1.0, CONFIG)
    assert circuit == Circuit()
    assert after.tally.streak.total == 1
    assert after.record(Permit(0), "a", FAIL, 2.0, CONFIG) is after
    assert after.tally.streak.total == 2
    assert after.tally.asked == {}


def test_a_call_of_which_no_time_is_told_was_not_slow() -> None:
    cfg = CONFIG.model_copy(
        update={"slow_call_duration": 0.5, "slow_call_rate_threshold": 0.5, "minimum_throughput": 100}
    )
    circuit = Circuit().report(Permit(0), "a", OK, 1.0, cfg)
    circuit = circuit.record(Permit(0), "a", OK, 1.0, cfg).record(Permit(0), "a", OK, 1.0, cfg, 0.5)
    assert circuit.tally.rates is not None
    assert circuit.tally.rates.whole.slow == 0
    half = Circuit(whole=HALF, serial=10, generation=6)
    assert half.report(Permit(6, serial=9), "a", OK, 12.0, cfg, took=0.5).state(12.0) is HALF_OPEN
    assert half.report(Permit(6, serial=9), "a", OK, 12.0, cfg, took=0.501).state(12.0) is OPEN


def test_with_nothing_asked_for_it_is_open_for_its_own_time_however_short() -> None:
    play = Play(CircuitBreakerConfig(failure_threshold=1, timeout=0.5))
    play.call(FAIL)
    assert play.refused() == 0.5


def test_a_part_with_a_lane_of_its_own_is_not_admitted_early() -> None:
    circuit = replace(OPENED, narrowed={"b": Open(2, 0.0, B)})
    assert (circuit.state(20.0, "b"), circuit.state(20.0, "c")) == (OPEN, HALF_OPEN)
    assert (circuit.generations("b"), circuit.generations("c")) == ((3, 2), (3, None))
