"""The web view: runs, one run as a waterfall, evidence, providers. HTML from here, kept up to date by htmx.

Every value is escaped where it is written. The pages themselves hold nothing of a tenant's: what they show they ask
for, with the key of whoever looks.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import Any
from zlib import crc32

from starlette.responses import HTMLResponse, Response

from steer_llm_sdk.orchestration.output import OrchestrationOutput
from steer_llm_sdk.service._page import PAGE_POLICY, whole_page
from steer_llm_sdk.service.runs import Run

_TYPES = {"css": "text/css", "js": "text/javascript", "txt": "text/plain"}
FILES = ("htmx.min.js", "uplot.min.js", "uplot.min.css", "view.css", "view.js", "LICENSES.txt")
_WITH_STYLES = PAGE_POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""Of the page that has a report in it, whose styles are its own."""
WIDE = 960
"""Of a waterfall, in the units of its own."""
_LEFT = 250
_LABEL = 200
_ROW = 30
_SIGNS = {"succeeded": "✓", "failed": "✕", "cancelled": "◌", "running": "…"}


def static(name: str) -> Response | None:
    if name not in FILES:
        return None
    data = (resources.files("steer_llm_sdk.service") / "static" / name).read_bytes()
    kind = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    return Response(data, media_type=kind, headers={"Cache-Control": "public, max-age=3600"})


def page(title: str, ask: str, current: str, keyed: bool, *, report: bool = False) -> Response:
    """A page whose content is at `ask`, asked for again every two seconds; where the service is `keyed`, once there is
    a key. `report`: a report is to be in it."""
    content = f"""<p id="trouble" class="panel" role="status" hidden></p>
<p class="panel needs">This page needs JavaScript. What it shows is at <code>/v1/runs</code> as well.</p>
<form id="login" class="panel"{" data-needed" * keyed} hidden>
<label for="key">This service asks for an API key.</label>
<p><input id="key" type="password" autocomplete="off" required> <button>Use this key</button></p></form>
<div hx-get="{escape(ask)}" hx-trigger="load, every 2s" aria-live="off"><p class="note loading">Loading…</p></div>"""
    return whole_page(title, content, current, policy=_WITH_STYLES if report else PAGE_POLICY)


def fragment(html: str, *, last: bool = False) -> Response:
    """`last`: nothing of it will change, and it is not asked for again (htmx takes 286 for that)."""
    return HTMLResponse(html, 286 if last else 200, {"Content-Security-Policy": PAGE_POLICY})


def gone() -> Response:
    """Instead of what is not there, or not there any more."""
    told = '<p class="panel" role="status">It is not there (any more).</p><p><a href="/">All runs</a></p>'
    return fragment(told, last=True)


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def runs_list(runs: Iterable[Run]) -> str:
    rows = "".join(map(_run_row, runs))
    if not rows:
        return (
            '<p class="panel">No run yet. Send one: <code>curl -d \'{"request": "Analyze this text"}\' '
            "-H 'Content-Type: application/json' /v1/runs</code></p>"
        )
    head = "".join(f"<th scope=col>{name}</th>" for name in ("Run", "State", "Tool", "Cost", "Time", "Began"))
    table = f"<table class=stack><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div id="runs" class="scroll" tabindex="0" role="region" aria-label="Runs">{table}</div>'


def _run_row(run: Run) -> str:
    output = run.output or {}
    took = f"{output['elapsed_ms']} ms" if "elapsed_ms" in output else "-"
    return (
        f'<tr><td><a id="run-{escape(run.id)}" href="/view/runs/{escape(run.id)}">{escape(run.id[:8])}</a></td>'
        f"<td>{_state(run.state)}</td>"
        f"<td class=free>{escape(run.tool or '-')}</td>"
        f"<td class=number data-is=cost>{_usd(output.get('cost_usd'))}</td>"
        f"<td class=number data-is=took>{took}</td><td data-is=began>{_when(run.created)}</td></tr>"
    )


