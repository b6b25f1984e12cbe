"""Chooses the backend and the precision of each network of a new pipeline by seconds measured on this machine.

Measured are the networks as exported, on the backends and in the precisions that compute them without another graph;
`stillhouse accelerate` searches further. All are compared with float32 on onnxruntime on inputs that were recorded
while a picture was generated, and a picture must have the same bits in every batch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

from numpy.typing import NDArray

from stillhouse.backends.backend import CandidateContext
from stillhouse.backends.registry import backends, find_backend
from stillhouse.backends.signature import is_large, read_signature
from stillhouse.cpu import usable_cores
from stillhouse.measure.fidelity import MAX_SQNR
from stillhouse.measure.machine import Machine, read_machine
from stillhouse.measure.memory import release_memory
from stillhouse.pipelines.fastest_component import (
    MeasuredComponent,
    RecordedCall,
    find_fastest,
    measure_component,
    write_recorded_call,
)
from stillhouse.pipelines.manifest import VERIFY_FOLDER, Component, Manifest, Tuned, write_manifest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.pipelines.roles import DECODER, DENOISER

MIN_SQNR = 20.0
"""Least allowed signal-to-quantization-noise ratio of an output, in dB: the default of `stillhouse accelerate` for a
network whose pictures are not compared."""
SECONDS = 60.0
"""Time limit: no further network is opened after it."""
PROMPT = "a red circle"
SIDE, STEPS = 256, 3
"""Largest side in pixels and number of steps of the picture that is generated to record inputs."""
_LEAST_SHARE = 0.02
"""Networks that take a smaller share of a picture's time stay on the baseline."""
_LONG_CALL = 1.0
"""Seconds of a call from which the recorded call counts as the baseline's time. Shorter calls are timed again, because
the first call of a network is slower than the next."""
_MEMORY_FACTOR = 5.2
"""Memory that measuring takes, as a multiple of the largest file of weights in half precision: 8.3 GiB were measured at
the size of Stable Diffusion 1.5, whose denoiser's weights take 1.6 GiB, and about 22 GiB at XL's, with 4.8 GiB."""
_BASELINE = ("onnxruntime", "f32")
STATIC_ROWS = (1, 2, 4, 8)
"""Batch sizes for which a denoiser with static shapes is compiled: larger ones gain little on a processor."""
KNOWN_FASTEST = {
    "amx_bf16": ("openvino", "bf16"),
    "avx512_bf16": ("openvino", "bf16"),
    "avx2": ("openvino", "f32"),
}
"""Backend and precision by instruction set, for imports without a measurement; the first that the machine has counts.
Only avx512_bf16 was measured, on AMD's Zen 5."""


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """What was measured of one network.

    Args:
        role: role of the network.
        baseline: the network in float32 on onnxruntime.
        measured: the other ways to run it, in the order of measuring.
        is_cut: whether the time limit came before all of them were measured.
    """

    role: str
    baseline: MeasuredComponent
    measured: tuple[MeasuredComponent, ...] = ()
    is_cut: bool = False

    @property
    def fastest(self) -> MeasuredComponent:
        """The fastest way that is accurate."""
        return find_fastest((self.baseline, *self.measured)) or self.baseline


