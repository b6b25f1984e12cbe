"""A real browser at the studio, and what people do there."""

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
"""Milliseconds until something must have happened that takes a fraction of a second on a quiet machine."""
LONG = {"steps": "60", "width": "128", "height": "128"}
"""Of a picture that takes long enough to be watched."""
TIMES = "\N{MULTIPLICATION SIGN}"
PIXELS = """(image) => {
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const pen = new OffscreenCanvas(width, height).getContext("2d");
  pen.drawImage(image, 0, 0);
  return { width, height, levels: [...pen.getImageData(0, 0, width, height).data] };
}"""


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's browser, without a window."""
    if sync_api is None:
        pytest.skip("playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    sync_api.expect.set_options(timeout=PATIENCE)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def expect(what: Any) -> Any:
    """What must become true of a part of the page, or of the page, in time."""
    return sync_api.expect(what)


@contextmanager
def open_page(browser: Any, url: str, *, expected: str = "", **options: Any) -> Iterator[Any]:
    """A page in a profile of its own; afterwards, its console has no errors but those that hold the expected text."""
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
    """Wait until the models are there."""
    page.locator("#models input").first.wait_for(state="attached")


def submit_prompt(page: Any, prompt: str, **fields: str) -> None:
    """Fill in the form, and draw."""
    if set(fields) - {"seed"}:
        page.locator(".more").evaluate("(more) => (more.open = true)")
    page.locator("#prompt").fill(prompt)
    for name, value in fields.items():
        page.locator(f"#{name}").fill(value)
    page.locator("#generate").click()


def wait_for_frames(page: Any, count: int = 1) -> Any:
    """The frames of the stage, once so many pictures are done."""
    frames = page.locator('.frame[data-state="done"]')
    expect(frames).to_have_count(count)
    for number in range(count):
        frame_image(frames.nth(number)).wait_for()
    return frames


def frame_image(frame: Any) -> Any:
    """The picture in a frame, when nothing else is left in it."""
    expect(frame.locator(".looks img")).to_have_count(1)
    return frame.locator('.looks img[src^="blob:"]')


def frame_pixels(frame: Any) -> dict[str, Any]:
    """Width, height and levels (RGBA, row by row) of the picture in a frame."""
    told: dict[str, Any] = frame_image(frame).evaluate(PIXELS)
    return told


def read_request_field(frame: Any, term: str) -> str:
    """What a frame tells of its request."""
    find = "(rows, term) => [...rows.children].find((one) => one.textContent === term)?.nextSibling.textContent"
    return str(frame.locator(".request").evaluate(find, term))


def overflow(page: Any) -> int:
    """Pixels by which the page is wider than the window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def is_focused(page: Any, selector: str) -> bool:
    """Whether what is focused is what the selector means."""
    return bool(page.evaluate("(selector) => document.activeElement.matches(selector)", selector))
