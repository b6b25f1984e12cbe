"""Keyboard, accessible names, narrow windows, dark mode, and the API page."""

import json
import re
from typing import Any

import pytest

from tests.serve.running import Running
from tests.serve.studio.browser import (
    expect,
    is_focused,
    open_page,
    overflow,
    submit_prompt,
    wait_for_frames,
    wait_for_models,
)

pytestmark = pytest.mark.page


def test_keyboard_operation(page: Any) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("a big green square")
    _tab_to(page, "#generate")
    page.keyboard.press("Enter")
    wait_for_frames(page)
    _tab_to(page, ".frame .actions button")
    assert page.evaluate("document.activeElement.textContent") == "Again"
    page.keyboard.press("Enter")
    expect(page.locator("#cards .card")).to_have_count(2)
    wait_for_frames(page)
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


def test_controls_have_accessible_names(page: Any) -> None:
    submit_prompt(page, "a circle")
    wait_for_frames(page)
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, textarea, select, a, progress")]
      .filter((one) => !(one.textContent.trim() || one.getAttribute("aria-label") || one.labels?.length || one.title))
      .map((one) => one.outerHTML)""")
    assert nameless == []
    assert page.locator("img:not([alt])").count() == 0


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_page_fits_the_window(browser: Any, server: Running, width: int) -> None:
    with open_page(browser, server.url, viewport={"width": width, "height": 740}) as page:
        wait_for_models(page)
        page.locator(".more").evaluate("(more) => (more.open = true)")
        assert overflow(page) == 0
        if width < 700:
            page.get_by_label("Compare").check()
        submit_prompt(page, "a very long prompt about aVeryLongWordThatDoesNotEndAndGoesOnAndOnAndOnAndOnAndOn " * 3)
        wait_for_frames(page, 2 if width < 700 else 1)
        page.locator("details summary").last.click()
        assert overflow(page) == 0
        page.locator("#engine").click()
        assert overflow(page) == 0
        page.goto(f"{server.url}/docs")
        page.locator(".operation").first.wait_for()
        assert overflow(page) == 0


def test_dark_mode_follows_the_system_until_switched(browser: Any, server: Running) -> None:
    with open_page(browser, server.url, color_scheme="dark") as page:
        wait_for_models(page)
        assert _brightness(page) < 60
        switch = page.get_by_role("switch", name="Dark")
        expect(switch).to_have_attribute("aria-checked", "true")
        switch.click()
        assert _brightness(page) > 200
        page.reload()
        assert _brightness(page) > 200
        switch.click()
        assert _brightness(page) < 60
        assert page.evaluate("localStorage.getItem('stillhouse.theme')") is None


def test_docs_list_every_operation(browser: Any, server: Running) -> None:
    document = json.loads(server.get("/docs/openapi.json")[1])
    operations = sum(len(item) for item in document["paths"].values())
    with open_page(browser, f"{server.url}/docs") as page:
        page.locator(".operation").first.wait_for()
        assert page.locator(".operation").count() == operations
        drawing = page.locator("#post-v1-images-generations")
        expect(drawing).to_contain_text("negative_prompt")
        expect(drawing.locator(".fields")).to_contain_text("required")
        page.locator(".contents").get_by_role("link", name="Generate images").click()
        assert page.url.endswith("#post-v1-images-generations")


def _brightness(page: Any) -> float:
    levels = re.findall(r"[\d.]+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
    return sum(map(float, levels[:3])) / 3


def _tab_to(page: Any, selector: str) -> None:
    for _ in range(60):
        if is_focused(page, selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached with Tab")
