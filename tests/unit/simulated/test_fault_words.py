"""The words for faults, and when each is due. No socket, no clock."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.providers.simulated.faults import (
    STATUSES,
    Fault,
    FaultPlan,
    decide,
    first_met,
    next_change,
    parse_fault,
    refusing,
)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("503", Fault(kind="503")),
        ("429:retry-after=1.5,rate=0.2", Fault(kind="429", retry_after="1.5", rate=0.2)),
        ("429:retry-after=date+2", Fault(kind="429", retry_after="date+2")),
        ("429:retry-after=soon,should-retry=false", Fault(kind="429", retry_after="soon", should_retry=False)),
        ("429:retry-after-ms=250", Fault(kind="429", retry_after_ms=250)),
        ("quota", Fault(kind="quota")),
        ("outage:from=2,to=30,as=refuse", Fault(kind="refuse", since=2.0, until=30.0)),
        ("outage:from=2,to=30", Fault(kind="503", since=2.0, until=30.0)),
        ("outage:from=0,to=1,as=429,retry-after=1", Fault(kind="429", since=0.0, until=1.0, retry_after="1")),
        ("stall:after=3,first=10", Fault(kind="stall", after=3, first=10)),
        (" reset : chunks = 2 , model = gpt-* ", Fault(kind="reset", chunks=2, model="gpt-*")),
        ("error-event:status=529", Fault(kind="error-event", status=529)),
        ("slow:seconds=0.5", Fault(kind="slow", seconds=0.5)),
        ("limit:requests=60", Fault(kind="limit", requests=60)),
    ],
)
def test_a_fault_is_read_from_its_words(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("5O3", "fault.kind", "use one of 400, 401"),
        ("", "fault.kind", "outage"),
        ("503:rate=2", "fault.rate", "from 0 to 1"),
        ("503:rate=nan", "fault.rate", "from 0 to 1"),
        ("503:rat=0.2", "fault.rat", "503 takes rate"),
        ("503:chunks=2", "fault.chunks", "503 takes"),
        ("refuse:first=2", "fault.first", "refuse takes after, from, to"),
        ("503:first=many", "fault.first", "whole number"),
        ("limit", "fault.requests", "how many per minute"),
        ("503:requests=6", "fault.requests", "503 takes"),
        ("503:after=-1", "fault.after", "whole number"),
        ("503:from=-1", "fault.from", "0 or more"),
        ("503:to=inf", "fault.to", "0 or more"),
        ("503:from=3,to=3", "fault.to", "later than from=3"),
        ("outage:from=2", "fault.to", "outage:from=2,to=30"),
        ("outage:to=2", "fault.from", "outage:from=2,to=30"),
        ("outage", "fault.from", "is missing; an outage needs both"),
        ("outage:from=1,to=2,as=storm", "fault.kind", "use one of"),
        ("503:rate", "fault", "KEY=VALUE"),
        ("503:rate=0.1,rate=0.2", "fault.rate", "once"),
        ("429:retry-after=\N{SNOWMAN}", "fault.retry-after", "ASCII"),
        ("429:retry-after=date+soon", "fault.retry-after", "seconds"),
        ("429:retry-after-ms=1.5", "fault.retry-after-ms", "whole number"),
        ("429:should-retry=yes", "fault.should-retry", "true or false"),
        ("error-event:status=200", "fault.status", "400"),
        ("stall:seconds=long", "fault.seconds", "seconds"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_way_out(text: str, field: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        parse_fault(text)
    assert caught.value.field == field


times = st.floats(0, 1000, allow_nan=False).map(lambda seconds: round(seconds, 3))
faults = st.one_of(
    st.builds(
        Fault,
        kind=st.sampled_from((*STATUSES, "quota")),
        rate=st.floats(0, 1),
        first=st.none() | st.integers(0, 100),
        after=st.integers(0, 100),
        since=times,
        until=st.just(math.inf) | times.map(lambda seconds: seconds + 1001),
        model=st.none() | st.sampled_from(("gpt-*", "demo")),
        retry_after=st.none() | st.sampled_from(("2", "1.5", "soon", "date+3")),
        retry_after_ms=st.none() | st.integers(0, 5000),
        should_retry=st.none() | st.booleans(),
    ),
    st.builds(Fault, kind=st.just("stall"), chunks=st.integers(0, 9), seconds=st.none() | times),
    st.builds(Fault, kind=st.just("error-event"), status=st.sampled_from(STATUSES).map(int)),
)


@given(faults)
def test_a_fault_written_out_reads_back_as_itself(fault: Fault) -> None:
    assert parse_fault(str(fault)) == fault


def due(plan: FaultPlan, numbers: range, now: float = 0.0, model: str | None = "m") -> list[str | None]:
    decided = [decide(plan, number, plan.chance(number), now, model) for number in numbers]
    return [None if fault is None else fault.kind for fault in decided]


def test_without_a_plan_nothing_happens() -> None:
    assert due(FaultPlan(), range(1, 4)) == [None] * 3


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    one, same, other = (due(FaultPlan.of("503:rate=0.5", seed), range(1, 101)) for seed in (7, 7, 8))
    assert one == same
    assert one != other


def test_a_rate_is_a_share_of_the_requests() -> None:
    hit = due(FaultPlan.of("503:rate=0.2", seed=1), range(1, 5001)).count("503")
    assert 900 <= hit <= 1100


def test_a_rate_of_nothing_never_hits_and_a_rate_of_all_always() -> None:
    assert due(FaultPlan.of("503:rate=0"), range(1, 500)) == [None] * 499
    assert due(FaultPlan.of("503:rate=1"), range(1, 500)) == ["503"] * 499


def test_what_meets_a_request_does_not_depend_on_the_requests_before_it() -> None:
    plan = FaultPlan.of(["503:rate=0.5", "reset:rate=0.5"], seed=3)
    assert due(plan, range(50, 60)) == due(plan, range(1, 60))[49:]


def test_another_fault_in_front_does_not_change_the_draws_of_the_one_behind() -> None:
    alone = due(FaultPlan.of(["drop:rate=0", "503:rate=0.3"], seed=3), range(1, 100))
    behind = due(FaultPlan.of(["drop:rate=0.2", "503:rate=0.3"], seed=3), range(1, 100))
    assert [kind for kind in behind if kind != "drop"] == [
        kind for kind, other in zip(alone, behind, strict=True) if other != "drop"
    ]


def test_after_skips_and_first_counts_from_there() -> None:
    assert due(FaultPlan.of("503:after=2,first=3"), range(1, 8)) == [None, None, "503", "503", "503", None, None]


def test_a_window_includes_its_beginning_and_not_its_end() -> None:
    plan = FaultPlan.of("outage:from=2,to=3")
    assert [due(plan, range(1, 2), now)[0] for now in (1.99, 2.0, 2.99, 3.0)] == [None, "503", "503", None]


def test_a_fault_for_some_models_leaves_the_others_and_the_unnamed_alone() -> None:
    plan = FaultPlan.of("503:model=gpt-*")
    assert [due(plan, range(1, 2), model=model)[0] for model in ("gpt-4o", "claude", None)] == ["503", None, None]


def test_the_first_fault_that_applies_is_the_one() -> None:
    plan = FaultPlan.of(["500:first=1", "503:first=2", "429"])
    assert due(plan, range(1, 5)) == ["500", "503", "429", "429"]


def test_refusing_is_no_answer_to_a_request_that_was_taken() -> None:
    plan = FaultPlan.of("refuse")
    assert decide(plan, 1, Random(0), 0.0) is None
    assert refusing(plan, 0, 0.0)


def test_nobody_listens_after_so_many_requests() -> None:
    plan = FaultPlan.of("refuse:after=2")
    assert [refusing(plan, taken, 0.0) for taken in (0, 1, 2, 3)] == [False, False, True, True]


def test_nobody_listens_during_an_outage_and_its_edges_are_known_beforehand() -> None:
    plan = FaultPlan.of(["outage:from=2,to=3,as=refuse", "outage:from=5,to=6,as=503"])
    assert [refusing(plan, 0, now) for now in (1.9, 2.0, 2.9, 3.0, 5.5)] == [False, True, True, False, False]
    assert [next_change(plan, now) for now in (0.0, 2.0, 3.0)] == [2.0, 3.0, None]


@pytest.mark.parametrize(
    ("faults", "seed", "number"),
    [
        (["503:rate=0.2"], 0, 14),
        (["503:rate=0.2,after=20"], 0, 21),
        (["503:rate=0"], 0, None),
        (["503:rate=0.2,from=3"], 0, None),
        (["503:rate=0.2,model=gpt-*"], 0, None),
    ],
)
def test_when_a_fault_with_a_rate_is_met_first_is_known_beforehand(
    faults: list[str], seed: int, number: int | None
) -> None:
    plan = FaultPlan.of(faults, seed)
    assert first_met(plan, plan.faults[0]) == number
