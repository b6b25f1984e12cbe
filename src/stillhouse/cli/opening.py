"""Loading of pipelines for the commands, with a directory that caches compiled networks."""

from argparse import Namespace

from stillhouse.cache_directory import cache_directory
from stillhouse.cli.arguments import engine_options
from stillhouse.pipelines.load import find_pipeline, load
from stillhouse.pipelines.pipeline import Pipeline

COMPILED = "compiled"
"""Name of the cache directory of compiled networks."""
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
    return load(
        model, cache=cache_directory(COMPILED) if weights <= MAX_CACHED_WEIGHTS else None, **engine_options(arguments)
    )
