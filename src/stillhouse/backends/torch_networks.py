"""Classes of networks that the torch backend can run, each described by a `TorchNetwork`.

Installed packages add classes by entry points. This module does not import torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeAlias

from stillhouse.backends.signature import Signature
from stillhouse.errors import BackendFailed

ENTRY_POINTS = "stillhouse.torch_networks"
"""Group of the entry points by which installed packages add classes. An entry point has the name of a class, and refers
to its `TorchNetwork`."""
_MODULES = "stillhouse.backends.torch_modules"

Shape: TypeAlias = tuple[int | None, ...]
ShapeRule: TypeAlias = Callable[[Sequence[int | None], Any], Shape]
"""Function from the shape of the graph's first input and the network's config to the shape of an output. A length is
None where it is known only at a call."""


@dataclass(frozen=True, slots=True)
class TorchNetwork:
    """A class of networks that the torch backend can run, such as diffusers' UNet2DConditionModel.

    Args:
        name: name of the class, as in config.json.
        library: Python module that has the class, such as diffusers.
        weights: name of the weights file.
        wrapper: `module:function` that turns a network, the path of a graph and its signature into a torch module with
            the graph's inputs and outputs, or returns None for the graph of another network.
        block: class name of the blocks that regional compilation compiles.
        output_shapes: function that computes the shape of an output, see `ShapeRule`, by name of the output.
        float32_inputs: inputs that are not converted to the network's precision.
        int64_inputs: inputs of token ids and their masks.
    """

    name: str
    library: str
    weights: str
    wrapper: str
    block: str
    output_shapes: Mapping[str, ShapeRule]
    float32_inputs: tuple[str, ...] = ()
    int64_inputs: tuple[str, ...] = ()

    def wrap(self, network: Any, graph: Path, signature: Signature) -> Any:
        """Return a network of this class as a torch module with the inputs and outputs of a graph, in evaluation mode.

        Raises:
            BackendFailed: the graph belongs to another network.
        """
        module, _, function = self.wrapper.partition(":")
        wrapped = getattr(import_module(module), function)(network, graph, signature)
        if wrapped is None:
            inputs, outputs = ", ".join(signature.inputs), ", ".join(signature.outputs)
            raise BackendFailed(
                f"{graph} has inputs {inputs} and outputs {outputs}, which no {self.name} has",
                fix="import the model again",
            )
        return wrapped.eval()


def find_torch_network(name: str) -> TorchNetwork | None:
    """Return the description of a class of networks by its name; None where torch cannot run the class.

    Installed packages may add descriptions by entry points.
    """
    if name not in _NETWORKS:
        for point in entry_points(group=ENTRY_POINTS, name=name):
            _NETWORKS[name] = point.load()
    return _NETWORKS.get(name)


def torch_network_names() -> list[str]:
    """Return the names of all classes that the torch backend opens."""
    return list(dict.fromkeys([*_NETWORKS, *sorted(entry_points(group=ENTRY_POINTS).names)]))


def _scale(config: Any) -> int:
    """Return by which factor a picture's height and width exceed those of its latents, from an autoencoder's config."""
    return int(2 ** (len(config.block_out_channels) - 1))


def _latents(picture: Sequence[int | None], config: Any) -> Shape:
    return picture[0], config.latent_channels, *(side and side // _scale(config) for side in picture[2:])


def _picture(latents: Sequence[int | None], config: Any) -> Shape:
    return latents[0], config.out_channels, *(side and side * _scale(config) for side in latents[2:])


def _clip(name: str) -> TorchNetwork:
    return TorchNetwork(
        name,
        library="transformers",
        weights="model.safetensors",
        wrapper=f"{_MODULES}:wrap_text_encoder",
        block="CLIPEncoderLayer",
        output_shapes={
            "last_hidden_state": lambda ids, config: (*ids, config.hidden_size),
            "text_embeds": lambda ids, config: (ids[0], config.projection_dim),
        },
        int64_inputs=("input_ids",),
    )


_NETWORKS = {
    network.name: network
    for network in (
        TorchNetwork(
            "UNet2DConditionModel",
            library="diffusers",
            weights="diffusion_pytorch_model.safetensors",
            wrapper=f"{_MODULES}:wrap_unet",
            # Only this class of blocks is compiled, as by compile_repeated_blocks of diffusers. Residual blocks occur
            # in many more sizes: with them compiled as well, the embedded U-Net was slower than uncompiled.
            block="BasicTransformerBlock",
            output_shapes={"out_sample": lambda latents, config: (latents[0], config.out_channels, *latents[2:])},
            # These inputs stay in float32, because timesteps 998 and 999 would be equal in bfloat16, which has 8
            # significant bits.
            float32_inputs=("timestep", "time_ids"),
        ),
        TorchNetwork(
            "AutoencoderKL",
            library="diffusers",
            weights="diffusion_pytorch_model.safetensors",
            wrapper=f"{_MODULES}:wrap_autoencoder",
            block="ResnetBlock2D",
            output_shapes={"mean": _latents, "std": _latents, "sample": _picture},
        ),
        _clip("CLIPTextModel"),
        _clip("CLIPTextModelWithProjection"),
    )
}
