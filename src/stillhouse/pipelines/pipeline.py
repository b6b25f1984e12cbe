"""A pipeline in memory: it starts, advances and finishes pictures. Nothing here needs torch."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse.backends.runner import Runner, RunnerOptions
from stillhouse.backends.signature import read_signature
from stillhouse.check import check_choice
from stillhouse.core import Array, ImageRequest, ImageResult, Picture
from stillhouse.diffusion import (
    INITIAL_STEP,
    NUMPY,
    Arrays,
    Conditioning,
    InpaintBlend,
    SplitDenoiser,
    Trajectory,
    add_noise,
    advance,
    gaussian,
)
from stillhouse.errors import BackendFailed, InvalidRequest
from stillhouse.images.pixels import normalize_pixels, to_pixels
from stillhouse.pipelines.batch_sizes import run_split
from stillhouse.pipelines.manifest import Component, Defaults, Manifest, StepCache, read_manifest
from stillhouse.pipelines.resolve import plan_request, resolve
from stillhouse.pipelines.runners import FULL, SHALLOW, UNET, Runners, override_manifest
from stillhouse.pipelines.tiled_decode import decode_tiled
from stillhouse.pipelines.tokenizers import Tokenizer, open_tokenizer

ENCODER, DECODER = "vae_encoder", "vae_decoder"
CACHED_PROMPTS = 64
MASK_THRESHOLD = 127
"""The brightest level of a mask that leaves the picture as it is."""


@dataclass(slots=True, kw_only=True)
class ImageTrajectory(Trajectory):
    """A trajectory with the request that it answers, and when it was started (`time.perf_counter`)."""

    request: ImageRequest
    started: float


class Pipeline:
    """A pipeline directory, opened.

    Networks are opened when they are first needed, once each. One picture depends on its request only, not on what
    is in the batch with it. To be used from one thread at a time.

    Args:
        directory: it holds `stillhouse.json`.
        backend: for every component, instead of what the manifest says.
        precision: for the U-Net, which does nearly all of the work, instead of what the manifest says.
        threads: at most so many for each network, instead of what the manifest says; where neither says, the runtime.
        cache: directory for compiled networks, where the runtime keeps them.
        verify: hash every file first.
        manifest: instead of the directory's own.
        components: by name, instead of the manifest's; their graphs may lie anywhere, and then have absolute paths.
        defaults: instead of the manifest's.
        step_cache: instead of the manifest's, which is left out where `components` has another graph for the U-Net.

    Raises:
        InvalidRequest: a component that the manifest does not have.
        ManifestError, TamperedFile: as `read_manifest`.

    >>> pipeline = Pipeline(Path("my-model"))  # doctest: +SKIP
    >>> pipeline.generate("a red circle", seed=7).image.shape  # doctest: +SKIP
    (64, 64, 3)
    """

    def __init__(
        self,
        directory: Path,
        *,
        backend: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        cache: Path | None = None,
        verify: bool = False,
        manifest: Manifest | None = None,
        components: Mapping[str, Component] | None = None,
        defaults: Defaults | None = None,
        step_cache: StepCache | None = None,
    ) -> None:
        self.directory = directory
        manifest = manifest or read_manifest(directory, verify=verify)
        self.manifest = override_manifest(manifest, components or {}, defaults, step_cache)
        options = RunnerOptions(threads=threads, cache=cache)
        self._runners = Runners(directory, self.manifest, options, backend=backend, precision=precision)
        self._encoded = lru_cache(CACHED_PROMPTS)(self._encode)

    def resolve(self, request: ImageRequest) -> ImageRequest:
        """The request with every default filled in; see `request.resolve`. Raises InvalidRequest."""
        return resolve(self.manifest, request)

    def start(self, request: ImageRequest, *, noise: Array | None = None) -> ImageTrajectory:
        """Begin a picture: its text is encoded, its image too, and its latents are laid out, as `arrays` are.

        Args:
            request: resolved or not.
            noise: standard normal, float32 [channels, height / downscale, width / downscale]; None draws it from
                the request's seed.

        Raises:
            InvalidRequest: what this pipeline cannot do, or noise of another shape.
            RuntimeMissing, BackendFailed: a network cannot be run here, or there is no memory for the picture.
        """
        started = time.perf_counter()
        request = self.resolve(request)
        course = plan_request(self.manifest, request)
        noise = self._noise(request, noise)
        conditioning = self._conditioning(request, self.encode_prompt(request.prompt))
        unconditional = self._unconditional(request, conditioning) if course.guidance > 1 else {}
        draft = ImageTrajectory(course, noise, conditioning, unconditional, request=request, started=started)
        if request.image is not None:
            self._start_from_image(draft, request.image, request.mask, noise)
        with self._backend_errors("begin a picture with"):
            self._to_device(draft)
        return draft

    def advance(self, trajectories: Sequence[Trajectory]) -> None:
        """Move every picture of a mixed batch by one evaluation of the U-Net; see `diffusion.advance`.

        Where the U-Net is cut, every picture takes its full depth or its shallow one, whatever its cache_interval, so
        that it does not matter who else is in the batch. A GPU may still be at it when this returns, see `settle`.
        """
        denoise = SplitDenoiser(self._full, self._shallow) if self.manifest.step_cache else self.denoise
        with self._backend_errors("advance pictures with"):
            advance(trajectories, denoise, self.arrays)

    def settle(self) -> None:
        """Return when every `advance` so far is done: for whoever measures, or must know.

        Raises:
            BackendFailed: a GPU failed since; its pictures are lost, though they seem to have moved.
        """
        with self._backend_errors("run"):
            self.arrays.settle()

    def finish(self, draft: ImageTrajectory) -> ImageResult:
        """Decode a picture that is done.

        Raises:
            InvalidRequest: the picture is not done.
            BackendFailed: as `decode`.
        """
        if not draft.is_done:
            raise InvalidRequest(
                f"a picture after {draft.index} of {draft.evaluation_count} evaluations", allowed="one that is done"
            )
        image = self.decode(draft.latents)
        return ImageResult(image, draft.request, time.perf_counter() - draft.started)

    def set_adapters(self, adapters: Sequence[str]) -> None:
        """Draw with these LoRA from now on, `FILE` or `FILE:WEIGHT` each, and with no others; none takes all off.

        Nothing is compiled anew. Networks that they change have to run where weights can; see `models.adapters`.

        Raises:
            ImportFailed: a file that is no LoRA, or was made for another network; what was worn before is worn still.
            InvalidRequest: a network that they change runs on another engine, or with weights that cannot be changed.
            BackendFailed: an engine cannot change its weights.

        >>> pipeline.wear(["style.safetensors:0.8"])  # doctest: +SKIP
        """
        self._runners.set_adapters(adapters)
        self._encoded.cache_clear()

    def generate(self, prompt: str, **fields: Any) -> ImageResult:
        """One picture from start to finish; `fields` are those of `ImageRequest`."""
        for name in fields:
            check_choice("request field", name, ImageRequest.__dataclass_fields__)
        draft = self.start(ImageRequest(prompt, **fields))
        while not draft.is_done:
            self.advance([draft])
        return self.finish(draft)

    def denoise(self, rows: Array, timesteps: Array, conditioning: Conditioning) -> Array:
        """The U-Net: rows [R, C, h, w], timesteps [R] and the conditioning's [R, ...] to its output [R, c, h, w]."""
        return self.run("unet", {"sample": rows, "timestep": timesteps, **conditioning})["out_sample"]

    def _full(self, rows: Array, timesteps: Array, conditioning: Conditioning) -> tuple[Array, NDArray[Any]]:
        outputs = self.run(FULL, {"sample": rows, "timestep": timesteps, **conditioning})
        return outputs["out_sample"], outputs["deep"]

    def _shallow(self, rows: Array, timesteps: Array, conditioning: Conditioning, deep: NDArray[Any]) -> Array:
        feeds = {"sample": rows, "timestep": timesteps, **conditioning, "deep": deep}
        return self.run(SHALLOW, {name: feeds[name] for name in self._shallow_inputs})["out_sample"]

    def encode_prompt(self, text: str) -> Mapping[str, Array]:
        """What the text encoders make of a text: encoder_hidden_states [L, D], and text_embeds [E] for XL.

        The last `CACHED_TEXTS` are kept. Warns with `PromptTruncated` about what does not fit.
        """
        return self._encoded(*(tokenizer(text).tobytes() for tokenizer in self.tokenizers))

    def encode_image(self, picture: Picture) -> Array:
        """The mean of a picture's latents, scaled: float32 [C, height / downscale, width / downscale].

        diffusers takes a random sample around this mean, so that its latents differ by the autoencoder's spread.
        """
        return self._encode_signal(normalize_pixels(picture))

    def decode(self, latents: Array) -> Picture:
        """The picture of clean latents [C, h, w], by itself; in tiles where it is larger than the manifest's tile.

        Raises:
            BackendFailed: a network answered with NaN or infinity, as some do in half precision.
        """
        latent, tile = self.manifest.latent, self.manifest.defaults.tile
        clean: Array = latents if isinstance(latents, np.ndarray) else self.arrays.read(latents)
        _check_finite(UNET, clean)
        sample = clean / latent.scaling_factor + latent.shift_factor
        if tile is None or max(sample.shape[1:]) * latent.downscale <= tile:
            signal = self._decode_signal(sample)
        else:
            signal = decode_tiled(self._decode_signal, sample, tile // latent.downscale, latent.downscale)
        _check_finite(DECODER, signal)
        return to_pixels(signal)

    def run(self, component: str, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """One call of the network of that name, or several where it is opened for smaller batches; see `buckets`.

        On arrays of the pipeline's own kind it answers with such arrays, which its next call may overwrite.
        """
        is_numpy = all(isinstance(array, np.ndarray) for array in feeds.values()) or self.arrays is NUMPY
        arrays = NUMPY if is_numpy else self.arrays
        if not is_numpy:
            feeds = {name: arrays.placed(fed) if isinstance(fed, np.ndarray) else fed for name, fed in feeds.items()}

        def once(fed: Mapping[str, Any]) -> Mapping[str, Any]:
            runner: Any = self.runner(component, {name: tuple(array.shape) for name, array in fed.items()})
            answers: Mapping[str, Any] = runner(fed) if is_numpy else runner.stay(fed)
            return answers

        rows = self._runners.batch_sizes(component)
        return run_split(feeds, rows, arrays, once) if rows else once(feeds)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes of batches that the U-Net is opened for; empty where any is as good."""
        return self._runners.batch_sizes(FULL if self.manifest.step_cache else UNET)

    def runner(self, component: str, shapes: Mapping[str, tuple[int, ...]]) -> Runner:
        """The network of that name, opened for these shapes where it needs to know them; see `Runners`."""
        return self._runners.get(component, shapes)

    @cached_property
    def arrays(self) -> Arrays:
        """Where pictures lie that are being made: everything that a draft holds is of these.

        NumPy's, or where the U-Net runs on torch, its tensors on that device. `arrays.read` makes NumPy's of them.
        """
        return self._runners.arrays()

    @cached_property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """One for each text encoder."""
        return tuple(open_tokenizer(self.directory / name) for name in self.manifest.tokenizers)

    @cached_property
    def _shallow_inputs(self) -> tuple[str, ...]:
        return tuple(read_signature(self._runners.graph(SHALLOW), external=False).inputs)

    def _encode(self, *texts: bytes) -> Mapping[str, Array]:
        encoders = [name for name in ("text_encoder", "text_encoder_2") if name in self.manifest.components]
        outputs = [
            self.run(name, {"input_ids": np.frombuffer(ids, np.int64)[None]})
            for name, ids in zip(encoders, texts, strict=True)
        ]
        for name, output in zip(encoders, outputs, strict=True):
            for array in output.values():
                _check_finite(name, array)
        states = np.concatenate([output["last_hidden_state"][0] for output in outputs], axis=-1)
        encoded = {"encoder_hidden_states": states}
        if "text_embeds" in outputs[-1]:
            encoded["text_embeds"] = outputs[-1]["text_embeds"][0]
        for array in encoded.values():
            array.flags.writeable = False
        return encoded

    def _decode_signal(self, sample: Array) -> Array:
        signal: Array = self.run(DECODER, {"latent_sample": sample[None]})["sample"][0]
        return signal

    def _encode_signal(self, signal: Array) -> Array:
        latent = self.manifest.latent
        mean: Array = self.run(ENCODER, {"sample": signal[None]})["mean"][0]
        _check_finite(ENCODER, mean)
        return (mean - latent.shift_factor) * latent.scaling_factor

    def _noise(self, request: ImageRequest, noise: Array | None) -> Array:
        assert request.width is not None and request.height is not None
        latent = self.manifest.latent
        shape = (latent.channels, request.height // latent.downscale, request.width // latent.downscale)
        if noise is None:
            return gaussian(request.seed, INITIAL_STEP, shape)
        if noise.shape != shape or noise.dtype != np.float32:
            raise InvalidRequest(f"noise is {noise.dtype} {list(noise.shape)}", allowed=f"float32 {list(shape)}")
        return noise

    def _conditioning(self, request: ImageRequest, encoded: Mapping[str, Array]) -> Conditioning:
        """The U-Net's inputs beside latents and timestep."""
        conditioning: dict[str, NDArray[Any]] = dict(encoded)
        if self.manifest.family == "stable-diffusion-xl":
            size = (request.height, request.width)
            conditioning["time_ids"] = np.array([*size, 0, 0, *size], np.float32)
        if channels := self.manifest.guidance_channels:
            assert request.guidance is not None
            conditioning["timestep_cond"] = embed_guidance(request.guidance, channels)
        return conditioning

    def _unconditional(self, request: ImageRequest, conditioning: Conditioning) -> Conditioning:
        if request.negative_prompt or not self.manifest.zero_negative:
            return self._conditioning(request, self.encode_prompt(request.negative_prompt))
        zeros = {name: np.zeros_like(conditioning[name]) for name in ("encoder_hidden_states", "text_embeds")}
        return {**conditioning, **zeros}

    def _start_from_image(
        self, draft: ImageTrajectory, image: Picture, mask: NDArray[np.uint8] | None, noise: Array
    ) -> None:
        """Start from the image's latents; where it is masked, show the U-Net what stays, or keep it without its help.

        With a mask and strength 1 nothing of the image is in the noise, as in diffusers.
        """
        from_noise = mask is not None and draft.request.strength == 1
        if not (from_noise and self.manifest.is_inpainting):
            known = self.encode_image(image)
            if not from_noise:
                first = draft.plan.grid.levels[0]
                draft.latents = add_noise(known, noise, first.alpha, first.sigma)
            if mask is not None and not self.manifest.is_inpainting:
                draft.blend = InpaintBlend(known, self._latent_mask(mask), noise)
        if mask is not None and self.manifest.is_inpainting:
            masked = self._encode_signal(normalize_pixels(image) * (mask <= MASK_THRESHOLD))
            draft.extra_channels = np.concatenate([self._latent_mask(mask), masked])

    def _backend_errors(self, verb: str) -> AbstractContextManager[None]:
        """Whatever an engine raises over its own arrays is told as its network's failures are."""
        return nullcontext() if self.arrays is NUMPY else self._runners.backend_errors(verb)

    def _to_device(self, draft: ImageTrajectory) -> None:
        """Bring everything that a draft holds to where it is drawn, once."""
        placed = self.arrays.placed
        draft.latents = placed(draft.latents)
        draft.conditioning, draft.unconditional = (
            {name: placed(array) for name, array in inputs.items()}
            for inputs in (draft.conditioning, draft.unconditional)
        )
        if draft.extra_channels is not None:
            draft.extra_channels = placed(draft.extra_channels)
        if keep := draft.blend:
            draft.blend = InpaintBlend(placed(keep.clean), placed(keep.mask), placed(keep.noise))

    def _latent_mask(self, mask: NDArray[np.uint8]) -> Array:
        """1 where it is repainted, float32 [1, h, w]: the first pixel of each latent decides."""
        downscale = self.manifest.latent.downscale
        return (mask[None, ::downscale, ::downscale] > MASK_THRESHOLD).astype(np.float32)


def embed_guidance(guidance: float, channels: int) -> Array:
    """The sinusoid by which a guidance-distilled network is told its scale, float32 [channels] (arXiv 2310.04378).

    As diffusers' `get_guidance_scale_embedding` of guidance - 1.
    """
    half = channels // 2
    frequencies = np.exp(np.arange(half) * -(np.log(10_000.0) / (half - 1)))
    angles = 1000 * (guidance - 1) * frequencies
    embedded = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(channels % 2)])
    return embedded.astype(np.float32)


def _check_finite(network: str, answer: Array) -> None:
    if not np.isfinite(answer).all():
        precision = "`--precision f32`, " if network == UNET else ""
        raise BackendFailed(
            f"{network} answered with NaN or infinity, of which no picture can be made",
            fix=f"try {precision}another `--backend`, or the pipeline before it was accelerated",
        )
