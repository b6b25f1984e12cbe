"""The device that draws: pipelines, advanced together where they are the same, and what they cost, measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

from stillhouse.core import ImageRequest
from stillhouse.models.manifest import Manifest
from stillhouse.models.pipeline import Draft, Pipeline
from stillhouse.models.request import course_of
from stillhouse.serve.engine.cost import Curve
from stillhouse.serve.engine.job import Group, Job, Walk

BATCHES = (1, 2, 4, 8)
"""Rows whose seconds are measured."""
LONG = 2.0
"""Seconds of a call that is measured once."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """`engine.Device` over pipelines in this process, by name.

    Args:
        pipelines: by name.
        finished: what is handed out of a picture that is done; by default it is decoded.
    """

    pipelines: Mapping[str, Pipeline]
    finished: Callable[[Pipeline, Draft], Any] = Pipeline.finish

    def begin(self, job: Job) -> None:
        """Encode the prompt, lay out the latents."""
        job.draft = self.pipelines[job.group.pipeline].start(job.request)

    def advance(self, jobs: Sequence[Job]) -> None:
        """Move every picture by one evaluation, in one batch."""
        self.pipelines[jobs[0].group.pipeline].advance([drafted(job) for job in jobs])

    def finish(self, job: Job) -> Any:
        """Hand the picture out."""
        return self.finished(self.pipelines[job.group.pipeline], drafted(job))


def drafted(job: Job) -> Draft:
    """The picture of a job that has begun."""
    assert isinstance(job.draft, Draft)
    return job.draft


def group_of(name: str, request: ImageRequest) -> Group:
    """The group of a resolved request for the pipeline of that name."""
    assert request.width is not None and request.height is not None
    return Group(name, request.width, request.height)


def walk_of(manifest: Manifest, request: ImageRequest) -> Walk:
    """The evaluations of a resolved request, as `Trajectory.rows` will tell them one by one.

    Raises:
        InvalidRequest: what the pipeline cannot do.
    """
    course = course_of(manifest, request)
    return Walk(tuple(1 + course.is_guided(evaluation) for evaluation in course.plan()))


def measured(pipeline: Pipeline, group: Group, batches: Sequence[int] = BATCHES, calls: int = 3) -> Curve:
    """What pictures of this size cost here and now: the median of some calls, after one that is not counted.

    A batch that is no better than the one before it ends the measurement, because larger ones are not used then; of
    what takes longer than `LONG` one call is enough.
    """
    request = ImageRequest("", steps=calls + 1, guidance=1.0, width=group.width, height=group.height, refresh=1)
    seconds: dict[int, float] = {}
    for rows in batches:
        drafts = [pipeline.start(request) for _ in range(rows)]
        first = _seconds(pipeline, drafts)
        seconds[rows] = first if first > LONG else median(_seconds(pipeline, drafts) for _ in range(calls))
        if rows > 2 and Curve(seconds).cap < rows:
            break
    began = perf_counter()
    pipeline.start(ImageRequest("new", width=group.width, height=group.height))
    begun = perf_counter()
    pipeline.decode(drafts[0].latents)
    return Curve(seconds, begin=begun - began, finish=perf_counter() - begun)


def _seconds(pipeline: Pipeline, drafts: Sequence[Draft]) -> float:
    began = perf_counter()
    pipeline.advance(drafts)
    return perf_counter() - began
