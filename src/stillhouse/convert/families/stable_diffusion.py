"""Conversion of Stable Diffusion 1.x and 2.x, their inpainting models, and their latent consistency models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from stillhouse.backends.torch_modules import TextEncoderModule, UNetModule, VaeDecoderModule, VaeEncoderModule
from stillhouse.convert.export import PICTURE, ROWS, GraphExport, export_graph
from stillhouse.convert.families.base import ConvertedTokenizers, ManifestParts, SourceNetwork
from stillhouse.convert.schedulers import read_sampling_config
from stillhouse.convert.source import Source
from stillhouse.errors import ImportFailed
from stillhouse.pipelines.manifest import Defaults, Latent
from stillhouse.pipelines.roles import DECODER, DENOISER, ENCODER, TEXT_ENCODERS

DENOISER_FOLDER, AUTOENCODER_FOLDER = "unet", "vae"
TOKENIZER_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
IGNORED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that are not imported, because they check or describe pictures and generate none."""
CLIP_PREFIX = "text_model."
"""Prefix that the names of CLIP's weights have in some files; transformers 5 leaves the prefix out."""

_STEPS, _LCM_STEPS = 50, 4
_LCM_GUIDANCE = 8.5
"""Default guidance scale of a latent consistency model that takes the scale as an input.

This default and the default numbers of steps (50, and 4 for latent consistency models) are those of diffusers."""


class StableDiffusionConversion:
    """Conversion of Stable Diffusion 1.x and 2.x; implements `base.ConversionFamily`."""

    name = "stable-diffusion"
    pipelines: tuple[str, ...] = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "LatentConsistencyModelPipeline",
    )
    text_encoders: Mapping[str, type[Any]] = {TEXT_ENCODERS[0]: transformers.CLIPTextModel}
    """Class of each text encoder, by role; the role is also the name of the sub-directory."""
    uses_penultimate_states = False
    """Whether the denoiser takes the hidden states before the last layer of its text encoders."""
    addition_embed_type: str | None = None
    """Value that the U-Net's configuration must have for `addition_embed_type` in this family."""
    steps_offset: int | None = 1
    """Offset that is added to timesteps of leading spacing; None: the offset in the scheduler's configuration."""
    guidance = 7.5

    def networks(self, source: Source) -> Sequence[SourceNetwork]:
        """Return the networks that a checkpoint must have: the text encoders, the U-Net and the autoencoder."""
        return (
            *(SourceNetwork(role, role, (kind,)) for role, kind in self.text_encoders.items()),
            SourceNetwork(DENOISER_FOLDER, DENOISER, (diffusers.UNet2DConditionModel,)),
            SourceNetwork(AUTOENCODER_FOLDER, AUTOENCODER_FOLDER, (diffusers.AutoencoderKL,)),
        )

    def check(self, source: Source) -> None:
        """Raise ImportFailed where tokenizers, scheduler, or configurations of U-Net or autoencoder cannot be used."""
        for role in self.text_encoders:
            source.check_component(tokenizer_folder(role), TOKENIZER_CLASSES)
        source.check_component("scheduler")
        self._check_unet(source)
        autoencoder = source.config(AUTOENCODER_FOLDER)
        if autoencoder.get("latents_mean") is not None or autoencoder.get("latents_std") is not None:
            raise ImportFailed(
                "the vae normalises its latents by channel", allowed="one scaling_factor for all channels"
            )

    def manifest_parts(self, source: Source) -> ManifestParts:
        """Return the manifest's fields that follow from the configurations of U-Net, autoencoder and scheduler."""
        unet, vae = source.config(DENOISER_FOLDER), source.config(AUTOENCODER_FOLDER)
        config = read_sampling_config(
            source.config("scheduler", "scheduler_config.json"),
            source.class_name("scheduler"),
            steps_offset=self.steps_offset,
        )
        downscale = 2 ** (len(vae["block_out_channels"]) - 1)
        return ManifestParts(
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
                "zero_negative": self.zeros_negative(source),
            },
        )

    def convert_tokenizers(self, source: Source, stage: Path) -> ConvertedTokenizers:
        """Write CLIP's tokenizers into the directory `stage`.

        Raises:
            ImportFailed: a tokenizer is incomplete, or two of them pad a text to different numbers of tokens.
        """
        lengths = {_convert_tokenizer(source, role, stage) for role in self.text_encoders}
        if len(lengths) > 1:
            raise ImportFailed(
                f"the tokenizers pad a text to different numbers of tokens: {lengths}",
                allowed="the same number for all",
            )
        return ConvertedTokenizers({role: tokenizer_folder(role) for role in self.text_encoders}, lengths.pop())

    def graphs(self, source: Source, folder: str, network: Any, tokens: int) -> Sequence[GraphExport]:
        """Return the graphs to export of a network: two of an autoencoder, one of a U-Net or a text encoder.

        Args:
            source: the checkpoint.
            folder: name of the network's sub-directory.
            network: the network, with its weights loaded.
            tokens: length in tokens of the example text with which the network is traced.
        """
        if folder == AUTOENCODER_FOLDER:
            return autoencoder_graphs(network)
        if folder == DENOISER_FOLDER:
            return (unet_graph(network, tokens),)
        return (text_encoder_graph(network, folder, tokens, penultimate=self.uses_penultimate_states),)

    def index(self, source: Source) -> Mapping[str, Any]:
        """Return the content of the source's model_index.json without the components that are not imported."""
        index = {**source.index, **{name: [None, None] for name in IGNORED_COMPONENTS if name in source.index}}
        return {**index, "requires_safety_checker": False} if "safety_checker" in index else index

    def zeros_negative(self, source: Source) -> bool:
        """Return False: an empty negative prompt is encoded as text, not as zeros."""
        return False

    def _check_unet(self, source: Source) -> None:
        config = source.config(DENOISER_FOLDER)
        supported = {
            "addition_embed_type": self.addition_embed_type,
            "class_embed_type": None,
            "encoder_hid_dim_type": None,
        }
        for setting, value in supported.items():
            if config.get(setting) != value:
                raise ImportFailed(f"the unet has {setting} {config.get(setting)!r}", allowed=repr(value))
        latents = source.config(AUTOENCODER_FOLDER).get("latent_channels", 4)
        if config.get("in_channels", 4) not in (latents, 2 * latents + 1):
            raise ImportFailed(
                f"the unet takes {config['in_channels']} channels",
                allowed=f"{latents} latent channels, or {2 * latents + 1} for inpainting",
            )

    def _defaults(self, unet: Mapping[str, Any], sampler: str, downscale: int) -> Defaults:
        size = unet.get("sample_size") or 64
        height, width = (size, size) if isinstance(size, int) else size
        if sampler == "lcm":
            steps, guidance = _LCM_STEPS, _LCM_GUIDANCE if unet.get("time_cond_proj_dim") else 1.0
        else:
            steps, guidance = _STEPS, self.guidance
        return Defaults(steps, guidance, sampler, width * downscale, height * downscale)


