"""A bundle as a page: self-contained, without a script, readable without colour, and it trusts none of its words."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from steer_llm_sdk.evidence import ABSENT
from steer_llm_sdk.models.usage import tokens_of
from steer_llm_sdk.orchestration._evidence_view import (
    INVALID,
    LEGEND,
    LONGEST_CONSENSUS,
    MEANS,
    OTHER,
    STOPPED,
    Row,
    Said,
    View,
    parts_of,
    text_of,
    verdict,
    view_of,
)
from steer_llm_sdk.orchestration._html import escaped

if TYPE_CHECKING:
    from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle

MOST_ROWS, MOST_COLUMNS = 100, 100
LONGEST: Final = 600
MOST_WORDS: Final = 300
"""Words of two texts that are compared one by one; the work grows with their product."""
MOST_CONTESTED: Final = 50

_STYLE = """
.sev{color-scheme:light dark;--ink:#1b1f24;--dim:#59636e;--paper:#fff;--raise:#f6f8fa;--line:#d1d9e0;--good:#1a7f37;
--a:#d2e7fb;--b:#ffd8a8;--c:#e5d0f5;--d:#f9c9d4;--e:#d5e8c8;--mark:#ffe58f;--bar:#0969da;--bad:#b42318;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;color:var(--ink);background:var(--paper);
max-width:1100px;margin:0 auto;padding:16px;box-sizing:border-box}
@media(prefers-color-scheme:dark){.sev{--ink:#e6edf3;--dim:#9aa6b2;--paper:#0d1117;--raise:#161b22;--line:#3d444d;
--good:#4ac26b;--a:#123a63;--b:#6b4310;--c:#4b2a66;--d:#6b2436;--e:#2c4a22;--mark:#7a5c00;--bar:#4493f8;--bad:#ff8b80}}
.sev *{box-sizing:border-box}.sev h1{font-size:1.35em;margin:0 0 4px;overflow-wrap:anywhere}
.sev h2{font-size:1.1em;margin:28px 0 8px;border-bottom:1px solid var(--line);padding-bottom:4px}
.sev h3{font-size:1em;margin:16px 0 4px;overflow-wrap:anywhere}.sev p{margin:4px 0}
.sev .dim{color:var(--dim);font-size:.9em}.sev .tiles{display:grid;
grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:8px;margin:12px 0}
.sev .tile{background:var(--raise);border:1px solid var(--line);border-radius:6px;padding:8px 10px}
.sev .tile b{display:block;font-size:1.25em;overflow-wrap:anywhere}
.sev .tile span{color:var(--dim);font-size:.85em}
.sev pre{background:var(--raise);border:1px solid var(--line);border-radius:6px;padding:10px;margin:4px 0;
white-space:pre-wrap;overflow-wrap:anywhere;max-height:30em;overflow:auto;font-size:.9em}
.sev .scroll{overflow-x:auto;border:1px solid var(--line);border-radius:6px}
.sev table{border-collapse:collapse;font-size:.9em;color:inherit}
.sev th,.sev td{padding:3px 8px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line);
background:transparent;font-weight:normal}
.sev thead th{color:var(--dim);background:var(--raise);white-space:nowrap}.sev .num{text-align:right;white-space:nowrap}
.sev .grid td.c{text-align:center;min-width:30px;border:1px solid var(--paper);font-family:ui-monospace,monospace}
.sev .grid th.f{position:sticky;left:0;background:var(--paper);min-width:48px;max-width:220px;overflow-wrap:anywhere;
border-right:1px solid var(--line)}.sev .fields th.f{min-width:7.5em}.sev .grid thead th.f{background:var(--raise)}
.sev td.kA{background:var(--a)}.sev td.kB{background:var(--b);font-weight:bold}
.sev td.kC{background:var(--c);font-weight:bold}.sev td.kD{background:var(--d);font-weight:bold}
.sev td.kE{background:var(--e);font-weight:bold}
.sev td.kX{background:repeating-linear-gradient(45deg,transparent 0 4px,var(--line) 4px 6px)}
.sev mark{background:var(--mark);color:inherit;text-decoration:underline;text-decoration-thickness:2px}
.sev .bar{display:inline-block;width:90px;height:9px;border:1px solid var(--dim);vertical-align:middle;margin-right:6px}
.sev .bar i{display:block;height:100%;background:var(--bar)}
.sev .said{overflow-wrap:anywhere;min-width:180px;white-space:pre-wrap}
.sev .strip{position:relative;height:22px;min-width:160px;width:100%;border-bottom:1px solid var(--dim)}
.sev .strip i{position:absolute;bottom:2px;width:7px;height:7px;margin-left:-3px;border-radius:50%;
background:var(--bar);opacity:.75}
.sev .strip u{position:absolute;bottom:-4px;height:8px;border:1px solid var(--ink);border-top:0}
.sev .bad{color:var(--bad)}.sev ul{margin:4px 0;padding-left:20px}
@media(max-width:500px){.sev{padding:10px;font-size:14px}.sev .grid th.f{max-width:130px}
.sev .bar{width:40px}.sev .tiles{grid-template-columns:1fr 1fr}
.sev .grid th,.sev .grid td{padding:3px 4px}.sev .grid td.c{min-width:24px}.sev .fields th.f{min-width:5em}
.sev .fields .bar{display:none}.sev .stack,.sev .stack tbody{display:block}.sev .stack thead{display:none}
.sev .stack tr{display:flex;flex-wrap:wrap;align-items:baseline;gap:2px 12px;padding:6px 8px;
border-bottom:1px solid var(--line)}.sev .stack tr:last-child{border-bottom:0}.sev .stack td{padding:0 3px;border:0}
.sev .stack td:empty{display:none}.sev .stack td.said{flex:1 1 100%;min-width:0}
.sev .stack td[data-is]::before{content:attr(data-is) " ";color:var(--dim)}}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def as_page(bundle: EvidenceBundle) -> str:
    """A whole HTML document."""
    title = escaped(f"Evidence: {bundle.meta.task}")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>html,body{{margin:0;background:Canvas}}"
        "@media(prefers-color-scheme:dark){html,body{background:#0d1117}}</style></head>"
        f"<body><main>{as_block(bundle)}</main></body></html>\n"
    )


