"""Slots: what a caption says, as numbers that a network can be asked for."""

from stillhouse.shapes.caption import Description, Phrase
from stillhouse.shapes.scene import PALETTE, RELATIONS, SHAPES, SIZES

_COLOURS = tuple(PALETTE)
SLOTS: tuple[tuple[str, ...], ...] = (SHAPES, _COLOURS, SIZES, SHAPES, _COLOURS, SIZES, RELATIONS, _COLOURS)
"""The words of each slot: of the first figure, of the second, how they lie, and the background."""


def encode_slots(caption: Description) -> list[int]:
    """One number for each slot: 0 where nothing is said, else 1 and more, the word's place.

    >>> from stillhouse.shapes.caption import read_caption
    >>> [bool(number) for number in slots(read_caption("a circle on a white background"))]
    [True, False, False, False, False, False, False, True]
    """
    first, second = (*caption.phrases, None)[:2]
    words = (*_phrase_words(first), *_phrase_words(second), caption.relation, caption.background)
    return [0 if word is None else 1 + slot.index(word) for word, slot in zip(words, SLOTS, strict=True)]


def _phrase_words(phrase: Phrase | None) -> tuple[str | None, str | None, str | None]:
    return (phrase.shape, phrase.colour, phrase.size) if phrase else (None, None, None)
