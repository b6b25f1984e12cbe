"""How a server tells a worker which pipeline to open: by name, checksum, and directory on the worker's host."""

from pathlib import Path

import msgspec

from stillhouse.errors import PipelineError
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Manifest, files_checksum, read_manifest


class PipelineReference(msgspec.Struct, frozen=True):
    """A pipeline, and where a worker may find it.

    Args:
        id: name and checksum of the pipeline, `NAME@CHECKSUM`; see `pipeline_id`.
        location: name of a model that this package contains, or a directory on the worker's host.
    """

    id: str
    location: str


def pipeline_id(manifest: Manifest) -> str:
    """Return `NAME@CHECKSUM`: the pipeline's name, and the checksum of all files that its manifest records."""
    return f"{manifest.name}@{files_checksum(manifest)}"


def locate_pipeline(reference: PipelineReference) -> Path:
    """Return the directory of a pipeline on this host, after a check of its name and checksum.

    Raises:
        UnknownModel: there is no pipeline at the reference's location.
        PipelineError: the pipeline there has another name, or other files, than the reference says.
    """
    directory = find_pipeline(reference.location)
    if (local_id := pipeline_id(read_manifest(directory))) != reference.id:
        raise PipelineError(
            f"{directory} holds the pipeline {local_id}",
            allowed=f"{reference.id}, the pipeline that the server has",
            fix="restart the server if its pipeline was changed, or copy the pipeline to this host",
        )
    return directory
