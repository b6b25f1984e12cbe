"""Runs of the tests on a copy of the source that holds one mutant."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

from tools.mutants.areas import Area, DrawnMutant
from tools.mutants.sites import Mutant

TIME_FACTOR, EXTRA_SECONDS = 5.0, 120.0
"""A mutant's tests may take so many times as long as the original's, and so many seconds more on a busy machine."""
BASELINE_SECONDS = 1800.0
"""Largest duration of the original's tests."""
_FAILED = ("FAILED ", "ERROR ")
_NO_TESTS = 5
"""Exit code of pytest where no tests are collected."""

Stage = Literal["quick", "wider"]


class BaselineError(Exception):
    """Tests fail on the original source, so that they cannot judge a mutant."""


class Run(NamedTuple):
    """One run of pytest.

    Args:
        code: exit code; None where the time limit ended the run.
        seconds: duration.
        failure: id of the first test that failed, or what pytest said last; empty where all tests passed.
    """

    code: int | None
    seconds: float
    failure: str

    @property
    def verdict(self) -> str:
        """Return killed: a test fails; timeout: the tests do not end in time, which counts as killed; or survived."""
        return "timeout" if self.code is None else "killed" if self.code not in (0, _NO_TESTS) else "survived"


@dataclass(slots=True)
class Bench:
    """A copy of the source on which tests run, so that the working tree never changes.

    Args:
        directory: temporary directory, which holds `src`.
        tests: root of the repository whose tests run.
        limits: time limit in seconds by area and stage.
    """

    directory: Path
    tests: Path
    limits: dict[tuple[str, Stage], float] = field(default_factory=dict)

    def judge(self, drawn: DrawnMutant, stage: Stage) -> Run:
        """Run the tests of a stage on a mutant, the test file that mirrors the changed file first.

        Raises:
            BaselineError: an area has no quick tests, or tests fail on the original source.
        """
        area, mutant = drawn
        if (area.name, stage) not in self.limits:
            self.limits[area.name, stage] = self._find_limit(area, stage)
        tests = sorted(self.find_tests(area, stage), key=lambda path: path.name != f"test_{Path(mutant.file).name}")
        with self._mutated(mutant):
            return self.run_tests(tests, self.limits[area.name, stage])

    def find_tests(self, area: Area, stage: Stage) -> list[Path]:
        """Return the test files of a stage. Doctests are quick; no file has two stages."""
        quick = self._test_files(area.quick)
        if stage == "quick":
            return [*quick, self.directory / "src" / area.source]
        return [path for path in self._test_files(area.wider) if path not in quick]

    def run_tests(self, tests: Sequence[Path], limit: float) -> Run:
        """Run tests on the copy as it is until the first one fails.

        Args:
            tests: files and directories.
            limit: seconds after which all processes of the tests are killed.
        """
        if not tests:
            return Run(_NO_TESTS, 0.0, "")
        scratch = self.directory / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        # The profile draws the same examples each time, keeps none, and has no deadlines, which a busy machine exceeds.
        options = [f"--basetemp={scratch / 'tests'}", "--hypothesis-profile=ci", "-c", "pyproject.toml", "--rootdir=."]
        options += ["-x", "-q", "--doctest-modules", "-m", "not large", "-p", "no:cacheprovider"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.directory / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",  # two mutants of one size within a second have the same .pyc
            "HYPOTHESIS_STORAGE_DIRECTORY": str(scratch / "hypothesis"),  # not in the working tree
            "OMP_NUM_THREADS": "1",
        }
        began = time.monotonic()
        with (scratch / "output").open("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *map(str, tests), *options],
                cwd=self.tests,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end_group(process)
            output.seek(0)
            lines = output.read().splitlines()
        return Run(code, time.monotonic() - began, _first_failure(lines) if code else "")

    def _find_limit(self, area: Area, stage: Stage) -> float:
        """Return the time limit in seconds, from a run of the tests on the original source."""
        if stage == "quick" and not self._test_files(area.quick):
            raise BaselineError(f"{self.tests} has none of the tests {', '.join(area.quick)}")
        run = self.run_tests(self.find_tests(area, stage), BASELINE_SECONDS)
        if run.code not in (0, _NO_TESTS):
            raise BaselineError(f"{stage} tests of {area.name} fail without a mutant: {run.failure or 'too slow'}")
        return TIME_FACTOR * run.seconds + EXTRA_SECONDS

    def _test_files(self, names: Sequence[str]) -> list[Path]:
        """Return the test files that exist, relative to the root of the repository."""
        found = []
        for path in (self.tests / name for name in names):
            found += sorted(path.rglob("test_*.py")) if path.is_dir() else [path] if path.exists() else []
        return [path.relative_to(self.tests) for path in found]

    @contextmanager
    def _mutated(self, mutant: Mutant) -> Iterator[None]:
        """Change the copy while the context is entered."""
        path = self.directory / "src" / mutant.file
        original = path.read_bytes()
        path.write_bytes(mutant.apply(original.decode()).encode())
        try:
            yield
        finally:
            path.write_bytes(original)


@contextmanager
def open_bench(source: Path, tests: Path) -> Iterator[Bench]:
    """Copy a directory `src` into a temporary directory, which is removed at the end.

    Args:
        source: directory `src` of the mutants.
        tests: root of the repository whose tests run.
    """
    with TemporaryDirectory(prefix="mutants-") as name:
        shutil.copytree(source, Path(name) / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        yield Bench(Path(name), tests)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, and wait for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _first_failure(lines: Sequence[str]) -> str:
    """Return the id of the test that failed first; without one, the last line."""
    for line in lines:
        for prefix in _FAILED:
            if line.startswith(prefix):
                return line.removeprefix(prefix).partition(" - ")[0]
    return lines[-1] if lines else ""
