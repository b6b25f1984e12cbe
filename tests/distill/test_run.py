"""Distillation from the teacher's directory to the student's, for each kind of network."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from stillhouse.core import ImageRequest
from stillhouse.distill.data.image_folder import SkippedImage
from stillhouse.distill.run import DistillResult, distill
from stillhouse.distill.settings import EDIT_STRENGTHS, DistillSettings, LearningOverrides
from stillhouse.errors import FitFailed, ImportFailed, InvalidRequest
from stillhouse.fit.stage import UpdateLog
from stillhouse.images.files import write_png
from stillhouse.pipelines.load import load
from stillhouse.pipelines.manifest import read_manifest
from tests.conftest import Checkpoint

PROMPTS = "a red circle\na blue square\n\nthree green stars\n"


class RecordingProgress:
    """Records progress reports."""

    def __init__(self) -> None:
        self.updates: list[UpdateLog] = []
        self.encoded: list[int] = []
        self.totals: set[int] = set()
        self.skipped: list[str] = []

    def on_samples(self, done: int, total: int) -> None:
        self.encoded.append(done)
        self.totals.add(total)

    def on_skipped(self, image: SkippedImage) -> None:
        self.skipped.append(image.name)

    def on_update(self, update_log: UpdateLog) -> None:
        self.updates.append(update_log)


class InterruptingProgress(RecordingProgress):
    """Interrupts at the first update."""

    def on_update(self, update_log: UpdateLog) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DistillSettings:
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    prompts.write_text(PROMPTS)
    few = LearningOverrides(updates=2, batch_size=2, report_every=1, eval_every=2)
    return DistillSettings(
        step_counts=(4, 2), guidance=(1.0, 6.0), prompts=str(prompts), samples=3, eval_samples=2, learning=few
    )


@dataclass(frozen=True)
class Run:
    """A finished distillation with its files, which are not to be changed."""

    out: Path
    work: Path
    result: DistillResult
    progress: RecordingProgress


Runs = Callable[..., Run]


@pytest.fixture(scope="module")
def runs(
    smallest: Checkpoint, imported: Checkpoint, settings: DistillSettings, tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    """A distillation of a teacher by kind and changed settings; equal ones are made once.

    A `larger` teacher has two blocks instead of one, and cross-attention in one of them.
    """
    made: dict[str, Run] = {}

    def find(kind: str, all_students: bool = False, larger: bool = False, **changes: object) -> Run:
        key, teachers = repr((kind, all_students, larger, changes)), imported if larger else smallest
        if key not in made:
            folder, progress = tmp_path_factory.mktemp("run"), RecordingProgress()
            changed_settings = replace(settings, **changes)  # type: ignore[arg-type]
            out, work = folder / "student", folder / "work"
            result = distill(teachers(kind), out, changed_settings, work, progress, all_students=all_students)
            made[key] = Run(out, work, result, progress)
        return made[key]

    return find


@pytest.mark.parametrize(
    ("kind", "larger", "diffusers"),
    [
        ("sd1", False, StableDiffusionPipeline),
        ("sd2", False, StableDiffusionPipeline),
        ("sd21", False, StableDiffusionPipeline),
        ("xl", True, StableDiffusionXLPipeline),
    ],
)
def test_a_student_of_each_kind_generates_the_same_here_and_in_diffusers(
    runs: Runs, kind: str, larger: bool, diffusers: type[StableDiffusionPipeline]
) -> None:
    run = runs(kind, larger=larger)
    out = run.out
    assert run.result.directories == (out,)
    manifest = read_manifest(out, verify=True)
    assert manifest.distilled is not None and len(manifest.distilled.timesteps or ()) == 2
    assert manifest.sampling.prediction == "v_prediction" and manifest.distilled.guidance == (1.0, 6.0)
    assert manifest.sampling.schedule.zero_terminal_snr, "a student of few steps starts at pure noise"
    pipeline = load(out)
    result = pipeline.generate("a red circle", seed=3)
    assert result.request.steps == 2 and np.ptp(result.image) > 0
    diffusers_pipeline = diffusers.from_pretrained(out, trust_remote_code=True)
    diffusers_pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(
        (1, 4, *pipeline.start(result.request).latents.shape[1:]), generator=torch.Generator().manual_seed(5)
    )
    reference = diffusers_pipeline(
        "a red circle", num_inference_steps=2, guidance_scale=3.0, latents=noise.clone(), output_type="np"
    ).images[0]
    trajectory = pipeline.start(pipeline.resolve(replace(result.request, guidance=3.0)), noise=noise[0].numpy())
    while not trajectory.is_done:
        pipeline.advance([trajectory])
    picture = pipeline.finish(trajectory).image
    assert np.abs(picture.astype(int) - np.round(reference * 255).astype(int)).max() <= 1


def test_the_evidence_is_complete_and_a_second_run_trains_nothing(
    smallest: Checkpoint, settings: DistillSettings, runs: Runs, tmp_path: Path
) -> None:
    first, again, work = runs("sd2"), RecordingProgress(), tmp_path / "work"
    evidence = read_manifest(first.out).evidence["distill"]
    assert [one["name"] for one in evidence["students"]] == ["guidance", "2-steps"]
    assert all(one["updates"] == 2 and one["hours"] >= 0 and one["scores"] for one in evidence["students"])
    assert evidence["items"] == 3 and evidence["settings"]["step_counts"] == [4, 2]
    written = json.dumps(evidence)
    assert str(first.work.parent) not in written, "the evidence has no paths of this machine"
    assert str(settings.prompts) not in written
    assert first.progress.encoded == [1, 2, 3] and [log.update for log in first.progress.updates] == [1, 2, 1, 2]
    previews = sorted(path.name for path in (first.work / "previews").iterdir())
    assert previews == ["2-steps-000002.png", "guidance-000002.png"]
    assert (first.work / "2-steps.csv").exists()
    shutil.copytree(first.work, work)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPTS)
    moved = replace(settings, prompts=str(prompts))
    distill(smallest("sd2"), tmp_path / "two", moved, work, again)
    assert not again.updates and not again.encoded
    weights = [next((out / "unet").glob("*.safetensors")).read_bytes() for out in (first.out, tmp_path / "two")]
    assert weights[0] == weights[1]
    with pytest.raises(FitFailed, match="was trained with another teacher"):
        distill(smallest("sd2"), tmp_path / "three", replace(moved, guidance=(2.0, 6.0)), work, again)
    assert not again.encoded
    prompts.write_text("something else\n")
    with pytest.raises(FitFailed, match="was trained with another teacher"):
        distill(smallest("sd2"), tmp_path / "three", moved, work, again)
    assert again.encoded == [1, 2, 3] and not (tmp_path / "three").exists()


def test_all_students_of_a_chain_are_written_on_request(runs: Runs) -> None:
    """A tiny decoder is trained once, after the chain, and written with each student."""
    run = runs("sd2", all_students=True, step_counts=(4, 2, 1), decoder_width=16)
    stages = [log.stage for log in run.progress.updates]
    assert stages == [name for name in ("guidance", "2-steps", "1-steps", "decoder") for _ in range(2)]
    written = run.result.directories
    assert [path.name for path in written] == ["student-guidance", "student-2", "student"]
    manifests = [read_manifest(path, verify=True) for path in written]
    assert {manifest.components["decoder"].graph for manifest in manifests} == {"tiny_decoder/model.onnx"}
    assert all(manifest.evidence["distill"]["decoder"]["updates"] == 2 for manifest in manifests)
    first, second, last = manifests
    assert first.distilled and first.distilled.timesteps is None and first.distilled.method == "guidance"
    assert second.defaults.steps == 2 and last.defaults.steps == 1
    assert load(written[0]).generate("a red circle", steps=5, guidance=2.0).request.steps == 5


def test_a_passed_time_limit_writes_nothing_and_the_next_run_resumes(
    smallest: Checkpoint, settings: DistillSettings, tmp_path: Path
) -> None:
    limited = replace(settings, max_hours=1e-6)
    assert not distill(smallest("sd2"), tmp_path / "student", limited, tmp_path / "work", RecordingProgress()).is_done
    assert not (tmp_path / "student").exists()
    assert distill(smallest("sd2"), tmp_path / "student", settings, tmp_path / "work", RecordingProgress()).is_done


def test_the_lora_file_of_a_low_rank_student_is_small(runs: Runs) -> None:
    out = runs("sd2", lora_rank=1).out
    small = (out / "student_lora.safetensors").stat().st_size
    whole = next((out / "unet").glob("*.safetensors")).stat().st_size
    assert 0 < small < whole / 2
    assert "student_lora.safetensors" in read_manifest(out).files


def test_a_folder_is_trained_on_and_broken_pictures_are_reported(
    smallest: Checkpoint, settings: DistillSettings, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        write_png(pictures / f"{number}.png", np.full((40, 60, 3), 60 * number, np.uint8))
        (pictures / f"{number}.txt").write_text(f"grey number {number}")
    (pictures / "broken.png").write_bytes(b"no picture")
    (pictures / "broken.txt").write_text("what it would have been")
    write_png(pictures / "silent.png", np.zeros((8, 8, 3), np.uint8))
    progress = RecordingProgress()
    changed_settings = replace(settings, data=str(pictures), prompts=None, samples=50)
    distill(smallest("sd2"), tmp_path / "student", changed_settings, tmp_path / "work", progress)
    assert progress.skipped == ["broken.png", "silent.png"]
    assert progress.totals == {5}, "there are five pictures of fifty at most"
    evidence = read_manifest(tmp_path / "student").evidence["distill"]
    assert evidence["items"] == 3 and evidence["skipped"] == 2 and evidence["settings"]["data"] == "pictures"
    (file,) = (tmp_path / "work").glob("*/skipped.csv")
    lines = file.read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["picture", "broken.png", "silent.png"]
    again = RecordingProgress()
    distill(smallest("sd2"), tmp_path / "again", changed_settings, tmp_path / "work", again)
    assert not again.skipped and read_manifest(tmp_path / "again").evidence["distill"]["skipped"] == 2


def test_a_folder_without_captions_is_refused(smallest: Checkpoint, settings: DistillSettings, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    write_png(tmp_path / "pictures" / "silent.png", np.zeros((8, 8, 3), np.uint8))
    progress = RecordingProgress()
    changed_settings = replace(settings, data=str(tmp_path / "pictures"), prompts=None)
    with pytest.raises(
        InvalidRequest, match="the dataset has no samples; allowed: one picture with a caption, or more"
    ):
        distill(smallest("sd2"), tmp_path / "student", changed_settings, tmp_path / "work", progress)
    assert progress.skipped == ["silent.png"]
    (file,) = (tmp_path / "work").glob("*/skipped.csv")
    assert file.read_text().splitlines() == ["picture,reason", "silent.png,has no caption"]


def test_a_student_may_be_a_teacher_and_its_levels_are_kept(
    settings: DistillSettings, runs: Runs, tmp_path: Path
) -> None:
    """The middle level of two uniform steps is not one of the teacher's."""
    teacher = runs("sd2", step_counts=(8, 3)).out
    distill(teacher, tmp_path / "second", replace(settings, step_counts=(3, 2)), tmp_path / "two", RecordingProgress())
    first, second = (read_manifest(path).distilled for path in (teacher, tmp_path / "second"))
    assert first and second and first.timesteps and second.timesteps
    assert set(second.timesteps) < set(first.timesteps) and second.teacher[0] == teacher.name


