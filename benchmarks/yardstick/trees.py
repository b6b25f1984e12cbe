"""The two trees, what each has drawn, and where that is kept.

The baseline is a git worktree below build/yardstick. What it drew is kept by everything that may change it: commit,
processor, versions, the driver and the checkpoints. What the current tree draws is drawn anew each time.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.yardstick.draw import CHECKPOINTS, MARK

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/yardstick"
PACKAGES = ("numpy", "onnxruntime", "tokenizers", "torch", "diffusers", "transformers", "peft", "onnx", "onnxscript")
DRIVER = ("draw.py", "cases.py", "names.py")
USUAL_SECONDS = 3.0
"""Of a group that was never drawn here."""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Failed(Exception):
    """The yardstick cannot compare; the message says why."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a tree drew of one group: its hashes by case, what failed before any, and where its arrays are."""

    cases: Mapping[str, Mapping[str, Any]]
    error: str | None
    seconds: float
    arrays: Path

    def array(self, name: str) -> NDArray[Any]:
        """Read CASE:latents or CASE:pixels."""
        with np.load(self.arrays) as file:
            array: NDArray[Any] = file[name]
            return array


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree of this project and where its drawings are kept.

    Args:
        name: for people.
        directory: of the tree.
        kept: directory of its drawings.
    """

    name: str
    directory: Path
    kept: Path

    def read(self, group: str) -> Drawn | None:
        """Read what is kept of a group; None where nothing is."""
        path = self.kept / f"{group}.json"
        if not path.is_file():
            return None
        told = json.loads(path.read_text())
        return Drawn(told["cases"], told.get("error"), told["seconds"], path.with_suffix(".npz"))

    def forget(self, groups: Sequence[str]) -> None:
        """Remove what is kept of these groups."""
        for group in groups:
            for suffix in ("json", "npz"):
                (self.kept / f"{group}.{suffix}").unlink(missing_ok=True)

    def draw(self, groups: Sequence[str], expected: Mapping[str, float]) -> None:
        """Draw these groups in a process of its own and keep them; tell on stderr which is done, and the time left.

        Args:
            groups: their names.
            expected: by group, seconds that it is expected to take.

        Raises:
            Failed: another tree's package was imported.
        """
        command = [sys.executable, "-m", "benchmarks.yardstick.draw", str(self.kept), *groups]
        environment = {**os.environ, **_ONE_THREAD, "PYTHONPATH": str(self.directory / "src"), "HF_HUB_OFFLINE": "1"}
        began, waiting = perf_counter(), list(groups)
        self._tell(f"{len(groups)} groups", began, waiting, expected)
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    done = line.removeprefix(MARK).strip()
                    waiting.remove(done)
                    self._check(done)
                    self._tell(done, began, waiting, expected)
        if process.returncode:
            print(f"{self.name}: the driver ended with status {process.returncode}", file=sys.stderr)

    def _tell(self, what: str, began: float, waiting: Sequence[str], expected: Mapping[str, float]) -> None:
        left = sum(expected.get(group, USUAL_SECONDS) for group in waiting)
        print(f"{self.name}: {what}, {perf_counter() - began:.0f} s, about {left:.0f} s left", file=sys.stderr)

    def _check(self, group: str) -> None:
        path = self.kept / f"{group}.json"
        tree = json.loads(path.read_text())["tree"]
        if Path(tree).resolve() != self.directory.resolve():
            self.forget([group])
            raise Failed(f"{group} was drawn by the package in {tree}, not by the one in {self.directory}")


def current_tree() -> Tree:
    """The tree that this file is in; what it drew before is for looking at only."""
    return Tree("current tree", ROOT, BUILD / "current")


def baseline_tree(revision: str) -> Tree:
    """Lay a commit out below build/yardstick, or find it there.

    Raises:
        Failed: there is no such commit, or the worktree was changed.
    """
    commit = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    directory = BUILD / "trees" / commit[:12]
    if not (directory / ".git").exists():
        shutil.rmtree(directory, ignore_errors=True)
        # Forced, because a worktree that was removed with build/ is still registered.
        _git("worktree", "add", "--force", "--detach", str(directory), commit)
    if _git("-C", str(directory), "rev-parse", "HEAD") != commit:
        raise Failed(f"{directory} is at another commit than {commit[:12]}; remove it")
    if changed := _git("-C", str(directory), "status", "--porcelain", "--", "src"):
        raise Failed(f"{directory} was changed; remove it, or restore:\n{changed}")
    return Tree(commit[:7], directory, BUILD / "drawn" / _key(commit))


def _key(commit: str) -> str:
    """Twenty hexadecimal digits of everything that may change what a commit draws."""
    digest = hashlib.sha256("\n".join([commit, platform.python_version(), _processor(), *_versions()]).encode())
    files = [Path(__file__).with_name(name) for name in DRIVER]
    for file in (*files, *sorted(path for path in CHECKPOINTS.rglob("*") if path.is_file())):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return f"{commit[:7]}-{digest.hexdigest()[:20]}"


def _processor() -> str:
    """Its name and its instructions, which decide the kernels that onnxruntime takes."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        told = ""
    lines = re.findall(r"^(?:model name|flags|Features)\s*:.*$", told, re.MULTILINE)
    return "\n".join([platform.machine(), platform.processor(), *sorted(set(lines))])


def _versions() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"no {package}"


def _git(*arguments: str) -> str:
    ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise Failed(f"git {' '.join(arguments)}: {ran.stderr.strip() or 'nothing of that name'}")
    return ran.stdout.strip()
