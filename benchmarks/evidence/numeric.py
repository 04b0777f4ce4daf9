"""What becomes of numbers that several answers differ on, and of answers that can be checked."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, median_low
from typing import Any, Final

from steer_llm_sdk.evidence import FieldPolicy, summarize

TOLERANCE: Final = 0.01
"""A number is an option if it is within this share of it."""

Question = dict[str, Any]
Chooser = Callable[[Question, Sequence[int]], Any]


def rows_of(path: Path) -> Iterator[Question]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def option_of(question: Question, value: float | None) -> str | None:
    """The letter of the option that a number is: as recorded where it was given, else by the number in the option."""
    if value is None:
        return None
    for given, letter in zip(question["numeric"], question["option_letter"], strict=True):
        if given == value:
            return letter if letter is None else str(letter)
    for option in question["options"]:
        found = re.search(r"-?\d+(?:\.\d+)?", option.partition(")")[2].replace(",", ""))
        if found and abs(float(found.group()) - value) <= TOLERANCE * max(abs(float(found.group())), abs(value)):
            return str(option[0])
    return None


def _given(question: Question, draws: Sequence[int]) -> list[float]:
    return [question["numeric"][draw] for draw in draws if question["numeric"][draw] is not None]


def _of_given(combine: Callable[[Sequence[float]], float]) -> Chooser:
    def choose(question: Question, draws: Sequence[int]) -> str | None:
        given = _given(question, draws)
        return option_of(question, combine(given)) if given else None

    return choose


def _consensus(policy: FieldPolicy | None, *, validated: bool = False) -> Chooser:
    def choose(question: Question, draws: Sequence[int]) -> str | None:
        schema = (lambda value: option_of(question, value) is not None) if validated else None
        fields = None if policy is None else {"$": policy}
        found = summarize(_given(question, draws), schema=schema, fields=fields, pairwise=False)
        said = found.consensus
        if said is None:  # No two agree: the first one that was given, and is an option where that is known.
            valid = [x for x in _given(question, draws) if schema is None or schema(x)]
            said = valid[0] if valid else None
        return option_of(question, said)

    return choose


REDUCERS: Final[Mapping[str, Chooser]] = {
    "the first one": lambda question, draws: option_of(question, next(iter(_given(question, draws)), None)),
    "mean": _of_given(fmean),
    "median": _of_given(median),
    "median_low": _of_given(median_low),
    "summarize: mode": _consensus(None),
    "summarize: classes within 1 %": _consensus(FieldPolicy(rel_tol=TOLERANCE)),
    "summarize: classes within 1 %, validated": _consensus(FieldPolicy(rel_tol=TOLERANCE), validated=True),
}


def accuracy(questions: Sequence[Question], k: int, choose: Chooser, orders: int) -> float:
    rng = random.Random(4)
    return fmean(
        choose(question, rng.sample(range(len(question["numeric"])), k)) == question["gold"]
        for question in questions
        for _ in range(orders)
    )


def solved(puzzles: Sequence[Question], k: int, orders: int, *, validated: bool) -> float:
    """The share of puzzles whose consensus a checker accepts. `validated`: only what it accepts has a vote."""
    rng, good = random.Random(5), []
    for puzzle in puzzles:
        for _ in range(orders):
            draws = rng.sample(range(len(puzzle["draws"])), k)
            said = [(puzzle["values"][puzzle["draws"][draw]], bool(puzzle["valid"][draw])) for draw in draws]
            accepted = {answer for answer, valid in said if valid}
            schema = accepted.__contains__ if validated else None
            found = summarize([answer for answer, _ in said], schema=schema, pairwise=False)
            consensus = found.consensus
            if consensus is None:
                consensus = next((answer for answer, valid in said if valid or not validated), None)
            good.append(consensus in accepted)
    return fmean(good)
