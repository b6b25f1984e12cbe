"""A pipeline of a message is found by its location, and is the one that the server has."""

import shutil
from pathlib import Path

import pytest

from stillhouse.errors import PipelineError, UnknownModel
from stillhouse.pipelines.load import EMBEDDED
from stillhouse.pipelines.manifest import read_manifest
from stillhouse.serve.worker.locate_pipeline import PipelineReference, locate_pipeline, pipeline_id

SHAPES = pipeline_id(read_manifest(EMBEDDED["shapes"]))


def test_a_pipeline_is_named_by_its_content(tmp_path: Path) -> None:
    name, checksum = SHAPES.split("@")
    assert name == "shapes" and len(checksum) == 64
    copy = tmp_path / "copy"
    shutil.copytree(EMBEDDED["shapes"], copy)
    assert locate_pipeline(PipelineReference(SHAPES, "shapes")) == EMBEDDED["shapes"]
    assert locate_pipeline(PipelineReference(SHAPES, str(copy))) == copy


def test_another_pipeline_at_the_location_is_refused() -> None:
    with pytest.raises(PipelineError, match=f"holds the pipeline shapes-3@.*allowed: {SHAPES}.*restart the server"):
        locate_pipeline(PipelineReference(SHAPES, "shapes-3"))
    with pytest.raises(UnknownModel, match="there is no model 'shape'"):
        locate_pipeline(PipelineReference(SHAPES, "shape"))
