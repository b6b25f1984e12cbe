"""Captions of scenes (pictures of one or two geometric figures), split into training and held-out captions.

Grammar: `a [size] [colour] <shape> [<relation> a [size] [colour] <shape>] [on a <colour> background]`.
Parts in square brackets are optional. Where a caption leaves out a property, the picture may have any value of it.
"""

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from stillhouse.shapes.scene import Scene, sample_scene

_KEEP_SIZE, _KEEP_COLOUR, _KEEP_BACKGROUND = 0.75, 0.9, 0.75
_HELD_OUT_SHARE = 10


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words of a caption that describe one figure; colour or size is None where the caption does not mention it."""

    shape: str
    colour: str | None = None
    size: str | None = None

    def __str__(self) -> str:
        return "a " + " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True, slots=True)
class Description:
    """A caption in structured form; `str` returns its text.

    Args:
        phrases: words that describe each of the one or two figures.
        relation: position of the first figure relative to the second, such as "left of"; None for one figure.
        background: colour of the background; None where the caption does not mention it.
    """

    phrases: tuple[Phrase, ...]
    relation: str | None = None
    background: str | None = None

    def __str__(self) -> str:
        text = f" {self.relation} ".join(map(str, self.phrases))
        return f"{text} on a {self.background} background" if self.background else text


def describe(scene: Scene) -> Description:
    """Return the caption that mentions everything about a scene: shapes, colours, sizes, relation and background."""
    phrases = tuple(Phrase(f.shape, f.colour, f.size) for f in scene.figures)
    return Description(phrases, scene.relation, scene.background)


def drop_words(description: Description, rng: np.random.Generator) -> Description:
    """Return a copy of a caption in which words are left out at random.

    Each size and the background is left out with a probability of 25 %, each figure's colour with 10 %.
    """

    def maybe(word: str | None, share: float) -> str | None:
        return word if rng.random() < share else None

    phrases = tuple(
        Phrase(p.shape, maybe(p.colour, _KEEP_COLOUR), maybe(p.size, _KEEP_SIZE)) for p in description.phrases
    )
    return Description(phrases, description.relation, maybe(description.background, _KEEP_BACKGROUND))


def is_held_out(text: str) -> bool:
    """Return whether a caption belongs to the tenth of all captions that training never uses (CRC-32 modulo 10)."""
    return crc32(text.encode()) % _HELD_OUT_SHARE == 0


def sample_training_caption(scene: Scene, rng: np.random.Generator) -> Description | None:
    """Return a random caption of a scene for training, or None if eight random captions are all held out.

    A held-out caption is used for evaluation only.
    """
    candidates = (drop_words(describe(scene), rng) for _ in range(8))
    return next((caption for caption in candidates if not is_held_out(str(caption))), None)


def random_training_caption(rng: np.random.Generator) -> str:
    """Return the text of a random caption of a random scene; captions held out for evaluation are never drawn."""
    while True:
        caption = sample_training_caption(sample_scene(rng), rng)
        if caption is not None:
            return str(caption)


def sample_held_out(rng: np.random.Generator) -> tuple[Scene, Description]:
    """Return a random scene with a caption that describes it and that training never uses."""
    while True:
        scene = sample_scene(rng)
        caption = drop_words(describe(scene), rng)
        if is_held_out(str(caption)):
            return scene, caption


def random_captions(count: int, seed: int) -> list[str]:
    """Return the texts of `count` captions of random scenes, decided by the seed.

    Each caption mentions everything about its scene. Some captions may be held out from training.
    """
    rng = np.random.default_rng(seed)
    return [str(describe(sample_scene(rng))) for _ in range(count)]
