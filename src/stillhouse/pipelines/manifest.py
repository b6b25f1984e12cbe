"""The manifest of a pipeline directory: its networks, the settings of sampling, and the checksum of every file.

A pipeline directory is a diffusers directory with `stillhouse.json` and an ONNX graph without weights for each network.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stillhouse.check import check_integer, check_number
from stillhouse.diffusion import (
    Prediction,
    Schedule,
    SigmaSpacing,
    Spacing,
    check_cache_interval,
    check_guidance_interval,
)
from stillhouse.errors import InvalidRequest, ManifestError, PipelineError, TamperedFile
from stillhouse.pipelines.roles import DECODER, DENOISER, ENCODER, TEXT_ENCODERS
from stillhouse.validation import InvalidDocument, convert

MANIFEST = "stillhouse.json"
VERSION = 2
ALWAYS_HASHED_BYTES = 16 << 20
"""Files up to this many bytes are hashed whenever a pipeline is opened; larger files are hashed only with `verify`."""
EVIDENCE = ("report.json", "report.html", "summary.xlsx")
"""Reports at the top of a directory. The pipeline runs without them, so their checksums are not recorded."""
TRIALS = "trials"
"""Directory in which `stillhouse accelerate` keeps the graphs that it tries out. The manifest records only the graphs
that the pipeline runs, with the files beside them."""
VERIFY_FOLDER = "verify"
"""Directory with recorded inputs and reference outputs of each network. With these files, another machine checks that
the chosen networks compute correctly there."""
SMALLEST_TILE = 32
LARGEST_TILE = 8192
_VERSION_1_ROLES = {"unet": DENOISER, "vae_encoder": ENCODER, "vae_decoder": DECODER}
_VERSION_1_SAMPLING = ("schedule", "prediction", "spacing", "sigmas", "steps_offset")
_VERSION_1_OPTIONS = {
    "unet_in_channels": "in_channels",
    "guidance_channels": "guidance_channels",
    "zero_negative": "zero_negative",
}
_VERSION_1_DEFAULTS = {"refresh": "cache_interval"}


@dataclass(frozen=True, slots=True)
class Component:
    """A network of a pipeline: its graph, the file of its weights, and how it is run.

    Args:
        graph, weights: paths relative to the pipeline's directory.
        backend: name of the runtime that runs the graph, for example onnxruntime.
        precision, streams, threads, settings: as in `backends.RunnerOptions`. With more than one stream, each stream
            runs one row of a batch, and the network is opened for the shapes of one row.
        static: whether the network is opened for fixed shapes of its inputs. Some backends can run several batch sizes
            with one opened network; see `registry.compiles_per`.
        rows: batch sizes of a static network, rising; empty: `batch_sizes.DEFAULT_SIZES`. Batches of other sizes are
            split and padded.

    Raises:
        InvalidRequest: `rows` does not rise, or starts below 1.
    """

    graph: str
    weights: str
    backend: str = "onnxruntime"
    precision: str = "f32"
    streams: int = 1
    threads: int | None = None
    static: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if list(self.rows) != sorted({row for row in self.rows if row > 0}):
            raise InvalidRequest(
                f"rows is {list(self.rows)}", allowed="batch sizes from 1, each larger than the one before"
            )


@dataclass(frozen=True, slots=True)
class StepCache:
    """The graphs for feature caching that the denoiser was split into (`backends.deepcache_split`).

    Args:
        full: graph that runs the whole denoiser and also returns its deep features.
        shallow: graph that takes the deep features as an input instead of computing them.

    Both are paths relative to the pipeline's directory.
    """

    full: str
    shallow: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """The noise schedule that the denoiser was trained with, and the choice of noise levels at which it is evaluated.

    Args:
        schedule: noise level of every training timestep.
        prediction: the quantity that the denoiser predicts.
        spacing: how the timesteps of a trajectory are spread over the training timesteps.
        sigmas: how noise levels are spread between the first and the last one: as the timesteps say (schedule), or by
            karras or exponential spacing.
        steps_offset: number that is added to every timestep of leading spacing.
    """

    schedule: Schedule
    prediction: Prediction
    spacing: Spacing
    sigmas: SigmaSpacing = "schedule"
    steps_offset: int = 0


@dataclass(frozen=True, slots=True)
class Latent:
    """The form of the autoencoder's latents, normalised as z = (encoder's output - shift_factor) * scaling_factor.

    Args:
        channels: number of channels, before latents are packed into tokens.
        scaling_factor, shift_factor: the numbers of the formula above.
        downscale: width and height of the square of pixels that one latent stands for.
        patch: width and height, in latents, of the square that the denoiser takes as one token.
        mean, std: mean and standard deviation of each channel, by which the encoder's output is normalised first;
            empty: not normalised by channel.
    """

    channels: int
    scaling_factor: float
    shift_factor: float
    downscale: int
    patch: int = 1
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Defaults:
    """The values for those fields of a request that are None; width and height in pixels.

    Args:
        guidance_interval, cache_interval: as in `ImageRequest`; cache_interval above 1 needs a `StepCache`.
        tile: width and height of a tile in pixels. Larger pictures are decoded tile by tile; None: always in one piece.

    Raises:
        InvalidRequest: guidance_interval, cache_interval or tile is outside its range.
    """

    steps: int
    guidance: float
    sampler: str
    width: int
    height: int
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    cache_interval: int = 1
    tile: int | None = None

    def __post_init__(self) -> None:
        check_guidance_interval(self.guidance_interval)
        check_cache_interval(self.cache_interval)
        if self.tile is not None:
            check_integer("tile", self.tile, SMALLEST_TILE, LARGEST_TILE)


@dataclass(frozen=True, slots=True)
class Tuned:
    """The machine on which `stillhouse accelerate` or an import chose how networks run, and data to choose on others.

    Args:
        fingerprint: fingerprint of the machine, see `measure.machine`; "" where nothing was measured yet.
        min_sqnr: least allowed signal-to-quantization-noise ratio of an output, in dB, against the output of the
            baseline (the network before acceleration, in float32).
        probes: by role of the network, path of an .npz file that holds recorded inputs (`feed/NAME`) and the baseline's
            outputs for them (`want/NAME`).
        alternatives: by role of the network, other ways to run it that were accurate enough, best first, the baseline
            last.
        needs_equal_rows: whether a picture must have the same bits in every batch.
    """

    fingerprint: str
    min_sqnr: float
    probes: Mapping[str, str]
    alternatives: Mapping[str, tuple[Component, ...]]
    needs_equal_rows: bool = False


@dataclass(frozen=True, slots=True)
class Edit:
    """Timesteps, noisiest first, at which a distilled denoiser is evaluated when it edits a picture with a strength.

    Args:
        strength: share of noise that is added to the picture, above 0 to 1.
        timesteps: timesteps of the evaluations.
    """

    strength: float
    timesteps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Distilled:
    """The settings that a distilled pipeline may be run with, and the teacher that it was distilled from.

    Args:
        timesteps: timesteps that the pipeline must be run with, noisiest first; None: any.
        guidance: least and largest guidance scale of the training; other scales are refused.
        method: name of the distillation method.
        teacher: name of the teacher pipeline, and checksum of its files.
        edits: timesteps to edit pictures with, for each trained strength; empty: edits take the last part of
            `timesteps`.

    Raises:
        InvalidRequest: the least guidance scale is above the largest.
    """

    timesteps: tuple[float, ...] | None
    guidance: tuple[float, float]
    method: str
    teacher: tuple[str, str]
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        check_number("the most guidance", self.guidance[1], self.guidance[0], 1000)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size of a file in bytes, and the SHA-256 of its content in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of a pipeline, which is read before any network is opened.

    Args:
        name: name of the pipeline, for people.
        family: name of the pipeline's family, for example stable-diffusion; see `families.Family`.
        components: networks by role, for example denoiser; see `roles`.
        tokenizers: directory of the tokenizer of each text encoder, by the text encoder's role.
        sampling: noise schedule, prediction and timesteps.
        latent: the autoencoder's latents.
        granularity: number of pixels of which a picture's width and height must be multiples.
        defaults: values for those fields of a request that are None.
        family_options: further fields that the family needs; see `Family.options`.
        files: size and checksum of every other file of the directory, by path; filled in by `write_manifest`.
        source: where the pipeline was imported from: importer, path or id, adapters.
        evidence: measured values, by name.
        step_cache: the graphs for feature caching that the denoiser was split into; None: it was not split.
        tuned: the machine on which `stillhouse accelerate` chose the components; None: the pipeline was not
            accelerated.
        distilled: settings of a pipeline that `stillhouse distill` made; None for other pipelines.
    """

    name: str
    family: str
    components: Mapping[str, Component]
    tokenizers: Mapping[str, str]
    sampling: Sampling
    latent: Latent
    granularity: int
    defaults: Defaults
    family_options: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION
    step_cache: StepCache | None = None
    tuned: Tuned | None = None
    distilled: Distilled | None = None


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Record size and checksum of every file of `directory`, and write `stillhouse.json`, whole or not at all.

    Reports (`EVIDENCE`) and the files that `stillhouse accelerate` tried out (in the directory `TRIALS`) are not
    recorded. Exception: where the pipeline runs a graph in `TRIALS`, all files of that graph's directory are recorded,
    because the graph's weights are among them.

    Returns:
        the manifest as written, with `files` filled in.

    Raises:
        PipelineError: a graph, a weights file or a tokenizer is not in the directory, or the step cache was not split
            from the denoiser's graph.
    """
    _check_step_cache(manifest)
    temporary = directory / f".{MANIFEST}.part"
    files = _record_files(directory, manifest, excluded=(temporary, directory / MANIFEST))
    for path in needed_files(manifest):
        if path not in files:
            raise PipelineError(f"{directory / path} is missing", fix="make the file before the manifest")
    sealed = replace(manifest, files=files)
    body = asdict(sealed)
    text = json.dumps({"checksum": document_checksum(body), **body}, indent=2)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(directory / MANIFEST)
    return sealed


def read_manifest(directory: Path, *, verify: bool = False) -> Manifest:
    """Read `stillhouse.json` and check that the directory holds the files that it lists.

    Args:
        directory: a pipeline directory.
        verify: whether every file is hashed. Otherwise only files up to `ALWAYS_HASHED_BYTES` are hashed, and of larger
            files only the size is compared.

    Raises:
        ManifestError: the manifest is missing, broken or edited, has an unknown version or family, or lists a file
            outside of the directory.
        TamperedFile: a file is missing, or differs from its record.
    """
    path = directory / MANIFEST
    manifest = _decode(path, _load(path))
    for name, record in manifest.files.items():
        _check_file(directory, name, record, verify)
    return manifest


def convert_manifest(document: Mapping[str, Any]) -> Manifest:
    """Convert the JSON document of a manifest, of any version, without its checksum, to a `Manifest`.

    Raises:
        InvalidDocument: a field is missing or unknown, or has a wrong type or value.
    """
    try:
        body = _upgrade_version_1(document) if document["version"] == 1 else document
    except KeyError as error:
        raise InvalidDocument(f"the document has no field {error.args[0]!r}") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidDocument(f"the document cannot be read as a manifest of version 1: {error}") from None
    return convert(Manifest, body)


def graph_paths(manifest: Manifest) -> Iterable[str]:
    """Yield the path of every ONNX graph that the pipeline may open, relative to the directory of the pipeline."""
    yield from (component.graph for component in manifest.components.values())
    if manifest.step_cache:
        yield from (manifest.step_cache.full, manifest.step_cache.shallow)


def needed_files(manifest: Manifest) -> Iterable[str]:
    """Yield the path of every file without which the pipeline cannot run, relative to the directory of the pipeline."""
    yield from graph_paths(manifest)
    yield from (component.weights for component in manifest.components.values())
    for tokenizer in manifest.tokenizers.values():
        yield from (f"{tokenizer}/tokenizer.json", f"{tokenizer}/tokenizer_config.json")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def document_checksum(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's JSON document, which must not contain the field `checksum` itself.

    The order of the document's keys does not matter.
    """
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def files_checksum(manifest: Manifest) -> str:
    """Return a checksum over the content of all recorded files, which identifies a pipeline.

    The other fields of the manifest do not matter, nor do recorded inputs in VERIFY_FOLDER.
    """
    return document_checksum(
        {name: record.sha256 for name, record in manifest.files.items() if not name.startswith(f"{VERIFY_FOLDER}/")}
    )


