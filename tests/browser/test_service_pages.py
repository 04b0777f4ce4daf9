"""The pages of the service in a real browser: nothing foreign runs, and all works by keyboard."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, Page, expect

from integration.service.served import Service, serving
from steer_llm_sdk.errors import ProviderUnavailable
from steer_llm_sdk.orchestration import EvidenceBundle, Tool
from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.service import Key, KeyRing, new_key
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, err

SCRIPT = "<script>window.hit=1</script><img src=x onerror=window.hit=1>\"'>{{7*7}}"


class Hostile(Tool):
    """Has markup wherever a tool may say something; its provider is down once, so that a retry tells of it."""

    name = f"all {SCRIPT}"
    version = "1.0.0"
    provider = f"p {SCRIPT}"
    description = SCRIPT
    capabilities = (SCRIPT,)
    calls = 0

    async def execute(self, request: Any, options: Any = None, event_manager: Any = None) -> Any:
        self.calls += 1
        if self.calls % 2:
            raise ProviderUnavailable(SCRIPT, str(self.provider), 503)
        metadata = {"notes": [SCRIPT], SCRIPT: SCRIPT}
        return {"content": {SCRIPT: SCRIPT}, "usage": {SCRIPT: 1}, "cost_usd": 0.1, "metadata": metadata}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    tools = (
        ScriptedTool("flaky", err(503), OK({"said": SCRIPT}, after=0.05), provider="alpha", description=SCRIPT),
        ScriptedTool("waits", HANG, provider="beta"),
        ScriptedTool(SCRIPT, err(ValueError(SCRIPT)), provider=SCRIPT),
        Hostile(),
        SimpleBundleTool(),
    )
    with serving(*tools, drain=0.0) as running:
        yield running


@dataclass
class Watched:
    """A page, with what it said on the console, what it threw, and what it asked of anybody but the service."""

    page: Page
    trouble: list[str] = field(default_factory=list)


def opened(browser: Browser, service: Service, path: str, **context: Any) -> Watched:
    made = browser.new_context(**context)
    made.set_default_timeout(10_000)
    watched = Watched(made.new_page())
    watched.page.on("console", lambda said: watched.trouble.append(said.text))
    watched.page.on("pageerror", lambda error: watched.trouble.append(str(error)))
    watched.page.on(
        "request",
        lambda asked: watched.trouble.append(asked.url) if not asked.url.startswith((service.url, "data:")) else None,
    )
    watched.page.goto(service.url + path)
    return watched


def run(service: Service, tool: str, **body: Any) -> str:
    with service.client() as client:
        body = {"request": "hello", "options": {"streaming": True}} | body | {"tool_name": tool}
        return str(client.post("/v1/runs", json=body).json()["id"])


@pytest.fixture(scope="module")
def ended(service: Service) -> dict[str, str]:
    """Runs by their tool."""
    return {
        "flaky": run(service, "flaky", request={"text": SCRIPT, SCRIPT: [SCRIPT]}),
        "hostile": run(service, SCRIPT, request=SCRIPT),
        "everywhere": run(
            service,
            f"all {SCRIPT}",
            request={SCRIPT: SCRIPT},
            options={"streaming": True, "metadata": {SCRIPT: SCRIPT}},
        ),
        "bundle": run(service, "simple_bundle", request={"query": SCRIPT}, tool_options={"k": 3}),
    }


def test_before_the_first_run_the_page_says_how_to_send_one(browser: Browser) -> None:
    with serving() as service:
        watched = opened(browser, service, "/")
        expect(watched.page.locator("main")).to_contain_text("No run yet")
        watched.page.get_by_role("link", name="Providers").click()
        expect(watched.page.locator("main")).to_contain_text("No provider was called yet")
        assert watched.trouble == []


def test_runs_are_listed_and_one_is_opened_by_keyboard(
    browser: Browser, service: Service, ended: dict[str, str]
) -> None:
    watched = opened(browser, service, "/")
    link = watched.page.get_by_role("link", name=ended["flaky"][:8])
    expect(link).to_be_visible()
    link.focus()
    watched.page.keyboard.press("Enter")
    expect(watched.page.locator("svg[role=img]")).to_be_visible()
    told = watched.page.locator("svg[role=img]").get_attribute("aria-label") or ""
    assert [
        words
        for words in ("planned: flaky", "attempt 1 at alpha: failed", "attempt 2 at alpha: succeeded")
        if words not in told
    ] == []
    assert "then tries again" in told
    assert watched.trouble == []


def test_a_script_in_a_run_is_shown_as_text(browser: Browser, service: Service, ended: dict[str, str]) -> None:
    for path in ("/", "/view/providers", *(f"/view/runs/{run_id}" for run_id in ended.values())):
        watched = opened(browser, service, path)
        expect(watched.page.locator("main .note", has_text="Loading")).to_have_count(0)
        if "runs/" in path:
            expect(watched.page.locator("main")).to_contain_text("<script>window.hit=1</script>")
        watched.page.wait_for_timeout(100)
        assert watched.page.evaluate("window.hit") is None
        assert watched.page.evaluate("document.querySelectorAll('main script, main img, main iframe').length") == 0
        assert watched.trouble == []
        watched.page.context.close()


def test_the_evidence_of_a_run_is_its_report(browser: Browser, service: Service, ended: dict[str, str]) -> None:
    watched = opened(browser, service, f"/view/runs/{ended['bundle']}")
    sees_the_evidence(watched)
    assert watched.trouble == []


def sees_the_evidence(watched: Watched) -> None:
    """Goes from the page of a run to its report and back. The report is styled, and of another origin, in which nothing
    runs."""
    page, run = watched.page, watched.page.url
    page.get_by_role("link", name="The evidence bundle").click()
    report = page.frame_locator("iframe[title='The evidence bundle']")
    expect(report.locator("h1")).to_be_visible()
    expect(report.locator(".sev .tile").first).to_have_css("border-top-style", "solid")
    assert page.locator("iframe").get_attribute("sandbox") == ""
    assert page.evaluate("document.querySelector('iframe').contentDocument") is None
    page.get_by_role("link", name="The run", exact=True).click()
    expect(page).to_have_url(run)


def test_the_evidence_is_seen_where_a_key_is_asked_for(browser: Browser) -> None:
    secret, digest = new_key()
    with serving(SimpleBundleTool(), keys=KeyRing((Key(tenant="a", sha256=digest),))) as service:
        with service.client(secret) as client:
            body = {"request": {"query": "x"}, "tool_name": "simple_bundle", "tool_options": {"k": 3}}
            run_id = client.post("/v1/runs", json=body).json()["id"]
        watched = opened(browser, service, f"/view/runs/{run_id}")
        watched.page.get_by_label("This service asks for an API key.").fill(secret)
        watched.page.keyboard.press("Enter")
        sees_the_evidence(watched)
        assert watched.trouble == []


def test_a_script_in_a_report_neither_runs_nor_sees_the_key(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EvidenceBundle, "to_html", lambda _: f"<h1>{SCRIPT}</h1><script src=/static/view.js></script>")
    with serving(SimpleBundleTool()) as service:
        run_id = run(service, "simple_bundle", request={"query": "x"}, tool_options={"k": 3})
        watched = opened(browser, service, f"/view/runs/{run_id}/evidence")
        expect(watched.page.frame_locator("iframe").locator("h1")).to_be_visible()
        watched.page.wait_for_timeout(100)
        assert watched.page.evaluate("[window.hit, frames[0].length, frames.length]") == [None, 0, 1]
        (frame,) = watched.page.frames[1:]
        assert frame.url == "about:srcdoc"
        assert any("script" in said for said in watched.trouble)  # It was held back, and the browser says so.


def test_a_circuit_is_forced_open_and_reset_by_keyboard(
    browser: Browser, service: Service, ended: dict[str, str]
) -> None:
    watched = opened(browser, service, "/view/providers")
    section = watched.page.locator("section", has=watched.page.get_by_role("heading", name="alpha"))
    expect(section.locator(".state")).to_have_text("✓ closed")
    for label, state in (("Force open: alpha", "✕ open"), ("Reset: alpha", "✓ closed")):
        watched.page.get_by_role("button", name=label).focus()
        watched.page.keyboard.press("Enter")
        expect(section.locator(".state")).to_have_text(state)
    assert watched.trouble == []


def test_what_has_the_focus_keeps_it_when_the_page_is_renewed(
    browser: Browser, service: Service, ended: dict[str, str]
) -> None:
    watched = opened(browser, service, "/view/providers")
    button = watched.page.get_by_role("button", name="Force open: alpha")
    button.focus()
    with watched.page.expect_response(lambda answer: answer.url.endswith("/view/providers/shown")):
        pass
    watched.page.wait_for_timeout(100)
    expect(button).to_be_focused()


def test_a_run_under_way_is_cancelled_from_its_page(browser: Browser, service: Service) -> None:
    with service.client() as client:
        run_id = client.post(
            "/v1/runs", json={"request": "x", "tool_name": "waits"}, headers={"Prefer": "respond-async"}
        ).json()["id"]
    watched = opened(browser, service, f"/view/runs/{run_id}")
    watched.page.on("dialog", lambda dialog: dialog.accept())
    watched.page.get_by_role("button", name="Cancel this run").press("Enter")
    expect(watched.page.locator(".state").first).to_contain_text("cancelled")
    assert watched.trouble == []


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1100, "dark")])
def test_no_page_is_scrolled_sideways(
    browser: Browser, service: Service, ended: dict[str, str], width: int, scheme: Any
) -> None:
    for path in ("/", "/view/providers", *(f"/view/runs/{run_id}" for run_id in ended.values())):
        context = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
        watched = opened(browser, service, path, **context)
        expect(watched.page.locator("main .note", has_text="Loading")).to_have_count(0)
        watched.page.wait_for_timeout(100)
        assert (path, watched.page.evaluate("document.documentElement.scrollWidth")) == (path, width)
        assert watched.trouble == []
        watched.page.context.close()


def test_a_service_with_keys_asks_for_one_and_keeps_it_for_the_tab(browser: Browser) -> None:
    secret, digest = new_key()
    with serving(ScriptedTool("t"), keys=KeyRing((Key(tenant="a", sha256=digest),))) as service:
        watched = opened(browser, service, "/")
        watched.page.get_by_label("This service asks for an API key.").fill(secret)
        watched.page.keyboard.press("Enter")
        expect(watched.page.locator("main")).to_contain_text("No run yet")
        assert watched.page.evaluate("localStorage.length") == 0
        assert secret not in watched.page.url
        assert watched.trouble == []


def test_a_key_that_is_refused_is_asked_for_again_and_is_not_sent_again(browser: Browser) -> None:
    _, digest = new_key()
    with serving(keys=KeyRing((Key(tenant="a", sha256=digest),))) as service:
        page = opened(browser, service, "/").page
        page.get_by_label("This service asks for an API key.").fill("wrong")
        with page.expect_response(lambda answer: answer.status == 401):
            page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("The service does not take this key.")
        expect(page.get_by_label("This service asks for an API key.")).to_be_visible()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(2500)
        assert asked == []


def test_a_service_that_is_gone_is_told_in_words(browser: Browser) -> None:
    with serving() as service:
        watched = opened(browser, service, "/")
        expect(watched.page.locator("main")).to_contain_text("No run yet")
    expect(watched.page.get_by_role("status")).to_contain_text("does not answer")


# ── for everybody ────────────────────────────────────────────────────────────────────────────────────────────────────

AXE = Path(AXE_FILE_PATH).read_text(encoding="utf-8")
REACHABLE = "a[href], button, input, [tabindex='0'], svg a"
NAME = "node => node.id || node.getAttribute('aria-label') || node.innerText"
FOCUSED = f"() => ({NAME})(document.activeElement)"


def violations(page: Page) -> list[str]:
    """What axe-core finds, all its rules on, with the element and the reason."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations'], rules: {region: {enabled: true}}})")
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:120]} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


