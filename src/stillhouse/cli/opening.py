"""From the command line to an open pipeline. Small networks are kept compiled from one command to the next."""

import os
from argparse import Namespace
from pathlib import Path

from stillhouse.cli.arguments import engine_options
from stillhouse.pipelines.load import find_pipeline, load
from stillhouse.pipelines.pipeline import Pipeline

MAX_CACHED_WEIGHTS = 64 << 20
"""Bytes of weights above which nothing is kept: a compiled network is as large as its weights, once for each
precision, number of threads and, where it is static, size; and only of a small one is compiling most of the wait."""


def open_pipeline(model: str, arguments: Namespace) -> Pipeline:
    """The pipeline of that name or directory, opened as the options of `add_engine` say."""
    weights = sum(path.stat().st_size for path in find_pipeline(model).rglob("*.safetensors"))
    return load(model, cache=compile_cache() if weights <= MAX_CACHED_WEIGHTS else None, **engine_options(arguments))


def compile_cache() -> Path | None:
    """Where compiled networks are kept, made if need be; None where nothing can be written."""
    base = os.environ.get("XDG_CACHE_HOME")
    directory = Path(base) if base else Path.home() / ".cache"
    directory = directory / "stillhouse" / "compiled"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if os.access(directory, os.W_OK) else None
