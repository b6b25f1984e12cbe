"""The process that draws: `python -m stillhouse.serve.worker.process FD`, where FD is one end of a pipe.

Its main thread is the engine's loop: read what was asked, tick, tell. A second one decodes. It ends when the other end
of the pipe does, and the system ends it with its parent.
"""

import os
import select
import signal
import sys
import time
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
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
    decode_command,
    decode_config,
    encode_message,
)
from stillhouse.serve.worker.pipeline_cache import PipelineCache
from stillhouse.serve.worker.traceback_summary import traceback_summary
from stillhouse.workers.lifetime import die_with_parent

REPORT_SECONDS = 0.1
"""Seconds after which the server hears of a tick; it also does whenever it hears of anything else. A picture's last
tick is thus told with the picture: told before, it would wake the server while the picture is decoded."""


@dataclass(slots=True)
class _RequestState:
    """What is known of a job beside what the engine knows."""

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
        connection: to the server.
        engine: draws.
        pipelines: what it draws with.
    """

    connection: Connection
    engine: Engine
    pipelines: PipelineCache
    _jobs: dict[str, tuple[Job, _RequestState]] = field(default_factory=dict)
    _steps: list[StepStats] = field(default_factory=list)
    _unreported_since: float = 0.0
    _decoder: DecodeThread = field(init=False)
    _send_lock: Lock = field(default_factory=Lock)
    _poll: select.poll = field(default_factory=select.poll)

    def __post_init__(self) -> None:
        self._poll.register(self.connection, select.POLLIN)  # Connection.poll would do this anew for each tick
        self._decoder = DecodeThread(self._on_decoded)

    def run(self) -> None:
        """Draw until the server is gone."""
        self._decoder.start()
        try:
            while True:
                self._receive()
                if self.engine.jobs:
                    self._step()
        except (EOFError, ConnectionError):
            return

    def _receive(self) -> None:
        """Take everything that was asked; wait where there is nothing else to do."""
        while self._poll.poll(0 if self.engine.jobs else None):
            self._handle_command(decode_command(self.connection.recv_bytes()))

    def _handle_command(self, command: Command) -> None:
        if isinstance(command, Cancel):
            self._decoder.drop_preview(command.id)
            if end := self.engine.cancel(command.id):
                self._finish(end)
            return
        try:
            pipeline = self.pipelines[command.pipeline]
            walk = plan_steps(pipeline.manifest, command.resolved)
            group = make_batch_key(command.pipeline, command.resolved)
            expires = float("inf") if command.expires is None else command.expires
            job = Job(command.id, command.tier, command.key, group, walk, command.resolved, expires)
            is_cut = not fits_tokenizers(pipeline, command.resolved.request)
            self.engine.submit(job)
        except StillhouseError as error:
            self._send(OutputEvent(command.id, _failed_output(error)))
            return
        self._jobs[command.id] = job, _RequestState(command, preview_steps(command.previews, len(walk.rows)), is_cut)

    def _step(self) -> None:
        began = time.monotonic()
        tick = self.engine.step()
        if tick.jobs:
            moved = self._step_stats(tick)
            with self._send_lock:
                self._unreported_since = self._unreported_since if self._steps else began
                self._steps.append(moved)
        for job in tick.jobs:
            told = self._jobs[job.id][1]
            told.started = told.started or began
            told.steps += 1
            told.batch_peers += len(tick.jobs) - 1
            told.last_step = time.monotonic()
            if job.index in told.previews and not job.is_done:
                self._decoder.submit_preview(job.id, self.pipelines[job.batch_key.pipeline], trajectory_of(job))
        for end in tick.finished:
            self._finish(end)
        if self._steps and began - self._unreported_since >= REPORT_SECONDS:
            self._send()
        if any(job.index == 1 for job in tick.jobs):
            self.pipelines.evict()  # networks are opened when they are first fed

    def _step_stats(self, step: StepOutput) -> StepStats:
        group = step.jobs[0].batch_key
        rows = sum(job.step_plan.rows[job.index - 1] for job in step.jobs)
        pace = self.engine.cost_model.slowdowns.get(group, 1.0)
        return StepStats([job.id for job in step.jobs], group, rows, step.seconds, pace)

    def _finish(self, finished: FinishedJob) -> None:
        job, told = self._jobs[finished.job.id]
        if finished.finish_reason == "drawn":
            self._decoder.submit(job.id, self.pipelines[job.batch_key.pipeline], finished.result, told.command.format)
            return
        del self._jobs[job.id]
        self._decoder.drop_preview(job.id)
        self._send(
            OutputEvent(
                job.id, _failed_output(finished.error) if finished.error else RequestOutput(finished.finish_reason)
            )
        )

    def _on_decoded(self, decoded: DecodedImage | DecodedPreview) -> None:
        """In the finisher's thread."""
        if isinstance(decoded, DecodedPreview):
            self._send(Preview(decoded.id, decoded.index, decoded.content))
            return
        job, told = self._jobs.pop(decoded.id)
        closed = replace(
            _failed_output(decoded.error) if decoded.error else RequestOutput("drawn", decoded.content),
            waited=told.started - job.arrived,
            denoised=told.last_step - told.started,
            finished=time.monotonic() - told.last_step,
            peers=told.batch_peers / told.steps,
            is_cut=told.is_prompt_truncated,
        )
        self._send(OutputEvent(decoded.id, closed))

    def _send(self, *news: Event) -> None:
        """Tell the ticks that were not told yet, and then the news."""
        with self._send_lock:
            moves, self._steps = self._steps, []
            for told in (StepReport(moves), *news) if moves else news:
                self.connection.send_bytes(encode_message(told))