def settled(watched: Watched) -> Page:
    expect(watched.page.locator("main .note", has_text="Loading")).to_have_count(0)
    return watched.page


@pytest.fixture(scope="module")
def under_way(service: Service) -> str:
    with service.client() as client:
        body, headers = {"request": "x", "tool_name": "waits"}, {"Prefer": "respond-async"}
        return str(client.post("/v1/runs", json=body, headers=headers).json()["id"])


def test_axe_sees_a_page_that_is_wrong(browser: Browser, service: Service) -> None:
    page = opened(browser, service, "/").page
    page.evaluate("document.body.innerHTML = '<main><h1>x</h1><input><img src=\\'data:,\\'></main>'")
    found = " ".join(violations(page))
    assert "label (critical)" in found
    assert "image-alt (critical)" in found


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1100, "light")])
def test_no_page_has_anything_that_axe_finds_wrong(
    browser: Browser, service: Service, ended: dict[str, str], under_way: str, width: int, scheme: Any
) -> None:
    runs = [f"/view/runs/{run_id}" for run_id in (*ended.values(), under_way)]
    watched = opened(browser, service, "/", viewport={"width": width, "height": 800}, color_scheme=scheme)
    for path in ("/", "/view/providers", *runs, f"/view/runs/{ended['bundle']}/evidence"):
        watched.page.goto(service.url + path)
        assert (path, violations(settled(watched))) == (path, [])
    assert watched.trouble == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_page_that_asks_for_a_key_and_one_without_its_service_are_right_too(browser: Browser, scheme: Any) -> None:
    _, digest = new_key()
    with serving(keys=KeyRing((Key(tenant="a", sha256=digest),))) as service:
        watched = opened(browser, service, "/", color_scheme=scheme)
        expect(watched.page.get_by_label("This service asks for an API key.")).to_be_visible()
        assert violations(watched.page) == []
    with serving() as service:
        watched = opened(browser, service, "/", color_scheme=scheme)
        expect(watched.page.locator("main")).to_contain_text("No run yet")
    expect(watched.page.get_by_role("status")).to_contain_text("does not answer")
    assert violations(watched.page) == []


