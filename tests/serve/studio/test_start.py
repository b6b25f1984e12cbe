"""Input images: from the gallery or a file, with a mask painted by mouse, touch and keyboard."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serve.running import Running
from tests.serve.studio.browser import (
    TIMES,
    expect,
    frame_pixels,
    open_page,
    overflow,
    read_request_field,
    submit_prompt,
    wait_for_frames,
    wait_for_models,
)

pytestmark = pytest.mark.page


def test_only_masked_pixels_change(page: Any) -> None:
    submit_prompt(page, "a big red circle on a white background", seed="3", steps="12")
    before = frame_pixels(wait_for_frames(page))
    page.get_by_role("button", name="Start from it").click()
    expect(page.locator("#start-size")).to_have_text(f"64 {TIMES} 64")
    page.get_by_role("button", name="Paint a mask").click()
    page.locator("#mask-size").fill("60")
    box = page.locator("#mask-canvas").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.7 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.7 * box["height"], steps=8)
    page.mouse.up()
    page.get_by_role("button", name="Use this mask").click()
    expect(page.locator("#start-size")).to_have_text(f"64 {TIMES} 64, with a mask")
    page.evaluate("""() => {
      const send = window.fetch;
      window.fetch = (path, options) => {
        if (options?.method === "POST") window.sent = [path, ...options.body.keys()];
        return send(path, options);
      };
    }""")
    submit_prompt(page, "a big blue square on a black background", seed="4")
    expect(page.locator("#cards .card")).to_have_count(2)
    after = frame_pixels(wait_for_frames(page))
    sent = page.evaluate("window.sent")
    assert sent[0] == "/v1/images/edits" and {"image", "mask", "strength", "prompt", "seed"} <= set(sent)
    above, within = _changed(before, after, 0, 16), _changed(before, after, 32, 58)
    assert within > 10 * above + 5, (within, above)


def test_mask_tools_and_keyboard(page: Any) -> None:
    submit_prompt(page, "a circle")
    wait_for_frames(page)
    page.get_by_role("button", name="Start from it").click()
    expect(page.locator("#start-size")).to_have_text(f"64 {TIMES} 64")
    page.locator("#start-mask").focus()
    expect(page.locator("#start-mask")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#mask-canvas")).to_be_focused()
    assert _painted(page) == 0
    page.keyboard.press("Space")
    spot = _painted(page)
    page.keyboard.press("Shift+ArrowRight")
    assert _painted(page) > spot > 0
    page.get_by_role("button", name="Undo").click()
    assert _painted(page) == spot
    page.get_by_text("Eraser").click()
    page.locator("#mask-canvas").press("Space")
    assert _painted(page) < spot
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Clear", exact=True).last.click()
    assert _painted(page) == 0
    page.get_by_role("button", name="Use this mask").click()
    expect(page.locator("#start-size")).to_have_text(f"64 {TIMES} 64")


def test_touch_paints_a_mask(browser: Any, server: Running) -> None:
    phone: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with open_page(browser, server.url, **phone) as page:
        wait_for_models(page)
        submit_prompt(page, "a circle")
        wait_for_frames(page)
        page.get_by_role("button", name="Start from it").tap()
        page.get_by_role("button", name="Paint a mask").tap()
        box = page.locator("#mask-canvas").bounding_box()
        touch = page.context.new_cdp_session(page)
        for pointer, x in (("touchStart", 0.3), ("touchMove", 0.5), ("touchMove", 0.7), ("touchEnd", None)):
            places = [{"x": box["x"] + x * box["width"], "y": box["y"] + 0.5 * box["height"]}] if x else []
            touch.send("Input.dispatchTouchEvent", {"type": pointer, "touchPoints": places})
        assert _painted(page) > 0
        assert overflow(page) == 0
        # Not a tap: one that follows a stroke within milliseconds, as no finger does, ends a fling and clicks nothing.
        page.get_by_role("button", name="Use this mask").click()
        expect(page.locator("#start-size")).to_contain_text("with a mask")


def test_input_file_is_resized_to_the_model(page: Any, tmp_path: Path) -> None:
    Image.new("RGB", (600, 400), (200, 30, 30)).save(tmp_path / "photo.jpg")
    page.locator("#start-file").set_input_files(tmp_path / "photo.jpg")
    expect(page.locator("#start-size")).to_have_text(f"80 {TIMES} 48")
    submit_prompt(page, "a circle", seed="1")
    assert read_request_field(wait_for_frames(page), "Size") == f"80 {TIMES} 48"
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    page.get_by_role("button", name="Remove", exact=True).click()
    page.locator("#start-file").set_input_files(tmp_path / "text.png")
    expect(page.locator("#start-error")).to_contain_text("cannot be read as an image")


def _changed(before: dict[str, Any], after: dict[str, Any], first: int, last: int) -> float:
    """Return the mean absolute difference of two rows."""
    row = 4 * before["width"]
    pairs = zip(before["levels"][first * row : last * row], after["levels"][first * row : last * row], strict=True)
    differences = [abs(item - other) for item, other in pairs]
    return float(sum(differences)) / len(differences)


def _painted(page: Any) -> int:
    """Return the number of painted mask pixels."""
    return int(
        page.locator("#mask-canvas").evaluate("""(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return data.filter((level, place) => place % 4 === 3 && level > 127).length;
        }""")
    )
