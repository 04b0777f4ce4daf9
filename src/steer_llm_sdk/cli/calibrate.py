"""`steer-llm calibrate`: from labelled answers to a file that says how far further answers can be trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from steer_llm_sdk.cli._show import console, table_of
from steer_llm_sdk.cli.exits import errors_as_exits, refuse
from steer_llm_sdk.errors import MISSING
from steer_llm_sdk.evidence import ABSENT, Calibrator, at, parse_path
from steer_llm_sdk.evidence._leaves import Path as FieldPath
from steer_llm_sdk.evidence._leaves import class_of
from steer_llm_sdk.evidence.stopping import RULES

_SHOWN = ("status", "model", "k", "rule", "method", "n", "tasks", "accuracy", "ece", "brier", "auroc", "highest")


@dataclass(frozen=True, slots=True)
class _Line:
    votes: list[Hashable]
    correct: bool
    task: str | None
    model: str | None
    k: int | None


def calibrate(
    labels: Annotated[Path, typer.Argument(help="JSON lines; - is stdin.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where the calibrator goes; else to stdout.")] = None,
    k: Annotated[int | None, typer.Option("-k", "--k", help="Votes asked for; else the most of any line.")] = None,
    model: Annotated[str | None, typer.Option("-m", "--model", help="Who answered; else as the lines say.")] = None,
    rule: Annotated[
        str | None,
        typer.Option(help=f"Cut votes where this rule would have stopped: {', '.join(RULES)}."),
    ] = None,
    field: Annotated[str, typer.Option(help="Of answers that are objects, the path that was labelled.")] = "$",
    further_tasks: Annotated[
        bool, typer.Option("--further-tasks", help="For tasks that are not among those the lines name.")
    ] = False,
) -> None:
    """Learn from labelled answers how likely an answer is to be right, by how much its replicates agree.

    A line is {"votes": [...], "correct": true}, the votes in order of arrival, null for an invalid one; with "answer"
    in place of "correct" the most frequent vote is compared with it. In place of "votes" it may have an
    "evidence_bundle", as a run returns it. "task", "model" and "k" are optional.

    Use it with LLMBundleTool(..., calibrator=Calibrator.from_json(text)). It holds for this model, k and rule only.
    """
    with errors_as_exits():
        if rule is not None and rule not in RULES:
            refuse("--rule", rule, f"the rules are {', '.join(RULES)}")
        path = _path(field)
        lines = [_read(number, text, path) for number, text in enumerate(_texts(labels), start=1) if text.strip()]
        if not lines:
            refuse("labels", str(labels), "there is no line in it")
        who = model or _one("model", {line.model for line in lines})
        if who is None:
            refuse("--model", MISSING, "say who answered: a calibrator holds for one model only")
        try:
            made = Calibrator.fit(
                [line.votes for line in lines],
                [line.correct for line in lines],
                k=k or _one("k", {line.k for line in lines}) or max(len(line.votes) for line in lines),
                model=who,
                rule=rule,
                tasks=[line.task or "" for line in lines] if further_tasks else None,
                date=datetime.now(UTC).date().isoformat(),
            )
        except ValueError as error:
            refuse("labels", str(labels), str(error))
        if out is None:
            print(made.to_json())
        else:
            out.write_text(made.to_json() + "\n", encoding="utf-8")
        _show(made, error=out is None)


def _show(made: Calibrator, *, error: bool) -> None:
    table, report = table_of("", ""), made.report()
    for name in _SHOWN:
        value = report[name]
        table.add_row(Text(name), Text(f"{value:.3f}" if isinstance(value, float) else str(value)))
    console(stderr=error).print(table)


def _texts(labels: Path) -> Iterable[str]:
    if str(labels) == "-":
        return sys.stdin.readlines()
    try:
        return labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        refuse("labels", str(labels), f"name a file that can be read ({getattr(error, 'strerror', None) or error})")


def _path(field: str) -> FieldPath:
    try:
        return parse_path(field)
    except ValueError as error:
        refuse("--field", field, str(error))


def _one(name: str, said: set[Any]) -> Any:
    known = sorted(said - {None}, key=str)
    if len(known) > 1:
        refuse(name, known, f"one calibrator is of one {name}; sort the lines by it, or give --{name}")
    return known[0] if known else None


def _read(number: int, text: str, path: FieldPath) -> _Line:
    where = f"line {number}"
    try:
        row = json.loads(text)
    except ValueError as error:
        refuse(where, text[:60], f"it is no JSON: {error}")
    if not isinstance(row, Mapping):
        refuse(where, text[:60], 'give an object, such as {"votes": ["a", "a", "b"], "correct": true}')
    bundle = row.get("evidence_bundle")
    meta = bundle.get("meta", {}) if isinstance(bundle, Mapping) else {}
    given = _of_bundle(where, bundle) if bundle is not None else row.get("votes")
    if not isinstance(given, list):
        refuse(where, text[:60], 'give "votes", a list of answers, or an "evidence_bundle"')
    votes = [_vote(vote, path) for vote in given]
    return _Line(
        votes,
        _is_right(where, row, votes, path),
        row.get("task"),
        row.get("model", meta.get("model")),
        row.get("k", meta.get("k")),
    )


def _vote(answer: Any, path: FieldPath) -> Hashable:
    said = at(answer, path)
    return None if said is ABSENT else class_of(said)


def _of_bundle(where: str, bundle: Any) -> list[Any]:
    try:
        replicates = bundle["replicates"]
        return [each["data"] if each["quality"]["valid"] else None for each in replicates]
    except (TypeError, KeyError) as error:
        refuse(where, str(bundle)[:60], f"it is no evidence bundle: {error!r}")


def _is_right(where: str, row: Mapping[str, Any], votes: list[Hashable], path: FieldPath) -> bool:
    correct = row.get("correct")
    if isinstance(correct, bool):
        return correct
    if "answer" not in row:
        refuse(where, dict(row), 'give "correct", true or false, or "answer", the right one')
    valid = [vote for vote in votes if vote is not None]
    answer = row["answer"]
    right = class_of(at(answer, path)) if isinstance(answer, Mapping) else class_of(answer)
    return max(dict.fromkeys(valid), key=valid.count, default=None) == right
