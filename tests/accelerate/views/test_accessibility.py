"""The page in a real browser: narrow and wide, light and dark; axe-core, where it is installed, finds nothing."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stillhouse.accelerate.views.report_page import render_report
from tests.accelerate.views.sweeps import network_report, pipeline_report
from tests.serve.studio.browser import chromium, open_page, overflow

pytestmark = pytest.mark.page

WINDOWS = {"wide": {"width": 1300, "height": 800}, "narrow": {"width": 390, "height": 844}}
RUN_AXE = """async () => (await axe.run(document)).violations.map(
  (violation) => `${violation.id}: ${violation.nodes.map((node) => node.html).join(" ")}`)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of a pipeline, of a network with a warning, and of a sweep whose reference failed."""
    folder = tmp_path_factory.mktemp("pages")
    network = replace(network_report(), warnings=("the inputs are made up",))
    failed = replace(network.trials[0], status="failed", reason="wrong shape", seconds=None, ratio=None)
    reports = {
        "pipeline": pipeline_report(folder),
        "network": network,
        "failed": replace(network, trials=(failed,), baselines={}, chosen={}, finished=False),
    }
    for name, report in reports.items():
        (folder / f"{name}.html").write_text(render_report(report, folder))
    return {name: folder / f"{name}.html" for name in reports}


@cache
def find_axe() -> Path | None:
    """Return the script of npm's package axe-core: AXE_CORE, or as npm has installed it; None: it is not installed."""
    folders = [os.environ.get("AXE_CORE", ""), "node_modules/axe-core"]
    if shutil.which("npm"):
        root = subprocess.run(["npm", "root", "--global"], capture_output=True, text=True, check=False).stdout.strip()
        folders.append(f"{root}/axe-core")
    return next(
        (path for path in (Path(folder) / "axe.min.js" for folder in folders if folder) if path.is_file()), None
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", ["pipeline", "network", "failed"])
def test_axe_finds_nothing(browser: Any, files: dict[str, Path], name: str, window: str, scheme: str) -> None:
    axe = find_axe()
    if axe is None:
        pytest.skip("axe-core is not installed: npm install axe-core, or name its folder in AXE_CORE")
    options: dict[str, Any] = {"viewport": WINDOWS[window], "color_scheme": scheme, "bypass_csp": True}
    with open_page(browser, files[name].as_uri(), **options) as page:
        page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
        page.evaluate(axe.read_text())
        assert page.evaluate(RUN_AXE) == []


@pytest.mark.parametrize("window", WINDOWS)
def test_the_page_is_no_wider_than_its_window(browser: Any, files: dict[str, Path], window: str) -> None:
    for file in files.values():
        with open_page(browser, file.as_uri(), viewport=WINDOWS[window]) as page:
            assert overflow(page) == 0
            page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
            assert overflow(page) == 0


def test_what_won_its_price_and_its_pictures_are_on_the_first_screen(browser: Any, files: dict[str, Path]) -> None:
    with open_page(browser, files["pipeline"].as_uri(), viewport=WINDOWS["wide"]) as page:
        for selector in (
            ".big",
            ".lead",
            ".tiles",
            ".pair figure:nth-of-type(1) img",
            ".pair figure:nth-of-type(2) img",
        ):
            box = page.locator(selector).first.bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= WINDOWS["wide"]["height"], selector
