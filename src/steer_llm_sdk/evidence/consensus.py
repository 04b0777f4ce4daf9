"""The vote: for each field of the answers the value that is chosen, and who gave it.

If most replicates have an object at a path, its keys are voted on one by one; arrays that no policy aligns, numbers,
texts and null are voted on whole. A replicate without the field votes "absent". A tie is won by the class with the
member that shares the most leaves with other replicates, then by the text of its whole answer, so that tied fields come
from one replicate; the order of arrival does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import add
from statistics import median_low
from typing import Any

from steer_llm_sdk.evidence._leaves import (
    ABSENT,
    PLACE,
    Path,
    aligned,
    bounded,
    canonical,
    class_of,
    dotted,
    key_in,
    natural,
    plain,
)
from steer_llm_sdk.evidence._reading import Column, Reading
from steer_llm_sdk.evidence.distance import Ruler
from steer_llm_sdk.evidence.equivalence import number_of


@dataclass(frozen=True, slots=True)
class Tally:
    """One field after the vote; `winner` is a class of its column.

    `leaf` False: the vote was on whether there is an object here; its fields have tallies of their own.
    """

    column: Column
    winner: int
    leaf: bool = True

    @property
    def path(self) -> Path:
        return self.column.path


@dataclass
class Election:
    """The vote over all ballots. `tallies` fills as columns are elected, in the order of the fields."""

    reading: Reading
    tallies: list[Tally] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    _texts: dict[int, str] = field(default_factory=dict)

    def elect(self, column: Column) -> Any:
        """The value that wins; ABSENT if most replicates have none."""
        winner = self._winner(column)
        if column.is_key:  # All have it, because it is what they were aligned by; that is no agreement.
            return column.said[winner]
        if winner != column.object_class or not column.children:
            self.tallies.append(Tally(column, winner))
            return plain(column.said[winner])
        if column.contested:
            self.tallies.append(Tally(column, winner, leaf=False))
        elected = {child.path[-1]: self.elect(child) for child in column.children}
        kept = {key: value for key, value in elected.items() if value is not ABSENT}
        return self._in_order(column, kept) if column.policy.aligned else kept

    def text(self, ballot: int) -> str:
        """The whole answer as a text, by which ties are decided that nothing else decides."""
        if ballot not in self._texts:
            voted = self.reading.columns[0].values[ballot] if self.reading.policies.roots is None else None
            self._texts[ballot] = canonical(bounded(self.reading.ballots[ballot].data) if voted is None else voted)
        return self._texts[ballot]

    def first(self, ballots: Sequence[int]) -> int:
        """Of several ballots the one with the most company, then the one whose text comes first."""
        company = self._company
        most = max([company[ballot] for ballot in ballots])
        return min([ballot for ballot in ballots if company[ballot] == most], key=self.text)

    # ── choosing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _winner(self, column: Column) -> int:
        if not column.contested:
            return 0
        absent = column.absent_class
        if column.keep is not None and absent is not None:
            given = [number for number in range(len(column.said)) if number != absent]
            present = sum(column.weights[number] for number in given)
            return self._heaviest(column, given) if present >= column.keep * sum(column.weights) else absent
        most = max(column.alike)
        if column.alike[most] == 1:
            winner = column.weights.index(most)
        else:
            winner = self._heaviest(column, range(len(column.said)))
        if column.policy.consensus == "mode" or column.policy.aligned or winner == column.object_class:
            return winner
        given = [number for number in range(len(column.said)) if number not in (absent, column.object_class)]
        if absent is not None and column.weights[absent] > sum(column.weights[number] for number in given):
            return absent
        chosen = self._chosen(column, given)
        return winner if chosen is None else chosen

    def _heaviest(self, column: Column, among: Sequence[int]) -> int:
        most = max(column.weights[number] for number in among)
        leaders = [number for number in among if column.weights[number] == most]
        if len(leaders) == 1:
            return leaders[0]
        return column.class_of[self.first([ballot for number in leaders for ballot in column.ballots_of[number]])]

    def _chosen(self, column: Column, given: Sequence[int]) -> int | None:
        """By another rule than the mode; None where it chooses none."""
        rule = column.policy.consensus
        if callable(rule):
            return self._called(column, given, rule)
        if rule == "first_valid":
            return next((number for number in column.classes if number in set(given)), None)
        return _median(column, given) if rule == "median" else self._medoid(column, given)

    def _medoid(self, column: Column, given: Sequence[int]) -> int | None:
        ruler = Ruler(column)
        far = {
            number: sum(column.weights[other] * ruler.distance(number, other) for other in given) for number in given
        }
        return min(given, key=lambda number: (far[number], canonical(column.said[number])), default=None)

    def _called(self, column: Column, given: Sequence[int], rule: Any) -> int | None:
        where = dotted(column.path)
        ranked = [number for number in column.by_weight if number in set(given)]
        try:
            chosen = rule([(plain(column.said[number]), column.weights[number]) for number in ranked])
            same = class_of(bounded(chosen), exact=True)
        except Exception as error:  # What was paid for is not lost by a rule that fails.
            self.warnings.append(f"{where}: the rule for the consensus raised {type(error).__name__}: {error}")
            return None
        for number in ranked:
            if class_of(column.said[number], exact=True) == same:
                return number
        self.warnings.append(f"{where}: the rule for the consensus returned {chosen!r}, which nobody said")
        return None

    # ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def _company(self) -> list[float]:
        """With how many each shares its leaves, by weight: the most for the one with the least distance to all."""
        found = [0.0] * len(self.reading.ballots)
        for column in self.reading.all_columns():
            nothing = (column.object_class, column.absent_class)
            shared = list(column.weights)
            for number in nothing:
                if number is not None:
                    shared[number] = 0.0
            if len(column.members) == len(found) and min(shared) == max(shared):
                continue  # All have as much of it.
            if len(column.members) == len(found):
                found = list(map(add, found, map(shared.__getitem__, column.classes)))
                continue
            for ballot, number in zip(column.members, column.classes, strict=True):
                found[ballot] += shared[number]
        return found

    def _in_order(self, column: Column, kept: dict[str, Any]) -> list[Any]:
        """The elements of an aligned array, where most have them."""
        if not kept:
            return []
        key = key_in(next(iter(kept)))
        if key == PLACE:  # They were numbered in this order.
            return [kept[name] for name in sorted(kept, key=natural)]
        places: dict[str, list[int]] = {}
        for value in column.values:
            found = aligned(value, key) if isinstance(value, list) else None
            for place, name in enumerate(found or ()):
                places.setdefault(name, []).append(place)
        return [kept[name] for name in sorted(kept, key=lambda name: (median_low(places[name]), name))]


def _median(column: Column, given: Sequence[int]) -> int | None:
    """The lower median of the numbers by weight."""
    units = column.policy.units
    known = [(number_of(column.said[number], units), number) for number in given]
    numbers = sorted((value, number) for value, number in known if value is not None)
    half, passed = sum(column.weights[number] for _, number in numbers) / 2, 0.0
    for _, number in numbers:
        passed += column.weights[number]
        if passed >= half:
            return number
    return None
