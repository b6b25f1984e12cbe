"""A process that generates pictures with a whole pipeline, for the benchmarks that time several in turns."""

from collections.abc import Mapping
from pathlib import Path

from stillhouse.accelerate.evaluation.candidate_process import CandidateProcess
from stillhouse.accelerate.evaluation.task import CandidateTask
from stillhouse.accelerate.search.sampling_variants import variant_candidate
from stillhouse.pipelines.manifest import Component, Defaults, StepCache


def pipeline_process(
    folder: Path,
    directory: Path,
    components: Mapping[str, Component],
    defaults: Defaults,
    options: Mapping[str, str] | None = None,
    step_cache: StepCache | None = None,
) -> CandidateProcess:
    """Return a process, not started yet, that generates pictures with the given networks.

    Args:
        folder: folder for the log and the pictures.
        directory: directory of the pipeline. In a working directory of `stillhouse accelerate` the networks that
            `components` leaves out are the original ones.
        components: networks by name.
        defaults: default settings of the pipeline.
        options: sampling options by name, by which the log names the pipeline; None: none.
        step_cache: the two graphs that feature caching needs; None: no feature caching.
    """
    task = CandidateTask(
        variant_candidate(options or {}),
        graph="",
        folder=str(folder),
        artifact="",
        pipeline=str(directory),
        components=components,
        defaults=defaults,
        step_cache=step_cache,
    )
    return CandidateProcess(task, None, ())
