"""What makes a picture of Stable Diffusion 1.5's sizes fast on this machine, and what is left: `docs/speed.md`.

`python -m benchmarks.levers` needs the files that `python -m benchmarks.race` prepared. It measures this machine's
peaks, in which precision and in how much time each part of the networks computes, and each lever in turns with the
plain graph in f32.
"""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.generator_process import GeneratorFactory, GeneratorProcess, run_child
from benchmarks.grid import markdown_table
from benchmarks.race.subject import ACCELERATED, CHANNELS, DOWNSCALE, PIPELINE, SIDE, TIMESTEP, TOKENS, WIDTH
from benchmarks.record import write_results
from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE, read_probes
from stillhouse.backends.openvino import open_graph, replace_layers
from stillhouse.backends.openvino_attention import ATTENTION_NODE
from stillhouse.backends.openvino_operations import count_operations
from stillhouse.backends.runner import RunnerOptions
from stillhouse.backends.signature import read_signature
from stillhouse.measure.clock import paired_ratio, run_interleaved, summarise
from stillhouse.measure.fidelity import compare_tensors
from stillhouse.pipelines.manifest import TRIALS, read_manifest
from stillhouse.pipelines.roles import DECODER, DENOISER

NAME = "levers"
ROUNDS, THREADS, PEAK_CALLS = 5, 2, 7
KINDS = ("convolutions", "linear layers", "attention", "everything else")
_KIND_NAMES = dict(zip(("convolution", "linear", "product"), KINDS, strict=False))
_PRODUCTS = ("MatMul", "ScaledDotProductAttention", "MHA")


@dataclass(frozen=True, slots=True)
class Lever:
    """One way to run a network.

    Args:
        role: the network.
        is_int8: whether the graph that NNCF quantised is run.
        precision: precision in which OpenVINO computes what is not quantised.
        rows: number of rows of a call of the denoiser.
        streams: number of rows that run side by side, each on a part of the cores.
        settings: settings of the backend.
        price: what the lever costs, other than accuracy.
    """

    role: str
    is_int8: bool = False
    precision: str = "f32"
    rows: int = 2
    streams: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    price: str = ""


BASE = "OpenVINO, f32"
_REWRITTEN = {"layers": "rewritten"}
_ALL = {**_REWRITTEN, "attention": "int8"}
LEVERS: Mapping[str, Lever] = {
    BASE: Lever(DENOISER),
    "bf16": Lever(DENOISER, precision="bf16"),
    "bf16, rows side by side": Lever(DENOISER, precision="bf16", streams=2),
    "int8": Lever(DENOISER, is_int8=True, precision="bf16"),
    "int8, rows side by side": Lever(DENOISER, is_int8=True, precision="bf16", streams=2),
    "int8, rewritten layers, rows side by side": Lever(
        DENOISER, is_int8=True, precision="bf16", streams=2, settings=_REWRITTEN
    ),
    "int8, rewritten layers and attention in int8, rows side by side": Lever(
        DENOISER, is_int8=True, precision="bf16", streams=2, settings=_ALL, price="needs VNNI"
    ),
    "the same, one row: guidance in a student, or outside of its interval": Lever(
        DENOISER, is_int8=True, precision="bf16", rows=1, settings=_ALL, price="a student is trained"
    ),
    "decoder, f32": Lever(DECODER, rows=1),
    "decoder, bf16": Lever(DECODER, precision="bf16", rows=1),
    "decoder, bf16, rewritten layers": Lever(DECODER, precision="bf16", rows=1, settings=_REWRITTEN),
    "decoder, int8": Lever(DECODER, is_int8=True, precision="bf16", rows=1),
    "decoder, int8, rewritten layers": Lever(DECODER, is_int8=True, precision="bf16", rows=1, settings=_REWRITTEN),
}


def main() -> None:
    """Measure peaks, parts and levers, and write the results after each lever."""
    names = [name for name in LEVERS if is_there(LEVERS[name])]
    measured: dict[str, Any] = {"peaks": measure_peaks(), "parts": {}, "levers": []}
    for name in names:
        measured["parts"][name] = measure_parts(LEVERS[name])
    write_results(NAME, measured)
    for name in names:
        base = next(other for other in LEVERS if LEVERS[other].role == LEVERS[name].role)
        if name != base:
            measured["levers"].append(measure_lever(name, base))
            write_results(NAME, measured)


def graph_of(lever: Lever) -> Path:
    """Return the graph of a lever: the pipeline's own, or the one that a sweep quantised."""
    if not lever.is_int8:
        return PIPELINE / read_manifest(PIPELINE).components[lever.role].graph
    folder = ACCELERATED / TRIALS / lever.role / "artifacts"
    return next(folder.glob("openvino-int8-static-*/model.xml"), folder / "missing.xml")


