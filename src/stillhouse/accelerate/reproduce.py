"""A trial again, from its task file: what `reproduce.py` beside every artefact calls."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from stillhouse.accelerate.child import Child
from stillhouse.accelerate.race import calls_for
from stillhouse.accelerate.task import read_task


def reproduce(path: Path) -> None:
    """Build, open, run and time the candidate of a task in this process, and print what was found.

    The artefact is built anew in a temporary folder, so that nothing of the trial changes.
    """
    task = read_task(path)
    with TemporaryDirectory() as folder:
        child = Child(replace(task, folder=folder, artefact=str(Path(folder, "made"))))
        print(task.candidate.name)
        print("build", child.build())
        print("open", child.open())
        calls = calls_for(child.time)
        print(f"{1000 * child.time(calls) / calls:.2f} ms a call, mean of {calls}")
