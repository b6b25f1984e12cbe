"""Data-parallel training equals training of one process with all batches."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stillhouse.fit.fit import fit
from stillhouse.fit.stage import UpdateLog
from tests.fit.test_fit import LineStage, weights

PROGRAM = """
import sys
import torch
from pathlib import Path
from tests.fit.test_processes import train_halves

trained = train_halves(Path(sys.argv[1]), lambda log: print(log.update), rows=8)
torch.save(trained, f"{sys.argv[1]}/weights-{torch.distributed.get_rank()}.pt")
torch.distributed.destroy_process_group()
"""


class Halves(LineStage):
    """Fits y = 3x for 16 rows, of which an even batch has the first `rows` and an odd batch the next ones."""

    rows = 16

    def loss(self, update: int) -> torch.Tensor:
        start = self.rows * (update % 2) % 16
        x = torch.arange(16.0).view(16, 1)[start : start + self.rows]
        loss: torch.Tensor = ((self.network(x / 16) - 3 * x / 16) ** 2).mean()
        return loss


def train_halves(folder: Path, report: Callable[[UpdateLog], None], rows: int) -> list[float]:
    stage = Halves()
    stage.rows = rows
    fit(stage, folder, report)
    return weights(stage)


def run_two_processes(folder: Path) -> str:
    folder.mkdir()
    program = folder / "learn.py"
    program.write_text(PROGRAM)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *launch, str(program), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_end_with_the_weights_of_one_process_with_both_batches(tmp_path: Path) -> None:
    alone = train_halves(tmp_path / "alone", lambda log: None, rows=16)
    output = run_two_processes(tmp_path / "together")
    both = [torch.load(tmp_path / "together" / f"weights-{rank}.pt") for rank in (0, 1)]
    assert both[0] == both[1] == pytest.approx(alone, abs=1e-6)
    assert output.split() == [str(update) for update in range(5, 41, 5)]  # only the main process reports
