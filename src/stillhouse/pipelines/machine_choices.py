"""How the networks of a pipeline run on this machine, as a measurement chose it, kept between programs."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stillhouse.backends.registry import builtin_backends
from stillhouse.cache_directory import cache_directory
from stillhouse.measure.machine import installed_versions, read_machine
from stillhouse.pipelines.manifest import MANIFEST, Component, file_sha256
from stillhouse.validation import InvalidDocument, convert

CHOICES = "choices"
"""Name of the cache directory."""


@dataclass(frozen=True, slots=True)
class _Document:
    """Content of a file.

    Args:
        machine: fingerprint of the machine.
        versions: versions of the backends' packages.
        components: networks by role.
    """

    machine: str
    versions: Mapping[str, str]
    components: Mapping[str, Component]


@dataclass(frozen=True, slots=True)
class MachineChoice:
    """The file of the choice for one pipeline.

    Args:
        path: the file; None: there is no place to keep it.
    """

    path: Path | None

    def read(self) -> dict[str, Component] | None:
        """Return the networks by role; None where no choice is kept for this machine and these versions."""
        if self.path is None:
            return None
        try:
            document = convert(_Document, json.loads(self.path.read_text(encoding="utf-8")))
        except (OSError, ValueError, InvalidDocument):
            return None
        is_current = (document.machine, dict(document.versions)) == (_fingerprint(), _versions())
        return dict(document.components) if is_current else None

    def write(self, components: Mapping[str, Component]) -> None:
        """Keep networks by role, whole or not at all."""
        if self.path is not None:
            document = asdict(_Document(_fingerprint(), _versions(), components))
            partial = self.path.with_suffix(".part")
            partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            partial.replace(self.path)


@contextmanager
def machine_choice(directory: Path, threads: int | None) -> Iterator[MachineChoice]:
    """Return the file of the choice for a pipeline; a second program waits until the first has chosen.

    Otherwise two workers of a server could choose differently, and draw a request differently.

    Args:
        directory: directory of the pipeline.
        threads: most threads of each network, for which the choice holds; None: the runtime's default.
    """
    folder = cache_directory(CHOICES)
    if folder is None:
        yield MachineChoice(None)
        return
    path = folder / f"{file_sha256(directory / MANIFEST)[:16]}-{threads or 'all'}.json"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield MachineChoice(path)


def _fingerprint() -> str:
    return read_machine().fingerprint()


def _versions() -> dict[str, Any]:
    return installed_versions(package for backend in builtin_backends() for package in backend.packages)