def choose_backends(directory: Path, manifest: Manifest, seconds: float = SECONDS) -> list[BackendChoice]:
    """Measure the networks of a new pipeline, and write the fastest accurate ways to run them into its manifest.

    Args:
        directory: the pipeline's directory, with `stillhouse.json`.
        manifest: its manifest.
        seconds: time limit.

    Returns:
        what was measured of each network that takes a relevant share of a picture's time, the slowest first.

    Raises:
        RuntimeMissing, BackendFailed: onnxruntime cannot run the pipeline on this machine.
    """
    deadline = monotonic() + seconds
    plain = _plain_components(manifest)
    recorded = _record_calls(directory, replace(manifest, components=plain))
    machine, choices = read_machine(), []
    for role in _by_share(recorded, manifest.defaults.steps):
        call = recorded[role]
        baseline = MeasuredComponent(plain[role], call.seconds, MAX_SQNR)
        if call.seconds < _LONG_CALL:
            baseline = measure_component(directory, role, plain[role], call.content, MIN_SQNR)
        choice = BackendChoice(role, baseline)
        for component in _candidates(directory, role, plain[role], machine):
            if monotonic() >= deadline:
                choice = replace(choice, is_cut=True)
            elif not _is_dominated(component, choice):
                measured = measure_component(directory, role, component, call.content, MIN_SQNR, needs_equal_rows=True)
                choice = replace(choice, measured=(*choice.measured, measured))
        choices.append(choice)
    _write_choices(directory, manifest, choices, {role: call.content for role, call in recorded.items()}, machine)
    return choices


def offer_backends(directory: Path, manifest: Manifest) -> Manifest:
    """Write into a pipeline's manifest what a machine that opens it needs to choose how denoiser and decoder run.

    The new manifest is returned. Nothing is measured. Offered are OpenVINO in f32 and bf16 and the baseline, beside
    what the manifest says.
    """
    plain = _plain_components(manifest)
    recorded = _record_calls(directory, replace(manifest, components=plain))
    probes, alternatives = {}, {}
    for role in (DENOISER, DECODER):
        probes[role] = f"{VERIFY_FOLDER}/{role}.npz"
        write_recorded_call(directory / probes[role], recorded[role].content)
        chosen = manifest.components[role]
        offered = [replace(chosen, backend="openvino", precision=precision) for precision in ("f32", "bf16")]
        if role == DENOISER and not _is_large(directory, chosen):
            offered += [_with_static_shapes(component) for component in offered]
        alternatives[role] = tuple(component for component in (*offered, plain[role]) if component != chosen)
    tuned = Tuned("", MIN_SQNR, probes, alternatives, needs_equal_rows=True)
    return write_manifest(directory, replace(manifest, tuned=tuned))


def set_known_backends(directory: Path, manifest: Manifest, machine: Machine) -> tuple[str, str]:
    """Write the backend and the precision that KNOWN_FASTEST has for this machine into a new pipeline's manifest.

    Nothing is measured or compared. Only the denoiser and the decoder are run so.

    Returns:
        backend and precision; those of the baseline where the machine is of no known kind.
    """
    known = next((value for name, value in KNOWN_FASTEST.items() if name in machine.instructions), _BASELINE)
    plain = _plain_components(manifest)
    chosen = {role: replace(plain[role], backend=known[0], precision=known[1]) for role in (DENOISER, DECODER)}
    write_manifest(directory, replace(manifest, components={**manifest.components, **chosen}))
    return known


def has_memory(directory: Path, manifest: Manifest, machine: Machine) -> bool:
    """Return whether the machine has the memory to measure a pipeline; True where its memory is unknown."""
    largest = max((directory / component.weights).stat().st_size for component in manifest.components.values())
    return machine.memory is None or _MEMORY_FACTOR * largest < machine.memory


def _plain_components(manifest: Manifest) -> dict[str, Component]:
    return {role: Component(item.graph, item.weights, *_BASELINE) for role, item in manifest.components.items()}


@dataclass(frozen=True, slots=True)
class _TimedCall:
    """A recorded call of the baseline, the seconds of the shortest call, and the number of calls for a picture."""

    content: RecordedCall
    seconds: float
    count: int


