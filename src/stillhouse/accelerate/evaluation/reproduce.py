"""A trial again, from its task file: what `reproduce.py` beside every artefact calls."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from stillhouse.accelerate.evaluation.candidate_worker import Child
from stillhouse.accelerate.evaluation.latency import calls_for
from stillhouse.accelerate.evaluation.task import read_task
from stillhouse.accelerate.records.candidate import DISTILLED


def reproduce(path: Path) -> None:
    """Build, open, run and time the candidate of a task in this process, and print what was found.

    The artefact is built anew in a temporary folder, so that nothing of the trial changes; what was distilled is
    taken as it is.
    """
    task = read_task(path)
    with TemporaryDirectory() as folder:
        artefact = task.artefact if task.candidate.recipe == DISTILLED else str(Path(folder, "made"))
        child = Child(replace(task, folder=folder, artefact=artefact))
        print(task.candidate.name)
        print("build", child.build())
        print("open", child.open())
        calls = calls_for(child.time)
        print(f"{1000 * child.time(calls) / calls:.2f} ms a call, mean of {calls}")
