"""The description of a backend (an inference runtime): how it opens a graph, and which configurations are worth trying.

A module describes its backend by a `Backend` value. The registry lists the backends of this package; an installed
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
"""When a network with static shapes must be opened again. "shape": for each input shape. "batch": for each picture
size, but not for each batch size. "never": the runtime itself compiles for each new shape."""
Settings: TypeAlias = Mapping[str, str]
BuildGraph: TypeAlias = Callable[[Path, Path, Sequence[Mapping[str, NDArray[Any]]], Sequence[str]], None]
"""`build(graph, out, feeds, keep)`: convert the ONNX file `graph` and write the result to `out`. `feeds` are recorded
inputs of the network, one mapping for each call. The nodes named in `keep` stay in float32."""

LAST_RANK = 100
"""Rank of candidates (configurations to measure) that are tried after those of all backends of this package."""


@dataclass(frozen=True, slots=True)
class CandidateContext:
    """The network, the machine and the user's request for which a backend lists candidates, configurations to measure.

    Args:
        role: role of the network in its pipeline: "denoiser", "decoder", "encoder", "text_encoder", ...; "network" for
            an ONNX file outside a pipeline.
        cost: the network's share of the time to generate a picture: "high" (most of the time) or "low" (little).
        status: status of this backend on this machine.
        instructions: instruction set extensions of the processor, as the system names them.
        gpus: GPUs of this machine.
        threads: number of threads that may be used.
        device: requested device: auto, cpu, cuda, cuda:1.
        has_dynamic_batch: whether the graph takes batches of any size.
        decoder_side: longer side, in pixels, of the pictures that a decoder makes; None for other networks.
        has_integer_weights: whether the graph as given stores weights as integers, see `Signature.is_quantised`.
        is_large: whether the network is large, see `signature.is_large`.
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
    has_integer_weights: bool = False
    is_large: bool = False

    def gpu(self, device: str) -> Gpu:
        """Return the GPU that a device name such as "cuda:1" means; the last GPU where the index is too high."""
        return self.gpus[min(device_index(device), len(self.gpus) - 1)]


@dataclass(frozen=True, slots=True)
class CandidateSpec:
    """A candidate: one configuration of a backend that `stillhouse accelerate` measures.

    Args:
        recipe: the graph to open: "f32" is the exported graph, other names are recipes (conversions) of the backend.
        precision: precision in which the graph is opened, see `RunnerOptions.precision`.
        options: the backend's own settings by name. Every backend also takes `shapes` ("static": opened for one shape),
            `streams` (parts of a batch run at the same time), `threads`, `tile` (side in pixels of a decoder's tiles).
        rank: candidates of all backends are tried in ascending rank; equal ranks, in the order of the registry.
            Backends of this package use 0 to 49 on a GPU and 50 to 99 on the processor.
    """

    recipe: str = "f32"
    precision: str = "f32"
    options: Settings = field(default_factory=dict)
    rank: int = LAST_RANK


@dataclass(frozen=True, slots=True)
class Recipe:
    """A conversion of an exported graph for one backend, for example to int8.

    Args:
        build: function that writes the converted graph.
        file_name: name of the converted graph; an OpenVINO graph where the suffix is .xml, otherwise an ONNX file.
        requires: packages that `build` imports.
        is_batch_dependent: whether, in the converted graph, the result of a row depends on the other rows of its batch.
    """

    build: BuildGraph
    file_name: str = "model.onnx"
    requires: tuple[str, ...] = ()
    is_batch_dependent: bool = False


def exported_graph(context: CandidateContext) -> Iterable[CandidateSpec]:
    """Return one candidate, the exported graph in float32. This is the default of `Backend.candidates`."""
    return (CandidateSpec(),)


def no_defaults(context: CandidateContext) -> Iterable[CandidateSpec]:
    """Return no configuration. This is the default of `Backend.defaults`."""
    return ()


def no_exclusion(spec: CandidateSpec, context: CandidateContext) -> str:
    """Return "", which excludes no candidate. This is the default of `Backend.exclusion`."""
    return ""


def compiles_per_shape(settings: Settings) -> CompileScope:
    """Return "shape" for all settings. This is the default of `Backend.compiles_per`."""
    return "shape"


@dataclass(frozen=True, slots=True)
class Backend:
    """An inference runtime that opens networks, with all that the rest of the program needs to know of it.

    Only the first four arguments are required. With only these, `stillhouse accelerate` measures the exported graph in
    float32.

    Args:
        name: name in manifests, in reports and on the command line.
        open_graph: opens a graph, given its path, its signature and the options.
        status: describes the installed package, or raises RuntimeMissing with the reason.
        install: the command that installs the runtime.
        settings: allowed values of each setting by its name; the first value is the default.
        device_arrays: given settings, returns the operations on arrays (`diffusion.arrays.Arrays`) on the device on
            which networks run; None: the backend takes NumPy arrays only.
        compiles_per: given settings, returns when a network with static shapes must be opened again, see
            `CompileScope`.
        supports_streams: whether `RunnerOptions.streams` may be above 1.
        runs_modules: whether the backend runs the torch module beside the graph (config.json and weights), not the
            graph.
        batch_settings: settings with which a network with static shapes is opened once for several batch sizes; None:
            no settings allow this.
        adapter_settings: settings with which adapters can change the weights of an open network; None: no settings
            allow this.
        count_settings: settings with which an open network counts its layers by precision (`Runner.layer_precisions`).
        packages: distributions whose versions decide how fast and how exact the backend is.
        recipes: conversions of the exported graph for this backend, by name.
        candidates: lists the configurations that are worth measuring.
        defaults: lists the configurations for pictures of all sizes, of the exported graph, among which an import
            chooses within a minute.
        exclusion: returns why a configuration of `candidates` cannot run or gains nothing; "" where it may gain. Called
            only where the backend is ready and the device exists.
        dominated_below: a share of the speed of the fastest candidate so far. Where this backend's first candidate on a
            device is slower than this share, its further candidates on the device are skipped. None: all are measured.
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
    defaults: Callable[[CandidateContext], Iterable[CandidateSpec]] = no_defaults
    exclusion: Callable[[CandidateSpec, CandidateContext], str] = no_exclusion
    dominated_below: float | None = None


def missing_package(package: str, purpose: str) -> str:
    """Return a message that a package is not installed, with the command that installs it; "" where it is installed.

    Args:
        package: name by which Python imports the package.
        purpose: clause that says what the package does, for the message.

    >>> missing_package("json", "which reads it")
    ''
    """
    if find_spec(package):
        return ""
    return f"{package}, {purpose}, is not installed: {install_command(package)}"


def missing_fp8(gpu: Gpu) -> str:
    """Return why fp8 cannot run on a GPU; "" where it can."""
    return "" if gpu.has_fp8 else f"{gpu.name} has no fp8: compute capability {gpu.capability}"