def is_there(lever: Lever) -> bool:
    """Return whether the graph of a lever was made."""
    return graph_of(lever).is_file()


def feeds_of(lever: Lever) -> dict[str, NDArray[np.float32]]:
    """Return inputs of one call: normally distributed latents and texts, of which one row is the first of two.

    The decoder gets latents that `stillhouse accelerate` recorded: its range in int8 is that of such latents.
    """
    if lever.role == DECODER:
        return dict(read_probes(ACCELERATED / TRIALS / DECODER / PROBES_FILE)[0].feeds)
    random, side = np.random.default_rng(0), SIDE // DOWNSCALE
    sizes = ((2, CHANNELS, side, side), (2, TOKENS, WIDTH))
    latents, states = (random.standard_normal(size).astype(np.float32)[: lever.rows] for size in sizes)
    return {
        "sample": latents,
        "timestep": np.full(lever.rows, TIMESTEP, np.float32),
        "encoder_hidden_states": states,
    }


def open_lever(lever: Lever, threads: int) -> Callable[[], NDArray[Any]]:
    """Open the network of a lever, and return a function that runs it once and returns its first output."""
    graph, feeds = graph_of(lever), feeds_of(lever)
    shapes = {name: tuple(array.shape) for name, array in feeds.items()}
    runner = open_graph(
        graph,
        read_signature(graph),
        RunnerOptions(lever.precision, threads=threads, shapes=shapes, streams=lever.streams, settings=lever.settings),
    )
    return lambda: next(iter(runner(feeds).values()))


def measure_lever(name: str, base: str) -> dict[str, Any]:
    """Time a lever in turns with the plain graph of the same network in f32, and compare their outputs."""
    lever = LEVERS[name]
    with ExitStack() as stack:
        timers = {one: stack.enter_context(GeneratorProcess(one, THREADS, "benchmarks.levers")) for one in (base, name)}
        seconds = run_interleaved(timers, ROUNDS)
    exact = open_lever(LEVERS[base], THREADS)()[: lever.rows]
    row: dict[str, Any] = {
        "lever": name,
        "price": lever.price,
        "ratio": asdict(paired_ratio(seconds[base], seconds[name])),
        "seconds": asdict(summarise(seconds[name])),
        "sqnr": compare_tensors(exact, open_lever(lever, THREADS)()).sqnr,
    }
    print(f"{name}: {row['ratio']['value']:.2f}x, {row['sqnr']:.1f} dB", flush=True)
    return row


def measure_peaks() -> dict[str, dict[str, float]]:
    """Return the rates of two large layers on OpenVINO, GOP/s, by precision and kind of layer."""
    layers = {
        "matrix product": (_product(8192, 1280, 1280), 2.0 * 8192 * 1280 * 1280),
        "convolution, 3x3": (_convolution(640, 32, 640), 2.0 * 2 * 32 * 32 * 640 * 640 * 9),
    }
    return {
        precision: {
            kind: operations / _fastest_layer(make, "f32" if precision == "f32" else "bf16", precision == "int8") / 1e9
            for kind, (make, operations) in layers.items()
        }
        for precision in ("f32", "bf16", "int8")
    }


MakeModel = Callable[[bool], Any]
"""Makes an OpenVINO model of one layer, quantised or not."""


def _product(rows: int, inputs: int, outputs: int) -> MakeModel:
    def make(is_int8: bool) -> Any:
        from openvino import opset13 as ops

        return _layer_model((rows, inputs), (outputs, inputs), lambda x, w: ops.matmul(x, w, False, True), is_int8)

    return make


def _convolution(channels: int, side: int, outputs: int) -> MakeModel:
    def make(is_int8: bool) -> Any:
        from openvino import opset13 as ops

        def layer(x: Any, w: Any) -> Any:
            return ops.convolution(x, w, [1, 1], [1, 1], [1, 1], [1, 1])

        return _layer_model((2, channels, side, side), (outputs, channels, 3, 3), layer, is_int8)

    return make


def _layer_model(
    shape: tuple[int, ...], weight: tuple[int, ...], layer: Callable[[Any, Any], Any], is_int8: bool
) -> Any:
    import openvino
    from openvino import opset13 as ops

    values = np.random.default_rng(0).standard_normal(weight).astype(np.float32)
    x = ops.parameter(list(shape), np.float32)
    source, weights = x, ops.constant(values)
    if is_int8:
        ends = [ops.constant(np.float32(end)) for end in (-4, 4, -4, 4)]
        source = ops.fake_quantize(x, *ends, 256)
        scale = np.float32(np.abs(values).max() / 127)
        weights = ops.multiply(ops.convert(ops.constant(np.rint(values / scale).astype(np.int8)), "f32"), scale)
    return openvino.Model([layer(source, weights)], [x])


