"""A pipeline's students as candidates: each with its own walk, as its own manifest runs it, and their tiny decoders."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stillhouse.accelerate.evaluation.build import DISTILLED_GRAPH_FILE
from stillhouse.accelerate.records.candidate import DECODER, DISTILLED, PIPELINE, Candidate
from stillhouse.accelerate.workspace import Workspace, link_or_copy, original_manifest
from stillhouse.backends.signature import read_signature
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import (
    MANIFEST,
    Component,
    Manifest,
    StepCache,
    file_sha256,
    files_checksum,
    read_manifest,
)

STUDENTS_FOLDER = "students"
"""The folder, in the result's directory, of the students' own directories."""
_BACKENDS = ("openvino", "onnxruntime")


def add_students(workspace: Workspace, sources: Sequence[str]) -> tuple[str, ...]:
    """Lay students out beside their teacher; their names.

    Args:
        target: the teacher.
        sources: embedded models' names, or pipeline directories, also accelerated ones: a student runs as its manifest
            says.

    Raises:
        UnknownModel, ManifestError, TamperedFile: a source that cannot be used.
        InvalidRequest: two of one name, one that did not learn from this teacher, or another one than was a candidate
            under its name before.
    """
    names: list[str] = []
    for source in sources:
        directory = find_pipeline(source)
        manifest = read_manifest(directory)
        _check_student(manifest, workspace, names)
        _copy_student(directory, manifest, workspace.directory / STUDENTS_FOLDER / manifest.name)
        names.append(manifest.name)
    return tuple(names)


def student_candidate(name: str) -> Candidate:
    """The candidate of drawing whole pictures with this student."""
    return Candidate(PIPELINE, "stillhouse", DISTILLED, options={"student": name})


def read_student_manifest(directory: Path, name: str) -> Manifest:
    """The manifest of a student that `settle_students` laid out in the result's `directory`."""
    return read_manifest(directory / STUDENTS_FOLDER / name)


def prefix_paths(manifest: Manifest, folder: str) -> Manifest:
    """The manifest with every path below `folder`, as the directory above it has to name them.

    The files' own records are left out; `write_manifest` makes them.
    """

    def below(component: Component) -> Component:
        return replace(component, graph=f"{folder}/{component.graph}", weights=f"{folder}/{component.weights}")

    cache, tuned = manifest.step_cache, manifest.tuned
    return replace(
        manifest,
        components={name: below(one) for name, one in manifest.components.items()},
        tokenizers=tuple(f"{folder}/{name}" for name in manifest.tokenizers),
        step_cache=cache and StepCache(f"{folder}/{cache.full}", f"{folder}/{cache.shallow}"),
        tuned=tuned
        and replace(
            tuned,
            probes={name: f"{folder}/{path}" for name, path in tuned.probes.items()},
            alternatives={name: tuple(map(below, ones)) for name, ones in tuned.alternatives.items()},
        ),
        files={},
    )


def student_decoders(directory: Path, names: Sequence[str]) -> list[Candidate]:
    """Candidates for the teacher's own decoder: those of the students that are other networks."""
    own = _decoder_checksums(original_manifest(directory), directory)
    others = [
        name
        for name in names
        if _decoder_checksums(read_student_manifest(directory, name), directory / STUDENTS_FOLDER / name) != own
    ]
    return [Candidate(DECODER, engine, DISTILLED, options={"student": name}) for name in others for engine in _BACKENDS]


def copy_student_decoder(candidate: Candidate, directory: Path, artifacts: Path) -> None:
    """Put the student's decoder where `build` looks for what a candidate's recipe makes, if it is not there."""
    folder = artifacts / candidate.artifact_key
    if folder.is_dir():
        return
    name = candidate.options["student"]
    home = directory / STUDENTS_FOLDER / name
    graph = home / read_student_manifest(directory, name).components[DECODER].graph
    external = read_signature(graph).external
    _copy_files(folder, {DISTILLED_GRAPH_FILE: graph, **{file: graph.parent / file for file in external}})


def _copy_student(source: Path, manifest: Manifest, home: Path) -> None:
    if home.is_dir():
        if file_sha256(home / MANIFEST) != file_sha256(source / MANIFEST):
            given = f"{source} is another {manifest.name} than was measured in {home.parent.parent}"
            raise InvalidRequest(given, allowed="the same students in one directory", fix="name another directory")
        return
    _copy_files(home, {file: source / file for file in (*manifest.files, MANIFEST)})


def _copy_files(folder: Path, files: Mapping[str, Path]) -> None:
    """Copy files, by their names in the folder, which is there whole or not at all."""
    laying = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(laying, ignore_errors=True)
    for name, file in files.items():
        link_or_copy(file, laying / name)
    laying.rename(folder)


def _decoder_checksums(manifest: Manifest, directory: Path) -> Mapping[str, str]:
    """What tells one decoder from another: the checksums of its weights, by file."""
    graph = directory / manifest.components[DECODER].graph
    names = [(graph.parent / file).relative_to(directory).as_posix() for file in read_signature(graph).external]
    return {Path(name).name: manifest.files[name].sha256 for name in names}


def _check_student(manifest: Manifest, workspace: Workspace, names: Sequence[str]) -> None:
    if manifest.name in names:
        raise InvalidRequest(f"two students are called {manifest.name}", allowed="names of their own")
    teacher = files_checksum(original_manifest(workspace.directory))
    if manifest.distilled is None or manifest.distilled.teacher[1] != teacher:
        learnt = manifest.distilled and f"which learnt from {manifest.distilled.teacher[0]}"
        raise InvalidRequest(
            f"{manifest.name}, {learnt or 'which is no student'}",
            allowed=f"students of {workspace.name} as it is now",
            fix=f"make one with `stillhouse distill {workspace.name} -o DIR`",
        )
