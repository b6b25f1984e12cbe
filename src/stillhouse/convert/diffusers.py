"""A diffusers directory, or a hub id, made into a pipeline: Stable Diffusion 1.x, 2.x, their inpainting kinds, XL.

One component at a time is in memory, in the precision that it is stored in.
"""

import gc
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import transformers

from stillhouse.backends.torch_modules import quiet_library
from stillhouse.convert.export import export_text_encoder, export_unet, export_vae
from stillhouse.convert.options import ImportOptions, Progress
from stillhouse.convert.schedulers import SamplingConfig, read_sampling_config
from stillhouse.convert.source import IGNORED_COMPONENTS, INDEX, Source, open_source
from stillhouse.convert.staging import staged
from stillhouse.convert.weights import read_module, write_module
from stillhouse.errors import ImportFailed
from stillhouse.pipelines.lora import Adapter, read_adapter
from stillhouse.pipelines.manifest import Component, Defaults, Latent, Manifest, write_manifest


def import_diffusers(source: str | Path, target: Path, options: ImportOptions, progress: Progress) -> Manifest:
    """Make a pipeline directory; see `import_model`."""
    with staged(target, force=options.force) as stage, quiet_library(diffusers), quiet_library(transformers):
        opened = open_source(source)
        walk = read_sampling_config(opened.config("scheduler"), opened.index["scheduler"][1], is_xl=opened.is_xl)
        adapters = tuple(read_adapter(text, ("unet", *opened.text_encoders)) for text in options.loras)
        work = _Conversion(opened, stage, options, adapters)
        parts = (*opened.text_encoders, "unet", "vae")
        tokens, components = work.tokenizers(), dict[str, Component]()
        for done, part in enumerate(parts, 1):
            components |= work.network(part, tokens)
            gc.collect()
            progress(part, done, len(parts))
        work.write_other_files()
        return write_manifest(stage, work.manifest(options.name or target.name, components, walk))


@dataclass(frozen=True, slots=True)
class _Conversion:
    source: Source
    stage: Path
    options: ImportOptions
    adapters: tuple[Adapter, ...]

    def tokenizers(self) -> int:
        """Write every tokenizer with its tokenizer.json; returns how many tokens all of them make of a text."""
        lengths = {self._tokenizer(name) for name in self.source.text_encoders}
        if len(lengths) > 1:
            raise ImportFailed(f"the tokenizers make {lengths} tokens of a text", allowed="the same number for all")
        return lengths.pop()

    def network(self, part: str, tokens: int) -> dict[str, Component]:
        """Read, fuse, write and export one network: its components."""
        kind = getattr(transformers if part in self.source.text_encoders else diffusers, self.source.index[part][1])
        network = read_module(self.source.directory / part, kind, self.options.dtype)
        for adapter in self.adapters:
            adapter.fuse(part, network)
        folder = self.stage / part
        weights = write_module(network, folder)
        if part == "vae":
            export_vae(network, folder / "encoder.onnx", folder / "decoder.onnx", weights)
            graphs = {"vae_encoder": "encoder.onnx", "vae_decoder": "decoder.onnx"}
        else:
            graphs = {part: "model.onnx"}
            if part == "unet":
                export_unet(network, folder / "model.onnx", weights, tokens)
            else:
                export_text_encoder(network, folder / "model.onnx", weights, tokens, penultimate=self.source.is_xl)
        return {
            name: Component(f"{part}/{graph}", f"{part}/{weights.name}", self.options.backend)
            for name, graph in graphs.items()
        }

    def write_other_files(self) -> None:
        """Write what is no network, so that diffusers can open the directory."""
        shutil.copytree(self.source.directory / "scheduler", self.stage / "scheduler")
        index = dict(self.source.index)
        index |= {name: [None, None] for name in IGNORED_COMPONENTS if name in index}
        if "safety_checker" in index:
            index["requires_safety_checker"] = False
        (self.stage / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def manifest(self, name: str, components: dict[str, Component], walk: SamplingConfig) -> Manifest:
        """Everything that the configurations say."""
        source, unet, vae = self.source, self.source.config("unet"), self.source.config("vae")
        downscale = 2 ** (len(vae["block_out_channels"]) - 1)
        size = unet.get("sample_size") or 64
        height, width = (size, size) if isinstance(size, int) else size
        guided = unet.get("time_cond_proj_dim")
        steps, guidance = (4, 8.5 if guided else 1.0) if walk.sampler == "lcm" else (50, 5.0 if source.is_xl else 7.5)
        return Manifest(
            name=name,
            family=source.family,
            components=components,
            tokenizers=tuple(name.replace("text_encoder", "tokenizer") for name in source.text_encoders),
            schedule=walk.schedule,
            prediction=walk.prediction,
            spacing=walk.spacing,
            sigmas=walk.sigmas,
            steps_offset=walk.steps_offset,
            latent=Latent(
                channels=vae.get("latent_channels", 4),
                scaling_factor=vae.get("scaling_factor", 0.18215),
                shift_factor=vae.get("shift_factor") or 0.0,
                downscale=downscale,
            ),
            unet_in_channels=unet.get("in_channels", 4),
            granularity=downscale * 2 ** (len(unet["block_out_channels"]) - 1),
            guidance_channels=guided,
            zero_negative=source.is_xl and source.index.get("force_zeros_for_empty_prompt", True),
            defaults=Defaults(steps, guidance, walk.sampler, width * downscale, height * downscale),
            source={
                "importer": "diffusers",
                "from": source.name,
                "class": source.index["_class_name"],
                "loras": [Path(text).name for text in self.options.loras],
            },
        )

    def _tokenizer(self, encoder: str) -> int:
        folder = self.source.directory / encoder.replace("text_encoder", "tokenizer")
        if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
            raise ImportFailed(f"{folder} has no vocabulary", allowed="tokenizer.json, or vocab.json with merges.txt")
        config = self.source.config(encoder)
        tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        if len(tokenizer) > config["vocab_size"]:
            raise ImportFailed(f"{folder} has {len(tokenizer)} tokens", allowed=f"{config['vocab_size']}, as {encoder}")
        if config.get("use_attention_mask"):
            raise ImportFailed(f"{encoder} wants an attention mask", allowed="CLIP as Stable Diffusion uses it")
        tokenizer.model_max_length = min(tokenizer.model_max_length, config["max_position_embeddings"])
        tokenizer.save_pretrained(self.stage / folder.name)
        return int(tokenizer.model_max_length)
