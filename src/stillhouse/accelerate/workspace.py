"""What is accelerated, laid out in the directory that the result goes to."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stillhouse.accelerate.records.candidate import NETWORK
from stillhouse.backends.signature import Signature, read_signature
from stillhouse.errors import InvalidRequest, PipelineError
from stillhouse.json_decode import decode
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import MANIFEST, TRIALS, Component, Manifest, file_sha256, read_manifest

SOURCE_FILE = "source.json"
"""The file that says of which source this is the sweep, beside the trials."""
_STAGING, _IMPORTED = ".staging.", "imported"
_LINK_BYTES = 64 << 20
"""Bytes from which a file is linked and not copied, where the file system can: weights are never written in place."""


@dataclass(frozen=True, slots=True)
class WorkspaceComponent:
    """One network of what is accelerated.

    Args:
        name: of the component; `network` for a bare ONNX file.
        graph: absolute.
        component: as the manifest has it; for a bare ONNX file how it is run before anything is known.
        signature: of the graph.
    """

    name: str
    graph: Path
    component: Component
    signature: Signature

    @property
    def has_dynamic_batch(self) -> bool:
        """Whether it takes batches of any size."""
        return all(axes and not isinstance(axes[0], int) for axes in self.signature.inputs.values())


@dataclass(frozen=True, slots=True)
class Workspace:
    """What is accelerated: its name, its directory, its networks, and whether they make a pipeline."""

    name: str
    directory: Path
    components: tuple[WorkspaceComponent, ...]
    is_pipeline: bool


def prepare_workspace(source: str, directory: Path) -> Workspace:
    """Lay `source` out in `directory`, or find it there from a sweep before.

    Args:
        source: an embedded model's name, a pipeline directory, a diffusers directory, or an ONNX file.
        directory: new, empty, or of an earlier sweep of the same source.

    Raises:
        UnknownModel, PipelineError, ImportFailed: a source that cannot be used.
        InvalidRequest: a directory that holds something else, or cannot be written.
    """
    path, directory = Path(source), directory.absolute()
    if path.suffix == ".onnx":
        return _prepare_network(path, directory)
    if (path / "model_index.json").is_file() and not (path / MANIFEST).is_file():
        return _prepare_diffusers(path, directory)
    return _prepare_pipeline(find_pipeline(source), directory)


def _prepare_pipeline(source: Path, directory: Path) -> Workspace:
    """Of a pipeline that was accelerated before, what it was before that."""
    manifest, told = read_manifest(source), source / MANIFEST
    if is_sweep_directory(source):
        manifest, told = original_manifest(source), source / TRIALS / MANIFEST
    identity = file_sha256(told)
    if _needs_copy(directory, source, identity):
        with _staging_folder(directory, manifest.name, identity) as laid:
            for name in manifest.files:
                link_or_copy(source / name, laid / name)
            for copy in (laid / MANIFEST, laid / TRIALS / MANIFEST):
                shutil.copyfile(told, copy)
    return _read_workspace(directory)


def _prepare_diffusers(source: Path, directory: Path) -> Workspace:
    identity = hashlib.sha256(
        repr([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(source.rglob("*.*"))]).encode()
    ).hexdigest()
    if _needs_copy(directory, source, identity):
        from stillhouse.convert.import_model import ImportOptions, import_model

        with _staging_folder(directory, source.name, identity) as laid:
            import_model(source, laid / _IMPORTED, ImportOptions(force=True))
            for entry in (laid / _IMPORTED).iterdir():
                entry.rename(laid / entry.name)
            (laid / _IMPORTED).rmdir()
            shutil.copyfile(laid / MANIFEST, laid / TRIALS / MANIFEST)
    return _read_workspace(directory)


def _prepare_network(source: Path, directory: Path) -> Workspace:
    signature = read_signature(source)
    files = [source, *(source.parent / name for name in sorted(signature.external))]
    identity = hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()
    if _needs_copy(directory, source, identity):
        with _staging_folder(directory, source.stem, identity) as laid:
            for name in [source.name, *signature.external]:
                link_or_copy(source.parent / name, laid / NETWORK / name)
    graph = directory / NETWORK / source.name
    part = WorkspaceComponent(NETWORK, graph, Component(f"{NETWORK}/{source.name}", ""), read_signature(graph))
    return Workspace(source.stem, directory, (part,), is_pipeline=False)


def _read_workspace(directory: Path) -> Workspace:
    read_manifest(directory)  # refused where it is not whole
    parts = []
    for name, component in original_components(directory).items():
        graph = directory / component.graph
        parts.append(WorkspaceComponent(name, graph, component, read_signature(graph)))
    return Workspace(original_manifest(directory).name, directory, tuple(parts), is_pipeline=True)


def is_sweep_directory(directory: Path) -> bool:
    """Whether it is the directory of a pipeline's sweep."""
    return (directory / TRIALS / MANIFEST).is_file()


