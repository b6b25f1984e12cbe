"""Loading of pipelines for the commands, with a directory that caches compiled networks."""

import os
from argparse import Namespace
from pathlib import Path

from stillhouse.cli.arguments import engine_options
from stillhouse.pipelines.load import find_pipeline, load
from stillhouse.pipelines.pipeline import Pipeline

MAX_CACHED_WEIGHTS = 64 << 20
"""Largest total size in bytes of a pipeline's weights for which compiled networks are cached on disk.

The cache holds a compiled network for each precision, thread count and static size, each as large as the weights.
Larger pipelines are not cached, because compilation dominates the load time of small networks only.
"""


def open_pipeline(model: str, arguments: Namespace) -> Pipeline:
    """Load a pipeline and return it.

    Compiled networks are cached on disk if the pipeline's weights take at most MAX_CACHED_WEIGHTS bytes. Otherwise
    networks are compiled on every load.

    Args:
        model: name of a model that this package contains, or a pipeline directory.
        arguments: options of `arguments.add_engine_options`: backend, precision, threads, verify.
    """
    weights = sum(path.stat().st_size for path in find_pipeline(model).rglob("*.safetensors"))
    return load(model, cache=compile_cache() if weights <= MAX_CACHED_WEIGHTS else None, **engine_options(arguments))


def compile_cache() -> Path | None:
    """Return the directory in which compiled networks are cached, after creating it; None if it is not writable.

    The directory is inside $XDG_CACHE_HOME, or inside ~/.cache where that variable is not set.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    directory = Path(base) if base else Path.home() / ".cache"
    directory = directory / "stillhouse" / "compiled"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK) else None
