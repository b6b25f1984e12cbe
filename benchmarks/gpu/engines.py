"""The same network on other engines: exported, in half precision, and opened as `stillhouse` opens it.

An engine that is missing has a row that says so.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import ladder, networks
from stillhouse.backends import RunnerOptions, backends, open_runner
from stillhouse.backends.precision import convert_to_float16
from stillhouse.backends.runner import GraphRunner
from stillhouse.convert.families.stable_diffusion import export_unet


@dataclass(frozen=True, slots=True)
class EngineVariant:
    """How an engine runs the U-Net.

    Args:
        name: in tables.
        backend, settings: of `open_runner`.
        device: that the backend's status must list.
    """

    name: str
    backend: str
    device: str
    settings: Mapping[str, str] = field(default_factory=dict)


_GRAPHS = {"device": "cuda", "graphs": "cuda"}
ENGINES: Mapping[str, tuple[EngineVariant, ...]] = {
    "cuda": (
        EngineVariant("onnxruntime, CUDA", "onnxruntime", "CUDA", {"provider": "cuda"}),
        EngineVariant("onnxruntime, TensorRT", "onnxruntime", "Tensorrt", {"provider": "tensorrt"}),
        EngineVariant("TensorRT, CUDA graphs", "tensorrt", "cuda:0", _GRAPHS),
        EngineVariant("TensorRT for RTX, CUDA graphs", "tensorrt-rtx", "cuda:0", _GRAPHS),
    ),
    "cpu": (
        EngineVariant("onnxruntime", "onnxruntime", "CPU"),
        EngineVariant("TensorRT, CUDA graphs", "tensorrt", "cuda:0", _GRAPHS),
    ),
}
"""By device. On the CPU, TensorRT shows the row of a missing engine."""
_PLACE = 100
"""Position of the first engine among the variants of a table."""


def measure_engines(
    model: str, device: str, dtype: torch.dtype, is_in_time: Callable[[], bool], steps: int = ladder.STEPS
) -> Iterator[dict[str, Any]]:
    """Return a row for each engine, as `ladder.measure_variants`. Without an engine nothing is exported.

    Args:
        model: name of its shape.
        device: cuda or cpu.
        dtype: float16, or float32.
        is_in_time: whether another row may be started.
        steps: of a picture.
    """
    reasons = [(engine, _missing_reason(engine)) for engine in ENGINES[device]]
    common = {"model": model, "dtype": str(dtype).removeprefix("torch."), "images": 1}
    with TemporaryDirectory() as folder:
        graph, exact, inputs, stages = None, None, None, None
        for place, (engine, reason) in enumerate(reasons, _PLACE):
            row = {**common, "rung": engine.name, "place": place}
            if reason or not is_in_time():
                yield {**row, "reason": reason or "the time was up"}
                continue
            try:
                if graph is None or inputs is None or stages is None:
                    graph, exact, inputs = _export(model, device, dtype, Path(folder))
                    stages = ladder.TextAndDecoder(model, device, dtype, 1, fast=True)
                yield {**row, **_measure(engine, graph, inputs, exact, stages, steps)}
            except Exception as error:  # a failing engine is a row too
                yield {**row, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}


def _missing_reason(engine: EngineVariant) -> str:
    (status,) = (row for row in backends() if row.name == engine.backend)
    if status.reason:
        return f"{status.reason}: {status.install}"
    return "" if engine.device in status.devices else f"it has {', '.join(status.devices)} only here"


def _export(model: str, device: str, dtype: torch.dtype, folder: Path) -> tuple[Path, Tensor, ladder.Inputs]:
    """Return the graph, its float32 output, and the inputs of that."""
    shape = networks.MODEL_SHAPES[model]
    network = networks.unet(shape, device, dtype)
    torch.manual_seed(0)
    inputs = networks.inputs(shape, 2, device, dtype)
    exact = ladder.float32_output(network, inputs)
    plain = deepcopy(network).float().cpu()
    del network
    plain.save_pretrained(folder)
    graph = folder / "model.onnx"
    export_unet(plain, graph, folder / "diffusion_pytorch_model.safetensors", networks.TOKENS)
    if dtype == torch.float16:
        convert_to_float16(graph, folder / "half.onnx")
        graph = folder / "half.onnx"
    return graph, exact, inputs


def _measure(
    engine: EngineVariant,
    graph: Path,
    inputs: ladder.Inputs,
    exact: Tensor | None,
    stages: ladder.TextAndDecoder,
    steps: int,
) -> Mapping[str, Any]:
    device = inputs[0].device.type
    names = ("sample", "timestep", "encoder_hidden_states", *(inputs[3] or {}))
    tensors = (*inputs[:3], *(inputs[3] or {}).values())
    shapes = {name: tuple(tensor.shape) for name, tensor in zip(names, tensors, strict=True)}
    precision = "auto" if engine.backend.startswith("tensorrt") else "f32"
    runner = open_runner(
        graph,
        engine.backend,
        RunnerOptions(precision, shapes=shapes, settings=engine.settings, cache=graph.parent / "engines"),
    )
    assert isinstance(runner, GraphRunner)

    def run(*tensors: Tensor) -> Tensor:
        feeds = {name: tensor.float() for name, tensor in zip(names, tensors, strict=True)}
        if runner.device_run is not None:
            on_device: Tensor
            (on_device,) = runner.run_on_device(feeds).values()
            return on_device.to(inputs[0].dtype)
        (output,) = runner({name: tensor.cpu().numpy() for name, tensor in feeds.items()}).values()
        return torch.from_numpy(output).to(inputs[0])

    with torch.inference_mode():
        return ladder.measure_picture(run, inputs, exact, stages, 1, steps, fused=device != "cpu")
