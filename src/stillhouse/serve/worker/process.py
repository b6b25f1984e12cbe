"""The worker process of a server: `python -m stillhouse.serve.worker.process`.

Its main thread runs the engine: receive commands, step, send events. A second thread decodes pictures. The process ends
when the server closes the channel or dies.
"""

import os
import signal
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from msgspec.structs import replace

from stillhouse.core import ImageRequest
from stillhouse.errors import StillhouseError
from stillhouse.pipelines.load import load
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline
from stillhouse.pipelines.tokenizers import PromptTruncated
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.engine import Engine, FinishedJob, StepOutput
from stillhouse.serve.engine.executor import (
    PipelineExecutor,
    make_batch_key,
    measure_latency_curve,
    plan_steps,
    trajectory_of,
)
from stillhouse.serve.engine.job import BatchKey, Job
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.worker.decode_thread import DecodedImage, DecodedPreview, DecodeThread
from stillhouse.serve.worker.locate_pipeline import locate_pipeline
from stillhouse.serve.worker.messages import (
    Cancel,
    Command,
    Event,
    OutputEvent,
    Preview,
    Ready,
    RequestOutput,
    StepReport,
    StepStats,
    Submit,
    WorkerConfig,
    WorkerFailed,
)
from stillhouse.serve.worker.pipeline_cache import PipelineCache
from stillhouse.serve.worker.traceback_summary import traceback_summary
from stillhouse.workers.messages import Channel
from stillhouse.workers.process import connect_to_parent
from stillhouse.workers.transport import TransportClosed

REPORT_SECONDS = 0.1
"""Seconds after which steps are reported; any other event reports them earlier. The last step of a picture is thus
reported with the picture: an earlier report would wake the server while the picture is decoded."""


@dataclass(slots=True)
class _RequestState:
    """What the worker records of a request besides its `Job`."""

    command: Submit
    previews: frozenset[int]
    is_prompt_truncated: bool
    started: float = 0.0
    last_step: float = 0.0
    batch_peers: int = 0
    steps: int = 0


@dataclass(slots=True)
class Worker:
    """The loop of one device.

    Args:
        channel: commands from the server, and events to it.
        engine: batches and advances the requests.
        pipelines: the pipelines, by name.
    """

    channel: Channel[Event, WorkerConfig | Command]
    engine: Engine
    pipelines: PipelineCache
    _jobs: dict[str, tuple[Job, _RequestState]] = field(default_factory=dict)
    _steps: list[StepStats] = field(default_factory=list)
    _unreported_since: float = 0.0
    _decoder: DecodeThread = field(init=False)
    _report_lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self._decoder = DecodeThread(self._on_decoded)

    def run(self) -> None:
        """Serve requests until the server is gone."""
        self._decoder.start()
        with suppress(TransportClosed):
            while True:
                self._receive()
                if self.engine.jobs:
                    self._step()

    def _receive(self) -> None:
        """Handle every command that has arrived; wait for one where there are no requests."""
        while self.channel.transport.wait(0 if self.engine.jobs else None):
            self._handle_command(self.channel.receive())

    def _handle_command(self, command: WorkerConfig | Command) -> None:
        if isinstance(command, Submit):
            self._submit(command)
        elif isinstance(command, Cancel):
            self._decoder.drop_preview(command.id)
            if finished := self.engine.cancel(command.id):
                self._finish(finished)
        else:
            raise ValueError("the server sent a second WorkerConfig")

    def _submit(self, command: Submit) -> None:
        try:
            pipeline = self.pipelines[command.pipeline]
            step_plan = plan_steps(pipeline.manifest, command.resolved)
            batch_key = make_batch_key(command.pipeline, command.resolved)
            expires = float("inf") if command.expires_in is None else self.engine.clock() + command.expires_in
            job = Job(command.id, command.tier, command.key, batch_key, step_plan, command.resolved, expires)
            is_truncated = not fits_tokenizers(pipeline, command.resolved.request)
            self.engine.submit(job)
        except StillhouseError as error:
            self._send(OutputEvent(command.id, _failed_output(error)))
            return
        previews = preview_steps(command.previews, len(step_plan.rows))
        self._jobs[command.id] = job, _RequestState(command, previews, is_truncated)

    def _step(self) -> None:
        began = time.monotonic()
        step = self.engine.step()
        if step.jobs:
            stats = self._step_stats(step)
            with self._report_lock:
                self._unreported_since = self._unreported_since if self._steps else began
                self._steps.append(stats)
        for job in step.jobs:
            self._record_step(job, began, len(step.jobs))
        for finished in step.finished:
            self._finish(finished)
        if self._steps and began - self._unreported_since >= REPORT_SECONDS:
            self._send()
        if any(job.index == 1 for job in step.jobs):
            self.pipelines.evict()  # a network is opened by its first call

    def _record_step(self, job: Job, began: float, batch_size: int) -> None:
        state = self._jobs[job.id][1]
        state.started = state.started or began
        state.steps += 1
        state.batch_peers += batch_size - 1
        state.last_step = time.monotonic()
        if job.index in state.previews and not job.is_done:
            self._decoder.submit_preview(job.id, self.pipelines[job.batch_key.pipeline], trajectory_of(job))

    def _step_stats(self, step: StepOutput) -> StepStats:
        batch_key = step.jobs[0].batch_key
        rows = sum(job.step_plan.rows[job.index - 1] for job in step.jobs)
        slowdown = self.engine.cost_model.slowdowns.get(batch_key, 1.0)
        return StepStats([job.id for job in step.jobs], batch_key, rows, step.seconds, slowdown)

    def _finish(self, finished: FinishedJob) -> None:
        job, state = self._jobs[finished.job.id]
        if finished.finish_reason == "finished":
            self._decoder.submit(job.id, self.pipelines[job.batch_key.pipeline], finished.result, state.command.format)
            return
        del self._jobs[job.id]
        self._decoder.drop_preview(job.id)
        output = _failed_output(finished.error) if finished.error else RequestOutput(finished.finish_reason)
        self._send(OutputEvent(job.id, output))

    def _on_decoded(self, decoded: DecodedImage | DecodedPreview) -> None:
        """Send a decoded preview or picture; called in the thread that decodes."""
        if isinstance(decoded, DecodedPreview):
            self._send(Preview(decoded.id, decoded.index, decoded.content))
            return
        job, state = self._jobs.pop(decoded.id)
        output = replace(
            _failed_output(decoded.error) if decoded.error else RequestOutput("finished", decoded.content),
            queue_seconds=state.started - job.arrived,
            denoise_seconds=state.last_step - state.started,
            decode_seconds=time.monotonic() - state.last_step,
            batch_peers=state.batch_peers / state.steps,
            is_prompt_truncated=state.is_prompt_truncated,
        )
        self._send(OutputEvent(decoded.id, output))

    def _send(self, *events: Event) -> None:
        """Send the steps that were not reported yet, and then the events."""
        with self._report_lock:
            steps, self._steps = self._steps, []
            for event in (StepReport(steps), *events) if steps else events:
                self.channel.send(event)


