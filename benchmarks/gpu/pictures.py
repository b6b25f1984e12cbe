"""Pictures of the embedded model by torch on a GPU, beside those that onnxruntime draws in float32."""

from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Any

from stillhouse.core import Picture
from stillhouse.measure.images import psnr
from stillhouse.models.load import find, load
from stillhouse.models.manifest import Component
from stillhouse.models.pipeline import Pipeline

_PROMPTS = (
    "a red circle left of a big blue square on a white background",
    "a small green triangle on a yellow background",
    "a big white square right of a purple circle",
    "a red triangle on a cyan background",
)
_FUSED = {"memory_format": "channels_last", "kernels": "fused"}
WAYS: Mapping[str, Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "cuda": {
        "f32": ("f32", {}),
        "f16": ("f16", {}),
        "f16, fused kernels": ("f16", _FUSED),
        "f16, fused kernels, CUDA graphs": ("f16", {**_FUSED, "graphs": "cuda"}),
        "bf16, fused kernels, CUDA graphs": ("bf16", {**_FUSED, "graphs": "cuda"}),
    },
    "cpu": {"f32, fused kernels": ("f32", _FUSED)},
}
"""By device: precision and settings of the torch backend, for the U-Net."""


def rows(device: str) -> Iterator[dict[str, Any]]:
    """A row for each way: the PSNR of its worst picture in dB, and seconds of a picture of 35 guided steps."""
    wanted = [_drawn(load("shapes", backend="onnxruntime", precision="f32"), prompt) for prompt in _PROMPTS]
    directory = find("shapes")
    unet = load("shapes").manifest.components["unet"]
    for name, (precision, settings) in WAYS[device].items():
        told = {"device": device, **settings}
        component = Component(unet.graph, unet.weights, "torch", precision, settings=told)
        try:
            pipeline = Pipeline(directory, components={"unet": component})
            _drawn(pipeline, _PROMPTS[0])
            began = perf_counter()
            drawn = [_drawn(pipeline, prompt) for prompt in _PROMPTS]
            seconds = (perf_counter() - began) / len(_PROMPTS)
            least = min(psnr(one, other) for one, other in zip(drawn, wanted, strict=True))
            yield {"way": name, "psnr": least, "seconds": seconds}
        except Exception as error:
            yield {"way": name, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}


def _drawn(pipeline: Pipeline, prompt: str) -> Picture:
    return pipeline.generate(prompt, seed=7).image
