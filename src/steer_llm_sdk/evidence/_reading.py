"""The answers as a table: a column for each field, in which every value has the number of its class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import fsum
from typing import Any, Final, NamedTuple, overload

from steer_llm_sdk.evidence._alignment import Assignment, found_key
from steer_llm_sdk.evidence._leaves import (
    ABSENT,
    Absent,
    Path,
    Whole,
    aligned,
    at,
    bounded,
    canonical,
    class_of,
    is_element,
)
from steer_llm_sdk.evidence.distributions import entropy
from steer_llm_sdk.evidence.equivalence import OBJECT, Key, clusters, key_of, number_of
from steer_llm_sdk.evidence.policy import FieldPolicy, Policies

_PLAIN: Final = frozenset({str, int, float, type(None), Absent})
"""Types whose values `==` tells apart as well as anything; a truth value is none of them, because True == 1."""
_WITHOUT_NUMBERS: Final = frozenset({str, bool, type(None), Absent})
_NUMERIC: Final = frozenset({int, float})
_MANY: Final = 100
"""Classes from which not each has a list of its ballots."""


class Ballot(NamedTuple):
    """A valid answer and the weight of its vote."""

    id: str
    data: Any
    weight: float = 1.0
    model: str | None = None


@dataclass(kw_only=True)
class Column:
    """One field: `values[i]`, of the types `kinds`, and `classes[i]` are those of the ballot `members[i]`, an index.

    The members are the ballots that have an object where this field would be; one without the field votes ABSENT.
    Class c has the ballots `ballots_of[c]`, the weight `weights[c]` and, as the one that most gave, `said[c]`.
    `object_class` is the class of those that have an object here, or an array that is aligned; their fields are the
    `children`. `keep` is set for an element of an aligned array: the share that must have it. `is_key`: it
    is what aligned them, and they have other fields too.
    """

    path: Path
    policy: FieldPolicy
    members: Sequence[int]
    values: Sequence[Any]
    kinds: set[type]
    classes: Sequence[int]
    ballots_of: Sequence[Sequence[int]]
    weights: list[float]
    said: Sequence[Any]
    object_class: int | None
    children: Sequence[Column]
    keep: float | None
    is_key: bool

    @property
    def contested(self) -> bool:
        return len(self.said) > 1

    @cached_property
    def absent_class(self) -> int | None:
        if Absent not in self.kinds:
            return None
        return next((number for number, value in enumerate(self.said) if value is ABSENT), None)

    @cached_property
    def class_of(self) -> Mapping[int, int]:
        """The class of each ballot that is a member."""
        return dict(zip(self.members, self.classes, strict=True))

    @cached_property
    def alike(self) -> Mapping[float, int]:
        """How many classes have each weight."""
        return Counter(self.weights)

    @cached_property
    def entropy(self) -> float:
        return entropy(self.alike)

    @cached_property
    def given(self) -> Sequence[int]:
        """The classes of those who have the field, the heaviest first."""
        absent = self.absent_class
        return self.by_weight if absent is None else [number for number in self.by_weight if number != absent]

    @cached_property
    def by_weight(self) -> Sequence[int]:
        """The classes, the heaviest first, then in the order of the replicates."""
        if len(self.alike) == 1:
            return range(len(self.weights))
        return sorted(range(len(self.weights)), key=self.weights.__getitem__, reverse=True)

    def below(self) -> Iterator[Column]:
        """This column and all below it."""
        yield self
        for child in self.children:
            yield from child.below()


class Reading:
    """`columns` are those at the top: one for the whole answer, or one for each path that is voted on.

    `warnings` tells of a judge that raised: the values he was asked about stay different answers. `whole` are the
    ballots of which something is too large to be compared part by part.
    """

    def __init__(self, ballots: Sequence[Ballot], policies: Policies) -> None:
        self.ballots = ballots
        self.policies = policies
        self.warnings: list[str] = []
        self.ignored: list[Path] = []
        self._weights = [ballot.weight for ballot in ballots]
        self._alike = all(weight == 1.0 for weight in self._weights)
        everyone = range(len(ballots))
        roots: Sequence[Path] = ((),) if policies.roots is None else policies.roots
        at_roots = [[bounded(at(ballot.data, root)) for ballot in ballots] for root in roots]
        self.whole = [index for index, values in enumerate(zip(*at_roots, strict=True)) if Whole in map(type, values)]
        self.columns = [self._column(root, everyone, values) for root, values in zip(roots, at_roots, strict=True)]

    def all_columns(self) -> Iterator[Column]:
        for column in self.columns:
            yield from column.below()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _column(self, path: Path, members: Sequence[int], values: Sequence[Any], keep: float | None = None) -> Column:
        policy = self.policies.at(path)
        shapes = self._aligned(members, values, policy) if policy.aligned else values
        raw, kinds = _raw_keys(shapes)
        weights = Counter(raw) if self._alike else self._weighed(raw, members)
        classes: Sequence[int]
        if kinds <= _NUMERIC and len(weights) == len(raw) and _by_value_alone(policy):
            # All differ.
            return Column(
                path=path,
                policy=policy,
                members=members,
                values=values,
                kinds=kinds,
                classes=range(len(raw)),
                ballots_of=_Alone(members),
                weights=list(weights.values()),
                said=values,
                object_class=None,
                children=[],
                keep=keep,
                is_key=self._is_key(path),
            )
        if kinds <= _NUMERIC and _by_value_alone(policy):
            # Each number is a class of its own, and the key of the counter the first value that was equal to it.
            said, lookup, object_class = list(weights), {key: number for number, key in enumerate(weights)}, None
            of_classes = list(map(float, weights.values()))
        else:
            leaders, spokesmen = self._classes(path, raw, values, weights, policy)
            numbers = {leader: number for number, leader in enumerate(spokesmen)}
            lookup = {key: numbers[leader] for key, leader in leaders.items()}
            said, object_class = list(spokesmen.values()), numbers.get(OBJECT)
            of_classes = [0.0] * len(said)
            for key, weight in weights.items():
                of_classes[lookup[key]] += weight
        classes = list(map(lookup.__getitem__, raw))
        ballots_of = _split(members, classes, len(said))
        return Column(
            path=path,
            policy=policy,
            members=members,
            values=values,
            kinds=kinds,
            classes=classes,
            ballots_of=ballots_of,
            weights=of_classes,
            said=said,
            object_class=object_class,
            children=[] if object_class is None else self._children(path, members, shapes, policy),
            keep=keep,
            is_key=self._is_key(path),
        )

    def _is_key(self, path: Path) -> bool:
        """Whether it is the field by which elements of an aligned array are told apart."""
        return len(path) > 1 and is_element(path[-2]) and path[-2].startswith(f"[{path[-1] or '='}=")

    def _weighed(self, raw: Sequence[Hashable], members: Sequence[int]) -> dict[Hashable, float]:
        weights: dict[Hashable, list[float]] = {}
        for key, index in zip(raw, members, strict=True):
            weights.setdefault(key, []).append(self._weights[index])
        return {key: fsum(of_key) for key, of_key in weights.items()}

    def _children(self, path: Path, members: Sequence[int], shapes: Sequence[Any], policy: FieldPolicy) -> list[Column]:
        with_object = [(index, value) for index, value in zip(members, shapes, strict=True) if isinstance(value, dict)]
        indices = [index for index, _ in with_object]
        objects = [value for _, value in with_object]
        keep = policy.threshold if policy.aligned else None
        found = []
        for key, column in _by_key(objects):
            below = (*path, key)
            if self.policies.at(below).kind == "ignore":
                self.ignored.append(below)
            else:
                found.append(self._column(below, indices, column, keep))
        if len(found) == 1:
            found[0].is_key = False
        return found

    def _aligned(self, members: Sequence[int], values: Sequence[Any], policy: FieldPolicy) -> Sequence[Any]:
        """The values with the elements of arrays by name, where they can be told apart."""
        arrays = [
            (value, self._weights[index]) for index, value in zip(members, values, strict=True) if type(value) is list
        ]
        if not arrays:
            return values
        key = found_key([array for array, _ in arrays]) if policy.align else policy.key
        if policy.align and key is None:
            assignment = Assignment(arrays, policy.threshold)
            return [assignment.named(value) if type(value) is list else value for value in values]
        return [_by_name(value, key) for value in values]

    # ── classes ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _classes(
        self,
        path: Path,
        raw: Sequence[Hashable],
        values: Sequence[Any],
        weights: Mapping[Any, float],
        policy: FieldPolicy,
    ) -> tuple[Mapping[Hashable, Key], Mapping[Key, Any]]:
        """From the raw key to the one that stands for its class, and the value that most of each class gave."""
        first = dict(zip(reversed(raw), reversed(values), strict=True))
        if policy.judge is not None:
            # He may tell 0 from -0.0 and 1 from 1.0, which are one answer: he is shown the same one in any order.
            for key, value in zip(raw, values, strict=True):
                first[key] = min(first[key], value, key=canonical)
        keys = _keys(weights, first, policy)
        if policy.kind in ("number", "text") or policy.judge is not None:
            keys = self._clustered(path, keys, first, weights, policy)
        members: dict[Key, list[Hashable]] = {}
        for key, leader in keys.items():
            members.setdefault(leader, []).append(key)
        spread = policy.kind == "number"
        said = {
            leader: first[group[0]] if len(group) == 1 else _spokesman(group, first, weights, spread, policy)
            for leader, group in members.items()
        }
        return keys, said

    def _clustered(
        self,
        path: Path,
        keys: Mapping[Hashable, Key],
        first: Mapping[Hashable, Any],
        weights: Mapping[Any, float],
        policy: FieldPolicy,
    ) -> Mapping[Hashable, Key]:
        by_key: dict[Key, list[Hashable]] = {}
        for raw, key in keys.items():
            by_key.setdefault(key, []).append(raw)
        heavy = {key: fsum(weights[raw] for raw in group) for key, group in by_key.items()}
        said = {key: _spokesman(group, first, weights, False, policy) for key, group in by_key.items()}
        heavy.pop(OBJECT, None)
        try:
            leaders = clusters(heavy, said, policy)
        except Exception as error:  # The caller's judge; what was paid for is not lost by it.
            self.warnings.append(f"{'.'.join(path) or '$'}: the judge raised {type(error).__name__}: {error}")
            return keys
        return {raw: leaders.get(key, key) for raw, key in keys.items()}


def _by_value_alone(policy: FieldPolicy) -> bool:
    """Whether numbers are the same answer exactly if they are equal."""
    return policy.kind in ("canonical", "exact", "date", "text") and policy.judge is None


def _by_key(objects: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Each key with what the objects have there."""
    names = tuple(objects[0])
    if all(tuple(each) == names for each in objects):
        return zip(names, zip(*map(dict.values, objects), strict=True), strict=True)
    return ((key, [each.get(key, ABSENT) for each in objects]) for key in dict.fromkeys(chain.from_iterable(objects)))


