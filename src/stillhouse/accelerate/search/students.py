"""Distilled students as candidates to replace their teacher: whole students, and their decoders alone.

A student is a pipeline that was distilled from another pipeline, its teacher, to need fewer steps.
"""

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
"""Name of the folder, in the working directory of `stillhouse accelerate`, with a directory for each student."""
_BACKENDS = ("openvino", "onnxruntime")


def add_students(workspace: Workspace, sources: Sequence[str]) -> tuple[str, ...]:
    """Copy distilled students into the workspace of their teacher; return the students' names, ordered as `sources`.

    Args:
        sources: names of models that this package contains, or pipeline directories. If a student was accelerated
            itself, its chosen networks are used.

    Raises:
        UnknownModel, ManifestError, TamperedFile: a source cannot be used.
        InvalidRequest: two students share a name, a source is not a student of this teacher, or a source differs from
            the student of the same name that was copied before.
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
    """Return the candidate that replaces the whole pipeline by the distilled student of the given name."""
    return Candidate(PIPELINE, "stillhouse", DISTILLED, options={"student": name})


def read_student_manifest(directory: Path, name: str) -> Manifest:
    """Return the manifest of a distilled student that `add_students` copied.

    Args:
        directory: working directory of the teacher.
        name: name of the student.
    """
    return read_manifest(directory / STUDENTS_FOLDER / name)


def prefix_paths(manifest: Manifest, folder: str) -> Manifest:
    """Return a copy of a pipeline's manifest for a parent directory, with `folder` prepended to every path.

    The list of files in the copy is empty, because `write_manifest` fills it.

    Args:
        manifest: manifest with paths relative to the pipeline's directory.
        folder: path of the pipeline's directory, relative to the parent directory that gets the copy.
    """

    def below(component: Component) -> Component:
        return replace(component, graph=f"{folder}/{component.graph}", weights=f"{folder}/{component.weights}")

    cache, tuned = manifest.step_cache, manifest.tuned
    return replace(
        manifest,
        components={name: below(component) for name, component in manifest.components.items()},
        tokenizers={role: f"{folder}/{name}" for role, name in manifest.tokenizers.items()},
        step_cache=cache and StepCache(f"{folder}/{cache.full}", f"{folder}/{cache.shallow}"),
        tuned=tuned
        and replace(
            tuned,
            probes={name: f"{folder}/{path}" for name, path in tuned.probes.items()},
            alternatives={name: tuple(map(below, components)) for name, components in tuned.alternatives.items()},
        ),
        files={},
    )


def student_decoders(directory: Path, names: Sequence[str]) -> list[Candidate]:
    """Return the decoders of distilled students as candidates to replace the teacher's decoder.

    Each decoder gives a candidate for OpenVINO and for onnxruntime. Decoders that equal the teacher's are left out.

    Args:
        directory: working directory of the teacher, with the students that `add_students` copied.
        names: names of the students.
    """
    teacher_decoder = _decoder_checksums(original_manifest(directory), directory)
    students = [
        name
        for name in names
        if _decoder_checksums(read_student_manifest(directory, name), directory / STUDENTS_FOLDER / name)
        != teacher_decoder
    ]
    return [
        Candidate(DECODER, backend, DISTILLED, options={"student": name}) for name in students for backend in _BACKENDS
    ]


def copy_student_decoder(candidate: Candidate, directory: Path, artifacts: Path) -> None:
    """Copy a student's decoder to the folder in which the candidate's graph is expected, unless the folder exists.

    Args:
        candidate: candidate of `student_decoders`.
        directory: working directory of the teacher, with the student.
        artifacts: parent of the candidate's folder.
    """
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
            message = f"{source} differs from the student {manifest.name} that was measured in {home.parent.parent}"
            raise InvalidRequest(
                message, allowed="an unchanged student of this name", fix="use another output directory"
            )
        return
    _copy_files(home, {file: source / file for file in (*manifest.files, MANIFEST)})


def _copy_files(folder: Path, files: Mapping[str, Path]) -> None:
    """Create a folder with copies of files. The folder does not exist until all files are copied.

    Args:
        folder: the folder to create.
        files: path of each file to copy, by the name of its copy.
    """
    staging = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    for name, file in files.items():
        link_or_copy(file, staging / name)
    staging.rename(folder)


def _decoder_checksums(manifest: Manifest, directory: Path) -> Mapping[str, str]:
    """Return the SHA-256 of each weight file of a pipeline's decoder, by file name.

    Decoders of equal checksums are equal. `directory` is the pipeline's directory.
    """
    graph = directory / manifest.components[DECODER].graph
    names = [(graph.parent / file).relative_to(directory).as_posix() for file in read_signature(graph).external]
    return {Path(name).name: manifest.files[name].sha256 for name in names}


def _check_student(manifest: Manifest, workspace: Workspace, names: Sequence[str]) -> None:
    if manifest.name in names:
        raise InvalidRequest(f"two students are named {manifest.name}", allowed="students with different names")
    teacher = files_checksum(original_manifest(workspace.directory))
    if manifest.distilled is None or manifest.distilled.teacher[1] != teacher:
        origin = manifest.distilled and f"distilled from {manifest.distilled.teacher[0]}"
        raise InvalidRequest(
            f"{manifest.name} is {origin or 'not a distilled model'}",
            allowed=f"students distilled from {workspace.name} with its present files",
            fix=f"create one with `stillhouse distill {workspace.name} -o DIR`",
        )
