"""diffusers' and transformers' networks as torch modules with the inputs and outputs of the ONNX graphs.

The exporter traces these modules, and the torch backend runs them. This module imports torch: import it inside
functions only, or in modules that make models.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from stillhouse.backends.signature import Signature
from stillhouse.errors import BackendFailed, InvalidRequest


class UNetModule(nn.Module):
    """A UNet2DConditionModel that takes its inputs by position.

    Args:
        network: the model.
        names: names of the inputs, in order: sample [B, C, h, w], timestep [B], encoder_hidden_states [B, L, D] and,
            where the model has them, text_embeds [B, E], time_ids [B, 6], timestep_cond [B, G].
    """

    def __init__(self, network: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *values: Tensor) -> Tensor:
        """Return the U-Net's prediction [B, C, h, w] for inputs in the order of `names`."""
        inputs = dict(zip(self.names, values, strict=True))
        added = {name: inputs.pop(name) for name in ("text_embeds", "time_ids") if name in inputs}
        output: Tensor = self.network(**inputs, added_cond_kwargs=added or None, return_dict=False)[0]
        return output


class TextEncoderModule(nn.Module):
    """A CLIPTextModel or CLIPTextModelWithProjection that returns its outputs by position.

    Args:
        network: the model.
        names: names of the outputs: last_hidden_state and, for a model with a projection, text_embeds.
        penultimate: whether to return the states before the last layer, without the last norm, as SDXL uses them.
    """

    def __init__(self, network: Any, names: Sequence[str], penultimate: bool) -> None:
        super().__init__()
        self.network, self.names, self.penultimate = network, names, penultimate

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Return the states [B, L, D] of token ids, int64 [B, L], and with a projection the pooled embedding [B, E]."""
        output = self.network(input_ids, output_hidden_states=True)
        states = output.hidden_states[-2] if self.penultimate else output.last_hidden_state
        return (states, output.text_embeds) if "text_embeds" in self.names else (states,)


class VaeEncoderModule(nn.Module):
    """The encoder of an AutoencoderKL as a module: pictures in, mean and standard deviation of their latents out."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, [B, c, h / f, w / f], of the latents of pictures [B, C, h, w].

        f is the factor by which the autoencoder reduces height and width.
        """
        latents = self.network.encode(sample, return_dict=False)[0]
        return latents.mean, latents.std


class VaeDecoderModule(nn.Module):
    """The decoder of an AutoencoderKL as a module: latents in, pictures out."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, latent_sample: Tensor) -> Tensor:
        """Return pictures [B, C, h * f, w * f] for latents [B, c, h, w].

        f is the factor by which the autoencoder reduced height and width.
        """
        output: Tensor = self.network.decode(latent_sample, return_dict=False)[0]
        return output


def load_module(folder: Path, library_name: str, class_name: str, dtype: torch.dtype) -> Any:
    """Read a network from a directory with config.json and one .safetensors file.

    The network's class is `class_name` of `library_name`, which is diffusers or transformers. Each tensor is cast to
    `dtype` as it is read. Messages of both libraries are suppressed.

    Raises:
        BackendFailed: weights are missing or have another shape than the network's.
    """
    library = import_module(library_name)
    with quiet_library(library):
        network, report = getattr(library, class_name).from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    if unfit := sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}):
        raise BackendFailed(
            f"{folder} has no fitting weights for {len(unfit)} tensors of the network, such as {', '.join(unfit[:3])}",
            fix="import the model again",
        )
    return network.requires_grad_(False)


@contextmanager
def quiet_library(library: Any) -> Iterator[None]:
    """Suppress log messages below errors, and progress bars, of diffusers or transformers in the block."""
    logging = getattr(getattr(library, "utils", None), "logging", None)
    if logging is None:  # a library without logging, whose networks log through diffusers
        logging = import_module("diffusers").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def wrap_unet(network: Any, graph: Path, signature: Signature) -> nn.Module | None:
    """Return a UNet2DConditionModel as a module with the inputs and outputs of a graph; None where these do not fit."""
    return UNetModule(network, tuple(signature.inputs)) if signature.outputs == ("out_sample",) else None


