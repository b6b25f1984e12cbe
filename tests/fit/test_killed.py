"""`kill -9` at a random update or during a checkpoint's write: training resumes bit-exactly."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

LINE_PROGRAM = """
from stillhouse.fit.fit import fit
from tests.fit.test_fit import LineStage, weights

def train(folder, where, at):
    saved, save = 0, torch.save

    class Killed(LineStage):
        def loss(self, update):
            if where == "learning" and update == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().loss(update)

    def cut(state, path):
        nonlocal saved
        save(state, path)
        saved += 1
        if saved == at:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    if where == "writing":
        torch.save = cut
    stage = Killed()
    fit(stage, folder, lambda log: None, save_every=0.0)
    save(weights(stage), folder / "weights.pt")
"""
CHAIN_PROGRAM = """
from stillhouse.distill.training.progressive_chain import TrainingRun, train_chain
from tests.distill.training.test_progressive_chain import RECIPE, RandomLatents, teacher, weights

def train(folder, where, at):
    reports = 0

    def report(log):
        nonlocal reports
        reports += 1
        if reports == at:
            os.kill(os.getpid(), signal.SIGKILL)

    students = train_chain(teacher(), RandomLatents(), RECIPE, TrainingRun(folder, report, save_every=0.0))
    torch.save([weights(student) for student in students], folder / "weights.pt")
"""
IMPORTS = """
import os, random, signal, sys
from pathlib import Path
import numpy as np
import torch
"""
RUNS = """
arguments = iter(sys.argv[1:])
for folder, where, at in zip(arguments, arguments, arguments):
    Path(folder).mkdir(exist_ok=True)
    child = os.fork()
    if not child:
        random.seed()
        np.random.seed()
        train(Path(folder), where, int(at))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""Each run is a process of its own, forked before torch computes: the libraries are imported once for several runs.

Each run seeds the global generators of Python and NumPy afresh, as a new interpreter does.
"""


@pytest.mark.parametrize(
    ("program", "where", "moments"),
    [(LINE_PROGRAM, "learning", 39), (LINE_PROGRAM, "writing", 39), (CHAIN_PROGRAM, "learning", 9)],
)
def test_a_killed_run_resumes_bit_exactly(program: str, where: str, moments: int, tmp_path: Path) -> None:
    """A chain resumes in a new interpreter, which orders sets of strings in another way."""
    at = random.randint(1, moments)
    print(f"killed at {at}")
    runs = [("whole", "nowhere", -1), ("parts", where, at), ("parts", "nowhere", -1)]
    interpreters = [runs[:2], runs[2:]] if program == CHAIN_PROGRAM else [runs]
    codes = [code for some in interpreters for code in run_training(program, tmp_path, some)]
    assert codes == [0, -signal.SIGKILL, 0]
    whole, parts = ((tmp_path / name / "weights.pt") for name in ("whole", "parts"))
    assert _is_equal(torch.load(whole, weights_only=True), torch.load(parts, weights_only=True))
    assert not list((tmp_path / "parts").glob("*.partial"))


def run_training(program: str, root: Path, runs: Sequence[tuple[str, str, int]]) -> list[int]:
    """Train in an interpreter and return the exit code of each run.

    Args:
        program: defines `train`.
        root: folder of the runs' folders.
        runs: name of the folder, where the process kills itself, and at which time of getting there.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "random",
    }
    arguments = [argument for name, where, at in runs for argument in (str(root / name), where, str(at))]
    command = [sys.executable, "-W", "ignore", "-c", IMPORTS + program + RUNS, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    codes = [int(code) for code in done.stdout.split()]
    assert all(code in (0, -signal.SIGKILL) for code in codes), done.stderr
    return codes


def _is_equal(one: object, other: object) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one == other
