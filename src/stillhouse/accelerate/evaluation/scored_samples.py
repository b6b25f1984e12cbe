"""Pictures of a pipeline candidate with the verdicts of a program (oracle), in memory and in a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stillhouse.accelerate.evaluation.sample_images import CandidateSamples

SCORED_FILE = "scored.npz"
"""Name of the file with the baseline's scored pictures, in the folder of its measurements."""


@dataclass(frozen=True, slots=True)
class ScoredSamples:
    """Pictures of one pipeline candidate.

    Args:
        samples: the pictures and their final latents.
        correct: for each picture, whether a program (oracle) finds that it shows what the prompt asks for; None: there
            is no such program for the model.
        strict: for each picture, whether it also has sharp edges and flat colours; None where `correct` is.
    """

    samples: CandidateSamples
    correct: tuple[bool, ...] | None
    strict: tuple[bool, ...] | None = None

    def head(self, count: int) -> "ScoredSamples":
        """Return the first `count` pictures with their latents and verdicts; all pictures where there are fewer."""
        samples = CandidateSamples(self.samples.pictures[:count], self.samples.latents[:count])
        return ScoredSamples(
            samples,
            None if self.correct is None else self.correct[:count],
            None if self.strict is None else self.strict[:count],
        )

    def concatenate(self, more: "ScoredSamples") -> "ScoredSamples":
        """Return these pictures followed by the pictures of `more`, which are of the same candidate."""
        pictures = np.concatenate([self.samples.pictures, more.samples.pictures])
        latents = np.concatenate([self.samples.latents, more.samples.latents])
        correct = None if self.correct is None or more.correct is None else self.correct + more.correct
        strict = None if self.strict is None or more.strict is None else self.strict + more.strict
        return ScoredSamples(CandidateSamples(pictures, latents), correct, strict)


def write_scored(path: Path, scored: ScoredSamples) -> None:
    """Write scored pictures to an .npz file: to a temporary file first, which then replaces an old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez(
        temporary,
        pictures=scored.samples.pictures,
        latents=scored.samples.latents,
        correct=np.array(scored.correct),
        strict=np.array(scored.strict),
    )
    temporary.replace(path)


def read_scored(path: Path) -> ScoredSamples:
    """Return the scored pictures of an .npz file that `write_scored` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        samples = CandidateSamples(stored["pictures"], stored["latents"])
        return ScoredSamples(samples, tuple(stored["correct"].tolist()), tuple(stored["strict"].tolist()))