def as_block(bundle: EvidenceBundle) -> str:
    """The same as a block, for a notebook: its style applies to nothing outside of it."""
    view = view_of(bundle)
    parts = (
        _heading(bundle, view),
        _consensus(bundle, view),
        _heat_map(view),
        _disagreements(view),
        _numbers(bundle),
        _matrix(bundle, view),
        _stopping(bundle, view),
        _replicates(bundle, view),
        _models(bundle),
        _notes(bundle),
    )
    return f'<div class="sev"><style>{_STYLE}</style>{"".join(parts)}</div>'


# ── what it comes to ─────────────────────────────────────────────────────────────────────────────────────────────────


def _heading(bundle: EvidenceBundle, view: View) -> str:
    mark, sentence = verdict(bundle, view)
    meta = bundle.meta
    about = " · ".join(filter(None, (meta.model, f"{meta.k} replicates asked for")))
    tiles = "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in _tiles(bundle))
    return (
        f"<h1>{mark} {escaped(sentence)}</h1>"
        f'<p class="dim"><bdi>{escaped(text_of(meta.task, 200))}</bdi> · <bdi>{escaped(text_of(about, 200))}</bdi></p>'
        f'<div class="tiles">{tiles}</div>'
    )


def _tiles(bundle: EvidenceBundle) -> Iterator[tuple[str, str]]:
    summary, meta = bundle.summary, bundle.meta
    kind = summary.confidence_is or "support"
    if summary.confidence is None:
        yield "none", "confidence: without a consensus there is none"
    else:
        yield f"{summary.confidence:.2f}", f"confidence is {kind}: {MEANS[kind]}"
    for name, value in (("support", summary.support), ("stability", summary.stability), ("trust", summary.trust)):
        if value is not None and name != kind:
            yield f"{value:.2f}", f"{name}: {MEANS[name]}"
    valid = sum(replicate.quality.valid for replicate in bundle.replicates)
    yield f"{valid} of {len(bundle.replicates)}", "answers are valid"
    cost = "unknown" if bundle.cost_total_usd is None else f"${bundle.cost_total_usd:.4f}"
    tokens = tokens_of(bundle.usage_total)
    yield cost, f"cost, {tokens:,} tokens" if tokens else "cost"
    if meta.total_elapsed_ms is not None:
        yield f"{meta.total_elapsed_ms / 1000:.2f} s", "from the first question to the last answer"


