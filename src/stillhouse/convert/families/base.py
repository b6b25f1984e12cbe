"""Interface of families (kinds of models, such as Stable Diffusion) to the importer of checkpoints.

A family says which networks a checkpoint has, and how they become ONNX graphs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stillhouse.convert.export import GraphExport
from stillhouse.convert.source import Source
from stillhouse.pipelines.manifest import Defaults, Latent, Sampling


@dataclass(frozen=True, slots=True)
class SourceNetwork:
    """A network that a checkpoint must have.

    Args:
        folder: name of the network in model_index.json, and of its sub-directory.
        role: role of the network, such as denoiser, under which `Adapter.layers` has its LoRA weights.
        classes: allowed classes of the network, each with `from_pretrained` and `save_pretrained`.
    """

    folder: str
    role: str
    classes: tuple[type[Any], ...]


@dataclass(frozen=True, slots=True)
class ConvertedTokenizers:
    """The tokenizers that were written to a pipeline directory.

    Args:
        folders: sub-directory of each tokenizer, by role of its text encoder.
        tokens: length in tokens of the example text that the networks are traced with.
    """

    folders: Mapping[str, str]
    tokens: int


@dataclass(frozen=True, slots=True)
class ManifestParts:
    """The fields of a pipeline's manifest that its family (kind of model) decides, see `manifest.Manifest`."""

    sampling: Sampling
    latent: Latent
    granularity: int
    defaults: Defaults
    family_options: Mapping[str, Any]


class ConversionFamily(Protocol):
    """A family: the conversion of one kind of checkpoint to a pipeline directory."""

    name: str
    """Name of the family in `pipelines.families` that runs the converted pipelines."""
    pipelines: tuple[str, ...]
    """Class names of the diffusers pipelines whose checkpoints this family converts."""

    def networks(self, source: Source) -> Sequence[SourceNetwork]:
        """Return the networks of a checkpoint in the order of their conversion."""

    def check(self, source: Source) -> None:
        """Check a checkpoint's configurations and its components besides networks, before weights are read.

        Raises:
            ImportFailed: a component is missing or not supported; the message names it.
        """

    def manifest_parts(self, source: Source) -> ManifestParts:
        """Return the fields of the pipeline's manifest that follow from the checkpoint's configurations.

        Raises:
            ImportFailed: a configuration is not supported.
        """

    def convert_tokenizers(self, source: Source, stage: Path) -> ConvertedTokenizers:
        """Write every tokenizer into the directory `stage`, with tokenizer.json and tokenizer_config.json.

        Raises:
            ImportFailed: a tokenizer is incomplete, or does not fit its text encoder.
        """

    def graphs(self, source: Source, folder: str, network: Any, tokens: int) -> Sequence[GraphExport]:
        """Return the ONNX graphs to export from a network.

        Args:
            source: the checkpoint.
            folder: name of the network's sub-directory.
            network: the network, with its weights loaded.
            tokens: length in tokens of the example text with which the network is traced.
        """

    def index(self, source: Source) -> Mapping[str, Any]:
        """Return the content of the pipeline directory's model_index.json, with which diffusers opens it."""
