"""Reads LoRA files and adds them to weights: W + weight * alpha / rank * (up @ down), Hu et al., arXiv 2106.09685.

LoRA is added to the weights, because adapter layers in a graph cost time at every step. Layers may be named as
diffusers, peft or kohya name them; kohya's names for XL follow the blocks of the original implementation.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from stillhouse.backends.torch_weights import ModuleWeights
from stillhouse.errors import ImportFailed
from stillhouse.pipelines.roles import DENOISER

PREFIXES = {
    "lora_unet_": DENOISER,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": DENOISER,
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "base_model.model.": DENOISER,
}
FACTOR = re.compile(
    r"(?P<layer>.+?)[._]lora(?:_linear_layer)?[._](?P<part>down|up|A|B)(?:\.\w+)?\.weight|(?P<scaled>.+)\.alpha"
)
PARTS = {"A": "down", "B": "up"}
OLD_NAMES = {
    DENOISER: {"_to_out": "_to_out_0"},
    "text_encoder": {"_to_q": "_q_proj", "_to_k": "_k_proj", "_to_v": "_v_proj", "_to_out": "_out_proj"},
}
SGM_RESNET = {
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
SGM_ENDS = {
    "conv_in": "input_blocks_0_0",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
    "conv_out": "out_2",
}
RESNET = re.compile(r"down_blocks_(\d+)_resnets_(\d+)_")
BLOCK = re.compile(r"(down|mid|up)_block(?:s_(\d+))?_(resnets|attentions|downsamplers|upsamplers)_(\d+)_(.+)")


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """The change of a layer's weight: scale * (up @ down).

    Args:
        up: [out, rank], or [out, rank, 1, 1] for a convolution.
        down: [rank, in], or [rank, in, height, width] for a convolution.
        scale: alpha / rank, or alpha / sqrt(rank) for rsLoRA; in results of `Adapter.placed`, this number times the
            adapter's weight.
    """

    up: torch.Tensor
    down: torch.Tensor
    scale: float

    def of_shape(self, shape: torch.Size) -> torch.Tensor:
        """Return the change, float32, for a layer whose weight has this shape: a Linear or a convolution."""
        return self.scale * (self.up.float().flatten(1) @ self.down.float().flatten(1)).reshape(shape)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """The content of a LoRA file.

    Args:
        path: path of the file.
        weight: factor for all changes.
        layers: the change of each layer, by role of the network, then by name of the layer with `_` for `.`.
    """

    path: Path
    weight: float
    layers: Mapping[str, Mapping[str, Delta]]

    def fuse(self, component: str, module: torch.nn.Module) -> int:
        """Add the changes for the network of role `component` to the weights of `module`, in place.

        Returns:
            the number of changed layers.

        Raises:
            ImportFailed: a layer of the file is not in the module, or has another shape there.
        """
        placed = self.placed(component, ModuleWeights(module).shapes)
        for layer, delta in placed:
            weight: Any = module.get_submodule(layer).weight
            weight.data.copy_(weight.float() + delta.of_shape(weight.shape).to(weight.device))
        return len(placed)

    def placed(self, component: str, shapes: Mapping[str, tuple[int, ...]]) -> Sequence[tuple[str, Delta]]:
        """Return, for each layer of a network that changes, its torch name and its change times the adapter's weight.

        `component` is the role of the network. `shapes` has the shapes of the weights of all its layers, by torch name.
        A layer of the file that is not in `shapes`, or has another shape there, raises ImportFailed.
        """
        places, deltas = layer_names(shapes), self.layers.get(component, {})
        unknown = [name for name in deltas if name not in places]
        if unknown:
            raise _refused(self.path, f"{len(unknown)} layers are not in this {component}, such as", unknown)
        for name, delta in deltas.items():
            shape = shapes[places[name]]
            if delta.up.shape[0] != shape[0] or delta.down[0].numel() != math.prod(shape[1:]):
                raise _refused(
                    self.path,
                    f"it was made for another {component}: this {component} has the shape {list(shape)} in layer",
                    [name],
                )
        return [(places[name], replace(delta, scale=self.weight * delta.scale)) for name, delta in deltas.items()]


def read_adapter(text: str, components: tuple[str, ...]) -> Adapter:
    """Read a LoRA file.

    Args:
        text: `FILE` or `FILE:WEIGHT`, where WEIGHT is a factor for all changes of the file; the default is 1.
        components: roles of the networks that the file may change.

    Raises:
        ImportFailed: the file does not exist, is not safetensors, is not LoRA, or changes another network.
    """
    path, weight = _parse(text)
    factors: dict[tuple[str, str], dict[str, torch.Tensor]] = {}
    with _open(path) as file:
        settings = _settings(path, file.metadata() or {})
        unknown = []
        for key in file.keys():  # noqa: SIM118, `file` is not a mapping
            place = _parse_key(key)
            if place is None or place[0] not in components:
                unknown.append(key)
            else:
                component, layer, part = place
                factors.setdefault((component, layer), {})[part] = file.get_tensor(key)
    unknown += ["_".join(place) for place, parts in factors.items() if not {"up", "down"} <= parts.keys()]
    if unknown or not factors:
        raise _refused(path, f"{len(unknown)} keys are not LoRA of {', '.join(components)}, such as", unknown)
    layers: dict[str, dict[str, Delta]] = {}
    for (component, layer), parts in factors.items():
        layers.setdefault(component, {})[layer] = _delta(component, layer, parts, settings)
    return Adapter(path, weight, layers)


def sgm_names(name: str, depth: int) -> Iterator[str]:
    """Yield the names that a layer of SDXL's U-Net may have in the original implementation, and therefore in kohya.

    Args:
        name: name of the layer in diffusers, with `_` for `.`.
        depth: number of resnet layers of each down block.

    >>> list(sgm_names("down_blocks_1_attentions_0_proj_in", depth=2))
    ['input_blocks_4_1_proj_in']
    """
    if name in SGM_ENDS:
        yield SGM_ENDS[name]
    match = BLOCK.fullmatch(name)
    if match is None:
        return
    side, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    first, rest = level * (depth + 1), SGM_RESNET.get(rest, rest)
    place = int(kind == "attentions")
    if side == "mid":
        yield f"middle_block_{place or 2 * index}_{rest}"
    elif kind == "downsamplers":
        yield f"input_blocks_{first + depth + 1}_0_op"
    elif kind == "upsamplers":
        # The number before "conv" is 2 after an attention and 1 otherwise. Both names are yielded, because it is not
        # known here whether there is an attention.
        yield from (f"output_blocks_{first + depth}_{place}_conv" for place in (1, 2))
    else:
        yield f"{'input' if side == 'down' else 'output'}_blocks_{first + index + (side == 'down')}_{place}_{rest}"


def _parse(text: str) -> tuple[Path, float]:
    name, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ImportFailed(
            f"there is no LoRA file {text!r}, and {weight!r} is not a finite weight",
            allowed="FILE or FILE:WEIGHT",
            fix="try FILE:0.8",
        )
    return Path(name), number


def _open(path: Path) -> Any:
    if not path.is_file():
        raise ImportFailed(f"the LoRA file {path} does not exist", fix="give the path of a .safetensors file")
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise ImportFailed(f"{path} is not a safetensors file ({error})", allowed="LoRA in .safetensors") from None


def _settings(path: Path, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the settings that a LoRA was trained with, under names such as `denoiser.lora_alpha`.

    diffusers writes the settings into the metadata of the safetensors file, under names such as `unet.lora_alpha`. peft
    writes them into the file adapter_config.json in the same directory.

    Args:
        path: the LoRA file.
        metadata: metadata of this file, as safetensors reads it.
    """
    peft_config = path.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" not in metadata and peft_config.is_file():
            return {f"{DENOISER}.{name}": value for name, value in json.loads(peft_config.read_bytes()).items()}
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        return {re.sub(r"^unet\.", f"{DENOISER}.", name): value for name, value in settings.items()}
    except (ValueError, AttributeError) as error:
        raise ImportFailed(f"the settings of {path} are broken: {error}") from error


