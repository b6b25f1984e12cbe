"""Sample pictures of a candidate: read from the file that its process wrote, and written as PNGs for the report."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.accelerate.evaluation.candidate_worker import PICTURES_FILE
from stillhouse.accelerate.records.report import relative_path
from stillhouse.core import Array
from stillhouse.images.files import write_png

SAMPLE_COUNT = 4
"""Maximum number of sample pictures that the report shows of a candidate."""


@dataclass(frozen=True, slots=True, eq=False)
class CandidateSamples:
    """Pictures generated with a candidate (configuration to measure), and their latents.

    Args:
        pictures: uint8 [P, H, W, 3].
        latents: latents of the pictures after the last step, float32 [P, C, h, w].
    """

    pictures: NDArray[np.uint8]
    latents: Array


def read_candidate_samples(folder: Path) -> CandidateSamples:
    """Return the pictures and latents in the folder of a candidate's process, as the process generated them last."""
    with np.load(folder / PICTURES_FILE, allow_pickle=False) as stored:
        return CandidateSamples(stored["pictures"], stored["latents"])


def write_sample_images(folder: Path, samples: CandidateSamples, root: Path) -> tuple[str, ...]:
    """Write the first SAMPLE_COUNT pictures of a candidate as PNGs into a folder.

    Returns:
        the paths of the files relative to the directory `root`.
    """
    files = []
    for number, picture in enumerate(samples.pictures[:SAMPLE_COUNT]):
        path = folder / f"picture-{number}.png"
        write_png(path, picture)
        files.append(relative_path(path, root))
    return tuple(files)
