"""Parser of captions of Shapes, by which tests check that texts are within the grammar."""

import re

from stillhouse.shapes.caption import Description, Phrase
from stillhouse.shapes.scene import PALETTE, RELATIONS, SHAPES, SIZES


def parse_caption(text: str) -> Description:
    """Return the description that a caption's text stands for.

    Raises:
        ValueError: the text is outside the grammar.
    """
    match = _CAPTION.fullmatch(" ".join(text.lower().split()))
    if match is None:
        raise ValueError(f"{text!r} is outside the grammar of captions")
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
