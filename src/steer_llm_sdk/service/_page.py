"""What every page of the web view has round its content."""

from __future__ import annotations

from html import escape

from starlette.responses import HTMLResponse

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def whole_page(
    title: str, content: str, current: str = "", status: int = 200, policy: str = PAGE_POLICY
) -> HTMLResponse:
    """`content` is HTML; `current` is the name of the link to the page itself."""
    links = "".join(
        f'<a href="{href}"{" aria-current=page" if name == current else ""}>{name}</a>'
        for name, href in (("Runs", "/"), ("Providers", "/view/providers"))
    )
    return HTMLResponse(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · steer-llm</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="htmx-config" content='{{"allowEval": false, "includeIndicatorStyles": false}}'>
<link rel="icon" href="data:,"><link rel="stylesheet" href="/static/uplot.min.css">
<link rel="stylesheet" href="/static/view.css">
<script src="/static/htmx.min.js" defer></script><script src="/static/uplot.min.js" defer></script>
<script src="/static/view.js" defer></script></head>
<body><a class="skip" href="#content">Skip to the content</a>
<header><strong>steer-llm</strong><nav aria-label="Pages">{links}</nav></header>
<main id="content"><h1>{escape(title)}</h1>
{content}
</main></body></html>""",
        status,
        {"Content-Security-Policy": policy},
    )
