"""Preview images of a training stage."""

import numpy as np

from stillhouse.core import Picture
from stillhouse.distill.training.distillation_stage import DistillationStage
from stillhouse.distill.training.dmd import DistributionMatching
from stillhouse.distill.training.trajectory_regression import TrajectoryRegressionStage
from stillhouse.pipelines.pipeline import Pipeline

PREVIEW_COUNT = 8


def render_preview_grid(
    stage: DistillationStage | TrajectoryRegressionStage | DistributionMatching, pipeline: Pipeline
) -> Picture:
    """Render a row of the teacher's pictures above a row of the student's pictures from the same noise.

    Args:
        stage: training stage, whose student has the current weights; its first evaluation samples are rendered.
        pipeline: decodes the latents.

    Returns:
        uint8 [2 * height, PREVIEW_COUNT * width, 3].
    """
    student, teacher = (latents[:PREVIEW_COUNT] for latents in stage.rollouts(max(PREVIEW_COUNT, stage.eval_samples)))
    rows = [
        np.concatenate([pipeline.decode(latent.numpy()) for latent in latents.cpu()], axis=1)
        for latents in (teacher, student)
    ]
    return np.concatenate(rows)
