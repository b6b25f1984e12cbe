"""A candidate's process replies to calls; any failure becomes one sentence."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from stillhouse.accelerate.calibration.calibration_data import Probe, read_probes, write_probes
from stillhouse.accelerate.calibration.inputs import infer_shapes, plausible_inputs
from stillhouse.accelerate.evaluation.candidate_messages import Build, Command, Open, RunProbes, TimeCalls
from stillhouse.accelerate.evaluation.candidate_process import LOG_FILE, CandidateError, CandidateProcess
from stillhouse.accelerate.evaluation.candidate_worker import OUTPUTS_FILE
from stillhouse.accelerate.evaluation.task import TASK_FILE, CandidateTask, read_task
from stillhouse.accelerate.records.candidate import Candidate
from tests.accelerate.networks import detector

LIMIT = 60.0


class Dance(Command[None], frozen=True):
    """A command that no worker has."""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> CandidateTask:
    folder = tmp_path_factory.mktemp("subject")
    graph = detector(folder / "detector.onnx")
    feeds = plausible_inputs(graph, infer_shapes(graph), 3).sets
    write_probes(folder / "probes.npz", [Probe(f"input {i}", feed) for i, feed in enumerate(feeds)])
    return CandidateTask(
        Candidate("network", "onnxruntime"), str(graph), str(folder / "trial"), "", str(folder / "probes.npz")
    )


@pytest.fixture(scope="module")
def process(task: CandidateTask) -> "object":
    with CandidateProcess(task) as process:
        process.call(Build(), timeout=LIMIT)
        process.call(Open(), timeout=LIMIT)
        yield process


def test_a_candidate_is_built_opened_run_and_timed(task: CandidateTask, process: CandidateProcess) -> None:
    process.call(RunProbes(), timeout=LIMIT)
    outputs = read_probes(Path(task.folder) / OUTPUTS_FILE)
    assert [probe.label for probe in outputs] == ["input 0", "input 1", "input 2"]
    assert all(np.isfinite(array).all() for probe in outputs for array in probe.feeds.values())
    assert 0 < process.call(TimeCalls(2), timeout=LIMIT) < LIMIT
    assert process.observed_peak > 10 << 20


def test_its_task_and_log_lie_in_its_folder(task: CandidateTask, process: CandidateProcess) -> None:
    assert read_task(Path(task.folder) / TASK_FILE) == task
    assert (Path(task.folder) / LOG_FILE).is_file()


def test_an_unknown_command_is_reported_and_the_process_goes_on(process: CandidateProcess) -> None:
    with pytest.raises(CandidateError, match="ValidationError: Invalid value 'dance'"):
        process.call(Dance(), timeout=LIMIT)
    assert process.call(TimeCalls(1), timeout=LIMIT) > 0


def test_a_process_that_takes_too_long_is_killed(task: CandidateTask) -> None:
    with CandidateProcess(task) as slow, pytest.raises(CandidateError, match=r"build took more than 0 s"):
        slow.call(Build(), timeout=0.001)


def test_a_process_that_takes_too_much_memory_is_killed(task: CandidateTask) -> None:
    with (
        CandidateProcess(task, memory_limit=1 << 20) as greedy,
        pytest.raises(CandidateError, match="GiB of memory, more than"),
    ):
        greedy.call(Build(), timeout=LIMIT)
        greedy.call(Open(), timeout=LIMIT)


def test_the_signal_that_ended_a_process_is_named(task: CandidateTask) -> None:
    with CandidateProcess(task) as process, pytest.raises(CandidateError, match="SIGTERM"):
        process.call(Build(), timeout=LIMIT)
        os.killpg(process.pid, signal.SIGTERM)
        process.call(Open(), timeout=LIMIT)


def test_no_process_outlives_its_context(task: CandidateTask) -> None:
    with CandidateProcess(task) as process:
        pid = process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
