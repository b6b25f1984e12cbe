"""Pipelines that share their files with another one, and run its networks in other ways."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree

from stillhouse.pipelines.manifest import MANIFEST, Component, StepCache, read_manifest, write_manifest


def link_pipeline(
    source: Path, target: Path, components: Mapping[str, Component] | None = None, step_cache: StepCache | None = None
) -> None:
    """Write a pipeline directory whose files are links to those of another one.

    Args:
        source: the other pipeline directory.
        target: directory to write; an existing one is replaced.
        components: networks that replace those of the same role.
        step_cache: graphs for feature caching, in `source` as well.
    """
    rmtree(target, ignore_errors=True)
    copytree(source, target, copy_function=link)
    (target / MANIFEST).unlink()
    manifest = read_manifest(source)
    joined = {**manifest.components, **(components or {})}
    write_manifest(target, replace(manifest, components=joined, step_cache=step_cache))


def link(source: str, target: str) -> None:
    """Make a file that is another one, for `shutil.copytree`."""
    Path(target).hardlink_to(source)
