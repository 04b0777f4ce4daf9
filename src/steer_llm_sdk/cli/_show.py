"""Shows an output to people: the answer on stdout; its cost, and what went wrong, on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from steer_llm_sdk.evidence._votes import votes_by_field
from steer_llm_sdk.models.usage import tokens_of
from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle
from steer_llm_sdk.orchestration.output import OrchestrationOutput

WIDTH = 80
VALUE_WIDTH = 46
VALUES_SHOWN = 3
FIELDS_SHOWN = 20

_STOPPED = {
    "budget": "the budget allowed no more",
    "deadline": "the time was up",
    "decided": "they could not have changed the answer",
    "converged": "they would hardly have changed the answer",
    "certified": "the others are proof enough",
    "distance": "the others are near each other",
    "futile": "no answer could have had the support asked for",
    "too_many_invalid": "too many of the others are not valid",
}
_NUMBERS = {
    "support": "share of all {n}: stability, not truth",
    "stability": "stability, not truth",
    "trust": "trust: how likely it is right",
}

_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Whoever reads has left: the command ends as it does where it prints without this class."""
        raise BrokenPipeError


def console(stderr: bool = False) -> Console:
    """At most WIDTH columns; no colour if NO_COLOR is set or it is not a terminal. Answers are never read as markup."""
    made = _Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    made.width = min(made.width, WIDTH)
    return made


