"""The worker process of a server: `python -m stillhouse.serve.worker.engine_process`.

The main thread receives commands, runs the scheduling engine step by step, and sends events. A second thread decodes
pictures. The process ends when the server closes the channel or dies.
"""

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from stillhouse.core import ImageRequest
from stillhouse.errors import StillhouseError
from stillhouse.pipelines.load import load
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.pipelines.tokenizers import PromptTruncated
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.engine import Engine, StepOutput
from stillhouse.serve.engine.executor import (
    PipelineCache,
    PipelineExecutor,
    measure_latency_curve,
)
from stillhouse.serve.engine.job import BatchKey, Job
from stillhouse.serve.engine.output import failed_output
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.worker.decode_thread import DecodeThread
from stillhouse.serve.worker.locate_pipeline import locate_pipeline
from stillhouse.serve.worker.messages import (
    Begun,
    Cancel,
    Command,
    Event,
    Opening,
    Ready,
    StepReport,
    StepStats,
    Submit,
    WorkerConfig,
    WorkerFailed,
)
from stillhouse.workers.channel import Channel, TransportClosed
from stillhouse.workers.process import connect_to_parent

OPENING_SECONDS = 1.0
"""Interval in seconds at which a worker that opens pipelines tells the server that it lives."""
REPORT_SECONDS = 0.1
"""Longest time in seconds for which finished steps are collected before they are reported to the server.

Every other event, such as a decoded picture, is preceded by a report of the steps so far. The last step of a picture is
thus reported with the picture: a report of its own would wake the server while the picture is decoded.
"""


@dataclass(slots=True)
class Worker:
    """The main loop of a worker process, which serves one device.

    Args:
        channel: brings commands from the server, and takes events to the server.
        engine: schedules the requests and runs the network evaluations.
        pipelines: the pipelines that the worker serves, by name.
    """

    channel: Channel[Event, WorkerConfig | Command]
    engine: Engine
    pipelines: PipelineCache
    _steps: list[StepStats] = field(default_factory=list)
    _unreported_since: float = 0.0
    _decoder: DecodeThread = field(init=False)
    _report_lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._decoder = DecodeThread(self._send)
        self.engine.on_begin = self._report_begin

    def run(self) -> None:
        """Serve requests until the server closes the channel or dies."""
        self._decoder.start()
        with suppress(TransportClosed):
            while True:
                self._receive()
                if self.engine.jobs:
                    self._step()

    def _receive(self) -> None:
        """Handle every command that has arrived. Where there are no requests, wait for the next command."""
        while self.channel.transport.wait(0 if self.engine.jobs else None):
            self._handle_command(self.channel.receive())

    def _handle_command(self, command: WorkerConfig | Command) -> None:
        if isinstance(command, Submit):
            self._submit(command)
        elif isinstance(command, Cancel):
            self._decoder.drop_preview(command.id)
            if output := self.engine.cancel(command.id):
                self._send(output)
        else:
            raise ValueError("the server sent a second WorkerConfig; only its first message may be a WorkerConfig")

    def _submit(self, command: Submit) -> None:
        try:
            job = make_job(command, self.pipelines[command.batch_key.pipeline], self.engine.clock())
            self.engine.submit(job)
        except StillhouseError as error:
            self._send(failed_output(command.id, error))

    def _step(self) -> None:
        began = time.monotonic()
        step = self.engine.step()
        if step.jobs:
            stats = self._step_stats(step)
            with self._report_lock:
                self._unreported_since = self._unreported_since if self._steps else began
                self._steps.append(stats)
        for job in step.jobs:
            if job.index in job.preview_steps and not job.is_done:
                self._decoder.submit_preview(job, self.pipelines[job.batch_key.pipeline])
        for job in step.finished:
            self._decoder.submit(job, self.pipelines[job.batch_key.pipeline])
        if any(job.is_alone for job in step.finished):
            self._decoder.wait_until_idle()
        for output in step.outputs:
            self._decoder.drop_preview(output.id)
            self._send(output)
        if self._steps and began - self._unreported_since >= REPORT_SECONDS:
            self._send()
        if any(job.index == 1 for job in step.jobs):
            # The first step of a job may open networks, which may exceed the memory limit. `evict` then unloads
            # pipelines that were not used recently.
            self.pipelines.evict()

    def _report_begin(self, job: Job) -> None:
        """Tell the server that a picture is begun. Before one that must run alone, all others are decoded."""
        if job.is_alone:
            self._decoder.wait_until_idle()
        self._send(Begun(job.id))

    def _step_stats(self, step: StepOutput) -> StepStats:
        batch_key = step.jobs[0].batch_key
        rows = sum(job.step_plan.rows[job.index - 1] for job in step.jobs)
        slowdown = self.engine.cost_model.slowdowns.get(batch_key, 1.0)
        return StepStats([job.id for job in step.jobs], batch_key, rows, step.seconds, slowdown)

    def _send(self, *events: Event) -> None:
        """Send the server a report of the steps that were not reported yet, if any, and then the events."""
        with self._report_lock:
            steps, self._steps = self._steps, []
            for event in (StepReport(steps), *events) if steps else events:
                self.channel.send(event)


