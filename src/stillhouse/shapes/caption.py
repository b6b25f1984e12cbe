"""What is said about a scene: phrases, their text, and reading that text back.

Grammar: `a [size] [colour] <shape> [<relation> a [size] [colour] <shape>] [on a <colour> background]`.
Words in brackets may be left out; what is left out is free, and no judge may hold it against a picture.
"""

import re
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from stillhouse.errors import InvalidRequest
from stillhouse.shapes.scene import PALETTE, RELATIONS, SHAPES, SIZES, Scene, sample_scene

_KEEP_SIZE, _KEEP_COLOUR, _KEEP_BACKGROUND = 0.75, 0.9, 0.75
_HELD_OUT_SHARE = 10


@dataclass(frozen=True, slots=True)
class Phrase:
    """What a caption says about one figure; None where it says nothing."""

    shape: str
    colour: str | None = None
    size: str | None = None

    def __str__(self) -> str:
        return "a " + " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True, slots=True)
class Description:
    """What a caption says about a scene. Two phrases always come with a relation."""

    phrases: tuple[Phrase, ...]
    relation: str | None = None
    background: str | None = None

    def __str__(self) -> str:
        text = f" {self.relation} ".join(map(str, self.phrases))
        return f"{text} on a {self.background} background" if self.background else text


def describe(scene: Scene) -> Description:
    """The caption that leaves nothing out."""
    phrases = tuple(Phrase(f.shape, f.colour, f.size) for f in scene.figures)
    return Description(phrases, scene.relation, scene.background)


def drop_words(description: Description, rng: np.random.Generator) -> Description:
    """The same caption with words left out at random: sizes and background with 25 %, colours with 10 %."""

    def kept(word: str | None, share: float) -> str | None:
        return word if rng.random() < share else None

    phrases = tuple(
        Phrase(p.shape, kept(p.colour, _KEEP_COLOUR), kept(p.size, _KEEP_SIZE)) for p in description.phrases
    )
    return Description(phrases, description.relation, kept(description.background, _KEEP_BACKGROUND))


def is_held_out(text: str) -> bool:
    """Whether this caption belongs to the tenth of all captions that training never sees."""
    return crc32(text.encode()) % _HELD_OUT_SHARE == 0


def sample_training_caption(scene: Scene, rng: np.random.Generator) -> Description | None:
    """A caption of the scene that may be trained on, or None where eight tries are all held out."""
    tries = (drop_words(describe(scene), rng) for _ in range(8))
    return next((caption for caption in tries if not is_held_out(str(caption))), None)


def random_training_caption(rng: np.random.Generator) -> str:
    """A caption of a random scene that training may see."""
    while True:
        caption = sample_training_caption(sample_scene(rng), rng)
        if caption is not None:
            return str(caption)


def sample_held_out(rng: np.random.Generator) -> tuple[Scene, Description]:
    """A random scene with a caption of it that training never sees."""
    while True:
        scene = sample_scene(rng)
        caption = drop_words(describe(scene), rng)
        if is_held_out(str(caption)):
            return scene, caption


def random_captions(count: int, seed: int) -> list[str]:
    """Captions of random scenes, held out or not; the same for a seed."""
    rng = np.random.default_rng(seed)
    return [str(describe(sample_scene(rng))) for _ in range(count)]


def parse_caption(text: str) -> Description:
    """The description that a caption's text stands for.

    Raises:
        InvalidRequest: the text is outside the grammar.

    >>> read_caption("a small red circle above a cross on a white background").phrases[1]
    Phrase(shape='cross', colour=None, size=None)
    """
    match = _CAPTION.fullmatch(" ".join(text.lower().split()))
    if match is None:
        raise InvalidRequest(
            f"cannot read the caption {text!r}",
            allowed="a [size] [colour] shape [relation a [size] [colour] shape] [on a colour background], with "
            f"sizes {', '.join(SIZES)}; colours {', '.join(PALETTE)}; shapes {', '.join(SHAPES)}; "
            f"relations {', '.join(RELATIONS)}",
            fix="for example: a small red circle left of a big blue square on a yellow background",
        )
    part = match.groupdict()
    first = Phrase(part["shape1"], part["colour1"], part["size1"])
    second = (Phrase(part["shape2"], part["colour2"], part["size2"]),) if part["shape2"] else ()
    return Description((first, *second), part["relation"], part["background"])


def _phrase_pattern(index: int) -> str:
    return (
        rf"an? (?:(?P<size{index}>{'|'.join(SIZES)}) )?(?:(?P<colour{index}>{'|'.join(PALETTE)}) )?"
        rf"(?P<shape{index}>{'|'.join(SHAPES)})"
    )


_CAPTION = re.compile(
    rf"{_phrase_pattern(1)}(?: (?P<relation>{'|'.join(RELATIONS)}) {_phrase_pattern(2)})?"
    rf"(?: on a (?P<background>{'|'.join(PALETTE)}) background)?"
)