def _parse_key(key: str) -> tuple[str, str, str] | None:
    """Return what a key of a LoRA file stands for: role of the network, name of the layer, and down, up or alpha.

    Return None where the key does not belong to a LoRA.
    """
    match = FACTOR.fullmatch(key)
    prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
    if match is None or prefix is None:
        return None
    component = PREFIXES[prefix]
    layer = (match["layer"] or match["scaled"]).removeprefix(prefix).replace(".processor", "").replace(".", "_")
    layer = layer.removeprefix("text_model_")
    for old, name in OLD_NAMES[component.removesuffix("_2")].items():
        if layer.endswith(old):
            layer = layer.removesuffix(old) + name
    return component, layer, "alpha" if match["scaled"] else PARTS.get(match["part"], match["part"])


def _delta(component: str, layer: str, parts: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Delta:
    rank = parts["down"].shape[0]
    alpha = parts["alpha"].item() if "alpha" in parts else settings.get(f"{component}.lora_alpha", rank)
    for pattern, value in (settings.get(f"{component}.alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*_)?({pattern.replace('.', '_')})", layer):
            alpha = value
    root = settings.get(f"{component}.use_rslora", False)
    return Delta(parts["up"], parts["down"], float(alpha) / (rank**0.5 if root else rank))


def layer_names(layers: Iterable[str]) -> dict[str, str]:
    """Return the torch name of each layer by every name that a LoRA file may use for it.

    These names are the torch name with `_` for `.`, and kohya's names.

    >>> list(layer_names(["down_blocks.0.resnets.0.conv1"]))
    ['down_blocks_0_resnets_0_conv1', 'input_blocks_1_0_in_layers_2']
    """
    names: dict[str, str] = {}
    flat = {layer.replace(".", "_").removeprefix("text_model_"): layer for layer in layers}
    resnets = {match.groups() for name in flat if (match := RESNET.match(name))}
    depths = set(Counter(block for block, _ in resnets).values())
    for name, layer in flat.items():
        names[name] = layer
        if len(depths) == 1:  # kohya's names are defined only if all blocks have equally many residual blocks
            names.update(dict.fromkeys(sgm_names(name, *depths), layer))
    return names


def _refused(path: Path, reason: str, keys: list[str]) -> ImportFailed:
    shown = ", ".join(keys[:3]) or "none at all"
    return ImportFailed(
        f"{path} cannot be fused: {reason} {shown}",
        allowed="LoRA for Linear and convolution layers, as diffusers, peft or kohya write them",
        fix="use an adapter that was made for this model",
    )
