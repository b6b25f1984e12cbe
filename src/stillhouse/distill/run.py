"""From a teacher's pipeline to a student's, evidence included."""

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from stillhouse.convert.staging import check_target
from stillhouse.diffusion import TimestepGrid, grid_from_timesteps
from stillhouse.distill.data.image_folder import SkippedImage
from stillhouse.distill.data.latent_dataset import CachedLatents
from stillhouse.distill.data.shards import write_shards
from stillhouse.distill.data.sources import dataset_key, expected_samples
from stillhouse.distill.settings import DECODER, EDIT_STRENGTHS, IMG2IMG, DistillSettings
from stillhouse.distill.strategies import ProgressiveChain, Strategy, TrainingRun, TrajectoryRegression
from stillhouse.distill.student import write_student
from stillhouse.distill.training.decoder import DecoderStage, TinyDecoder
from stillhouse.distill.training.dmd import DistributionMatching
from stillhouse.distill.training.networks import Denoiser
from stillhouse.distill.training.preview_grid import render_preview_grid
from stillhouse.distill.training.progressive_chain import EDITS, ChainRecipe, Student, freeze
from stillhouse.distill.training.stage import DistillationStage
from stillhouse.distill.training.trajectory_chain import TRAJECTORY
from stillhouse.distill.training.trajectory_regression import TrajectoryRegressionStage
from stillhouse.errors import InvalidRequest
from stillhouse.fit.checkpoint import write_atomically
from stillhouse.fit.fit import fit
from stillhouse.fit.processes import current_process_group
from stillhouse.fit.stage import FitResult, Stage, UpdateLog
from stillhouse.images.png import write_png
from stillhouse.measure.machine import installed_versions, read_machine
from stillhouse.pipelines.load import find_pipeline, load
from stillhouse.pipelines.manifest import Manifest, files_checksum, read_manifest
from stillhouse.pipelines.pipeline import Pipeline

PREVIEWS = "strips"
SKIPPED_FILE = "skipped.csv"
_PACKAGES = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class DistillResult:
    """What became of it.

    Args:
        is_done: whether the last student has learnt; otherwise time was up.
        is_first: whether this process is the one of several that tells.
        written: the directories that were made.
    """

    is_done: bool
    is_main_process: bool
    directories: tuple[Path, ...] = ()


class DistillProgress(Protocol):
    """Who hears what is being done."""

    def on_samples(self, done: int, total: int) -> None:
        """So many pictures are encoded."""

    def on_skipped(self, image: SkippedImage) -> None:
        """A picture that cannot be learnt from."""

    def on_update(self, update_log: UpdateLog) -> None:
        """Some updates are made."""


def distill(
    source: str | Path,
    out: Path,
    settings: DistillSettings,
    work: Path,
    progress: DistillProgress,
    *,
    all_students: bool = False,
    force: bool = False,
) -> DistillResult:
    """Make the student's pipeline directory; what was learnt in an earlier run is not learnt again.

    Args:
        source: the teacher: a pipeline directory, or an embedded model's name.
        out: directory of the last student.
        settings: how.
        work: directory of what is encoded and learnt, of logs and of strips of pictures.
        told: hears what is being done.
        every: write all other students, too: `OUT-guidance`, `OUT-18`.
        force: replace pipelines that stand there.

    Raises:
        InvalidRequest: a teacher that cannot be learnt from, rounds that are none, no data.
        ImportFailed: `out` is taken.
        FitFailed: learning came to an end by itself; what was learnt is kept.
    """
    deadline = None if settings.max_hours is None else monotonic() + 3600 * settings.max_hours
    processes, directory = current_process_group(), find_pipeline(source)
    manifest = read_manifest(directory)
    _check_teacher_steps(manifest)
    _check_guidance(manifest, settings)
    teacher = open_teacher(directory, manifest)
    way = _select_strategy(directory, manifest, teacher, settings)
    names = way.student_names
    places = (
        {name: out.with_name(f"{out.name}-{name.removesuffix('-steps')}") for name in names[:-1]}
        if all_students
        else {}
    )
    places[names[-1]] = out
    for place in places.values():
        check_target(place, force)
    for place in (out, work):
        if Path(settings.data).is_dir() and place.resolve().is_relative_to(Path(settings.data).resolve()):
            raise InvalidRequest(f"{place} in the folder that is learnt from", allowed="a place outside of its data")
    pipeline = load(directory)
    folder = work / f"{way.data_kind}-{dataset_key(pipeline.manifest, settings)}"
    if processes.is_main_process and not _write_data(way, pipeline, settings, folder, progress, deadline):
        return DistillResult(False, True)
    watch = _preview_writer(pipeline, work / PREVIEWS) if processes.is_main_process else _ignore_update
    learnt = way.train(TrainingRun(folder, work, progress.on_update, watch, deadline))
    students = learnt.students
    if len(students) < len(names):
        return DistillResult(False, processes.is_main_process)
    evidence = _build_evidence(settings, learnt.sample_count, _count_skipped(folder), students, processes.count)
    decoder = None
    if settings.decoder_width:
        lesson = _decoder_stage(directory, manifest, settings, learnt.latents, folder.stem)
        fitted = fit(lesson, work, progress.on_update, deadline)
        if not fitted.is_done:
            return DistillResult(False, processes.is_main_process)
        decoder, evidence = lesson.decoder.eval(), {**evidence, "decoder": _training_summary(fitted)}
    for student in students if processes.is_main_process else ():
        if student.name in places:
            write_student(
                directory,
                student,
                places[student.name],
                guidance=(settings.guidance[0], settings.guidance[1]),
                decoder=decoder,
                evidence=evidence,
                force=force,
            )
    processes.broadcast_flag(True)  # nobody leaves before it is written: launchers end all when one does
    return DistillResult(True, processes.is_main_process, tuple(places.values()))


