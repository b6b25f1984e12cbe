"""One step of a batch in plain arithmetic: guidance, the denoised picture, extrapolation, and the sampler's step.

The inputs are the network's outputs for the branches of a picture, the base b first, and the picture's latents z:

    guided   = b + sum of weight * (branch - b)                  see `guidance`
    denoised = of_z * z + of_output * guided                     see `prediction.denoised_weights`
    x0       = denoised + extrapolation * (denoised - previous)  DPM-Solver++ 2M; extrapolation is 0 elsewhere
    stepped  = z_weight * z + x0_weight * x0                     see `combine`

Samplers that estimate x0 in another way use only the denoised picture, and compute their step themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import Array
from stillhouse.diffusion.arrays import Arrays
from stillhouse.diffusion.tensor import Coefficient, Tensor

STEP_WEIGHTS = ("of_z", "of_output", "extrapolation", "z_weight", "x0_weight")
"""Names of the first five numbers in a picture's row of the weight table; its guidance weights follow them."""


@dataclass(frozen=True, slots=True)
class PictureStep:
    """The numbers with which one picture of a batch is guided and stepped.

    Args:
        rows: indices into the network's output: the row of the base branch, then the row of each other branch. A
            picture without guidance repeats its only row, with a guidance weight of 0.
        guidance: weight of the difference of each other branch from the base.
        weights: the five weights that `STEP_WEIGHTS` names, in that order.
    """

    rows: tuple[int, ...]
    guidance: tuple[float, ...]
    weights: tuple[Coefficient, ...]


def step_batch(
    z: Array, outputs: Array, steps: Sequence[PictureStep], previous: Array | None, arrays: Arrays
) -> tuple[Array, Array]:
    """Step each picture of a batch by one evaluation, with the fused kernel of `arrays` where one exists.

    Args:
        z: latents, float32 [P, C, h, w].
        outputs: outputs of the network, [R, C, h, w].
        steps: the step of each picture, in the order of `z`.
        previous: the denoised pictures of the previous evaluation, of the shape of z; None where no picture's
            extrapolation needs them.
        arrays: kind of all these arrays.

    Returns:
        the latents after the step and the denoised pictures, both of the shape of z.
    """
    rows, weights = _row_table(steps), _weight_table(steps)
    if arrays.fused_step is not None:
        pairs = None if _are_pairs(rows) else arrays.to_device(rows)
        stepped, denoised = arrays.fused_step(z, outputs, pairs, arrays.to_device(weights), previous)
        return stepped, denoised
    columns: Any = arrays.to_device(np.ascontiguousarray(weights.T)[..., None, None, None])
    of_z, of_output, extrapolation, z_weight, x0_weight = columns[: len(STEP_WEIGHTS)]
    guided = _guide_batch(outputs, steps, columns[len(STEP_WEIGHTS) :], rows, arrays)
    denoised = of_z * z + of_output * guided
    x0 = denoised if previous is None else denoised + extrapolation * (denoised - previous)
    return combine(z, x0, z_weight, x0_weight), denoised


def combine(z: Tensor, x0: Tensor, z_weight: Coefficient, x0_weight: Coefficient) -> Tensor:
    """Return z_weight * z + x0_weight * x0; weights are floats, or arrays with one weight for each picture."""
    return z * z_weight + x0 * x0_weight


def _guide_batch(
    outputs: Array, steps: Sequence[PictureStep], weights: Any, rows: NDArray[np.int32], arrays: Arrays
) -> Array:
    """Return the guided output of each picture, [P, C, h, w].

    Each further branch is added only for the pictures that have one. Other pictures do not change a picture's output.

    Args:
        outputs: outputs of the network, [R, C, h, w], arrays of the kind `arrays`.
        steps: the step of each picture.
        weights: guidance weights of all pictures, one array [P, 1, 1, 1] for each further branch, on the device.
        rows: indices in `outputs` of each picture's rows, the base branch first, int32 [P, 1 + T].
    """
    base, first = (outputs[places] for places in arrays.to_device(np.ascontiguousarray(rows.T[:2])))
    guided: Array = base + (first - base) * weights[0]
    for term in range(1, len(weights)):
        pictures = np.array([index for index, step in enumerate(steps) if len(step.guidance) > term])
        places, branch = arrays.to_device(pictures), arrays.to_device(rows[pictures, term + 1])
        guided[places] = guided[places] + (outputs[branch] - base[places]) * weights[term][places]
    return guided


def _row_table(steps: Sequence[PictureStep]) -> NDArray[np.int32]:
    """Return the indices of each picture's outputs, base first, int32 [P, 1 + T], for at most T further branches.

    A picture with fewer branches repeats the index of its base.
    """
    longest = max(len(step.rows) for step in steps)
    return np.array([step.rows + step.rows[:1] * (longest - len(step.rows)) for step in steps], np.int32)


def _weight_table(steps: Sequence[PictureStep]) -> NDArray[np.float32]:
    """Return the weights of each picture, float32 [P, 5 + T]: `STEP_WEIGHTS`, then at most T guidance weights.

    The weight is 0 for branches that a picture does not have.
    """
    longest = max(len(step.guidance) for step in steps)
    return np.array(
        [step.weights + step.guidance + (0.0,) * (longest - len(step.guidance)) for step in steps], np.float32
    )


def _are_pairs(rows: NDArray[np.int32]) -> bool:
    """Return whether each picture i has exactly the rows 2 * i and 2 * i + 1 in the row table `rows`, [P, 1 + T]."""
    return rows.shape[1] == 2 and bool((rows.ravel() == np.arange(rows.size)).all())