def _by_name(value: Any, key: str | None) -> Any:
    found = aligned(value, key) if isinstance(value, list) else None
    return value if found is None else found


def _raw_keys(shapes: Sequence[Any]) -> tuple[Sequence[Hashable], set[type]]:
    """A key for each value that is equal for the same JSON value only, and the types of the values."""
    kinds = set(map(type, shapes))
    if kinds <= _PLAIN or kinds <= _WITHOUT_NUMBERS:
        return shapes, kinds
    return [OBJECT if isinstance(value, dict) else _raw_key(value) for value in shapes], kinds


def _raw_key(value: Any) -> Hashable:
    return value if isinstance(value, str) else class_of(value, exact=True)


def _keys(weights: Mapping[Any, float], first: Mapping[Hashable, Any], policy: FieldPolicy) -> Mapping[Hashable, Key]:
    return {key: OBJECT if key == OBJECT else key_of(first[key], policy) for key in weights}


def _spokesman(
    group: Sequence[Hashable],
    first: Mapping[Hashable, Any],
    weights: Mapping[Any, float],
    spread: bool,
    policy: FieldPolicy,
) -> Any:
    """What stands for a class: of numbers within a tolerance the lower median, else what most gave, then by text."""
    if spread:
        numbers = [(number_of(first[key], policy.units), key) for key in group]
        known = sorted((number, canonical(first[key]), key) for number, key in numbers if number is not None)
        half, passed = fsum(weights[key] for _, _, key in known) / 2, 0.0
        for number, _, key in known:
            passed += weights[key]
            if passed >= half:
                same = [other for value, _, other in known if value == number]
                return first[min(same, key=lambda other: (-weights[other], canonical(first[other])))]
    return first[min(group, key=lambda key: (-weights[key], canonical(first[key])))]


