"""Distillation of a teacher pipeline: prepare the data, train students of fewer steps, and write their pipelines."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL

from stillhouse.convert.staging import check_target
from stillhouse.diffusion import TimestepGrid, grid_from_timesteps
from stillhouse.distill.data.image_folder import SkippedImage
from stillhouse.distill.data.latent_dataset import CachedLatents
from stillhouse.distill.data.shards import write_shards
from stillhouse.distill.data.sources import dataset_key, expected_samples
from stillhouse.distill.settings import DECODER, EDIT_STRENGTHS, IMG2IMG, DistillSettings
from stillhouse.distill.strategies import ProgressiveChain, Strategy, TrainingOutcome, TrajectoryRegression
from stillhouse.distill.student import write_student
from stillhouse.distill.training.decoder import DecoderStage, TinyDecoder
from stillhouse.distill.training.distillation_stage import DistillationStage
from stillhouse.distill.training.dmd import DistributionMatching
from stillhouse.distill.training.networks import DENOISER_FOLDER, Denoiser, read_network
from stillhouse.distill.training.preview_grid import render_preview_grid
from stillhouse.distill.training.progressive_chain import EDITS, ChainRecipe, TrainingRun, freeze
from stillhouse.distill.training.trajectory_chain import TRAJECTORIES
from stillhouse.distill.training.trajectory_regression import TrajectoryRegressionStage
from stillhouse.errors import InvalidRequest
from stillhouse.fit.checkpoint import write_atomically
from stillhouse.fit.fit import fit
from stillhouse.fit.processes import current_process_group
from stillhouse.fit.stage import FitResult, Stage, UpdateLog
from stillhouse.images.files import write_png
from stillhouse.measure.machine import installed_versions, read_machine
from stillhouse.pipelines.load import find_pipeline, load
from stillhouse.pipelines.manifest import Manifest, files_checksum, read_manifest
from stillhouse.pipelines.pipeline import Pipeline

PREVIEWS = "previews"
"""Name of the folder in the work directory that holds preview images of the training."""
SKIPPED_FILE = "skipped.csv"
"""Name of the CSV file in the data folder that lists the unusable training pictures and the reason for each."""
_PACKAGES = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class DistillResult:
    """Result of `distill`.

    Args:
        is_done: whether all students were trained; False: the time limit passed first.
        is_main_process: whether this process has rank 0 among several training processes; only rank 0 writes files and
            reports progress.
        directories: the students' pipeline directories that this run wrote; empty where `is_done` is False.
    """

    is_done: bool
    is_main_process: bool
    directories: tuple[Path, ...] = ()


class DistillProgress(Protocol):
    """Receiver of the progress reports of `distill`; of several training processes, only rank 0 calls the methods."""

    def on_samples(self, done: int, total: int) -> None:
        """Report that `done` of `total` training samples are encoded."""

    def on_skipped(self, image: SkippedImage) -> None:
        """Report a training picture that cannot be used, and the reason."""

    def on_update(self, update_log: UpdateLog) -> None:
        """Report the progress in training one network: number of the update, loss and scores."""


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
    """Train students of a teacher, each with fewer sampling steps, and write the last student's pipeline directory.

    A repeated run with the same work directory skips data that are already encoded and students that are already
    trained.

    Args:
        source: the teacher: a pipeline directory, or the name of a model that ships with the package.
        out: pipeline directory to write the last student to.
        settings: data, method and hyper-parameters of the distillation.
        work: directory for cached data, checkpoints, logs and previews.
        progress: receives progress reports.
        all_students: also write the earlier students, into directories such as `OUT-guidance` and `OUT-18`.
        force: replace existing pipelines.

    Raises:
        InvalidRequest: the teacher cannot be distilled, the settings do not fit the teacher, or there are no data.
        ImportFailed: a directory to write already holds files, and `force` does not allow replacing them.
        FitFailed: training cannot continue; the checkpoints remain.
    """
    deadline = None if settings.max_hours is None else monotonic() + 3600 * settings.max_hours
    processes, directory = current_process_group(), find_pipeline(source)
    manifest = read_manifest(directory)
    _check_teacher_steps(manifest)
    _check_guidance(manifest, settings)
    teacher = open_teacher(directory, manifest)
    strategy = _select_strategy(directory, manifest, teacher, settings)
    targets = _student_directories(out, strategy.student_names, all_students)
    _check_directories(targets.values(), out, work, settings, force)
    pipeline = load(directory, measure=False)  # the same data on every machine
    folder = work / f"{strategy.data_kind}-{dataset_key(pipeline.manifest, settings)}"
    if processes.is_main_process and not _write_data(strategy, pipeline, settings, folder, progress, deadline):
        return DistillResult(False, True)
    observer = _preview_writer(pipeline, work / PREVIEWS) if processes.is_main_process else _ignore_update
    outcome = strategy.train(folder, TrainingRun(work, progress.on_update, observer, deadline))
    if len(outcome.students) < len(strategy.student_names):
        return DistillResult(False, processes.is_main_process)
    evidence = _build_evidence(settings, outcome, _count_skipped(folder), processes.count)
    decoder = None
    if settings.decoder_width:
        stage = _decoder_stage(directory, manifest, settings, outcome.latents, folder.stem)
        result = fit(stage, work, progress.on_update, deadline)
        if not result.is_done:
            return DistillResult(False, processes.is_main_process)
        decoder, evidence = stage.decoder.eval(), {**evidence, "decoder": _training_summary(result)}
    guidance = settings.guidance[0], settings.guidance[1]
    for student in outcome.students if processes.is_main_process else ():
        if target := targets.get(student.name):
            write_student(
                directory, student, target, guidance=guidance, decoder=decoder, evidence=evidence, force=force
            )
    # A launcher such as torchrun ends all processes when one process exits. The other processes therefore wait here
    # until the main process has written the students.
    processes.broadcast_flag(True)
    return DistillResult(True, processes.is_main_process, tuple(targets.values()))


def _student_directories(out: Path, names: Sequence[str], all_students: bool) -> dict[str, Path]:
    """Return the directories of the students to write, by the student's name.

    The last student is written to `out`. The earlier students are written beside `out`, but only if `all_students`.
    """
    others = names[:-1] if all_students else ()
    return {name: out.with_name(f"{out.name}-{name.removesuffix('-steps')}") for name in others} | {names[-1]: out}


def _check_directories(targets: Iterable[Path], out: Path, work: Path, settings: DistillSettings, force: bool) -> None:
    """Check, before the training starts, that the directories may be written.

    Args:
        targets: pipeline directories of the students.
        out: pipeline directory of the last student.
        work: directory for cached data, checkpoints, logs and previews.
        settings: settings, which may name a folder of training pictures.
        force: whether pipelines in `targets` may be replaced.

    Raises:
        ImportFailed: a target is not empty, and `force` does not allow replacing its content.
        InvalidRequest: `out` or `work` is inside the folder of training pictures.
    """
    for target in targets:
        check_target(target, force)
    for directory in (out, work):
        if Path(settings.data).is_dir() and directory.resolve().is_relative_to(Path(settings.data).resolve()):
            problem = f"{directory} is inside the folder of training pictures {settings.data}"
            raise InvalidRequest(problem, allowed="a directory outside of this folder")


def _write_data(
    strategy: Strategy,
    pipeline: Pipeline,
    settings: DistillSettings,
    folder: Path,
    progress: DistillProgress,
    deadline: float | None,
) -> bool:
    """Encode the missing training data into `folder` and write the list of skipped pictures.

    Args:
        strategy: way to train, which decides the kind of data.
        pipeline: the teacher.
        settings: which data, how many samples, and the seed.
        folder: folder that caches the data.
        progress: receives progress reports and each skipped picture.
        deadline: time of `time.monotonic` in seconds after which no sample is encoded; None: no limit.

    Returns:
        whether the data are complete; False: the deadline passed first.
    """
    skipped: list[SkippedImage] = []

    def on_skipped(image: SkippedImage) -> None:
        skipped.append(image)
        progress.on_skipped(image)

    def on_progress(done: int) -> None:
        progress.on_samples(done, max(done, total))

    total = expected_samples(settings)
    samples, encode = strategy.sample_source(pipeline, settings, on_skipped), strategy.shard_encoder(pipeline)
    try:
        return write_shards(samples, encode, folder, on_progress, deadline)
    finally:
        if skipped:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / SKIPPED_FILE, partial(_write_skipped, skipped))


def _write_skipped(skipped: Iterable[SkippedImage], path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file).writerows([("picture", "reason"), *((image.name, image.reason) for image in skipped)])


def _count_skipped(folder: Path) -> int:
    """Return the number of pictures that `SKIPPED_FILE` lists, 0 where this file does not exist."""
    if not (folder / SKIPPED_FILE).exists():
        return 0
    with (folder / SKIPPED_FILE).open(encoding="utf-8", newline="") as file:
        return len(list(csv.reader(file))) - 1


def open_teacher(directory: Path, manifest: Manifest) -> Denoiser:
    """Open the denoiser of a teacher in torch with frozen weights, on the GPU if the machine has one.

    Args:
        directory: the teacher's pipeline directory.
        manifest: content of the directory's `stillhouse.json`.

    Raises:
        InvalidRequest: the pipeline has no diffusers files, runs the denoiser of a student, or has a denoiser whose
            numbers of input and output channels differ (inpainting).
    """
    folder = (directory / manifest.components["denoiser"].weights).parent
    if folder != directory / DENOISER_FOLDER:
        problem = f"{directory} runs the denoiser of the student {manifest.name} instead of its own"
        raise InvalidRequest(problem, fix=f"distil the student's directory {folder.parent}, or the student's teacher")
    if not (directory / DENOISER_FOLDER / "config.json").is_file():
        raise InvalidRequest(
            f"{directory} has no {DENOISER_FOLDER}/config.json, which training needs",
            allowed="a pipeline that `stillhouse import` wrote, with its weights",
        )
    network = read_network(directory)
    if network.config.in_channels != network.config.out_channels:
        raise InvalidRequest(
            f"the denoiser has {network.config.in_channels} input and {network.config.out_channels} output channels",
            allowed="equal numbers of channels: inpainting networks cannot be distilled yet",
        )
    network = network.to(device="cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last)
    return freeze(Denoiser(network, manifest.sampling.schedule, manifest.sampling.prediction))


def _select_strategy(directory: Path, manifest: Manifest, teacher: Denoiser, settings: DistillSettings) -> Strategy:
    recipe = _chain_recipe(settings, teacher)
    if settings.method != TRAJECTORIES:
        return ProgressiveChain(teacher, recipe, _teacher_grid(manifest))
    initial = _initial_student(directory, manifest, teacher, settings)
    checksum = "" if settings.init_from is None else files_checksum(read_manifest(find_pipeline(settings.init_from)))
    return TrajectoryRegression(teacher, initial, recipe, checksum)


def _initial_student(directory: Path, manifest: Manifest, teacher: Denoiser, settings: DistillSettings) -> Denoiser:
    """Return the denoiser from whose weights the first student of trajectory regression starts.

    This is the denoiser of the pipeline `settings.init_from`, or `teacher` where this setting is None.

    Args:
        directory: the teacher's pipeline directory, for the error message.
        manifest: the teacher's manifest.
        teacher: the teacher's denoiser.
        settings: settings of the distillation.

    Raises:
        InvalidRequest: the teacher is itself a distilled model, or `init_from` is not a student of this teacher, or the
            settings' guidance scales exceed the range that `init_from` was trained for.
    """
    if manifest.distilled is not None:
        problem = f"method {TRAJECTORIES} cannot use the teacher {manifest.name}, which is distilled itself"
        allowed = f"a teacher that may be sampled at any timesteps, such as {manifest.distilled.teacher[0]}"
        raise InvalidRequest(problem, allowed=allowed)
    if settings.init_from is None:
        return teacher
    initial_directory = find_pipeline(settings.init_from)
    initial = read_manifest(initial_directory)
    if initial.distilled is None or initial.distilled.teacher != (manifest.name, files_checksum(manifest)):
        problem = f"init_from is {settings.init_from}, which was not distilled from this {manifest.name}"
        raise InvalidRequest(problem, allowed=f"a student that was distilled from {directory}")
    _check_guidance(initial, settings)
    return open_teacher(initial_directory, initial)


def _check_teacher_steps(manifest: Manifest) -> None:
    if manifest.distilled is not None and len(manifest.distilled.timesteps or (0, 0)) == 1:
        problem = f"the teacher {manifest.name} has one step, so no student can have fewer"
        raise InvalidRequest(problem, allowed="a pipeline of two steps or more, such as this teacher's own teacher")


def _check_guidance(manifest: Manifest, settings: DistillSettings) -> None:
    if manifest.distilled is None:
        return
    smallest, largest = manifest.distilled.guidance
    if settings.guidance[0] < smallest or settings.guidance[1] > largest:
        given = f"{settings.guidance[0]:g} to {settings.guidance[1]:g}"
        problem = f"guidance is {given}, a range for which {manifest.name} was not trained"
        raise InvalidRequest(problem, allowed=f"within {smallest:g} to {largest:g}, the range of its own training")


def _teacher_grid(manifest: Manifest) -> TimestepGrid | None:
    if manifest.distilled is None or manifest.distilled.timesteps is None:
        return None
    return grid_from_timesteps(manifest.sampling.schedule, manifest.distilled.timesteps)


def _chain_recipe(settings: DistillSettings, teacher: Denoiser) -> ChainRecipe:
    parameters = sum(parameter.numel() for parameter in teacher.network.parameters())
    smallest, largest = settings.guidance
    return ChainRecipe(
        step_counts=settings.step_counts,
        method=settings.method,
        guidance=(smallest, largest),
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
    def write_preview(stage: Stage, log: UpdateLog) -> None:
        if log.scores and isinstance(stage, DistillationStage | TrajectoryRegressionStage | DistributionMatching):
            folder.mkdir(parents=True, exist_ok=True)
            write_png(folder / f"{log.stage}-{log.update:06d}.png", render_preview_grid(stage, pipeline))

    return write_preview


def _ignore_update(stage: Stage, update_log: UpdateLog) -> None:
    pass


def _training_summary(result: FitResult) -> dict[str, Any]:
    return {
        "updates": result.updates,
        "hours": round(result.seconds / 3600, 4),
        "scores": dict(result.scores),
        "recipe": None if result.recipe is None else asdict(result.recipe),
    }


def _build_evidence(
    settings: DistillSettings, outcome: TrainingOutcome, skipped: int, processes: int
) -> Mapping[str, Any]:
    """Return the record of the training for the student's manifest: settings, machine, versions and scores.

    The record contains no paths of this machine.

    Args:
        settings: settings of the distillation.
        outcome: the trained students.
        skipped: number of training pictures that could not be used.
        processes: number of training processes.
    """
    values = {name: value for name, value in asdict(settings).items() if name not in ("data", "prompts", "init_from")}
    initial = None if settings.init_from is None else read_manifest(find_pipeline(settings.init_from))
    return {
        "settings": {**values, "data": Path(settings.data).name},
        "begun": initial and {"name": initial.name, **initial.evidence.get("distill", {})},
        "items": outcome.sample_count,
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
            for student in outcome.students
        ],
    }