def _write_data(
    strategy: Strategy,
    pipeline: Pipeline,
    settings: DistillSettings,
    folder: Path,
    progress: DistillProgress,
    deadline: float | None,
) -> bool:
    """Whether all of what is learnt from is made. What cannot be learnt from is named in `SKIPPED` beside it."""
    left: list[SkippedImage] = []

    def skipped(one: SkippedImage) -> None:
        left.append(one)
        progress.on_skipped(one)

    total = expected_samples(settings)
    items, encoded = strategy.sample_source(pipeline, settings, skipped), strategy.shard_encoder(pipeline)
    try:
        return write_shards(items, encoded, folder, lambda done: progress.on_samples(done, max(done, total)), deadline)
    finally:
        if left:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / SKIPPED_FILE, partial(_write_skipped, left))


def _write_skipped(skipped: Iterable[SkippedImage], path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file).writerows([("picture", "reason"), *((one.name, one.reason) for one in skipped)])


def _count_skipped(folder: Path) -> int:
    """Pictures that could not be learnt from, whichever run found that."""
    if not (folder / SKIPPED_FILE).exists():
        return 0
    with (folder / SKIPPED_FILE).open(encoding="utf-8", newline="") as file:
        return len(list(csv.reader(file))) - 1


def open_teacher(directory: Path, manifest: Manifest) -> Denoiser:
    """Its U-Net in torch, on the GPU where there is one.

    Raises:
        InvalidRequest: a pipeline without diffusers' own files, or of a kind that is not distilled.
    """
    runs = (directory / manifest.components["unet"].weights).parent
    if runs != directory / "unet":
        given = f"{directory}, which has chosen its student {manifest.name}"
        raise InvalidRequest(given, fix=f"learn from {runs.parent}, or from its teacher")
    if not (directory / "unet" / "config.json").is_file():
        raise InvalidRequest(
            f"{directory} holds no unet/config.json",
            allowed="a pipeline that `stillhouse import` made, and its weights",
        )
    unet = UNet2DConditionModel.from_pretrained(directory / "unet", torch_dtype=torch.float32)
    if unet.config.in_channels != unet.config.out_channels:
        raise InvalidRequest(
            f"a U-Net that sees {unet.config.in_channels} channels and tells {unet.config.out_channels}",
            allowed="as many as it tells: networks for inpainting are not distilled yet",
        )
    unet = unet.to(device="cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last)
    return freeze(Denoiser(unet, manifest.schedule, manifest.prediction))


def _select_strategy(directory: Path, manifest: Manifest, teacher: Denoiser, settings: DistillSettings) -> Strategy:
    recipe = _chain_recipe(settings, teacher)
    if settings.method != TRAJECTORY:
        return ProgressiveChain(teacher, recipe, _teacher_grid(manifest))
    begun = "" if settings.init_from is None else files_checksum(read_manifest(find_pipeline(settings.init_from)))
    return TrajectoryRegression(teacher, _initial_student(directory, manifest, teacher, settings), recipe, begun)


def _initial_student(directory: Path, manifest: Manifest, teacher: Denoiser, settings: DistillSettings) -> Denoiser:
    """What the first student of walks begins as.

    Raises:
        InvalidRequest: what walks do not teach, or a beginning that learnt from another teacher.
    """
    if manifest.distilled is not None:
        given = f"method {TRAJECTORY} of {manifest.name}, which was distilled itself"
        raise InvalidRequest(given, allowed="its teacher, which walks any grid")
    if settings.init_from is None:
        return teacher
    place = find_pipeline(settings.init_from)
    begun = read_manifest(place)
    if begun.distilled is None or begun.distilled.teacher != (manifest.name, files_checksum(manifest)):
        given = f"{settings.init_from} as a beginning, which did not learn from this {manifest.name}"
        raise InvalidRequest(given, allowed=f"students of {directory}")
    _check_guidance(begun, settings)
    return open_teacher(place, begun)


def _check_teacher_steps(manifest: Manifest) -> None:
    if manifest.distilled is not None and len(manifest.distilled.timesteps or (0, 0)) == 1:
        given = f"{manifest.name} as a teacher, which takes one step already"
        raise InvalidRequest(given, allowed="pipelines of two steps or more: the one that it learnt from")


def _check_guidance(manifest: Manifest, settings: DistillSettings) -> None:
    if manifest.distilled is None:
        return
    least, most = manifest.distilled.guidance
    if settings.guidance[0] < least or settings.guidance[1] > most:
        given = f"guidance of {settings.guidance[0]:g} to {settings.guidance[1]:g} from {manifest.name}"
        raise InvalidRequest(given, allowed=f"within {least:g} to {most:g}, which it was taught")


def _teacher_grid(manifest: Manifest) -> TimestepGrid | None:
    if manifest.distilled is None or manifest.distilled.timesteps is None:
        return None
    return grid_from_timesteps(manifest.schedule, manifest.distilled.timesteps)


def _chain_recipe(settings: DistillSettings, teacher: Denoiser) -> ChainRecipe:
    parameters = sum(parameter.numel() for parameter in teacher.unet.parameters())
    least, most = settings.guidance
    return ChainRecipe(
        step_counts=settings.step_counts,
        method=settings.method,
        guidance=(least, most),
        guidance_recipe=settings.recipe("guidance", parameters),
        step_recipes={count: settings.recipe(str(count), parameters) for count in settings.step_counts[1:]},
        lora_rank=settings.lora_rank,
        weighting=settings.weighting,  # type: ignore[arg-type]
        huber=settings.huber,
        end_to_end_fraction=settings.end_to_end_fraction,
        dmd_weights={int(steps): weight for steps, weight in settings.dmd_weights.items()},
        eval_samples=settings.eval_samples,
        gradient_checkpointing=settings.gradient_checkpointing,
        edit_strengths=EDIT_STRENGTHS if settings.task == IMG2IMG else (),
        edit_recipe=settings.recipe(EDITS, parameters) if settings.task == IMG2IMG else None,
        seed=settings.seed,
    )


def _decoder_stage(
    directory: Path, manifest: Manifest, settings: DistillSettings, dataset: CachedLatents, origin: str
) -> DecoderStage:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        decoder = TinyDecoder(manifest.latent, settings.decoder_width)
    autoencoder = AutoencoderKL.from_pretrained(directory / "vae", torch_dtype=torch.float32)
    return DecoderStage(
        recipe=settings.recipe(DECODER, 0),
        decoder=decoder.to(device),
        autoencoder=autoencoder.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last),
        latent=manifest.latent,
        dataset=dataset,
        seed=settings.seed,
        fingerprint=f"{origin} {settings.decoder_width} {settings.seed}",
    )


