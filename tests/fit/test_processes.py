"""Data-parallel training equals training of one process with all batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from stillhouse.fit.fit import fit
from tests.fit.test_fit import RECIPE, LineStage, weights

class Halves(LineStage):
    def loss(self, number):
        x = torch.arange(16.0).view(16, 1)
        rows = x if sys.argv[2] == "alone" else x[8 * (number % 2) : 8 * (number % 2) + 8]
        return ((self.network(rows / 16) - 3 * rows / 16) ** 2).mean()

stage = Halves()
fit(stage, Path(sys.argv[1]), lambda log: print(log.update))
rank = torch.distributed.get_rank() if sys.argv[2] == "together" else 0
torch.save(weights(stage), f"{sys.argv[1]}/weights-{rank}.pt")
if sys.argv[2] == "together":
    torch.distributed.destroy_process_group()
"""


def run_training(folder: Path, mode: str, launch: list[str]) -> str:
    folder.mkdir()
    program = folder / "learn.py"
    program.write_text(PROGRAM)
    command = [sys.executable, *launch, str(program), str(folder), mode]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_end_with_the_weights_of_one_process_with_both_batches(tmp_path: Path) -> None:
    run_training(tmp_path / "alone", "alone", [])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    output = run_training(tmp_path / "together", "together", launch)
    alone = torch.load(tmp_path / "alone" / "weights-0.pt")
    both = [torch.load(tmp_path / "together" / f"weights-{rank}.pt") for rank in (0, 1)]
    assert both[0] == both[1] == pytest.approx(alone, abs=1e-6)
    assert output.split() == [str(update) for update in range(5, 41, 5)]  # only the main process reports
