"""The manifest of a pipeline directory: what is in it, how its networks fit together, and every file's checksum.

The directory is a diffusers directory with `stillhouse.json` and one weightless ONNX graph per component beside it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

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
from stillhouse.json_decode import DecodeError, decode

MANIFEST = "stillhouse.json"
VERSION = 1
ALWAYS_HASHED_BYTES = 16 << 20
"""Files up to this many bytes are hashed whenever a pipeline is opened; larger ones on request."""
EVIDENCE = ("report.json", "report.html", "summary.xlsx")
"""Files at the top of a directory that tell of it and are written again: the pipeline runs without them."""
TRIALS = "trials"
"""The directory of candidates. What the pipeline needs of it is recorded, the rest is evidence."""
SMALLEST_TILE = 32
LARGEST_TILE = 8192

Family = Literal["stable-diffusion", "stable-diffusion-xl"]


@dataclass(frozen=True, slots=True)
class Component:
    """One network: its graph, the file that holds its weights, and what should run it. Paths are relative.

    `backend`, `precision`, `streams`, `threads` and `settings` are as in `backends.RunnerOptions`. With more than one
    stream the network is opened for the shapes of a row. Where `static`, batches are brought to the sizes in
    `rows` (see `buckets`; empty: `buckets.ROWS`), and it is opened for the very shapes that it is then fed; once for
    several where its backend can do that as well, see `registry.reopened_for`.
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
    """The U-Net's graph in two depths (`backends.cut`), run as the component `unet` is. Paths are relative."""

    full: str
    shallow: str


@dataclass(frozen=True, slots=True)
class Latent:
    """The autoencoder's space: z = (mean - shift_factor) * scaling_factor, `downscale` pixels to one latent."""

    channels: int
    scaling_factor: float
    shift_factor: float
    downscale: int


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request gets where it does not say; width and height in pixels.

    Args:
        guidance_interval, cache_interval: as in `ImageRequest`; cache_interval above 1 needs a `StepCache`.
        tile: larger pictures than this many pixels a side are decoded in tiles of that size; None, all in one piece.

    Raises:
        InvalidRequest: an interval, a cache_interval or a tile outside its range.
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
    """Where the components were chosen, and what another machine needs to verify the choice; see `models.foreign`.

    Args:
        fingerprint: of that machine, see `measure.machine`.
        min_sqnr: dB, what an output may err at most beside the baseline's.
        probes: by component, an .npz of recorded inputs (`feed/NAME`) and the baseline's outputs (`want/NAME`).
        alternatives: by component, what else was within its bounds, best first, the baseline last.
    """

    fingerprint: str
    min_sqnr: float
    probes: Mapping[str, str]
    alternatives: Mapping[str, tuple[Component, ...]]


