"""An open pipeline, which starts, advances and finishes pictures. This module does not need torch."""

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
from stillhouse.pipelines.batch_sizes import run_split
from stillhouse.pipelines.families import find_family
from stillhouse.pipelines.families.base import Context, Family, Tensors, latent_shape, to_pixels
from stillhouse.pipelines.manifest import Component, Defaults, Manifest, StepCache, read_manifest
from stillhouse.pipelines.resolve import Resolved, resolve
from stillhouse.pipelines.roles import DENOISER, DENOISER_FULL, DENOISER_SHALLOW, TEXT_ENCODERS
from stillhouse.pipelines.runners import Runners, override_manifest
from stillhouse.pipelines.tiled_decode import decode_tiled
from stillhouse.pipelines.tokenizers import Tokenizer, open_tokenizer

CACHED_PROMPTS = 64
"""Number of encoded prompts that an open pipeline caches."""


@dataclass(slots=True, kw_only=True)
class ImageTrajectory(Trajectory):
    """A trajectory with the request for its picture.

    Args:
        request: the request, with every default filled in.
        started: time of the start in seconds, from `time.perf_counter`.
    """

    request: ImageRequest
    started: float


class Pipeline:
    """An open pipeline: generates pictures with the networks of a pipeline directory.

    Each network is opened when it is first needed. A picture depends on its request only, not on the other pictures of
    its batch. Use a pipeline from one thread at a time.

    Args:
        directory: directory with `stillhouse.json`.
        backend: backend of every component; None: as in the manifest.
        precision: precision of the denoiser, which does nearly all of the work; None: as in the manifest.
        threads: most threads of each network; None: as in the manifest, or else the runtime's default.
        cache: directory for compiled networks, for runtimes that store them.
        verify: whether every file is hashed first; see `read_manifest`.
        manifest: replaces the manifest of the directory; None: the directory's.
        components: graph, backend and precision of networks, by role, in place of the manifest's; graphs outside of the
            directory have absolute paths.
        defaults: replace the manifest's defaults; None: the manifest's.
        step_cache: the graphs for feature caching that the denoiser was split into, in place of the manifest's; None:
            the manifest's, or none where `components` has another graph for the denoiser.

    Raises:
        InvalidRequest: `components` has a role that the manifest does not have.
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
        """Check a request, and return it with every default filled in and with its sampling plan."""
        return resolve(self.manifest, request)

    def start(self, request: ImageRequest | Resolved, *, noise: Array | None = None) -> ImageTrajectory:
        """Start a picture: encode its prompt and image, and make its first latents, on the pipeline's device.

        An `ImageRequest` is resolved first. `noise` is standard normal noise, float32 [channels, height / downscale,
        width / downscale]; None: noise of the request's seed.

        Raises:
            InvalidRequest: this pipeline cannot serve the request, or the noise has another shape or dtype.
            RuntimeMissing, BackendFailed: a network cannot run on this machine, or there is too little memory.
        """
        started = time.perf_counter()
        resolved = request if isinstance(request, Resolved) else self.resolve(request)
        start = self._family.prepare(
            self._context(resolved), resolved.request, self._noise(resolved.request, noise), resolved.plan
        )
        with self._backend_errors("begin a picture with"):
            branches = {name: self._branch_to_device(branch) for name, branch in start.branches.items()}
            effects = tuple(effect.to_device(self.arrays) for effect in start.effects)
            latents = self.arrays.to_device(start.latents)
        return ImageTrajectory(resolved.plan, latents, branches, effects, request=resolved.request, started=started)

    def advance(self, trajectories: Sequence[Trajectory]) -> None:
        """Move every picture of a batch by one evaluation of the denoiser; see `diffusion.advance`.

        Where the denoiser is split for feature caching, the split graphs run even for pictures with cache_interval 1,
        so that a picture does not depend on the other pictures of its batch. A GPU may still compute after the return;
        see `synchronize`.
        """
        denoise = SplitDenoiser(self._full, self._shallow) if self.manifest.step_cache else self.denoise
        with self._backend_errors("advance pictures with"):
            advance(trajectories, denoise, self.arrays)

    def synchronize(self) -> None:
        """Wait until the device has done the work of all calls of `advance`, for example before a time is measured.

        Raises:
            BackendFailed: the device failed since the last call; the pictures that were advanced since then are lost.
        """
        with self._backend_errors("run"):
            self.arrays.synchronize()

    def finish(self, trajectory: ImageTrajectory) -> ImageResult:
        """Decode a picture that is done, and return it with its request and the seconds since its start.

        Raises:
            InvalidRequest: the picture is not done.
            BackendFailed: as in `decode`.
        """
        if not trajectory.is_done:
            raise InvalidRequest(
                f"the picture is not done: {trajectory.index} of {trajectory.evaluation_count} evaluations have run",
                allowed="a picture that is done",
            )
        image = self.decode(trajectory.latents)
        return ImageResult(image, trajectory.request, time.perf_counter() - trajectory.started)

    def set_adapters(self, adapters: Sequence[str]) -> None:
        """Replace the LoRA files that are active in this pipeline; an empty list removes all of them.

        Each text is `FILE` or `FILE:WEIGHT`. No network is compiled again. The backend of each changed network must be
        able to change weights; see `pipelines.adapters`.

        Raises:
            ImportFailed: a file is not a LoRA, or was made for another network; the active adapters do not change.
            InvalidRequest: the backend of a changed network cannot change weights, or not with its settings.
            BackendFailed: a runtime failed to change the weights.

        >>> pipeline.set_adapters(["style.safetensors:0.8"])  # doctest: +SKIP
        """
        self._runners.set_adapters(adapters)
        self._encoded.cache_clear()

    def generate(self, prompt: str, **fields: Any) -> ImageResult:
        """Generate one picture.

        Args:
            prompt: text that describes the picture.
            fields: other fields of `ImageRequest`.

        Raises:
            InvalidRequest: a field does not exist, or this pipeline cannot serve a value.
            RuntimeMissing, BackendFailed: as in `start`, `advance` and `decode`.
        """
        for name in fields:
            check_choice("request field", name, ImageRequest.__dataclass_fields__)
        trajectory = self.start(ImageRequest(prompt, **fields))
        for _ in self.steps([trajectory]):
            pass
        return self.finish(trajectory)

    def steps(self, trajectories: Sequence[Trajectory]) -> Iterator[Sequence[Trajectory]]:
        """Advance pictures until all of them are done. After each evaluation, yield the pictures that it advanced."""
        while moving := [trajectory for trajectory in trajectories if not trajectory.is_done]:
            self.advance(moving)
            yield moving

    def denoise(self, latents: Array, timesteps: Array, conditioning: Conditioning) -> Array:
        """Return the denoiser's prediction [R, C, h, w] for latents [R, C, h, w] at timesteps [R].

        `conditioning` holds the denoiser's other inputs by name, [R, ...].
        """
        outputs = self._run_calls(DENOISER, self._family.feeds(latents, timesteps, conditioning))
        return self._family.read(outputs, latents)

    def _full(self, latents: Array, timesteps: Array, conditioning: Conditioning) -> tuple[Array, NDArray[Any]]:
        outputs = self._run_calls(DENOISER_FULL, self._family.feeds(latents, timesteps, conditioning))
        return self._family.read(outputs, latents), outputs["deep"]

    def _shallow(self, latents: Array, timesteps: Array, conditioning: Conditioning, deep: NDArray[Any]) -> Array:
        feeds = {**self._family.feeds(latents, timesteps, conditioning), "deep": deep}
        return self._family.read(self._run_calls(DENOISER_SHALLOW, feeds, self._shallow_inputs), latents)

    def _run_calls(self, denoiser: str, feeds: Tensors, inputs: Sequence[str] = ()) -> Tensors:
        """Run the networks of one evaluation in order, and return the denoiser's outputs by name.

        Args:
            denoiser: role of the last network: the denoiser, or one of the graphs that it was split into.
            feeds: inputs of all these networks by name, from `Family.feeds`.
            inputs: names of the denoiser's inputs; empty: as the family's `NetworkCall` says.
        """
        available = dict(feeds)
        *earlier, last = self._family.calls(self.manifest)
        for call in earlier:
            outputs = self.run(call.role, {name: available[name] for name in call.inputs or feeds})
            available |= {call.outputs[name]: outputs[name] for name in call.outputs}
        return self.run(denoiser, {name: available[name] for name in inputs or last.inputs or available})

    def encode_prompt(self, text: str, key: tuple[int, ...] = ()) -> Conditioning:
        """Return the denoiser's inputs for a text, by name and without batch axis. The latest results are cached.

        Args:
            text: a prompt.
            key: the request's values of `Family.batch_key`, such as the length to which texts are padded.

        Warns:
            PromptTruncated: the text is longer than a text encoder reads.
        """
        return self._encoded(_freeze(self._family.tokenize(self.tokenizers, text, key)))

    def encode_image(self, picture: Picture) -> Array:
        """Return the normalised latents of a picture, float32 [C, height / downscale, width / downscale]."""
        return self._family.encode_image(self._context(), picture)

    def decode(self, latents: Array) -> Picture:
        """Decode clean latents [C, h, w] to a picture; a picture larger than the manifest's tile is decoded in tiles.

        Raises:
            BackendFailed: a network returned NaN or infinity, as some networks do in half precision.
        """
        latent, tile = self.manifest.latent, self.manifest.defaults.tile
        clean: Array = latents if isinstance(latents, np.ndarray) else self.arrays.to_numpy(latents)
        _check_finite(DENOISER, clean)
        decode = partial(self._family.decode, self._context())
        if tile is None or max(clean.shape[1:]) * latent.downscale <= tile:
            return to_pixels(decode(clean))
        return to_pixels(decode_tiled(decode, clean, tile // latent.downscale, latent.downscale))

    def run(self, component: str, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """Run the network of role `component` on inputs with batch axis (`feeds`), and return its outputs, all by name.
        A batch is split and padded where the network has static batch sizes; see `batch_sizes`. Outputs are NumPy
        arrays if all inputs are, and otherwise arrays on the pipeline's device, which the next call may overwrite.
        """
        is_numpy = all(isinstance(array, np.ndarray) for array in feeds.values()) or self.arrays is NUMPY
        arrays = NUMPY if is_numpy else self.arrays
        if not is_numpy:
            feeds = {
                name: arrays.to_device(array) if isinstance(array, np.ndarray) else array
                for name, array in feeds.items()
            }

        def run_part(part: Mapping[str, Any]) -> Mapping[str, Any]:
            runner: Any = self.runner(component, {name: tuple(array.shape) for name, array in part.items()})
            outputs: Mapping[str, Any] = runner(part) if is_numpy else runner.run_on_device(part)
            return outputs

        sizes = self._runners.batch_sizes(component, {name: tuple(array.shape) for name, array in feeds.items()})
        return run_split(feeds, sizes, arrays, run_part) if sizes else run_part(feeds)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Static batch sizes of the denoiser at the default size, rising; empty where it takes batches of any size."""
        return self._runners.batch_sizes(DENOISER_FULL if self.manifest.step_cache else DENOISER)

    def runner(self, component: str, shapes: Mapping[str, tuple[int, ...]]) -> Runner:
        """Return the opened network of a role.

        Args:
            component: role of the network, for example denoiser.
            shapes: shapes of its inputs by name, for which a static network is opened.
        """
        return self._runners.get(component, shapes)

    @cached_property
    def arrays(self) -> Arrays:
        """The kind of arrays that pictures are denoised in: NumPy arrays, or torch tensors on the denoiser's device.

        `arrays.to_numpy` converts such an array to a NumPy array.
        """
        return self._runners.arrays()

    @cached_property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        """The tokenizer of each text encoder, by the text encoder's role."""
        folders = self.manifest.tokenizers
        return {role: open_tokenizer(self.directory / folders[role]) for role in TEXT_ENCODERS if role in folders}

    @cached_property
    def _family(self) -> Family:
        return find_family(self.manifest.family)

    @cached_property
    def _shallow_inputs(self) -> tuple[str, ...]:
        return tuple(read_signature(self._runners.graph(DENOISER_SHALLOW), external=False).inputs)

    def _branch_to_device(self, branch: Branch) -> Branch:
        to_device = self.arrays.to_device
        inputs = {name: to_device(array) for name, array in branch.inputs.items()}
        return Branch(inputs, None if branch.channels is None else to_device(branch.channels))

    def _context(self, resolved: Resolved | None = None) -> Context:
        key = resolved.batch_key[2:] if resolved else ()
        return Context(self.manifest, self._run_finite, partial(self.encode_prompt, key=key))

    def _run_finite(self, component: str, feeds: Tensors) -> Tensors:
        outputs = self.run(component, feeds)
        for array in outputs.values():
            _check_finite(component, array)
        return outputs

    def _encode(self, tokens: "_FrozenTokens") -> Conditioning:
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
        """Return a context manager in which exceptions of the denoiser's runtime become BackendFailed.

        `verb`, such as "run", becomes part of the error's message: the backend could not run the graph.
        """
        return nullcontext() if self.arrays is NUMPY else self._runners.backend_errors(verb)


@dataclass(frozen=True, slots=True)
class _FrozenTokens:
    """Inputs of text encoders in a form that can be the key of a cache.

    Args:
        inputs: for each input, the role of the text encoder, and the input's name, dtype, shape and bytes.
    """

    inputs: tuple[tuple[str, str, str, tuple[int, ...], bytes], ...]

    def thaw(self) -> Mapping[str, Tensors]:
        """Return the inputs as arrays, by role of the text encoder and then by name."""
        tokens: dict[str, dict[str, NDArray[Any]]] = {}
        for role, name, dtype, shape, content in self.inputs:
            tokens.setdefault(role, {})[name] = np.frombuffer(content, dtype).reshape(shape)
        return tokens


def _freeze(tokens: Mapping[str, Tensors]) -> _FrozenTokens:
    return _FrozenTokens(
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
            f"{component} returned NaN or infinity, so no picture can be made",
            fix=f"try {precision}another `--backend`, or the pipeline before it was accelerated",
        )