def _failed_output(error: StillhouseError) -> RequestOutput:
    closed = RequestOutput(
        "failed", error=str(error), error_type=type(error).__name__, traceback_summary=traceback_summary(error)
    )
    # The frames on the way hold arrays, and the error.
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return closed


def fits_tokenizers(pipeline: Pipeline, request: ImageRequest) -> bool:
    """Whether nothing of the prompts is cut off."""
    texts = (request.prompt, request.negative_prompt)
    return all(tokenizer.fits(text) for tokenizer in pipeline.tokenizers.values() for text in texts)


def preview_steps(count: int, evaluations: int) -> frozenset[int]:
    """After which evaluations a picture is shown, if it is shown so many times before it is done.

    >>> sorted(previews_at(3, 8)), sorted(previews_at(3, 2))
    ([2, 4, 6], [1])
    """
    return frozenset(part * evaluations // (count + 1) for part in range(1, count + 1)) - {0}


def measure_curves(pipelines: PipelineCache) -> dict[BatchKey, LatencyCurve]:
    """What pictures of every pipeline's own size cost here and now."""
    found = {}
    for name in pipelines:
        pipeline = pipelines[name]
        defaults = pipeline.manifest.defaults
        group = BatchKey(name, defaults.width, defaults.height)
        found[group] = measure_latency_curve(pipeline, group)
    return found


def main() -> None:
    """Open, measure, and draw until the server is gone."""
    die_with_parent()
    # Ctrl-C reaches the whole group of processes, and so does what service managers send; the server decides when a
    # worker ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The client is told that its prompt is cut; the log is not, since prompts are nobody else's business.
    warnings.simplefilter("ignore", PromptTruncated)
    connection = Connection(int(sys.argv[1]))
    try:
        opening = decode_config(connection.recv_bytes())
    except EOFError:
        return
    pipelines = PipelineCache(lambda name: _open_pipeline(opening, name), tuple(opening.pipelines), opening.memory)
    try:
        found = dict(opening.curves) or measure_curves(pipelines)
    except StillhouseError as error:
        connection.send_bytes(encode_message(WorkerFailed(str(error))))
        return
    connection.send_bytes(encode_message(Ready(list(found.items()))))
    engine = Engine(
        PipelineExecutor(pipelines, _read_latents), POLICIES[opening.policy], CostModel(found), time.monotonic
    )
    Worker(connection, engine, pipelines).run()


def _read_latents(pipeline: Pipeline, trajectory: ImageTrajectory) -> ImageTrajectory:
    """What the engine hands out: the finisher decodes it, beside the ticks.

    It is read between two of them: later, a GPU would end the next one first.
    """
    trajectory.latents = pipeline.arrays.to_numpy(trajectory.latents)
    return trajectory


def _open_pipeline(config: WorkerConfig, name: str) -> Pipeline:
    return load(
        config.pipelines[name],
        backend=config.backend,
        precision=config.precision,
        threads=config.threads,
        cache=Path(config.cache) if config.cache else None,
    )


if __name__ == "__main__":
    main()
    # Runtimes may wait for their threads at exit, and nothing is left to be written.
    os._exit(0)
