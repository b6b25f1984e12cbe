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
"""Files up to this many bytes are hashed whenever a pipeline is opened; larger files only with `verify`."""
EVIDENCE = ("report.json", "report.html", "summary.xlsx")
"""Reports at the top of a directory. The pipeline runs without them, so their checksums are not recorded."""
TRIALS = "trials"
"""Directory of the candidates of `stillhouse accelerate`. The manifest records only the files that the pipeline
runs."""
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
    """A network: its graph, the file of its weights, and how it is run.

    Args:
        graph, weights: paths relative to the directory.
        backend, precision, streams, threads, settings: as in `backends.RunnerOptions`. With more than one stream, each
            stream runs one row, and the network is opened for the shapes of one row.
        static: whether the network is opened for fixed shapes of its inputs. One opened network runs several batch
            sizes where the backend can do that; see `registry.compiles_per`.
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
            raise InvalidRequest(f"rows is {list(self.rows)}", allowed="sizes from 1, each larger than the one before")


@dataclass(frozen=True, slots=True)
class StepCache:
    """Paths of the graphs that the denoiser was split into (`backends.deepcache_split`), relative to the directory."""

    full: str
    shallow: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """The noise schedule that the denoiser was trained with, and the choice of noise levels at which it is evaluated.

    Args:
        schedule: noise level of every training timestep.
        prediction: the quantity that the denoiser predicts.
        spacing: how the timesteps of a trajectory are spread over the training timesteps.
        sigmas: how noise levels are spread between the first and the last one.
        steps_offset: added to every timestep of leading spacing.
    """

    schedule: Schedule
    prediction: Prediction
    spacing: Spacing
    sigmas: SigmaSpacing = "schedule"
    steps_offset: int = 0


@dataclass(frozen=True, slots=True)
class Latent:
    """Latents of the autoencoder, normalised as z = (output - shift_factor) * scaling_factor.

    Args:
        channels: number of channels, before latents are packed into tokens.
        scaling_factor, shift_factor: as above.
        downscale: side of one latent in pixels.
        patch: side in latents of the square that the denoiser takes as one token.
        mean, std: statistics of each channel, where the family normalises by channel.
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
    """Values of a request's fields that are None; width and height in pixels.

    Args:
        guidance_interval, cache_interval: as in `ImageRequest`; cache_interval above 1 needs a `StepCache`.
        tile: side in pixels. Pictures with a longer side are decoded in tiles of this size; None: always in one piece.

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
    """The machine on which `stillhouse accelerate` chose the components, and data to check them on another machine.

    Args:
        fingerprint: fingerprint of that machine; see `measure.machine`.
        min_sqnr: least allowed SQNR of an output against the baseline's output, in dB.
        probes: by role, path of an .npz with recorded inputs (`feed/NAME`) and the baseline's outputs (`want/NAME`).
        alternatives: by role, the other components within the bounds of accuracy, best first, the baseline last.
    """

    fingerprint: str
    min_sqnr: float
    probes: Mapping[str, str]
    alternatives: Mapping[str, tuple[Component, ...]]


@dataclass(frozen=True, slots=True)
class Edit:
    """Timesteps, noisiest first, at which a student is evaluated when it edits a picture with this strength."""

    strength: float
    timesteps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Distilled:
    """The allowed settings of a distilled pipeline, and its teacher.

    Args:
        timesteps: timesteps that the pipeline must be run with, noisiest first; None: any.
        guidance: least and largest guidance scale of the training; other scales are refused.
        method: name of the distillation method.
        teacher: name of the teacher, and checksum of its files.
        edits: timesteps for edits, by strength; where empty, an edit takes the last part of `timesteps`.

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
    """Size of a file in bytes, and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of a pipeline, which is known before any network is opened.

    Args:
        name: name of the pipeline, for people.
        family: name of its `families.Family`.
        components: networks by role; see `roles`.
        tokenizers: directory of the tokenizer of each text encoder, by the text encoder's role.
        sampling: noise schedule, prediction and timesteps.
        latent: the autoencoder's latents.
        granularity: width and height are multiples of this many pixels.
        defaults: values of a request's fields that are None.
        family_options: further fields that the family needs; see `Family.options`.
        files: size and checksum of every other file of the directory, by path; filled in by `write_manifest`.
        source: where the pipeline was imported from: importer, path or id, adapters.
        evidence: measured values, by name.
        step_cache: graphs of the denoiser's two depths; None where the denoiser was not split.
        tuned: set where `stillhouse accelerate` chose the components.
        distilled: set where `stillhouse distill` made the pipeline.
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
    """Record every file of `directory` and write `stillhouse.json`, whole or not at all.

    Files of `EVIDENCE` and files under `TRIALS` are not recorded. Exception: where the pipeline runs a graph under
    `TRIALS`, all files of that graph's directory are recorded, because the graph's weights are among them.

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
        raise InvalidDocument(f"$.{error.args[0]} is missing") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidDocument(f"$ cannot be read as version 1: {error}") from None
    return convert(Manifest, body)


