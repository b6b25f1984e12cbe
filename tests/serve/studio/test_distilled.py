"""The studio of a default server: the distilled model for tier free, the full model for tier pro."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.running import Running, running_server
from tests.serve.studio.browser import (
    expect,
    open_page,
    read_request_field,
    submit_prompt,
    wait_for_frames,
    wait_for_models,
)

pytestmark = pytest.mark.page


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_server(cwd=tmp_path_factory.mktemp("distilled")) as server:
        yield server


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    with open_page(browser, server.url) as page:
        wait_for_models(page)
        page.locator(".more").evaluate("(more) => (more.open = true)")
        yield page


def test_distilled_model_hides_fixed_fields(page: Any) -> None:
    expect(page.get_by_role("radio", name="free")).to_be_checked()
    for name in ("steps", "sampler", "negative_prompt"):
        expect(page.locator(f"#{name}")).to_be_hidden()
    expect(page.locator("#distilled")).to_be_visible()
    slider = page.locator("#guidance-slider")
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("1", "5")
    page.get_by_role("radio", name="pro").check()
    for name in ("steps", "sampler", "negative_prompt"):
        expect(page.locator(f"#{name}")).to_be_visible()
    expect(page.locator("#distilled")).to_be_hidden()
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("0", "15")


def test_fixed_fields_are_not_sent_to_the_distilled_model(page: Any) -> None:
    page.get_by_role("radio", name="pro").check()
    page.locator("#steps").fill("5")
    page.locator("#negative_prompt").fill("a circle")
    page.get_by_role("radio", name="free").check()
    submit_prompt(page, "a big red square", seed="3")
    assert read_request_field(wait_for_frames(page), "Steps") == "3"


def test_compare_uses_one_seed_and_each_models_steps(page: Any) -> None:
    page.get_by_role("radio", name="Compare").check()
    page.locator("#steps").fill("6")
    submit_prompt(page, "a big blue circle", seed="4")
    frames = wait_for_frames(page, 2)
    assert [read_request_field(frames.nth(number), "Steps") for number in range(2)] == ["3", "6"]