def original_manifest(directory: Path) -> Manifest:
    """The manifest as it was before anything was chosen."""
    document = json.loads((directory / TRIALS / MANIFEST).read_bytes())
    document.pop("checksum", None)
    return decode(Manifest, document)


def original_components(directory: Path) -> dict[str, Component]:
    """The components as they were before anything was chosen."""
    return dict(original_manifest(directory).components)


def f32_components(directory: Path) -> dict[str, Component]:
    """The original graphs as nothing but onnxruntime in float32 runs them: what everything is compared with."""
    return {name: Component(one.graph, one.weights) for name, one in original_components(directory).items()}


def _needs_copy(directory: Path, source: Path, identity: str) -> bool:
    if directory.exists() and not directory.is_dir():
        raise InvalidRequest(f"{directory} is a file", allowed="a new or empty directory")
    if not directory.is_dir() or not any(directory.iterdir()) or any(directory.glob(f"{_STAGING}*")):
        return True
    if directory.resolve() == source.resolve():
        raise InvalidRequest(f"{directory} is the source itself", allowed="another directory")
    allowed = "a new or empty directory, or one of an earlier sweep of the same model"
    try:
        earlier: dict[str, str] = json.loads((directory / TRIALS / SOURCE_FILE).read_bytes())
    except (OSError, ValueError):
        raise InvalidRequest(f"{directory} is not empty, and holds no sweep", allowed=allowed) from None
    if earlier["identity"] != identity:
        given = f"{directory} holds a sweep of {earlier['name']}, and not of this {source}"
        raise InvalidRequest(given, allowed=allowed, fix="name another directory")
    return False


@contextmanager
def _staging_folder(directory: Path, name: str, identity: str) -> Iterator[Path]:
    """A folder inside `directory`, whose content moves up if all goes well and is removed otherwise. It says whose
    sweep this is.

    Inside, because `directory` may be a mount, whose parent cannot be written. While the folder is there everything
    beside it comes from a layout that was cut off: it is begun in an empty directory only.
    """
    laying = directory / f"{_STAGING}{os.getpid()}"
    was_there = directory.is_dir()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for rest in directory.iterdir():
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
        (laying / TRIALS).mkdir(parents=True)
        (laying / TRIALS / SOURCE_FILE).write_text(json.dumps({"name": name, "identity": identity}) + "\n")
    except OSError as error:
        given = f"{directory} cannot be written: {error.strerror or error}"
        raise InvalidRequest(given, allowed="a directory that can be written") from None
    try:
        yield laying
        for entry in laying.iterdir():
            entry.rename(directory / entry.name)
        laying.rmdir()
    except BaseException as error:
        for rest in directory.iterdir():
            shutil.rmtree(rest, ignore_errors=True) if rest.is_dir() else rest.unlink(missing_ok=True)
        if not was_there:
            directory.rmdir()
        if isinstance(error, OSError):
            raise PipelineError(f"{directory} could not be laid out: {error.strerror or error}") from error
        raise


def link_or_copy(source: Path, destination: Path) -> None:
    """Copy a file; a large one is linked, where it can be."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size >= _LINK_BYTES:
        try:
            os.link(source.resolve(), destination)
        except OSError:
            pass
        else:
            return
    shutil.copyfile(source, destination)
