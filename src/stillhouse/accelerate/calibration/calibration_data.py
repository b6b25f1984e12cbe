"""Probes and calibration data: inputs of a network, recorded at several noise levels while pictures are generated.

Candidates are compared and timed on probes. Calibration data of quantization are other recorded inputs, because a
quantized network is more accurate on the inputs that it was calibrated with than on others.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.core import ImageRequest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.pipelines.roles import DENOISER, DENOISER_FULL, DENOISER_SHALLOW

PROBES_FILE = "probes.npz"
"""Name of the file with the recorded inputs (probes) of a network, in the folder of the network's measurements."""
CALIBRATION_FILE = "calibration.npz"
"""Name of the file with the inputs that static quantization is calibrated with, beside PROBES_FILE. The file is missing
where there are no real inputs besides the probes.
"""
PROBE_SHARE = 3
"""One of so many input sets becomes a probe, where the same sets serve for probes and for calibration data."""
LARGE_BATCH_LABEL = "rows together"
"""Text in the label of a probe (recorded inputs) whose batch was put together from rows of several other probes."""
_LABELS = "labels"

Feeds = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """Recorded inputs of one call of a network, or the outputs for these inputs.

    Args:
        label: origin of the inputs, for example "noise 0.97, prompt 2".
        feeds: arrays by name of the input or output.
    """

    label: str
    feeds: Feeds


def split_inputs(inputs: Sequence[Probe]) -> tuple[list[Probe], list[Probe]]:
    """Divide inputs into calibration data and probes, which have no input in common: (calibration data, probes).

    Every input whose index is a multiple of PROBE_SHARE becomes a probe. The calibration data are empty where there is
    a single input.

    >>> calibration, probes = split_inputs([Probe(str(n), {"x": np.array([n % 5])}) for n in range(7)])
    >>> [probe.label for probe in calibration], [probe.label for probe in probes]
    (['2', '4'], ['0', '3', '6'])
    """
    probes = [probe for index, probe in enumerate(inputs) if index % PROBE_SHARE == 0]
    return without_probes(inputs, probes), probes


def without_probes(inputs: Sequence[Probe], probes: Sequence[Probe]) -> list[Probe]:
    """Return the inputs whose arrays differ from those of every probe."""
    seen = {_content(probe.feeds) for probe in probes}
    return [probe for probe in inputs if _content(probe.feeds) not in seen]


def _content(feeds: Feeds) -> tuple[tuple[str, tuple[int, ...], bytes], ...]:
    arrays = {name: _objects_to_text(array) for name, array in feeds.items()}
    return tuple((name, array.shape, array.tobytes()) for name, array in sorted(arrays.items()))


