"""Engines: an ONNX file and a backend's name in, a Runner out. No runtime is imported before one is opened."""

from stillhouse.backends.registry import backends, open_runner
from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.runtime import BackendStatus

__all__ = ["BackendStatus", "Runner", "RunnerOptions", "backends", "open_runner"]
