"""Backends: open an ONNX file on a runtime, by name, as a Runner. A runtime is imported when a graph is opened."""

from stillhouse.backends.registry import backends, open_runner
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.runtime import BackendStatus

__all__ = ["BackendStatus", "Runner", "RunnerOptions", "backends", "open_runner"]
