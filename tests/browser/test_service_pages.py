"""The pages of the service in a real browser: nothing foreign runs, and all works by keyboard."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from integration.service.served import Service, serving
from steer_llm_sdk.orchestration.tools.examples.simple_bundle import SimpleBundleTool
from steer_llm_sdk.service import Key, KeyRing, new_key
from steer_llm_sdk.testing import HANG, OK, ScriptedTool, err

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SCRIPT = "<script>window.hit=1</script><img src=x onerror=window.hit=1>\"'>{{7*7}}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    tools = (
        ScriptedTool("flaky", err(503), OK({"said": SCRIPT}, after=0.05), provider="alpha", description=SCRIPT),
        ScriptedTool("waits", HANG, provider="beta"),
        ScriptedTool(SCRIPT, err(ValueError(SCRIPT)), provider=SCRIPT),
        SimpleBundleTool(),
    )
    with serving(*tools) as running:
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
    watched.page.get_by_role("link", name="The evidence bundle").click()
    expect(watched.page.locator("h1")).to_be_visible()
    assert watched.page.evaluate("window.hit") is None
    assert watched.trouble == []


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
        assert [each for each in watched.trouble if "401" not in each] == []


def test_a_service_that_is_gone_is_told_in_words(browser: Browser) -> None:
    with serving() as service:
        watched = opened(browser, service, "/")
        expect(watched.page.locator("main")).to_contain_text("No run yet")
    expect(watched.page.get_by_role("status")).to_contain_text("does not answer")


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