def interleave_rows(probes: Sequence[Probe], rows: int) -> list[tuple[int, int]]:
    """Return which rows of recorded inputs (probes) make up a batch: a (probe, row) index pair for each batch row.

    Consecutive rows come from different probes, as a server puts rows of different pictures into a batch. Rows are
    repeated if there are too few. Probes whose shapes differ from those of the first probe are not used.

    Args:
        probes: recorded inputs; the first axis of every array counts rows.
        rows: number of rows of the batch.

    >>> pair = Probe("of two rows", {"x": np.zeros((2, 4))})
    >>> interleave_rows([pair, pair, Probe("larger", {"x": np.zeros((2, 5))})], 5)
    [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0)]
    """
    usable = [number for number, probe in enumerate(probes) if _shapes(probe.feeds) == _shapes(probes[0].feeds)]
    count = min(len(array) for array in probes[0].feeds.values())
    return [(usable[row % len(usable)], row // len(usable) % count) for row in range(rows)]


def gather_rows(probes: Sequence[Probe], places: Sequence[tuple[int, int]]) -> Probe:
    """Return one probe (set of arrays by name) that consists of rows of several probes.

    Args:
        probes: recorded inputs, or the outputs for these inputs.
        places: (probe, row) index pairs, from `interleave_rows`.
    """
    feeds = {name: np.array([probes[probe].feeds[name][row] for probe, row in places]) for name in probes[0].feeds}
    return Probe(f"{len(places)} {LARGE_BATCH_LABEL}", feeds)


def _shapes(feeds: Feeds) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


class RecordingPipeline(Pipeline):
    """A pipeline that records the inputs of each call of its networks in `recorded`, while `label` is not empty.

    `recorded` holds a list for each network by name; `label` becomes the label of each entry.
    """

    label = ""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **options)
        self.recorded: dict[str, list[Probe]] = {name: [] for name in self.manifest.components}

    def run(self, component: str, feeds: Feeds) -> Mapping[str, NDArray[Any]]:
        """Run the network `component` and return the outputs by name. If `label` is not empty, record the inputs."""
        if self.label and component != DENOISER_SHALLOW:
            probe = Probe(self.label, {name: self.arrays.to_numpy(array).copy() for name, array in feeds.items()})
            self.recorded[DENOISER if component == DENOISER_FULL else component].append(probe)
        return super().run(component, feeds)


def record_probes(
    pipeline: RecordingPipeline, requests: Iterable[ImageRequest], levels: int = 4
) -> dict[str, list[Probe]]:
    """Generate a picture for each request, and record inputs of all networks of the pipeline.

    Args:
        pipeline: the pipeline, with its networks in float32.
        requests: requests with different prompts and seeds. The next one is taken when the picture before is finished.
        levels: number of noise levels, spread over the steps of a picture, at which the denoiser is recorded.

    Returns:
        recorded inputs by network: of every call of the text encoders, the decoder and the encoder, and of `levels`
            calls of the denoiser per picture. Inputs that were recorded before are not among them.
    """
    pipeline.recorded = {name: [] for name in pipeline.recorded}
    for number, request in enumerate(requests):
        pipeline.label = f"prompt {number}"
        trajectory = pipeline.start(request)
        pipeline.label = ""
        if number == 0:
            recorded_steps = set(np.linspace(0, trajectory.evaluation_count - 1, levels).round().astype(int).tolist())
        while not trajectory.is_done:
            if trajectory.index in recorded_steps:
                sigma = trajectory.next_evaluation.level.sigma
                pipeline.label = f"noise {sigma:.2f}, prompt {number}"
            pipeline.advance([trajectory])
            pipeline.label = ""
        pipeline.label = f"prompt {number}"
        result = pipeline.finish(trajectory)
        if "encoder" in pipeline.manifest.components:
            pipeline.encode_image(result.image)
        pipeline.label = ""
    return pipeline.recorded


def text_to_objects(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of text with the element type "object", as runtimes take it; other arrays unchanged."""
    return array.astype(object) if array.dtype.kind == "U" else array


def _objects_to_text(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(str) if array.dtype == np.object_ else array


def write_probes(path: Path, probes: Sequence[Probe]) -> None:
    """Write probes (recorded inputs with labels) to an .npz file, creating its folder.

    The array of an input is named `<index of the probe>/<name of the input>`. The labels are a JSON list in `labels`.
    Text, of the element type "object", is written as str.
    """
    arrays = {
        f"{number}/{name}": _objects_to_text(array)
        for number, probe in enumerate(probes)
        for name, array in probe.feeds.items()
    }
    _write_npz(path, [probe.label for probe in probes], arrays)


def read_probes(path: Path) -> list[Probe]:
    """Return the probes (recorded inputs with labels) of an .npz file that `write_probes` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        labels: list[str] = json.loads(str(stored[_LABELS]))
        feeds: list[dict[str, NDArray[Any]]] = [{} for _ in labels]
        for name in stored.files:
            if name != _LABELS:
                number, _, tensor = name.partition("/")
                feeds[int(number)][tensor] = text_to_objects(stored[name])
    return [Probe(label, tensors) for label, tensors in zip(labels, feeds, strict=True)]


def _write_npz(path: Path, labels: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez(temporary, allow_pickle=False, **{_LABELS: np.array(json.dumps(list(labels)))}, **arrays)
    temporary.replace(path)
