"""Pictures of the embedded model by torch on a GPU, beside those that onnxruntime draws in float32."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from stillhouse.core import Picture
from stillhouse.diffusion import NUMPY
from stillhouse.measure.image_metrics import psnr
from stillhouse.pipelines.load import find_pipeline, load
from stillhouse.pipelines.manifest import Component
from stillhouse.pipelines.pipeline import Pipeline

_PROMPTS = (
    "a red circle left of a big blue square on a white background",
    "a small green triangle on a yellow background",
    "a big white square right of a purple circle",
    "a red triangle on a cyan background",
)
_FUSED = {"memory_format": "channels_last", "kernels": "fused"}


@dataclass(frozen=True, slots=True)
class TorchVariant:
    """How the torch backend runs the U-Net; `there` keeps latents on the device between evaluations, as is usual."""

    precision: str
    settings: Mapping[str, str] = field(default_factory=dict)
    keeps_on_device: bool = True


_GRAPHS = {**_FUSED, "graphs": "cuda"}
TORCH_VARIANTS: Mapping[str, Mapping[str, TorchVariant]] = {
    "cuda": {
        "f32": TorchVariant("f32"),
        "f16": TorchVariant("f16"),
        "f16, fused kernels": TorchVariant("f16", _FUSED),
        "f16, fused kernels, CUDA graphs": TorchVariant("f16", _GRAPHS),
        "the same, latents by way of the processor": TorchVariant("f16", _GRAPHS, keeps_on_device=False),
        "bf16, fused kernels, CUDA graphs": TorchVariant("bf16", _GRAPHS),
    },
    "cpu": {
        "f32, fused kernels": TorchVariant("f32", _FUSED),
        "the same, latents by way of NumPy": TorchVariant("f32", _FUSED, keeps_on_device=False),
    },
}
"""By device."""


def measure_pictures(device: str) -> Iterator[dict[str, Any]]:
    """A row for each way: the PSNR of its worst picture in dB, and seconds of a picture of 35 guided steps."""
    wanted = [_generate(load("shapes", backend="onnxruntime", precision="f32"), prompt) for prompt in _PROMPTS]
    directory = find_pipeline("shapes")
    unet = load("shapes").manifest.components["unet"]
    for name, way in TORCH_VARIANTS[device].items():
        told = {"device": device, **way.settings}
        component = Component(unet.graph, unet.weights, "torch", way.precision, settings=told)
        try:
            pipeline = Pipeline(directory, components={"unet": component})
            if not way.keeps_on_device:
                pipeline.arrays = NUMPY
            _generate(pipeline, _PROMPTS[0])
            began = perf_counter()
            drawn = [_generate(pipeline, prompt) for prompt in _PROMPTS]
            seconds = (perf_counter() - began) / len(_PROMPTS)
            least = min(psnr(one, other) for one, other in zip(drawn, wanted, strict=True))
            yield {"way": name, "psnr": least, "seconds": seconds}
        except Exception as error:
            yield {"way": name, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}


def _generate(pipeline: Pipeline, prompt: str) -> Picture:
    return pipeline.generate(prompt, seed=7).image
