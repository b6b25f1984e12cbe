"""Captions as class labels: one label for each attribute (slot) of a caption."""

from stillhouse.shapes.caption import Description, Phrase
from stillhouse.shapes.scene import PALETTE, RELATIONS, SHAPES, SIZES

_COLOURS = tuple(PALETTE)
SLOTS: tuple[tuple[str, ...], ...] = (SHAPES, _COLOURS, SIZES, SHAPES, _COLOURS, SIZES, RELATIONS, _COLOURS)
"""Words of each slot: shape, colour and size of the first and second figure, relation, background colour."""


def encode_slots(caption: Description) -> list[int]:
    """Return the label of each slot: 0 where the caption says nothing, else 1 + the index of the word.

    >>> encode_slots(Description((Phrase("circle"),), background="red"))
    [1, 0, 0, 0, 0, 0, 0, 1]
    """
    first, second = (*caption.phrases, None)[:2]
    words = (*_phrase_words(first), *_phrase_words(second), caption.relation, caption.background)
    return [0 if word is None else 1 + slot.index(word) for word, slot in zip(words, SLOTS, strict=True)]


def _phrase_words(phrase: Phrase | None) -> tuple[str | None, str | None, str | None]:
    return (phrase.shape, phrase.colour, phrase.size) if phrase else (None, None, None)
