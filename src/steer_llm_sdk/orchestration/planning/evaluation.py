"""Would a learning planner have done better? Said from a log, before it is trusted with anything.

For a policy pi, logged decisions (x, a, r) of propensity p, and a model q of the reward, w = [pi(x) = a] / p:

    SNIPS    sum w r / sum w                      (Swaminathan and Joachims 2015)
    direct   mean q(x, pi(x))
    DR       mean q(x, pi(x)) + w (r - q(x, a))   (Dudik, Langford and Li 2011)

q and pi are learned on other parts of the log than they are judged by. Bounds are percentiles of a bootstrap over
decisions. A line with the `scores` of every tool is judged exactly. Of several lines of one decision, told by its id,
the last one counts: a later word on a reward replaces an earlier one.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from steer_llm_sdk.errors import InvalidRequest
from steer_llm_sdk.orchestration.planning.learned import LearnedPlanner
from steer_llm_sdk.orchestration.planning.planner import ToolMetadata

FOLDS = 5
RESAMPLES = 400
CONFIDENCE = 0.95
"""Of a bound, one-sided."""
WEIGHTS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0, 3.0)
"""Cost weights among which the cheapest policy at a quality is looked for."""
FIXED_QUALITY = 0.95


class Logged(NamedTuple):
    """One line. `scores` is what is known of tools: all of them, or the one that was chosen. `costs` USD, as far as
    known. `tool` None: every score is known, and nothing was decided. `decision_id` None: a decision of its own."""

    task: str
    query: str
    candidates: tuple[str, ...]
    scores: Mapping[str, float]
    costs: Mapping[str, float]
    tool: str | None
    propensity: float
    default: str | None
    decision_id: str | None = None

    @property
    def request(self) -> dict[str, Any]:
        return {"type": self.task, "query": self.query} if self.task else {"query": self.query}

    @property
    def taught(self) -> dict[str, Any]:
        return {**self.request, "scores": self.scores, "costs": self.costs}


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What a policy is worth: three estimates of its mean reward, with the bounds of DR, and its cost per decision in
    USD, where costs were logged. `effective`: how many decisions say as much as these, after weighting."""

    snips: float
    direct: float
    dr: float
    low: float
    high: float
    cost_usd: float | None
    effective: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`promote`: the lower bound of what is gained over the reference is above -`margin`; `verdict` says it in words.

    `needed` is how many more decisions would be, were the gain as estimated; None where no number would help.
    `oracle`, the best tool for each decision, is known only where every score is. `replaced`: lines of the log that do
    not count, since a later one is of the same decision.
    """

    decisions: int
    replaced: int
    reference: str
    policy: Value
    reference_value: Value
    gain: float
    gain_low: float
    gain_high: float
    margin: float
    promote: bool
    needed: int | None
    verdict: str
    singles: Mapping[str, Value]
    random: Value
    oracle: float | None
    at_fixed_quality: Mapping[str, float] | None
    unseen_tasks: Mapping[str, float]


Choice = Callable[[Logged, int], str]
"""What a policy chooses for a line in a fold."""


def read_log(lines: Iterable[str | bytes]) -> list[Logged]:
    """Lines of LearnedPlanner's log, or of {type or task, query or prompt, scores, costs}. InvalidRequest with the
    number of the line that is neither."""
    return [_logged(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _logged(number: int, line: str | bytes) -> Logged:
    try:
        raw = json.loads(line)
        task, query = raw.get("type") or raw.get("task") or "", raw.get("query") or raw.get("prompt") or ""
        if "scores" in raw:
            scores = {name: _share(score) for name, score in raw["scores"].items()}
            return Logged(task, query, tuple(scores), scores, raw.get("costs") or {}, None, 1.0, raw.get("default"))
        tool, propensity = raw["tool"], float(raw["propensity"])
        if not 0 < propensity <= 1 or tool not in raw["candidates"]:
            raise ValueError("the propensity is not in (0, 1], or the tool is not among the candidates")
        cost = raw.get("cost_usd")
        costs = {} if cost is None else {tool: float(cost)}
        scores = {tool: _share(raw["reward"])}
        candidates, decision_id = tuple(raw["candidates"]), raw.get("decision_id")
        if not isinstance(decision_id, str | None):
            raise ValueError(f"the decision_id {decision_id!r} is no text")
        return Logged(task, query, candidates, scores, costs, tool, propensity, raw.get("default"), decision_id)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"line {number}: {type(error).__name__}: {error}"
        raise InvalidRequest("LOG", what, "give lines that LearnedPlanner(log=...) wrote, or with scores") from error


def _share(reward: Any) -> float:
    found = float(reward)
    if not 0 <= found <= 1:
        raise ValueError(f"the reward {reward!r} is not from 0 to 1")
    return found


def evaluate(
    log: Sequence[Logged],
    *,
    default: str | None = None,
    cost_weight: float = 0.0,
    margin: float = 0.0,
    seed: int = 0,
) -> Evaluation:
    """Judge the policy that LearnedPlanner would have learned, against the default tool of the log, or the one given,
    or the best single one. InvalidRequest where the log can say nothing: too short, or nothing was ever explored."""
    written, log = len(log), _last_words(log)
    _refuse_useless(log)
    rng = random.Random(seed)
    folds = [rng.randrange(FOLDS) for _ in log]
    names = sorted({name for line in log for name in line.candidates})
    judge = _Judge(log, folds, names, rng)
    singles = {name: judge.value(_always(name)) for name in names}
    reference = default or _logged_default(log) or max(singles, key=lambda name: singles[name].dr)
    if reference not in singles:
        raise InvalidRequest("default", reference, f"the tools of the log are {', '.join(names)}")
    policy = judge.learned(reference, cost_weight)
    gain, low, high = judge.gain(policy, _always(reference))
    needed = _needed(len(log), gain, low, margin)
    promote = low > -margin
    return Evaluation(
        decisions=len(log),
        replaced=written - len(log),
        reference=reference,
        policy=judge.value(policy),
        reference_value=singles[reference],
        gain=gain,
        gain_low=low,
        gain_high=high,
        margin=margin,
        promote=promote,
        needed=0 if promote else needed,
        verdict=_verdict(promote, gain, low, margin, reference, needed),
        singles=singles,
        random=judge.value(None),
        oracle=_oracle(log),
        at_fixed_quality=judge.at_fixed_quality(reference),
        unseen_tasks=judge.unseen_tasks(reference, cost_weight),
    )


def _last_words(log: Sequence[Logged]) -> list[Logged]:
    """One line for each decision, in the order in which they were first told of."""
    last: dict[str | int, Logged] = {}
    for number, line in enumerate(log):
        last[number if line.decision_id is None else line.decision_id] = line
    return list(last.values())


def _refuse_useless(log: Sequence[Logged]) -> None:
    if len(log) < 10 * FOLDS:
        raise InvalidRequest("LOG", f"{len(log)} decisions with a reward", f"give {10 * FOLDS} at least")
    if all(line.tool is not None and line.propensity == 1 for line in log):
        raise InvalidRequest(
            "LOG",
            "every decision had the propensity 1",
            "what was never tried cannot be judged: let the planner explore",
        )


def _logged_default(log: Sequence[Logged]) -> str | None:
    named = [line.default for line in log if line.default is not None]
    return max(set(named), key=named.count) if named else None


def _always(name: str) -> Choice:
    return lambda line, fold: name


def _oracle(log: Sequence[Logged]) -> float | None:
    return (
        statistics.fmean(max(line.scores.values()) for line in log) if all(line.tool is None for line in log) else None
    )


def _needed(count: int, gain: float, low: float, margin: float) -> int | None:
    """A bound narrows with the root of the number of decisions."""
    if gain + margin <= 0:
        return None
    return max(0, math.ceil(count * ((gain - low) / (gain + margin)) ** 2) - count)


def _verdict(promote: bool, gain: float, low: float, margin: float, reference: str, needed: int | None) -> str:
    says = f"{100 * gain:+.2f} points against {reference}, at least {100 * low:+.2f} with {CONFIDENCE:.0%} confidence"
    if promote:
        return f"promote: {says}"
    if needed is None:
        return f"do not promote: {says}; more decisions would not change it, were the gain as estimated"
    return f"do not promote: {says}, and {-100 * margin:+.2f} is asked; about {needed:,} more decisions would show it"


class _Part(NamedTuple):
    """What one decision says of a policy: the weight, weight x reward, direct and DR estimate, weight x cost."""

    weight: float
    rewarded: float
    direct: float
    dr: float
    paid: float
    priced: float


class _Judge:
    def __init__(self, log: Sequence[Logged], folds: Sequence[int], names: Sequence[str], rng: random.Random) -> None:
        self._log = log
        self._folds = folds
        self._names = names
        self._tools = {name: ToolMetadata(name=name) for name in names}
        self._rng = rng
        # The model q is the table that the planner itself believes in, learned without the fold that it judges.
        self._models = [self._taught(self._without(fold), names[0], 0.0) for fold in range(FOLDS)]
        self._samples = [rng.choices(range(len(log)), k=len(log)) for _ in range(RESAMPLES)]

    def _without(self, fold: int) -> Iterator[Logged]:
        return (line for line, of in zip(self._log, self._folds, strict=True) if of != fold)

    def _taught(self, lines: Iterable[Logged], default: str, cost_weight: float) -> LearnedPlanner:
        planner = LearnedPlanner(default_tool=default, explore="off", cost_weight=cost_weight)
        planner.learn(line.taught for line in lines)
        return planner

    def learned(self, default: str, cost_weight: float) -> Choice:
        planners = [self._taught(self._without(fold), default, cost_weight) for fold in range(FOLDS)]
        return lambda line, fold: self._chosen(planners[fold], line)

    def _by(self, planner: LearnedPlanner) -> Choice:
        return lambda line, fold: self._chosen(planner, line)

    def _chosen(self, planner: LearnedPlanner, line: Logged) -> str:
        tools = self._tools
        if len(line.candidates) < len(tools):
            tools = {name: tools[name] for name in line.candidates}
        return planner.decide(line.request, tools).selected_tool

    def _expected(self, line: Logged, name: str, fold: int) -> float:
        if line.tool is None:
            return line.scores[name]
        return self._models[fold].beliefs.reward(line.task, f"{name}@1.0.0").mean

    def parts(self, policy: Choice | None) -> list[_Part]:
        """`policy` None: any of the candidates, by chance."""
        return [self._part(line, fold, policy) for line, fold in zip(self._log, self._folds, strict=True)]

    def _part(self, line: Logged, fold: int, policy: Choice | None) -> _Part:
        names = line.candidates if policy is None else (policy(line, fold),)
        direct = statistics.fmean(self._expected(line, name, fold) for name in names)
        if line.tool is None:
            costs = [line.costs[name] for name in names if name in line.costs]
            paid = statistics.fmean(costs) if costs else 0.0
            return _Part(1.0, direct, direct, direct, paid, float(bool(costs)))
        weight = (line.tool in names) / len(names) / line.propensity
        reward, cost = line.scores[line.tool], line.costs.get(line.tool)
        residual = reward - self._expected(line, line.tool, fold)
        priced = 0.0 if cost is None else weight
        return _Part(weight, weight * reward, direct, direct + weight * residual, priced * (cost or 0.0), priced)

    def value(self, policy: Choice | None) -> Value:
        return self._value(self.parts(policy))

    def _value(self, parts: Sequence[_Part]) -> Value:
        low, high = self._bounds([part.dr for part in parts])
        weight = sum(part.weight for part in parts)
        squares = sum(part.weight**2 for part in parts)
        priced = sum(part.priced for part in parts)
        return Value(
            snips=sum(part.rewarded for part in parts) / weight if weight else math.nan,
            direct=statistics.fmean(part.direct for part in parts),
            dr=statistics.fmean(part.dr for part in parts),
            low=low,
            high=high,
            cost_usd=sum(part.paid for part in parts) / priced if priced else None,
            effective=weight**2 / squares if squares else 0.0,
        )

    def _bounds(self, values: Sequence[float]) -> tuple[float, float]:
        count = len(values)
        means = sorted(sum([values[i] for i in sample]) / count for sample in self._samples)
        edge = int((1 - CONFIDENCE) * len(means))
        return means[edge], means[-1 - edge]

    def gain(self, policy: Choice, over: Choice) -> tuple[float, float, float]:
        """By DR, decision by decision, so that what both have in common cancels."""
        gains = [a.dr - b.dr for a, b in zip(self.parts(policy), self.parts(over), strict=True)]
        return (statistics.fmean(gains), *self._bounds(gains))

    def at_fixed_quality(self, reference: str) -> Mapping[str, float] | None:
        """The cheapest policy whose lower bound has FIXED_QUALITY of the reference's reward, with shares of that reward
        and of its cost; None where the log shows none."""
        home = self.value(_always(reference))
        if not home.cost_usd or not home.dr:
            return None
        found = []
        for weight in WEIGHTS:
            value = self.value(self.learned(reference, weight))
            if value.cost_usd is not None and value.low >= FIXED_QUALITY * home.dr:
                found.append((value.cost_usd / home.cost_usd, value.dr / home.dr, weight))
        if not found:
            return None
        cost, quality, weight = min(found)
        return {"cost_weight": weight, "quality": quality, "cost": cost}

    def unseen_tasks(self, reference: str, cost_weight: float) -> Mapping[str, float]:
        """The gain on each task type by what was learned from the others only."""
        gains: dict[str, float] = {}
        tasks = sorted({line.task for line in self._log})
        for task in tasks if len(tasks) > 1 else ():
            planner = self._taught((line for line in self._log if line.task != task), reference, cost_weight)
            policy = self._by(planner)
            of_task = [part for part in zip(self._log, self._folds, strict=True) if part[0].task == task]
            gains[task] = statistics.fmean(
                self._part(line, fold, policy).dr - self._part(line, fold, _always(reference)).dr
                for line, fold in of_task
            )
        return gains
