"""Students as candidates of their teacher's sweep: laid out beside it, measured, chosen, and left again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from stillhouse.accelerate.calibration.prompts import has_oracle, shorten_requests
from stillhouse.accelerate.evaluation.latency import TimingBudget
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
    target = prepare_workspace(str(teacher), directory)
    asked = AccelerateOptions(
        backends=("onnxruntime",),
        recipes=("int8-weights",),
        components=(DECODER,),
        timing_budget=TimingBudget(min_rounds=3, max_rounds=3),
        students=add_students(target, [str(taught)]),
    )
    return directory, run_sweep(target, asked)


def make_student(teacher: Path, out: Path, seed: int) -> Path:
    """A student that learnt nothing: it is quick, and draws other pictures."""
    manifest = read_manifest(teacher)
    torch.manual_seed(seed)
    unet = add_guidance_embedding(UNet2DConditionModel.from_pretrained(teacher / "unet"))
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight, std=0.2)
    denoiser = freeze(Denoiser(unet, manifest.schedule, manifest.prediction))
    walk = grid_from_timesteps(manifest.schedule, PLAN)
    made = Student("3-steps", denoiser, {}, walk, "progressive", FitResult(True, 0, 0.0, {}))
    write_student(teacher, made, out, guidance=(1.0, 8.0), decoder=TinyDecoder(manifest.latent, 8))
    return out


def lenient(report: Report) -> Report:
    """Whoever draws whatever is allowed, and the student is the fastest: how few steps of its teacher are quicker still
    is a matter of milliseconds, and of what else the machine does."""
    slow = Ratio(0.01, 0.01, 0.01)
    walks = [one for one in report.trials_of(PIPELINE) if one.candidate.recipe == "sampling"]
    trials = tuple(replace(one, ratio=slow) if one in walks and one.ratio else one for one in report.trials)
    return choose_trials(replace(report, trials=trials), "latency", Bounds())


def test_a_student_is_measured_beside_its_teacher(swept: tuple[Path, Report]) -> None:
    _, report = swept
    trial = report.trial(PIPELINE, student_candidate("tiny-3").key)
    assert trial.ratio and trial.ratio.low > 2, "three steps of one row against a whole guided walk"
    assert trial.pictures and trial.pictures.psnr < 40, "it learnt nothing"
    assert trial.candidate.name == "stillhouse distilled, student tiny-3"


def test_its_decoder_is_measured_beside_the_teachers(swept: tuple[Path, Report]) -> None:
    _, report = swept
    found = [trial for trial in report.trials_of(DECODER) if trial.candidate.recipe == DISTILLED]
    tried = [trial for trial in found if trial.status != "excluded"]
    assert [trial.candidate.backend for trial in tried] == ["onnxruntime"]
    assert tried[0].status == "rejected" and "SQNR" in tried[0].reason, "it learnt nothing"
    own = report.trial(DECODER, report.baselines[DECODER])
    assert tried[0].file_bytes and own.file_bytes and tried[0].file_bytes < own.file_bytes


def test_who_allows_its_pictures_gets_the_student_and_the_teacher_again(swept: tuple[Path, Report]) -> None:
    directory, report = swept
    before = load(directory).generate("a red circle", seed=1)
    chosen = lenient(report)
    assert chosen.chosen[PIPELINE] == student_candidate("tiny-3").key
    apply_choice(directory, chosen)
    remove_leftovers(directory, chosen)
    manifest = read_manifest(directory, verify=True)
    assert manifest.distilled is not None and manifest.defaults.steps == len(PLAN)
    drawn = load(directory).generate("a red circle", seed=1)
    alone = load(directory / STUDENTS_FOLDER / "tiny-3").generate("a red circle", seed=1)
    assert (drawn.image == alone.image).all() and not (drawn.image == before.image).all()
    apply_choice(directory, report)
    assert (load(directory).generate("a red circle", seed=1).image == before.image).all()


def test_a_choice_of_a_student_can_be_checked_again(swept: tuple[Path, Report]) -> None:
    directory, report = swept
    chosen = lenient(report)
    apply_choice(directory, chosen)
    (found,) = check_regression(directory, chosen)
    assert found.measured.status == "accepted" and found.recorded.candidate == student_candidate("tiny-3")


def _statuses(report: Report) -> dict[tuple[str, str], str]:
    """Of all but ways to walk: whether one of those pays is a matter of seconds, and may be seen otherwise again."""
    found = [one for one in report.trials if one.candidate.recipe != "sampling"]
    return {(one.candidate.component, one.candidate.key): one.status for one in found}


def test_a_sweep_goes_on_where_a_student_was_chosen(swept: tuple[Path, Report], teacher: Path) -> None:
    directory, report = swept
    apply_choice(directory, lenient(report))
    asked = AccelerateOptions(
        backends=("onnxruntime",), recipes=("int8-weights",), components=(DECODER,), students=("tiny-3",)
    )
    again = run_sweep(
        prepare_workspace(str(teacher), directory),
        replace(asked, timing_budget=TimingBudget(min_rounds=3, max_rounds=3)),
    )
    assert again.source == "tiny" and again.finished
    assert _statuses(again) == _statuses(report)
    assert load(directory).manifest.distilled is None, "the usual bounds hold again"


def test_a_decoder_that_is_chosen_draws_for_the_teacher(swept: tuple[Path, Report]) -> None:
    directory, report = swept
    tiny = next(
        one for one in report.trials_of(DECODER) if one.candidate.recipe == DISTILLED and one.status != "excluded"
    )
    apply_choice(directory, replace(report, chosen={**report.chosen, DECODER: tiny.candidate.key}))
    manifest = read_manifest(directory, verify=True)
    assert manifest.components[DECODER].graph == tiny.graph and "student" not in manifest.components[DECODER].settings
    assert load(directory).generate("a red circle", seed=1).image.shape[2] == 3
    apply_choice(directory, report)


def test_only_students_of_this_very_teacher_are_candidates(teacher: Path, taught: Path, tmp_path: Path) -> None:
    target = prepare_workspace(str(teacher), tmp_path / "out")
    with pytest.raises(InvalidRequest, match="tiny, which is no student"):
        add_students(target, [str(teacher)])
    with pytest.raises(InvalidRequest, match="two students are called tiny-3"):
        add_students(target, [str(taught), str(taught)])
    shapes = Workspace("shapes", prepare_workspace("shapes", tmp_path / "shapes").directory, (), is_pipeline=True)
    with pytest.raises(InvalidRequest, match="which learnt from tiny; allowed: students of shapes"):
        add_students(shapes, [str(taught)])


def test_a_student_cannot_take_anothers_place(teacher: Path, taught: Path, tmp_path: Path) -> None:
    target = prepare_workspace(str(teacher), tmp_path / "out")
    assert add_students(target, [str(taught)]) == add_students(target, [str(taught)]) == ("tiny-3",)
    other = make_student(teacher, tmp_path / "tiny-3", seed=4)
    with pytest.raises(InvalidRequest, match="another tiny-3 than was measured"):
        add_students(target, [str(other)])
    assert read_manifest(target.directory / STUDENTS_FOLDER / "tiny-3", verify=True) == read_manifest(taught)


def test_a_student_by_itself_is_asked_for_nothing_that_it_does_not_know(taught: Path) -> None:
    manifest = read_manifest(taught)
    asked = [ImageRequest("a"), ImageRequest("b")]
    assert shorten_requests(manifest, asked) == asked
    unet = manifest.components["unet"].weights
    heavy = {**manifest.files, unet: replace(manifest.files[unet], bytes=ALWAYS_HASHED_BYTES << 10)}
    assert shorten_requests(replace(manifest, files=heavy), asked) == asked[:1], "no other count of steps"
    assert not has_oracle(manifest)
    assert manifest.distilled is not None
    assert has_oracle(replace(manifest, distilled=replace(manifest.distilled, teacher=("shapes", ""))))