def wrap_autoencoder(network: Any, graph: Path, signature: Signature) -> nn.Module | None:
    """Return the half (encoder or decoder) of an AutoencoderKL that a graph was exported from, as a module.

    The other half is removed from `network`, in place. The result is None where neither half has the graph's inputs and
    outputs.
    """
    match tuple(signature.inputs), signature.outputs:
        case ("sample",), ("mean", "std"):
            network.decoder = network.post_quant_conv = None
            return VaeEncoderModule(network)
        case ("latent_sample",), ("sample",):
            network.encoder = network.quant_conv = None
            return VaeDecoderModule(network)
    return None


def wrap_text_encoder(network: Any, graph: Path, signature: Signature) -> nn.Module | None:
    """Return a CLIP text encoder as a module with the outputs of a graph; None where the graph's inputs do not fit."""
    if tuple(signature.inputs) != ("input_ids",):
        return None
    return TextEncoderModule(network, signature.outputs, penultimate=_is_penultimate(graph))


def set_attention(module: nn.Module, attention: str) -> None:
    """Choose how a module computes attention.

    Args:
        module: changed in place.
        attention: vanilla (all scores at once), sliced (half of the heads at a time), or any other name for torch's
            fused attention.

    Raises:
        InvalidRequest: the network has no attention, or is a text encoder, which has no sliced attention.
    """
    if isinstance(module, TextEncoderModule):
        if attention == "sliced":
            raise InvalidRequest("attention is 'sliced' in a text encoder", allowed="any other attention")
        module.network.set_attn_implementation("eager" if attention == "vanilla" else "sdpa")
        return
    from diffusers.models import attention_processor as processors

    blocks = [part for part in module.modules() if isinstance(part, processors.Attention)]
    if not blocks and attention != "sdpa":
        raise InvalidRequest(f"attention is {attention!r} in a network without attention", allowed="sdpa")
    for block in blocks:
        if attention == "sliced":
            block.set_processor(processors.SlicedAttnProcessor(max(1, block.heads // 2)))
        else:
            fused = attention != "vanilla"
            block.set_processor(processors.AttnProcessor2_0() if fused else processors.AttnProcessor())


FUSED_PROJECTIONS = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v")}
"""Linear layers of an attention that each fused layer replaces, in the order of their rows in the fused weights."""


def fuse_projections(module: nn.Module) -> None:
    """Fuse the linear layers for queries, keys and values of each self-attention of a denoiser into one, in place.

    In a cross-attention, the layers for keys and values are fused. The fused layer replaces the separate layers.

    Raises:
        InvalidRequest: the module is no denoiser.
    """
    if not isinstance(module, UNetModule):
        raise InvalidRequest("qkv is 'joined' in a network that is no denoiser", allowed="apart")
    module.network.fuse_qkv_projections()
    for block in module.modules():
        for fused, replaced in FUSED_PROJECTIONS.items():
            for name in replaced if hasattr(block, fused) else ():
                setattr(block, name, None)


def _is_penultimate(graph: Path) -> bool:
    """Return whether a text encoder's graph returns the states before its last layer.

    The graph shows this by the operator that makes the states, since only the states of the last layer pass through a
    norm. No other file says which states the graph returns.

    Raises:
        BackendFailed: the operator is neither a norm nor a sum, so the graph does not show this.
    """
    nodes = onnx.load(graph, load_external_data=False).graph.node
    operators = [node.op_type for node in nodes if "last_hidden_state" in node.output]
    if operators not in (["LayerNormalization"], ["Add"]) or not any(n.op_type == "LayerNormalization" for n in nodes):
        raise BackendFailed(
            f"{graph} does not show whether its hidden states come from the last layer or the one before",
            fix="import the pipeline again",
        )
    return operators == ["Add"]