class _Alone(Sequence[Sequence[int]]):
    """The ballots of each class where every ballot is one."""

    def __init__(self, members: Sequence[int]) -> None:
        self._members = members

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, number: int) -> Sequence[int]: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Sequence[int]]: ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return [[index] for index in self._members[number]]
        return (self._members[number],)


class _Several(Sequence[Sequence[int]]):
    """The ballots of each class where most have few: a list is made for those with more than one only.

    A thousand lists would take longer than all that is counted, and most are never looked at.
    """

    def __init__(self, members: Sequence[int], classes: Sequence[int], count: int) -> None:
        self._members, self._classes, self._count = members, classes, count
        several: dict[int, list[int]] = {number: [] for number, n in Counter(classes).items() if n > 1}
        for index, number in zip(members, classes, strict=True) if several else ():
            if number in several:
                several[number].append(index)
        self._several = several

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Sequence[int]: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Sequence[int]]: ...
    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            return [self[each] for each in range(self._count)[number]]
        number = range(self._count)[number]
        return self._several.get(number) or (self._members[self._classes.index(number)],)


def _split(members: Sequence[int], classes: Sequence[int], count: int) -> Sequence[Sequence[int]]:
    if count == 1:
        return [members]
    if count == len(members):
        return [[index] for index in members]
    if count > _MANY:
        return _Several(members, classes, count)
    found: list[list[int]] = [[] for _ in range(count)]
    for index, number in zip(members, classes, strict=True):
        found[number].append(index)
    return found
