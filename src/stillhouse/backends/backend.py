"""The object that describes a backend: how it opens a graph, and what the rest of the program may do with it.

A backend is one module with one `Backend` value. The registry lists the backends of this package; an installed
package adds backends by entry points, see `registry.ENTRY_POINT_GROUP`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.runtime import BackendStatus, install_command
from stillhouse.backends.signature import Signature
from stillhouse.gpu import Gpu, device_index

CompileScope: TypeAlias = Literal["shape", "batch", "never"]
"""When a static network must be opened again. "shape": for each shape. "batch": for each picture size, but not for each
batch size. "never": the runtime itself compiles for each shape."""
Settings: TypeAlias = Mapping[str, str]
BuildGraph: TypeAlias = Callable[[Path, Path, Sequence[Mapping[str, NDArray[Any]]], Sequence[str]], None]
"""`build(graph, out, feeds, keep)`: convert the ONNX file `graph` and write the result to `out`. `feeds` are recorded
inputs of the network, one mapping for each call. The nodes named in `keep` stay in float32."""

LAST_RANK = 100
"""Rank of candidates that are tried after the candidates of all backends of this package."""


@dataclass(frozen=True, slots=True)
class CandidateContext:
    """The component, the machine and the request for which a backend lists its candidates.

    Args:
        role: role of the component: "denoiser", "decoder", "encoder", "text_encoder", ...; "network" for an ONNX file
            outside a pipeline.
        cost: share of the component in the time of a picture. Components of low cost run once per picture.
        status: status of this backend on this machine.
        instructions: instruction set extensions of the processor, as the system names them.
        gpus: GPUs of this machine.
        threads: number of threads that may be used.
        device: requested device: auto, cpu, cuda, cuda:1.
        has_dynamic_batch: whether the graph takes batches of any size.
        decoder_side: longer side, in pixels, of the pictures that a decoder makes; None for other components.
        axis_ranges: lengths that the graph's named axes may have, "rows=1-8,height=32-64"; empty: fixed lengths.
    """

    role: str
    cost: Literal["high", "medium", "low"]
    status: BackendStatus
    instructions: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    threads: int = 1
    device: str = "auto"
    has_dynamic_batch: bool = True
    decoder_side: int | None = None
    axis_ranges: str = ""

    def gpu(self, device: str) -> Gpu:
        """Return the GPU that a device name means; the last GPU where the index is too high."""
        return self.gpus[min(device_index(device), len(self.gpus) - 1)]


@dataclass(frozen=True, slots=True)
class CandidateSpec:
    """A configuration of a backend to measure.

    Args:
        recipe: the graph: "f32" for the exported one, or the name of a recipe of the backend.
        precision: `RunnerOptions.precision`.
        options: settings of the backend, and `shapes` ("static"), `streams`, `threads` and `tile` (pixels of a side).
        rank: candidates of all backends are tried in ascending rank; equal ranks, in the order of the registry.
            Backends of this package use 0 to 49 on a GPU and 50 to 99 on the processor.
    """

    recipe: str = "f32"
    precision: str = "f32"
    options: Settings = field(default_factory=dict)
    rank: int = LAST_RANK


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to convert the exported graph for one backend.

    Args:
        build: writes the converted graph.
        file_name: name of the converted graph; an OpenVINO graph where the suffix is .xml, otherwise an ONNX file.
        requires: packages that `build` imports.
        is_batch_dependent: whether the result of a row depends on the other rows of its batch.
    """

    build: BuildGraph
    file_name: str = "model.onnx"
    requires: tuple[str, ...] = ()
    is_batch_dependent: bool = False


def exported_graph(context: CandidateContext) -> Iterable[CandidateSpec]:
    """Return the one candidate of a backend that lists none: the exported graph in float32."""
    return (CandidateSpec(),)


def no_exclusion(spec: CandidateSpec, context: CandidateContext) -> str:
    """Exclude no candidate."""
    return ""


def compiles_per_shape(settings: Settings) -> CompileScope:
    """Return "shape" for all settings."""
    return "shape"


@dataclass(frozen=True, slots=True)
class Backend:
    """A runtime that opens networks.

    Only the first four arguments are required. With only these, `stillhouse accelerate` measures the exported graph in
    float32.

    Args:
        name: name in manifests, in reports and on the command line.
        open_graph: opens a graph, given its path, its signature and the options.
        status: describes the installed package, or raises RuntimeMissing with the reason.
        install: the command that installs the runtime.
        settings: allowed values of each setting by its name; the first is the default.
        device_arrays: returns the arrays (see `diffusion.arrays`) that live on the device of these settings; None:
            the backend takes NumPy arrays only.
        compiles_per: when a static network with these settings must be opened again, see `CompileScope`.
        supports_streams: whether `RunnerOptions.streams` may be above 1.
        runs_modules: whether the backend runs the network beside the graph (config.json and weights), not the graph.
        batch_settings: settings with which one static opening serves several batch sizes; None: there are none.
        adapter_settings: settings with which adapters can change the weights of an open network; None: there are none.
        count_settings: settings that an open network needs to count its layers (`Runner.layer_precisions`).
        packages: distributions whose versions decide how fast and how exact the backend is.
        recipes: conversions of the exported graph for this backend, by name.
        candidates: lists the configurations that are worth measuring.
        exclusion: returns why a configuration of `candidates` cannot run or gains nothing, or "". Called only where
            the backend is ready and the device exists.
        dominated_below: a share of the fastest candidate's speed. Where this backend's first candidate on a device is
            slower, its further candidates on that device are skipped. None: all are measured.
    """

    name: str
    open_graph: Callable[[Path, Signature, RunnerOptions], Runner]
    status: Callable[[], BackendStatus]
    install: str
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    device_arrays: Callable[[Settings], Any] | None = None
    compiles_per: Callable[[Settings], CompileScope] = compiles_per_shape
    supports_streams: bool = False
    runs_modules: bool = False
    batch_settings: Settings | None = None
    adapter_settings: Settings | None = None
    count_settings: Settings = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    candidates: Callable[[CandidateContext], Iterable[CandidateSpec]] = exported_graph
    exclusion: Callable[[CandidateSpec, CandidateContext], str] = no_exclusion
    dominated_below: float | None = None


def missing_package(package: str, purpose: str) -> str:
    """Return that a package is not installed, with the command that installs it; "" where it is installed.

    >>> missing_package("json", "which reads it")
    ''
    """
    if find_spec(package):
        return ""
    return f"{package}, {purpose}, is not installed: {install_command(package)}"


def missing_fp8(gpu: Gpu) -> str:
    """Return why fp8 cannot run on a GPU; "" where it can."""
    return "" if gpu.has_fp8 else f"{gpu.name} has no fp8: compute capability {gpu.capability}"
