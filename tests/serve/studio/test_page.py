"""Drawing in a real browser: previews, comparing, again and vary, the gallery, stopping, the engine's light."""

import re
from typing import Any

from tests.serve.running import Running
from tests.serve.studio.browser import (
    LONG,
    TIMES,
    expect,
    frame_image,
    frame_pixels,
    read_request_field,
    submit_prompt,
    wait_for_frames,
    wait_for_models,
)

LEAVE = """([where, until]) => {
  const look = (changes, observer) => {
    if (!document.querySelector(until)) return;
    observer.disconnect();
    location.reload();
  };
  const watched = document.querySelector(where);
  new MutationObserver(look).observe(watched, { attributes: true, childList: true, subtree: true });
}"""
"""Leave the page, for itself again, in the very moment in which something is there."""
KEPT = "async () => (await (await import('/studio/store.js')).kept()).length"
"""Pictures that the browser keeps; the page shows them some time after it is ready."""


def test_a_picture_is_drawn_and_its_request_told(page: Any) -> None:
    submit_prompt(page, "a big red circle on a blue background", seed="7")
    frame = wait_for_frames(page)
    expect(frame.locator(".told")).to_contain_text("seed 7")
    expect(page.locator("#stage h2")).to_have_text("a big red circle on a blue background")
    assert (
        read_request_field(frame, "Seed"),
        read_request_field(frame, "Steps"),
        read_request_field(frame, "Size"),
    ) == ("7", "3", f"64 {TIMES} 64")
    drawn = frame_pixels(frame)
    assert (drawn["width"], drawn["height"]) == (64, 64)
    assert frame_image(frame).get_attribute("alt").startswith("a big red circle on a blue background")
    expect(page.locator("#live")).to_contain_text(re.compile(r"Drawn by free in [\d.]+ seconds, seed 7"))


def test_enter_in_the_prompt_draws_and_without_a_seed_each_picture_has_another(page: Any) -> None:
    page.locator("#prompt").fill("a small green cross")
    page.keyboard.press("Enter")
    first = read_request_field(wait_for_frames(page), "Seed")
    page.locator("#prompt").press("Enter")
    expect(page.locator("#cards .card")).to_have_count(2)
    assert read_request_field(wait_for_frames(page), "Seed") != first


def test_the_largest_seed_is_sent_and_told_to_the_last_digit(page: Any) -> None:
    submit_prompt(page, "a circle", seed=str(2**63 - 1))
    assert read_request_field(wait_for_frames(page), "Seed") == str(2**63 - 1)


def test_previews_come_before_the_picture(page: Any) -> None:
    page.evaluate("""() => {
      window.seen = [];
      new MutationObserver((changes) => {
        const added = changes.flatMap((change) => [...change.addedNodes]);
        seen.push(...added.filter((one) => one.src).map((one) => one.src.split(",")[0]));
      }).observe(document.querySelector("#stage"), { childList: true, subtree: true });
    }""")
    submit_prompt(page, "a big yellow square", **LONG)
    bar = page.locator(".frame [role=progressbar]")
    expect(bar).to_be_visible()
    page.locator('.looks img[src^="data:image/webp"]').first.wait_for()
    assert 0 < int(bar.get_attribute("aria-valuenow")) < 100
    wait_for_frames(page)
    expect(bar).to_be_hidden()
    seen = page.evaluate("seen")
    assert seen.count("data:image/webp;base64") >= 2
    assert seen[-1].startswith("blob:") and not any(one.startswith("blob:") for one in seen[:-1])


def test_compare_draws_every_tier_with_one_seed(page: Any) -> None:
    page.get_by_label("Compare").check()
    submit_prompt(page, "a big purple triangle")
    frames = wait_for_frames(page, 2)
    assert [frame.get_attribute("data-model") for frame in frames.all()] == ["free", "pro"]
    assert len({read_request_field(frame, "Seed") for frame in frames.all()}) == 1
    assert [read_request_field(frame, "Steps") for frame in frames.all()] == ["3", "12"]
    boxes = [frame.bounding_box() for frame in frames.all()]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]


def test_again_is_the_identical_picture_and_vary_another(page: Any) -> None:
    submit_prompt(page, "a big cyan cross", steps="5")
    frame = wait_for_frames(page)
    first, seed = frame_pixels(frame), read_request_field(frame, "Seed")
    frame.get_by_role("button", name="Again").click()
    expect(page.locator("#cards .card")).to_have_count(2)
    frame = wait_for_frames(page)
    assert (read_request_field(frame, "Seed"), read_request_field(frame, "Steps")) == (seed, "5")
    assert frame_pixels(frame) == first
    page.locator("#cards .card").first.get_by_role("button", name="Vary").click()
    expect(page.locator("#cards .card")).to_have_count(3)
    frame = wait_for_frames(page)
    assert read_request_field(frame, "Seed") != seed
    assert frame_pixels(frame) != first


