"""What a summary takes, and what its choices are worth on recorded answers.

    python benchmarks/evidence/summary.py [FOLDER] [--rounds N]

Speed: CPU time of the thread in ms, the least of the rounds; answers have 30 fields: 10 of words, 15 of numbers, 5 of
truth values. "of mappings" and "of Replicates" is the summary without distances, which needs no numpy. The last column
is what comparing every two answers leaf by leaf takes, without anything else.

With the FOLDER of the recordings it also prints how often the consensus is right, by how numbers are chosen, by which
answers are taken to be the same, and by what is done with answers that are not of the form.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from steer_llm_sdk.evidence import FieldPolicy, summarize
from steer_llm_sdk.evidence._reading import Ballot, Reading
from steer_llm_sdk.evidence.distance import distances
from steer_llm_sdk.evidence.policy import Policies
from steer_llm_sdk.orchestration.models import Replicate
from steer_llm_sdk.orchestration.tools.structured import InvalidAnswer, OutputSchema, read_answer

SIZES = (5, 20, 100, 1000)
TEXT = "the quick brown fox jumps over the lazy dog"


def records(k: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [
        {
            **{f"word{n}": draw.choice(["red", "green", "blue", TEXT]) for n in range(10)},
            **{f"number{n}": round(draw.gauss(100, 5), 3) for n in range(10)},
            **{f"count{n}": draw.randint(0, 9) for n in range(5)},
            **{f"truth{n}": draw.random() < 0.7 for n in range(5)},
        }
        for _ in range(k)
    ]


def least(rounds: int, run: Callable[[], object]) -> float:
    run()
    found = []
    for _ in range(rounds):
        started = time.thread_time()
        run()
        found.append(time.thread_time() - started)
    return min(found) * 1000


def speed(rounds: int) -> None:
    print("## Speed, ms\n")
    titles = (
        "k",
        "of mappings",
        "of Replicates",
        "µs per replicate",
        "distances, numpy",
        "distances, pure",
        "all pairs",
    )
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for k in SIZES:
        data = records(k)
        replicates = [Replicate(id=f"r{number}", data=each) for number, each in enumerate(data)]
        reading = Reading([Ballot(str(number), each) for number, each in enumerate(data)], Policies.of(None))
        times = rounds if k <= 100 else max(2, rounds // 4)
        mappings = least(rounds, lambda data=data: summarize(data, pairwise=False))
        kept = least(rounds, lambda replicates=replicates: summarize(replicates, pairwise=False))
        with_ = least(times, lambda reading=reading: distances(reading, numpy=True))
        without = least(times, lambda reading=reading: distances(reading, numpy=False)) if k <= 100 else math.nan
        naive = least(times, lambda data=data: every_pair(data)) if k <= 100 else math.nan
        cells = (mappings, kept, 1000 * mappings / k, with_, without, naive)
        print(f"| {k} | {' | '.join('-' if math.isnan(cell) else f'{cell:.2f}' for cell in cells)} |")
    print()


def every_pair(data: Sequence[dict[str, Any]]) -> float:
    """The mean share of leaves that differ, by comparing every two answers."""
    shares = [sum(data[i][key] != data[j][key] for key in data[i]) / 30 for i in range(len(data)) for j in range(i)]
    return fmean(shares)


def lines(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def numbers(folder: Path, k: int = 10) -> None:
    """AQuA: is the number one that a replicate with the right option gave?"""
    draw = random.Random(1)
    right: dict[str, list[bool]] = {}
    for question in lines(folder, "aqua_pot_codex_numeric"):
        drawn = draw.sample(range(len(question["numeric"])), k)
        said = [question["numeric"][place] for place in drawn]
        letters = [question["option_letter"][place] for place in drawn]
        good = [number for number, letter in zip(said, letters, strict=True) if letter == question["gold"]]
        options = {number for number, letter in zip(said, letters, strict=True) if letter is not None}
        given = [number if number is not None else {} for number in said]
        known = [number for number in said if number is not None]
        found = {
            "one replicate": said[0],
            "mean, which nobody said": fmean(known) if known else None,
            "median": chosen(given, FieldPolicy(consensus="median")),
            "mode": chosen(given, FieldPolicy()),
            "mode within 0.1 %": chosen(given, FieldPolicy(rel_tol=0.001)),
            "mode of the validated": chosen(given, FieldPolicy(), lambda number, options=options: number in options),
        }
        for name, number in found.items():
            right.setdefault(name, []).append(any(near(number, each) for each in good))
    print(f"## Numbers: AQuA, {len(right['mode'])} questions, k = {k}, % right\n")
    table(right)


def chosen(values: Sequence[Any], policy: FieldPolicy, valid: Callable[[Any], bool] | None = None) -> Any:
    """The consensus; where no two agree, what the replicate that is nearest to it said."""

    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) and (valid is None or valid(value))

    found = summarize(values, schema=is_number, fields={"$": policy}, pairwise=False)
    if found.confidence is not None:
        return found.consensus
    return None if found.nearest is None else values[int(found.nearest.removeprefix("r")) - 1]


def near(number: Any, right: float) -> bool:
    return number is not None and math.isclose(number, right, rel_tol=1e-6, abs_tol=1e-9)


# ── the same answer ──────────────────────────────────────────────────────────────────────────────────────────────────


def sameness(folder: Path, k: int = 10) -> None:
    """CRUX, answers of many models: literals of Python, to which case matters and quotes do not."""
    policies = {
        "exact": FieldPolicy(compare="exact"),
        "canonical": FieldPolicy(),
        "judge: equal as Python": FieldPolicy(compare="exact", judge=equal_literals),
    }
    right: dict[str, list[bool]] = {name: [] for name in policies}
    draw = random.Random(2)
    for question in lines(folder, "zeroeval_crux"):
        drawn = draw.sample(question["draws"], min(k, len(question["draws"])))
        said = [question["values"][place] for place in drawn if question["values"][place] is not None]
        for name, policy in policies.items():
            right[name].append(bool(said) and equal_literals(pick(said, policy), question["gold"]))
    print(f"## The same answer: CRUX, {len(right['exact'])} questions, k = {k}, % right\n")
    table(right)


def pick(values: Sequence[str], policy: FieldPolicy) -> Any:
    found = summarize(values, fields={"$": policy}, pairwise=False)
    return values[int(str(found.nearest).removeprefix("r")) - 1] if found.confidence is None else found.consensus


def equal_literals(left: str, right: str) -> bool:
    try:
        return bool(ast.literal_eval(left) == ast.literal_eval(right))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return left == right


# ── validation ───────────────────────────────────────────────────────────────────────────────────────────────────────


def validation(folder: Path, k: int = 10) -> None:
    """Raw replies that should be JSON: read and validated first, or compared as texts."""
    form = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    schema = OutputSchema.of(form)
    assert schema is not None
    draw = random.Random(3)
    right: dict[str, list[bool]] = {}
    valid = []
    for question in lines(folder, "zeroeval_crux_raw_json_outputs"):
        replies = draw.sample(list(question["outputs"].values()), k)
        read = [answer_in(reply, schema) for reply in replies]
        valid += [answer is not None for answer in read]
        given = [answer for answer in read if answer is not None]
        found = {
            "one reply": answer_of(read[0]),
            "replies as texts, the medoid": answer_of(answer_in(medoid(replies), schema)),
            "read first, whole objects": answer_of(whole(given)),
            "read first, field by field": answer_of(by_field(given, None)),
            'read first, by "answer" alone': answer_of(by_field(given, ["answer"])),
        }
        for name, answer in found.items():
            right.setdefault(name, []).append(answer is not None and equal_literals(answer, question["gold"]))
    print(f"## Validation: CRUX, {len(right['one reply'])} questions of raw JSON replies, k = {k}, % right\n")
    print(f"{100 * fmean(valid):.1f} % of the replies are valid.\n")
    table(right)


def answer_in(reply: str, schema: OutputSchema) -> Any:
    try:
        return read_answer(reply, schema).value
    except InvalidAnswer:
        return None


def answer_of(answer: Any) -> str | None:
    return None if answer is None else answer["answer"]


def medoid(replies: Sequence[str]) -> str:
    return replies[int(str(summarize(replies).medoid).removeprefix("r")) - 1]


def whole(given: Sequence[dict[str, Any]]) -> Any:
    if not given:
        return None
    counted = [json.dumps(each, sort_keys=True) for each in given]
    return given[counted.index(max(counted, key=counted.count))]


def by_field(given: Sequence[dict[str, Any]], fields: list[str] | None) -> Any:
    found = summarize(given, fields=fields, pairwise=False)
    if found.confidence is not None:
        return found.consensus
    return None if found.nearest is None else given[int(found.nearest.removeprefix("r")) - 1]


def table(right: dict[str, list[bool]]) -> None:
    print("| choice | right | ± |\n|---|---|---|")
    for name, outcomes in right.items():
        share = fmean(outcomes)
        print(f"| {name} | {100 * share:.1f} | {100 * math.sqrt(share * (1 - share) / len(outcomes)):.1f} |")
    print()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, nargs="?")
    options.add_argument("--rounds", type=int, default=15)
    given = options.parse_args()
    warnings.simplefilter("ignore", SyntaxWarning)  # Some answers are no Python at all.
    speed(given.rounds)
    if given.folder is not None:
        numbers(given.folder)
        sameness(given.folder)
        validation(given.folder)


if __name__ == "__main__":
    main()