def _consensus(bundle: EvidenceBundle, view: View) -> str:
    summary = bundle.summary
    if summary.confidence is None:
        return ""
    parts = parts_of(bundle, view)
    whole = ""
    if summary.consensus_from is not None:
        whole = (
            f'<p class="dim">It is the whole answer of <bdi>{escaped(summary.consensus_from)}</bdi>:'
            " the one put together field by field does not fit the schema.</p>"
        )
    nearest = "" if summary.nearest is None else f" It is what <bdi>{escaped(summary.nearest)}</bdi> said."
    return (
        _part("Consensus", parts.agreed, "")
        + _part("No two answers agree on this", parts.alone, "No consensus: at most one answer gave it.")
        + _part("From one answer, not compared", parts.beside, f"No vote was held on it.{nearest}")
        + whole
    )


def _part(title: str, value: Any, note: str) -> str:
    if value is ABSENT:
        return ""
    text = escaped(text_of(value, LONGEST_CONSENSUS, indent=2))
    below = f'<p class="dim">{note}</p>' if note else ""
    return f'<h2>{title}</h2><pre dir="auto">{text}</pre>{below}'


# ── who agrees ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _heat_map(view: View) -> str:
    if not view.rows:
        return ""
    shown = view.replicates[:MOST_COLUMNS]
    head = "".join(f'<th scope="col"><bdi>{escaped(each.id)}</bdi></th>' for each in shown)
    rows = "".join(_heat_row(row, [each.id for each in shown]) for row in view.rows[:MOST_ROWS])
    legend = "; ".join(f"<b>{escaped(code)}</b> {escaped(meaning)}" for code, meaning in LEGEND.items())
    return (
        "<h2>Agreement</h2>"
        + _table(f'<th class="f" scope="col">field</th><th scope="col">support</th>{head}', rows, "grid fields")
        + f'<p class="dim">{legend}.</p>'
        + _left_out(len(view.rows) - MOST_ROWS, "fields")
        + _left_out(len(view.replicates) - MOST_COLUMNS, "replicates")
    )


def _heat_row(row: Row, ids: Sequence[str]) -> str:
    cells = "".join(_heat_cell(row.codes.get(name, "")) for name in ids)
    return (
        f'<tr><th class="f" scope="row"><bdi>{_breakable(escaped(_name(row.name)))}</bdi></th>'
        f"<td>{_bar(row.support)}</td>{cells}</tr>"
    )


def _heat_cell(code: str) -> str:
    return f'<td class="c k{_KINDS.get(code, "E" if code.isalpha() else "0")}">{escaped(code)}</td>'


_KINDS: Final = {**dict(zip("ABCDE", "ABCDE", strict=True)), INVALID: "X", OTHER: "E"}


def _bar(share: float | None) -> str:
    if share is None:
        return ""
    return f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>{share:.2f}'


def _name(field: str) -> str:
    return "the answer" if field == "$" else text_of(field, 120)


def _breakable(name: str) -> str:
    """A long name is broken where its words end."""
    return name.replace("_", "_<wbr>").replace(".", ".<wbr>")


def _table(titles: str, rows: str, kind: str = "") -> str:
    """Wide ones are scrolled in a box of their own, which the keyboard reaches."""
    table = f'<table class="{kind}"><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _left_out(count: int, what: str) -> str:
    return f'<p class="dim">… and {count:,} more {what}: the bundle has them all.</p>' if count > 0 else ""


