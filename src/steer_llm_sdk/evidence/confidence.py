"""How stable an answer is, how many support it, and how likely it is right: three different numbers.

Only the last one speaks of the truth, and only where answers to other questions were labelled right or wrong.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Literal, TypeAlias

from steer_llm_sdk.evidence.stopping import Counts, Rule, Standing, check_k, check_rule, decide, uncountable

Method: TypeAlias = Literal["none", "platt", "isotonic"]

VERSION: Final = 1
ISOTONIC_FROM: Final = 500
"""Labels from which the shape of the curve is learned as well, and not only its place and slope."""
PROMISE: Final = 0.9
"""Up to here trust is the best estimate; above it, no more than the labels bear out."""

_CLIP: Final = 0.003
"""Of the stability, before its logit: wide enough that all k alike are more than all but one, narrow enough that one
unanimous bundle does not decide the slope."""
_CLIP_CAREFUL: Final = 0.01
"""For further tasks, where unanimity is worth what it is in few others; and of JSON that says none."""
_OFFSET, _OFFSET_VARIANCE = 0.0, 1.0
_SLOPE, _SLOPE_VARIANCE = 0.75, 1 / 16
"""The prior. Replicates repeat each other's mistakes, so that agreement says less than it seems to: a slope below 1."""
_TASK_VARIANCE, _TASK_WEIGHT = 1.0, 2.0
"""Prior variance of the offsets of tasks, in logits, and how many tasks it weighs as much as."""


# ── without labels ───────────────────────────────────────────────────────────────────────────────────────────────────


def support(votes: Sequence[Hashable]) -> float:
    """The share of all votes that the leader has, invalid ones included; 0.0 without votes."""
    return max(_counts(votes), default=0) / len(votes) if votes else 0.0


def stability(votes: Sequence[Hashable]) -> float:
    """The probability that the leader is what the model says most often, whether or not it is true; 0.0 without one.

    That of the largest part of a Dirichlet posterior with a uniform prior over the answers seen and one unseen,
    written as independent Gamma variables (Aggarwal et al., EMNLP 2023). Absolute error below 1e-6.
    """
    return _mode_probability(_counts(votes))


@lru_cache(maxsize=4096)
def _mode_probability(counts: Counts) -> float:
    if not counts:
        return 0.0
    first, *others = counts
    rivals = Counter([*others, 0])
    # The trapezoid rule in u, x = u * u: the integrand dies away at both ends, and with it the error.
    middle, width = math.sqrt(first + 1), 7.0
    start, stop = max(0.0, middle - width), middle + width
    steps = 160
    step = (stop - start) / steps
    total = 0.0
    for i in range(1, steps):
        u = start + i * step
        x = u * u
        density = math.exp(first * math.log(x) - x - math.lgamma(first + 1)) * 2 * u
        total += density * math.prod(_gamma_below(votes + 1, x) ** times for votes, times in rivals.items())
    return min(1.0, round(total * step, 9))


def _gamma_below(shape: int, x: float) -> float:
    """P(Gamma(shape) < x) of a whole shape: that a Poisson variable of mean x is at least the shape."""
    first = max(0, int(x - 12 * math.sqrt(x) - 12))
    log = math.log(x)
    return max(0.0, 1.0 - math.fsum(math.exp(i * log - x - math.lgamma(i + 1)) for i in range(first, shape)))


def _counts(votes: Iterable[Hashable]) -> Counts:
    try:
        tally = Counter(vote for vote in votes if vote is not None and vote == vote)
    except TypeError as error:
        raise uncountable(votes) from error
    return tuple(sorted(tally.values(), reverse=True))


