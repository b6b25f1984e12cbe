"""Strips: original pictures, their differences, and no file outside the report's directory."""

import base64
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.views.image_strips import DIFFERENCE_GAIN, ImageStrip, build_strips
from stillhouse.accelerate.views.rows import report_rows
from stillhouse.core import ImageRequest, Picture
from stillhouse.images.files import read_picture, write_png
from stillhouse.measure.image_metrics import difference_image
from tests.accelerate.views.sweeps import example_picture, pipeline_report


def strips_by_name(sweep: Report, directory: Path) -> dict[str, ImageStrip]:
    return {
        strip.row.name.removeprefix("stillhouse sampling, ").replace("networks ", ""): strip
        for strip in build_strips(report_rows(sweep, "pipeline"), directory)
    }


def picture(uri: str | None) -> Picture:
    assert uri is not None
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(BytesIO(base64.b64decode(content))) as image:
        return np.array(image)


def with_files(sweep: Report, *files: str) -> Report:
    """Return the report with other files for the chosen variant."""

    def change(trial: Trial) -> Trial:
        is_chosen = trial.pictures and trial.candidate.key == sweep.chosen["pipeline"]
        return replace(trial, pictures=replace(trial.pictures, files=files)) if is_chosen and trial.pictures else trial

    return replace(sweep, trials=tuple(map(change, sweep.trials)))


def test_the_baseline_comes_first_then_the_choice_then_fastest_first(tmp_path: Path) -> None:
    names = list(strips_by_name(pipeline_report(tmp_path), tmp_path))
    assert names == ["baseline", "cache interval 3, chosen", "chosen, sampler dpm++, steps 12", "chosen"]


def test_every_pixel_is_shown_and_what_differs_below(tmp_path: Path) -> None:
    strips = strips_by_name(pipeline_report(tmp_path), tmp_path)
    for number, (base, chosen) in enumerate(
        zip(strips["baseline"].cells, strips["cache interval 3, chosen"].cells, strict=True)
    ):
        expected_base, expected_chosen = (
            read_picture(tmp_path / f"pictures/{name}/{number}.png") for name in ("plain", "cache_interval")
        )
        assert np.array_equal(picture(base.picture), expected_base) and base.difference is None
        assert np.array_equal(picture(chosen.picture), expected_chosen) and not chosen.equal
        assert np.array_equal(
            picture(chosen.difference), difference_image(expected_base, expected_chosen, DIFFERENCE_GAIN)
        )


def test_equal_pictures_are_known(tmp_path: Path) -> None:
    sweep = with_files(pipeline_report(tmp_path), *(f"pictures/plain/{number}.png" for number in range(3)))
    cells = strips_by_name(sweep, tmp_path)["cache interval 3, chosen"].cells
    assert all(cell.equal and not picture(cell.difference).any() for cell in cells)


def test_a_missing_a_damaged_and_a_lacking_picture_leave_a_gap(tmp_path: Path) -> None:
    sweep = with_files(pipeline_report(tmp_path), "pictures/cache_interval/0.png", "damaged.png")
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    (tmp_path / "pictures/plain/0.png").unlink()
    strips = strips_by_name(sweep, tmp_path)
    first, damaged, lacking = strips["cache interval 3, chosen"].cells
    assert first.picture and first.difference is None
    assert damaged.picture is lacking.picture is None
    assert strips["baseline"].cells[0].picture is None


@pytest.mark.parametrize("outside", ["../secret.png", "pictures/../../secret.png", "{root}/secret.png"])
def test_nothing_outside_the_directory_is_shown(tmp_path: Path, outside: str) -> None:
    write_png(tmp_path / "secret.png", example_picture(0))
    inside = tmp_path / "report"
    sweep = with_files(pipeline_report(inside), outside.format(root=tmp_path))
    assert strips_by_name(sweep, inside)["cache interval 3, chosen"].cells[0].picture is None


def test_pictures_of_another_size_are_shown_without_a_difference(tmp_path: Path) -> None:
    write_png(tmp_path / "wide.png", np.zeros((32, 80, 3), np.uint8))
    cell = strips_by_name(with_files(pipeline_report(tmp_path), "wide.png"), tmp_path)[
        "cache interval 3, chosen"
    ].cells[0]
    assert picture(cell.picture).shape == (32, 80, 3) and cell.difference is None


def test_large_pictures_are_reduced_after_they_were_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 400, 800, 3), np.uint8)
    sweep = with_files(pipeline_report(tmp_path), "large.png")
    write_png(tmp_path / "pictures/plain/0.png", first)
    write_png(tmp_path / "large.png", second)
    cell = strips_by_name(sweep, tmp_path)["cache interval 3, chosen"].cells[0]
    # Pillow rounds up to whole pixels: 400 / 3 and 800 / 3.
    assert picture(cell.picture).shape == (134, 267, 3)
    assert picture(cell.difference).mean() == pytest.approx(
        difference_image(first, second, DIFFERENCE_GAIN).mean(), rel=0.02
    )


def test_what_a_file_carries_besides_its_pixels_stays_out(tmp_path: Path) -> None:
    sweep = with_files(pipeline_report(tmp_path), "carrier.png")
    write_png(tmp_path / "carrier.png", example_picture(0), ImageRequest("a secret prompt"))
    uri = strips_by_name(sweep, tmp_path)["cache interval 3, chosen"].cells[0].picture
    assert uri is not None and b"secret" not in base64.b64decode(uri.partition(",")[2])


def test_trials_without_pictures_have_no_strip(tmp_path: Path) -> None:
    assert build_strips(report_rows(pipeline_report(tmp_path), "denoiser"), tmp_path) == ()
    assert build_strips(report_rows(pipeline_report(), "pipeline"), tmp_path) == ()
