"""A strip: what a student draws while it learns, below what its teacher draws from the same noise."""

import numpy as np

from stillhouse.core import Picture
from stillhouse.distill.training.dmd import DistributionMatching
from stillhouse.distill.training.stage import DistillationStage
from stillhouse.distill.training.trajectory_regression import TrajectoryRegressionStage
from stillhouse.pipelines.pipeline import Pipeline

PREVIEW_COUNT = 8


def render_preview_grid(
    stage: DistillationStage | TrajectoryRegressionStage | DistributionMatching, pipeline: Pipeline
) -> Picture:
    """The teacher's pictures, and the student's below them: uint8 [2 * height, SHOWN * width, 3].

    Args:
        lesson: whose student, with the weights of the moment, and teacher; the first pictures that it is judged by.
        pipeline: decodes.
    """
    ours, theirs = (latents[:PREVIEW_COUNT] for latents in stage.rollouts(max(PREVIEW_COUNT, stage.eval_samples)))
    rows = [
        np.concatenate([pipeline.decode(one.numpy()) for one in latents.cpu()], axis=1) for latents in (theirs, ours)
    ]
    return np.concatenate(rows)
