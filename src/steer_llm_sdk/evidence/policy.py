"""How one field is compared, and how its consensus is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args, get_origin

from pydantic import BaseModel

from steer_llm_sdk.evidence._leaves import ELEMENT, Path, is_element, parse_path, parse_paths

Compare: TypeAlias = Literal["canonical", "exact", "number", "text", "date", "ignore"]
Choice: TypeAlias = Literal["mode", "median", "medoid", "union", "first_valid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldPolicy:
    """How the values of a field are compared, and which of them is the consensus.

        FieldPolicy(rel_tol=0.01)                          # 100 and 100.5 are the same number
        FieldPolicy(units={"kg": 1, "g": 0.001})           # "2 kg" and "2000 g" are the same number
        FieldPolicy(compare="date", day_first=True)        # 03/04/2026 is the third of April
        FieldPolicy(similarity=0.8, consensus="medoid")    # free text
        FieldPolicy(key="id")                              # an array of objects, element by element
        FieldPolicy(align=True)                            # the same, by what tells the elements apart
        FieldPolicy(consensus="union", threshold=0.5)      # an array as a set: what at least half of them have

    `compare` says which values are the same answer:

    - "canonical" (the default): text after Unicode NFKC, without regard to case and to how wide the space between words
      is; numbers by value, also where one of them is in quotes.
    - "exact": the same JSON value.
    - "number": within `abs_tol` or `rel_tol` x the larger one of the two, of every other number in its class. `units`
      are factors by the word behind or before the number.
    - "text": texts whose every two share at least `similarity` of their sequences of three characters.
    - "date": ISO dates and times, and those with a month in English. `day_first` says how 03/04/2026 is read; without
      it such a date is text.
    - "ignore": the field has no vote, no part in a distance, and comes from the answer nearest to the consensus.

    A tolerance or units imply "number", a similarity "text", and `day_first` "date".

    `judge(a, b)` says whether two answers that these rules tell apart are the same. It is asked for each pair of
    classes, about the most frequent value of each, in every summary anew; a class joins another only if it is the same
    as all in it.

    `consensus`: "mode", the class with most weight; "median", the lower median of numbers; "medoid", the value with the
    smallest mean distance to all; "union", of an array the elements that at least `threshold` of the answers have;
    "first_valid", that of the first replicate by id; or a callable that is given the distinct values with their weights
    and returns one of the values. The consensus is always a value that somebody gave, never one between two.

    `key` aligns arrays of objects by the value of that key; an element is kept if at least `threshold` have it.
    `align` does where no key is known: by one whose values are unique in at least 80 % of the arrays and are shared by
    several, else by the assignment under which the elements are most alike, half alike at least (in arrays of over 50
    elements by their place). In paths such an element is `[#=1]`, the first of the consensus.
    """

    compare: Compare | None = None
    consensus: Choice | Callable[[Sequence[tuple[Any, float]]], Any] = "mode"
    abs_tol: float = 0.0
    rel_tol: float = 0.0
    units: Mapping[str, float] | None = None
    similarity: float = 1.0
    day_first: bool | None = None
    judge: Callable[[Any, Any], bool] | None = None
    key: str | None = None
    align: bool = False
    threshold: float = 0.5

    def __post_init__(self) -> None:
        self._check("abs_tol", self.abs_tol, 0, math.inf)
        self._check("rel_tol", self.rel_tol, 0, 1)
        self._check("similarity", self.similarity, 0, 1)
        self._check("threshold", self.threshold, 0, 1)
        for name in ("compare", "consensus"):
            allowed = get_args(Compare if name == "compare" else Choice)
            given = getattr(self, name)
            if not (given is None and name == "compare") and not callable(given) and given not in allowed:
                raise ValueError(f"{name}: {given!r} is not known; give one of {', '.join(allowed)}")
        implied = self._implied()
        if len(implied) > 1 or (implied and self.compare not in (None, *implied)):
            raise ValueError(f"compare: {self.compare or 'number'!r} does not go with the options of {implied[-1]!r}")
        if self.aligned and (self.compare is not None or implied or self.judge is not None):
            raise ValueError("key: an aligned array has no comparison of its own; give its elements a policy instead")
        if self.align and (self.key is not None or self.consensus == "union"):
            raise ValueError("align: True is for arrays of which no key is known, and that are no sets; leave it out")

    @property
    def kind(self) -> Compare:
        """`compare`, or what the other options imply."""
        if self.compare is not None:
            return self.compare
        implied = self._implied()
        return implied[0] if implied else "canonical"

    @property
    def aligned(self) -> bool:
        """Whether an array under this policy is voted on element by element."""
        return self.key is not None or self.align or self.consensus == "union"

    def _implied(self) -> list[Compare]:
        implied: list[Compare] = []
        if self.abs_tol or self.rel_tol or self.units is not None:
            implied.append("number")
        if self.similarity < 1:
            implied.append("text")
        if self.day_first is not None:
            implied.append("date")
        return implied

    @staticmethod
    def _check(name: str, given: float, low: float, high: float) -> None:
        if not low <= given <= high or math.isinf(given):
            raise ValueError(f"{name}: {given!r} cannot be used; give a number from {low} to {high}")


DEFAULT: Final = FieldPolicy()

Fields: TypeAlias = Sequence[str] | Mapping[str, FieldPolicy]
"""Paths that alone are voted on, or policies by path beside which all else is voted on by default."""


@dataclass(frozen=True, slots=True)
class Policies:
    """The policy of each path. `roots` are the paths that are voted on; None is all of them. `named` by the caller."""

    by_path: Mapping[Path, FieldPolicy]
    roots: Sequence[Path] | None = None
    named: Sequence[Path] = ()

    @classmethod
    def of(cls, fields: Fields | Policies | None, schema: Any = None) -> Policies:
        """Declared policies over those in the annotations of `schema`, where that is a pydantic model."""
        if isinstance(fields, Policies):
            return fields
        annotated = {} if schema is None else dict(annotated_policies(schema))
        if fields is None:
            return cls(annotated)
        if isinstance(fields, Mapping):
            for name, policy in fields.items():
                if not isinstance(policy, FieldPolicy):
                    raise ValueError(f"fields: {policy!r} for {name!r} is no FieldPolicy; give FieldPolicy(...)")
            given = {parse_path(name): policy for name, policy in fields.items()}
            return cls({**annotated, **given}, named=tuple(given))
        if not isinstance(fields, Sequence) or not all(isinstance(path, str) for path in fields):
            raise ValueError(
                f"fields: {fields!r} are no paths; give a list of texts, such as ['answer', 'person.name']"
            )
        if isinstance(fields, str):
            raise ValueError(f"fields: {fields!r} is one text; give a list of paths, such as [{fields!r}]")
        if not fields:
            raise ValueError("fields: [] leaves nothing to vote on; give paths, or None for all")
        return cls(annotated, parse_paths(fields), tuple(map(parse_path, fields)))

    def at(self, path: Path) -> FieldPolicy:
        if not self.by_path:
            return DEFAULT
        found = self.by_path.get(path)
        if found is None and any(part.startswith("[") for part in path):
            found = self.by_path.get(tuple(ELEMENT if is_element(part) else part for part in path))
        return DEFAULT if found is None else found


def annotated_policies(schema: Any, path: Path = ()) -> list[tuple[Path, FieldPolicy]]:
    """The policies in the annotations of a pydantic model: `price: Annotated[float, FieldPolicy(rel_tol=0.01)]`."""
    return _annotated(schema, path, ())


def _annotated(annotation: Any, path: Path, around: tuple[Any, ...]) -> list[tuple[Path, FieldPolicy]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in around:  # A model that holds itself has no last level.
            return []
        found: list[tuple[Path, FieldPolicy]] = []
        for name, field in annotation.model_fields.items():
            inner = (*path, field.serialization_alias or field.alias or name)
            found += [(inner, item) for item in field.metadata if isinstance(item, FieldPolicy)]
            found += _annotated(field.annotation, inner, (*around, annotation))
        return found
    found = [(path, item) for item in getattr(annotation, "__metadata__", ()) if isinstance(item, FieldPolicy)]
    into = (*path, ELEMENT) if get_origin(annotation) in (list, tuple, set, frozenset) else path
    return found + [each for part in get_args(annotation) for each in _annotated(part, into, around)]