def _failed_output(error: StillhouseError) -> RequestOutput:
    output = RequestOutput(
        "failed", error=str(error), error_type=type(error).__name__, traceback_summary=traceback_summary(error)
    )
    # The frames of the traceback hold arrays, and the error itself.
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return output


def fits_tokenizers(pipeline: Pipeline, request: ImageRequest) -> bool:
    """Return whether no tokenizer truncates a prompt of the request."""
    texts = (request.prompt, request.negative_prompt)
    return all(tokenizer.fits(text) for tokenizer in pipeline.tokenizers.values() for text in texts)


def preview_steps(count: int, evaluations: int) -> frozenset[int]:
    """Return after which evaluations previews are made.

    Args:
        count: number of previews, evenly spread.
        evaluations: of the whole picture; there is no preview before the first and after the last.

    >>> sorted(preview_steps(3, 8)), sorted(preview_steps(3, 2))
    ([2, 4, 6], [1])
    """
    return frozenset(part * evaluations // (count + 1) for part in range(1, count + 1)) - {0}


def measure_curves(pipelines: PipelineCache) -> dict[BatchKey, LatencyCurve]:
    """Measure the latency of every pipeline at its default size."""
    curves = {}
    for name in pipelines:
        pipeline = pipelines[name]
        defaults = pipeline.manifest.defaults
        batch_key = BatchKey(name, defaults.width, defaults.height)
        curves[batch_key] = measure_latency_curve(pipeline, batch_key)
    return curves


def main() -> None:
    """Serve requests until the server is gone."""
    channel: Channel[Event, WorkerConfig | Command] = connect_to_parent(WorkerConfig | Command)
    # Service managers send SIGTERM to all processes of a service; the server decides when a worker ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The client is informed of a truncated prompt. The log is not: prompts are private.
    warnings.simplefilter("ignore", PromptTruncated)
    with suppress(TransportClosed):
        config = channel.receive()
        assert isinstance(config, WorkerConfig)
        _serve(channel, config)


def _serve(channel: Channel[Event, WorkerConfig | Command], config: WorkerConfig) -> None:
    """Open and measure the pipelines, and run the engine."""
    pipelines = PipelineCache(lambda name: _open_pipeline(config, name), tuple(config.pipelines), config.memory)
    try:
        curves = dict(config.curves) or measure_curves(pipelines)
    except StillhouseError as error:
        channel.send(WorkerFailed(str(error)))
        return
    channel.send(Ready(list(curves.items())))
    executor = PipelineExecutor(pipelines, _read_latents)
    Worker(channel, Engine(executor, POLICIES[config.policy], CostModel(curves), time.monotonic), pipelines).run()


def _read_latents(pipeline: Pipeline, trajectory: ImageTrajectory) -> ImageTrajectory:
    """Copy the final latents to host memory; another thread decodes them.

    They are copied between two steps: a GPU would complete the next step before a later copy.
    """
    trajectory.latents = pipeline.arrays.to_numpy(trajectory.latents)
    return trajectory


def _open_pipeline(config: WorkerConfig, name: str) -> Pipeline:
    return load(
        locate_pipeline(config.pipelines[name]),
        backend=config.backend,
        precision=config.precision,
        threads=config.threads,
        cache=Path(config.cache) if config.cache else None,
    )


if __name__ == "__main__":
    main()
    # Runtimes may wait for their threads at exit, and no output is pending.
    os._exit(0)
