"""Conversion of a diffusers directory or a hub id to a pipeline directory.

The class of the diffusers pipeline decides which family (code for one kind of model) converts the model. Only one
network at a time is in memory, by default in the precision in which the source stores it.
"""

import gc
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import diffusers
import transformers

from stillhouse.backends.torch_modules import quiet_library
from stillhouse.convert.export import export_graph
from stillhouse.convert.families import find_conversion
from stillhouse.convert.families.base import ConversionFamily, SourceNetwork
from stillhouse.convert.import_options import ImportOptions, Progress
from stillhouse.convert.source import INDEX, Source, open_source
from stillhouse.convert.staging import staged
from stillhouse.convert.weights import read_module, write_module
from stillhouse.pipelines.lora import Adapter, read_adapter
from stillhouse.pipelines.manifest import Component, Manifest, write_manifest
from stillhouse.pipelines.roles import DENOISER, TEXT_ENCODERS

_ADAPTED = (DENOISER, *TEXT_ENCODERS)


def import_diffusers(source: str | Path, target: Path, options: ImportOptions, progress: Progress) -> Manifest:
    """Convert a diffusers directory or hub id to a pipeline directory, and return the pipeline's manifest.

    Arguments and errors are those of `import_model`.
    """
    with staged(target, force=options.force) as stage, quiet_library(diffusers), quiet_library(transformers):
        opened = open_source(source)
        family = find_conversion(opened.pipeline_class)
        networks = family.networks(opened)
        for network in networks:
            opened.check_component(network.folder, [kind.__name__ for kind in network.classes])
        family.check(opened)
        parts = family.manifest_parts(opened)
        adapted = tuple(network.role for network in networks if network.role in _ADAPTED)
        adapters = tuple(read_adapter(text, adapted) for text in options.loras)
        tokenizers = family.convert_tokenizers(opened, stage)
        conversion = _Conversion(opened, family, stage, options, adapters)
        components = dict[str, Component]()
        for done, network in enumerate(networks, 1):
            components |= conversion.convert_network(network, tokenizers.tokens)
            gc.collect()
            progress(network.folder, done, len(networks))
        conversion.write_other_files()
        manifest = Manifest(
            name=options.name or target.name,
            family=family.name,
            components=components,
            tokenizers=tokenizers.folders,
            sampling=parts.sampling,
            latent=parts.latent,
            granularity=parts.granularity,
            defaults=parts.defaults,
            family_options=parts.family_options,
            source=_origin(opened, options),
        )
        return write_manifest(stage, manifest)


@dataclass(frozen=True, slots=True)
class _Conversion:
    source: Source
    family: ConversionFamily
    stage: Path
    options: ImportOptions
    adapters: tuple[Adapter, ...]

    def convert_network(self, network: SourceNetwork, tokens: int) -> dict[str, Component]:
        """Read a network of the source, fuse LoRA weights into it, write its weights, and export its graphs.

        The network is traced with an example text of `tokens` tokens.
        The result is the manifest's entry of each graph, by role.
        """
        kinds = {kind.__name__: kind for kind in network.classes}
        kind = kinds[self.source.class_name(network.folder)]
        module = read_module(self.source.directory / network.folder, kind, self.options.dtype)
        for adapter in self.adapters:
            adapter.fuse(network.role, module)
        folder = self.stage / network.folder
        weights = write_module(module, folder)
        components = dict[str, Component]()
        for graph in self.family.graphs(self.source, network.folder, module, tokens):
            export_graph(graph, folder / graph.file, weights)
            paths = (f"{network.folder}/{graph.file}", f"{network.folder}/{weights.name}")
            components[graph.role] = Component(*paths, self.options.backend)
        return components

    def write_other_files(self) -> None:
        """Write the scheduler's configuration and model_index.json, which diffusers needs to open the directory."""
        shutil.copytree(self.source.directory / "scheduler", self.stage / "scheduler")
        index = self.family.index(self.source)
        (self.stage / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _origin(source: Source, options: ImportOptions) -> dict[str, object]:
    return {
        "importer": "diffusers",
        "from": source.name,
        "class": source.pipeline_class,
        "loras": [Path(text).name for text in options.loras],
    }
