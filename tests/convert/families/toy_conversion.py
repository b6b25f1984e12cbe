"""Conversion of the toy family: its torch networks, and how their checkpoint becomes a pipeline directory.

Only this file knows them; a package names it by the entry point `stillhouse.conversions`.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from stillhouse.backends.signature import Signature
from stillhouse.backends.torch_networks import TorchNetwork
from stillhouse.convert.export import PICTURE, ROWS, Axes, GraphExport
from stillhouse.convert.families.base import ConvertedTokenizers, ManifestParts, SourceNetwork
from stillhouse.convert.source import Source
from stillhouse.diffusion import Schedule
from stillhouse.pipelines.manifest import Defaults, Latent, Sampling
from stillhouse.pipelines.roles import DECODER, DENOISER, TEXT_ENCODERS
from tests.pipelines.families.toy_family import PATCH

CHANNELS, DOWNSCALE, MAX_TOKENS = 3, 4, 32
TEXT: Axes = {0: "batch", 1: "tokens"}
PATCHES: Axes = {0: "batch", 1: "patches"}


class ToyTextEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Token ids and their mask, int64 [B, L], to states [B, L, D], 0 for padding."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, vocabulary: int = 12, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states: Tensor = self.embedding(input_ids) * attention_mask[..., None].float()
        return states


class ToyTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Packed latents [B, N, T], time [B] from 0 to 1, states [B, L, D] and mask [B, L] to the negative velocity."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, token: int = CHANNELS * PATCH * PATCH, width: int = 8) -> None:
        super().__init__()
        self.query = nn.Linear(token, width, bias=False)
        self.out = nn.Linear(width, token, bias=False)

    def forward(self, tokens: Tensor, time: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(tokens) @ states.transpose(1, 2) + (mask[:, None] - 1) * 1e4
        velocity: Tensor = self.out(scores.softmax(-1) @ states) + tokens * time[:, None, None]
        return velocity


class ToyDecoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Latents [B, C, h, w] to a picture [B, 3, h * 4, w * 4] of nearest pixels."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, 3, 1)

    def forward(self, latents: Tensor) -> Tensor:
        picture: Tensor = nn.functional.interpolate(self.mix(latents), scale_factor=float(DOWNSCALE), mode="nearest")
        return picture


class ToyConversion:
    """See `base.ConversionFamily`."""

    name = "toy"
    pipelines: tuple[str, ...] = ("ToyPipeline",)

    def networks(self, source: Source) -> Sequence[SourceNetwork]:
        return (
            SourceNetwork("text_encoder", TEXT_ENCODERS[0], (ToyTextEncoder,)),
            SourceNetwork("transformer", DENOISER, (ToyTransformer,)),
            SourceNetwork("decoder", DECODER, (ToyDecoder,)),
        )

    def check(self, source: Source) -> None:
        for component in ("tokenizer", "scheduler"):
            source.check_component(component)

    def manifest_parts(self, source: Source) -> ManifestParts:
        return ManifestParts(
            sampling=Sampling(Schedule("flow"), "flow", "trailing"),
            latent=Latent(CHANNELS, 1.0, 0.0, DOWNSCALE, PATCH, mean=(0.1, -0.2, 0.3), std=(0.5, 0.25, 1.5)),
            granularity=DOWNSCALE * PATCH,
            defaults=Defaults(steps=6, guidance=3.0, sampler="flow_euler", width=32, height=24),
            family_options={"text_step": 8, "max_tokens": MAX_TOKENS},
        )

    def convert_tokenizers(self, source: Source, stage: Path) -> ConvertedTokenizers:
        shutil.copytree(source.directory / "tokenizer", stage / "tokenizer")
        return ConvertedTokenizers({TEXT_ENCODERS[0]: "tokenizer"}, tokens=5)

    def graphs(self, source: Source, folder: str, network: Any, tokens: int) -> Sequence[GraphExport]:
        if folder == "text_encoder":
            ids = torch.zeros(2, tokens, dtype=torch.int64)
            inputs = {"input_ids": (ids, TEXT), "attention_mask": (ids + 1, TEXT)}
            return (GraphExport(TEXT_ENCODERS[0], "model.onnx", network, inputs, {"states": TEXT}),)
        if folder == "decoder":
            latents = {"latents": (torch.zeros(1, CHANNELS, 4, 6), PICTURE)}
            return (GraphExport(DECODER, "model.onnx", network, latents, {"picture": PICTURE}),)
        inputs = {
            "hidden_states": (torch.zeros(2, 6, network.config.token), PATCHES),
            "timestep": (torch.zeros(2), ROWS),
            "encoder_hidden_states": (torch.zeros(2, tokens, network.config.width), TEXT),
            "encoder_attention_mask": (torch.ones(2, tokens), TEXT),
        }
        return (GraphExport(DENOISER, "model.onnx", network, inputs, {"velocity": PATCHES}),)

    def index(self, source: Source) -> Mapping[str, Any]:
        return source.index


def wrap_transformer(network: nn.Module, graph: Path, signature: Signature) -> nn.Module | None:
    """Return the transformer itself, which takes the graph's inputs by position."""
    return network if signature.outputs == ("velocity",) else None


TOY = ToyConversion()
TRANSFORMER = TorchNetwork(
    "ToyTransformer",
    library=__name__,
    weights="diffusion_pytorch_model.safetensors",
    wrapper=f"{__name__}:wrap_transformer",
    block="ToyTransformer",
    output_shapes={"velocity": lambda tokens, config: tuple(tokens)},
    float32_inputs=("timestep",),
)
"""How the torch backend runs the transformer; it refuses the other networks."""
