"""Records how long the tests of each file take: a pytest plugin, used by `make durations`.

`tests/conftest.py` runs the files in the order of these durations, the longest first, so that the processes of
pytest-xdist end at about the same time.
"""

import json
from collections import defaultdict
from pathlib import Path

import pytest

DURATIONS = Path(__file__).parents[1] / "tests" / "durations.json"
"""Seconds by test file, relative to the repository: set-up and teardown included."""


class DurationRecorder:
    """Adds up the seconds of the tests of each file.

    Args:
        file: written at the end of the session.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the seconds of one phase of a test. With pytest-xdist, only the main process is told."""
        self._seconds[report.nodeid.partition("::")[0]] += report.duration

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write the seconds, the longest first, unless the session was interrupted."""
        if self._seconds and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            ranked = sorted(self._seconds.items(), key=lambda entry: -entry[1])
            text = json.dumps({file: round(seconds, 1) for file, seconds in ranked}, indent=1)
            self.file.write_text(text + "\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Record durations in the main process."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(DurationRecorder(DURATIONS), "duration-recorder")


def sort_by_duration(items: list[pytest.Item], durations: dict[str, float]) -> None:
    """Sort tests in place: the file with the longest duration first, files that were never timed before all others.

    Tests of one file keep their order.

    Args:
        items: collected tests.
        durations: seconds by test file.
    """
    items.sort(key=lambda item: -durations.get(item.nodeid.partition("::")[0], float("inf")))
