"""The same network as other engines run it: exported, in halves, and opened as `stillhouse` opens it; where one is
missing, a row that says so."""

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
from stillhouse.convert.export import export_unet


@dataclass(frozen=True, slots=True)
class EngineVariant:
    """How an engine runs the U-Net.

    Args:
        name: as tables call it.
        backend, settings: of `open_runner`.
        device: among those that the backend must have here.
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
"""By device; what needs a GPU is there to show that it is told."""
_PLACE = 100
"""Of the first one among the rungs of a table."""


def measure_engines(
    model: str, device: str, dtype: torch.dtype, is_in_time: Callable[[], bool], steps: int = ladder.STEPS
) -> Iterator[dict[str, Any]]:
    """A row for each way, as of `ladder.rows`; nothing is exported where no engine is there.

    Args:
        model: name of its shape.
        device: cuda or cpu.
        dtype: float16, or float32.
        is_in_time: whether another row may be begun.
        steps: of a picture.
    """
    reasons = [(way, _missing_reason(way)) for way in ENGINES[device]]
    told = {"model": model, "dtype": str(dtype).removeprefix("torch."), "images": 1}
    with TemporaryDirectory() as folder:
        graph, exact, given, ends = None, None, None, None
        for place, (way, reason) in enumerate(reasons, _PLACE):
            row = {**told, "rung": way.name, "place": place}
            if reason or not is_in_time():
                yield {**row, "reason": reason or "the time was up"}
                continue
            try:
                if graph is None or given is None or ends is None:
                    graph, exact, given = _export(model, device, dtype, Path(folder))
                    ends = ladder.TextAndDecoder(model, device, dtype, 1, fast=True)
                yield {**row, **_measure(way, graph, given, exact, ends, steps)}
            except Exception as error:  # an engine that gives up: a row all the same
                yield {**row, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}


def _missing_reason(engine: EngineVariant) -> str:
    (status,) = (one for one in backends() if one.name == engine.backend)
    if status.reason:
        return f"{status.reason}: {status.install}"
    return "" if engine.device in status.devices else f"it has {', '.join(status.devices)} only here"


def _export(model: str, device: str, dtype: torch.dtype, folder: Path) -> tuple[Path, Tensor, ladder.Inputs]:
    """The graph, what it says in float32, and to what."""
    shape = networks.MODEL_SHAPES[model]
    network = networks.unet(shape, device, dtype)
    torch.manual_seed(0)
    given = networks.inputs(shape, 2, device, dtype)
    exact = ladder.float32_output(network, given)
    plain = deepcopy(network).float().cpu()
    del network
    plain.save_pretrained(folder)
    graph = folder / "model.onnx"
    export_unet(plain, graph, folder / "diffusion_pytorch_model.safetensors", networks.TOKENS)
    if dtype == torch.float16:
        convert_to_float16(graph, folder / "half.onnx")
        graph = folder / "half.onnx"
    return graph, exact, given


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
    fed = (*inputs[:3], *(inputs[3] or {}).values())
    shapes = {name: tuple(tensor.shape) for name, tensor in zip(names, fed, strict=True)}
    precision = "auto" if engine.backend.startswith("tensorrt") else "f32"
    runner = open_runner(
        graph,
        engine.backend,
        RunnerOptions(precision, shapes=shapes, settings=engine.settings, cache=graph.parent / "engines"),
    )
    assert isinstance(runner, GraphRunner)

    def said(*tensors: Tensor) -> Tensor:
        feeds = {name: tensor.float() for name, tensor in zip(names, tensors, strict=True)}
        if runner.device_run is not None:
            there: Tensor
            (there,) = runner.run_on_device(feeds).values()
            return there.to(inputs[0].dtype)
        (output,) = runner({name: tensor.cpu().numpy() for name, tensor in feeds.items()}).values()
        return torch.from_numpy(output).to(inputs[0])

    with torch.inference_mode():
        return ladder.measure_picture(said, inputs, exact, stages, 1, steps, fused=device != "cpu")
