"""Field-wise plurality: for each field of the answers, the value that most replicates give.

If most replicates have an object at a path, its keys are voted on one by one; arrays, numbers, strings and null are
voted on whole. A replicate without the field votes "absent". A tie is won by the group with the member that shares the
most leaves with other replicates, then by the text of its answer; the order of arrival does not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from steer_llm_sdk.evidence._leaves import ABSENT, Path, at, canonical, class_of, leaves

Group = tuple[int, ...]

_ANY_OBJECT: Final = object()


@dataclass(frozen=True, slots=True)
class Ballot:
    """A valid answer and the weight of its vote."""

    id: str
    data: Any
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """One field after the vote. `groups` are the ballots by answer, as indices, the winners first.

    `leaf` False: the vote was on whether there is an object here; its fields have tallies of their own.
    """

    path: Path
    choice: Any
    groups: tuple[Group, ...]
    values: Mapping[int, Any]
    leaf: bool = True


def shape_of(value: Any) -> Hashable:
    """The key under which a vote at one path is counted: the value itself, or for every object the same key."""
    return _ANY_OBJECT if isinstance(value, Mapping) else class_of(value)


@dataclass
class Election:
    """The vote over all ballots. `tallies` fills as fields are elected, in the order of the fields."""

    ballots: Sequence[Ballot]
    tallies: list[Tally] = field(default_factory=list)

    def elect(self, path: Path = ()) -> Any:
        """The value that wins at `path`; ABSENT if most replicates have none."""
        return self._elect(path, {index: at(ballot.data, path) for index, ballot in enumerate(self.ballots)})

    def weight(self, group: Iterable[int]) -> float:
        return sum(self.ballots[index].weight for index in group)

    @cached_property
    def rank(self) -> tuple[int, ...]:
        """For each ballot its place in the order: most leaves shared with others first, then by text."""
        split = [[(path, class_of(value)) for path, value in leaves(ballot.data)] for ballot in self.ballots]
        company = Counter(leaf for own in split for leaf in own)
        order = sorted(
            range(len(split)),
            key=lambda index: (-sum(company[leaf] for leaf in split[index]), canonical(self.ballots[index].data)),
        )
        places = {index: place for place, index in enumerate(order)}
        return tuple(places[index] for index in range(len(order)))

    def _elect(self, path: Path, votes: Mapping[int, Any]) -> Any:
        groups = self._groups(votes)
        choice = votes[groups[0][0]]
        if not isinstance(choice, Mapping) or not any(votes[index] for index in groups[0]):
            self.tallies.append(Tally(path=path, choice=choice, groups=groups, values=votes))
            return choice
        if len(groups) > 1:
            self.tallies.append(Tally(path=path, choice=choice, groups=groups, values=votes, leaf=False))
        return self._elect_keys(path, {index: votes[index] for index in groups[0]})

    def _elect_keys(self, path: Path, objects: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        elected = {}
        for key in dict.fromkeys(key for item in objects.values() for key in item):
            value = self._elect((*path, key), {index: item.get(key, ABSENT) for index, item in objects.items()})
            if value is not ABSENT:
                elected[key] = value
        return elected

    def _groups(self, votes: Mapping[int, Any]) -> tuple[Group, ...]:
        found: dict[Any, list[int]] = {}
        for index, value in votes.items():
            found.setdefault(shape_of(value), []).append(index)
        groups = [tuple(group) for group in found.values()]
        if len(groups) == 1:
            return (groups[0],)
        most = max(self.weight(group) for group in groups)
        leaders = [group for group in groups if self.weight(group) == most]
        winner = leaders[0] if len(leaders) == 1 else min(leaders, key=lambda group: min(self.rank[i] for i in group))
        return (winner, *(group for group in groups if group is not winner))