def tokenizer_folder(role: str) -> str:
    """Return the name of the sub-directory of a text encoder's tokenizer, given the encoder's role."""
    return role.replace("text_encoder", "tokenizer")


def unet_graph(unet: Any, tokens: int) -> GraphExport:
    """Return the graph to export of a UNet2DConditionModel, traced with a text of `tokens` tokens."""
    config = unet.config
    size = 2 ** (len(config.block_out_channels) - 1)
    inputs = {
        "sample": (torch.zeros(2, config.in_channels, 2 * size, size), PICTURE),
        "timestep": (torch.zeros(2), ROWS),
        "encoder_hidden_states": (torch.zeros(2, tokens, config.cross_attention_dim), ROWS),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["text_embeds"] = (torch.zeros(2, pooled), ROWS)
        inputs["time_ids"] = (torch.zeros(2, 6), ROWS)
    if config.time_cond_proj_dim:
        inputs["timestep_cond"] = (torch.zeros(2, config.time_cond_proj_dim), ROWS)
    return GraphExport(DENOISER, "model.onnx", UNetModule(unet, list(inputs)), inputs, {"out_sample": PICTURE})


def text_encoder_graph(encoder: Any, role: str, tokens: int, *, penultimate: bool) -> GraphExport:
    """Return the graph to export of a CLIP text encoder. Encoders with a projection have a second output, text_embeds.

    Args:
        encoder: a CLIPTextModel or CLIPTextModelWithProjection.
        role: role of the text encoder.
        tokens: length in tokens of the example text with which the encoder is traced.
        penultimate: True: the graph returns the hidden states before the last layer, without the final norm, as SDXL
            needs them.
    """
    inputs = {"input_ids": (torch.zeros(2, tokens, dtype=torch.int64), ROWS)}
    outputs = {"last_hidden_state": ROWS}
    if hasattr(encoder, "text_projection"):
        outputs["text_embeds"] = ROWS
    module = TextEncoderModule(encoder, list(outputs), penultimate)
    return GraphExport(role, "model.onnx", module, inputs, outputs, CLIP_PREFIX)


def autoencoder_graphs(vae: Any) -> tuple[GraphExport, GraphExport]:
    """Return the two graphs to export of an AutoencoderKL: its encoder and its decoder.

    The encoder's outputs are the mean and the standard deviation of the latents. The graphs do not scale latents.
    """
    config = vae.config
    size = 2 ** (len(config.block_out_channels) - 1)
    sample = {"sample": (torch.zeros(1, config.in_channels, 4 * size, 2 * size), PICTURE)}
    latents = {"latent_sample": (torch.zeros(1, config.latent_channels, 4, 2), PICTURE)}
    return (
        GraphExport(ENCODER, "encoder.onnx", VaeEncoderModule(vae), sample, {"mean": PICTURE, "std": PICTURE}),
        GraphExport(DECODER, "decoder.onnx", VaeDecoderModule(vae), latents, {"sample": PICTURE}),
    )


def export_unet(unet: Any, graph: Path, weights: Path, tokens: int) -> None:
    """Write the graph of a UNet2DConditionModel. The model's own weights are replaced by zeros to free memory.

    Args:
        unet: the model.
        graph: ONNX file to write.
        weights: the model's .safetensors file, in the directory of `graph`; the graph points to its tensors.
        tokens: length in tokens of the example text with which the model is traced.
    """
    export_graph(unet_graph(unet, tokens), graph, weights)


def export_text_encoder(encoder: Any, graph: Path, weights: Path, tokens: int, *, penultimate: bool) -> None:
    """Write the graph of a CLIP text encoder. The encoder's own weights are replaced by zeros to free memory.

    Args:
        encoder: the text encoder.
        graph: ONNX file to write.
        weights: the encoder's .safetensors file, in the directory of `graph`; the graph points to its tensors.
        tokens, penultimate: as in `text_encoder_graph`.
    """
    export_graph(text_encoder_graph(encoder, TEXT_ENCODERS[0], tokens, penultimate=penultimate), graph, weights)


def export_vae(vae: Any, encoder: Path, decoder: Path, weights: Path) -> None:
    """Write the graphs of an AutoencoderKL's encoder and decoder.

    The autoencoder's own weights are replaced by zeros to free memory.

    Args:
        vae: the autoencoder.
        encoder, decoder: ONNX files to write.
        weights: the autoencoder's .safetensors file, in the directory of both; the graphs point to its tensors.
    """
    for graph, path in zip(autoencoder_graphs(vae), (encoder, decoder), strict=True):
        export_graph(graph, path, weights)


def _convert_tokenizer(source: Source, role: str, stage: Path) -> int:
    """Write the CLIP tokenizer of a text encoder; return the length, in tokens, to which the tokenizer pads a text.

    `role` names the text encoder; `stage` is the pipeline directory that is being written. ImportFailed is raised if
    the tokenizer has no vocabulary or too large a one, or the encoder takes an attention mask.
    """
    folder = source.directory / tokenizer_folder(role)
    if not ((folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file()):
        raise ImportFailed(f"{folder} has no vocabulary", allowed="tokenizer.json, or vocab.json with merges.txt")
    config = source.config(role)
    tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > config["vocab_size"]:
        raise ImportFailed(
            f"{folder} has {len(tokenizer)} tokens, more than {role} knows", allowed=f"at most {config['vocab_size']}"
        )
    if config.get("use_attention_mask"):
        raise ImportFailed(f"{role} takes an attention mask", allowed="a CLIP text encoder without an attention mask")
    tokenizer.model_max_length = min(tokenizer.model_max_length, config["max_position_embeddings"])
    tokenizer.save_pretrained(stage / folder.name)
    return int(tokenizer.model_max_length)


STABLE_DIFFUSION = StableDiffusionConversion()
