"""The working directory of a sweep (run of `stillhouse accelerate`): a copy of the source pipeline or ONNX file.

The source's networks (components) are measured, and the result is written, in this copy. The source stays unchanged.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stillhouse.accelerate.records.candidate import BASELINE_OPTIONS, NETWORK
from stillhouse.backends.signature import Signature, read_signature
from stillhouse.errors import InvalidRequest, PipelineError
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import (
    MANIFEST,
    TRIALS,
    Component,
    Manifest,
    convert_manifest,
    file_sha256,
    read_manifest,
)

SOURCE_FILE = "source.json"
"""Name of the file, in the folder of measurements, that records name and checksum of the copied source."""
_STAGING, _IMPORTED = ".staging.", "imported"
_LINK_BYTES = 64 << 20
"""Size in bytes from which a file is hard-linked instead of copied, if the file system allows. A link is safe because
weights are never modified in place.
"""


@dataclass(frozen=True, slots=True)
class WorkspaceComponent:
    """One component (network) of the copied source.

    Args:
        name: component name, such as "denoiser"; "network" for a single ONNX file.
        graph: absolute path of the ONNX graph.
        component: the component's entry in the pipeline's manifest; for a single ONNX file, default settings.
        signature: names and axes of the graph's inputs and outputs.
    """

    name: str
    graph: Path
    component: Component
    signature: Signature

    @property
    def has_dynamic_batch(self) -> bool:
        """Return whether every input of the network has a first axis of dynamic length."""
        return all(axes and not isinstance(axes[0], int) for axes in self.signature.inputs.values())


@dataclass(frozen=True, slots=True)
class Workspace:
    """A working directory that `prepare_workspace` filled.

    Args:
        name: name of the source.
        directory: absolute path of the working directory.
        components: the networks of the source.
        is_pipeline: True for a pipeline, False for a single ONNX file.
    """

    name: str
    directory: Path
    components: tuple[WorkspaceComponent, ...]
    is_pipeline: bool


def prepare_workspace(source: str, directory: Path) -> Workspace:
    """Copy the source of a sweep into its working directory, or reuse the copy of an earlier sweep.

    A diffusers model is converted to a pipeline first.

    Args:
        source: name of a model that this package contains, or path of a pipeline directory, a diffusers directory or an
            ONNX file.
        directory: a new or empty directory, or the directory of an earlier sweep of the same source.

    Raises:
        UnknownModel, PipelineError, ImportFailed: the source cannot be used.
        InvalidRequest: the directory contains other files or cannot be written.
    """
    path, directory = Path(source), directory.absolute()
    if path.suffix == ".onnx":
        return _prepare_network(path, directory)
    if (path / "model_index.json").is_file() and not (path / MANIFEST).is_file():
        return _prepare_diffusers(path, directory)
    return _prepare_pipeline(find_pipeline(source), directory)


def _prepare_pipeline(source: Path, directory: Path) -> Workspace:
    """Copy a pipeline directory into a working directory, and return the working directory's content.

    If `stillhouse accelerate` has changed the source's manifest, the manifest from before this change is copied.
    """
    manifest, manifest_file = read_manifest(source), source / MANIFEST
    if is_sweep_directory(source):
        manifest, manifest_file = original_manifest(source), source / TRIALS / MANIFEST
    identity = file_sha256(manifest_file)
    if _needs_copy(directory, source, identity):
        with _staging_folder(directory, manifest.name, identity) as staging:
            for name in manifest.files:
                link_or_copy(source / name, staging / name)
            for copy in (staging / MANIFEST, staging / TRIALS / MANIFEST):
                shutil.copyfile(manifest_file, copy)
    return _read_workspace(directory)


def _prepare_diffusers(source: Path, directory: Path) -> Workspace:
    identity = hashlib.sha256(
        repr([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(source.rglob("*.*"))]).encode()
    ).hexdigest()
    if _needs_copy(directory, source, identity):
        from stillhouse.convert.import_model import ImportOptions, import_model

        with _staging_folder(directory, source.name, identity) as staging:
            import_model(source, staging / _IMPORTED, ImportOptions(force=True))
            for entry in (staging / _IMPORTED).iterdir():
                entry.rename(staging / entry.name)
            (staging / _IMPORTED).rmdir()
            shutil.copyfile(staging / MANIFEST, staging / TRIALS / MANIFEST)
    return _read_workspace(directory)


def _prepare_network(source: Path, directory: Path) -> Workspace:
    signature = read_signature(source)
    files = [source, *(source.parent / name for name in sorted(signature.external))]
    identity = hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()
    if _needs_copy(directory, source, identity):
        with _staging_folder(directory, source.stem, identity) as staging:
            for name in [source.name, *signature.external]:
                link_or_copy(source.parent / name, staging / NETWORK / name)
    graph = directory / NETWORK / source.name
    component = WorkspaceComponent(NETWORK, graph, Component(f"{NETWORK}/{source.name}", ""), read_signature(graph))
    return Workspace(source.stem, directory, (component,), is_pipeline=False)


def _read_workspace(directory: Path) -> Workspace:
    read_manifest(directory)  # only a check: raises an error if a file of the pipeline is missing or damaged
    components = []
    for name, component in original_components(directory).items():
        graph = directory / component.graph
        components.append(WorkspaceComponent(name, graph, component, read_signature(graph)))
    return Workspace(original_manifest(directory).name, directory, tuple(components), is_pipeline=True)


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Keep other processes from using a working directory while the `with` block runs; create the directory if needed.

    The lock is the operating system's (flock) on the directory itself, so it needs no file and ends with the process.

    Args:
        directory: the working directory. If it was created here and is still empty at the end, it is removed.

    Raises:
        InvalidRequest: another process uses the directory, or it cannot be created.
    """
    existed = directory.is_dir()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY)
    except FileExistsError:
        raise InvalidRequest(f"{directory} is a file", allowed="a new or empty directory") from None
    except OSError as error:
        message = f"{directory} cannot be written: {error.strerror or error}"
        raise InvalidRequest(message, allowed="a directory that can be written") from None
    try:
        _lock(descriptor, directory)
        yield
    finally:
        os.close(descriptor)
        if not existed and not any(directory.iterdir()):
            directory.rmdir()


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InvalidRequest(
            f"{directory} is in use by another run of `stillhouse accelerate`",
            allowed="one run in a directory at a time",
            fix="wait for the other run to end, or use another directory",
        ) from None


