"""Replays recorded answers and prints what stopping saves, what trust is worth, and which marks are held.

    python benchmarks/evidence/run.py FOLDER [--only NAME] [--plots FOLDER]

FOLDER has recordings as gzip JSON lines: a question per line with `id`, `values` and `draws` (answer i is
values[draws[i]], null is invalid), and `gold` or `correct`. Exits with 1 where a mark is missed. Same seeds, same
figures.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1] / "sim"))
sys.path.insert(0, str(Path(__file__).parent))

import launching
import numeric
import plot
import replay
import richer
import trusting
from recordings import SKIPPED, Question, load, plurality, varied

from steer_llm_sdk.evidence import should_stop, stopping
from steer_llm_sdk.evidence.stopping import RULES

Tasks = dict[str, list[Question]]
Cell = str | float | int | None


@dataclass(slots=True)
class Section:
    title: str
    says: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]]
    marks: dict[str, bool] = field(default_factory=dict)
    charts: dict[str, str] = field(default_factory=dict)


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────────────────────────

MARKS = {3: 22.0, 5: 28.0, 10: 48.0}
"""Percent of calls that "pcurtail" saves."""


def stopping_rules(tasks: Tasks) -> Iterable[Section]:
    every = [question for questions in tasks.values() for question in questions]
    parts = [[q for q in every if q.held_out == held_out] for held_out in (False, True)]
    runs: dict[tuple[int, str], tuple[replay.Tally, replay.Tally]] = {}
    for k, orders in ((3, 20), (5, 40), (10, 60), (20, 6), (40, 4)):
        for rule, stops in _rules(k).items():
            seen, held_out = (replay.replayed(part, k, stops, orders) for part in parts)
            runs[k, rule] = seen.with_(held_out), held_out
    for place, name in enumerate(("all questions", "held-out questions")):
        rows, marks = [], {}
        for (k, rule), tallies in runs.items():
            tally = tallies[place]
            change, error = tally.accuracy_change
            saved, same = 100 * tally.saved(k), 100 * tally.agreement
            row = [k, rule, f"{tally.used / tally.runs:.2f}", f"{saved:.1f}", f"{100 * tally.saved_by_task(k):.1f}"]
            row += [f"{same:.2f}", f"{100 * tally.worst_agreement:.2f}", f"{change:+.3f} ± {error:.3f}"]
            rows.append(row)
            if k in MARKS and rule == "**pcurtail 0.01**":
                mark = f"k = {k}: at least {MARKS[k]:g} % saved, at most 0.05 pp lost, the same answer in 99.5 %"
                marks[mark] = saved >= MARKS[k] and change >= -0.05 and same >= 99.5
        yield Section(
            f"Stopping: {name}",
            "Answers in random order, pooled over questions; ties for the lead are shared. Errors are over questions.",
            ["k", "rule", "votes", "saved %", "mean of tasks", "same answer %", "worst task", "accuracy change, pp"],
            rows,
            marks,
        )


def _rules(k: int) -> dict[str, replay.Stops]:
    rules: dict[str, replay.Stops] = {"curtail": replay.ours("curtail"), "beta 0.95": replay.beta_095}
    if k <= 10:
        rules["one urn 0.01"] = replay.fixed_urn(0.01)
    rules["**pcurtail 0.01**"] = replay.ours("pcurtail")
    rules["pcurtail 0.02"] = replay.ours("pcurtail", 0.02)
    rules["pcurtail 0.05"] = replay.ours("pcurtail", 0.05)
    if k == 40:
        rules["window of 5"] = replay.window(5)
        rules["share 0.8 of 3 or more"] = replay.share(0.8, 3)
    return rules


def certificates(tasks: Tasks) -> Iterable[Section]:
    every = [question for questions in tasks.values() for question in questions]
    rows, held = [], True
    for delta in (0.05, 0.2):
        for hard in (False, True):
            found = replay.certified(every, 100, delta, 4, hard=hard)
            wrong, right = found.wrong / found.runs, found.right_answers / max(1, found.given)
            held &= wrong <= delta
            row = [f"{delta:g}", "leader below 0.6" if hard else "all", f"{found.used / found.runs:.1f}"]
            rows.append([*row, f"{100 * found.given / found.runs:.1f}", f"{100 * wrong:.2f}", f"{100 * right:.1f}"])
    yield Section(
        "Certificates",
        "Up to 100 draws with replacement from each question's recorded answers, of which the most frequent is known; "
        "looked at after every one.",
        ["delta", "questions", "votes", "certified %", "wrongly %", "certified answers that are true %"],
        rows,
        {"a wrong certificate with probability at most delta": held},
    )


def speed(_: Tasks) -> Iterable[Section]:
    """Cold: nothing is cached. The least of seven, so that the machine's own pauses do not count."""
    rng, rows, marks = random.Random(0), [], {}
    for k, limit in ((3, 0.2), (5, 0.2), (10, 0.2), (40, 2.0)):
        worst = 0.0
        for rule in RULES:
            times = []
            for _round in range(200):
                votes = [int(rng.expovariate(rng.choice((0.3, 0.7, 3)))) for _ in range(rng.randrange(k))]
                times.append(min(_timed(votes, k, rule) for _ in range(7)))
            times.sort()
            worst = max(worst, times[-1])
            rows.append([k, rule, f"{times[100]:.3f}", f"{times[-1]:.3f}"])
        marks[f"k = {k}: at most {limit:g} ms"] = worst <= limit
    yield Section("Speed of a decision", speed.__doc__ or "", ["k", "rule", "median ms", "most ms"], rows, marks)


