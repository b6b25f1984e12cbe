"""`stillhouse models`: list the models that this package contains (embedded models)."""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.backends.safetensors_index import read_safetensors_index
from stillhouse.cli.table import format_table
from stillhouse.pipelines.load import EMBEDDED
from stillhouse.pipelines.manifest import Manifest, read_manifest

_HEADINGS = ["name", "parameters", "on disk", "image size", "steps", "licence", "all correct (95 % interval)"]


def declare(parser: ArgumentParser) -> None:
    """Add nothing to the argument parser of `stillhouse models`, which has no options."""


def run(arguments: Namespace) -> int:
    """Print a table of the embedded models, with size, default steps and score of each; return exit code 0."""
    print(format_table(_HEADINGS, [_row(name, directory) for name, directory in EMBEDDED.items()]))
    return 0


def _row(name: str, directory: Path) -> list[str]:
    manifest = read_manifest(directory)
    defaults = manifest.defaults
    return [
        name,
        f"{_count_parameters(directory, manifest) / 1e6:.1f} M",
        f"{sum(record.bytes for record in manifest.files.values()) / 1e6:.1f} MB",
        f"{defaults.width}x{defaults.height}",
        f"{defaults.steps} {defaults.sampler}",
        manifest.source.get("licence", "unknown"),
        _format_score(manifest.evidence),
    ]


def _count_parameters(directory: Path, manifest: Manifest) -> int:
    files = {component.weights for component in manifest.components.values()}
    tensors = [tensor for file in files for tensor in read_safetensors_index(directory / file).values()]
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _format_score(evidence: Mapping[str, Any]) -> str:
    """Return the recorded score of a model as text: the share of pictures that show all that their captions ask for.

    Args:
        evidence: measurements in the model's manifest, by command; the score is that of `stillhouse judge`.
    """
    if "judge" not in evidence:
        return "not measured"
    share = evidence["judge"]["scores"]["all_correct"]
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})"