# ── from labels ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrator:
    """Turns votes into `trust`, the probability that their leader is right. Made by `fit`.

    It holds for the `model`, the `k` and the stopping `rule` whose answers were labelled, and for questions like those:
    with `tasks`, for a task that was not among them. Everywhere else it is refused. `ece`, `brier` and `auroc` are of
    labels that were left out of the fit.
    """

    k: int
    model: str | None = None
    rule: Rule | None = None
    method: Method = "none"
    n: int = 0
    tasks: int = 0
    date: str | None = None
    accuracy: float | None = None
    ece: float | None = None
    brier: float | None = None
    auroc: float | None = None
    curve: _Curve | None = None

    @classmethod
    def fit(
        cls,
        votes_per_question: Sequence[Sequence[Hashable]],
        correct: Sequence[bool],
        *,
        k: int,
        model: str | None,
        rule: Rule | None = None,
        tasks: Sequence[str] | None = None,
        date: str | None = None,
    ) -> Calibrator:
        """From the votes on questions and whether the leader of each is right.

        `rule` cuts votes where it would have stopped, so that answers that were all asked for can calibrate bundles
        that stop early: then `correct` is of the leader at that point. `tasks` names the task of each question, when
        trust is wanted for further tasks: how much tasks differ is then part of the doubt. `date` is kept as given.

        The fit is logistic in the logit of `stability` (Platt scaling, with a prior, averaged over what the labels
        leave open), from 500 labels of one task isotonic. No labels at all: an uncalibrated one. ValueError names what
        does not fit together.
        """
        _check(votes_per_question, correct, k, model, rule, tasks)
        blank = cls(k=k, model=model, rule=rule, date=date)
        if not correct:
            return blank
        clip = _CLIP if tasks is None else _CLIP_CAREFUL
        groups = tasks if tasks is not None else [""] * len(correct)
        cases = [
            _Case(_score(_cut(votes, k, rule), clip), bool(right), group)
            for votes, right, group in zip(votes_per_question, correct, groups, strict=True)
        ]
        method: Method = "isotonic" if tasks is None and len(cases) >= ISOTONIC_FROM else "platt"
        left_out = _left_out(cases, method, by_task=tasks is not None)
        return cls(
            k=k,
            model=model,
            rule=rule,
            method=method,
            n=len(cases),
            tasks=len(set(groups)),
            date=date,
            accuracy=sum(case.right for case in cases) / len(cases),
            ece=expected_calibration_error(left_out),
            brier=sum((trust - right) ** 2 for trust, right in left_out) / len(left_out),
            auroc=area_under_roc([(case.score, case.right) for case in cases]),
            curve=replace(_fitted(cases, method, by_task=tasks is not None), clip=clip),
        )

    @property
    def calibrated(self) -> bool:
        return self.curve is not None

    def trust(self, votes: Sequence[Hashable], *, k: int | None = None, model: str | None = None) -> float:
        """The probability that the leader of the votes is right; never 1, and 0.0 if no vote is valid.

        Without labels it is the `stability`, which is none: see `report()["status"]`. ValueError if there are more
        than k votes, or if `k` or `model` is given and is another one.
        """
        self.check(k=k, model=model)
        if not isinstance(votes, Collection):
            raise uncountable(votes)
        if len(votes) > self.k:
            raise ValueError(f"votes: {len(votes)} of a calibrator for k = {self.k}; fit one with k = {len(votes)}")
        counts = _counts(votes)
        if not counts:
            return 0.0
        if self.curve is None:
            return _sigmoid(_score(counts))
        return self.curve.at(_score(counts, self.curve.clip))

    def check(self, *, k: int | None = None, model: str | None = None, rule: str | None = None) -> None:
        """ValueError if what is given is not what was labelled. None is not looked at."""
        for name, given, own in (("k", k, self.k), ("model", model, self.model), ("rule", rule, self.rule)):
            if given is not None and own is not None and given != own:
                raise ValueError(
                    f"{name} = {given!r}: this calibrator is of {name} = {own!r} and says nothing of others; "
                    f"fit one from labelled answers of {given!r}"
                )

    def report(self) -> dict[str, Any]:
        """`status` is "calibrated" or "uncalibrated". `highest` is the most trust it gives to anything.

        `task_spread` is the standard deviation of tasks in logits; 0.0 where only one task is meant.
        """
        told = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "curve"}
        curve = self.curve
        return {
            "status": "uncalibrated" if curve is None else "calibrated",
            **told,
            "highest": None if curve is None else curve.at(_logit(1.0, curve.clip)),
            "task_spread": None if curve is None else math.sqrt(curve.task_variance),
        }

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Calibrator:
        """ValueError if the text is not of a calibrator, or of another version."""
        try:
            data = json.loads(text)
            version = data.pop("version")
            if version != VERSION:
                raise ValueError(f"version {version!r} of a calibrator; this library reads {VERSION}: fit it again")
            curve = data.pop("curve")
            return cls(curve=None if curve is None else _Curve.of(curve), **data)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not the JSON of a calibrator: {error}") from error