def _timed(votes: Sequence[int], k: int, rule: stopping.Rule) -> float:
    for cached in (stopping._will_keep, stopping._odds, stopping._reaches):
        cached.cache_clear()
    begun = time.thread_time()
    should_stop(votes, k, rule=rule)
    return 1000 * (time.thread_time() - begun)


# ── trust ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def calibration(tasks: Tasks) -> Iterable[Section]:
    rows, held = [], {}
    for labels, repeats, limit in ((0, 10, None), (10, 40, None), (30, 40, 0.065), (100, 40, 0.047), (500, 10, None)):
        for least in (100, 50):
            found = trusting.calibration_error(tasks, 10, labels, repeats, least)
            auroc = "" if found.auroc is None else f"{found.auroc:.3f}"
            rows.append([labels, least, found.tasks, f"{found.ece:.4f}", f"{found.floor:.4f}", auroc])
            if limit is not None and least == 100:
                held[f"{labels} labels: ECE at most {limit}"] = found.ece <= limit
    yield Section(
        "Calibration error by labels",
        "Mean over tasks of the ECE (ten bins) on the questions that were not labelled, 10 votes each (5 where no more "
        "were recorded). The floor is the ECE that a perfect predictor has on as few answers, by chance.",
        ["labels", "questions left, at least", "tasks", "ECE", "floor", "AUROC"],
        rows,
        held,
    )


def telling_apart(tasks: Tasks) -> Iterable[Section]:
    rows, areas, pooled = [], [], []
    for task, questions in tasks.items():
        if len(questions[0].votes) < 10:
            continue
        vary = varied(questions)
        area = trusting.told_apart(questions, 10, 20)
        agreed, good = trusting.unanimous(questions, 10)
        cells = ["" if area is None else f"{area:.3f}", f"{100 * agreed:.1f}", f"{100 * good:.1f}"]
        rows.append([task, "yes" if vary else "no", *cells])
        if vary and area is not None:
            areas.append(area)
            pooled += questions
    varying = {task: tasks[task] for task, vary, *_ in rows if vary == "yes"}
    most = 0.0
    for name, seen in (("", (trusting.counted,)), (" and the texts", (trusting.counted, trusting.worded))):
        forest = fmean(trusting.by_forest(questions, 10, *seen) for questions in varying.values())
        most = max(most, forest)
        rows.append([f"the same by a random forest on the counts{name}, cross-validated", "", f"{forest:.3f}", "", ""])
    together = trusting.told_apart(pooled, 10, 3) or 0.0
    trusted = trusting.within_tasks(varying, 10, 30, 20).area()
    rows.append(["mean of those that vary", "", f"{fmean(areas):.3f}", "", ""])
    rows.append(["stability, all their answers together", "", f"{together:.3f}", "", ""])
    rows.append(["trust, 30 labels of each task, all their other answers together", "", f"{trusted:.3f}", "", ""])
    yield Section(
        "Telling right from wrong, k = 10",
        "AUROC: the probability that of a right and a wrong answer the right one is the more stable, or trusted more.",
        ["task", "replicates vary", "AUROC", "all ten agree %", "of these right %"],
        rows,
        {
            "AUROC of trust at least 0.82, all answers of tasks whose replicates vary": trusted >= 0.82,
            "AUROC of stability at least 0.82, all answers of tasks whose replicates vary": together >= 0.82,
            "AUROC of stability at least 0.82, mean of tasks whose replicates vary; a forest with the labels of "
            f"four fifths of the same task: {most:.3f}": fmean(areas) >= 0.82,
        },
    )
    yield from _from_more(varying)