def make_job(command: Submit, pipeline: Pipeline, now: float) -> Job:
    """Return the scheduler's job for a `Submit` (the server's command to generate a picture).

    `now` is the time in seconds on the engine's clock, from which the request's expiry counts.
    """
    return Job(
        command.id,
        command.tier,
        command.key,
        command.batch_key,
        command.step_plan,
        command.resolved,
        expires=float("inf") if command.expires_in is None else now + command.expires_in,
        format=command.format,
        preview_steps=preview_steps(command.previews, len(command.step_plan.rows)),
        is_prompt_truncated=not fits_tokenizers(pipeline, command.resolved.request),
        is_alone=command.is_alone,
    )


def fits_tokenizers(pipeline: Pipeline, request: ImageRequest) -> bool:
    """Return whether all tokenizers of the pipeline read the whole prompt and negative prompt of the request."""
    texts = (request.prompt, request.negative_prompt)
    return all(tokenizer.fits(text) for tokenizer in pipeline.tokenizers.values() for text in texts)


def preview_steps(count: int, evaluations: int) -> frozenset[int]:
    """Return the numbers of completed evaluations after which previews are made, evenly spread.

    Args:
        count: number of previews; fewer are made where the picture has too few evaluations.
        evaluations: number of evaluations of the picture. No preview is made before the first or after the last one.

    >>> sorted(preview_steps(3, 8)), sorted(preview_steps(3, 2))
    ([2, 4, 6], [1])
    """
    return frozenset(part * evaluations // (count + 1) for part in range(1, count + 1)) - {0}


def measure_curves(pipelines: PipelineCache) -> dict[BatchKey, LatencyCurve]:
    """Measure every pipeline at its default image size, and return latency curves by pipeline and image size."""
    curves = {}
    for name in pipelines:
        pipeline = pipelines[name]
        defaults = pipeline.manifest.defaults
        batch_key = BatchKey(name, defaults.width, defaults.height)
        curves[batch_key] = measure_latency_curve(pipeline, batch_key)
    return curves


def open_networks(pipelines: PipelineCache) -> None:
    """Open the networks of every pipeline at its default size, so that no picture waits for that."""
    for name in pipelines:
        defaults = pipelines[name].manifest.defaults
        measure_latency_curve(pipelines[name], BatchKey(name, defaults.width, defaults.height), batches=(1,), calls=1)


def main() -> None:
    """Run the worker process: receive the `WorkerConfig`, then serve requests until the server is gone."""
    channel: Channel[Event, WorkerConfig | Command] = connect_to_parent(WorkerConfig | Command)
    # A worker ignores Ctrl-C and SIGTERM, which service managers send to all processes of a service, because the server
    # decides when the worker ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The warning is not printed, because it contains a part of the prompt, and prompts must not be logged. The response
    # tells the client that the prompt was truncated.
    warnings.simplefilter("ignore", PromptTruncated)
    with suppress(TransportClosed):
        config = channel.receive()
        assert isinstance(config, WorkerConfig)
        _serve(channel, config)


def _serve(channel: Channel[Event, WorkerConfig | Command], config: WorkerConfig) -> None:
    """Open the pipelines, measure them unless the config brings latencies, and serve requests until the server is gone.

    Where a pipeline cannot be opened, send `WorkerFailed` and return.
    """
    pipelines = PipelineCache(lambda name: _open_pipeline(config, name), tuple(config.pipelines), config.memory)
    try:
        with _report_opening(channel):
            curves = dict(config.curves)
            if curves:
                open_networks(pipelines)
            else:
                curves = measure_curves(pipelines)
    except StillhouseError as error:
        channel.send(WorkerFailed(str(error)))
        return
    channel.send(Ready(list(curves.items())))
    executor = PipelineExecutor(pipelines)
    Worker(channel, Engine(executor, POLICIES[config.policy], CostModel(curves), time.monotonic), pipelines).run()


@contextmanager
def _report_opening(channel: Channel[Event, WorkerConfig | Command]) -> Iterator[None]:
    """Tell the server about once a second that this process lives, from a thread of its own."""
    is_open = threading.Event()

    def report() -> None:
        with suppress(TransportClosed):
            while not is_open.wait(OPENING_SECONDS):
                channel.send(Opening())

    thread = threading.Thread(target=report, name="opening", daemon=True)
    channel.send(Opening())
    thread.start()
    try:
        yield
    finally:
        is_open.set()
        thread.join()


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
    # `os._exit` ends the process at once. A normal exit could block, because runtimes may wait for their threads.
    os._exit(0)
