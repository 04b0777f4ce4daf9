"""The votes on each field of the answers, counted as they arrive, and whether all of them suffice."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from steer_llm_sdk.evidence._leaves import ABSENT, Path, at, bounded, dotted
from steer_llm_sdk.evidence.equivalence import key_of
from steer_llm_sdk.evidence.policy import FieldPolicy, Fields, Policies
from steer_llm_sdk.evidence.stopping import Counts, Reason, Rule, Standing, StopDecision, decide

_OBJECT: Final = ("an object",)
_WEAKEST: Final[tuple[Reason, ...]] = ("complete", "converged", "certified", "decided")
"""What a decision on several fields is called: as the weakest of them."""


@dataclass(slots=True)
class _Field:
    """The votes at one path, in order of first appearance; those below it are of the answers with an object here."""

    path: Path
    policies: Policies
    tally: dict[Hashable, int] = field(default_factory=dict)
    below: dict[str, _Field] = field(default_factory=dict)

    def add(self, value: Any) -> None:
        is_object = isinstance(value, Mapping) and bool(value)
        if is_object:
            self._add_below(value, before=self.tally.get(_OBJECT, 0))
        vote = _OBJECT if is_object else key_of(value, self.policy)
        self.tally[vote] = self.tally.get(vote, 0) + 1

    def _add_below(self, value: Mapping[str, Any], before: int) -> None:
        for key in value:
            path = (*self.path, key)
            if key not in self.below and self.policies.at(path).kind != "ignore":
                # Every object that came before was without it.
                self.below[key] = _Field(path, self.policies, {ABSENT: before} if before else {})
        for key, each in self.below.items():
            each.add(value.get(key, ABSENT))

    @property
    def policy(self) -> FieldPolicy:
        return self.policies.at(self.path)

    @property
    def leader(self) -> Hashable:
        return max(self.tally, key=self.tally.__getitem__, default=None)

    @property
    def is_object(self) -> bool:
        """Whether most have an object here, with fields that count."""
        return self.leader == _OBJECT and bool(self.below)

    @property
    def counts(self) -> Counts:
        """Most first. Where not only the most frequent answer is the consensus, all rivals count as one: an answer with
        more than half of all k votes is the median, the medoid, and the whole of an array, however the others fall."""
        counts = sorted(self.tally.values(), reverse=True)
        return tuple(counts) if _is_plurality(self.policy) else tuple(filter(None, (*counts[:1], sum(counts[1:]))))

    def standing(self, n: int, k: int) -> Standing:
        if not self.tally:
            return Standing((), n, k)
        leader = self.leader
        rank = next(place for place, vote in enumerate(self.tally, start=1) if vote == leader)
        return Standing(self.counts, n, k, leader, rank)

    def open(self) -> Iterator[_Field]:
        """The fields that matter: this one, and those below it if most answers have an object here."""
        if not self.is_object:
            yield self
            return
        if len(self.tally) > 1:
            yield self
        for each in self.below.values():
            yield from each.open()


def _is_plurality(policy: FieldPolicy) -> bool:
    """Whether the answer that most gave is the consensus, and stays an answer of its own whatever else comes."""
    in_clusters = policy.abs_tol or policy.rel_tol or policy.similarity < 1 or policy.judge is not None
    return policy.consensus == "mode" and not policy.aligned and not in_clusters


def _is_open_to_the_end(policy: FieldPolicy) -> bool:
    """Whether even a majority does not settle it: the first by id, a rule of the caller, another share of elements."""
    by_rule = callable(policy.consensus) or policy.consensus == "first_valid"
    return by_rule or (policy.aligned and policy.threshold != 0.5)


class FieldVotes:
    """Grows by `add`, to `n` answers; the order of arrival matters to certificates only."""

    def __init__(self, k: int, fields: Fields | Policies | None = None) -> None:
        self._k = k
        self.n = self._valid = 0
        policies = Policies.of(fields)
        self._roots = [_Field(path, policies) for path in (policies.roots or [()])]

    def add(self, data: Any, *, valid: bool = True) -> None:
        """An invalid answer is one of the k, and for nobody."""
        self.n += 1
        self._valid += valid
        if valid:
            for root in self._roots:
                root.add(bounded(at(data, root.path)))

    def leaves(self) -> dict[str, Counts]:
        """The votes of each field that is no object, most first; none before the first valid answer."""
        fields = (each for root in self._roots for each in root.open() if each.tally and not each.is_object)
        return {dotted(each.path): tuple(sorted(each.tally.values(), reverse=True)) for each in fields}

    def decision(self, rule: Rule, risk: float, floor: float = 0.0, min_valid: int = 1) -> StopDecision:
        """To stop when every field may; the least stability and the most need of all of them.

        One field that is futile is enough to stop: the answer cannot be acted on as it was asked for.
        """
        if self._k - self.n + self._valid < min_valid:
            return StopDecision(stop=True, reason="too_many_invalid", leader=None, stability=0.0, need=0)
        every = []
        for each in (each for root in self._roots for each in root.open()):
            found = decide(each.standing(self.n, self._k), rule, risk, floor, 0)
            left = self._k - self.n
            if left > 0 and found.reason != "futile" and _is_open_to_the_end(each.policy):
                found = StopDecision(stop=False, reason=None, leader=found.leader, stability=found.stability, need=left)
            every.append(found)
        return self._with_enough(together(every), min_valid)

    def _with_enough(self, found: StopDecision, min_valid: int) -> StopDecision:
        """A rule that holds for fewer valid answers than are wanted waits for the others."""
        short = min_valid - self._valid
        if short <= 0 or found.reason in ("futile", "complete"):
            return found
        return replace(found, stop=False, reason=None, need=max(found.need, short))


def together(every: Sequence[StopDecision]) -> StopDecision:
    """Of one decision on each field, one on all of them."""
    stability = min(each.stability for each in every)
    futile = any(each.reason == "futile" for each in every)
    if not futile and not all(each.stop for each in every):
        need = max(each.need for each in every)
        return StopDecision(stop=False, reason=None, leader=_leader(every), stability=stability, need=need)
    reason = "futile" if futile else min((each.reason for each in every if each.reason), key=_WEAKEST.index)
    return StopDecision(stop=True, reason=reason, leader=_leader(every), stability=stability, need=0)


def _leader(decisions: Sequence[StopDecision]) -> Hashable:
    return decisions[0].leader if len(decisions) == 1 else None
