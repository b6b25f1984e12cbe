"""Repetition of a measurement of `stillhouse accelerate`, for the script `reproduce.py` beside each measurement."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from stillhouse.accelerate.evaluation.candidate_worker import CandidateWorker
from stillhouse.accelerate.evaluation.latency import TimingBudget, calibrate_calls
from stillhouse.accelerate.evaluation.task import read_task
from stillhouse.accelerate.records.candidate import DISTILLED


def reproduce(path: Path) -> None:
    """Build, open and time the network of a task file in this process, and print the results.

    The quantized graph is built again, in a temporary folder, so that no file of the earlier measurement changes. A
    distilled network is opened where it is, because it cannot be built from the original network.

    Args:
        path: the task file, which names the graph, the backend and its options.
    """
    task = read_task(path)
    with TemporaryDirectory() as folder:
        artifact = task.artifact if task.candidate.recipe == DISTILLED else str(Path(folder, "artifact"))
        worker = CandidateWorker(replace(task, folder=folder, artifact=artifact))
        print(task.candidate.name)
        print("build", worker.build())
        print("open", worker.open())
        calls = calibrate_calls(worker.time_calls, TimingBudget().round_seconds)
        print(f"{1000 * worker.time_calls(calls) / calls:.2f} ms a call, mean of {calls}")
