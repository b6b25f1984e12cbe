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
from stillhouse.serve.engine.cost import Cost, Curve
from stillhouse.serve.engine.engine import End, Engine, Tick
from stillhouse.serve.engine.executor import Drawing, drafted, group_of, measured, walk_of
from stillhouse.serve.engine.job import Group, Job
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.worker.decode_thread import Finished, Finisher, Seen
from stillhouse.serve.worker.messages import (
    Asked,
    Broken,
    Cancel,
    Closed,
    Draw,
    Ended,
    Moved,
    Opening,
    Preview,
    Ready,
    Ticked,
    Told,
    decode_asked,
    decode_opening,
    encode,
)
from stillhouse.serve.worker.pipeline_cache import Residents
from stillhouse.serve.worker.traceback_summary import way_to
from stillhouse.workers.lifetime import end_with_parent

OFTEN = 0.1
"""Seconds after which the server hears of a tick; it also does whenever it hears of anything else. A picture's last
tick is thus told with the picture: told before, it would wake the server while the picture is decoded."""


@dataclass(slots=True)
class _Told:
    """What is known of a job beside what the engine knows."""

    asked: Draw
    previews: frozenset[int]
    is_cut: bool
    begun: float = 0.0
    denoised: float = 0.0
    peers: int = 0
    ticks: int = 0


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
    pipelines: Residents
    _jobs: dict[str, tuple[Job, _Told]] = field(default_factory=dict)
    _moves: list[Moved] = field(default_factory=list)
    _untold: float = 0.0
    _finisher: Finisher = field(init=False)
    _sending: Lock = field(default_factory=Lock)
    _news: select.poll = field(default_factory=select.poll)

    def __post_init__(self) -> None:
        self._news.register(self.connection, select.POLLIN)  # Connection.poll would do this anew for each tick
        self._finisher = Finisher(self._decoded)

    def run(self) -> None:
        """Draw until the server is gone."""
        self._finisher.start()
        try:
            while True:
                self._listen()
                if self.engine.jobs:
                    self._tick()
        except (EOFError, ConnectionError):
            return

    def _listen(self) -> None:
        """Take everything that was asked; wait where there is nothing else to do."""
        while self._news.poll(0 if self.engine.jobs else None):
            self._take(decode_asked(self.connection.recv_bytes()))

    def _take(self, asked: Asked) -> None:
        if isinstance(asked, Cancel):
            self._finisher.forget(asked.id)
            if end := self.engine.cancel(asked.id):
                self._end(end)
            return
        try:
            pipeline = self.pipelines[asked.pipeline]
            walk = walk_of(pipeline.manifest, asked.request)
            group = group_of(asked.pipeline, asked.request)
            expires = float("inf") if asked.expires is None else asked.expires
            job = Job(asked.id, asked.tier, asked.key, group, walk, asked.request, expires)
            is_cut = not reads_all(pipeline, asked.request)
            self.engine.submit(job)
        except StillhouseError as error:
            self._tell(Ended(asked.id, _failed(error)))
            return
        self._jobs[asked.id] = job, _Told(asked, previews_at(asked.previews, len(walk.rows)), is_cut)

    def _tick(self) -> None:
        began = time.monotonic()
        tick = self.engine.tick()
        if tick.moved:
            moved = self._moved(tick)
            with self._sending:
                self._untold = self._untold if self._moves else began
                self._moves.append(moved)
        for job in tick.moved:
            told = self._jobs[job.id][1]
            told.begun = told.begun or began
            told.ticks += 1
            told.peers += len(tick.moved) - 1
            told.denoised = time.monotonic()
            if job.index in told.previews and not job.is_done:
                self._finisher.preview(job.id, self.pipelines[job.group.pipeline], drafted(job))
        for end in tick.ends:
            self._end(end)
        if self._moves and began - self._untold >= OFTEN:
            self._tell()
        if any(job.index == 1 for job in tick.moved):
            self.pipelines.fit()  # networks are opened when they are first fed

    def _moved(self, tick: Tick) -> Moved:
        group = tick.moved[0].group
        rows = sum(job.walk.rows[job.index - 1] for job in tick.moved)
        pace = self.engine.cost.pace.get(group, 1.0)
        return Moved([job.id for job in tick.moved], group, rows, tick.seconds, pace)

    def _end(self, end: End) -> None:
        job, told = self._jobs[end.job.id]
        if end.outcome == "drawn":
            self._finisher.finish(job.id, self.pipelines[job.group.pipeline], end.result, told.asked.format)
            return
        del self._jobs[job.id]
        self._finisher.forget(job.id)
        self._tell(Ended(job.id, _failed(end.error) if end.error else Closed(end.outcome)))

    def _decoded(self, one: Finished | Seen) -> None:
        """In the finisher's thread."""
        if isinstance(one, Seen):
            self._tell(Preview(one.id, one.index, one.content))
            return
        job, told = self._jobs.pop(one.id)
        closed = replace(
            _failed(one.error) if one.error else Closed("drawn", one.content),
            waited=told.begun - job.arrived,
            denoised=told.denoised - told.begun,
            finished=time.monotonic() - told.denoised,
            peers=told.peers / told.ticks,
            is_cut=told.is_cut,
        )
        self._tell(Ended(one.id, closed))

    def _tell(self, *news: Told) -> None:
        """Tell the ticks that were not told yet, and then the news."""
        with self._sending:
            moves, self._moves = self._moves, []
            for told in (Ticked(moves), *news) if moves else news:
                self.connection.send_bytes(encode(told))


