"""What stopping and confidence promise, checked against enumeration and exact arithmetic; then defects are planted.

Every sequence of up to six votes, invalid ones among them; the urn draw by draw in whole numbers; every order of draws
in which a certificate would be wrong; calibrators of made-up labels; bundles in virtual time. Then defects are planted,
in memory, one at a time: each must break a promise.

    sh scripts/prove evidence
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement, product
from typing import Any
from unittest.mock import patch

from steer_llm_sdk.errors import BudgetExceeded
from steer_llm_sdk.evidence import Calibrator, _field_votes, confidence, should_stop, stopping
from steer_llm_sdk.evidence._field_votes import FieldVotes
from steer_llm_sdk.evidence.stopping import THETAS, Standing, is_certified, will_keep
from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle
from steer_llm_sdk.orchestration.tools import _bundle, _progress
from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.testing import VirtualTimeLoop

Votes = Sequence[Hashable]
PROMISES: list[Callable[[], None]] = []
DEFECTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {}


def promise(check: Callable[[], None]) -> Callable[[], None]:
    PROMISES.append(check)
    return check


def defect(plant: Callable[[], AbstractContextManager[Any]]) -> Callable[[], AbstractContextManager[Any]]:
    DEFECTS[plant.__name__.replace("_", " ")] = plant
    return plant


def holds(fact: bool, what: object = "") -> None:
    if not fact:
        raise AssertionError(what)


# ── what is promised ─────────────────────────────────────────────────────────────────────────────────────────────────


@promise
def curtailment_is_exact() -> None:
    """It stops where no future takes the lead away, and at the first such moment."""
    for n in range(6):
        for votes in product(("a", "b", "c", None), repeat=n):
            for k in range(max(n, 1), 7):
                found = should_stop(votes, k)
                if found.reason != "too_many_invalid":
                    holds((found.reason == "decided") == _led_in_every_future(votes, k), (votes, k, found))


def _led_in_every_future(votes: Votes, k: int) -> bool:
    tally = Counter(vote for vote in votes if vote is not None)
    if not tally:
        return False
    leader = max(tally, key=tally.__getitem__)
    for future in combinations_with_replacement([*tally, "unseen", None], k - len(votes)):
        final = tally + Counter(vote for vote in future if vote is not None)
        if any(final[other] >= final[leader] for other in final if other != leader):
            return False
    return True


@promise
def stability_is_that_of_the_urn() -> None:
    for counts in ((1,), (2,), (3,), (2, 1), (3, 1), (2, 2), (3, 1, 1), (2, 1, 1, 1), (4, 2)):
        for left in range(5):
            exact = float(max(Fraction(0), _kept(counts, left)))
            holds(abs(will_keep(counts, left) - exact) < 1e-9, (counts, left))


def _kept(counts: Sequence[int], left: int) -> Fraction:
    @cache
    def overtaking(standing: tuple[int, ...], theta: Fraction, draws: int) -> Fraction:
        if draws == 0:
            return Fraction(sum(votes > standing[0] for votes in standing[1:]))
        grown = [(*standing[:i], votes + 1, *standing[i + 1 :]) for i, votes in enumerate(standing)]
        seen = sum(v * overtaking(g, theta, draws - 1) for v, g in zip(standing, grown, strict=True))
        return (seen + theta * overtaking((*standing, 1), theta, draws - 1)) / (sum(standing) + theta)

    thetas = [Fraction(str(theta)) for theta in THETAS]
    odds = [
        theta ** len(counts) / math.prod((theta + i for i in range(sum(counts))), start=Fraction(1)) for theta in thetas
    ]
    expected = [overtaking(tuple(counts), theta, left) for theta in thetas]
    return 1 - sum((o * e for o, e in zip(odds, expected, strict=True)), Fraction(0)) / sum(odds)


@promise
def it_stops_by_the_risk_and_needs_as_many_as_it_says() -> None:
    rng = random.Random(0)
    for _ in range(300):
        k, rule, risk = rng.randint(1, 12), rng.choice(stopping.RULES), rng.choice((0.01, 0.05, 0.2))
        votes = rng.choices("aaabc", k=rng.randrange(k + 1))
        found = should_stop(votes, k, rule=rule, risk=risk)
        if rule == "pcurtail" and len(votes) < k:
            tally = sorted(Counter(votes).values(), reverse=True)
            holds(found.stop == (bool(votes) and will_keep(tally, k - len(votes)) >= 1 - risk), (votes, k, risk))
        leader = found.leader or "a"
        ways = votes_against if rule == "certified" else votes_for
        stops = [
            any(should_stop([*votes, *more], k, rule=rule, risk=risk).stop for more in ways(votes, leader, m))
            for m in range(k - len(votes) + 1)
        ]
        holds(found.need == stops.index(True), (votes, k, rule, found, stops))


def votes_for(votes: Sequence[str], leader: str, number: int) -> Iterator[list[str | None]]:
    yield [leader] * number


def votes_against(votes: Sequence[str], leader: str, number: int) -> Iterator[list[str | None]]:
    """A certificate is given up, too, where votes for others, or for nobody, have put it out of reach."""
    for against in range(number + 1):
        for other in sorted({*votes, "another"} - {leader}):
            for others in range(against + 1):
                yield [*[leader] * (number - against), *[other] * others, *[None] * (against - others)]


@promise
def a_wrong_certificate_comes_with_probability_at_most_delta() -> None:
    for delta in (0.05, 0.2):
        open_states: dict[tuple[int, ...], float] = {(): 1.0}
        wrong = 0.0
        for n in range(1, 61):
            after: Counter[tuple[int, ...]] = Counter()
            for counts, probability in open_states.items():
                for index in range(min(len(counts) + 1, 2)):
                    seen = index < len(counts)
                    grown = tuple(c + (i == index) for i, c in enumerate(counts)) if seen else (*counts, 1)
                    after[grown] += probability * (0.5 if seen else (2 - len(counts)) / 2)
            open_states = {}
            for counts, probability in after.items():
                rank = counts.index(max(counts)) + 1
                if is_certified(Standing(tuple(sorted(counts, reverse=True)), n, 60, "x", rank), delta):
                    wrong += probability
                else:
                    open_states[counts] = probability
        holds(0 < wrong <= delta * 0.7, (delta, wrong))
    holds(not is_certified(Standing((8,), 8, 10, "a", 1), 0.05))
    holds(is_certified(Standing((9,), 9, 10, "a", 1), 0.05))


@promise
def nothing_is_certain_and_no_promise_is_more_than_labels_bear_out() -> None:
    for n in (5, 20, 100, 2000):
        trust = Calibrator.fit([["a"] * 5] * n, [True] * n, k=5, model="m").trust(["a"] * 5)
        holds(trust < 1, trust)
        holds(trust <= max(0.9, n / (n + 1)), (n, trust))
    holds(Calibrator.fit([["a"] * 5] * 60, [True] * 60, k=5, model="m").trust(["a"] * 5) >= 0.95)


@promise
def trust_is_refused_across_models_k_and_rules() -> None:
    made = Calibrator.fit([["a"]], [True], k=3, model="m", rule="curtail")
    for given in ({"model": "other"}, {"k": 4}, {"rule": "pcurtail"}):
        try:
            made.check(**given)  # type: ignore[arg-type]
        except ValueError:
            continue
        raise AssertionError(given)
    made.check(model="m", k=3, rule="curtail")


@promise
def without_labels_it_says_so() -> None:
    blank = Calibrator.fit([], [], k=3, model="m")
    holds(blank.report()["status"] == "uncalibrated" and not blank.calibrated)


@promise
def trust_is_what_comes_true() -> None:
    """Of made-up questions, also for a task that was not labelled, and as a report says of itself."""
    votes, correct = _questions(1500, 1)
    fresh, right = _questions(3000, 2)
    for n in (300, 1500):
        made = Calibrator.fit(votes[:n], correct[:n], k=10, model="m")
        told = [(made.trust(each), good) for each, good in zip(fresh, right, strict=True)]
        holds(confidence.expected_calibration_error(told) < 0.05, (n, confidence.expected_calibration_error(told)))
        holds(abs((made.brier or 0) - sum((t - g) ** 2 for t, g in told) / len(told)) < 0.04, made.brier)
        order = [made.trust(["a"] * m + ["b"] * (10 - m)) for m in range(5, 11)]
        holds(order == sorted(order) and order[-1] > order[0] + 0.2, order)
    holds(confidence.expected_calibration_error([(0.9, False)] * 10) > 0.8)
    alike = [["a"] * 5] * 200, [number % 25 != 0 for number in range(200)]
    one, more = (Calibrator.fit(*alike, k=5, model="m", tasks=given) for given in (None, ["one"] * 200))
    holds(more.trust(["a"] * 5) < 0.95 < one.trust(["a"] * 5), (more.report(), one.report()))


def _questions(n: int, seed: int, skill: float = 0.0) -> tuple[list[list[Hashable]], list[bool]]:
    rng = random.Random(seed)
    votes, correct = [], []
    for _ in range(n):
        p = rng.betavariate(2, 1)
        drawn: list[Hashable] = ["a" if rng.random() < p else rng.choice("bcde") for _ in range(10)]
        votes.append(drawn)
        correct.append(rng.random() < 1 / (1 + math.exp(-(0.45 * drawn.count("a") - 2 + skill))))
    return votes, correct


@promise
def a_bundle_asks_in_vain_for_nothing_and_loses_nothing() -> None:
    rng = random.Random(3)
    for number in range(150):
        k, rule = rng.randint(2, 10), rng.choice(("curtail", "pcurtail"))
        said = [rng.choice([{"x": 1, "y": [2]}, {"x": 1, "y": [3]}, {"x": 1}, "b", None]) for _ in range(k)]
        if not any(said):
            continue
        after = [rng.uniform(0.1, 9) for _ in said]
        early, asked, cancelled = _run(said, after, {"k": k, "stop": rule})
        holds((asked, cancelled) == (len(early.replicates), 0), (number, asked, cancelled))
        full, all_asked, _ = _run(said, after, {"k": k, "latency": "min"})
        holds(all_asked == k)
        if rule == "curtail" and early.meta.early_stopped:
            holds(early.summary.consensus == full.summary.consensus, (said, early.summary, full.summary))
        stopping_now = early.metadata["stopping"]
        holds(stopping_now["asked"] == asked and len(stopping_now["trace"]) == asked)
        holds(abs(stopping_now["cost_saved_usd"] - (k - asked) * 0.01) < 1e-9)
    unanimous, asked, _ = _run(["a"] * 10, [1.0] * 10, {"k": 10, "stop": "pcurtail"})
    holds(asked == 3 and unanimous.meta.early_stop_reason == "converged", asked)


@promise
def a_bundle_asked_one_at_a_time_stops_at_the_first_answer_that_suffices() -> None:
    rng = random.Random(4)
    for _ in range(200):
        k = rng.randint(2, 8)
        said: list[Any] = [rng.choice([{"x": 1}, {"x": 1, "y": 2}, {"x": 2, "y": 2}, None]) for _ in range(k)]
        if not any(said):
            continue
        _, asked, _ = _run(said, [1.0] * k, {"k": k, "max_parallel": 1})
        expected = next((n for n in range(1, k) if _every_field_is_decided(said[:n], k - n)), k)
        holds(asked == expected, (said, asked, expected))


def _every_field_is_decided(said: Sequence[dict[str, int] | None], left: int) -> bool:
    valid = [answer for answer in said if answer is not None]
    for name in {name for answer in valid for name in answer}:
        tally = [*sorted(Counter(answer.get(name) for answer in valid).values(), reverse=True), 0]
        if tally[0] - tally[1] <= left:
            return False
    return bool(valid)


@promise
def a_bundle_keeps_its_budget_and_says_what_its_confidence_is() -> None:
    bundle, asked, _ = _run(list("abcdefghij"), [1.0] * 10, {"k": 10, "global_budget": {"cost_usd": 0.045}})
    holds(asked == 4 and bundle.meta.early_stop_reason == "budget", asked)
    try:
        _run(["a"] * 3, [1.0] * 3, {"k": 3, "global_budget": {"cost_usd": 0.001}})
        raise AssertionError("nothing was in the budget")
    except BudgetExceeded:
        pass
    labels = [["a"] * 3] * 50, [True] * 50
    for model, expected in (("simple_bundle", "trust"), ("another", "stability")):
        made = Calibrator.fit(*labels, k=3, model=model)
        bundle, _, _ = _run(["a"] * 3, [1.0] * 3, {"k": 3}, calibrator=made)
        holds(bundle.summary.confidence_is == expected, (model, bundle.summary.confidence_is))
    bundle, _, _ = _run(["a", "b", "a"], [1.0] * 3, {"k": 3}, calibrator=Calibrator.fit([], [], k=3, model=None))
    holds(bundle.summary.confidence_is == "stability")


def _run(
    said: Sequence[Any], after: Sequence[float], options: dict[str, Any], calibrator: Calibrator | None = None
) -> tuple[EvidenceBundle, int, int]:
    asked = cancelled = 0

    async def answer(request: Any, seed: int) -> Any:
        nonlocal asked, cancelled
        asked += 1
        try:
            await asyncio.sleep(after[seed])
        except asyncio.CancelledError:
            cancelled += 1
            raise
        if said[seed] is None:
            raise ValueError("no answer")
        return said[seed]

    loop = VirtualTimeLoop()
    try:
        tool = SimpleBundleTool(answer, price_usd=0.01, calibrator=calibrator)
        return loop.run_until_complete(tool.execute("q", options)), asked, cancelled
    finally:
        loop.close()


# ── planted defects ──────────────────────────────────────────────────────────────────────────────────────────────────


@defect
def a_lead_that_can_be_levelled_is_decided() -> Any:
    def is_decided(standing: Standing) -> bool:
        first, second = (*standing.counts, 0, 0)[:2]
        return first > 0 and first - second >= standing.left

    return patch.object(stopping, "is_decided", is_decided)


@defect
def a_lead_must_be_one_more_than_it_need_be() -> Any:
    whole = stopping.is_decided
    return patch.object(stopping, "is_decided", lambda standing: whole(replace(standing, k=standing.k + 1)))


@defect
def an_invalid_vote_is_an_answer() -> Any:
    whole = Standing.of
    of = classmethod(lambda cls, votes, k: whole([str(vote) for vote in votes], k))
    return patch.object(Standing, "of", of)


@defect
def an_invalid_vote_uses_up_no_draw() -> Any:
    whole = Standing.of
    return patch.object(Standing, "of", classmethod(lambda cls, votes, k: whole([v for v in votes if v], k)))


@defect
def an_invalid_answer_uses_up_no_draw_of_a_bundle() -> Any:
    whole = FieldVotes.add

    def add(self: FieldVotes, data: Any, *, valid: bool = True) -> None:
        whole(self, data, valid=valid)
        self.n -= not valid

    return patch.object(FieldVotes, "add", add)


@defect
def no_unseen_answer_ever_comes() -> Any:
    return patch.object(stopping._Urn, "unseen_overtake", lambda self: 0.0)


@defect
def no_rival_overtakes() -> Any:
    return patch.object(stopping._Urn, "overtakes", lambda self, votes: 0.0)


@defect
def every_urn_is_as_likely_after_the_votes_as_before() -> Any:
    return patch.object(stopping, "_odds", lambda answers, votes: [1 / len(THETAS)] * len(THETAS))


@defect
def the_risk_is_taken_twice() -> Any:
    rules = {**stopping._RULES, "pcurtail": lambda standing, risk: stopping._pcurtail(standing, 2 * risk)}
    return patch.object(stopping, "_RULES", rules)


@defect
def one_too_few_is_needed() -> Any:
    whole = stopping._need
    return patch.object(stopping, "_need", lambda *given: max(1, whole(*given) - 1))


@defect
def one_too_many_is_needed() -> Any:
    whole = stopping._need
    return patch.object(stopping, "_need", lambda *given: whole(*given) + 1)


@defect
def the_vote_that_made_a_candidate_speaks_for_it() -> Any:
    whole = stopping.evidence_for
    return patch.object(stopping, "evidence_for", lambda leader, rival: whole(leader + 1, rival))


@defect
def any_leader_spends_the_whole_risk() -> Any:
    whole = stopping.is_certified
    changed = lambda standing, risk: whole(replace(standing, rank=0), risk)  # noqa: E731
    return _both(patch.object(stopping, "is_certified", changed), patch.dict(globals(), is_certified=changed))


@defect
def the_runner_up_is_not_looked_at() -> Any:
    whole = stopping.evidence_for
    return patch.object(stopping, "evidence_for", lambda leader, rival: whole(leader, 0))


@defect
def trust_may_be_one() -> Any:
    return patch.object(confidence._Curve, "at", lambda self, score: 1.0 if score > 3 else 0.5)


@defect
def nothing_bounds_a_promise() -> Any:
    return patch.object(confidence, "_ceilings", lambda cases: ((-99.0, 1.0),))


@defect
def a_share_of_labels_is_taken_as_it_is() -> Any:
    def ceilings(cases: Sequence[Any]) -> tuple[tuple[float, float], ...]:
        return tuple(
            (s, sum(c.right for c in cases if c.score >= s) / sum(c.score >= s for c in cases))
            for s in {c.score for c in cases}
        )

    return patch.object(confidence, "_ceilings", ceilings)


@defect
def a_calibrator_serves_any_model() -> Any:
    whole = Calibrator.check
    return patch.object(Calibrator, "check", lambda self, *, k=None, model=None, rule=None: whole(self, k=k, rule=rule))


@defect
def a_calibrator_serves_any_k() -> Any:
    whole = Calibrator.check
    check = lambda self, *, k=None, model=None, rule=None: whole(self, model=model, rule=rule)  # noqa: E731
    return patch.object(Calibrator, "check", check)


@defect
def a_calibrator_serves_any_rule() -> Any:
    whole = Calibrator.check
    return patch.object(
        Calibrator, "check", lambda self, *, k=None, model=None, rule=None: whole(self, k=k, model=model)
    )


@defect
def no_labels_are_calibrated_too() -> Any:
    return patch.object(Calibrator, "calibrated", property(lambda self: True))


@defect
def labels_are_not_looked_at() -> Any:
    return patch.object(confidence, "_platt", lambda rows: (0.0, 1.0, (0.0, 0.0, 0.0)))


@defect
def the_isotonic_curve_falls() -> Any:
    whole = confidence._isotonic

    def isotonic(cases: Sequence[Any]) -> tuple[tuple[float, float], ...]:
        steps = whole(cases)
        return tuple((score, value) for (score, _), (_, value) in zip(steps, reversed(steps), strict=True))

    return patch.object(confidence, "_isotonic", isotonic)


@defect
def all_tasks_are_one() -> Any:
    whole = confidence._platt_by_task
    return patch.object(confidence, "_platt_by_task", lambda cases: (*whole(cases)[:3], 0.0))


@defect
def over_confidence_and_doubt_cancel_out() -> Any:
    def error(told: Sequence[tuple[float, bool]], bins: int = 10) -> float:
        return max(0.0, sum(right - trust for trust, right in told)) / len(told)

    return patch.object(confidence, "expected_calibration_error", error)


@defect
def all_are_asked_at_once_and_the_rest_cancelled() -> Any:
    whole = _bundle._Making._count

    def count(self: Any, made: Any) -> None:
        whole(self, made)
        if self._progress.decision.stop:
            for task in self._running:
                task.cancel()
            self._running.clear()

    need = property(lambda self: self.options.k)
    return _both(patch.object(_bundle._Making, "_count", count), patch.object(_progress.Progress, "need", need))


@defect
def one_field_decides_for_all() -> Any:
    return patch.object(_field_votes, "together", lambda every: every[0])


@defect
def an_answer_before_a_field_was_first_seen_did_not_lack_it() -> Any:
    whole = _field_votes._Field._add_below
    return patch.object(_field_votes._Field, "_add_below", lambda self, value, before: whole(self, value, 0))


@defect
def the_price_is_looked_at_when_it_is_paid() -> Any:
    return patch.object(_bundle._Making, "_over_price", lambda self: None)


@defect
def a_refused_calibrator_is_used() -> Any:
    async def check(self: Any) -> None:
        self._calibrator = self._job.calibrator

    return patch.object(_bundle._Making, "_check_calibrator", check)


@defect
def what_was_saved_is_what_was_spent() -> Any:
    return patch.object(_bundle, "cost_saved", lambda costs, k: sum(cost or 0.0 for cost in costs))


class _both:
    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __enter__(self) -> None:
        for part in self._parts:
            part.__enter__()

    def __exit__(self, *error: Any) -> None:
        for part in reversed(self._parts):
            part.__exit__(*error)


# ── running ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _forget() -> None:
    for cached in (stopping._will_keep, stopping._reaches, confidence._mode_probability):
        cached.cache_clear()


def _broken() -> str | None:
    """The first promise that is not kept. Any error is one: a caller would not have got his answer."""
    _forget()
    for check in PROMISES:
        try:
            check()
        except Exception as error:
            return f"{check.__name__.replace('_', ' ')}: {type(error).__name__}"
    return None


def main() -> int:
    begun = time.monotonic()
    for check in PROMISES:
        check()
        print(f"kept: {check.__name__.replace('_', ' ')}", flush=True)
    caught = 0
    for name, plant in DEFECTS.items():
        with plant():
            broken = _broken()
        caught += broken is not None
        print(f"planted: {name}; " + ("NOT CAUGHT" if broken is None else f"caught by: {broken}"), flush=True)
    print(f"in {time.monotonic() - begun:.0f} s")
    print(f"caught/planted: {caught}/{len(DEFECTS)}")
    return 0 if caught == len(DEFECTS) else 1


if __name__ == "__main__":
    sys.exit(main())
