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
from stillhouse.distill.data.image_folder import Skipped
from stillhouse.distill.data.latent_dataset import KeptPairs
from stillhouse.distill.data.shards import keep
from stillhouse.distill.data.sources import expected, key_of
from stillhouse.distill.settings import DECODER, EDITING, STRENGTHS, Settings
from stillhouse.distill.strategies import ByChain, ByWalks, Learning, Way
from stillhouse.distill.student import write_student
from stillhouse.distill.training.decoder import DecoderLesson, TinyDecoder
from stillhouse.distill.training.dmd import MatchLesson
from stillhouse.distill.training.networks import Denoiser
from stillhouse.distill.training.preview_grid import strip
from stillhouse.distill.training.progressive_chain import EDITS, ChainRecipe, Student, frozen
from stillhouse.distill.training.stage import Lesson
from stillhouse.distill.training.trajectory_chain import WALKS
from stillhouse.distill.training.trajectory_regression import WalkLesson
from stillhouse.errors import InvalidRequest
from stillhouse.fit.checkpoint import write_atomically
from stillhouse.fit.fit import fit
from stillhouse.fit.processes import launched
from stillhouse.fit.stage import Fitted, Stage, Tick
from stillhouse.images.png import write_png
from stillhouse.measure.machine import machine, versions
from stillhouse.pipelines.load import find_pipeline, load
from stillhouse.pipelines.manifest import Manifest, files_checksum, read_manifest
from stillhouse.pipelines.pipeline import Pipeline

STRIPS = "strips"
SKIPPED = "skipped.csv"
_PACKAGES = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class Made:
    """What became of it.

    Args:
        is_done: whether the last student has learnt; otherwise time was up.
        is_first: whether this process is the one of several that tells.
        written: the directories that were made.
    """

    is_done: bool
    is_first: bool
    written: tuple[Path, ...] = ()


class Told(Protocol):
    """Who hears what is being done."""

    def items(self, done: int, total: int) -> None:
        """So many pictures are encoded."""

    def skipped(self, one: Skipped) -> None:
        """A picture that cannot be learnt from."""

    def tick(self, tick: Tick) -> None:
        """Some updates are made."""


def distil(
    source: str | Path,
    out: Path,
    settings: Settings,
    work: Path,
    told: Told,
    *,
    every: bool = False,
    force: bool = False,
) -> Made:
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
    processes, directory = launched(), find_pipeline(source)
    manifest = read_manifest(directory)
    _check_steps(manifest)
    _check_guidance(manifest, settings)
    teacher = open_teacher(directory, manifest)
    way = _way(directory, manifest, teacher, settings)
    names = way.names
    places = {name: out.with_name(f"{out.name}-{name.removesuffix('-steps')}") for name in names[:-1]} if every else {}
    places[names[-1]] = out
    for place in places.values():
        check_target(place, force)
    for place in (out, work):
        if Path(settings.data).is_dir() and place.resolve().is_relative_to(Path(settings.data).resolve()):
            raise InvalidRequest(f"{place} in the folder that is learnt from", allowed="a place outside of its data")
    pipeline = load(directory)
    folder = work / f"{way.kind}-{key_of(pipeline.manifest, settings)}"
    if processes.is_first and not _kept(way, pipeline, settings, folder, told, deadline):
        return Made(False, True)
    watch = _strips(pipeline, work / STRIPS) if processes.is_first else _nobody
    learnt = way.learn(Learning(folder, work, told.tick, watch, deadline))
    students = learnt.students
    if len(students) < len(names):
        return Made(False, processes.is_first)
    evidence = _evidence(settings, learnt.items, _count_skipped(folder), students, processes.count)
    decoder = None
    if settings.decoder:
        lesson = _decoder(directory, manifest, settings, learnt.pictures, folder.stem)
        fitted = fit(lesson, work, told.tick, deadline)
        if not fitted.is_done:
            return Made(False, processes.is_first)
        decoder, evidence = lesson.decoder.eval(), {**evidence, "decoder": _taken(fitted)}
    for student in students if processes.is_first else ():
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
    processes.agreed(True)  # nobody leaves before it is written: launchers end all when one does
    return Made(True, processes.is_first, tuple(places.values()))


def _kept(way: Way, pipeline: Pipeline, settings: Settings, folder: Path, told: Told, deadline: float | None) -> bool:
    """Whether all of what is learnt from is made. What cannot be learnt from is named in `SKIPPED` beside it."""
    left: list[Skipped] = []

    def skipped(one: Skipped) -> None:
        left.append(one)
        told.skipped(one)

    total = expected(settings)
    items, encoded = way.items(pipeline, settings, skipped), way.encoded(pipeline)
    try:
        return keep(items, encoded, folder, lambda done: told.items(done, max(done, total)), deadline)
    finally:
        if left:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / SKIPPED, partial(_write_skipped, left))


def _write_skipped(left: Iterable[Skipped], path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file).writerows([("picture", "reason"), *((one.name, one.reason) for one in left)])


def _count_skipped(folder: Path) -> int:
    """Pictures that could not be learnt from, whichever run found that."""
    if not (folder / SKIPPED).exists():
        return 0
    with (folder / SKIPPED).open(encoding="utf-8", newline="") as file:
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
    return frozen(Denoiser(unet, manifest.schedule, manifest.prediction))


