"""Convert captions to class labels: one label for each attribute (slot), such as the first figure's colour."""

from stillhouse.shapes.caption import Description, Phrase
from stillhouse.shapes.scene import PALETTE, RELATIONS, SHAPES, SIZES

_COLOURS = tuple(PALETTE)
SLOTS: tuple[tuple[str, ...], ...] = (SHAPES, _COLOURS, SIZES, SHAPES, _COLOURS, SIZES, RELATIONS, _COLOURS)
"""Possible words of each slot (attribute of a caption).

The slots are shape, colour and size of the first figure; shape, colour and size of the second figure; relation;
background colour."""


def encode_slots(caption: Description) -> list[int]:
    """Return a label for each of the 8 slots (attributes) in `SLOTS`.

    A label is 0 where the caption does not mention the attribute, else 1 + the word's index among the slot's words.

    >>> encode_slots(Description((Phrase("circle"),), background="red"))
    [1, 0, 0, 0, 0, 0, 0, 1]
    """
    first, second = (*caption.phrases, None)[:2]
    words = (*_phrase_words(first), *_phrase_words(second), caption.relation, caption.background)
    return [0 if word is None else 1 + slot.index(word) for word, slot in zip(words, SLOTS, strict=True)]


def _phrase_words(phrase: Phrase | None) -> tuple[str | None, str | None, str | None]:
    return (phrase.shape, phrase.colour, phrase.size) if phrase else (None, None, None)