def run_shown(run: Run) -> str:
    output = run.output or {}
    metadata = output.get("metadata") or {}
    plan = metadata.get("plan") or {}
    tool = metadata.get("tool_name") or run.tool
    facts = [
        ("State", _state(run.state)),
        ("Tool", escape(f"{tool or '-'} {metadata.get('tool_version') or ''}")),
        ("Cost", _usd(output.get("cost_usd"))),
        ("Usage", escape(", ".join(f"{name} {count}" for name, count in (output.get("usage") or {}).items()) or "-")),
        ("Began", _when(run.created)),
        ("Why this tool", escape(str(plan.get("reasoning") or ("it was named" if tool else "-")))),
        ("Trace", f"<code>{escape(str(metadata.get('trace_id') or run.id))}</code>"),
    ]
    if output.get("replayed"):
        facts.append(("Replayed", "answered from memory; nothing was bought"))
    told = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    parts = [f"<dl>{told}</dl>", "<h2>What happened</h2>", waterfall(run)]
    if not run.over:
        parts.append(
            f'<p><button id="cancel" hx-delete="/v1/runs/{escape(run.id)}" hx-swap="none" '
            'hx-confirm="Cancel this run?">Cancel this run</button></p>'
        )
    if isinstance(output.get("content"), dict) and output["content"].get("evidence_bundle"):
        parts.append(f'<h2>Evidence</h2><p><a href="/view/runs/{escape(run.id)}/evidence">The evidence bundle</a></p>')
    if run.error is not None:
        parts.append(_shown("Error", run.error))
    if "content" in output:
        parts.append(_shown("Answer", output["content"]))
    parts.append(_shown("Request", run.request))
    return "".join(parts)


def waterfall(run: Run) -> str:
    """Plan, attempts, waits, and what the policies told, by time: drawn, and as a list where that is too wide."""
    attempts = [
        {**line, "tool": name}
        for name, entry in ((run.output or {}).get("per_agent") or {}).items()
        for line in entry.get("timeline", ())
    ]
    # On the same clock as the attempts: that of the process that carried the run out.
    events = [json.loads(event.said) for event in run.events]
    told = [(event["at_ms"], text) for event in events if (text := _told(event))]
    rows: list[tuple[float, Mapping[str, Any] | str]] = [(line["started_ms"], line) for line in attempts]
    rows += [(max(at, 0.0), text) for at, text in told]
    rows.sort(key=_at)
    if not rows:
        return f'<p class="note">{"No tool was asked." if run.over else "Nothing yet."}</p>'
    ends = [line["started_ms"] + line["elapsed_ms"] for line in attempts] + [at for at, _ in told] + [1.0]
    end = max(ends)
    scale = (WIDE - _LEFT - _LABEL) / end
    drawn = "".join(_drawn(number, at, what, scale) for number, (at, what) in enumerate(rows))
    height = _ROW * len(rows) + 8
    said = ", ".join(_said(what) for _, what in rows)
    return (
        f'<div id="timeline"><svg class="drawn" viewBox="0 0 {WIDE} {height}" '
        f'width="{WIDE}" height="{height}" role="img" aria-label="{escape(said)}">'
        f'<line class="axis" x1="{_LEFT}" y1="0" x2="{_LEFT}" y2="{height}"/>{drawn}</svg>'
        f'<ol class="steps">{"".join(_step(at, what, end) for at, what in rows)}</ol></div>'
    )


def _step(at: float, what: Mapping[str, Any] | str, end: float) -> str:
    when = f"<span class=note>at {at:.0f} ms</span> "
    if isinstance(what, str):
        return f"<li>{when}{escape(what)}</li>"
    wide = max(100 * what["elapsed_ms"] / end, 1)
    left = min(100 * at / end, 100 - wide)  # One at the very end is seen, too.
    outcome = escape(what["outcome"])
    error = (what.get("error") or {}).get("type", "")
    return (
        f"<li>{when}{escape(_who(what))}"
        f'<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="bar {outcome}" x="{left:.1f}" width="{wide:.1f}" height="8"/></svg>'
        f"<span class={outcome}>{_SIGNS.get(what['outcome'], '')} {outcome}</span> after {what['elapsed_ms']:g} ms"
        f" {escape(error)}</li>"
    )


def _at(row: tuple[float, Any]) -> float:
    return row[0]


def _asked(what: Mapping[str, Any]) -> str:
    """The tool, and which of its answers an attempt was for."""
    return " ".join((what["tool"], *([what["replicate"]] if "replicate" in what else [])))


