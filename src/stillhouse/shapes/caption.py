"""Captions of scenes: their structure, their text, and the split into training and held-out captions.

Grammar: `a [size] [colour] <shape> [<relation> a [size] [colour] <shape>] [on a <colour> background]`.
Parts in brackets are optional. A picture may show anything that the caption leaves out.
"""

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from stillhouse.shapes.scene import Scene, sample_scene

_KEEP_SIZE, _KEEP_COLOUR, _KEEP_BACKGROUND = 0.75, 0.9, 0.75
_HELD_OUT_SHARE = 10


@dataclass(frozen=True, slots=True)
class Phrase:
    """Description of one figure in a caption; an attribute that the caption does not mention is None."""

    shape: str
    colour: str | None = None
    size: str | None = None

    def __str__(self) -> str:
        return "a " + " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True, slots=True)
class Description:
    """A caption in structured form; `str` gives its text. Two phrases always have a relation."""

    phrases: tuple[Phrase, ...]
    relation: str | None = None
    background: str | None = None

    def __str__(self) -> str:
        text = f" {self.relation} ".join(map(str, self.phrases))
        return f"{text} on a {self.background} background" if self.background else text


def describe(scene: Scene) -> Description:
    """Return the caption that mentions every attribute of a scene."""
    phrases = tuple(Phrase(f.shape, f.colour, f.size) for f in scene.figures)
    return Description(phrases, scene.relation, scene.background)


def drop_words(description: Description, rng: np.random.Generator) -> Description:
    """Return a caption with words dropped at random: each size and the background with 25 %, each colour with 10 %."""

    def maybe(word: str | None, share: float) -> str | None:
        return word if rng.random() < share else None

    phrases = tuple(
        Phrase(p.shape, maybe(p.colour, _KEEP_COLOUR), maybe(p.size, _KEEP_SIZE)) for p in description.phrases
    )
    return Description(phrases, description.relation, maybe(description.background, _KEEP_BACKGROUND))


def is_held_out(text: str) -> bool:
    """Return whether a caption is among the tenth of all captions that training never uses (CRC-32 modulo 10)."""
    return crc32(text.encode()) % _HELD_OUT_SHARE == 0


def sample_training_caption(scene: Scene, rng: np.random.Generator) -> Description | None:
    """Return a caption of the scene that is not held out, or None if eight random captions are all held out."""
    candidates = (drop_words(describe(scene), rng) for _ in range(8))
    return next((caption for caption in candidates if not is_held_out(str(caption))), None)


def random_training_caption(rng: np.random.Generator) -> str:
    """Return a random scene's caption that is not held out."""
    while True:
        caption = sample_training_caption(sample_scene(rng), rng)
        if caption is not None:
            return str(caption)


def sample_held_out(rng: np.random.Generator) -> tuple[Scene, Description]:
    """Return a random scene and a held-out caption that describes it."""
    while True:
        scene = sample_scene(rng)
        caption = drop_words(describe(scene), rng)
        if is_held_out(str(caption)):
            return scene, caption


def random_captions(count: int, seed: int) -> list[str]:
    """Return captions of random scenes, decided by the seed; some of them may be held out."""
    rng = np.random.default_rng(seed)
    return [str(describe(sample_scene(rng))) for _ in range(count)]
