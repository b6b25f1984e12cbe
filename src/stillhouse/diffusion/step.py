"""A step of a batch in plain arithmetic: guidance, the clean picture, where to aim, and the move.

Of a network's two rows for a picture, without the prompt and with it, and of the picture z itself:

    guided = u + scale * (c - u)                            see `guidance.guide`
    clean  = of_z * z + of_output * guided                  see `prediction.denoised_weights`
    aim    = clean + reach * (clean - past)                 DPM-Solver++ 2M; reach is 0 elsewhere
    moved  = kept * z + gained * aim                        see `samplers.crossed`

Samplers that aim in another way take the clean picture from here, and move by themselves.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stillhouse.core import Array
from stillhouse.diffusion.arrays import Arrays
from stillhouse.diffusion.guidance import guide
from stillhouse.diffusion.samplers import combine
from stillhouse.diffusion.tensor import Coefficient

WEIGHTS = ("scale", "of_z", "of_output", "reach", "kept", "gained")
"""What each picture is told, in this order."""


def step_batch(
    z: Array,
    answers: Array,
    rows: Sequence[tuple[int, int]],
    weights: Sequence[Sequence[Coefficient]],
    past: Array | None,
    arrays: Arrays,
) -> tuple[Array, Array]:
    """Move each picture of a batch by one evaluation; in one pass, where `arrays` has a kernel for it.

    Args:
        z: pictures, float32 [P, C, h, w].
        answers: of the network, [R, C, h, w].
        rows: of each picture the row without its prompt, and the one with it; the same one twice where it is not
            guided.
        weights: of each picture, see `WEIGHTS`.
        past: the clean pictures of the evaluation before, as z; None where none counts.
        arrays: where all of it lies.

    Returns:
        the moved pictures and the clean ones, as z.
    """
    told = np.array(weights, np.float32)
    if arrays.fused is not None:
        places = None if _are_pairs(rows) else arrays.placed(np.array(rows, np.int32))
        moved, clean = arrays.fused(z, answers, places, arrays.placed(told), past)
        return moved, clean
    places = np.array(rows, np.int32)
    columns: Any = arrays.placed(told.T[..., None, None, None])
    scale, of_z, of_output, reach, kept, gained = columns
    without, prompted = (answers[one] for one in arrays.placed(np.ascontiguousarray(places.T)))
    clean = of_z * z + of_output * guide(prompted, without, scale)
    aim = clean if past is None else clean + reach * (clean - past)
    return combine(z, aim, kept, gained), clean


def _are_pairs(rows: Sequence[tuple[int, int]]) -> bool:
    return all(both == (2 * picture, 2 * picture + 1) for picture, both in enumerate(rows))