def _way(directory: Path, manifest: Manifest, teacher: Denoiser, settings: Settings) -> Way:
    recipe = _recipe(settings, teacher)
    if settings.method != WALKS:
        return ByChain(teacher, recipe, _only_grid(manifest))
    begun = "" if settings.begin is None else files_checksum(read_manifest(find_pipeline(settings.begin)))
    return ByWalks(teacher, _first(directory, manifest, teacher, settings), recipe, begun)


def _first(directory: Path, manifest: Manifest, teacher: Denoiser, settings: Settings) -> Denoiser:
    """What the first student of walks begins as.

    Raises:
        InvalidRequest: what walks do not teach, or a beginning that learnt from another teacher.
    """
    if manifest.distilled is not None:
        given = f"method {WALKS} of {manifest.name}, which was distilled itself"
        raise InvalidRequest(given, allowed="its teacher, which walks any grid")
    if settings.begin is None:
        return teacher
    place = find_pipeline(settings.begin)
    begun = read_manifest(place)
    if begun.distilled is None or begun.distilled.teacher != (manifest.name, files_checksum(manifest)):
        given = f"{settings.begin} as a beginning, which did not learn from this {manifest.name}"
        raise InvalidRequest(given, allowed=f"students of {directory}")
    _check_guidance(begun, settings)
    return open_teacher(place, begun)


def _check_steps(manifest: Manifest) -> None:
    if manifest.distilled is not None and len(manifest.distilled.timesteps or (0, 0)) == 1:
        given = f"{manifest.name} as a teacher, which takes one step already"
        raise InvalidRequest(given, allowed="pipelines of two steps or more: the one that it learnt from")


def _check_guidance(manifest: Manifest, settings: Settings) -> None:
    if manifest.distilled is None:
        return
    least, most = manifest.distilled.guidance
    if settings.guidance[0] < least or settings.guidance[1] > most:
        given = f"guidance of {settings.guidance[0]:g} to {settings.guidance[1]:g} from {manifest.name}"
        raise InvalidRequest(given, allowed=f"within {least:g} to {most:g}, which it was taught")


def _only_grid(manifest: Manifest) -> TimestepGrid | None:
    if manifest.distilled is None or manifest.distilled.timesteps is None:
        return None
    return grid_from_timesteps(manifest.schedule, manifest.distilled.timesteps)


def _recipe(settings: Settings, teacher: Denoiser) -> ChainRecipe:
    parameters = sum(parameter.numel() for parameter in teacher.unet.parameters())
    least, most = settings.guidance
    return ChainRecipe(
        counts=settings.rounds,
        method=settings.method,
        guidance=(least, most),
        inside=settings.recipe("guidance", parameters),
        rounds={count: settings.recipe(str(count), parameters) for count in settings.rounds[1:]},
        rank=settings.rank,
        weighting=settings.weighting,  # type: ignore[arg-type]
        huber=settings.huber,
        through=settings.through,
        match={int(steps): weight for steps, weight in settings.match.items()},
        judged=settings.judged,
        checkpointing=settings.checkpointing,
        strengths=STRENGTHS if settings.task == EDITING else (),
        edits=settings.recipe(EDITS, parameters) if settings.task == EDITING else None,
        seed=settings.seed,
    )


def _decoder(directory: Path, manifest: Manifest, settings: Settings, pairs: KeptPairs, origin: str) -> DecoderLesson:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        decoder = TinyDecoder(manifest.latent, settings.decoder)
    autoencoder = AutoencoderKL.from_pretrained(directory / "vae", torch_dtype=torch.float32)
    return DecoderLesson(
        recipe=settings.recipe(DECODER, 0),
        decoder=decoder.to(device),
        autoencoder=autoencoder.eval().requires_grad_(False).to(device=device, memory_format=torch.channels_last),
        latent=manifest.latent,
        pairs=pairs,
        seed=settings.seed,
        identity=f"{origin} {settings.decoder} {settings.seed}",
    )


def _strips(pipeline: Pipeline, where: Path) -> Callable[[Stage, Tick], None]:
    def watch(stage: Stage, tick: Tick) -> None:
        if tick.scores and isinstance(stage, Lesson | WalkLesson | MatchLesson):
            where.mkdir(parents=True, exist_ok=True)
            write_png(where / f"{tick.stage}-{tick.update:06d}.png", strip(stage, pipeline))

    return watch


def _nobody(stage: Stage, tick: Tick) -> None:
    pass


def _taken(fitted: Fitted) -> dict[str, Any]:
    taken = {"updates": fitted.updates, "hours": round(fitted.seconds / 3600, 4), "scores": dict(fitted.scores)}
    return {**taken, "recipe": None if fitted.recipe is None else asdict(fitted.recipe)}


def _evidence(
    settings: Settings, items: int, skipped: int, students: Iterable[Student], processes: int
) -> Mapping[str, Any]:
    said = {name: value for name, value in asdict(settings).items() if name not in ("data", "prompts", "begin")}
    begun = None if settings.begin is None else read_manifest(find_pipeline(settings.begin))
    return {
        "settings": {**said, "data": Path(settings.data).name},
        "begun": begun and {"name": begun.name, **begun.evidence.get("distill", {})},
        "items": items,
        "skipped": skipped,
        "machine": machine(),
        "versions": versions(_PACKAGES),
        "processes": processes,
        "students": [
            {
                "name": student.name,
                "method": student.method,
                "timesteps": None if student.grid is None else student.grid.timesteps.tolist(),
                **_taken(student.fitted),
            }
            for student in students
        ],
    }