def _fastest_layer(make: MakeModel, precision: str, is_int8: bool) -> float:
    """Return the least seconds of the only large layer of a model, without the layers that change formats."""
    import openvino

    model = make(is_int8)
    compiled = openvino.Core().compile_model(model, "CPU", _profiling(precision))
    request = compiled.create_infer_request()
    x = np.random.default_rng(1).standard_normal(tuple(model.inputs[0].shape)).astype(np.float32)
    seconds: list[float] = []
    for _ in range(PEAK_CALLS):
        request.infer([x], share_inputs=True)
        layers = [layer for layer in request.get_profiling_info() if layer.node_type in _HEAVY]
        seconds.append(sum(layer.real_time.total_seconds() for layer in layers))
    return min(seconds)


_HEAVY = ("Convolution", "FullyConnected", "MatMul")


def _profiling(precision: str) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": THREADS,
        "PERF_COUNT": True,
    }


@dataclass(slots=True)
class Parts:
    """Operations and seconds by kind of layer."""

    operations: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)


def measure_parts(lever: Lever) -> dict[str, dict[str, float]]:
    """Return the operations and the seconds of each kind of layer, in one call without streams, on all cores."""
    import openvino

    model = openvino.Core().read_model(graph_of(lever))
    feeds = feeds_of(lever)
    model.reshape({name: list(array.shape) for name, array in feeds.items()})
    parts = Parts()
    products = {}
    for layer in count_operations(model):
        parts.operations[_KIND_NAMES[layer.kind]] += layer.operations
        products[layer.name] = _KIND_NAMES[layer.kind]
    options = RunnerOptions(lever.precision, threads=THREADS, settings=lever.settings)
    replaced = replace_layers(model, options)  # must live as long as the model
    compiled = openvino.Core().compile_model(model, "CPU", _profiling(lever.precision))
    fused = {
        node.get_friendly_name(): node.get_rt_info()["originalLayersNames"].astype(str).split(",")
        for node in compiled.get_runtime_model().get_ops()
        if "originalLayersNames" in node.get_rt_info()
    }
    request = compiled.create_infer_request()
    for _ in range(2):
        request.infer(feeds, share_inputs=True)
    for layer in request.get_profiling_info():
        names = fused.get(layer.node_name, [layer.node_name])
        parts.seconds[_kind(layer.node_type, names, products)] += layer.real_time.total_seconds()
    replaced.release()
    return {kind: {"operations": parts.operations[kind], "seconds": parts.seconds[kind]} for kind in KINDS}


def _kind(node_type: str, names: list[str], products: Mapping[str, str]) -> str:
    if node_type in ("Convolution", "Deconvolution"):
        return "convolutions"
    if node_type == "FullyConnected":
        return "linear layers"
    found = {products[name] for name in names if name in products}
    if node_type in _PRODUCTS or found or any(name.endswith(ATTENTION_NODE) for name in names):
        return "linear layers" if found == {"linear layers"} else "attention"
    return "everything else"


def peaks_table(results: Mapping[str, Any]) -> str:
    """Return the peaks by precision."""
    kinds = list(results["peaks"]["f32"])
    rows = [[precision, *(f"{rates[kind]:,.0f}" for kind in kinds)] for precision, rates in results["peaks"].items()]
    return markdown_table(["GOP/s", *kinds], rows)


def parts_table(results: Mapping[str, Any]) -> str:
    """Return seconds and rate of each kind of layer, and the share of the best int8 rate of `peaks`, by lever."""
    peak = max(results["peaks"]["int8"].values())
    rows = []
    for name, parts in results["parts"].items():
        total = sum(part["seconds"] for part in parts.values())
        operations = sum(part["operations"] for part in parts.values())
        cells = [
            f"{part['seconds']:.2f} s, {part['operations'] / part['seconds'] / 1e9:,.0f}"
            if part["operations"] and part["seconds"]
            else f"{part['seconds']:.2f} s"
            for part in parts.values()
        ]
        rate = operations / total / 1e9
        rows.append([name, *cells, f"{total:.2f} s, {rate:,.0f}", f"{rate / peak:.0%}"])
    return markdown_table(["seconds, GOP/s", *KINDS, "all", "of the best int8 rate"], rows)


def levers_table(results: Mapping[str, Any]) -> str:
    """Return the gain and the price of each lever."""
    rows = [
        [
            row["lever"],
            f"{row['seconds']['median']:.2f}",
            f"{row['ratio']['value']:.2f}x ({row['ratio']['low']:.2f} to {row['ratio']['high']:.2f})",
            f"{row['sqnr']:.1f} dB",
            row["price"],
        ]
        for row in results["levers"]
    ]
    return markdown_table(["lever", "seconds", "against f32 on OpenVINO", "SQNR", "further price"], rows)


def _factory(name: str) -> GeneratorFactory:
    return partial(open_lever, LEVERS[name])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_child({name: _factory(name) for name in LEVERS}, warm_up=1)
    else:
        main()