def test_the_tab_key_reaches_all_that_acts_in_its_order_and_shows_where_it_is(
    browser: Browser, service: Service, ended: dict[str, str], under_way: str
) -> None:
    runs = [f"/view/runs/{run_id}" for run_id in (ended["flaky"], ended["bundle"], under_way)]
    watched = opened(browser, service, "/", viewport={"width": 400, "height": 800})
    for path in ("/", "/view/providers", *runs):
        watched.page.goto(service.url + path)
        page = settled(watched)
        wanted = page.eval_on_selector_all(REACHABLE, f"all => all.filter(node => node.checkVisibility()).map({NAME})")
        assert len(wanted) >= 3
        reached = []
        for _ in wanted:
            page.keyboard.press("Tab")
            reached.append(page.evaluate(FOCUSED))
            shown = page.evaluate(
                "() => { const style = getComputedStyle(document.activeElement);"
                " return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0; }"
            )
            assert (path, reached[-1], shown) == (path, reached[-1], True)
        assert reached == wanted


def tabbed_to(page: Page, name: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate(FOCUSED) == name:
            return
    raise AssertionError(f"the tab key does not lead to {name}")


def test_every_action_is_done_with_the_keyboard_alone(
    browser: Browser, service: Service, ended: dict[str, str]
) -> None:
    with service.client() as client:
        body, headers = {"request": "x", "tool_name": "waits"}, {"Prefer": "respond-async"}
        run_id = client.post("/v1/runs", json=body, headers=headers).json()["id"]
    watched = opened(browser, service, "/")
    page = settled(watched)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skips to the content
    assert page.evaluate("location.hash") == "#content"
    tabbed_to(page, f"run-{run_id}")
    page.keyboard.press("Enter")
    page.on("dialog", lambda dialog: dialog.accept())
    expect(page.locator("#cancel")).to_be_visible()
    tabbed_to(page, "cancel")
    page.keyboard.press("Enter")
    expect(page.locator(".state").first).to_contain_text("cancelled")
    tabbed_to(page, "Providers")
    page.keyboard.press("Enter")
    section = page.locator("section", has=page.get_by_role("heading", name="alpha"))
    for label, state in (("Force open", "✕ open"), ("Let it decide", "✓ closed"), ("Reset", "✓ closed")):
        button = page.get_by_role("button", name=f"{label}: alpha")
        expect(button).to_be_visible()
        tabbed_to(page, str(button.get_attribute("id")))
        page.keyboard.press("Space")
        expect(section.locator(".state")).to_have_text(state)
    page.goto(f"{service.url}/view/runs/{ended['bundle']}")
    expect(page.get_by_role("link", name="The evidence bundle")).to_be_visible()
    tabbed_to(page, "The evidence bundle")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{service.url}/view/runs/{ended['bundle']}/evidence")
    assert watched.trouble == []


INSIDE = """all => all.filter(node => node.checkVisibility()).map(node => node.getBoundingClientRect())
  .filter(box => box.left < 0 || box.right > innerWidth).length"""


@pytest.mark.parametrize("width", [400, 700, 1000])
def test_a_run_and_its_timeline_are_seen_whole_at_every_width(
    browser: Browser, service: Service, ended: dict[str, str], width: int
) -> None:
    watched = opened(browser, service, "/", viewport={"width": width, "height": 800})
    page = settled(watched)
    assert page.eval_on_selector_all("#runs td", "all => all.length") >= 6 * 4
    assert page.eval_on_selector_all("#runs td, #runs td *", INSIDE) == 0
    assert page.locator("#runs td[data-is=began]").first.is_visible()
    page.goto(f"{service.url}/view/runs/{ended['flaky']}")
    settled(watched)
    listed = width < 992
    assert page.locator(".steps").is_visible() is listed
    assert page.locator("svg[role=img]").is_visible() is not listed
    assert page.eval_on_selector_all("#timeline *", INSIDE) == 0
    if listed:
        said = " ".join(page.locator(".steps").inner_text().split())
        assert re.search(r"planned: flaky .*alpha #1 ✕ failed .* then tries again .*alpha #2 ✓ succeeded after", said)
    assert watched.trouble == []


def test_a_run_that_is_not_there_has_a_page_that_leads_back(browser: Browser, service: Service) -> None:
    for path in ("/view/runs/zzz", "/view/runs/zzz/evidence"):
        watched = opened(browser, service, path)
        assert watched.page.request.get(service.url + path).status == 404
        expect(watched.page.locator("main")).to_contain_text("there is no such run")
        watched.page.get_by_role("link", name="All runs").click()
        expect(watched.page).to_have_url(f"{service.url}/")


def test_what_is_not_there_is_told_once_and_not_asked_for_again(browser: Browser) -> None:
    secret, digest = new_key()
    with serving(keys=KeyRing((Key(tenant="a", sha256=digest),))) as service:
        for path in ("/view/runs/zzz", "/view/runs/zzz/evidence"):
            watched = opened(browser, service, path)
            page = watched.page
            page.get_by_label("This service asks for an API key.").fill(secret)
            page.keyboard.press("Enter")
            expect(page.get_by_role("status")).to_have_text("It is not there (any more).")
            expect(page.locator(".loading")).to_have_count(0)
            assert violations(page) == []
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.wait_for_timeout(2500)  # It is asked for every two seconds while it is there.
            assert asked == []
            page.get_by_role("link", name="All runs").click()
            expect(page).to_have_url(f"{service.url}/")
            assert watched.trouble == []
            page.context.close()


def test_without_scripts_a_page_says_that_it_needs_them(browser: Browser, service: Service) -> None:
    page = opened(browser, service, "/", java_script_enabled=False).page
    expect(page.locator("main")).to_contain_text("This page needs JavaScript.")
    expect(page.locator(".loading")).to_be_hidden()


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1200, "light")])
def test_an_address_without_a_page_has_one_that_leads_back(
    browser: Browser, service: Service, width: int, scheme: Any
) -> None:
    page = opened(browser, service, "/nosuchpage", viewport={"width": width, "height": 800}, color_scheme=scheme).page
    expect(page.locator("main")).to_contain_text("There is nothing at this address.")
    assert violations(page) == []
    page.get_by_role("link", name="All runs").click()
    expect(page).to_have_url(f"{service.url}/")