def _who(what: Mapping[str, Any]) -> str:
    return f"{_asked(what)} · {what['provider']} #{what['attempt']}"


def _said(what: Mapping[str, Any] | str) -> str:
    if isinstance(what, str):
        return what
    return (
        f"{_asked(what)} attempt {what['attempt']} at {what['provider']}: {what['outcome']}, {what['elapsed_ms']:g} ms"
    )


def _drawn(number: int, at: float, what: Mapping[str, Any] | str, scale: float) -> str:
    y, x = number * _ROW + 4, _LEFT + at * scale
    if isinstance(what, str):
        side = f'text-anchor="end" x="{x - 8:.1f}"' if x > WIDE - 260 else f'x="{x + 10:.1f}"'
        mark = f'<path d="M{x:.1f} {y + 6} l5 6 l-5 6 l-5 -6 z" class="bar cancelled"/>'
        return (
            f'<text x="0" y="{y + 16}" class="mute">event</text>{mark}<text {side} y="{y + 16}">{escape(what)}</text>'
        )
    width = max(what["elapsed_ms"] * scale, 2)
    name = _who(what)
    name = name if len(name) <= 34 else name[:33] + "…"
    sign = _SIGNS.get(what["outcome"], "")
    queued = what.get("queued_ms", 0) * scale
    wait = f'<rect class="wait" x="{x - queued:.1f}" y="{y + 4}" width="{queued:.1f}" height="14"/>' if queued else ""
    error = (what.get("error") or {}).get("type", "")
    label = f"{sign} {what['elapsed_ms']:g} ms {error}".strip()
    return (
        f'<text x="0" y="{y + 16}">{escape(name)}</text>{wait}'
        f'<rect class="bar {escape(what["outcome"])}" x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="16" rx="3"/>'
        f'<text x="{x + width + 6:.1f}" y="{y + 16}">{escape(label)}</text>'
    )


_KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "retry_attempt": lambda data: f"waits {data.get('delay_ms', 0):g} ms after {data.get('error')}, then tries again",
    "retry_refused": lambda data: f"does not try again: {data.get('reason')}",
    "fallback": lambda data: f"falls back from {data.get('from')} to {data.get('to')}",
    "circuit_breaker": lambda data: f"circuit of {data.get('provider')} is {data.get('state')}",
    "hedge": lambda data: f"a second request goes to {data.get('provider')}",
    "silence": lambda data: f"{data.get('tool_name')} is silent; asks beside it",
    "rate_limited": lambda data: f"waits for the rate limit of {data.get('provider')}",
    "replicate_started": lambda data: f"{_replicate(data)} begins",
    "replicate_done": lambda data: f"{_replicate(data)} is done",
    "budget_overrun": lambda data: "a budget was overrun",
}


def _replicate(data: Mapping[str, Any]) -> str:
    """A bundle of somebody's own may not name its replicates."""
    name = data.get("replicate_id")
    return "a replicate" if name is None else f"replicate {name}"


def _told(event: Mapping[str, Any]) -> str | None:
    if event["type"] == "start":
        return f"planned: {event['metadata'].get('tool_name')}"
    delta = event.get("delta")
    if event["type"] != "delta" or not isinstance(delta, Mapping):
        return None
    say = _KINDS.get(str(delta.get("event_type")))
    data = delta.get("data")
    return None if say is None or not isinstance(data, Mapping) else say(data)


def evidence(run: Run) -> str | None:
    """The bundle's own report, in a frame of another origin in which nothing runs: it holds the words of models, and
    the page round it has the key of whoever looks."""
    output = OrchestrationOutput.model_validate(run.output) if run.output else None
    bundle = None if output is None else output.evidence
    if bundle is None:
        return None
    return (
        f'<p><a href="/view/runs/{escape(run.id)}">The run</a></p>'
        f'<iframe class="report" sandbox title="The evidence bundle" srcdoc="{escape(bundle.to_html())}"></iframe>'
    )


