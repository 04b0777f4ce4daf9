"""An output as a notebook shows it: a block of HTML that loads nothing, runs nothing, and trusts none of its words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steer_llm_sdk.evidence._votes import votes_by_field
from steer_llm_sdk.models.usage import tokens_of

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle
    from steer_llm_sdk.orchestration.output import OrchestrationOutput

LONGEST = 20_000
"""Characters of content that are shown; a notebook keeps every output, and some are megabytes."""
MOST_ATTEMPTS = 200
MOST_FIELDS, MOST_VALUES, LONGEST_VALUE = 50, 10, 300
"""Of a bundle: fields, answers to each, and characters of an answer."""

_MARKS = {"succeeded": "✓", "partial": "◐", "failed": "✗"}
_COLOURS = {"succeeded": "#2e7d32", "partial": "#b26a00", "failed": "#c62828"}
_CELL = "text-align:left;padding:1px 10px 1px 0;vertical-align:top"
_ESCAPES: dict[int, str | None] = {
    **{code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"},
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),  # half a character cannot be sent to a browser
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord('"'): "&quot;",
    ord("'"): "&#39;",
}


def as_html(output: OrchestrationOutput) -> str:
    """Status, cost, content (of a bundle consensus and votes), attempts over time. It says the same without colour."""
    colour = _COLOURS[output.status]
    evidence = _evidence_of(output)
    said = _content(output.content) if evidence is None else _evidence(evidence)
    parts = (_heading(output, colour), said, _passed_over(output.passed_over), _attempts(output.attempts))
    return f'<div style="border-left:3px solid {colour};padding-left:10px">{"".join(parts)}</div>'


def _heading(output: OrchestrationOutput, colour: str) -> str:
    status = f'<b style="color:{colour}">{_MARKS[output.status]} {output.status}</b>'
    facts = " · ".join(escaped(fact) for fact in _facts(output))
    return f"<div>{status} · {facts}</div>"


def _facts(output: OrchestrationOutput) -> Iterator[str]:
    tool, tokens = output.metadata.get("tool_name"), tokens_of(output.usage)
    if tool is not None:
        yield str(tool)
    if tokens:
        yield f"{tokens:,} tokens"
    yield "cost unknown" if output.cost_usd is None else f"${output.cost_usd:.6f}"
    yield f"{output.elapsed_ms / 1000:.2f} s"
    if output.replayed:
        yield "replayed"


def _evidence_of(output: OrchestrationOutput) -> EvidenceBundle | None:
    """None too where something else goes by the name of a bundle: it is shown as it is."""
    try:
        return None if output.status == "failed" else output.evidence
    except (TypeError, ValueError):
        return None


def _evidence(evidence: EvidenceBundle) -> str:
    """What they agree on, how far, and who else said what; the answers themselves are in `output.evidence`."""
    summary, count = evidence.summary, len(evidence.replicates)
    valid = sum(replicate.quality.valid for replicate in evidence.replicates)
    agreed = "no consensus" if summary.confidence is None else f"confidence {summary.confidence:.2f}"
    what = "trust, from labelled answers" if summary.confidence_is == "trust" else "stability, not truth"
    line = f"{valid} of {count} answers valid · {agreed} · {what}"
    consensus = "" if summary.confidence is None else f"<div><b>consensus</b></div>{_content(summary.consensus)}"
    fields = list(votes_by_field(evidence.replicates, summary))
    rows = "".join(_votes(name, values, count) for name, values in fields[:MOST_FIELDS])
    left_out = len(fields) - MOST_FIELDS
    more = f"<div><i>… and {left_out:,} more fields: output.evidence has them all</i></div>" if left_out > 0 else ""
    titles = "".join(f'<th style="{_CELL}">{title}</th>' for title in ("field", "answer", "votes"))
    table = f'<table style="border-collapse:collapse"><tr>{titles}</tr>{rows}</table>' if rows else ""
    return f"<div>{escaped(line)}</div>{consensus}{table}{more}"


def _votes(name: str, values: Sequence[tuple[str, int]], count: int) -> str:
    """A row for each of the values that most gave."""
    rows = [
        (name if number == 0 else "", _shortened(value), f"{votes} of {count}")
        for number, (value, votes) in enumerate(values[:MOST_VALUES])
    ]
    others = values[MOST_VALUES:]
    if others:
        rows.append(("", f"… and {len(others):,} other answers", f"{sum(votes for _, votes in others)} of {count}"))
    return "".join(
        "<tr>" + "".join(f'<td style="{_CELL}"><bdi>{escaped(cell)}</bdi></td>' for cell in row) + "</tr>"
        for row in rows
    )


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]} …"


def _content(content: Any) -> str:
    text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False, default=repr)
    left_out = len(text) - LONGEST
    more = f"<div><i>… and {left_out:,} more characters: output.content has them all</i></div>" if left_out > 0 else ""
    # dir="auto" and <bdi> keep right-to-left marks in the words from turning round what stands beside them.
    style = "white-space:pre-wrap;overflow-wrap:anywhere;max-height:30em;overflow:auto;margin:4px 0"
    return f'<pre dir="auto" style="{style}">{escaped(text[:LONGEST])}</pre>{more}'


def _passed_over(tools: Mapping[str, str]) -> str:
    """A line for each that was asked nothing, up to as many as there are attempts shown."""
    named = [f"<bdi>{escaped(f'{tool} passed over: {why}')}</bdi>" for tool, why in tools.items()]
    return "".join(f"<div>{line}</div>" for line in named[:MOST_ATTEMPTS])


def _attempts(attempts: Sequence[Mapping[str, Any]]) -> str:
    if not attempts:
        return ""
    end = max(line["started_ms"] + line["elapsed_ms"] for line in attempts) or 1.0
    titles = "".join(f'<th style="{_CELL}">{title}</th>' for title in ("at", "took", "asked", "what came", ""))
    rows = "".join(_row(line, end) for line in attempts[:MOST_ATTEMPTS])
    left_out = len(attempts) - MOST_ATTEMPTS
    more = f"<div><i>… and {left_out:,} more attempts: output.attempts has them all</i></div>" if left_out > 0 else ""
    return f'<table style="border-collapse:collapse"><tr>{titles}</tr>{rows}</table>{more}'


def _row(line: Mapping[str, Any], end: float) -> str:
    cells = (
        f"{line['started_ms'] / 1000:.2f} s",
        f"{line['elapsed_ms'] / 1000:.2f} s",
        f"<bdi>{escaped(str(line.get('model') or line['tool']))}</bdi>",
        f"<bdi>{escaped(_outcome(line))}</bdi>",
        _bar(line, end),
    )
    row = "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells)
    return f"<tr>{row}</tr>"


def _outcome(line: Mapping[str, Any]) -> str:
    error = line.get("error")
    if line["outcome"] == "succeeded" or not error:
        return str(line["outcome"])
    return f"{line['outcome']}: {error['message']}"


def _bar(line: Mapping[str, Any], end: float) -> str:
    """When the attempt was under way, on a line from the start of the run to the end of its last attempt."""
    colour = _COLOURS.get(str(line["outcome"]), "#757575")
    left, width = 100 * line["started_ms"] / end, max(100 * line["elapsed_ms"] / end, 1.0)
    box = "position:relative;width:160px;height:10px;border-bottom:1px solid currentColor"
    bar = f"position:absolute;left:{left:.1f}%;width:{width:.1f}%;max-width:{100 - left:.1f}%;height:10px"
    return f'<div style="{box}"><div style="{bar};background:{colour}"></div></div>'


def escaped(text: str) -> str:
    return text.translate(_ESCAPES)