def test_a_plot_says_its_unit_and_has_no_legend_without_values(
    browser: Browser, service: Service, ended: dict[str, str]
) -> None:
    page = settled(opened(browser, service, "/view/providers"))
    section = page.locator("section", has=page.get_by_role("heading", name="alpha"))
    expect(section.get_by_role("img", name="Latency in ms, by time: last")).to_be_visible()
    assert section.locator(".u-title").all_inner_texts() == ["Latency (ms)", "Errors of the last 20 (%)"]
    assert page.locator(".u-legend").count() == 0


def test_a_share_of_errors_is_drawn_between_0_and_100(
    browser: Browser, service: Service, ended: dict[str, str]
) -> None:
    page = settled(opened(browser, service, "/view/providers"))
    scales = page.evaluate("[...drawn.values()].map(({title, scales: {y}}) => [y.min, y.max])")
    assert len(scales) >= 4  # Of two providers, with two plots each.
    assert scales[1::2] == [[0, 100]] * len(scales[1::2])


def test_without_colour_every_state_has_its_sign_and_its_word(
    browser: Browser, service: Service, ended: dict[str, str], under_way: str
) -> None:
    page = settled(opened(browser, service, "/", forced_colors="active"))
    states = page.eval_on_selector_all(".state", "all => all.map(node => node.innerText)")
    assert {"✓ succeeded", "✕ failed", "… running"} <= set(states)
    assert all(len(state) > 2 and state[1] == " " for state in states)