# ── where they differ ────────────────────────────────────────────────────────────────────────────────────────────────


def _disagreements(view: View) -> str:
    contested = sorted((row for row in view.rows if row.contested), key=lambda row: -(row.severity or 0.0))
    if not contested:
        return ""
    parts = "".join(map(_contested, contested[:MOST_CONTESTED]))
    return f"<h2>Disagreements</h2>{parts}{_left_out(len(contested) - MOST_CONTESTED, 'contested fields')}"


def _contested(row: Row) -> str:
    facts = " · ".join(
        f"{name} {value:.2f}"
        for name, value in (("severity", row.severity), ("support", row.support), ("entropy", row.entropy))
        if value is not None
    )
    first = _shown(row.said[0])
    rows = "".join(_said_row(said, first) for said in row.said)
    if row.absent:
        rows += _plain_row("·", "<i>without the field</i>", len(row.absent), row.absent)
    if row.more:
        rows += f'<tr><td></td><td colspan="3" class="dim">… and {row.more:,} other answers</td></tr>'
    return f'<h3><bdi>{escaped(_name(row.name))}</bdi></h3><p class="dim">{facts}</p>' + _table(
        '<th>letter</th><th>answer</th><th class="num">votes</th><th>replicates</th>', rows, "stack"
    )


def _shown(said: Said) -> str:
    text = text_of(said.value, LONGEST)
    return said.excerpt if said.excerpt is not None and len(text) > LONGEST else text


def _said_row(said: Said, first: str) -> str:
    text = _shown(said)
    words = escaped(text) if said.letter == "A" else _marked(text, first)
    return _plain_row(said.letter, f'<bdi dir="auto">{words}</bdi>', said.votes, said.ids)


def _plain_row(letter: str, words: str, votes: int, ids: Sequence[str]) -> str:
    names = ", ".join(ids[:30]) + (f" … and {len(ids) - 30:,} more" if len(ids) > 30 else "")
    return (
        f'<tr><td class="k{letter if letter in "ABCDE" else "0"}"><b>{letter}</b></td><td class="said">{words}</td>'
        f'<td class="num" data-is="votes">{votes}</td><td data-is="by"><bdi>{escaped(names)}</bdi></td></tr>'
    )


_WORDS = re.compile(r"\s+|[^\s]+")


def _marked(text: str, beside: str) -> str:
    """The text with those of its words marked that the other one does not have at that place."""
    own, other = _WORDS.findall(text), _WORDS.findall(beside)
    if len(own) > MOST_WORDS or len(other) > MOST_WORDS:
        return escaped(text)
    marked = []
    for tag, _, _, start, end in difflib.SequenceMatcher(None, other, own, autojunk=False).get_opcodes():
        words = escaped("".join(own[start:end]))
        marked.append(words if tag == "equal" or not words else f"<mark>{words}</mark>")
    return "".join(marked)


# ── numbers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _numbers(bundle: EvidenceBundle) -> str:
    """Where the numbers of contested fields lie."""
    found = bundle.summary.distributions or {}
    contested = {each.field: each.values for each in bundle.summary.disagreements}
    rows = "".join(
        _strip_row(name, told, contested[name])
        for name, told in islice(found.items(), MOST_ROWS)
        if name in contested and isinstance(told, dict) and isinstance(told.get("mean"), (int, float))
    )
    if not rows:
        return ""
    titles = "".join(f'<th class="num">{title}</th>' for title in ("min", "median", "max", "mean", "stdev"))
    return (
        "<h2>Numbers</h2>"
        + _table(f"<th>field</th><th>where they lie</th>{titles}", rows)
        + '<p class="dim">A dot for each replicate; the bracket is the 95 % bootstrap interval of the median.</p>'
    )


