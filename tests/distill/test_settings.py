"""Settings of `distill`: overrides for all students and for single ones, defaults, and errors."""

from pathlib import Path

import pytest

from stillhouse.distill.settings import DistillSettings, LearningOverrides, read_distill_settings
from stillhouse.errors import InvalidRequest

SMALL, LARGE = 3_000_000, 860_000_000


def test_overrides_of_one_student_win_over_those_of_all(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    file = tmp_path / "distill.toml"
    file.write_text(
        'step_counts = [36, 18, 3]\nguidance = [1, 5]\ndata = "pictures"\n'
        "[learning]\nupdates = 100\nbatch_size = 8\n"
        "[students.3]\nupdates = 500\n[students.guidance]\nlearning_rate = 0.5\n"
    )
    settings = read_distill_settings(file)
    assert settings.data == str(tmp_path / "pictures") and settings.guidance == (1, 5)
    recipes = [settings.recipe(name, SMALL) for name in ("guidance", "18", "3")]
    assert [recipe.updates for recipe in recipes] == [100, 100, 500]
    assert [recipe.batch_size for recipe in recipes] == [8, 8, 8] and recipes[0].learning_rate == 0.5


def test_default_rates_depend_on_network_size_and_lora() -> None:
    full, low = DistillSettings(), DistillSettings(lora_rank=16)
    assert [full.recipe("9", size).learning_rate for size in (SMALL, LARGE)] == [2e-4, 1e-5]
    assert low.recipe("9", LARGE).learning_rate == 1e-4
    updates = [full.recipe(name, SMALL).updates for name in ("guidance", "18", "3")]
    assert updates == [3000, 2000, 5000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step_counts = 3", r"\$\.step_counts"),
        ("steps = [3]", r"\$\.steps is not known"),
        ("guidance = [5]", "the smallest and the largest"),
        ("guidance = [5, 2]", "the largest guidance"),
        ('method = "progresive"', "did you mean 'progressive'"),
        ("[students.5]\nupdates = 3", "there is no student '5'; allowed: guidance, edits, decoder, 18, 9, 3"),
        ("[learning]\nupdates = 0\n[x]", r"\$\.x is not known"),
        ("max_hours = 0", "max_hours is 0"),
        ('method = "trajectories"\nsamples = 1', "samples is 1"),
        ('method = "trajectories"\n[students.edits]\nupdates = 3', "'edits'; allowed: decoder, 18, 9, 3"),
        ('init_from = "student"', "init_from does not work with method progressive; allowed: method trajectories"),
        (
            'method = "trajectories"\ninit_from = "student"\nlora_rank = 4',
            "init_from and lora_rank are both set",
        ),
        (
            "end_to_end_fraction = 1.0",
            "end_to_end_fraction does not work with method progressive; allowed: method trajectories",
        ),
        ('method = "trajectories"\nend_to_end_fraction = 1.5', "end_to_end_fraction is 1.5"),
        ("[dmd_weights]\n3 = 1.0", "dmd_weights does not work with method progressive; allowed: method trajectories"),
        (
            'method = "trajectories"\n[dmd_weights]\n5 = 1.0',
            "there is no student in dmd_weights '5'; allowed: 18, 9, 3",
        ),
        ('method = "trajectories"\n[dmd_weights]\n3 = -1.0', "weight of dmd_weights is -1"),
        ("step_counts = [", "is not TOML"),
    ],
)
def test_an_invalid_file_is_refused_with_the_setting(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "distill.toml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=message):
        read_distill_settings(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="there is no file"):
        read_distill_settings(tmp_path / "none.toml")


def test_overrides_change_the_given_fields_only() -> None:
    default = DistillSettings().recipe("9", SMALL)
    changed = LearningOverrides(batch_size=3).apply_to(default)
    assert (changed.batch_size, changed.learning_rate, changed.updates) == (3, default.learning_rate, default.updates)