@dataclass(frozen=True, slots=True)
class _Case:
    score: float
    right: bool
    task: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """From the score, a logit, to a probability. `covariance` is that of offset and slope: c00, c01, c11.

    `steps` are scores and values of an isotonic curve, with which the logistic one is not used. `ceilings` are scores
    and the most that may be promised from there on. `clip` is that of the stability in the scores.
    """

    offset: float = _OFFSET
    slope: float = _SLOPE
    covariance: tuple[float, float, float] = (_OFFSET_VARIANCE, 0.0, _SLOPE_VARIANCE)
    task_variance: float = 0.0
    steps: tuple[tuple[float, float], ...] = ()
    ceilings: tuple[tuple[float, float], ...] = ()
    clip: float = _CLIP

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> _Curve:
        c00, c01, c11 = map(float, data["covariance"])
        steps, ceilings = (tuple((float(x), float(y)) for x, y in data[name]) for name in ("steps", "ceilings"))
        offset, slope, variance = (float(data[name]) for name in ("offset", "slope", "task_variance"))
        return cls(
            offset=offset,
            slope=slope,
            covariance=(c00, c01, c11),
            task_variance=variance,
            steps=steps,
            ceilings=ceilings,
            clip=float(data.get("clip", _CLIP_CAREFUL)),
        )

    def at(self, score: float) -> float:
        estimate = _between(self.steps, score) if self.steps else self._logistic(score)
        return min(estimate, max((most for start, most in self.ceilings if start <= score), default=PROMISE))

    def _logistic(self, score: float) -> float:
        """Averaged over the doubt in offset, slope and task (MacKay 1992)."""
        c00, c01, c11 = self.covariance
        variance = c00 + 2 * c01 * score + c11 * score * score + self.task_variance
        return _sigmoid((self.offset + self.slope * score) / math.sqrt(1 + math.pi * variance / 8))


def _fitted(cases: Sequence[_Case], method: Method, *, by_task: bool) -> _Curve:
    ceilings = _ceilings(cases)
    if method == "isotonic":
        return _Curve(steps=_isotonic(cases), ceilings=ceilings)
    if by_task:
        offset, slope, covariance, spread = _platt_by_task(cases)
        return _Curve(offset=offset, slope=slope, covariance=covariance, task_variance=spread, ceilings=ceilings)
    offset, slope, covariance = _platt(_pooled(cases))
    return _Curve(offset=offset, slope=slope, covariance=covariance, ceilings=ceilings)


def _ceilings(cases: Sequence[_Case]) -> tuple[tuple[float, float], ...]:
    """For each score s the share that is right among the labels with at least s, one more wrong one added.

    So acting on all answers from some trust on is wrong no more often, on average over labels, than that trust says
    (conformal risk control, Angelopoulos et al. 2022, of the selective risk). It also keeps trust below 1.
    """
    found: list[tuple[float, float]] = []
    n = right = 0
    for score, pooled in _by_score(cases, reverse=True):
        n += len(pooled)
        right += sum(case.right for case in pooled)
        found.append((score, right / (n + 1)))
    # Whoever acts from here on may as well act from higher up: only what is more than all before it is kept.
    best, kept = PROMISE, []
    for score, most in reversed(found):
        if most > best:
            best = most
            kept.append((score, most))
    return tuple(kept)


def _by_score(cases: Sequence[_Case], *, reverse: bool = False) -> list[tuple[float, list[_Case]]]:
    ordered = sorted(cases, key=lambda case: case.score, reverse=reverse)
    return [(score, list(same)) for score, same in groupby(ordered, key=lambda case: case.score)]


# ── logistic ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_Row: TypeAlias = tuple[float, float, float, float]
"""Score, how many are right, how many there are, and a known part of the offset."""
_Fit: TypeAlias = tuple[float, float, tuple[float, float, float]]


def _pooled(cases: Sequence[_Case], known: float = 0.0) -> list[_Row]:
    """Votes have few different scores, so many labels are few rows."""
    return [(score, sum(case.right for case in same), len(same), known) for score, same in _by_score(cases)]


