"""A child is asked and answers; whatever it does instead becomes one sentence."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from stillhouse.accelerate.calibration.calibration_data import Probe, read_probes, write_probes
from stillhouse.accelerate.calibration.inputs import guess_shapes, plausible_inputs
from stillhouse.accelerate.evaluation.candidate_process import LOG, Subject, SubjectFailed
from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS
from stillhouse.accelerate.evaluation.task import TASK, Task, read_task
from stillhouse.accelerate.records.candidate import Candidate
from tests.accelerate.networks import detector

LIMIT = 60.0


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("subject")
    graph = detector(folder / "detector.onnx")
    feeds = plausible_inputs(graph, guess_shapes(graph), 3)
    write_probes(folder / "probes.npz", [Probe(f"input {i}", feed) for i, feed in enumerate(feeds)])
    return Task(Candidate("network", "onnxruntime"), str(graph), str(folder / "trial"), "", str(folder / "probes.npz"))


@pytest.fixture(scope="module")
def subject(task: Task) -> "object":
    with Subject(task) as subject:
        subject.ask("build", limit=LIMIT)
        subject.ask("open", limit=LIMIT)
        yield subject


def test_a_candidate_is_built_opened_run_and_timed(task: Task, subject: Subject) -> None:
    subject.ask("outputs", limit=LIMIT)
    outputs = read_probes(Path(task.folder) / OUTPUTS)
    assert [one.label for one in outputs] == ["input 0", "input 1", "input 2"]
    assert all(np.isfinite(array).all() for one in outputs for array in one.feeds.values())
    assert 0 < subject.ask("time", 2, limit=LIMIT) < LIMIT
    assert subject.peak > 10 << 20


def test_its_task_and_log_lie_in_its_folder(task: Task, subject: Subject) -> None:
    assert read_task(Path(task.folder) / TASK) == task
    assert (Path(task.folder) / LOG).is_file()


def test_a_mistake_is_reported_and_the_child_lives_on(subject: Subject) -> None:
    with pytest.raises(SubjectFailed, match="AttributeError"):
        subject.ask("dance", limit=LIMIT)
    assert subject.ask("time", 1, limit=LIMIT) > 0


def test_who_takes_too_long_is_ended(task: Task) -> None:
    with Subject(task) as slow, pytest.raises(SubjectFailed, match=r"build took more than 0 s"):
        slow.ask("build", limit=0.001)


def test_who_takes_too_much_memory_is_ended(task: Task) -> None:
    with Subject(task, memory=1 << 20) as greedy, pytest.raises(SubjectFailed, match="GiB of memory, more than"):
        greedy.ask("build", limit=LIMIT)
        greedy.ask("open", limit=LIMIT)


def test_who_dies_is_named_with_its_signal(task: Task) -> None:
    with Subject(task) as subject, pytest.raises(SubjectFailed, match="SIGTERM"):
        subject.ask("build", limit=LIMIT)
        os.killpg(subject.pid, signal.SIGTERM)
        subject.ask("open", limit=LIMIT)


def test_no_child_outlives_its_parent(task: Task) -> None:
    with Subject(task) as subject:
        pid = subject.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