class _RecordedPipeline(Pipeline):
    """A pipeline that keeps the last call of each network, and the seconds of the shortest one."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **options)
        self.calls: dict[str, _TimedCall] = {}

    def run(self, component: str, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        started = perf_counter()
        outputs = super().run(component, feeds)
        seconds, before = perf_counter() - started, self.calls.get(component)
        content = RecordedCall(*({name: array.copy() for name, array in arrays.items()} for arrays in (feeds, outputs)))
        self.calls[component] = (
            _TimedCall(content, min(seconds, before.seconds), before.count + 1)
            if before
            else _TimedCall(content, seconds, 1)
        )
        return outputs


def _record_calls(directory: Path, manifest: Manifest) -> dict[str, _TimedCall]:
    """Generate a small picture with the baseline, and return a call of each network."""
    pipeline = _RecordedPipeline(directory, manifest=manifest)
    defaults = manifest.defaults
    scale = min(1.0, SIDE / max(defaults.width, defaults.height))
    width, height = (
        max(manifest.granularity, int(side * scale) // manifest.granularity * manifest.granularity)
        for side in (defaults.width, defaults.height)
    )
    steps = defaults.steps if manifest.distilled else min(STEPS, defaults.steps)
    pipeline.generate(PROMPT, steps=steps, width=width, height=height, seed=0)
    calls = pipeline.calls
    del pipeline
    release_memory()
    return calls


def _by_share(recorded: Mapping[str, _TimedCall], steps: int) -> list[str]:
    """Return the roles of networks that take a relevant share of a picture of so many steps, the largest first."""
    seconds = {role: call.seconds * (steps if role == DENOISER else call.count) for role, call in recorded.items()}
    least = _LEAST_SHARE * sum(seconds.values())
    return sorted((role for role, value in seconds.items() if value >= least), key=lambda role: -seconds[role])


def _is_large(directory: Path, component: Component) -> bool:
    graph = directory / component.graph
    return is_large(graph, read_signature(graph))


def _with_static_shapes(component: Component) -> Component:
    """Return a component that is compiled for the default size, and once more with open axes for all other sizes."""
    settings = {**component.settings, "axes": "default"}
    return replace(component, static=True, rows=STATIC_ROWS, streams=1, settings=settings)


def _candidates(directory: Path, role: str, baseline: Component, machine: Machine) -> Iterator[Component]:
    """Yield the ways to run a network other than the baseline that need no other graph and take all sizes."""
    for status in backends():
        backend = find_backend(status.name)
        if status.reason:
            continue
        context = CandidateContext(
            role,
            "high",
            status,
            machine.instructions,
            machine.gpus,
            usable_cores(),
            is_large=_is_large(directory, baseline),
        )
        for spec in backend.defaults(context):
            streams = int(spec.options.get("streams", 1))
            settings = {name: value for name, value in spec.options.items() if name not in ("streams", "shapes")}
            component = replace(
                baseline, backend=status.name, precision=spec.precision, streams=streams, settings=settings
            )
            if spec.options.get("shapes") == "static":
                component = _with_static_shapes(component)
            if not backend.exclusion(spec, context) and component != baseline:
                yield component


def _is_dominated(component: Component, choice: BackendChoice) -> bool:
    """Return whether a way to run a network in float32 need not be measured: its backend won in a lower precision."""
    fastest = choice.fastest.component
    return component.precision == "f32" and fastest.precision != "f32" and fastest.backend == component.backend


def _write_choices(
    directory: Path,
    manifest: Manifest,
    choices: list[BackendChoice],
    recorded: Mapping[str, RecordedCall],
    machine: Machine,
) -> None:
    """Write the chosen components into the manifest, with what another machine needs to choose anew."""
    probes, alternatives = {}, {}
    for choice in choices:
        probes[choice.role] = f"{VERIFY_FOLDER}/{choice.role}.npz"
        write_recorded_call(directory / probes[choice.role], recorded[choice.role])
        others = sorted((choice.baseline, *choice.measured), key=lambda item: item.seconds)
        alternatives[choice.role] = tuple(item.component for item in others if item is not choice.fastest)
    components = {**manifest.components, **{choice.role: choice.fastest.component for choice in choices}}
    tuned = Tuned(machine.fingerprint(), MIN_SQNR, probes, alternatives, needs_equal_rows=True)
    write_manifest(directory, replace(manifest, components=components, tuned=tuned))
