"""The page of a bundle in a real browser: nothing in it runs, nothing is loaded, and it fits a phone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from steer_llm_sdk.orchestration.models import EvidenceBundle
from unit.evidence.bundles import bundle_of, hostile, stopped

LUMINANCE = """
(selector) => {
  const lum = (css) => {
    const unit = css.startsWith("color(srgb") ? 1 : 255;
    const [r, g, b] = css.match(/[\\d.]+/g).slice(0, 3).map(Number).map((v) => {
      v /= unit; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    const own = getComputedStyle(node).backgroundColor;
    return own === "rgba(0, 0, 0, 0)" && node.parentElement ? ground(node.parentElement) : own;
  };
  return [...document.querySelectorAll(selector)].map((node) => {
    const [x, y] = [lum(getComputedStyle(node).color), lum(ground(node))].sort((a, b) => b - a);
    return (x + 0.05) / (y + 0.05);
  });
}
"""


def opened(browser: Browser, html: str, folder: Path, **context: Any) -> tuple[Page, list[str]]:
    """The page, and what was asked for, said on the console or thrown besides."""
    path = folder / "evidence.html"
    path.write_text(html, encoding="utf-8")
    page = browser.new_context(**context).new_page()
    events: list[str] = []
    page.on("request", lambda request: events.append(request.url))
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.goto(path.as_uri())
    return page, events[1:]  # The first is the page itself.


@pytest.mark.parametrize("policy", [True, False], ids=["with its policy", "without its policy"])
def test_a_script_in_every_field_is_harmless(browser: Browser, tmp_path: Path, policy: bool) -> None:
    html = hostile().to_html()
    if not policy:
        html = html.replace("Content-Security-Policy", "X-Nothing")
    page, events = opened(browser, html, tmp_path)
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.querySelectorAll('script,img,iframe,link').length") == 0
    assert "<script>window.hit=1</script>" in page.inner_text("body")
    assert events == []


def test_a_block_in_a_notebook_is_harmless_too(browser: Browser, tmp_path: Path) -> None:
    html = f"<!doctype html><meta charset=utf-8><p id=other>beside</p>{hostile()._repr_html_()}"
    page, events = opened(browser, html, tmp_path)
    assert (page.evaluate("window.hit"), events) == (None, [])
    assert page.evaluate("getComputedStyle(document.getElementById('other')).maxWidth") == "none"


def full() -> EvidenceBundle:
    texts = ["renews every year unless one side gives 60 days notice", "ends after two years " * 20]
    data = [
        {"a_rather_long_name_of_a_field": n % 2, "why": texts[n % 3 == 0], "fee": 100 + n, "kept": True}
        for n in range(12)
    ]
    return stopped(bundle_of(*data, invalid=1), "converged")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1100])
def test_it_fits_and_can_be_read_in_light_and_dark(browser: Browser, tmp_path: Path, width: int, scheme: Any) -> None:
    page, events = opened(
        browser, full().to_html(), tmp_path, viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate(LUMINANCE, ".sev h1, .sev h2, .sev td, .sev th, .sev mark, .sev .dim, .sev .tile b")
    assert len(contrasts) > 100
    assert min(contrasts) >= 4.5
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)") == (scheme == "dark")
    assert events == []


def test_without_colour_the_letters_say_the_same(browser: Browser, tmp_path: Path) -> None:
    page, _ = opened(browser, full().to_html(), tmp_path, forced_colors="active")
    cells = page.eval_on_selector_all(".fields tbody tr:first-child td.c", "all => all.map(one => one.innerText)")
    assert set(cells) == {"A", "B", "✗"}
    assert page.evaluate("getComputedStyle(document.querySelector('mark')).textDecorationLine") == "underline"


def test_wide_tables_are_scrolled_by_the_keyboard(browser: Browser, tmp_path: Path) -> None:
    page, _ = opened(browser, full().to_html(), tmp_path, viewport={"width": 400, "height": 800})
    page.focus(".scroll")
    page.keyboard.press("ArrowRight")
    scrolled = (
        "() => new Promise(done => requestAnimationFrame(() => done(document.querySelector('.scroll').scrollLeft)))"
    )
    assert any(page.evaluate(scrolled) > 0 for _ in range(100))  # It glides for some frames.


def test_on_a_phone_what_each_replicate_said_is_in_sight_and_no_row_is_blank(browser: Browser, tmp_path: Path) -> None:
    page, _ = opened(browser, full().to_html(), tmp_path, viewport={"width": 400, "height": 800})
    said = page.locator(".stack td.said")
    boxes = [said.nth(n).bounding_box() for n in range(said.count())]
    assert [box for box in boxes if box is None or box["width"] < 200 or box["x"] + box["width"] > 400] == []
    wrong = page.get_by_text("not valid: InvalidOutput: no JSON")
    line = page.locator("tr", has=wrong).bounding_box()
    assert line is not None
    assert line["height"] < 90
    assert page.evaluate("[...document.querySelectorAll('.stack')].every(one => one.scrollWidth <= 380)")
    labels = page.eval_on_selector_all(
        ".stack tr:first-child td[data-is]", "all => all.map(one => getComputedStyle(one, '::before').content)"
    )
    assert {"votes", "by", "agrees", "took", "tokens"} <= {label.replace('"', "").strip() for label in labels}


def contract() -> EvidenceBundle:
    terms = [12, 12, 12, 24, 12, 24, 24, 24]
    whys = [
        "The contract renews every year unless one side gives notice 60 days before the end.",
        *["The contract is renewed each year unless one side gives notice 60 days before the end."] * 5,
        "The contract renews every year unless one side gives notice 60 days before the end.",
        "The contract ends after two years.",
    ]
    data = [
        {
            "party": "Hooli Inc.",
            "term_months": months,
            "fee": {"amount": 1200 + n * 0.4, "currency": "USD"},
            "why": why,
            **({} if n == 4 else {"signed": "2026-03-03"}),
        }
        for n, (months, why) in enumerate(zip(terms, whys, strict=True))
    ]
    bundle = bundle_of(*data, invalid=1)
    return bundle.model_copy(update={"meta": bundle.meta.model_copy(update={"task": "contract terms"})})


def test_pictures_for_the_page_of_evidence(browser: Browser, tmp_path: Path) -> None:
    """With STEER_PICTURES=docs/img they are taken anew; without it the pages are only drawn."""
    folder = os.environ.get("STEER_PICTURES")
    shots = (("evidence-light", 900, 1180, "light"), ("evidence-phone-dark", 400, 1400, "dark"))
    for name, width, height, scheme in shots:
        viewport = {"width": width, "height": height}
        page, events = opened(browser, contract().to_html(), tmp_path, viewport=viewport, color_scheme=scheme)
        assert "8 of 9 answers are valid" in page.inner_text("h1")
        if folder:
            page.screenshot(path=Path(folder, f"{name}.png"))
        assert events == []