def test_a_teacher_of_one_step_is_refused_first(settings: DistillSettings, tmp_path: Path) -> None:
    with pytest.raises(
        InvalidRequest,
        match="the teacher shapes-1 has one step, so no student can have fewer; allowed: a pipeline of two steps",
    ):
        distill(
            "shapes-1", tmp_path / "student", DistillSettings(data="shapes"), tmp_path / "work", RecordingProgress()
        )
    assert not list(tmp_path.glob("work*"))


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("sd2", {"step_counts": (1, 1)}, "a teacher of one step"),
        ("sd2", {"step_counts": (3, 9)}, "none larger than the one before"),
        ("sd2", {"step_counts": (4,)}, "two step counts or more"),
        ("sd2", {"prompts": None}, "neither data nor prompts"),
        ("sd2", {"data": "nowhere", "prompts": None}, "nowhere is not a folder"),
        ("inpaint", {}, "inpainting networks cannot be distilled yet"),
    ],
)
def test_invalid_settings_are_refused_before_training(
    smallest: Checkpoint,
    settings: DistillSettings,
    tmp_path: Path,
    kind: str,
    changed: dict[str, object],
    message: str,
) -> None:
    progress = RecordingProgress()
    with pytest.raises(InvalidRequest, match=message):
        distill(smallest(kind), tmp_path / "student", replace(settings, **changed), tmp_path / "work", progress)  # type: ignore[arg-type]
    assert not progress.updates and not (tmp_path / "student").exists()


