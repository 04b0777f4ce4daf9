"""The recorded questions, the models that answered them, and the order in which the models take turns."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

POOL = "demo"
"""The name under which all recorded models answer in turn."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`raw`: the reply as the model gave it. `extracted`: only the answer was kept, and stands here as JSON."""

    model: str
    text: str
    kind: Literal["raw", "extracted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """`gold` is the right answer. `answers` has one entry per recorded model."""

    id: str
    text: str
    gold: str
    answers: Mapping[str, Answer] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """`models` in the order of the source. Questions are found by their id or by their words."""

    name: str
    source: str
    models: tuple[str, ...]
    questions: tuple[Question, ...] = field(repr=False)
    _by_words: Mapping[str, Question] = field(repr=False)

    @classmethod
    def of(cls, *, name: str, source: str, models: Iterable[str], questions: Iterable[Question]) -> Recording:
        asked = tuple(questions)
        by_words = {_words(key): question for question in asked for key in (question.text, question.id)}
        return cls(name=name, source=source, models=tuple(models), questions=asked, _by_words=by_words)

    def find(self, text: str) -> Question | None:
        """The question with these words, whatever the white space between them; or with this id."""
        return self._by_words.get(_words(text))

    def model_named(self, name: str) -> str | None:
        """The recorded model of this name: an exact match, else the only one that differs in case and punctuation.

        A leading "recorded:" is ignored. The name of the pool counts as a model.
        """
        name = name.removeprefix("recorded:")
        names = (POOL, *self.models)
        if name in names:
            return name
        alike = [known for known in names if _plain(known) == _plain(name)]
        return alike[0] if len(alike) == 1 else None

    def kind_of(self, model: str) -> Literal["raw", "extracted"]:
        return self.questions[0].answers[model].kind

    def in_turn(self, question: Question) -> tuple[str, ...]:
        """Every model that answered the question, in an order that depends on the question alone."""
        return tuple(sorted(question.answers, key=lambda model: _digest(question.id, model)))


@cache
def shipped_recording() -> Recording:
    """The recording in the package, read once per process, in some tens of milliseconds."""
    packed = resources.files(__package__).joinpath("data", "crux.jsonl.gz").read_bytes()
    header, *lines = (json.loads(line) for line in gzip.decompress(packed).decode("utf-8").splitlines())
    return Recording.of(
        name=header["recording"],
        source=f"{header['source']} at {header['commit']} ({header['licence']})",
        models=[*header["raw_models"], *header["extracted_models"]],
        questions=[_question(header, line) for line in lines],
    )


def _question(header: Mapping[str, Any], line: Mapping[str, Any]) -> Question:
    raw = zip(header["raw_models"], line["raw"], strict=True)
    extracted = zip(header["extracted_models"], line["extracted"], strict=True)
    answers = [Answer(model, text, "raw") for model, text in raw]
    answers += [Answer(model, _as_json(answer), "extracted") for model, answer in extracted]
    by_model = {answer.model: answer for answer in answers}
    return Question(id=line["id"], text=line["question"], gold=line["gold"], answers=by_model)


def _as_json(answer: str | None) -> str:
    return json.dumps({"answer": answer}, ensure_ascii=False)


def _words(text: str) -> str:
    return " ".join(text.split())


def _plain(name: str) -> str:
    return "".join(character for character in name.casefold() if character.isalnum())


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode("utf-8")).digest()