def _from_more(tasks: Tasks) -> Iterable[Section]:
    study = richer.Study(tasks, 20)
    tried = (("chosen on", 30), ("held out", 30), ("all", 30), ("all", 100), ("all", 500), ("all", None))
    rows = []
    for name, way in richer.WAYS.items():
        found = [study.measured(way, part, labels).values() for part, labels in tried]
        areas = [f"{fmean(area for area, _ in of_tasks):.3f}" for of_tasks in found]
        rows.append([name, *areas, *(f"{fmean(error for _, error in found[place]):.3f}" for place in (2, 3))])
    columns = ["AUROC by", "30 labels, chosen on", "30, held out", "30, all", "100", "500", "4/5 of the task"]
    reached = fmean(area for area, _ in study.measured(richer.CHOSEN, "all", 30).values())
    yield Section(
        "Trust from more than stability",
        "k = 10, mean of the tasks whose replicates vary, on questions that were not labelled: AUROC, and at the end "
        "the ECE with 30 and 100 labels of all questions. Ways were compared on half of the questions, and the one in "
        "bold is best there with 30 labels. 100 labels: six tasks, 500: five; the last AUROC is pooled over folds.",
        [*columns, "ECE, 30", "100"],
        rows,
        {f"AUROC of the way in bold at least 0.82, 30 labels of all questions ({reached:.3f})": reached >= 0.82},
    )
    labels = (30, 100)
    ways = [study.measured(way, "all", n) for n in labels for way in (richer.PLAIN, richer.CHOSEN)]
    rows = [[task, *(f"{way[task][0]:.3f}" if task in way else "" for way in ways)] for task in tasks]
    says = "The AUROC of the way in bold beside that of stability alone, on the same answers."
    columns = ["task", *(f"{n} labels, {way}" for n in labels for way in ("stability", "in bold"))]
    yield Section("Trust from more than stability, by task", says, columns, rows)


def ensembles(tasks: Tasks) -> Iterable[Section]:
    rows = []
    for task in ("zeroeval_gsm", "zeroeval_crux", "zeroeval_math-l5"):
        for past in (10, 50, 100, 300):
            cells = [f"{share:.1f}" for k in (5, 10) for share in replay.weighed(tasks[task], k, past, 8)]
            rows += [[task, past, *cells]]
    yield Section(
        "Weights without labels",
        "Each answer from another model. Accuracy in % on the questions that are held out, by the most votes and by "
        "`weights_by_agreement` of some of the other questions.",
        ["task", "past questions", "k = 5, votes", "weights", "k = 10, votes", "weights"],
        rows,
    )


def other_ways(tasks: Tasks) -> Iterable[Section]:
    rows: list[Sequence[Cell]] = []
    for name, changes in trusting.OTHER_WAYS.items():
        with trusting.changed(changes):
            errors = [trusting.calibration_error(tasks, 10, labels, 20, 50).ece for labels in (30, 100)]
            acted = [trusting.within_tasks(tasks, 10, labels, 10) for labels in (30, 100)]
            shares = [fmean(x for task in f.told for x in f.acted(0.95, task)) for f in acted]
            cells = [f"{error:.4f}" for error in errors]
            for found, right in zip(acted, shares, strict=True):
                cells += [f"{100 * right:.1f}", f"{100 * found.coverage(0.95):.1f}"]
            rows.append([name, *cells])
    columns = ["", "ECE, 30 labels", "100", "right % at 0.95, 30 labels", "acted on %", "100", "acted on %"]
    yield Section("Trust in other ways", "k = 10, labels of the same task.", columns, rows)
    every = [question for questions in tasks.values() for question in questions if not question.held_out]
    rows = []
    for name, thetas in trusting.OTHER_URNS.items():
        cells: list[Cell] = []
        for k, orders in ((5, 20), (10, 20), (20, 6)):
            with trusting.urns(thetas):
                tally = replay.replayed(every, k, replay.ours("pcurtail"), orders)
            cells += [f"{100 * tally.saved(k):.1f}", f"{100 * tally.agreement:.2f}"]
        rows.append([name, *cells])
    columns = ["thetas", "saved %, k = 5", "same %", "k = 10", "same %", "k = 20", "same %"]
    says = "Questions that are not held out: on these the urns were chosen."
    yield Section("Stopping with other urns, risk 0.01", says, columns, rows)