def test_the_gallery_outlives_the_page(page: Any) -> None:
    submit_prompt(page, "a small white circle on a black background", seed="11")
    first = frame_pixels(wait_for_frames(page))
    page.reload()
    wait_for_models(page)
    card = page.locator("#cards .card")
    expect(card).to_have_count(1)
    expect(card).to_contain_text("seed 11")
    card.get_by_role("button", name="Show").click()
    frame = wait_for_frames(page)
    assert frame_pixels(frame) == first
    frame.get_by_role("button", name="Again").click()
    expect(card).to_have_count(2)
    assert frame_pixels(wait_for_frames(page)) == first
    page.locator("#clear-gallery").click()
    page.get_by_role("button", name="Delete them").click()
    expect(page.locator("#gallery")).to_be_hidden()
    page.reload()
    wait_for_models(page)
    assert page.evaluate(KEPT) == 0


def test_a_page_that_is_left_at_once_keeps_what_was_drawn_and_not_what_was_deleted(page: Any) -> None:
    page.evaluate(LEAVE, ["#stage", '.frame[data-state="done"]'])
    with page.expect_navigation():
        submit_prompt(page, "a circle")
    wait_for_models(page)
    expect(page.locator("#cards .card")).to_have_count(1)
    page.evaluate(LEAVE, ["#gallery", "#gallery[hidden]"])
    page.locator("#clear-gallery").click()
    with page.expect_navigation():
        page.get_by_role("button", name="Delete them").click()
    wait_for_models(page)
    assert page.evaluate(KEPT) == 0


def test_stop_ends_the_drawing_at_the_server_too(page: Any, server: Running) -> None:
    submit_prompt(page, "a circle", steps="150", width="256", height="256")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator('.frame[data-state="stopped"]')).to_contain_text("Stopped")
    page.wait_for_function("async () => (await (await fetch('/v1/state')).json()).pictures.length === 0")
    page.locator("#steps").fill("2")
    for side in ("width", "height"):
        page.locator(f"#{side}").fill("")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator("#cards .card")).to_have_count(0)
    expect(page.locator(".invitation")).to_be_visible()


def test_what_waits_for_its_turn_in_the_page_can_be_stopped(page: Any) -> None:
    page.route("**/v1/images/generations", lambda route: None)
    for _ in range(5):
        submit_prompt(page, "a circle")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator('.card[data-state="stopped"]')).to_have_count(1)
    expect(page.locator('.card[data-state="asked"]')).to_have_count(4)
    page.unroute("**/v1/images/generations")


def test_a_request_goes_back_into_the_form(page: Any) -> None:
    page.get_by_role("radio", name="pro").check()
    submit_prompt(page, "a wide picture", seed="5", steps="2", width="96", negative_prompt="red")
    frame = wait_for_frames(page)
    box = frame.locator(".picture").bounding_box()
    assert round(box["width"] / box["height"], 2) == 1.5
    page.get_by_role("radio", name="free").check()
    for name in ("seed", "steps", "width", "negative_prompt", "prompt"):
        page.locator(f"#{name}").fill("")
    frame.get_by_text("The whole request").click()
    frame.get_by_role("button", name="Put it into the form").click()
    expect(page.get_by_role("radio", name="pro")).to_be_checked()
    wanted = {"prompt": "a wide picture", "seed": "5", "steps": "2", "width": "96", "height": "64"}
    for name, value in {**wanted, "negative_prompt": "red", "sampler": "ddim"}.items():
        expect(page.locator(f"#{name}")).to_have_value(value)


def test_the_engine_tells_what_it_draws(page: Any) -> None:
    page.locator("#engine").click()
    expect(page.locator("#engine-facts")).to_contain_text("1 of 1 ready")
    expect(page.locator("#engine-idle")).to_be_visible()
    page.keyboard.press("Escape")
    submit_prompt(page, "a circle", **{**LONG, "width": "256", "height": "256"})
    expect(page.locator("#engine-words")).to_contain_text("1 drawing")
    page.locator("#engine").click()
    expect(page.locator("#engine-queue")).to_contain_text(f"free, 256 {TIMES} 256")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#engine-words")).to_have_text("Ready")
