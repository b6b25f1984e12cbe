"""A pipeline in memory: it starts, advances and finishes pictures. Nothing here needs torch."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
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
    Branch,
    Conditioning,
    SplitDenoiser,
    Trajectory,
    advance,
    gaussian,
)
from stillhouse.errors import BackendFailed, InvalidRequest
from stillhouse.images.pixels import to_pixels
from stillhouse.pipelines.batch_sizes import run_split
from stillhouse.pipelines.families import find_family
from stillhouse.pipelines.families.base import Context, Family, Tensors, denormalize_latents, latent_shape
from stillhouse.pipelines.manifest import Component, Defaults, Manifest, StepCache, read_manifest
from stillhouse.pipelines.resolve import Resolved, resolve
from stillhouse.pipelines.roles import DENOISER, DENOISER_FULL, DENOISER_SHALLOW, TEXT_ENCODERS
from stillhouse.pipelines.runners import Runners, override_manifest
from stillhouse.pipelines.tiled_decode import decode_tiled
from stillhouse.pipelines.tokenizers import Tokenizer, open_tokenizer

CACHED_PROMPTS = 64
"""Encoded prompts that an open pipeline keeps."""


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
        precision: for the denoiser, which does nearly all of the work, instead of what the manifest says.
        threads: at most so many for each network, instead of what the manifest says; where neither says, the runtime.
        cache: directory for compiled networks, where the runtime keeps them.
        verify: hash every file first.
        manifest: instead of the directory's own.
        components: by name, instead of the manifest's; their graphs may lie anywhere, and then have absolute paths.
        defaults: instead of the manifest's.
        step_cache: instead of the manifest's, which is left out where `components` has another graph for the denoiser.

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

    def resolve(self, request: ImageRequest) -> Resolved:
        """Fill in every default and plan the trajectory; see `resolve.resolve`. Raises InvalidRequest."""
        return resolve(self.manifest, request)

    def start(self, request: ImageRequest | Resolved, *, noise: Array | None = None) -> ImageTrajectory:
        """Start a picture: encode its prompt and its image, and lay out its latents, on the pipeline's device.

        Args:
            request: one that is resolved is taken as it is.
            noise: standard normal, float32 [channels, height / downscale, width / downscale]; None draws it from
                the request's seed.

        Raises:
            InvalidRequest: what this pipeline cannot do, or noise of another shape.
            RuntimeMissing, BackendFailed: a network cannot be run here, or there is no memory for the picture.
        """
        started = time.perf_counter()
        resolved = request if isinstance(request, Resolved) else self.resolve(request)
        start = self._family.prepare(
            self._context(resolved), resolved.request, self._noise(resolved.request, noise), resolved.plan
        )
        with self._backend_errors("begin a picture with"):
            to_device = self.arrays.to_device
            branches = {
                name: Branch(
                    {key: to_device(array) for key, array in branch.inputs.items()},
                    None if branch.channels is None else to_device(branch.channels),
                )
                for name, branch in start.branches.items()
            }
            effects = tuple(effect.to_device(self.arrays) for effect in start.effects)
            latents = to_device(start.latents)
        return ImageTrajectory(resolved.plan, latents, branches, effects, request=resolved.request, started=started)

    def advance(self, trajectories: Sequence[Trajectory]) -> None:
        """Move every picture of a mixed batch by one evaluation of the denoiser; see `diffusion.advance`.

        Where the denoiser is split, every picture takes the full depth or the shallow one, whatever its cache_interval,
        so that the other pictures of the batch do not matter. A GPU may still be at it when this returns, see `settle`.
        """
        denoise = SplitDenoiser(self._full, self._shallow) if self.manifest.step_cache else self.denoise
        with self._backend_errors("advance pictures with"):
            advance(trajectories, denoise, self.arrays)

    def synchronize(self) -> None:
        """Return when every `advance` so far is done: for whoever measures, or must know.

        Raises:
            BackendFailed: a GPU failed since; its pictures are lost, though they seem to have moved.
        """
        with self._backend_errors("run"):
            self.arrays.synchronize()

    def finish(self, trajectory: ImageTrajectory) -> ImageResult:
        """Decode a picture that is done.

        Raises:
            InvalidRequest: the picture is not done.
            BackendFailed: as `decode`.
        """
        if not trajectory.is_done:
            raise InvalidRequest(
                f"a picture after {trajectory.index} of {trajectory.evaluation_count} evaluations",
                allowed="one that is done",
            )
        image = self.decode(trajectory.latents)
        return ImageResult(image, trajectory.request, time.perf_counter() - trajectory.started)

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
        """Generate one picture; `fields` are those of `ImageRequest`."""
        for name in fields:
            check_choice("request field", name, ImageRequest.__dataclass_fields__)
        trajectory = self.start(ImageRequest(prompt, **fields))
        for _ in self.steps([trajectory]):
            pass
        return self.finish(trajectory)

    def steps(self, trajectories: Sequence[Trajectory]) -> Iterator[Sequence[Trajectory]]:
        """Advance pictures until all are done, and give after each evaluation those that moved."""
        while moving := [trajectory for trajectory in trajectories if not trajectory.is_done]:
            self.advance(moving)
            yield moving

    def denoise(self, latents: Array, timesteps: Array, conditioning: Conditioning) -> Array:
        """Return the denoiser's prediction [R, C, h, w] for latents [R, C, h, w] at timesteps [R].

        `conditioning` holds the other inputs by name, [R, ...].
        """
        outputs = self._run_calls(DENOISER, self._family.feeds(latents, timesteps, conditioning))
        return self._family.read(outputs, latents)

    def _full(self, latents: Array, timesteps: Array, conditioning: Conditioning) -> tuple[Array, NDArray[Any]]:
        outputs = self._run_calls(DENOISER_FULL, self._family.feeds(latents, timesteps, conditioning))
        return self._family.read(outputs, latents), outputs["deep"]

    def _shallow(self, latents: Array, timesteps: Array, conditioning: Conditioning, deep: NDArray[Any]) -> Array:
        feeds = {**self._family.feeds(latents, timesteps, conditioning), "deep": deep}
        return self._family.read(
            self.run(DENOISER_SHALLOW, {name: feeds[name] for name in self._shallow_inputs}), latents
        )

    def _run_calls(self, denoiser: str, feeds: Tensors) -> Tensors:
        """Run the networks of an evaluation in order, the last one as `denoiser`; return its outputs."""
        available = dict(feeds)
        *earlier, last = self._family.calls(self.manifest)
        for call in earlier:
            outputs = self.run(call.role, {name: available[name] for name in call.inputs or feeds})
            available |= {call.outputs[name]: outputs[name] for name in call.outputs}
        return self.run(denoiser, {name: available[name] for name in last.inputs or available})

    def encode_prompt(self, text: str, key: tuple[int, ...] = ()) -> Conditioning:
        """Return the denoiser's inputs that follow from a text, without batch axis.

        The last `CACHED_PROMPTS` are kept. Warns with `PromptTruncated` about what does not fit. `key` is what the
        family adds to a batch key.
        """
        return self._encoded(_freeze(self._family.tokenize(self.tokenizers, text, key)))

    def encode_image(self, picture: Picture) -> Array:
        """Return a picture's latents, normalised: float32 [C, height / downscale, width / downscale]."""
        return self._family.encode_image(self._context(), picture)

    def decode(self, latents: Array) -> Picture:
        """Return the picture of clean latents [C, h, w]; in tiles where it is larger than the manifest's tile.

        Raises:
            BackendFailed: a network answered with NaN or infinity, as some do in half precision.
        """
        latent, tile = self.manifest.latent, self.manifest.defaults.tile
        clean: Array = latents if isinstance(latents, np.ndarray) else self.arrays.to_numpy(latents)
        _check_finite(DENOISER, clean)
        sample = denormalize_latents(latent, clean)
        decode = partial(self._family.decode, self._context())
        if tile is None or max(sample.shape[1:]) * latent.downscale <= tile:
            return to_pixels(decode(sample))
        return to_pixels(decode_tiled(decode, sample, tile // latent.downscale, latent.downscale))

    def run(self, component: str, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """One call of the network of that name, or several where it is opened for smaller batches; see `buckets`.

        On arrays of the pipeline's own kind it answers with such arrays, which its next call may overwrite.
        """
        is_numpy = all(isinstance(array, np.ndarray) for array in feeds.values()) or self.arrays is NUMPY
        arrays = NUMPY if is_numpy else self.arrays
        if not is_numpy:
            feeds = {name: arrays.to_device(fed) if isinstance(fed, np.ndarray) else fed for name, fed in feeds.items()}

        def once(fed: Mapping[str, Any]) -> Mapping[str, Any]:
            runner: Any = self.runner(component, {name: tuple(array.shape) for name, array in fed.items()})
            answers: Mapping[str, Any] = runner(fed) if is_numpy else runner.run_on_device(fed)
            return answers

        rows = self._runners.batch_sizes(component)
        return run_split(feeds, rows, arrays, once) if rows else once(feeds)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Batch sizes that the denoiser is opened for; empty where any size is as good."""
        return self._runners.batch_sizes(DENOISER_FULL if self.manifest.step_cache else DENOISER)

    def runner(self, component: str, shapes: Mapping[str, tuple[int, ...]]) -> Runner:
        """The network of that name, opened for these shapes where it needs to know them; see `Runners`."""
        return self._runners.get(component, shapes)

    @cached_property
    def arrays(self) -> Arrays:
        """Where pictures lie that are being made: everything that a draft holds is of these.

        NumPy's, or where the denoiser runs on torch, its tensors on that device. `arrays.read` makes NumPy's of them.
        """
        return self._runners.arrays()

    @cached_property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        """The tokenizer of each text encoder, by role."""
        folders = self.manifest.tokenizers
        return {role: open_tokenizer(self.directory / folders[role]) for role in TEXT_ENCODERS if role in folders}

    @cached_property
    def _family(self) -> Family:
        return find_family(self.manifest.family)

    @cached_property
    def _shallow_inputs(self) -> tuple[str, ...]:
        return tuple(read_signature(self._runners.graph(DENOISER_SHALLOW), external=False).inputs)

    def _context(self, resolved: Resolved | None = None) -> Context:
        key = resolved.batch_key[2:] if resolved else ()
        return Context(self.manifest, self._run_finite, partial(self.encode_prompt, key=key))

    def _run_finite(self, component: str, feeds: Tensors) -> Tensors:
        outputs = self.run(component, feeds)
        for array in outputs.values():
            _check_finite(component, array)
        return outputs

    def _encode(self, tokens: "_Tokens") -> Conditioning:
        encoded = self._family.encode_prompt(self._run_finite, tokens.thaw())
        for array in encoded.values():
            array.flags.writeable = False
        return encoded

    def _noise(self, request: ImageRequest, noise: Array | None) -> Array:
        assert request.width is not None and request.height is not None
        shape = latent_shape(self.manifest.latent, request.width, request.height)
        if noise is None:
            return gaussian(request.seed, INITIAL_STEP, shape)
        if noise.shape != shape or noise.dtype != np.float32:
            raise InvalidRequest(f"noise is {noise.dtype} {list(noise.shape)}", allowed=f"float32 {list(shape)}")
        return noise

    def _backend_errors(self, verb: str) -> AbstractContextManager[None]:
        """Report what a backend raises over its own arrays as its network's failures are reported."""
        return nullcontext() if self.arrays is NUMPY else self._runners.backend_errors(verb)


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Inputs of text encoders as a key of a cache: (role, input, dtype, shape, bytes) of each."""

    inputs: tuple[tuple[str, str, str, tuple[int, ...], bytes], ...]

    def thaw(self) -> Mapping[str, Tensors]:
        """Return the inputs by role and name."""
        tokens: dict[str, dict[str, NDArray[Any]]] = {}
        for role, name, dtype, shape, content in self.inputs:
            tokens.setdefault(role, {})[name] = np.frombuffer(content, dtype).reshape(shape)
        return tokens


def _freeze(tokens: Mapping[str, Tensors]) -> _Tokens:
    return _Tokens(
        tuple(
            (role, name, array.dtype.str, array.shape, array.tobytes())
            for role, feeds in tokens.items()
            for name, array in feeds.items()
        )
    )


def _check_finite(component: str, output: NDArray[Any]) -> None:
    if not np.isfinite(output).all():
        precision = "`--precision f32`, " if component == DENOISER else ""
        raise BackendFailed(
            f"{component} answered with NaN or infinity, of which no picture can be made",
            fix=f"try {precision}another `--backend`, or the pipeline before it was accelerated",
        )
