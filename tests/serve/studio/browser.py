"""A real browser in the studio, and user actions."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

try:
    from playwright import sync_api
except ImportError:
    sync_api = None  # type: ignore[assignment]

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE = 60_000
"""Timeout in milliseconds for conditions that take a fraction of a second on an idle machine."""
LONG = {"steps": "60", "width": "128", "height": "128"}
"""Form fields of a request that is slow enough to watch."""
TIMES = "\N{MULTIPLICATION SIGN}"
PIXELS = """(image) => {
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const pen = new OffscreenCanvas(width, height).getContext("2d");
  pen.drawImage(image, 0, 0);
  return { width, height, levels: [...pen.getImageData(0, 0, width, height).data] };
}"""


@contextmanager
def chromium() -> Iterator[Any]:
    """Start headless Chromium."""
    if sync_api is None:
        pytest.skip("playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}: install the package chromium of Debian")
    sync_api.expect.set_options(timeout=PATIENCE)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def expect(what: Any) -> Any:
    """Return an assertion that waits until a condition holds."""
    return sync_api.expect(what)


@contextmanager
def open_page(browser: Any, url: str, *, expected: str = "", **options: Any) -> Iterator[Any]:
    """Open a page in a new profile and check that its console has no errors except those with the expected text."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(url)
    try:
        yield page
        assert [fault for fault in faults if not expected or expected not in fault] == []
    finally:
        context.close()


def wait_for_models(page: Any) -> None:
    """Wait until the models are shown."""
    page.locator("#models input").first.wait_for(state="attached")


def submit_prompt(page: Any, prompt: str, **fields: str) -> None:
    """Fill in the form and submit it."""
    if set(fields) - {"seed"}:
        page.locator(".more").evaluate("(more) => (more.open = true)")
    page.locator("#prompt").fill(prompt)
    for name, value in fields.items():
        page.locator(f"#{name}").fill(value)
    page.locator("#generate").click()


def wait_for_frames(page: Any, count: int = 1) -> Any:
    """Wait until `count` images are done and return their frames."""
    frames = page.locator('.frame[data-state="done"]')
    expect(frames).to_have_count(count)
    for number in range(count):
        frame_image(frames.nth(number)).wait_for()
    return frames


def frame_image(frame: Any) -> Any:
    """Return the image of a frame once nothing else is left in it."""
    expect(frame.locator(".looks img")).to_have_count(1)
    return frame.locator('.looks img[src^="blob:"]')


def frame_pixels(frame: Any) -> dict[str, Any]:
    """Return width, height and RGBA levels of the image in a frame."""
    pixels: dict[str, Any] = frame_image(frame).evaluate(PIXELS)
    return pixels


def read_request_field(frame: Any, term: str) -> str:
    """Return a field of the request shown in a frame."""
    find = "(rows, term) => [...rows.children].find((one) => one.textContent === term)?.nextSibling.textContent"
    return str(frame.locator(".request").evaluate(find, term))


def overflow(page: Any) -> int:
    """Return the pixels by which the page is wider than the window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def is_focused(page: Any, selector: str) -> bool:
    """Return whether the focused element matches the selector."""
    return bool(page.evaluate("(selector) => document.activeElement.matches(selector)", selector))
