"""A child is asked and answers; whatever it does instead becomes one sentence."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from stillhouse.accelerate.calibration.calibration_data import Probe, read_probes, write_probes
from stillhouse.accelerate.calibration.inputs import infer_shapes, plausible_inputs
from stillhouse.accelerate.evaluation.candidate_process import LOG_FILE, CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS_FILE
from stillhouse.accelerate.evaluation.task import TASK_FILE, CandidateTask, read_task
from stillhouse.accelerate.records.candidate import Candidate
from tests.accelerate.networks import detector

LIMIT = 60.0


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CandidateTask:
    folder = tmp_path_factory.mktemp("subject")
    graph = detector(folder / "detector.onnx")
    feeds = plausible_inputs(graph, infer_shapes(graph), 3)
    write_probes(folder / "probes.npz", [Probe(f"input {i}", feed) for i, feed in enumerate(feeds)])
    return CandidateTask(
        Candidate("network", "onnxruntime"), str(graph), str(folder / "trial"), "", str(folder / "probes.npz")
    )


@pytest.fixture(scope="module")
def subject(task: CandidateTask) -> "object":
    with CandidateProcess(task) as subject:
        subject.call("build", timeout=LIMIT)
        subject.call("open", timeout=LIMIT)
        yield subject


def test_a_candidate_is_built_opened_run_and_timed(task: CandidateTask, subject: CandidateProcess) -> None:
    subject.call("run_probes", timeout=LIMIT)
    outputs = read_probes(Path(task.folder) / OUTPUTS_FILE)
    assert [one.label for one in outputs] == ["input 0", "input 1", "input 2"]
    assert all(np.isfinite(array).all() for one in outputs for array in one.feeds.values())
    assert 0 < subject.call("time_calls", 2, timeout=LIMIT) < LIMIT
    assert subject.observed_peak > 10 << 20


def test_its_task_and_log_lie_in_its_folder(task: CandidateTask, subject: CandidateProcess) -> None:
    assert read_task(Path(task.folder) / TASK_FILE) == task
    assert (Path(task.folder) / LOG_FILE).is_file()


def test_a_mistake_is_reported_and_the_child_lives_on(subject: CandidateProcess) -> None:
    with pytest.raises(CandidateError, match="AttributeError"):
        subject.call("dance", timeout=LIMIT)
    assert subject.call("time_calls", 1, timeout=LIMIT) > 0


def test_who_takes_too_long_is_ended(task: CandidateTask) -> None:
    with CandidateProcess(task) as slow, pytest.raises(CandidateError, match=r"build took more than 0 s"):
        slow.call("build", timeout=0.001)


def test_who_takes_too_much_memory_is_ended(task: CandidateTask) -> None:
    with (
        CandidateProcess(task, memory_limit=1 << 20) as greedy,
        pytest.raises(CandidateError, match="GiB of memory, more than"),
    ):
        greedy.call("build", timeout=LIMIT)
        greedy.call("open", timeout=LIMIT)


def test_who_dies_is_named_with_its_signal(task: CandidateTask) -> None:
    with CandidateProcess(task) as subject, pytest.raises(CandidateError, match="SIGTERM"):
        subject.call("build", timeout=LIMIT)
        os.killpg(subject.pid, signal.SIGTERM)
        subject.call("open", timeout=LIMIT)


def test_no_child_outlives_its_parent(task: CandidateTask) -> None:
    with CandidateProcess(task) as subject:
        pid = subject.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