def selective_risk(tasks: Tasks) -> Iterable[Section]:
    pages: list[tuple[str, trusting.Selective, int]] = []
    for k in (5, 10):
        for labels in (30, 100, 300):
            found = trusting.within_tasks(tasks, k, labels, 20)
            pages.append((f"k = {k}, {labels} labels of the same task", found, 20))
        families = trusting.by_family(tasks)
        pages.append((f"k = {k}, 50 labels of each other task", trusting.across_tasks(families, k, 50, 5), 5))
        pages.append((f"k = {k}, all labels of the other tasks", trusting.across_tasks(families, k, 10**6, 5), 5))
        pages.append(
            (f"k = {k}, all labels, **other models** (refused)", trusting.across_tasks([tasks], k, 10**6, 1), 1)
        )
    rows, marks, bad = [], {}, []
    for name, found, repeats in pages:
        acted = [right for task in found.told for right in found.acted(0.95, task)]
        shares = {task: found.acted(0.95, task) for task in found.told}
        below = [
            f"{task} {fmean(right):.3f}"
            for task, right in shares.items()
            if right and fmean(right) < 0.95 - 2 * trusting.standard_error(right, len(right) // repeats)
        ]
        right = fmean(fmean(each) for each in shares.values() if each) if acted else math.nan
        pooled = fmean(acted) if acted else math.nan
        cells = [f"{100 * pooled:.1f}", f"{100 * right:.1f}"] if acted else ["–", "–"]
        cells.append(f"{100 * found.coverage(0.95):.1f}")
        rows.append([name, len(found.told), *cells, "; ".join(below)])
        if "refused" not in name:
            marks[f"{name}: 95 % right"] = not acted or pooled >= 0.95 - 2 * trusting.standard_error(
                acted, len(acted) // repeats
            )
            bad += below
    yield Section(
        "Acting on trust of 0.95 or more",
        "Labels and answers never share a question. Of the answers acted on, the share that is right (all, and mean of "
        "tasks), and the share of all that are acted on; tasks that are more than two standard errors below 0.95.",
        ["calibrated on", "tasks", "right %", "mean of tasks", "acted on %", "below 0.95"],
        rows,
        marks,
        {"evidence-risk-coverage.svg": _risk_chart(tasks)},
    )


def _risk_chart(tasks: Tasks) -> str:
    families = trusting.by_family(tasks)
    series = {
        "steer_llm_sdk, 100 labels of the task": trusting.within_tasks(tasks, 10, 100, 10).curve(),
        "labels of other tasks": trusting.across_tasks(families, 10, 10**6, 5).curve(),
        "no labels: stability": trusting.within_tasks(tasks, 10, 0, 5).curve(),
    }
    return plot.lines("Wrong among the answers acted on, k = 10", series, "answers acted on, %", "wrong, %")


# ── launching ────────────────────────────────────────────────────────────────────────────────────────────────────────


def launches(tasks: Tasks) -> Iterable[Section]:
    every = [question for questions in tasks.values() for question in questions]
    rows, marks = [], {}
    for k in (3, 5, 10):
        questions = [question for question in random.Random(0).sample(every, len(every)) if len(question.votes) >= k]
        for name, options in launching.WAYS.items():
            found = launching.launched(questions[:300], k, options)
            cells = [f"{found.asked:.2f}", f"{found.used:.2f}", f"{found.cancelled:.2f}", f"{found.seconds:.2f}"]
            rows.append([k, name, *cells, f"{100 * found.cost_saved:.1f}"])
            marks[f"k = {k}, {name}: launched = used, none cancelled"] = (
                found.asked == found.used and found.cancelled == 0
            )
    yield Section(
        "Launching",
        "SimpleBundleTool over 300 questions in virtual time; an answer takes a lognormal time of median 1 s (sigma "
        "0.6) and costs 0.01 USD.",
        ["k", "how", "asked", "used", "cancelled", "seconds", "cost saved against k %"],
        rows,
        marks,
    )


# ── numbers, and answers that can be checked ─────────────────────────────────────────────────────────────────────────


def numbers_and_checks(folder: Path) -> Iterable[Section]:
    aqua, game = folder / "aqua_pot_codex_numeric.jsonl.gz", folder / "game24_gpt4_validator.jsonl.gz"
    if aqua.exists():
        questions = list(numeric.rows_of(aqua))
        rows = [
            [name, *(f"{100 * numeric.accuracy(questions, k, choose, 3):.1f}" for k in (5, 10, 30))]
            for name, choose in numeric.REDUCERS.items()
        ]
        says = "AQuA, numbers that programs computed; right if within 1 % of the right option. Accuracy in %."
        yield Section("Numbers", says, ["consensus", "k = 5", "k = 10", "k = 30"], rows)
    if game.exists():
        puzzles = list(numeric.rows_of(game))
        rows = [
            [name, *(f"{100 * numeric.solved(puzzles, k, 3, validated=validated):.1f}" for k in (1, 10, 100))]
            for name, validated in (("summarize: mode", False), ("summarize: mode, validated", True))
        ]
        says = "Game of 24: the checker that was recorded is the schema. Puzzles solved in %."
        yield Section("Answers that can be checked", says, ["consensus", "k = 1", "k = 10", "k = 100"], rows)


SECTIONS: dict[str, Callable[[Tasks], Iterable[Section]]] = {
    "stopping": stopping_rules,
    "certificates": certificates,
    "speed": speed,
    "calibration": calibration,
    "telling-apart": telling_apart,
    "ensembles": ensembles,
    "selective-risk": selective_risk,
    "other-ways": other_ways,
    "launches": launches,
}
NUMBERS = "numbers"
IMAGES = Path(__file__).parents[2] / "docs" / "img"


def printed(section: Section) -> str:
    head, rule = _line(section.columns), _line(["---"] + ["---:"] * (len(section.columns) - 1))
    rows = [_line(["" if cell is None else str(cell) for cell in row]) for row in section.rows]
    marks = [f"- {'held' if held else '**MISSED**'}: {mark}" for mark, held in section.marks.items()]
    images = [f"![{section.title}](img/{name})" for name in section.charts]
    parts = [f"## {section.title}", section.says, "\n".join([head, rule, *rows]), "\n".join(marks), "\n".join(images)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def of_the_recordings(tasks: Tasks) -> Section:
    rows = []
    for task, questions in tasks.items():
        votes = len(questions[0].votes)
        single = fmean(sum(vote in q.right for vote in q.votes) / votes for q in questions)
        majority = fmean(len(plurality(q.votes) & q.right) / max(1, len(plurality(q.votes))) for q in questions)
        row = [task, len(questions), votes, f"{100 * single:.1f}", f"{100 * majority:.1f}"]
        rows.append([*row, "yes" if varied(questions) else "no", sum(q.held_out for q in questions)])
    skipped = "; ".join(f"{name}: {why}" for name, why in SKIPPED.items())
    columns = ["task", "questions", "answers each", "one right %", "most frequent right %", "vary", "held out"]
    return Section("The recordings", f"Without {skipped}.", columns, rows)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--only", choices=(*SECTIONS, NUMBERS), action="append", help="may be repeated")
    options.add_argument("--plots", type=Path, default=IMAGES, help="where the SVGs go")
    given = options.parse_args()
    tasks, begun = load(given.folder), time.monotonic()
    if not tasks:
        options.error(f"no recordings in {given.folder}")
    print(printed(of_the_recordings(tasks)), flush=True)
    held: list[bool] = []
    for name in given.only or (*SECTIONS, NUMBERS):
        for section in numbers_and_checks(given.folder) if name == NUMBERS else SECTIONS[name](tasks):
            print(printed(section), flush=True)
            held += section.marks.values()
            for file, svg in section.charts.items():
                given.plots.mkdir(parents=True, exist_ok=True)
                (given.plots / file).write_text(svg, encoding="utf-8")
    print(f"{sum(held)} of {len(held)} marks held")
    print(f"in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
