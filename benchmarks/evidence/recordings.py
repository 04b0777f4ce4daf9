"""The recordings that the benchmark replays, as votes: one list of answers to each question, and which are right."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SKIPPED: Final = {
    "game24_gpt4_validator": "a checker decides there, no vote",
    "zeroeval_crux_raw_json_outputs": "texts for parsing, of questions that zeroeval_crux has",
}
VARIED_SHARE: Final = 0.25
"""Replicates of a set vary if at least this share of its questions has two different answers, invalid as one."""


@dataclass(frozen=True, slots=True)
class Question:
    """`votes` as recorded; None is an invalid answer. `right` holds the correct answers."""

    task: str
    id: str
    votes: tuple[str | None, ...]
    right: frozenset[str]

    @property
    def held_out(self) -> bool:
        """About half of all questions, chosen by a hash of their names before any rule was compared."""
        return hashlib.sha256(f"{self.task}:{self.id}".encode()).digest()[0] % 2 == 1

    def drawn(self, rng: random.Random, k: int) -> list[str | None]:
        """k of the recorded answers, in random order and without putting any back."""
        return rng.sample(self.votes, k)


def load(folder: Path) -> dict[str, list[Question]]:
    """The questions of each task that has votes. A file whose ids are task/number holds several tasks."""
    tasks: dict[str, list[Question]] = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        name = path.name.removesuffix(".jsonl.gz")
        if name in SKIPPED:
            continue
        for row in _rows(path):
            kind, slash, _ = str(row["id"]).partition("/")
            task = f"{name}{kind}" if slash else name
            tasks.setdefault(task, []).append(_question(task, row))
    return tasks


def varied(questions: Sequence[Question]) -> bool:
    several = sum(len(set(question.votes)) > 1 for question in questions)
    return several >= VARIED_SHARE * len(questions)


def plurality(votes: Sequence[str | None]) -> frozenset[str]:
    """The answers with most votes; several if they are level, none if no vote is valid."""
    tally = Counter(vote for vote in votes if vote is not None)
    most = max(tally.values(), default=0)
    return frozenset(answer for answer, count in tally.items() if count == most)


def accuracy(leaders: frozenset[str], question: Question) -> float:
    """The share of the leaders that is right."""
    return len(leaders & question.right) / len(leaders) if leaders else 0.0


def _question(task: str, row: dict[str, Any]) -> Question:
    votes = row["option_letter"] if "option_letter" in row else _decoded(row)
    if row.get("gold") is not None:
        right = frozenset({str(row["gold"])})
    else:
        right = frozenset(vote for vote, good in zip(votes, row["correct"], strict=True) if good and vote is not None)
    return Question(task, str(row["id"]), tuple(votes), right)


def _decoded(row: dict[str, Any]) -> list[str | None]:
    values = [None if value is None else str(value) for value in row["values"]]
    return [values[draw] for draw in row["draws"]]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