def test_an_existing_pipeline_is_refused_before_training(
    smallest: Checkpoint, settings: DistillSettings, tmp_path: Path
) -> None:
    progress = RecordingProgress()
    with pytest.raises(ImportFailed, match="holds a pipeline already"):
        distill(smallest("sd2"), smallest("sd1"), settings, tmp_path / "work", progress)
    assert not progress.encoded


def test_a_loss_that_is_not_finite_raises_with_its_update(
    smallest: Checkpoint, settings: DistillSettings, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        distill(smallest("sd2"), tmp_path / "student", settings, tmp_path / "work", InterruptingProgress())
    (shard,) = (tmp_path / "work").glob("latents-*/*.pt")
    content = torch.load(shard, weights_only=True)
    torch.save({**content, "latents": content["latents"] * float("nan")}, shard)
    with pytest.raises(FitFailed, match="guidance: the loss of update 0 is nan; resume from the last checkpoint"):
        distill(smallest("sd2"), tmp_path / "student", settings, tmp_path / "work", RecordingProgress())
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_a_student_of_edits_takes_all_of_its_steps_at_any_strength(
    settings: DistillSettings, runs: Runs, tmp_path: Path, method: str
) -> None:
    run = runs("sd2", task="img2img", step_counts=(12, 6, 3), method=method)
    assert [log.stage for log in run.progress.updates][-1] == "edits"
    pipeline = load(run.out)
    defaults = pipeline.manifest.defaults
    image = np.full((defaults.height, defaults.width, 3), 90, np.uint8)
    for strength, resolved in ((0.33, 0.3), (0.8, 0.8), (1.0, 1.0), (None, 0.8)):
        trajectory = pipeline.start(ImageRequest("a red circle", image=image, strength=strength))
        assert trajectory.request.strength == resolved and trajectory.evaluation_count == 3
    other = replace(settings, task="img2img", step_counts=(3, 1))
    with pytest.raises(InvalidRequest, match="allowed: a teacher that takes any number of steps"):
        distill(run.out, tmp_path / "other", other, tmp_path / "other-work", RecordingProgress())


def test_a_tiny_decoder_replaces_the_autoencoders(
    smallest: Checkpoint, settings: DistillSettings, runs: Runs, tmp_path: Path
) -> None:
    """Train the decoder alone: the students are those of the earlier run."""
    shutil.copytree(runs("sd2").work, tmp_path / "work")
    changed_settings, progress = replace(settings, decoder_width=16), RecordingProgress()
    distill(smallest("sd2"), tmp_path / "student", changed_settings, tmp_path / "work", progress)
    assert {log.stage for log in progress.updates} == {"decoder"}
    manifest = read_manifest(tmp_path / "student", verify=True)
    assert manifest.components["decoder"].graph == "tiny_decoder/model.onnx"
    assert manifest.evidence["distill"]["decoder"]["updates"] == 2
    image = load(tmp_path / "student").generate("a red circle").image
    assert image.shape == (manifest.defaults.height, manifest.defaults.width, 3)
    diffusers_pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "student", trust_remote_code=True)
    assert diffusers_pipeline.vae.config.latent_channels == 4, "diffusers opens the autoencoder"


