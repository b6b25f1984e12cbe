"""Distilled students as candidates of their teacher's sweep: added, measured, chosen and replaced."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from stillhouse.accelerate.calibration.prompts import has_oracle, shorten_requests
from stillhouse.accelerate.options import AccelerateOptions
from stillhouse.accelerate.records.candidate import DECODER, DISTILLED, PIPELINE
from stillhouse.accelerate.records.report import Bounds, Report
from stillhouse.accelerate.regression_check import check_regression
from stillhouse.accelerate.search.students import STUDENTS_FOLDER, add_students, student_candidate
from stillhouse.accelerate.selection.apply import apply_choice, remove_leftovers
from stillhouse.accelerate.selection.choose import choose_trials
from stillhouse.accelerate.sweep import run_sweep
from stillhouse.accelerate.workspace import Workspace, prepare_workspace
from stillhouse.convert.import_model import ImportOptions, import_model
from stillhouse.core import ImageRequest
from stillhouse.diffusion import grid_from_timesteps
from stillhouse.distill.student import write_student
from stillhouse.distill.training.decoder import TinyDecoder
from stillhouse.distill.training.networks import Denoiser, add_guidance_embedding
from stillhouse.distill.training.progressive_chain import Student, freeze
from stillhouse.errors import InvalidRequest
from stillhouse.fit.stage import FitResult
from stillhouse.measure.clock import Ratio
from stillhouse.pipelines.load import load
from stillhouse.pipelines.manifest import ALWAYS_HASHED_BYTES, read_manifest, write_manifest
from tests.accelerate.budgets import QUICK, QUICK_FINAL
from tests.checkpoints import write_checkpoint

PLAN = (999.0, 656.0, 342.0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    write_checkpoint("sd2", folder / "checkpoint")
    import_model(folder / "checkpoint", folder / "tiny", ImportOptions("tiny"))
    manifest = read_manifest(folder / "tiny")
    write_manifest(
        folder / "tiny", replace(manifest, defaults=replace(manifest.defaults, steps=8))
    )  # so tests are quick
    return folder / "tiny"


@pytest.fixture(scope="module")
def taught(teacher: Path) -> Path:
    """A student with a decoder of its own."""
    return make_student(teacher, teacher.with_name("tiny-3"), seed=3)


@pytest.fixture(scope="module")
def swept(teacher: Path, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    directory = tmp_path_factory.mktemp("swept") / "out"
    workspace = prepare_workspace(str(teacher), directory)
    options = AccelerateOptions(
        backends=("onnxruntime",),
        recipes=("int8-weights",),
        components=(DECODER,),
        timing_budget=QUICK,
        final_timing_budget=QUICK_FINAL,
        students=add_students(workspace, [str(taught)]),
    )
    return directory, run_sweep(workspace, options)


def make_student(teacher: Path, out: Path, seed: int) -> Path:
    """An untrained student: fast, with other pictures than its teacher."""
    manifest = read_manifest(teacher)
    torch.manual_seed(seed)
    unet = add_guidance_embedding(UNet2DConditionModel.from_pretrained(teacher / "unet"))
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight, std=0.2)
    denoiser = freeze(Denoiser(unet, manifest.sampling.schedule, manifest.sampling.prediction))
    grid = grid_from_timesteps(manifest.sampling.schedule, PLAN)
    student = Student("3-steps", denoiser, {}, grid, "progressive", FitResult(True, 0, 0.0, {}))
    write_student(teacher, student, out, guidance=(1.0, 8.0), decoder=TinyDecoder(manifest.latent, 8))
    return out


def lenient(report: Report) -> Report:
    """Choose without bounds, with the student as the fastest: teachers with few steps may be faster by milliseconds,
    depending on the machine's load.
    """
    slow = Ratio(0.01, 0.01, 0.01)
    variants = [trial for trial in report.trials_of(PIPELINE) if trial.candidate.recipe == "sampling"]
    trials = tuple(
        replace(trial, ratio=slow) if trial in variants and trial.ratio else trial for trial in report.trials
    )
    return choose_trials(replace(report, trials=trials), "latency", Bounds())


def test_a_student_is_measured_beside_its_teacher(swept: tuple[Path, Report]) -> None:
    _, report = swept
    trial = report.trial(PIPELINE, student_candidate("tiny-3").key)
    assert trial.ratio and trial.ratio.low > 2, "three steps of one row, compared with a complete guided trajectory"
    assert trial.pictures and trial.pictures.psnr < 40, "it is untrained"
    assert trial.candidate.name == "stillhouse distilled, student tiny-3"


def test_its_decoder_is_measured_beside_the_teachers(swept: tuple[Path, Report]) -> None:
    _, report = swept
    decoders = [trial for trial in report.trials_of(DECODER) if trial.candidate.recipe == DISTILLED]
    tried = [trial for trial in decoders if trial.status != "excluded"]
    assert [trial.candidate.backend for trial in tried] == ["onnxruntime"]
    assert tried[0].status == "rejected" and "SQNR" in tried[0].reason, "it is untrained"
    baseline = report.trial(DECODER, report.baselines[DECODER])
    assert tried[0].file_bytes and baseline.file_bytes and tried[0].file_bytes < baseline.file_bytes


def test_who_allows_its_pictures_gets_the_student_and_the_teacher_again(swept: tuple[Path, Report]) -> None:
    directory, report = swept
    before = load(directory).generate("a red circle", seed=1)
    chosen = lenient(report)
    assert chosen.chosen[PIPELINE] == student_candidate("tiny-3").key
    apply_choice(directory, chosen)
    remove_leftovers(directory, chosen)
    manifest = read_manifest(directory, verify=True)
    assert manifest.distilled is not None and manifest.defaults.steps == len(PLAN)
    chosen_result = load(directory).generate("a red circle", seed=1)
    student_result = load(directory / STUDENTS_FOLDER / "tiny-3").generate("a red circle", seed=1)
    assert (chosen_result.image == student_result.image).all() and not (chosen_result.image == before.image).all()
    apply_choice(directory, report)
    assert (load(directory).generate("a red circle", seed=1).image == before.image).all()


def test_a_choice_of_a_student_can_be_checked_again(swept: tuple[Path, Report]) -> None:
    directory, report = swept
    chosen = lenient(report)
    apply_choice(directory, chosen)
    (result,) = check_regression(directory, chosen)
    assert result.measured.status == "accepted" and result.recorded.candidate == student_candidate("tiny-3")


def _statuses(report: Report) -> dict[tuple[str, str], str]:
    """Statuses of all trials but sampling variants, whose speed-up may differ from run to run."""
    trials = [trial for trial in report.trials if trial.candidate.recipe != "sampling"]
    return {(trial.candidate.component, trial.candidate.key): trial.status for trial in trials}


def test_a_sweep_goes_on_where_a_student_was_chosen(swept: tuple[Path, Report], teacher: Path) -> None:
    directory, report = swept
    apply_choice(directory, lenient(report))
    options = AccelerateOptions(
        backends=("onnxruntime",), recipes=("int8-weights",), components=(DECODER,), students=("tiny-3",)
    )
    again = run_sweep(
        prepare_workspace(str(teacher), directory),
        replace(options, timing_budget=QUICK, final_timing_budget=QUICK_FINAL),
    )
    assert again.source == "tiny" and again.finished
    assert _statuses(again) == _statuses(report)
    assert load(directory).manifest.distilled is None, "the default bounds apply again"


def test_a_decoder_that_is_chosen_draws_for_the_teacher(swept: tuple[Path, Report]) -> None:
    directory, report = swept
    tiny = next(
        trial
        for trial in report.trials_of(DECODER)
        if trial.candidate.recipe == DISTILLED and trial.status != "excluded"
    )
    networks = {name: key for name, key in report.chosen.items() if name != PIPELINE}
    apply_choice(directory, replace(report, chosen={**networks, DECODER: tiny.candidate.key}))
    manifest = read_manifest(directory, verify=True)
    assert manifest.components[DECODER].graph == tiny.graph and "student" not in manifest.components[DECODER].settings
    assert load(directory).generate("a red circle", seed=1).image.shape[2] == 3
    apply_choice(directory, report)


def test_only_students_of_this_very_teacher_are_candidates(teacher: Path, taught: Path, tmp_path: Path) -> None:
    workspace = prepare_workspace(str(teacher), tmp_path / "out")
    with pytest.raises(InvalidRequest, match="tiny is not a distilled model"):
        add_students(workspace, [str(teacher)])
    with pytest.raises(InvalidRequest, match="two students are named tiny-3"):
        add_students(workspace, [str(taught), str(taught)])
    shapes = Workspace("shapes", prepare_workspace("shapes", tmp_path / "shapes").directory, (), is_pipeline=True)
    with pytest.raises(
        InvalidRequest,
        match="distilled from tiny; allowed: students distilled from shapes with its present files; create one with",
    ):
        add_students(shapes, [str(taught)])


def test_a_student_cannot_take_anothers_place(teacher: Path, taught: Path, tmp_path: Path) -> None:
    workspace = prepare_workspace(str(teacher), tmp_path / "out")
    assert add_students(workspace, [str(taught)]) == add_students(workspace, [str(taught)]) == ("tiny-3",)
    other = make_student(teacher, tmp_path / "tiny-3", seed=4)
    with pytest.raises(InvalidRequest, match="differs from the student tiny-3 that was measured"):
        add_students(workspace, [str(other)])
    assert read_manifest(workspace.directory / STUDENTS_FOLDER / "tiny-3", verify=True) == read_manifest(taught)


def test_a_student_by_itself_is_asked_for_nothing_that_it_does_not_know(taught: Path) -> None:
    manifest = read_manifest(taught)
    requests = [ImageRequest("a"), ImageRequest("b")]
    assert shorten_requests(manifest, requests) == requests
    unet = manifest.components["denoiser"].weights
    heavy = {**manifest.files, unet: replace(manifest.files[unet], bytes=ALWAYS_HASHED_BYTES << 10)}
    assert shorten_requests(replace(manifest, files=heavy), requests) == requests[:1], "the number of steps is fixed"
    assert not has_oracle(manifest)
    assert manifest.distilled is not None
    assert has_oracle(replace(manifest, distilled=replace(manifest.distilled, teacher=("shapes", ""))))
