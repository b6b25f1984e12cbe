"""One browser and one server for all studio tests; each test has a page in a new profile."""

from collections.abc import Iterator
from shutil import copytree
from typing import Any

import pytest

from stillhouse.pipelines.load import find_pipeline
from tests.serve.running import Running, running_server
from tests.serve.studio.browser import chromium, open_page, wait_for_models

SETTINGS = """
max_queue = 64
[tiers.free]
pipeline = "shapes"
steps = 3
max_lateness = 1000
[tiers.pro]
pipeline = "reported"
steps = 12
max_lateness = 1000
"""
REPORT = """<!doctype html><title>t</title><style>h1 { color: rgb(1, 2, 3) }</style>
<h1>2x as fast</h1><script>top.x = 1</script>"""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("studio")
    (folder / "stillhouse.toml").write_text(SETTINGS, encoding="utf-8")
    copytree(find_pipeline("shapes"), folder / "reported")
    (folder / "reported" / "report.html").write_text(REPORT, encoding="utf-8")
    with running_server("--config", "stillhouse.toml", cwd=folder) as server:
        yield server


@pytest.fixture(scope="module")  # while it is open, no test of this process can have a loop of its own
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    with open_page(browser, server.url) as page:
        wait_for_models(page)
        yield page
