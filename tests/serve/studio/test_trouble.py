"""What goes wrong is told in sentences, with something to do; keys, and reports, which may not reach the page."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.serve.running import Running, running_server
from tests.serve.studio.browser import (
    expect,
    open_page,
    submit_prompt,
    wait_for_frames,
    wait_for_models,
)

TOO_LATE = {"error": {"message": "a picture would be late", "type": "invalid_request_error", "code": "deadline"}}


@pytest.mark.parametrize(
    ("status", "headers", "body", "says", "offers"),
    [
        (429, {"retry-after": "12"}, TOO_LATE, "would come later than promised. Come back in 12 s", "Try again (in 1"),
        (
            503,
            {"retry-after": "3"},
            {"error": {"message": "", "code": "queue"}},
            "Many pictures are waiting",
            "Try again",
        ),
        (503, {}, {"error": {"message": "it died", "code": "WorkerDied"}}, "broke down", "Try again"),
        (401, {}, {"error": {"message": "a request without a key"}}, "does not accept yours", "Enter a key"),
        (500, {}, {"error": {"message": "an error of the server"}}, "An error of the server.", "Try again"),
        (502, {}, "<html>bad gateway</html>", "Bad Gateway", "Try again"),
    ],
)
def test_refusals_are_sentences_with_something_to_do(
    browser: Any, server: Running, status: int, headers: dict[str, str], body: Any, says: str, offers: str
) -> None:
    with open_page(browser, server.url, expected=f"the server responded with a status of {status}") as page:
        wait_for_models(page)
        text = body if isinstance(body, str) else json.dumps(body)
        page.route("**/v1/images/generations", lambda route: route.fulfill(status=status, headers=headers, body=text))
        submit_prompt(page, "a circle")
        alert = page.locator(".frame .trouble")
        expect(alert).to_contain_text(says)
        expect(alert.get_by_role("button").first).to_contain_text(offers)
        if offers.startswith("Try again"):
            page.unroute("**/v1/images/generations")
            alert.get_by_role("button").first.click()
            wait_for_frames(page)
            expect(page.locator("#cards .card")).to_have_count(1)


def test_what_the_server_does_not_allow_leads_to_the_field(browser: Any, server: Running) -> None:
    with open_page(browser, server.url, expected="the server responded with a status of 400") as page:
        wait_for_models(page)
        submit_prompt(page, "a circle", width="65")
        alert = page.locator(".frame .trouble")
        expect(alert).to_contain_text("Width is 65. Allowed: multiples of 16. Try 64 or 80.")
        alert.get_by_role("button", name="Change it").click()
        expect(page.locator("#width")).to_be_focused()
        submit_prompt(page, "a circle", steps="many", width="")
        expect(page.locator("#notice")).to_contain_text("Allowed: a whole number")
        expect(page.locator("#steps")).to_be_focused()


def test_a_server_that_is_gone_is_told(browser: Any, server: Running) -> None:
    with open_page(browser, server.url, expected="ERR_") as page:
        wait_for_models(page)
        page.route("**/v1/**", lambda route: route.abort("connectionrefused"))
        submit_prompt(page, "a circle")
        expect(page.locator(".frame .trouble")).to_contain_text("Nobody answers")
        expect(page.locator("#engine-words")).to_have_text("No answer")


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(browser: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stillhouse", "keys", "add", "--data", "data", "--tier", "pro"]
    key = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()[-1]
    arguments = ("--data", "data", "--keys")
    with running_server(*arguments, cwd=tmp_path) as server, open_page(browser, server.url) as page:
        dialog = page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        page.get_by_label("Key", exact=True).last.fill("still-nobody-nothing")
        page.get_by_role("button", name="Use this key").click()
        expect(dialog).to_contain_text("unknown API key")
        page.get_by_label("Key", exact=True).last.fill(key)
        page.keyboard.press("Enter")
        wait_for_models(page)
        submit_prompt(page, "a circle")
        wait_for_frames(page)
        assert key not in page.content()
        assert page.evaluate("Object.values(localStorage).join()").find(key) == -1
        page.reload()
        wait_for_models(page)
        expect(dialog).to_be_hidden()


def test_a_report_is_shown_and_cannot_reach_the_page(browser: Any, server: Running) -> None:
    with open_page(browser, server.url, expected="'about:srcdoc'") as page:
        wait_for_models(page)
        page.locator("#report-list").get_by_role("button", name="pro").click()
        heading = page.frame_locator("#report-frame").frame_locator("#report").locator("h1")
        expect(heading).to_have_text("2x as fast")
        expect(heading).to_have_css("color", "rgb(1, 2, 3)")
        assert page.evaluate("window.x") is None
        page.get_by_role("button", name="Close").click()
        expect(page.locator("#report-dialog")).to_be_hidden()