def _record_files(directory: Path, manifest: Manifest, excluded: tuple[Path, ...]) -> dict[str, FileRecord]:
    needed = set(needed_files(manifest))
    graph_directories = {Path(graph).parent for graph in graph_paths(manifest)} - {Path()}
    files = dict[str, FileRecord]()
    for file in sorted(file for file in directory.rglob("*") if file.is_file()):
        name = file.relative_to(directory)
        is_recorded = not _is_evidence(name) or name.as_posix() in needed or name.parent in graph_directories
        if is_recorded and file not in excluded:
            files[name.as_posix()] = FileRecord(file.stat().st_size, file_sha256(file))
    return files


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist", fix="make a pipeline with `stillhouse import`") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _broken(path, f"is not JSON: {error}") from None
    if not isinstance(document, dict) or "version" not in document:
        raise _broken(path, "has no field 'version'")
    if document["version"] not in range(1, VERSION + 1):
        raise ManifestError(
            f"{path} has version {document['version']!r}",
            allowed=f"versions 1 to {VERSION}",
            fix="import the model again with this program, or update stillhouse",
        )
    return document


def _decode(path: Path, document: dict[str, Any]) -> Manifest:
    recorded = document.pop("checksum", None)
    try:
        manifest = convert_manifest(document)
    except InvalidDocument as error:
        raise _broken(path, f"is broken: {error}") from None
    _check_family(path, manifest)
    if recorded != document_checksum(document):
        raise _broken(path, "was edited: its checksum does not fit its other fields")
    for name in needed_files(manifest):
        if name not in manifest.files:
            raise _broken(path, f"is broken: its field 'files' has no entry for {name}, which the pipeline needs")
    return manifest


