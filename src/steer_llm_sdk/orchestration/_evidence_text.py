"""A bundle as Markdown: for a ticket, a pull request, or a reader without a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from steer_llm_sdk.evidence import ABSENT
from steer_llm_sdk.orchestration._evidence_view import (
    LEGEND,
    LONGEST_CONSENSUS,
    MEANS,
    STOPPED,
    Row,
    View,
    as_json,
    parts_of,
    text_of,
    verdict,
    view_of,
)

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle

MOST_ROWS, MOST_COLUMNS, LONGEST = 60, 30, 200

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$@:-])")
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), " ")


def as_markdown(bundle: EvidenceBundle) -> str:
    """Verdict, consensus, agreement by field and replicate, disagreements, why it stopped, and what it cost."""
    view = view_of(bundle)
    parts = (
        _heading(bundle, view),
        _consensus(bundle, view),
        _agreement(view),
        _disagreements(view),
        _ending(bundle, view),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def _heading(bundle: EvidenceBundle, view: View) -> Iterator[str]:
    mark, sentence = verdict(bundle, view)
    summary, meta = bundle.summary, bundle.meta
    valid = sum(replicate.quality.valid for replicate in bundle.replicates)
    yield f"# Evidence: {_words(meta.task)}"
    yield ""
    yield f"{mark} **{sentence}.** {valid} of {len(bundle.replicates)} answers valid, {meta.k} asked for."
    if summary.confidence is not None:
        kind = summary.confidence_is or "support"
        yield f"Confidence {summary.confidence:.2f}: {kind}, {MEANS[kind]}. It is not a proof."
    yield ""


def _consensus(bundle: EvidenceBundle, view: View) -> Iterator[str]:
    if bundle.summary.confidence is None:
        return
    parts = parts_of(bundle, view)
    yield from _part("Consensus", parts.agreed)
    yield from _part("No two answers agree on this", parts.alone)
    yield from _part("From one answer, not compared", parts.beside)


def _part(title: str, value: Any) -> Iterator[str]:
    if value is ABSENT:
        return
    yield f"## {title}"
    yield ""
    text = as_json(value, LONGEST_CONSENSUS, indent=2)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    yield f"{fence}json"
    yield text if len(text) <= LONGEST_CONSENSUS else f"{text[:LONGEST_CONSENSUS]} …"
    yield fence
    yield ""


def _agreement(view: View) -> Iterator[str]:
    if not view.rows:
        return
    shown = view.replicates[:MOST_COLUMNS]
    yield "## Agreement"
    yield ""
    yield _line(["field", "support", *(_words(replicate.id) for replicate in shown)])
    yield _line(["---"] * (len(shown) + 2))
    for row in view.rows[:MOST_ROWS]:
        support = "" if row.support is None else f"{row.support:.2f}"
        yield _line([_words(row.name), support, *(row.codes.get(replicate.id, "") for replicate in shown)])
    yield ""
    yield "; ".join(f"{code}: {meaning}" for code, meaning in LEGEND.items()) + "."
    for left_out, what in ((len(view.rows) - MOST_ROWS, "fields"), (len(view.replicates) - MOST_COLUMNS, "replicates")):
        if left_out > 0:
            yield f"{left_out:,} more {what} are not shown."
    yield ""


def _disagreements(view: View) -> Iterator[str]:
    contested = [row for row in view.rows if row.contested]
    if not contested:
        return
    yield "## Disagreements"
    yield ""
    for row in contested[:MOST_ROWS]:
        yield from _contested(row)


def _contested(row: Row) -> Iterator[str]:
    facts = ", ".join(
        f"{name} {value:.2f}"
        for name, value in (("support", row.support), ("severity", row.severity), ("entropy", row.entropy))
        if value is not None
    )
    yield f"### {_words(row.name)}"
    yield ""
    yield facts
    yield ""
    for said in row.said:
        text = said.excerpt or text_of(said.value, LONGEST)
        yield f"- **{said.letter}** {_words(text)} ({said.votes}: {', '.join(map(_words, said.ids[:MOST_COLUMNS]))})"
    if row.absent:
        yield f"- without the field: {', '.join(map(_words, row.absent[:MOST_COLUMNS]))}"
    if row.more:
        yield f"- and {row.more:,} other answers"
    yield ""


def _ending(bundle: EvidenceBundle, view: View) -> Iterator[str]:
    meta = bundle.meta
    yield "## Cost and ending"
    yield ""
    cost = "unknown" if bundle.cost_total_usd is None else f"${bundle.cost_total_usd:.6f}"
    yield f"- cost: {cost}"
    saved = view.stopping.get("cost_saved_usd")
    if isinstance(saved, (int, float)):
        yield f"- saved against all {meta.k}: ${saved:.6f}"
    reason = meta.early_stop_reason or view.stopping.get("reason")
    if reason:
        yield f"- ended: {_words(str(reason))}, {STOPPED.get(str(reason), '')}".rstrip(", ")
    for name, errors in view.invalid.items():
        yield f"- {_words(name)} is not valid: {_words(text_of('; '.join(errors) or 'no reason was given', LONGEST))}"
    yield from (f"- warning: {_words(warning)}" for warning in bundle.summary.warnings)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _words(text: Any) -> str:
    """Somebody else's words on one line, with nothing in them that Markdown or HTML would read."""
    return _SPECIAL.sub(r"\\\1", str(text).translate(_CONTROL)).encode(errors="replace").decode()