def _strip_row(name: str, told: dict[str, Any], values: Sequence[Any]) -> str:
    low, high = float(told["min"]), float(told["max"])
    span = (high - low) or 1.0

    def place(number: float) -> float:
        return 4 + 92 * (number - low) / span

    dots = "".join(
        f'<i style="left:{place(value):.1f}%"></i>'
        for value in values[:200]
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    )
    interval = told.get("median_interval")
    bracket = ""
    if isinstance(interval, list) and len(interval) == 2:
        left, right = place(interval[0]), place(interval[1])
        bracket = f'<u style="left:{left:.1f}%;width:{max(right - left, 0.5):.1f}%"></u>'
    figures = "".join(
        f'<td class="num">{_figure(told.get(each))}</td>' for each in ("min", "median", "max", "mean", "stdev")
    )
    return (
        f"<tr><td><bdi>{escaped(_name(name))}</bdi></td>"
        f'<td style="width:40%"><div class="strip">{dots}{bracket}</div></td>{figures}</tr>'
    )


def _figure(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (int, float)) else ""


# ── distances ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _matrix(bundle: EvidenceBundle, view: View) -> str:
    matrix = bundle.summary.pairwise_distance
    ids = list(bundle.summary.standing or {}) or [each.id for each in view.replicates if each.id not in view.invalid]
    if not matrix or len(matrix) < 2 or len(ids) != len(matrix):
        return ""
    size = min(len(matrix), MOST_COLUMNS)
    head = "".join(f'<th scope="col"><bdi>{escaped(name)}</bdi></th>' for name in ids[:size])
    rows = "".join(
        f'<tr><th class="f" scope="row"><bdi>{escaped(ids[row])}</bdi></th>'
        + "".join(_distance(matrix[row][place], row == place) for place in range(size))
        + "</tr>"
        for row in range(size)
    )
    return (
        "<h2>Distances</h2>"
        + _table(f'<th class="f" scope="col">replicate</th>{head}', rows, "grid")
        + '<p class="dim">0 the same answer, 1 nothing alike; the stronger the colour, the farther.</p>'
        + _left_out(len(matrix) - size, "replicates")
    )


def _distance(far: float, same: bool) -> str:
    if same:
        return '<td class="c dim">·</td>'
    shade = f"color-mix(in srgb,var(--b) {100 * min(max(far, 0.0), 1.0):.0f}%,var(--paper))"
    return f'<td class="c" style="background:{shade}">{far:.2f}</td>'


# ── how it came to its end ───────────────────────────────────────────────────────────────────────────────────────────


def _stopping(bundle: EvidenceBundle, view: View) -> str:
    meta, told = bundle.meta, view.stopping
    reason = meta.early_stop_reason or told.get("reason")
    trace = [line for line in told.get("trace") or () if isinstance(line, dict)]
    if reason is None and not trace:
        return ""
    words = STOPPED.get(str(reason), str(reason))
    asked = told.get("asked", len(bundle.replicates))
    saved = told.get("cost_saved_usd")
    saving = f" That saved ${saved:.4f}." if isinstance(saved, (int, float)) and saved > 0 else ""
    sentence = f"{asked} of {meta.k} were asked for{'' if reason is None else f': {words}'}.{saving}"
    rows = "".join(
        f"<tr><td><bdi>{escaped(str(line.get('replicate_id', '')))}</bdi></td>"
        f"<td>{'' if line.get('valid', True) else 'not valid'}</td><td>{_bar(_share(line.get('stability')))}</td>"
        f'<td class="num">{escaped(str(line.get("need", "")))}</td></tr>'
        for line in trace[:MOST_ROWS]
    )
    titles = '<th>after</th><th>note</th><th>stability</th><th class="num">more needed at least</th>'
    return f"<h2>Stopping</h2><p>{escaped(sentence)}</p>{_table(titles, rows) if rows else ''}"


def _share(value: Any) -> float | None:
    return min(max(float(value), 0.0), 1.0) if isinstance(value, (int, float)) else None


# ── replicates and models ────────────────────────────────────────────────────────────────────────────────────────────


