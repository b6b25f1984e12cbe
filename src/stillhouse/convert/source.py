"""Diffusers directories that can be imported, on disk or in the cache of the Hugging Face hub."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers

from stillhouse.backends.runtime import first_error_line
from stillhouse.errors import ImportFailed, UnknownModel

INDEX = "model_index.json"
REDOWNLOAD = "download or save the model again"


@dataclass(frozen=True, slots=True)
class Source:
    """A diffusers directory, the source of an import.

    Args:
        name: hub id, or name of the directory.
        directory: path of the directory on this machine.
        index: content of model_index.json.
    """

    name: str
    directory: Path
    index: Mapping[str, Any]

    @property
    def pipeline_class(self) -> str:
        """Class name of the diffusers pipeline, from model_index.json."""
        return str(self.index.get("_class_name"))

    def class_name(self, component: str) -> str:
        """Return the class name of a component, which `check_component` must have accepted."""
        return str(self.index[component][1])

    def config(self, component: str, file: str = "config.json") -> dict[str, Any]:
        """Return a component's configuration, read from a JSON file in its sub-directory.

        Raises:
            ImportFailed: the file is missing or broken.
        """
        return _read_json(self.directory / component / file)

    def check_component(self, component: str, classes: Sequence[str] = ()) -> None:
        """Check that the directory has a component.

        Args:
            component: name of the component in model_index.json and of its sub-directory.
            classes: allowed class names; empty: any.

        Raises:
            ImportFailed: the component is missing or of another class.
        """
        _, name = self.index.get(component) or (None, None)
        if name is None:
            given = f"{self.directory} has no {component}"
            raise ImportFailed(given, allowed="a complete text-to-image model, not a refiner")
        if classes and name not in classes:
            raise ImportFailed(f"{component} is a {name}, which is not known", allowed=" or ".join(classes))
        if not (self.directory / component).is_dir():
            raise ImportFailed(f"{self.directory / component} is missing, though {INDEX} names it", fix=REDOWNLOAD)


def open_source(source: str | Path) -> Source:
    """Find a diffusers directory and read its index.

    Args:
        source: a directory, or a hub id `owner/name`, whose files are downloaded.

    Raises:
        UnknownModel: `source` is no existing directory, and no hub id that can be reached.
        ImportFailed: the directory is not a diffusers directory.
    """
    directory = _locate(source)
    origin = Path(source).resolve().name if Path(source).is_dir() else str(source)
    return Source(origin, directory, _read_json(directory / INDEX))


def _locate(source: str | Path) -> Path:
    path = Path(source)
    if (path / INDEX).is_file():
        return path
    if path.exists():
        kind = "no diffusers directory: it has no model_index.json" if path.is_dir() else "a file"
        raise ImportFailed(f"{path} is {kind}", allowed="a directory that diffusers saved, or a hub id")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise UnknownModel(f"there is no directory {path}", allowed="a diffusers directory, or a hub id owner/name")
    return _download(str(source))


def _download(hub_id: str) -> Path:
    try:
        return Path(diffusers.DiffusionPipeline.download(hub_id))
    except Exception as error:  # the hub's client raises many classes, which change between versions
        raise UnknownModel(
            f"there is no directory {hub_id}, and the hub gave no such model ({first_error_line(str(error))})",
            fix="check the name and the network connection, or download the model elsewhere and name its directory",
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ImportFailed(f"{path} is missing", fix=REDOWNLOAD) from None
    except ValueError as error:
        raise ImportFailed(f"{path} is not JSON: {error}", fix=REDOWNLOAD) from None
    if not isinstance(document, dict):
        raise ImportFailed(f"{path} holds no JSON object", fix=REDOWNLOAD)
    return document
