import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core import Picture
from stillhouse.images.contact_sheet import contact_sheet

GROUND = (252, 252, 250)


def flat(width: int, height: int, colour: tuple[int, int, int]) -> Picture:
    return np.full((height, width, 3), colour, np.uint8)


def count(sheet: Picture, colour: tuple[int, int, int]) -> int:
    return int((sheet == np.array(colour, np.uint8)).all(-1).sum())


@pytest.mark.parametrize(
    ("width", "height", "shown"),
    [(64, 64, 256 * 256), (100, 50, 200 * 100), (300, 300, 300 * 300), (512, 512, 512 * 512), (1024, 512, 512 * 256)],
)
def test_a_picture_is_enlarged_or_reduced_by_a_whole_number(width: int, height: int, shown: int) -> None:
    assert count(contact_sheet([flat(width, height, (200, 0, 0))], ["red"]), (200, 0, 0)) == shown


def test_every_pixel_of_a_small_picture_becomes_a_square() -> None:
    picture = np.random.default_rng(0).integers(0, 200, (64, 64, 3), np.uint8)
    sheet = contact_sheet([picture], [""])
    assert np.array_equal(sheet[32 : 32 + 256 : 4, 32 : 32 + 256 : 4], picture)


@pytest.mark.parametrize(("pictures", "columns"), [(1, 1), (2, 2), (4, 4), (5, 3), (6, 3), (12, 4), (16, 5)])
def test_the_sheet_is_about_as_wide_as_a_page(pictures: int, columns: int) -> None:
    sheet = contact_sheet([flat(64, 64, (9, 9, 9))] * pictures, ["x"] * pictures)
    assert sheet.shape[1] == 2 * 32 + columns * 256 + (columns - 1) * 24
    assert count(sheet, (9, 9, 9)) == pictures * 256 * 256


@given(st.lists(st.text(max_size=400), min_size=1, max_size=6), st.integers(1, 700))
@settings(max_examples=30, deadline=None)
def test_no_label_leaves_its_margins(labels: list[str], width: int) -> None:
    sheet = contact_sheet([flat(width, 64, (0, 0, 0))] * len(labels), labels)
    for edge in (sheet[:20], sheet[-5:], sheet[:, :20], sheet[:, -20:]):
        assert (edge == np.array(GROUND, np.uint8)).all()


def test_a_long_label_is_wrapped_and_then_cut() -> None:
    def ink(label: str) -> int:
        return len(contact_sheet([flat(64, 64, (0, 0, 0))], [label]))

    assert ink("one") < ink("several words that do not fit on one line") < ink("word " * 30) == ink("word " * 300)


def test_there_is_one_label_for_each_picture() -> None:
    with pytest.raises(ValueError, match="zip"):
        contact_sheet([flat(8, 8, (0, 0, 0))], ["one", "two"])
