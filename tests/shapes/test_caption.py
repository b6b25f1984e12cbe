"""Captions: dropped words, held-out captions, and parsing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.shapes.caption import (
    Description,
    Phrase,
    describe,
    drop_words,
    is_held_out,
    sample_held_out,
    sample_training_caption,
)
from stillhouse.shapes.scene import sample_scene
from tests.captions import parse_caption

generators = st.integers(0, 2**32).map(np.random.default_rng)


@given(generators)
def test_every_caption_parses_to_itself(rng: np.random.Generator) -> None:
    caption = drop_words(describe(sample_scene(rng)), rng)
    assert parse_caption(str(caption)) == caption


@given(generators)
def test_dropping_words_changes_no_other_word(rng: np.random.Generator) -> None:
    full = describe(sample_scene(rng))
    dropped = drop_words(full, rng)
    assert dropped.relation == full.relation and dropped.background in (None, full.background)
    for part, whole in zip(dropped.phrases, full.phrases, strict=True):
        assert part.shape == whole.shape
        assert part.colour in (None, whole.colour) and part.size in (None, whole.size)


def test_about_a_quarter_of_sizes_and_a_tenth_of_colours_are_dropped() -> None:
    rng = np.random.default_rng(0)
    phrases = [phrase for _ in range(4000) for phrase in drop_words(describe(sample_scene(rng)), rng).phrases]
    assert np.mean([phrase.size is None for phrase in phrases]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([phrase.colour is None for phrase in phrases]) == pytest.approx(0.10, abs=0.02)


def test_a_tenth_of_all_captions_is_held_out_and_never_trained_on() -> None:
    rng = np.random.default_rng(1)
    texts = {str(drop_words(describe(sample_scene(rng)), rng)) for _ in range(4000)}
    assert np.mean([is_held_out(text) for text in texts]) == pytest.approx(0.1, abs=0.02)
    captions = [sample_training_caption(sample_scene(rng), rng) for _ in range(500)]
    assert not any(is_held_out(str(caption)) for caption in captions if caption)
    assert all(is_held_out(str(sample_held_out(rng)[1])) for _ in range(50))


def test_case_spaces_and_articles_do_not_matter() -> None:
    assert parse_caption("  An Red circle  above a  CROSS ") == Description(
        (Phrase("circle", "red"), Phrase("cross")), "above"
    )


@pytest.mark.parametrize(
    "text",
    ["", "red circle", "a red", "a circle beside a cross", "a circle on a orange background", "a circle a cross"],
)
def test_text_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="outside the grammar"):
        parse_caption(text)
