"""A trial again, from its task file: what `reproduce.py` beside every artefact calls."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from stillhouse.accelerate.evaluation.candidate_worker import CandidateWorker
from stillhouse.accelerate.evaluation.latency import calibrate_calls
from stillhouse.accelerate.evaluation.task import read_task
from stillhouse.accelerate.records.candidate import DISTILLED


def reproduce(path: Path) -> None:
    """Build, open, run and time the candidate of a task in this process, and print what was found.

    The artefact is built anew in a temporary folder, so that nothing of the trial changes; what was distilled is
    taken as it is.
    """
    task = read_task(path)
    with TemporaryDirectory() as folder:
        artefact = task.artifact if task.candidate.recipe == DISTILLED else str(Path(folder, "artifact"))
        child = CandidateWorker(replace(task, folder=folder, artifact=artefact))
        print(task.candidate.name)
        print("build", child.build())
        print("open", child.open())
        calls = calibrate_calls(child.time_calls)
        print(f"{1000 * child.time_calls(calls) / calls:.2f} ms a call, mean of {calls}")
