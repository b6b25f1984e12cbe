"""Directories of a single network, as `stillhouse accelerate FILE.onnx -o DIR` makes them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.errors import ManifestError
from stillhouse.pipelines.manifest import Component
from stillhouse.pipelines.runners import open_component
from stillhouse.validation import InvalidDocument, convert

NETWORK_MANIFEST = "network.json"
VERSION = 1


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


def open_network(directory: Path | str, *, threads: int | None = None) -> Runner:
    """Open the network of a directory that `stillhouse accelerate FILE.onnx -o DIR` made.

    The result is called with inputs by name, and returns outputs by name. `threads` limits the network's threads; None:
    as `network.json` says.

    >>> open_network("my-network")({"input": array})["output"]  # doctest: +SKIP

    Raises:
        ManifestError: the directory has no valid `network.json`.
        RuntimeMissing, BackendFailed: the backend is not installed, or cannot open the network.
    """
    directory = Path(directory)
    network = read_network(directory)
    return open_component(directory, network.component, network.shapes, RunnerOptions(threads=threads))
