"""Error messages of the studio, keys, and sandboxed reports."""

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

pytestmark = pytest.mark.page

TOO_LATE = {"error": {"message": "a picture would be late", "type": "invalid_request_error", "code": "deadline"}}


@pytest.mark.parametrize(
    ("status", "headers", "body", "says", "offers"),
    [
        (429, {"retry-after": "12"}, TOO_LATE, "would miss its latency target. Try again in 12 s", "Try again (in 1"),
        (
            503,
            {"retry-after": "3"},
            {"error": {"message": "", "code": "queue"}},
            "The queue of the server is full",
            "Try again",
        ),
        (503, {}, {"error": {"message": "it died", "code": "WorkerDied"}}, "The worker died", "Try again"),
        (401, {}, {"error": {"message": "the request has no API key"}}, "does not accept yours", "Enter a key"),
        (500, {}, {"error": {"message": "an error of the server"}}, "An error of the server.", "Try again"),
        (502, {}, "<html>bad gateway</html>", "Bad Gateway", "Try again"),
    ],
)
def test_errors_are_explained_with_an_action(
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


def test_validation_error_focuses_the_field(browser: Any, server: Running) -> None:
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


def test_unreachable_server_is_reported(browser: Any, server: Running) -> None:
    with open_page(browser, server.url, expected="ERR_") as page:
        wait_for_models(page)
        page.route("**/v1/**", lambda route: route.abort("connectionrefused"))
        submit_prompt(page, "a circle")
        expect(page.locator(".frame .trouble")).to_contain_text("No connection")
        expect(page.locator("#engine-words")).to_have_text("No connection")


def test_key_is_requested_kept_in_the_tab_and_sent(browser: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stillhouse", "keys", "add", "--data", "data", "--tier", "pro"]
    key = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()[-1]
    arguments = ("--data", "data", "--keys")
    with running_server(*arguments, cwd=tmp_path) as server, open_page(browser, server.url) as page:
        dialog = page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        page.get_by_label("Key", exact=True).last.fill("still-nobody-nothing")
        page.get_by_role("button", name="Use this key").click()
        expect(dialog).to_contain_text("the API key is unknown or revoked")
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


def test_report_is_shown_in_a_sandbox(browser: Any, server: Running) -> None:
    with open_page(browser, server.url, expected="'about:srcdoc'") as page:
        wait_for_models(page)
        page.locator("#report-list").get_by_role("button", name="pro").click()
        heading = page.frame_locator("#report-frame").frame_locator("#report").locator("h1")
        expect(heading).to_have_text("2x as fast")
        expect(heading).to_have_css("color", "rgb(1, 2, 3)")
        assert page.evaluate("window.x") is None
        page.get_by_role("button", name="Close").click()
        expect(page.locator("#report-dialog")).to_be_hidden()
