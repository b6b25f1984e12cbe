"""A process is timed while no thread of another process waits busily, and does not wait for its own."""

from stillhouse.accelerate.evaluation.busy_waiting import SPIN_SECONDS, BusyWaiting
from stillhouse.accelerate.evaluation.task import CandidateTask
from stillhouse.accelerate.records.candidate import BASELINE_OPTIONS, PIPELINE, Candidate
from stillhouse.pipelines.manifest import Component


def test_only_others_wait_and_only_as_long_as_needed() -> None:
    now, pauses = [0.0], list[float]()

    def pause(seconds: float) -> None:
        pauses.append(round(seconds, 6))
        now[0] += seconds

    waiting = BusyWaiting(lambda: now[0], pause)
    waiting.begin("first")
    waiting.end("first")
    waiting.begin("first")  # its own threads are what makes the next call fast
    assert not pauses
    now[0] += 0.03
    waiting.begin("second")
    assert pauses == [round(SPIN_SECONDS - 0.03, 6)]
    waiting.begin("second")
    assert len(pauses) == 1, "nobody waits busily any more"


def test_the_baseline_waits_busily_as_onnxruntime_does_by_default() -> None:
    network = Candidate("network", "onnxruntime")
    baseline = Candidate("network", "onnxruntime", options=BASELINE_OPTIONS)
    assert not CandidateTask(network, "g.onnx", "f", "a").waits_busily
    assert CandidateTask(baseline, "g.onnx", "f", "a").waits_busily
    components = {"decoder": Component("d.onnx", "w", settings=BASELINE_OPTIONS)}
    assert CandidateTask(Candidate(PIPELINE, "stillhouse"), "", "f", "", components=components).waits_busily
