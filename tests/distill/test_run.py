"""From a teacher's directory to a student's: on networks of every kind that people have."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image

from stillhouse.convert.import_model import ImportOptions, import_model
from stillhouse.core import ImageRequest
from stillhouse.distill.data.image_folder import Skipped
from stillhouse.distill.run import distil
from stillhouse.distill.settings import STRENGTHS, Learning, Settings
from stillhouse.errors import FitFailed, ImportFailed, InvalidRequest
from stillhouse.fit.stage import Tick
from stillhouse.images.png import write_png
from stillhouse.pipelines.load import load
from stillhouse.pipelines.manifest import read_manifest
from tests.checkpoints import write_checkpoint

PROMPTS = "a red circle\na blue square\n\nthree green stars\n"


class Heard:
    """What was told."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []
        self.encoded: list[int] = []
        self.totals: set[int] = set()
        self.left: list[str] = []

    def items(self, done: int, total: int) -> None:
        self.encoded.append(done)
        self.totals.add(total)

    def skipped(self, one: Skipped) -> None:
        self.left.append(one.name)

    def tick(self, tick: Tick) -> None:
        self.ticks.append(tick)


class Leaves(Heard):
    """Interrupts as soon as something was learnt."""

    def tick(self, tick: Tick) -> None:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By kind: sd1 tells noise, sd2 velocity, xl has two text encoders; sd21 is sd2 that never saw pure noise."""
    folder = tmp_path_factory.mktemp("teachers")
    kinds = ("sd1", "sd2", "sd21", "xl", "inpaint")
    for kind in kinds:
        write_checkpoint("sd2" if kind == "sd21" else kind, folder / f"{kind}-checkpoint")
        if kind == "sd21":  # as Stability published it
            config = folder / "sd21-checkpoint" / "scheduler" / "scheduler_config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), "rescale_betas_zero_snr": False}))
        import_model(folder / f"{kind}-checkpoint", folder / kind, ImportOptions(kind))
    return {kind: folder / kind for kind in kinds}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPTS)
    few = Learning(updates=2, batch=2, report_every=1, judge_every=2)
    return Settings(rounds=(4, 2), guidance=(1.0, 6.0), prompts=str(prompts), items=3, judged=2, learning=few)


@pytest.mark.parametrize(
    ("kind", "diffusers"),
    [
        ("sd1", StableDiffusionPipeline),
        ("sd2", StableDiffusionPipeline),
        ("sd21", StableDiffusionPipeline),
        ("xl", StableDiffusionXLPipeline),
    ],
)
def test_a_student_of_any_of_them_draws_here_and_in_diffusers(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path, kind: str, diffusers: type[StableDiffusionPipeline]
) -> None:
    out = tmp_path / "student"
    assert distil(teachers[kind], out, settings, tmp_path / "work", Heard()).written == (out,)
    manifest = read_manifest(out, verify=True)
    assert manifest.distilled is not None and len(manifest.distilled.timesteps or ()) == 2
    assert manifest.prediction == "v_prediction" and manifest.distilled.guidance == (1.0, 6.0)
    assert manifest.schedule.zero_terminal_snr, "a student of few steps begins at pure noise"
    pipeline = load(out)
    result = pipeline.generate("a red circle", seed=3)
    assert result.request.steps == 2 and np.ptp(result.image) > 0
    theirs = diffusers.from_pretrained(out, trust_remote_code=True)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.randn(
        (1, 4, *pipeline.start(result.request).latents.shape[1:]), generator=torch.Generator().manual_seed(5)
    )
    drawn = theirs(
        "a red circle", num_inference_steps=2, guidance_scale=3.0, latents=noise.clone(), output_type="np"
    ).images[0]
    draft = pipeline.start(pipeline.resolve(replace(result.request, guidance=3.0)), noise=noise[0].numpy())
    while not draft.is_done:
        pipeline.advance([draft])
    ours = pipeline.finish(draft).image
    assert np.abs(ours.astype(int) - np.round(drawn * 255).astype(int)).max() <= 1


def test_the_evidence_says_what_was_done_and_a_second_run_learns_nothing_anew(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    heard, again = Heard(), Heard()
    distil(teachers["sd2"], tmp_path / "one", settings, tmp_path / "work", heard)
    evidence = read_manifest(tmp_path / "one").evidence["distill"]
    assert [one["name"] for one in evidence["students"]] == ["guidance", "2-steps"]
    assert all(one["updates"] == 2 and one["hours"] >= 0 and one["scores"] for one in evidence["students"])
    assert evidence["items"] == 3 and evidence["settings"]["rounds"] == [4, 2]
    assert str(tmp_path) not in json.dumps(evidence), "paths of whoever made it are nobody's business"
    assert heard.encoded == [1, 2, 3] and [tick.update for tick in heard.ticks] == [1, 2, 1, 2]
    strips = sorted(path.name for path in (tmp_path / "work" / "strips").iterdir())
    assert strips == ["2-steps-000002.png", "guidance-000002.png"]
    assert (tmp_path / "work" / "2-steps.csv").exists()
    distil(teachers["sd2"], tmp_path / "two", settings, tmp_path / "work", again)
    assert not again.ticks and not again.encoded
    weights = [next((tmp_path / name / "unet").glob("*.safetensors")).read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    with pytest.raises(FitFailed, match="was learnt from something else"):
        distil(teachers["sd2"], tmp_path / "three", replace(settings, guidance=(2.0, 6.0)), tmp_path / "work", again)
    assert not again.encoded
    Path(str(settings.prompts)).write_text("something else\n")
    with pytest.raises(FitFailed, match="was learnt from something else"):
        distil(teachers["sd2"], tmp_path / "three", settings, tmp_path / "work", again)
    assert again.encoded == [1, 2, 3] and not (tmp_path / "three").exists()


def test_every_student_of_the_chain_is_kept_where_that_is_asked_for(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    chain = replace(settings, rounds=(4, 2, 1))
    written = distil(teachers["sd2"], tmp_path / "student", chain, tmp_path / "work", Heard(), every=True).written
    assert [path.name for path in written] == ["student-guidance", "student-2", "student"]
    first, second, last = map(read_manifest, written)
    assert first.distilled and first.distilled.timesteps is None and first.distilled.method == "guidance"
    assert second.defaults.steps == 2 and last.defaults.steps == 1
    assert load(written[0]).generate("a red circle", steps=5, guidance=2.0).request.steps == 5


def test_no_time_writes_nothing_and_the_next_run_goes_on(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    hurried = replace(settings, max_hours=1e-6)
    assert not distil(teachers["sd2"], tmp_path / "student", hurried, tmp_path / "work", Heard()).is_done
    assert not (tmp_path / "student").exists()
    assert distil(teachers["sd2"], tmp_path / "student", settings, tmp_path / "work", Heard()).is_done


def test_factors_lie_beside_a_low_rank_student_and_are_small(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    distil(teachers["sd2"], tmp_path / "student", replace(settings, rank=1), tmp_path / "work", Heard())
    small = (tmp_path / "student" / "student_lora.safetensors").stat().st_size
    whole = next((tmp_path / "student" / "unet").glob("*.safetensors")).stat().st_size
    assert 0 < small < whole / 2
    assert "student_lora.safetensors" in read_manifest(tmp_path / "student").files


def test_a_folder_is_learnt_from_and_what_is_broken_in_it_is_told(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        write_png(pictures / f"{number}.png", np.full((40, 60, 3), 60 * number, np.uint8))
        (pictures / f"{number}.txt").write_text(f"grey number {number}")
    (pictures / "broken.png").write_bytes(b"no picture")
    (pictures / "broken.txt").write_text("what it would have been")
    write_png(pictures / "silent.png", np.zeros((8, 8, 3), np.uint8))
    heard = Heard()
    asked = replace(settings, data=str(pictures), prompts=None, items=50)
    distil(teachers["sd2"], tmp_path / "student", asked, tmp_path / "work", heard)
    assert heard.left == ["broken.png", "silent.png"]
    assert heard.totals == {5}, "there are five pictures, and fifty were allowed"
    evidence = read_manifest(tmp_path / "student").evidence["distill"]
    assert evidence["items"] == 3 and evidence["skipped"] == 2 and evidence["settings"]["data"] == "pictures"
    (named,) = (tmp_path / "work").glob("*/skipped.csv")
    lines = named.read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["picture", "broken.png", "silent.png"]
    again = Heard()
    distil(teachers["sd2"], tmp_path / "again", asked, tmp_path / "work", again)
    assert not again.left and read_manifest(tmp_path / "again").evidence["distill"]["skipped"] == 2


def test_a_folder_in_which_nothing_has_a_caption_is_refused(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    write_png(tmp_path / "pictures" / "silent.png", np.zeros((8, 8, 3), np.uint8))
    heard = Heard()
    asked = replace(settings, data=str(tmp_path / "pictures"), prompts=None)
    with pytest.raises(InvalidRequest, match="nothing to learn from; allowed: one picture with a caption, or more"):
        distil(teachers["sd2"], tmp_path / "student", asked, tmp_path / "work", heard)
    assert heard.left == ["silent.png"]
    (named,) = (tmp_path / "work").glob("*/skipped.csv")
    assert named.read_text().splitlines() == ["picture,reason", "silent.png,has no caption"]


def test_a_student_may_teach_and_its_grid_is_kept(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    distil(teachers["sd2"], tmp_path / "first", replace(settings, rounds=(8, 4)), tmp_path / "one", Heard())
    distil(tmp_path / "first", tmp_path / "second", replace(settings, rounds=(4, 2)), tmp_path / "two", Heard())
    first, second = (read_manifest(tmp_path / name).distilled for name in ("first", "second"))
    assert first and second and first.timesteps and second.timesteps
    assert set(second.timesteps) < set(first.timesteps) and second.teacher[0] == "first"


def test_a_teacher_that_takes_one_step_already_is_told_before_anything_else(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="shapes-1 as a teacher, which takes one step already; allowed: .* two"):
        distil("shapes-1", tmp_path / "student", Settings(data="shapes"), tmp_path / "work", Heard())
    assert not list(tmp_path.glob("work*"))


@pytest.mark.parametrize(
    ("kind", "changed", "told"),
    [
        ("sd2", {"rounds": (1, 1)}, "a teacher that takes one step"),
        ("sd2", {"rounds": (3, 9)}, "none larger than the one before"),
        ("sd2", {"rounds": (4,)}, "two counts of steps or more"),
        ("sd2", {"prompts": None}, "no data and no prompts"),
        ("sd2", {"data": "nowhere", "prompts": None}, "nowhere is no folder"),
        ("inpaint", {}, "networks for inpainting are not distilled yet"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_learnt(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path, kind: str, changed: dict[str, object], told: str
) -> None:
    heard = Heard()
    with pytest.raises(InvalidRequest, match=told):
        distil(teachers[kind], tmp_path / "student", replace(settings, **changed), tmp_path / "work", heard)  # type: ignore[arg-type]
    assert not heard.ticks and not (tmp_path / "student").exists()


def test_a_place_that_is_taken_is_said_before_anything_is_learnt(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    heard = Heard()
    with pytest.raises(ImportFailed, match="holds a pipeline already"):
        distil(teachers["sd2"], teachers["sd1"], settings, tmp_path / "work", heard)
    assert not heard.encoded


def test_numbers_that_are_none_stop_and_say_at_which_update(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        distil(teachers["sd2"], tmp_path / "student", settings, tmp_path / "work", Leaves())
    (pairs,) = (tmp_path / "work").glob("pairs-*/*.pt")
    kept = torch.load(pairs, weights_only=True)
    torch.save({**kept, "latents": kept["latents"] * float("nan")}, pairs)
    with pytest.raises(FitFailed, match="guidance: the loss of update 0 is nan; go on from the last checkpoint"):
        distil(teachers["sd2"], tmp_path / "student", settings, tmp_path / "work", Heard())
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_a_student_of_edits_takes_all_of_its_steps_whatever_the_strength(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path, method: str
) -> None:
    asked = replace(settings, task="img2img", rounds=(12, 6, 3), method=method)
    heard = Heard()
    distil(teachers["sd2"], tmp_path / "student", asked, tmp_path / "work", heard)
    assert [tick.stage for tick in heard.ticks][-1] == "edits"
    pipeline = load(tmp_path / "student")
    defaults = pipeline.manifest.defaults
    image = np.full((defaults.height, defaults.width, 3), 90, np.uint8)
    for strength, taken in ((0.33, 0.3), (0.8, 0.8), (1.0, 1.0), (None, 0.8)):
        request = pipeline.resolve(ImageRequest("a red circle", image=image, strength=strength))
        draft = pipeline.start(request)
        assert request.strength == taken and draft.evaluation_count == 3
    other = replace(settings, task="img2img", rounds=(3, 1))
    with pytest.raises(InvalidRequest, match="allowed: a teacher that walks any number of steps"):
        distil(tmp_path / "student", tmp_path / "other", other, tmp_path / "other-work", Heard())


def test_a_tiny_decoder_draws_instead_of_the_autoencoders(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    distil(teachers["sd2"], tmp_path / "student", replace(settings, decoder=16), tmp_path / "work", Heard())
    manifest = read_manifest(tmp_path / "student", verify=True)
    assert manifest.components["vae_decoder"].graph == "tiny_decoder/model.onnx"
    assert manifest.evidence["distill"]["decoder"]["updates"] == 2
    image = load(tmp_path / "student").generate("a red circle").image
    assert image.shape == (manifest.defaults.height, manifest.defaults.width, 3)
    theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "student", trust_remote_code=True)
    assert theirs.vae.config.latent_channels == 4, "diffusers opens it all the same"


def test_a_student_may_not_teach_what_it_was_not_taught(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    distil(teachers["sd2"], tmp_path / "first", replace(settings, rounds=(8, 4)), tmp_path / "one", Heard())
    asked = replace(settings, rounds=(4, 2), guidance=(1.0, 9.0))
    with pytest.raises(InvalidRequest, match="allowed: within 1 to 6, which it was taught"):
        distil(tmp_path / "first", tmp_path / "second", asked, tmp_path / "two", Heard())


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl"])
def test_a_student_of_walks_draws_and_goes_on_from_there(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path, kind: str
) -> None:
    walks = replace(settings, method="walks", rounds=(6, 3, 1), items=5, match={"1": 1.0})
    heard, again = Heard(), Heard()
    made = distil(teachers[kind], tmp_path / "one", walks, tmp_path / "work", heard, every=True)
    assert [place.name for place in made.written] == ["one-3", "one"] and heard.encoded == [1, 2, 3, 4, 5]
    manifest = read_manifest(tmp_path / "one-3", verify=True)
    assert manifest.distilled is not None and manifest.distilled.method == "walks"
    assert len(manifest.distilled.timesteps or ()) == 3
    result = load(tmp_path / "one-3").generate("a red circle", seed=3)
    assert result.request.steps == 3 and np.ptp(result.image) > 0
    distil(teachers[kind], tmp_path / "two", walks, tmp_path / "work", again)
    assert not again.ticks and not again.encoded
    if kind == "sd2":
        onwards = replace(walks, rounds=(6, 3), begin=str(tmp_path / "one-3"), seed=1, match={})
        distil(teachers[kind], tmp_path / "three", onwards, tmp_path / "more", Heard())
        evidence = read_manifest(tmp_path / "three").evidence["distill"]
        assert evidence["begun"]["name"] == "one-3" and [one["name"] for one in evidence["students"]] == ["3-steps"]
        assert [one["name"] for one in evidence["begun"]["students"]] == ["3-steps", "1-steps"]
        assert str(tmp_path) not in json.dumps(evidence)
        steered = replace(onwards, guidance=(1.0, 7.0))
        with pytest.raises(InvalidRequest, match="within 1 to 6, which it was taught"):
            distil(teachers[kind], tmp_path / "four", steered, tmp_path / "more", Heard())


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_a_student_of_walks_takes_its_steps_for_edits_too(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path, kind: str
) -> None:
    """Of twelve steps, so that its first levels are such as its teacher, which tells noise, does not know."""
    walks = replace(settings, method="walks", task="img2img", rounds=(12, 12, 2), items=7)
    made = distil(teachers[kind], tmp_path / "one", walks, tmp_path / "work", Heard(), every=True)
    for place, steps in zip(made.written, (12, 2), strict=True):
        distilled = read_manifest(place).distilled
        assert distilled is not None
        assert [(edit.strength, len(edit.timesteps)) for edit in distilled.edits] == [(one, steps) for one in STRENGTHS]
    pipeline = load(tmp_path / "one")
    picture = pipeline.generate("a red circle", seed=3).image
    edited = pipeline.generate("a blue square", seed=3, image=picture, strength=0.5)
    assert edited.request.steps == 2 and edited.image.shape == picture.shape


def test_walks_are_of_teachers_that_walk_any_grid(
    teachers: dict[str, Path], settings: Settings, tmp_path: Path
) -> None:
    walks, empty = replace(settings, method="walks", rounds=(4, 2)), tmp_path / "empty"
    empty.mkdir()
    Image.new("RGB", (8, 8)).save(empty / "one.png")
    distil(teachers["sd2"], tmp_path / "student", walks, tmp_path / "work", Heard())
    for source, asked, told in (
        (tmp_path / "student", walks, "which was distilled itself"),
        (teachers["sd1"], replace(walks, begin=str(tmp_path / "student")), "did not learn from this sd1"),
        (teachers["sd2"], replace(walks, begin=str(teachers["sd2"])), "did not learn from this sd2"),
        (teachers["sd2"], replace(walks, data=str(empty)), f"no picture with a caption in {empty}"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            distil(source, tmp_path / "none", asked, tmp_path / "work", Heard())
    assert not (tmp_path / "none").exists()
