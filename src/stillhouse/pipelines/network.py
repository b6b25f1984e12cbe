"""Directories of a single network, as `stillhouse accelerate FILE.onnx -o DIR` makes them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stillhouse.backends.runner import Runner, RunnerOptions, Tensors
from stillhouse.backends.signature import read_signature
from stillhouse.core import TensorSpec
from stillhouse.errors import ManifestError
from stillhouse.pipelines.manifest import Component
from stillhouse.pipelines.runners import open_component, opening_shapes
from stillhouse.validation import InvalidDocument, convert

NETWORK_MANIFEST = "network.json"
VERSION = 1
MAX_OPEN_SHAPES = 4
"""Largest number of shapes for which a network with static shapes is kept open."""


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """What `network.json` holds: a network's name, how to open it, and the input shapes that it was accelerated for."""

    name: str
    component: Component
    shapes: dict[str, tuple[int, ...]]
    version: int = VERSION


def write_network(directory: Path, network: NetworkRecord) -> None:
    """Write the record of a network to `network.json` in `directory`, whole or not at all."""
    temporary = directory / f".{NETWORK_MANIFEST}.part"
    temporary.write_text(json.dumps(asdict(network), indent=2) + "\n", encoding="utf-8")
    temporary.replace(directory / NETWORK_MANIFEST)


def read_network(directory: Path) -> NetworkRecord:
    """Read `network.json` in `directory`.

    Raises:
        ManifestError: the file is missing, broken, or of another version.
    """
    path = directory / NETWORK_MANIFEST
    run_accelerate = "make it with `stillhouse accelerate FILE.onnx -o DIR`"
    try:
        document = json.loads(path.read_bytes())
        network = convert(NetworkRecord, document)
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist", fix=run_accelerate) from None
    except (json.JSONDecodeError, UnicodeDecodeError, InvalidDocument) as error:
        raise ManifestError(f"{path} is broken: {error}", fix=run_accelerate) from None
    if network.version != VERSION:
        raise ManifestError(f"{path} has version {network.version}", allowed=f"version {VERSION}", fix=run_accelerate)
    return network


class NetworkRunner:
    """A Runner of a single network that takes all shapes that its graph allows.

    A network with static shapes is opened, which may compile it, for each new combination of shapes. The most recently
    used `MAX_OPEN_SHAPES` combinations stay open.

    Args:
        directory: directory of the network.
        network: how to open the network; it is opened for the shapes of this record at once.
        options: number of threads.
    """

    def __init__(self, directory: Path, network: NetworkRecord, options: RunnerOptions) -> None:
        self._directory, self._component, self._options = directory, network.component, options
        self._open: dict[tuple[tuple[str, tuple[int, ...]], ...], Runner] = {}
        self._first = first = self._runner_for(network.shapes)
        self._has_static_shapes = bool(opening_shapes(network.component, network.shapes))
        self.backend, self.precision = first.backend, first.precision
        self.layer_precisions, self.weight_types = first.layer_precisions, first.weight_types
        self.outputs = first.outputs
        axes = read_signature(directory / network.component.graph).inputs
        self.inputs: tuple[TensorSpec, ...] = tuple(
            replace(spec, shape=tuple(axis if isinstance(axis, int) else None for axis in axes[spec.name]))
            for spec in first.inputs
        )

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run the network once on input arrays by name, and return the output arrays by name.

        Raises:
            InvalidRequest: an array is missing or unknown, or does not fit the graph.
            BackendFailed: the runtime failed.
        """
        if not self._has_static_shapes:
            return self._first(feeds)
        return self._runner_for({name: array.shape for name, array in feeds.items()})(feeds)

    def _runner_for(self, shapes: Mapping[str, tuple[int, ...]]) -> Runner:
        key = tuple(sorted(opening_shapes(self._component, shapes).items()))
        if key not in self._open:
            runner = open_component(self._directory, self._component, shapes, self._options)
            while len(self._open) >= MAX_OPEN_SHAPES:
                del self._open[next(iter(self._open))]
            self._open[key] = runner
        # The runner moves to the end, so that the first runner is always the least recently used.
        self._open[key] = self._open.pop(key)
        return self._open[key]


def open_network(directory: Path | str, *, threads: int | None = None) -> Runner:
    """Open the network of a directory that `stillhouse accelerate FILE.onnx -o DIR` made.

    The result is called with inputs by name, and returns outputs by name. It takes all shapes that the graph allows;
    where the fastest way needs static shapes, the first call with other shapes takes the time to open the network.
    `threads` limits the network's threads; None: as `network.json` says.

    >>> open_network("my-network")({"input": array})["output"]  # doctest: +SKIP

    Raises:
        ManifestError: the directory has no valid `network.json`.
        RuntimeMissing, BackendFailed: the backend is not installed, or cannot open the network.
    """
    directory = Path(directory)
    network = read_network(directory)
    return NetworkRunner(directory, network, RunnerOptions(threads=threads))
