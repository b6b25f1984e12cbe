"""Preview images of a stage in training."""

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
    """Render pictures of the teacher above those of the student from the same noise.

    Args:
        stage: its student with the current weights, and its teacher; the first evaluation samples are rendered.
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
