"""Backends by name: each opens an ONNX file on an inference runtime and returns a Runner, a callable network.

A runtime is imported only when it opens a graph.
"""

from stillhouse.backends.registry import backends, open_runner
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.runtime import BackendStatus

__all__ = ["BackendStatus", "Runner", "RunnerOptions", "backends", "open_runner"]