def test_a_teachers_range_of_guidance_cannot_be_exceeded(settings: DistillSettings, runs: Runs, tmp_path: Path) -> None:
    teacher = runs("sd2", step_counts=(8, 3)).out
    changed_settings = replace(settings, step_counts=(3, 2), guidance=(1.0, 9.0))
    with pytest.raises(InvalidRequest, match="allowed: within 1 to 6, the range of its own training"):
        distill(teacher, tmp_path / "second", changed_settings, tmp_path / "two", RecordingProgress())


REGRESSION = {"method": "trajectories", "step_counts": (6, 3, 1), "samples": 5, "dmd_weights": {"1": 1.0}}


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl"])
def test_a_student_of_trajectories_generates_and_can_be_continued(
    smallest: Checkpoint, settings: DistillSettings, runs: Runs, tmp_path: Path, kind: str
) -> None:
    regression = replace(settings, **REGRESSION)  # type: ignore[arg-type]
    run, again = runs(kind, all_students=True, **REGRESSION), RecordingProgress()
    three, last = run.result.directories
    assert [three.name, last.name] == ["student-3", "student"] and run.progress.encoded == [1, 2, 3, 4, 5]
    manifest = read_manifest(three, verify=True)
    assert manifest.distilled is not None and manifest.distilled.method == "trajectories"
    assert len(manifest.distilled.timesteps or ()) == 3
    image = load(three).generate("a red circle", seed=3)
    assert image.request.steps == 3 and np.ptp(image.image) > 0
    shutil.copytree(run.work, tmp_path / "work")
    distill(smallest(kind), tmp_path / "two", regression, tmp_path / "work", again)
    assert not again.updates and not again.encoded
    if kind == "sd2":
        continued = replace(regression, step_counts=(6, 3), init_from=str(three), seed=1, dmd_weights={})
        distill(smallest(kind), tmp_path / "three", continued, tmp_path / "more", RecordingProgress())
        evidence = read_manifest(tmp_path / "three").evidence["distill"]
        assert evidence["begun"]["name"] == three.name
        assert [one["name"] for one in evidence["students"]] == ["3-steps"]
        assert [one["name"] for one in evidence["begun"]["students"]] == ["3-steps", "1-steps"]
        assert not any(str(path) in json.dumps(evidence) for path in (tmp_path, three.parent, settings.prompts))
        wider = replace(continued, guidance=(1.0, 7.0))
        with pytest.raises(InvalidRequest, match="within 1 to 6, the range of its own training"):
            distill(smallest(kind), tmp_path / "four", wider, tmp_path / "more", RecordingProgress())


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_a_student_of_trajectories_takes_its_steps_for_edits_too(runs: Runs, kind: str) -> None:
    """With twelve steps, the first levels are noisier than those of an epsilon-prediction teacher."""
    changes = {"method": "trajectories", "task": "img2img", "step_counts": (12, 12, 2), "samples": 7}
    run = runs(kind, all_students=True, **changes)
    for place, steps in zip(run.result.directories, (12, 2), strict=True):
        distilled = read_manifest(place).distilled
        assert distilled is not None
        assert [(edit.strength, len(edit.timesteps)) for edit in distilled.edits] == [
            (one, steps) for one in EDIT_STRENGTHS
        ]
    pipeline = load(run.out)
    picture = pipeline.generate("a red circle", seed=3).image
    edited = pipeline.generate("a blue square", seed=3, image=picture, strength=0.5)
    assert edited.request.steps == 2 and edited.image.shape == picture.shape


def test_trajectories_need_a_teacher_without_a_grid(
    smallest: Checkpoint, settings: DistillSettings, runs: Runs, tmp_path: Path
) -> None:
    regression, empty = replace(settings, method="trajectories", step_counts=(4, 2)), tmp_path / "empty"
    empty.mkdir()
    Image.new("RGB", (8, 8)).save(empty / "one.png")
    student, _ = runs("sd2", all_students=True, **REGRESSION).result.directories
    for source, changed_settings, message in (
        (student, regression, "which is distilled itself"),
        (smallest("sd1"), replace(regression, init_from=str(student)), "was not distilled from this sd1"),
        (smallest("sd2"), replace(regression, init_from=str(smallest("sd2"))), "was not distilled from this sd2"),
        (smallest("sd2"), replace(regression, data=str(empty)), f"{empty} has no picture with a caption"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            distill(source, tmp_path / "none", changed_settings, tmp_path / "work", RecordingProgress())
    assert not (tmp_path / "none").exists()