# ── providers ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Weather:
    """Latency and errors of each provider, of the attempts that this process has seen: the last KEPT of them."""

    KEPT = 120

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[float, float, bool]]] = {}

    def note(self, output: Mapping[str, Any]) -> None:
        began = time.time() - (output.get("elapsed_ms") or 0.0) / 1000
        for entry in (output.get("per_agent") or {}).values():
            for line in entry.get("timeline", ()):
                if len(self._seen) < 1000 or line["provider"] in self._seen:
                    seen = self._seen.setdefault(line["provider"], deque(maxlen=self.KEPT))
                    at = began + (line["started_ms"] + line["elapsed_ms"]) / 1000
                    seen.append((at, line["elapsed_ms"], line["outcome"] == "failed"))

    def plots(self, provider: str) -> list[dict[str, Any]]:
        seen = sorted(self._seen.get(provider, ()))  # Of runs at the same time, the shorter one is told first.
        times = [at for at, _, _ in seen]
        errors = [sum(failed for _, _, failed in seen[: n + 1][-20:]) / min(n + 1, 20) * 100 for n in range(len(seen))]
        return [
            {"title": "Latency", "unit": "ms", "times": times, "values": [ms for _, ms, _ in seen]},
            {"title": "Errors of the last 20", "unit": "%", "times": times, "values": errors},
        ]


def providers(stats: Mapping[str, Mapping[str, Any]], weather: Weather, admin: bool) -> str:
    if not stats:
        return '<p class="panel">No provider was called yet. One has a circuit breaker from its first call on.</p>'
    return "".join(_provider(name, each, weather, admin) for name, each in sorted(stats.items()))


def _provider(name: str, stats: Mapping[str, Any], weather: Weather, admin: bool) -> str:
    forced = "" if stats["mode"] == "auto" else f" <span class=note>({escape(stats['mode'].replace('_', ' '))})</span>"
    facts = [
        ("Circuit", _state(stats["state"]) + forced),
        ("Calls that went well", str(stats["successes"])),
        ("Failures", str(stats["failures"])),
        ("Refused while open", str(stats["refusals"])),
    ]
    if stats["narrowed"]:
        cut = ", ".join(f"{part}: {state}" for part, state in stats["narrowed"].items())
        facts.append(("Parts cut off alone", escape(cut)))
    told = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in facts)
    plots = "".join(f'<div class="plot" data-plot="{escape(json.dumps(plot))}"></div>' for plot in weather.plots(name))
    buttons = "".join(_button(name, action, label) for action, label in _ACTIONS) if admin else ""
    return f"<section><h2>{escape(name)}</h2><dl>{told}</dl><p>{buttons}</p>{plots}</section>"


_ACTIONS = (("open", "Force open"), ("auto", "Let it decide"), ("reset", "Reset"))


def _button(name: str, action: str, label: str) -> str:
    # What has an id keeps the focus when the page is renewed.
    return (
        f'<button id="{action}-{crc32(name.encode("utf-8", "surrogatepass")):08x}" '
        f'hx-post="/view/providers/{action}" hx-vals="{escape(json.dumps({"name": name}))}" hx-swap="none" '
        f'aria-label="{escape(f"{label}: {name}")}">{label}</button> '
    )


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_MARKS = {
    "succeeded": "✓",
    "closed": "✓",
    "failed": "✕",
    "error": "✕",
    "interrupted": "✕",
    "open": "✕",
    "running": "…",
    "partial": "◐",
}


def _state(state: str) -> str:
    words = state.replace("_", " ")
    return f'<span class="state {escape(state)}">{_MARKS.get(state, "◌")} {escape(words)}</span>'


def _usd(cost: float | None) -> str:
    return "unknown" if cost is None else f"${cost:.6f}".rstrip("0").rstrip(".") if cost else "$0"


def _when(seconds: float) -> str:
    at = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{at.isoformat(timespec="seconds")}">{at:%Y-%m-%d %H:%M:%S} UTC</time>'


def _shown(title: str, value: Any) -> str:
    """JSON under a title of its own. It may be too long for its box: then the arrow keys scroll it."""
    what = f'id="{title.lower()}" tabindex="0" role="region" aria-label="{title}"'
    return f"<h2>{title}</h2><pre {what}>{_json(value)}</pre>"


def _json(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2, default=str)
    return escape(text if len(text) <= 20_000 else text[:20_000] + "\n… (cut off here; GET /v1/runs/… has all of it)")