def graph_paths(manifest: Manifest) -> Iterable[str]:
    """Return the paths of every graph that the pipeline may open."""
    yield from (component.graph for component in manifest.components.values())
    if manifest.step_cache:
        yield from (manifest.step_cache.full, manifest.step_cache.shallow)


def needed_files(manifest: Manifest) -> Iterable[str]:
    """Return the paths without which the pipeline cannot run."""
    yield from graph_paths(manifest)
    yield from (component.weights for component in manifest.components.values())
    for tokenizer in manifest.tokenizers.values():
        yield from (f"{tokenizer}/tokenizer.json", f"{tokenizer}/tokenizer_config.json")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def document_checksum(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest's document, which must lack the checksum; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def files_checksum(manifest: Manifest) -> str:
    """Return a checksum over all recorded files, which identifies a pipeline; other fields do not matter."""
    return document_checksum({name: record.sha256 for name, record in manifest.files.items()})


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
        raise _broken(path, "has no version: $.version is missing")
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
        raise _broken(path, "was edited: $.checksum does not fit the rest")
    for name in needed_files(manifest):
        if name not in manifest.files:
            raise _broken(path, f"is broken: $.files has no entry for {name}")
    return manifest


def _upgrade_version_1(document: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a document of version 1 to version 2."""
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
    """Raise ManifestError where the family is not registered, or its options are invalid."""
    from stillhouse.pipelines.families import find_family  # imported late, because families import this module

    try:
        family = find_family(manifest.family)
    except ManifestError as error:
        raise ManifestError(
            f"{path} is broken: $.family is {manifest.family!r}", allowed=error.allowed, fix=error.fix
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
                f"the step cache's {graph} was not split from the denoiser's {whole}",
                allowed="graphs in the directory of the one that they were split from",
                fix="split the denoiser's graph, or leave step_cache out",
            )


def _is_evidence(name: Path) -> bool:
    return name.parts[0] == TRIALS or name.as_posix() in EVIDENCE


def _check_file(directory: Path, name: str, record: FileRecord, verify: bool) -> None:
    path = directory / name
    if not path.resolve().is_relative_to(directory.resolve()):
        raise _broken(directory / MANIFEST, f"names a file outside of its directory: $.files has {name!r}")
    if not path.is_file():
        raise _tampered(path, "is missing")
    size = path.stat().st_size
    if size != record.bytes:
        raise _tampered(path, f"has {size:,} bytes, its manifest says {record.bytes:,}")
    if (verify or size <= ALWAYS_HASHED_BYTES) and file_sha256(path) != record.sha256:
        raise _tampered(path, "has other content than its manifest says (SHA-256)")


def _broken(path: Path, reason: str) -> ManifestError:
    return ManifestError(f"{path} {reason}", fix="restore the file from its source, or import the model again")


def _tampered(path: Path, reason: str) -> TamperedFile:
    return TamperedFile(f"{path} {reason}", fix="restore the file from its source, or import the model again")
