"""One server shared by all API tests."""

from collections.abc import Iterator

import pytest

from tests.serve.running import Running, running_server

SETTINGS = """
max_queue = 64
max_body = "4MiB"
max_pixels = 65536
[tiers.free]
pipeline = "shapes"
steps = 3
max_lateness = 1000
[tiers.pro]
pipeline = "shapes"
steps = 12
weight = 2
max_lateness = 1000
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "stillhouse.toml").write_text(SETTINGS, encoding="utf-8")
    with running_server("--config", "stillhouse.toml", cwd=folder) as server:
        yield server