def test_pictures_for_the_page_of_the_service(browser: Browser) -> None:
    """With STEER_PICTURES=docs/img they are taken anew; without it the pages are only drawn."""
    folder = os.environ.get("STEER_PICTURES")
    tool = ScriptedTool(
        "summary",
        *(OK({"summary": "It rains."}, after=after, cost_usd=0.0021) for after in (0.06, 0.04, 0.09)),
        err(503, after=0.02),
        OK({"summary": "It rains."}, after=0.05, usage={"total_tokens": 412}, cost_usd=0.0021),
        provider="alpha",
    )
    with serving(tool) as service:
        run_id = [run(service, "summary", request="How is the weather?") for _ in range(4)][-1]
        for name, path in (("service-run", f"/view/runs/{run_id}"), ("service-providers", "/view/providers")):
            watched = opened(browser, service, path, viewport={"width": 1000, "height": 720})
            expect(watched.page.locator("main .note", has_text="Loading")).to_have_count(0)
            watched.page.wait_for_timeout(300)
            drawn = watched.page.locator("svg[role=img]" if "runs" in path else "main canvas")
            assert drawn.count() == (1 if "runs" in path else 2)
            if folder:
                watched.page.screenshot(path=Path(folder, f"{name}.png"))
            assert watched.trouble == []
