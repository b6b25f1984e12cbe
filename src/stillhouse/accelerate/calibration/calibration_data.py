"""Probes: the very inputs that a component gets while real pictures are made, at several noise levels.

They calibrate quantisation, verify every candidate, and are what candidates are timed on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import ImageRequest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.pipelines.runners import FULL, SHALLOW, UNET

PROBES_FILE = "probes.npz"
"""The file of a component's probes, in the folder of its trials."""
LARGE_BATCH_LABEL = "rows together"
"""In the label of a probe that several others were gathered to."""
_LABELS = "labels"

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """One recorded call: a label that says where it was taken ("noise 0.97, prompt 2"), and the inputs by name."""

    label: str
    feeds: Feeds


def interleave_rows(probes: Sequence[Probe], rows: int) -> list[tuple[int, int]]:
    """So many rows out of all probes, in turns, as a server makes one call of several pictures: (probe, row) each.

    Probes of other sizes than the first are left out. The first axis of every tensor counts rows.

    >>> pair = Probe("of two rows", {"x": np.zeros((2, 4))})
    >>> interleave_rows([pair, pair, Probe("larger", {"x": np.zeros((2, 5))})], 5)
    [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0)]
    """
    alike = [number for number, one in enumerate(probes) if _shapes(one.feeds) == _shapes(probes[0].feeds)]
    count = min(len(array) for array in probes[0].feeds.values())
    return [(alike[row % len(alike)], row // len(alike) % count) for row in range(rows)]


def gather_rows(probes: Sequence[Probe], places: Sequence[tuple[int, int]]) -> Probe:
    """Rows of probes, or of what was answered to them, as one."""
    feeds = {name: np.array([probes[probe].feeds[name][row] for probe, row in places]) for name in probes[0].feeds}
    return Probe(f"{len(places)} {LARGE_BATCH_LABEL}", feeds)


def _shapes(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


class RecordingPipeline(Pipeline):
    """A pipeline that keeps what its networks are fed while `label` is set."""

    label = ""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **options)
        self.recorded: dict[str, list[Probe]] = {name: [] for name in self.manifest.components}

    def run(self, component: str, feeds: Feeds) -> Mapping[str, NDArray[Any]]:
        """One call of the network of that name, kept."""
        if self.label and component != SHALLOW:
            kept = Probe(self.label, {name: self.arrays.to_numpy(array).copy() for name, array in feeds.items()})
            self.recorded[UNET if component == FULL else component].append(kept)
        return super().run(component, feeds)


def record_probes(
    pipeline: RecordingPipeline, requests: Sequence[ImageRequest], levels: int = 4
) -> dict[str, list[Probe]]:
    """Make a picture of each request and keep what its networks were fed.

    Args:
        pipeline: opened on a float32 baseline.
        requests: of different prompts and seeds.
        levels: noise levels, spread over the walk, at which the U-Net is recorded.

    Returns:
        by component: every call of the text encoders and the autoencoder, and `levels` calls of the U-Net a picture.
    """
    for number, request in enumerate(requests):
        pipeline.label = f"prompt {number}"
        draft = pipeline.start(request)
        pipeline.label = ""
        if number == 0:
            wanted = set(np.linspace(0, draft.evaluation_count - 1, levels).round().astype(int).tolist())
        while not draft.is_done:
            if draft.index in wanted:
                sigma = draft.evaluations[draft.index].level.sigma
                pipeline.label = f"noise {sigma:.2f}, prompt {number}"
            pipeline.advance([draft])
            pipeline.label = ""
        pipeline.label = f"prompt {number}"
        result = pipeline.finish(draft)
        if "vae_encoder" in pipeline.manifest.components:
            pipeline.encode_image(result.image)
        pipeline.label = ""
    return pipeline.recorded


def write_probes(path: Path, probes: Sequence[Probe]) -> None:
    """Write probes as one .npz: arrays `<number>/<input>`, and the labels."""
    arrays = {f"{number}/{name}": array for number, probe in enumerate(probes) for name, array in probe.feeds.items()}
    _write_npz(path, [probe.label for probe in probes], arrays)


def read_probes(path: Path) -> list[Probe]:
    """Read what `write_probes` or `write_outputs` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        labels: list[str] = json.loads(str(stored[_LABELS]))
        feeds: list[dict[str, NDArray[Any]]] = [{} for _ in labels]
        for name in stored.files:
            if name != _LABELS:
                number, _, tensor = name.partition("/")
                feeds[int(number)][tensor] = stored[name]
    return [Probe(label, tensors) for label, tensors in zip(labels, feeds, strict=True)]


def _write_npz(path: Path, labels: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, allow_pickle=False, **{_LABELS: np.array(json.dumps(list(labels)))}, **arrays)
    temporary.replace(path)
