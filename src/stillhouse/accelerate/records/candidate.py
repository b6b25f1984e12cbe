"""A candidate: one configuration (backend, precision, options) of a network or a whole pipeline, to be measured."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from stillhouse.backends.registry import find_backend

DECODER = "decoder"
NETWORK = "network"
"""Component name of a single ONNX file that is accelerated without a pipeline."""
PIPELINE = "pipeline"
"""Component name of candidates for the whole pipeline: other sampling options, or a distilled student in its place."""
GRAPH_RECIPES = ("f16", "fp8-static", "int8-static", "int8-dynamic", "uint8-dynamic", "int8-weights", "int4-weights")
"""Recipes (conversions of a network) that write a new graph. Candidates of other recipes open an existing graph."""
BASELINE_OPTIONS: Mapping[str, str] = {"spinning": "1"}
"""Options of the baseline: those that a user of onnxruntime has without setting any. Threads that wait spin."""
DISTILLED = "distilled"
"""Recipe name of candidates that take a distilled student's networks: its decoder only, or the whole pipeline."""

SAMPLING = "sampling"
"""Recipe name of pipeline candidates that run the chosen networks with other sampling options."""

BATCH_DEPENDENT = "its quantization scale spans the batch, so a picture would depend on the other pictures in the batch"
"""Reason that the report gives for rejecting a pipeline's quantized network that computes one scale for a whole batch.
"""
_OTHER_RECIPES = ("f32", DISTILLED, SAMPLING, "baseline")
"""Recipe names of candidates that open an existing graph, so that no graph is built."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration, to be measured, of a component (a network of a pipeline) or of a whole pipeline.

    Args:
        component: denoiser, decoder, text_encoder, ...; "network" for a single ONNX file; "pipeline" for a
            configuration of the whole pipeline (a pipeline candidate).
        backend: onnxruntime, openvino, torch, ...; "stillhouse" for a pipeline candidate.
        recipe: how the graph is made: `f32` (unchanged), `f16`, `fp8-static`, `int8-static`, `int8-dynamic`,
            `uint8-dynamic`, `int8-weights`, `int4-weights`, `distilled`. For a pipeline candidate: `sampling` (other
            sampling options), `distilled`, or `baseline` (only a reference for comparisons).
        precision: compute precision requested from the backend: f32, bf16, f16, auto.
        options: settings of the backend (threads, streams, shapes=static, attention, layers, memory_format, compile,
            kernels, rows; on a GPU also device, graphs, provider, offload, batches, axes); `tile`, the side in pixels
            of a decoder's tiles; `student`, the name of a distilled student; for a pipeline candidate the sampling
            options that it changes (sampler, steps, guidance_interval, cache_interval), and the names of the networks
            with which it was measured (denoiser, decoder); networks that it does not name are the chosen ones.
        keep: names of nodes that a quantization recipe leaves in float.

    >>> Candidate("denoiser", "openvino", "int8-static", options={"streams": "2"}).name
    'openvino int8-static, streams 2'
    """

    component: str
    backend: str
    recipe: str = "f32"
    precision: str = "f32"
    options: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return a readable name that no other candidate of the same component has."""
        precision = [] if self.precision in ("f32", self.recipe) else [self.precision]
        float_nodes = [f"{len(self.keep)} nodes in float"] if self.keep else []
        options = [f"{name.replace('_', ' ')} {value}" for name, value in sorted(self.options.items())]
        return ", ".join([f"{self.backend} {self.recipe}", *precision, *options, *float_nodes])

    @property
    def is_on_gpu(self) -> bool:
        """Return whether the candidate runs on a GPU."""
        return "provider" in self.options or self.options.get("device", "cpu") != "cpu"

    @property
    def makes_graph(self) -> bool:
        """Return whether a new graph must be built, for example by quantization, before the candidate can be opened."""
        return self.recipe not in _OTHER_RECIPES

    @property
    def needs_calibration(self) -> bool:
        """Return whether the graph is quantized with ranges of activations that recorded inputs give."""
        return self.recipe.endswith("-static")

    @property
    def is_batch_dependent(self) -> bool:
        """Return whether the quantized network's output for one picture depends on the other pictures of its batch.

        The result is always False for a single ONNX file.
        """
        if not self.makes_graph or self.component == NETWORK:
            return False
        recipe = find_backend(self.backend).recipes.get(self.recipe)
        return recipe is not None and recipe.is_batch_dependent

    @property
    def key(self) -> str:
        """Return a name of letters, digits and dashes for the candidate's folder, unique within the component."""
        return self._folder_name((self.precision, sorted(self.options.items()), self.keep))

    @property
    def artifact_key(self) -> str:
        """Return a name for the folder of the graph that is built for the candidate; equal graphs have equal names."""
        return self._folder_name((self.keep, self.options["student"]) if self.recipe == DISTILLED else self.keep)

    def _folder_name(self, facts: object) -> str:
        text = repr((self.backend, self.recipe, facts))
        stem = "".join(char if char.isalnum() else "-" for char in f"{self.backend}-{self.recipe}")
        return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