@dataclass(frozen=True, slots=True)
class Edit:
    """How a student changes pictures of one strength: the levels that it walks then, noisiest first."""

    strength: float
    timesteps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Distilled:
    """The only way in which a student may be run, and where it comes from.

    Args:
        timesteps: of the levels that it walks, noisiest first; None, it may walk any grid.
        guidance: the scales that it was taught, the least and the most; other scales are refused.
        method: what taught it.
        teacher: name and checksum of the manifest that it learnt from.
        edits: the strengths that it has grids of their own for; where there are none, an edit walks a part of the grid.

    Raises:
        InvalidRequest: a range of guidance that falls.
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
    """A file's size and its SHA-256 in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that is known of a pipeline without opening a network.

    Args:
        name: what to call it.
        family: which inputs the networks take; XL has two text encoders, a pooled embedding and time ids.
        components: by name: text_encoder, (text_encoder_2,) unet, vae_encoder, vae_decoder.
        tokenizers: directories, one per text encoder, in the same order.
        schedule, prediction, spacing, sigmas, steps_offset: the walk, as in `stillhouse.diffusion`.
        latent: the autoencoder's space.
        unet_in_channels: 4, or 9 where the network repaints (latents, mask, masked picture).
        granularity: width and height are multiples of this many pixels.
        guidance_channels: size of the embedded guidance scale (diffusers' `time_cond_proj_dim`), None without.
        zero_negative: an empty negative prompt is encoded as zeros (XL's `force_zeros_for_empty_prompt`).
        defaults: what a request gets where it does not say.
        files: path to size and checksum, for every other file of the directory; filled by `write_manifest`.
        source: where it came from: importer, path or id, adapters.
        evidence: measurements that were made on the way, by name.
        step_cache: the U-Net's graph in two depths, where it was cut.
        tuned: where its components were chosen, if `stillhouse accelerate` chose them.
        distilled: how it must be run, if `stillhouse distill` made it.
    """

    name: str
    family: Family
    components: Mapping[str, Component]
    tokenizers: tuple[str, ...]
    schedule: Schedule
    prediction: Prediction
    spacing: Spacing
    sigmas: SigmaSpacing
    steps_offset: int
    latent: Latent
    unet_in_channels: int
    granularity: int
    guidance_channels: int | None
    zero_negative: bool
    defaults: Defaults
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION
    step_cache: StepCache | None = None
    tuned: Tuned | None = None
    distilled: Distilled | None = None

    @property
    def is_inpainting(self) -> bool:
        """Whether the U-Net takes the mask and the masked picture as channels."""
        return self.unet_in_channels == 2 * self.latent.channels + 1


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Record every file of `directory` and write `stillhouse.json`, whole or not at all.

    Evidence is not recorded: `EVIDENCE`, and what lies under `TRIALS`. But where the pipeline runs a graph from there,
    every file of that graph's directory is, because graphs have their weights in files beside them.

    Returns:
        the manifest as written, with `files` filled in.

    Raises:
        PipelineError: a component's graph or weights, or a tokenizer, is not in the directory; or the step cache was
            cut from another graph than the U-Net's, which would never run then.
    """
    _check_step_cache(manifest)
    temporary = directory / f".{MANIFEST}.part"
    needed = tuple(needed_files(manifest))
    rooms = {Path(graph).parent for graph in graph_paths(manifest)} - {Path()}
    files = dict[str, FileRecord]()
    for file in sorted(file for file in directory.rglob("*") if file.is_file()):
        name = file.relative_to(directory)
        recorded = not _is_evidence(name) or name.as_posix() in needed or name.parent in rooms
        if recorded and file not in (temporary, directory / MANIFEST):
            files[name.as_posix()] = FileRecord(file.stat().st_size, file_sha256(file))
    for path in needed:
        if path not in files:
            raise PipelineError(f"{directory / path} is missing", fix="make the file before the manifest")
    sealed = replace(manifest, files=files)
    body = asdict(sealed)
    text = json.dumps({"checksum": document_checksum(body), **body}, indent=2)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(directory / MANIFEST)
    return sealed


def read_manifest(directory: Path, *, verify: bool = False) -> Manifest:
    """Read `stillhouse.json` and check that the directory holds what it names.

    Args:
        directory: a pipeline directory.
        verify: hash every file; without it sizes are compared, and files up to `SMALL` bytes are hashed.

    Raises:
        ManifestError: the manifest is missing, broken, edited, of another version, or names a file outside.
        TamperedFile: a file is missing, or is not the one that the manifest names.
    """
    path = directory / MANIFEST
    manifest = _decode(path, _load(path))
    for name, record in manifest.files.items():
        _check_file(directory, name, record, verify)
    return manifest


def graph_paths(manifest: Manifest) -> Iterable[str]:
    """Paths of every graph that the pipeline may open."""
    yield from (component.graph for component in manifest.components.values())
    if manifest.step_cache:
        yield from (manifest.step_cache.full, manifest.step_cache.shallow)


def needed_files(manifest: Manifest) -> Iterable[str]:
    """Paths without which the pipeline cannot run."""
    yield from graph_paths(manifest)
    yield from (component.weights for component in manifest.components.values())
    for tokenizer in manifest.tokenizers:
        yield from (f"{tokenizer}/tokenizer.json", f"{tokenizer}/tokenizer_config.json")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def document_checksum(body: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its own checksum, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def files_checksum(manifest: Manifest) -> str:
    """Of all the files that it names: what tells a pipeline from another, whatever its manifest says of them."""
    return document_checksum({name: record.sha256 for name, record in manifest.files.items()})


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist", fix="make a pipeline with `stillhouse import`") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _broken(path, f"is not JSON: {error}") from None
    if not isinstance(document, dict) or "version" not in document:
        raise _broken(path, "has no version: $.version is missing")
    if document["version"] != VERSION:
        raise ManifestError(
            f"{path} has version {document['version']!r}",
            allowed=f"version {VERSION}",
            fix="import the model again with this program, or update stillhouse",
        )
    return document


def _decode(path: Path, document: dict[str, Any]) -> Manifest:
    recorded = document.pop("checksum", None)
    try:
        manifest = decode(Manifest, document)
    except DecodeError as error:
        raise _broken(path, f"is broken: {error}") from None
    if recorded != document_checksum(document):
        raise _broken(path, "was edited: $.checksum does not fit the rest")
    for name in needed_files(manifest):
        if name not in manifest.files:
            raise _broken(path, f"is broken: $.files has no entry for {name}")
    return manifest


def _check_step_cache(manifest: Manifest) -> None:
    if manifest.step_cache is None:
        return
    room = Path(manifest.components["unet"].graph).parent
    for graph in (manifest.step_cache.full, manifest.step_cache.shallow):
        if Path(graph).parent != room:
            raise PipelineError(
                f"the step cache's {graph} was not cut from the U-Net's {manifest.components['unet'].graph}",
                allowed="graphs beside the one that they were cut from",
                fix="cut the U-Net's graph, or leave step_cache out",
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
