"""Render preview images during the training of a student."""

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
        stage: the student's training; the pictures are the first 8 of its evaluation, made with the current weights.
        pipeline: pipeline whose autoencoder decodes the latents.

    Returns:
        one picture, uint8 [2 * height, 8 * width, 3].
    """
    student, teacher = (latents[:PREVIEW_COUNT] for latents in stage.rollouts(max(PREVIEW_COUNT, stage.eval_samples)))
    rows = [
        np.concatenate([pipeline.decode(latent.numpy()) for latent in latents.cpu()], axis=1)
        for latents in (teacher, student)
    ]
    return np.concatenate(rows)