def _platt(rows: Sequence[_Row]) -> _Fit:
    """Offset, slope and their covariance at the posterior mode, by Newton's method with halved steps."""
    offset, slope = _OFFSET, _SLOPE
    loss = _loss(rows, offset, slope)
    for _ in range(100):
        g0, g1, h00, h01, h11 = _derivatives(rows, offset, slope)
        det = h00 * h11 - h01 * h01
        step0, step1 = (h11 * g0 - h01 * g1) / det, (h00 * g1 - h01 * g0) / det
        size = 1.0
        while (tried := _loss(rows, offset + size * step0, slope + size * step1)) > loss and size > 1e-9:
            size /= 2
        if size <= 1e-9:
            break
        offset, slope, gained, loss = offset + size * step0, slope + size * step1, loss - tried, tried
        if gained < 1e-12:
            break
    _, _, h00, h01, h11 = _derivatives(rows, offset, slope)
    det = h00 * h11 - h01 * h01
    return offset, slope, (h11 / det, -h01 / det, h00 / det)


def _loss(rows: Sequence[_Row], offset: float, slope: float) -> float:
    """Minus the log posterior."""
    data = math.fsum(
        n * _softplus(offset + slope * score + known) - right * (offset + slope * score + known)
        for score, right, n, known in rows
    )
    prior = (offset - _OFFSET) ** 2 / _OFFSET_VARIANCE + (slope - _SLOPE) ** 2 / _SLOPE_VARIANCE
    return data + prior / 2


def _derivatives(rows: Sequence[_Row], offset: float, slope: float) -> tuple[float, float, float, float, float]:
    """Of the log posterior: the gradient, and the second derivatives with their sign changed."""
    g0, g1 = -(offset - _OFFSET) / _OFFSET_VARIANCE, -(slope - _SLOPE) / _SLOPE_VARIANCE
    h00, h01, h11 = 1 / _OFFSET_VARIANCE, 0.0, 1 / _SLOPE_VARIANCE
    for score, right, n, known in rows:
        p = _sigmoid(offset + slope * score + known)
        error, weight = right - n * p, n * p * (1 - p)
        g0 += error
        g1 += error * score
        h00 += weight
        h01 += weight * score
        h11 += weight * score * score
    return g0, g1, h00, h01, h11


def _platt_by_task(cases: Sequence[_Case]) -> tuple[float, float, tuple[float, float, float], float]:
    """With an offset of its own for each task, drawn from a normal distribution whose variance is learned too.

    Expectation and maximisation in turn, with the variance of each task's offset by Laplace's approximation.
    """
    ordered = sorted(cases, key=lambda case: case.task)
    tasks = [list(same) for _, same in groupby(ordered, key=lambda case: case.task)]
    own, variance = [0.0] * len(tasks), _TASK_VARIANCE
    for _ in range(100):
        offset, slope, covariance = _platt(
            [row for o, task in zip(own, tasks, strict=True) for row in _pooled(task, o)]
        )
        found = [_task_offset(_pooled(task), offset, slope, o, variance) for o, task in zip(own, tasks, strict=True)]
        own = [mean for mean, _ in found]
        spread = _TASK_WEIGHT * _TASK_VARIANCE + sum(mean * mean + doubt for mean, doubt in found)
        before, variance = variance, spread / (_TASK_WEIGHT + len(tasks))
        if abs(variance - before) < 1e-4:
            break
    return offset, slope, covariance, variance


def _task_offset(
    rows: Sequence[_Row], offset: float, slope: float, start: float, variance: float
) -> tuple[float, float]:
    own, curvature = start, 1 / variance
    for _ in range(20):
        shares = [(right, n, _sigmoid(offset + slope * score + own)) for score, right, n, _ in rows]
        curvature = sum(n * p * (1 - p) for _, n, p in shares) + 1 / variance
        step = (sum(right - n * p for right, n, p in shares) - own / variance) / curvature
        own += max(-1.0, min(1.0, step))
        if abs(step) < 1e-9:
            break
    return own, 1 / curvature


# ── isotonic ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _isotonic(cases: Sequence[_Case]) -> tuple[tuple[float, float], ...]:
    """The nearest curve that never falls, by pooling adjacent violators (Ayer et al. 1955)."""
    blocks: list[tuple[float, float, list[float]]] = []
    for score, same in _by_score(cases):
        right, n, scores = float(sum(case.right for case in same)), float(len(same)), [score]
        while blocks and blocks[-1][0] * n >= right * blocks[-1][1]:
            before = blocks.pop()
            right, n, scores = right + before[0], n + before[1], before[2] + scores
        blocks.append((right, n, scores))
    return tuple((score, right / n) for right, n, scores in blocks for score in scores)