def _replicates(bundle: EvidenceBundle, view: View) -> str:
    slowest = max((each.elapsed_ms or 0.0 for each in view.replicates), default=0.0) or 1.0
    rows = "".join(_replicate_row(bundle, view, each, slowest) for each in view.replicates[:MOST_ROWS])
    titles = "".join(
        f"<th{cls}>{title}</th>"
        for title, cls in (
            ("id", ""),
            ("mark", ""),
            ("model", ""),
            ("agrees", ""),
            ("outlier", ' class="num"'),
            ("took", ""),
            ("tokens", ' class="num"'),
            ("said", ""),
        )
    )
    costs = "".join(
        f'<tr><td><bdi>{escaped(text_of(name, 120))}</bdi></td><td class="num">${cost:.6f}</td></tr>'
        for name, cost in bundle.cost_breakdown.items()
    )
    return (
        "<h2>Replicates</h2>"
        + _table(titles, rows, "stack")
        + '<p class="dim">◆ nearest to all others; ▲ from 3.5 on an outlier.</p>'
        + _left_out(len(view.replicates) - MOST_ROWS, "replicates")
        + (f"<h2>Cost</h2>{_table('<th>model</th><th class=num>USD</th>', costs)}" if costs else "")
    )


def _replicate_row(bundle: EvidenceBundle, view: View, each: Any, slowest: float) -> str:
    standing = (bundle.summary.standing or {}).get(each.id)
    outlier = standing.outlier if standing is not None else None
    tokens = tokens_of(each.usage)
    invalid = view.invalid.get(each.id)
    said = (
        f'<bdi dir="auto">{escaped(text_of(each.data, 160))}</bdi>'
        if invalid is None
        else f'<span class="bad">not valid: {escaped(text_of("; ".join(invalid) or "no reason was given", 300))}</span>'
    )
    medoid = "◆" if each.id == bundle.summary.medoid else ""
    took = "" if each.elapsed_ms is None else f"{_bar_of(each.elapsed_ms / slowest)}{each.elapsed_ms / 1000:.2f} s"
    cells = (
        f"<td><bdi>{escaped(each.id)}</bdi></td>",
        f"<td>{medoid}{'▲' if outlier is not None and outlier >= 3.5 else ''}</td>",
        f"<td><bdi>{escaped(text_of(each.model or '', 80))}</bdi></td>",
        f'<td data-is="agrees">{_bar(standing.agreement) if standing is not None else ""}</td>',
        f'<td class="num" data-is="outlier">{"" if outlier is None else f"{outlier:.1f}"}</td>',
        f'<td data-is="took">{took}</td>',
        f'<td class="num" data-is="tokens">{f"{tokens:,}" if tokens else ""}</td>',
        f'<td class="said">{said}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>"


def _bar_of(share: float) -> str:
    return f'<span class="bar"><i style="width:{100 * min(share, 1.0):.0f}%"></i></span>'


def _models(bundle: EvidenceBundle) -> str:
    if not bundle.summary.models:
        return ""
    rows = "".join(
        f'<tr><td><bdi>{escaped(text_of(name, 120))}</bdi></td><td class="num">{each.valid} of {each.replicates}</td>'
        f"<td>{_bar(each.agreement)}</td></tr>"
        for name, each in bundle.summary.models.items()
    )
    nameless = [each.quality.valid for each in bundle.replicates if each.model is None]
    if nameless:
        rows += f'<tr><td><i>not named</i></td><td class="num">{sum(nameless)} of {len(nameless)}</td><td></td></tr>'
    return f"<h2>Models</h2>{_table('<th>model</th><th class=num>valid</th><th>agrees</th>', rows)}"


def _notes(bundle: EvidenceBundle) -> str:
    summary = bundle.summary
    told = [*summary.warnings]
    if summary.truncated:
        told.append(f"The summary was cut: {json.dumps(summary.truncation_info, default=repr)}")
    items = "".join(f"<li>{escaped(text_of(each, 400))}</li>" for each in told)
    notes = f"<h2>Notes</h2><ul>{items}</ul>" if items else ""
    return (
        f'{notes}<p class="dim">Replicates of one model share its mistakes:'
        " that they agree says how stable the answer is, not that it is true.</p>"
    )