def _upgrade_version_1(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest's JSON document of version 1 as a document of version 2; the argument is not changed."""
    body = {**document, "version": VERSION, "components": _by_role(document["components"])}
    text_encoders = (role for role in TEXT_ENCODERS if role in body["components"])
    body["tokenizers"] = dict(zip(text_encoders, document["tokenizers"], strict=True))
    body["sampling"] = {name: body.pop(name) for name in _VERSION_1_SAMPLING}
    body["family_options"] = {new: body.pop(old) for old, new in _VERSION_1_OPTIONS.items()}
    body["defaults"] = {_VERSION_1_DEFAULTS.get(name, name): value for name, value in document["defaults"].items()}
    if tuned := document.get("tuned"):
        body["tuned"] = tuned | {name: _by_role(tuned[name]) for name in ("probes", "alternatives")}
    return body


def _by_role(items: Mapping[str, Any]) -> dict[str, Any]:
    return {_VERSION_1_ROLES.get(name, name): value for name, value in items.items()}


def _check_family(path: Path, manifest: Manifest) -> None:
    """Raise ManifestError where the manifest's family is not installed, or the options for the family are invalid.

    `path` is the path of the manifest, for the error message.
    """
    from stillhouse.pipelines.families import find_family  # imported late, because families import this module

    try:
        family = find_family(manifest.family)
    except ManifestError as error:
        raise ManifestError(
            f"{path} has the family {manifest.family!r}, which is not installed", allowed=error.allowed, fix=error.fix
        ) from None
    try:
        convert(family.options, manifest.family_options, "$.family_options")
    except InvalidDocument as error:
        raise _broken(path, f"is broken: {error}") from None


def _check_step_cache(manifest: Manifest) -> None:
    if manifest.step_cache is None:
        return
    whole = manifest.components[DENOISER].graph
    for graph in (manifest.step_cache.full, manifest.step_cache.shallow):
        if Path(graph).parent != Path(whole).parent:
            raise PipelineError(
                f"the step cache's graph {graph} was not split from the denoiser's graph {whole}",
                allowed="graphs beside the denoiser's graph, where splitting writes them",
                fix="split the denoiser's graph, or leave step_cache out",
            )


def _is_evidence(name: Path) -> bool:
    return name.parts[0] == TRIALS or name.as_posix() in EVIDENCE


def _check_file(directory: Path, name: str, record: FileRecord, verify: bool) -> None:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise _broken(directory / MANIFEST, f"names a file outside of its directory: its field 'files' has {name!r}")
    if not path.is_file():
        raise _tampered(path, "is missing")
    size = path.stat().st_size
    if size != record.bytes:
        raise _tampered(path, f"has {size:,} bytes, but its manifest says {record.bytes:,}")
    if (verify or size <= ALWAYS_HASHED_BYTES) and file_sha256(path) != record.sha256:
        raise _tampered(path, "has other content than its manifest says (SHA-256)")


def _broken(path: Path, reason: str) -> ManifestError:
    return ManifestError(f"{path} {reason}", fix="restore the file from its source, or import the model again")


def _tampered(path: Path, reason: str) -> TamperedFile:
    return TamperedFile(f"{path} {reason}", fix="restore the file from its source, or import the model again")