def _between(steps: Sequence[tuple[float, float]], score: float) -> float:
    """Linear between two scores that were seen, level beyond the first and last."""
    before, after = steps[0], steps[-1]
    for step in steps:
        if step[0] <= score:
            before = step
        if step[0] >= score:
            after = step
            break
    if before[0] >= after[0]:
        return before[1] if score >= before[0] else after[1]
    share = (score - before[0]) / (after[0] - before[0])
    return before[1] + max(0.0, min(1.0, share)) * (after[1] - before[1])


# ── how good it is ───────────────────────────────────────────────────────────────────────────────────────────────────

_FOLDS: Final = 10


def _left_out(cases: Sequence[_Case], method: Method, *, by_task: bool) -> list[tuple[float, bool]]:
    """Trust and outcome of each case, from a curve that has not seen it: ten folds, or each task in turn."""
    if by_task:
        fold_of = {name: place for place, name in enumerate(sorted({case.task for case in cases}))}
        folds = [fold_of[case.task] for case in cases]
    else:
        folds = [place % _FOLDS for place in range(len(cases))]
    told = []
    for fold in sorted(set(folds)):
        rest = [case for case, own in zip(cases, folds, strict=True) if own != fold]
        curve = _fitted(rest, method, by_task=by_task) if rest else _Curve()
        told += [(curve.at(case.score), case.right) for case, own in zip(cases, folds, strict=True) if own == fold]
    return told


def expected_calibration_error(told: Sequence[tuple[float, bool]], bins: int = 10) -> float:
    """The mean difference between what was said and what came true, over bins of equal width."""
    found: dict[int, list[tuple[float, bool]]] = {}
    for trust, right in told:
        found.setdefault(min(int(trust * bins), bins - 1), []).append((trust, right))
    return sum(abs(sum(trust - right for trust, right in same)) for same in found.values()) / len(told)


def area_under_roc(told: Sequence[tuple[float, bool]]) -> float | None:
    """The probability that a right answer has the higher score of the two; None where all are right or all wrong."""
    right, wrong = sum(good for _, good in told), sum(not good for _, good in told)
    if not right or not wrong:
        return None
    above, area = 0, 0.0
    for _, same in groupby(sorted(told, key=itemgetter(0), reverse=True), key=itemgetter(0)):
        outcomes = [good for _, good in same]
        bad = len(outcomes) - sum(outcomes)
        area += bad * (above + sum(outcomes) / 2)
        above += sum(outcomes)
    return area / (right * wrong)


# ── small things ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _check(
    votes_per_question: Sequence[Sequence[Hashable]],
    correct: Sequence[bool],
    k: int,
    model: str | None,
    rule: Rule | None,
    tasks: Sequence[str] | None,
) -> None:
    check_k(k)
    if model is not None and not (isinstance(model, str) and model):
        raise ValueError(f"model = {model!r}: name the model that answered, or give None")
    if rule is not None:
        check_rule(rule, 0.01)
    if not isinstance(votes_per_question, Collection):
        raise uncountable(votes_per_question)
    for name, given in (("correct", correct), ("tasks", tasks)):
        if given is not None and len(given) != len(votes_per_question):
            raise ValueError(f"{name}: {len(given)} for {len(votes_per_question)} questions; give one for each")
    for number, (votes, right) in enumerate(zip(votes_per_question, correct, strict=True)):
        if right not in (True, False):
            raise ValueError(f"question {number}: correct is {right!r}; give True or False")
        if not isinstance(votes, Collection):
            raise uncountable(votes)
        if len(votes) > k:
            raise ValueError(f"question {number}: {len(votes)} votes, but k = {k}; cut them to the first {k}")
        _counts(votes)


def _cut(votes: Sequence[Hashable], k: int, rule: Rule | None) -> Counts:
    if rule is None:
        return _counts(votes)
    standings = (Standing.of(votes[:n], k) for n in range(len(votes)))
    stopped = next((standing for standing in standings if decide(standing, rule, 0.01).stop), None)
    return _counts(votes) if stopped is None else stopped.counts


def _score(counts: Counts, clip: float = _CLIP) -> float:
    return _logit(_mode_probability(counts), clip)


def _logit(p: float, clip: float) -> float:
    clipped = min(max(p, clip), 1 - clip)
    return math.log(clipped / (1 - clipped))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
