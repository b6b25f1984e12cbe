"""Pictures of the embedded model by torch on a GPU, against those of onnxruntime in float32."""

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
    """How the torch backend runs the U-Net. `keeps_on_device`: latents stay on the device between evaluations."""

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
    """Return a row for each variant: PSNR of its worst picture in dB, and seconds of a picture of 35 guided steps."""
    references = [_generate(load("shapes", backend="onnxruntime", precision="f32"), prompt) for prompt in _PROMPTS]
    directory = find_pipeline("shapes")
    unet = load("shapes").manifest.components["denoiser"]
    for name, variant in TORCH_VARIANTS[device].items():
        settings = {"device": device, **variant.settings}
        component = Component(unet.graph, unet.weights, "torch", variant.precision, settings=settings)
        try:
            pipeline = Pipeline(directory, components={"denoiser": component})
            if not variant.keeps_on_device:
                pipeline.arrays = NUMPY
            _generate(pipeline, _PROMPTS[0])
            began = perf_counter()
            images = [_generate(pipeline, prompt) for prompt in _PROMPTS]
            seconds = (perf_counter() - began) / len(_PROMPTS)
            worst = min(psnr(image, reference) for image, reference in zip(images, references, strict=True))
            yield {"way": name, "psnr": worst, "seconds": seconds}
        except Exception as error:
            yield {"way": name, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}


def _generate(pipeline: Pipeline, prompt: str) -> Picture:
    return pipeline.generate(prompt, seed=7).image
