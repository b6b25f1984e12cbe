"""A strip: what a student draws while it learns, below what its teacher draws from the same noise."""

import numpy as np

from stillhouse.core import Picture
from stillhouse.distill.training.dmd import MatchLesson
from stillhouse.distill.training.stage import Lesson
from stillhouse.distill.training.trajectory_regression import WalkLesson
from stillhouse.pipelines.pipeline import Pipeline

SHOWN = 8


def strip(lesson: Lesson | WalkLesson | MatchLesson, pipeline: Pipeline) -> Picture:
    """The teacher's pictures, and the student's below them: uint8 [2 * height, SHOWN * width, 3].

    Args:
        lesson: whose student, with the weights of the moment, and teacher; the first pictures that it is judged by.
        pipeline: decodes.
    """
    ours, theirs = (latents[:SHOWN] for latents in lesson.endings(max(SHOWN, lesson.judged)))
    rows = [
        np.concatenate([pipeline.decode(one.numpy()) for one in latents.cpu()], axis=1) for latents in (theirs, ours)
    ]
    return np.concatenate(rows)
