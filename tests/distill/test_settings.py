"""Settings of `distill`: what is said of all students, of some, and of none."""

from pathlib import Path

import pytest

from stillhouse.distill.settings import DistillSettings, LearningOverrides, read_distill_settings
from stillhouse.errors import InvalidRequest

SMALL, LARGE = 3_000_000, 860_000_000


def test_what_is_said_of_one_student_wins_over_what_is_said_of_all(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    file = tmp_path / "distill.toml"
    file.write_text(
        'rounds = [36, 18, 3]\nguidance = [1, 5]\ndata = "pictures"\n'
        "[learning]\nupdates = 100\nbatch = 8\n[students.3]\nupdates = 500\n[students.guidance]\nrate = 0.5\n"
    )
    settings = read_distill_settings(file)
    assert settings.data == str(tmp_path / "pictures") and settings.guidance == (1, 5)
    recipes = [settings.recipe(name, SMALL) for name in ("guidance", "18", "3")]
    assert [recipe.updates for recipe in recipes] == [100, 100, 500]
    assert [recipe.batch_size for recipe in recipes] == [8, 8, 8] and recipes[0].learning_rate == 0.5


def test_where_nothing_is_said_large_networks_and_factors_take_their_own_rates() -> None:
    full, low = DistillSettings(), DistillSettings(lora_rank=16)
    assert [full.recipe("9", size).learning_rate for size in (SMALL, LARGE)] == [2e-4, 1e-5]
    assert low.recipe("9", LARGE).learning_rate == 1e-4
    updates = [full.recipe(name, SMALL).updates for name in ("guidance", "18", "3")]
    assert updates == [3000, 2000, 5000]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rounds = 3", r"\$\.rounds"),
        ("steps = [3]", r"\$\.steps is not known"),
        ("guidance = [5]", "the least and the most"),
        ("guidance = [5, 2]", "the most guidance"),
        ('method = "progresive"', "did you mean 'progressive'"),
        ("[students.5]\nupdates = 3", "there is no student '5'; allowed: guidance, edits, decoder, 18, 9, 3"),
        ("[learning]\nupdates = 0\n[x]", r"\$\.x is not known"),
        ("max_hours = 0", "max_hours is 0"),
        ('method = "walks"\nitems = 1', "items is 1"),
        ('method = "walks"\n[students.edits]\nupdates = 3', "'edits'; allowed: decoder, 18, 9, 3"),
        ('begin = "student"', "a beginning for method progressive; allowed: method walks"),
        ('method = "walks"\nbegin = "student"\nrank = 4', "low-rank factors of one that begins as another student"),
        ("through = 1.0", "through of method progressive; allowed: method walks"),
        ('method = "walks"\nthrough = 1.5', "through is 1.5"),
        ("[match]\n3 = 1.0", "match of method progressive; allowed: method walks"),
        ('method = "walks"\n[match]\n5 = 1.0', "there is no student to match '5'; allowed: 18, 9, 3"),
        ('method = "walks"\n[match]\n3 = -1.0', "weight of matching is -1"),
        ("rounds = [", "is not TOML"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused_with_the_place(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "distill.toml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=told):
        read_distill_settings(file)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="there is no file"):
        read_distill_settings(tmp_path / "none.toml")


def test_learning_over_a_recipe_changes_what_is_said_only() -> None:
    usual = DistillSettings().recipe("9", SMALL)
    changed = LearningOverrides(batch_size=3).apply_to(usual)
    assert (changed.batch_size, changed.learning_rate, changed.updates) == (3, usual.learning_rate, usual.updates)
