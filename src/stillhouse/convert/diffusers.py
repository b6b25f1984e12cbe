"""A diffusers directory, or a hub id, converted to a pipeline: Stable Diffusion 1.x, 2.x, their inpainting kinds, XL.

One network at a time is in memory, in the precision in which it is stored.
"""

import gc
import json
import shutil
from collections.abc import Mapping
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
from stillhouse.pipelines.roles import DECODER, DENOISER, ENCODER

_LCM_STEPS, _STEPS = 4, 50
_LCM_GUIDANCE = 8.5
"""Of a latent consistency model that takes the guidance scale as an input; diffusers' defaults, as all of these."""
_XL_GUIDANCE, _GUIDANCE = 5.0, 7.5


def import_diffusers(source: str | Path, target: Path, options: ImportOptions, progress: Progress) -> Manifest:
    """Convert a diffusers directory to a pipeline directory; see `import_model`."""
    with staged(target, force=options.force) as stage, quiet_library(diffusers), quiet_library(transformers):
        opened = open_source(source)
        config = read_sampling_config(opened.config("scheduler"), opened.index["scheduler"][1], is_xl=opened.is_xl)
        adapters = tuple(read_adapter(text, (DENOISER, *opened.text_encoders)) for text in options.loras)
        conversion = _Conversion(opened, stage, options, adapters)
        parts = (*opened.text_encoders, "unet", "vae")
        tokens, components = conversion.convert_tokenizers(), dict[str, Component]()
        for done, part in enumerate(parts, 1):
            components |= conversion.convert_network(part, tokens)
            gc.collect()
            progress(part, done, len(parts))
        conversion.write_other_files()
        return write_manifest(stage, conversion.manifest(options.name or target.name, components, config))


@dataclass(frozen=True, slots=True)
class _Conversion:
    source: Source
    stage: Path
    options: ImportOptions
    adapters: tuple[Adapter, ...]

    def convert_tokenizers(self) -> int:
        """Write every tokenizer with its tokenizer.json; return the number of tokens of a text."""
        lengths = {self._convert_tokenizer(role) for role in self.source.text_encoders}
        if len(lengths) > 1:
            raise ImportFailed(f"the tokenizers make {lengths} tokens of a text", allowed="the same number for all")
        return lengths.pop()

    def convert_network(self, part: str, tokens: int) -> dict[str, Component]:
        """Read, fuse, write and export one network of the source; return its components by role."""
        kind = getattr(transformers if part in self.source.text_encoders else diffusers, self.source.index[part][1])
        network = read_module(self.source.directory / part, kind, self.options.dtype)
        role = DENOISER if part == "unet" else part
        for adapter in self.adapters:
            adapter.fuse(role, network)
        folder = self.stage / part
        weights = write_module(network, folder)
        graphs = {role: "model.onnx"}
        if part == "vae":
            export_vae(network, folder / "encoder.onnx", folder / "decoder.onnx", weights)
            graphs = {ENCODER: "encoder.onnx", DECODER: "decoder.onnx"}
        elif part == "unet":
            export_unet(network, folder / "model.onnx", weights, tokens)
        else:
            export_text_encoder(network, folder / "model.onnx", weights, tokens, penultimate=self.source.is_xl)
        return {
            role: Component(f"{part}/{graph}", f"{part}/{weights.name}", self.options.backend)
            for role, graph in graphs.items()
        }

    def write_other_files(self) -> None:
        """Write the files besides networks that diffusers needs to open the directory."""
        shutil.copytree(self.source.directory / "scheduler", self.stage / "scheduler")
        index = dict(self.source.index)
        index |= {name: [None, None] for name in IGNORED_COMPONENTS if name in index}
        if "safety_checker" in index:
            index["requires_safety_checker"] = False
        (self.stage / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def manifest(self, name: str, components: Mapping[str, Component], config: SamplingConfig) -> Manifest:
        """Return the manifest that follows from the configurations."""
        source, unet, vae = self.source, self.source.config("unet"), self.source.config("vae")
        downscale = 2 ** (len(vae["block_out_channels"]) - 1)
        return Manifest(
            name=name,
            family=source.family,
            components=components,
            tokenizers={role: _tokenizer_folder(role) for role in source.text_encoders},
            sampling=config.sampling,
            latent=Latent(
                channels=vae.get("latent_channels", 4),
                scaling_factor=vae.get("scaling_factor", 0.18215),
                shift_factor=vae.get("shift_factor") or 0.0,
                downscale=downscale,
            ),
            granularity=downscale * 2 ** (len(unet["block_out_channels"]) - 1),
            defaults=self._defaults(unet, config.sampler, downscale),
            family_options={
                "in_channels": unet.get("in_channels", 4),
                "guidance_channels": unet.get("time_cond_proj_dim"),
                "zero_negative": source.is_xl and source.index.get("force_zeros_for_empty_prompt", True),
            },
            source={
                "importer": "diffusers",
                "from": source.name,
                "class": source.index["_class_name"],
                "loras": [Path(text).name for text in self.options.loras],
            },
        )

    def _defaults(self, unet: Mapping[str, Any], sampler: str, downscale: int) -> Defaults:
        size = unet.get("sample_size") or 64
        height, width = (size, size) if isinstance(size, int) else size
        if sampler == "lcm":
            steps, guidance = _LCM_STEPS, _LCM_GUIDANCE if unet.get("time_cond_proj_dim") else 1.0
        else:
            steps, guidance = _STEPS, _XL_GUIDANCE if self.source.is_xl else _GUIDANCE
        return Defaults(steps, guidance, sampler, width * downscale, height * downscale)

    def _convert_tokenizer(self, role: str) -> int:
        folder = self.source.directory / _tokenizer_folder(role)
        if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
            raise ImportFailed(f"{folder} has no vocabulary", allowed="tokenizer.json, or vocab.json with merges.txt")
        config = self.source.config(role)
        tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        if len(tokenizer) > config["vocab_size"]:
            raise ImportFailed(f"{folder} has {len(tokenizer)} tokens", allowed=f"{config['vocab_size']}, as {role}")
        if config.get("use_attention_mask"):
            raise ImportFailed(f"{role} takes an attention mask", allowed="CLIP as Stable Diffusion uses it")
        tokenizer.model_max_length = min(tokenizer.model_max_length, config["max_position_embeddings"])
        tokenizer.save_pretrained(self.stage / folder.name)
        return int(tokenizer.model_max_length)


def _tokenizer_folder(role: str) -> str:
    return role.replace("text_encoder", "tokenizer")