def is_sweep_directory(directory: Path) -> bool:
    """Return whether `stillhouse accelerate` has used the directory as the working directory of a pipeline."""
    return (directory / TRIALS / MANIFEST).is_file()


def original_manifest(directory: Path) -> Manifest:
    """Return the manifest of a working directory as it was before `stillhouse accelerate` changed it."""
    document = json.loads((directory / TRIALS / MANIFEST).read_bytes())
    document.pop("checksum", None)
    return convert_manifest(document)


def original_components(directory: Path) -> dict[str, Component]:
    """Return the components of a working directory's pipeline by name, without changes by `stillhouse accelerate`."""
    return dict(original_manifest(directory).components)


def f32_components(directory: Path) -> dict[str, Component]:
    """Return a working directory's original components by name, in float32 as onnxruntime runs them by default."""
    return {
        name: Component(component.graph, component.weights, settings=BASELINE_OPTIONS)
        for name, component in original_components(directory).items()
    }


def _needs_copy(directory: Path, source: Path, identity: str) -> bool:
    if directory.exists() and not directory.is_dir():
        raise InvalidRequest(f"{directory} is a file", allowed="a new or empty directory")
    if not directory.is_dir() or not any(directory.iterdir()) or any(directory.glob(f"{_STAGING}*")):
        return True
    if directory.resolve() == source.resolve():
        raise InvalidRequest(f"{directory} is the source itself", allowed="an output directory other than the source")
    new_or_same_model = "a new or empty directory, or the directory of an earlier sweep of the same model"
    try:
        earlier: dict[str, str] = json.loads((directory / TRIALS / SOURCE_FILE).read_bytes())
    except (OSError, ValueError):
        message = f"{directory} is not empty and contains no earlier measurements"
        raise InvalidRequest(message, allowed=new_or_same_model, fix="use another directory") from None
    if earlier["identity"] != identity:
        is_of_one_name = earlier["name"] in (source.name, source.stem)
        other = f"another {source.name}" if is_of_one_name else earlier["name"]
        message = f"{directory} contains measurements of {other}, not of {source}"
        raise InvalidRequest(message, allowed=new_or_same_model, fix="use another directory")
    return False


@contextmanager
def _staging_folder(directory: Path, name: str, identity: str) -> Iterator[Path]:
    """Empty `directory`, and yield a new folder inside it, into which the caller copies files.

    On success the folder's content is moved into `directory`. On an error everything in `directory` is removed. The
    folder is inside `directory` because the parent of a mount point may be read-only.

    Args:
        directory: directory to fill; it is created if it does not exist.
        name: name of the source, stored in SOURCE_FILE.
        identity: checksum of the source, stored in SOURCE_FILE.

    Raises:
        InvalidRequest: the directory cannot be written.
        PipelineError: copying failed with an error of the operating system.
    """
    staging = directory / f"{_STAGING}{os.getpid()}"
    existed = directory.is_dir()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for entry in directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        (staging / TRIALS).mkdir(parents=True)
        (staging / TRIALS / SOURCE_FILE).write_text(json.dumps({"name": name, "identity": identity}) + "\n")
    except OSError as error:
        message = f"{directory} cannot be written: {error.strerror or error}"
        raise InvalidRequest(message, allowed="a directory that can be written") from None
    try:
        yield staging
        for entry in staging.iterdir():
            entry.rename(directory / entry.name)
        staging.rmdir()
    except BaseException as error:
        for entry in directory.iterdir():
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
        if not existed:
            directory.rmdir()
        if isinstance(error, OSError):
            raise PipelineError(
                f"{directory} could not be prepared: {error.strerror or error}",
                fix="check the free space and the permissions of this directory",
            ) from error
        raise


def link_or_copy(source: Path, destination: Path) -> None:
    """Copy a file, creating parent folders. A file of `_LINK_BYTES` or more is hard-linked instead if possible."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size >= _LINK_BYTES:
        try:
            os.link(source.resolve(), destination)
        except OSError:
            pass
        else:
            return
    shutil.copyfile(source, destination)