def _failed(error: StillhouseError) -> Closed:
    closed = Closed("failed", error=str(error), fault=type(error).__name__, way=way_to(error))
    # The frames on the way hold arrays, and the error.
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return closed


def reads_all(pipeline: Pipeline, request: ImageRequest) -> bool:
    """Whether nothing of the prompts is cut off."""
    texts = (request.prompt, request.negative_prompt)
    return all(tokenizer.fits(text) for tokenizer in pipeline.tokenizers for text in texts)


def previews_at(count: int, evaluations: int) -> frozenset[int]:
    """After which evaluations a picture is shown, if it is shown so many times before it is done.

    >>> sorted(previews_at(3, 8)), sorted(previews_at(3, 2))
    ([2, 4, 6], [1])
    """
    return frozenset(part * evaluations // (count + 1) for part in range(1, count + 1)) - {0}


def curves(pipelines: Residents) -> dict[Group, Curve]:
    """What pictures of every pipeline's own size cost here and now."""
    found = {}
    for name in pipelines:
        pipeline = pipelines[name]
        defaults = pipeline.manifest.defaults
        group = Group(name, defaults.width, defaults.height)
        found[group] = measured(pipeline, group)
    return found


def main() -> None:
    """Open, measure, and draw until the server is gone."""
    end_with_parent()
    # Ctrl-C reaches the whole group of processes, and so does what service managers send; the server decides when a
    # worker ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The client is told that its prompt is cut; the log is not, since prompts are nobody else's business.
    warnings.simplefilter("ignore", PromptTruncated)
    connection = Connection(int(sys.argv[1]))
    try:
        opening = decode_opening(connection.recv_bytes())
    except EOFError:
        return
    pipelines = Residents(lambda name: _opened(opening, name), tuple(opening.pipelines), opening.memory)
    try:
        found = dict(opening.curves) or curves(pipelines)
    except StillhouseError as error:
        connection.send_bytes(encode(Broken(str(error))))
        return
    connection.send_bytes(encode(Ready(list(found.items()))))
    engine = Engine(Drawing(pipelines, _undecoded), POLICIES[opening.policy], Cost(found), time.monotonic)
    Worker(connection, engine, pipelines).run()


def _undecoded(pipeline: Pipeline, draft: ImageTrajectory) -> ImageTrajectory:
    """What the engine hands out: the finisher decodes it, beside the ticks.

    It is read between two of them: later, a GPU would end the next one first.
    """
    draft.latents = pipeline.arrays.read(draft.latents)
    return draft


def _opened(opening: Opening, name: str) -> Pipeline:
    return load(
        opening.pipelines[name],
        backend=opening.backend,
        precision=opening.precision,
        threads=opening.threads,
        cache=Path(opening.cache) if opening.cache else None,
    )


if __name__ == "__main__":
    main()
    # Runtimes may wait for their threads at exit, and nothing is left to be written.
    os._exit(0)