class _Table(Table):
    """A table whose lines end where their text ends."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rendered = (part for part in super().__rich_console__(console, options) if isinstance(part, Segment))
        for line in Segment.split_lines(rendered):
            length = len("".join(segment.text for segment in line).rstrip())
            yield from Segment.adjust_line_length(line, length, pad=False)
            yield Segment.line()


def table_of(*titles: str) -> Table:
    """A table without lines, with a column of folded text for each title. Other columns are added to it."""
    table = _Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def printable(text: str) -> str:
    """`text` without the control characters that move the cursor or colour a terminal."""
    return text.translate(_CONTROL)


def show_output(output: OrchestrationOutput, *, printed: str = "", said: str = "") -> None:
    """Show it. `printed` is the part of the answer that is on stdout already, `said` the error that is told anyway."""
    out, err = console(), console(stderr=True)
    evidence = None if output.status == "failed" else output.evidence
    if output.status == "failed":
        _show_failure(output, err, said)
    elif evidence is not None:
        show_evidence(evidence, out)
    else:
        _show_content(output.content, out, printed)
    attempts = output.attempts
    if output.status == "failed" and not attempts:
        return
    for remark in remarks(output, evidence):
        err.print(Text(printable(remark), style="yellow"), soft_wrap=True)
    if any(line["outcome"] != "succeeded" for line in attempts):
        err.print(attempts_table(attempts))
    err.print(Text(summary_line(output), style="dim"), soft_wrap=True)


def remarks(output: OrchestrationOutput, evidence: EvidenceBundle | None) -> Iterator[str]:
    """What is to be known of an answer besides itself: a warning, what is missing of it, who was not asked."""
    yield from _warnings(output)
    if evidence is not None:
        yield from shortfall(evidence)
    for name, why in output.passed_over.items():
        yield f"{name} passed over: {why}"


def _show_content(content: Any, out: Console, printed: str) -> None:
    if isinstance(content, str):
        text = content.removeprefix(printed) if printed else content
    else:
        text = json.dumps(content, indent=2, ensure_ascii=False)
    out.print(Text(printable(text) if out.is_terminal else text), soft_wrap=True)


def _show_failure(output: OrchestrationOutput, err: Console, said: str) -> None:
    for name, error in (output.errors or {}).items():
        if error["message"] != said:
            err.print(Text(f"{name}: {printable(error['message'])}", style="red"), soft_wrap=True)


def _warnings(output: OrchestrationOutput) -> list[str]:
    """What the tool has to say about its answer."""
    own = [output.metadata.get(name) for name in ("content_warning", "account_warning")]
    said = [f"warning: {warning}" for warning in own if warning is not None]
    given, refused = output.metadata.get("warnings"), output.metadata.get("calibrator_refused")
    said += [f"warning: {warning}" for warning in given] if isinstance(given, list) else []
    return said if refused is None else [*said, f"warning: confidence is stability, not trust: {refused}"]


def show_evidence(evidence: EvidenceBundle, out: Console) -> None:
    """The field-wise consensus with its votes, the other values, and how many answers were valid."""
    out.print(_votes_table(evidence))
    out.print(Text(agreement_line(evidence)))


def agreement_line(evidence: EvidenceBundle) -> str:
    """Of the answers that came; `shortfall` tells of the others."""
    came, confidence = evidence.replicates, evidence.summary.confidence
    valid = sum(replicate.quality.valid for replicate in came)
    said = f"{valid} of {len(came)} answers valid"
    if confidence is None:
        why = "one answer alone is" if valid == 1 else "no two of them agree, so there is"
        return f"{said}; {why} no consensus"
    means = _NUMBERS[evidence.summary.confidence_is or "support"].format(n=len(came))
    return f"{said}; confidence {confidence:.2f} ({means})"


def shortfall(evidence: EvidenceBundle) -> Iterator[str]:
    """Which of the answers asked for are missing or not valid, and why; each reason once."""
    meta, came = evidence.meta, [replicate.id for replicate in evidence.replicates]
    missing = meta.k - len(came)
    if missing > 0:
        slots = [f"r{number}" for number in range(1, meta.k + 1) if f"r{number}" not in came]
        names = ", ".join(slots) if len(slots) == missing else str(missing)
        why = _STOPPED.get(meta.early_stop_reason or "", meta.early_stop_reason) or "no reason was given"
        yield f"{names} of the {meta.k} asked for {'is' if missing == 1 else 'are'} missing: {why}"
    reasons: dict[str, list[str]] = {}
    for replicate in evidence.replicates:
        if not replicate.quality.valid:
            reason = " ".join("; ".join(replicate.quality.errors).split())
            reasons.setdefault(reason or "no reason was given", []).append(replicate.id)
    for reason, names_of in reasons.items():
        yield f"{', '.join(names_of)} not valid: {reason}"


def _votes_table(evidence: EvidenceBundle) -> Table:
    table = table_of()
    table.add_column("field", overflow="fold", max_width=18)
    table.add_column("answer", overflow="ellipsis", no_wrap=True, max_width=VALUE_WIDTH)
    table.add_column("votes", no_wrap=True)
    fields = list(votes_by_field(evidence.replicates, evidence.summary))
    for name, values in fields[:FIELDS_SHOWN]:
        # "$" is a path for programs; it means the whole answer.
        _add_field(table, "answer" if name == "$" else name, values, len(evidence.replicates))
    if len(fields) > FIELDS_SHOWN:
        table.add_row("…", f"{len(fields) - FIELDS_SHOWN} more fields", "")
    return table


def _add_field(table: Table, name: str, values: Sequence[tuple[str, int]], k: int) -> None:
    for number, (value, votes) in enumerate(values[:VALUES_SHOWN]):
        style = "green" if number == 0 and votes > 1 else "dim" if number else ""
        table.add_row(Text(name if number == 0 else ""), Text(printable(value), style=style), f"{votes} of {k}")
    hidden = values[VALUES_SHOWN:]
    if hidden:
        others = sum(votes for _, votes in hidden)
        table.add_row("", Text(f"… and {len(hidden)} other answers", style="dim"), f"{others} of {k}")


def attempts_table(attempts: Sequence[dict[str, Any]]) -> Table:
    """Every call that was sent, by time."""
    table = table_of()
    for title in ("at", "took"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("asked", overflow="ellipsis", no_wrap=True, max_width=34)
    table.add_column("what came", overflow="fold")
    for line in attempts:
        table.add_row(
            f"{line['started_ms'] / 1000:.2f} s",
            f"{line['elapsed_ms'] / 1000:.2f} s",
            Text(line.get("model") or line["tool"]),
            Text(outcome_of(line), style="" if line["outcome"] == "succeeded" else "red"),
        )
    return table


def outcome_of(line: dict[str, Any]) -> str:
    """In a few words: "answered", "503 server_error", "timeout"."""
    if line["outcome"] == "succeeded":
        return "answered"
    error = line.get("error") or {}
    return " ".join(str(part) for part in (error.get("status_code"), error.get("code")) if part) or line["outcome"]


def summary_line(output: OrchestrationOutput) -> str:
    calls = len(output.attempts)
    tokens = tokens_of(output.usage)
    parts = [
        output.status,
        f"{output.metadata.get('tool_name')}{_by(output)}",
        f"{calls} call{'' if calls == 1 else 's'}",
        f"{tokens:,} tokens" if tokens else "",
        cost_of(output),
        "replayed, nothing was bought" if output.replayed else "",
        f"{output.elapsed_ms / 1000:.2f} s",
    ]
    return " · ".join(part for part in parts if part)


def _by(output: OrchestrationOutput) -> str:
    """The model that answered, as it calls itself: a name such as "demo" may stand for many."""
    model = output.metadata.get("model")
    return f" by {printable(model)}" if isinstance(model, str) else ""


def cost_of(output: OrchestrationOutput) -> str:
    if output.metadata.get("local"):
        return "computed on this machine"
    price = "cost unknown" if output.cost_usd is None else f"{dollars(output.cost_usd)} list price"
    return f"{price}, not spent" if is_simulated(output.metadata, output.attempts) else price


def is_simulated(metadata: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether recordings answered. A run that failed has no word of its tool on that, only the models it asked."""
    recorded = [str(line.get("model")).startswith("recorded:") for line in attempts]
    return bool(metadata.get("simulated")) or (bool(recorded) and all(recorded))


def dollars(cost: float) -> str:
    """Two digits after the point from a dollar on, below that up to six."""
    return f"${cost:.2f}" if cost >= 1 else f"${cost:.6f}".rstrip("0").rstrip(".")


def write(text: str) -> None:
    """Put text on stdout as it comes."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
