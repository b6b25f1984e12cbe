"""diffusers' and transformers' networks as torch modules with the inputs and outputs of the ONNX graphs.

What is exported and what the torch backend runs are the same modules. torch is imported here, so this file is
imported inside functions only, or by files that make models.
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
    """A UNet2DConditionModel that takes its inputs by position, in the order of `names`.

    Args:
        network: the model.
        names: sample [B, C, h, w], timestep [B], encoder_hidden_states [B, L, D] and, where the model has them,
            text_embeds [B, E], time_ids [B, 6], timestep_cond [B, G].
    """

    def __init__(self, network: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *values: Tensor) -> Tensor:
        """The prediction [B, C, h, w]."""
        inputs = dict(zip(self.names, values, strict=True))
        added = {name: inputs.pop(name) for name in ("text_embeds", "time_ids") if name in inputs}
        output: Tensor = self.network(**inputs, added_cond_kwargs=added or None, return_dict=False)[0]
        return output


class TextEncoderModule(nn.Module):
    """A CLIPTextModel, or a CLIPTextModelWithProjection.

    Args:
        network: the model.
        names: of the outputs: last_hidden_state, and text_embeds where it projects.
        penultimate: give the states before the last layer, without the final norm, as XL takes them.
    """

    def __init__(self, network: Any, names: Sequence[str], penultimate: bool) -> None:
        super().__init__()
        self.network, self.names, self.penultimate = network, names, penultimate

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """States [B, L, D] of ids, int64 [B, L], and the pooled embedding [B, E]."""
        output = self.network(input_ids, output_hidden_states=True)
        states = output.hidden_states[-2] if self.penultimate else output.last_hidden_state
        return (states, output.text_embeds) if "text_embeds" in self.names else (states,)


class VaeEncoderModule(nn.Module):
    """The encoding half of an AutoencoderKL."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, c, h / f, w / f] of the latents of pictures [B, C, h, w]."""
        latents = self.network.encode(sample, return_dict=False)[0]
        return latents.mean, latents.std


class VaeDecoderModule(nn.Module):
    """The decoding half of an AutoencoderKL."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, latent_sample: Tensor) -> Tensor:
        """Pictures [B, C, h * f, w * f] of latents [B, c, h, w]."""
        output: Tensor = self.network.decode(latent_sample, return_dict=False)[0]
        return output


def load_module(folder: Path, kind: str, dtype: torch.dtype) -> Any:
    """Read a network from a directory with config.json and one .safetensors file, each tensor cast as it is read.

    Args:
        folder: the directory.
        kind: class name, of diffusers or transformers.
        dtype: of all weights.

    Raises:
        BackendFailed: weights are missing, or are of another network.
    """
    library = import_module("transformers" if kind.startswith("CLIP") else "diffusers")
    with quiet_library(library):
        network, report = getattr(library, kind).from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    if wrong := sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}):
        raise BackendFailed(f"{folder} has no fitting weights for {', '.join(wrong[:3])} and {len(wrong)} in all")
    return network.requires_grad_(False)


@contextmanager
def quiet_library(library: Any) -> Iterator[None]:
    """Keep the remarks and progress bars of diffusers or transformers off the screen."""
    logging = library.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def wrap_network(network: Any, graph: Path, signature: Signature) -> nn.Module:
    """The module with the graph's inputs and outputs. Of an autoencoder, the half that is not asked for is dropped.

    Raises:
        BackendFailed: the graph is of another network.
    """
    inputs, outputs = tuple(signature.inputs), signature.outputs
    kind = type(network).__name__
    module: nn.Module
    if kind == "UNet2DConditionModel" and outputs == ("out_sample",):
        module = UNetModule(network, inputs)
    elif kind == "AutoencoderKL" and (inputs, outputs) == (("sample",), ("mean", "std")):
        network.decoder = network.post_quant_conv = None
        module = VaeEncoderModule(network)
    elif kind == "AutoencoderKL" and (inputs, outputs) == (("latent_sample",), ("sample",)):
        network.encoder = network.quant_conv = None
        module = VaeDecoderModule(network)
    elif kind.startswith("CLIPText") and inputs == ("input_ids",):
        module = TextEncoderModule(network, outputs, penultimate=_is_penultimate(graph))
    else:
        raise BackendFailed(f"{graph} takes {', '.join(inputs)} and gives {', '.join(outputs)}, which no {kind} does")
    return module.eval()


def set_attention(module: nn.Module, attention: str) -> None:
    """Choose how attention is computed: vanilla, sliced (half of the heads at a time), or fused: sdpa and all others.

    Raises:
        InvalidRequest: the network cannot do this, or has no attention.
    """
    if isinstance(module, TextEncoderModule):
        if attention == "sliced":
            raise InvalidRequest("attention is 'sliced' in a text encoder", allowed="any other")
        module.network.set_attn_implementation("eager" if attention == "vanilla" else "sdpa")
        return
    from diffusers.models import attention_processor as processors

    blocks = [part for part in module.modules() if isinstance(part, processors.Attention)]
    if not blocks and attention != "sdpa":
        raise InvalidRequest(f"attention is {attention!r} in a network that has none")
    for block in blocks:
        if attention == "sliced":
            block.set_processor(processors.SlicedAttnProcessor(max(1, block.heads // 2)))
        else:
            fused = attention != "vanilla"
            block.set_processor(processors.AttnProcessor2_0() if fused else processors.AttnProcessor())


FUSED_PROJECTIONS = {"to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v")}
"""Of an attention, the layers that one takes the place of, in the order of its rows."""


def fuse_projections(module: nn.Module) -> None:
    """Of each attention of a U-Net, compute queries, keys and values by one product; of a cross-attention, keys and
    values. What is replaced is dropped.

    Raises:
        InvalidRequest: no U-Net.
    """
    if not isinstance(module, UNetModule):
        raise InvalidRequest("qkv is 'joined' in a network that is no U-Net", allowed="apart")
    module.network.fuse_qkv_projections()
    for block in module.modules():
        for joined, replaced in FUSED_PROJECTIONS.items():
            for name in replaced if hasattr(block, joined) else ():
                setattr(block, name, None)


def _is_penultimate(graph: Path) -> bool:
    """Whether a text encoder's graph gives the states before its last layer. The directory does not say so, the graph
    does: only the last states pass through a norm."""
    nodes = onnx.load(graph, load_external_data=False).graph.node
    makers = [node.op_type for node in nodes if "last_hidden_state" in node.output]
    if makers not in (["LayerNormalization"], ["Add"]) or not any(n.op_type == "LayerNormalization" for n in nodes):
        raise BackendFailed(f"{graph} does not tell which layer its states are of", fix="import the pipeline again")
    return makers == ["Add"]