def _preview_writer(pipeline: Pipeline, folder: Path) -> Callable[[Stage, UpdateLog], None]:
    def watch(stage: Stage, tick: UpdateLog) -> None:
        if tick.scores and isinstance(stage, DistillationStage | TrajectoryRegressionStage | DistributionMatching):
            folder.mkdir(parents=True, exist_ok=True)
            write_png(folder / f"{tick.stage}-{tick.update:06d}.png", render_preview_grid(stage, pipeline))

    return watch


def _ignore_update(stage: Stage, update_log: UpdateLog) -> None:
    pass


def _training_summary(result: FitResult) -> dict[str, Any]:
    taken = {"updates": result.updates, "hours": round(result.seconds / 3600, 4), "scores": dict(result.scores)}
    return {**taken, "recipe": None if result.recipe is None else asdict(result.recipe)}


def _build_evidence(
    settings: DistillSettings, sample_count: int, skipped: int, students: Iterable[Student], processes: int
) -> Mapping[str, Any]:
    said = {name: value for name, value in asdict(settings).items() if name not in ("data", "prompts", "begin")}
    begun = None if settings.init_from is None else read_manifest(find_pipeline(settings.init_from))
    return {
        "settings": {**said, "data": Path(settings.data).name},
        "begun": begun and {"name": begun.name, **begun.evidence.get("distill", {})},
        "items": sample_count,
        "skipped": skipped,
        "machine": read_machine(),
        "versions": installed_versions(_PACKAGES),
        "processes": processes,
        "students": [
            {
                "name": student.name,
                "method": student.method,
                "timesteps": None if student.grid is None else student.grid.timesteps.tolist(),
                **_training_summary(student.fitted),
            }
            for student in students
        ],
    }
