"""A candidate: one configuration of one component, before it is measured."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from stillhouse.backends.registry import find_backend

DECODER = "decoder"
NETWORK = "network"
"""Name of the only component of a bare ONNX file."""
PIPELINE = "pipeline"
"""Component name of candidates that change how whole pictures are made (sampling variants, students)."""
GRAPH_RECIPES = ("f16", "fp8-static", "int8-static", "int8-dynamic", "uint8-dynamic", "int8-weights", "int4-weights")
"""Recipes that write a new graph. Candidates of other recipes open the component's own graph."""
DISTILLED = "distilled"
"""Recipe of a distilled student: its decoder, or the whole student for a pipeline candidate."""

BATCH_DEPENDENT = "its quantization scale spans the batch, so a picture would depend on the other pictures in the batch"
"""Rejection reason of a pipeline component whose output rows depend on the other rows of the batch."""
_OTHER_RECIPES = ("f32", DISTILLED, "sampling", "baseline")
"""Recipes that build no new graph from the component's own graph."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration of one component.

    Args:
        component: denoiser, decoder, text_encoder, ...; "network" for a bare ONNX file; "pipeline" for a configuration
            of whole pictures.
        backend: onnxruntime, openvino, torch, ...; "stillhouse" for a pipeline candidate.
        recipe: how the graph is made: `f32` (unchanged), `f16`, `fp8-static`, `int8-static`, `int8-dynamic`,
            `uint8-dynamic`, `int8-weights`, `int4-weights`, `distilled`. For a pipeline candidate `sampling`,
            `distilled`, or `baseline` (only a reference for comparisons).
        precision: compute precision requested from the backend: f32, bf16, f16, auto.
        options: settings of the backend (threads, streams, shapes=static, attention, memory_format, compile, kernels,
            rows; on a GPU device, graphs, provider, offload, batches, axes); `tile`, the side in pixels of a decoder's
            tiles; `student`, the name of a distilled student; for a pipeline candidate the changed request fields
            (sampler, steps, guidance_interval, cache_interval).
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
        """Return a readable name, unique within the component."""
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
        """Return whether the recipe builds a new graph from the component's own graph."""
        return self.recipe not in _OTHER_RECIPES

    @property
    def is_batch_dependent(self) -> bool:
        """Return whether a picture would depend on the other pictures in its batch."""
        if not self.makes_graph or self.component == NETWORK:
            return False
        recipe = find_backend(self.backend).recipes.get(self.recipe)
        return recipe is not None and recipe.is_batch_dependent

    @property
    def key(self) -> str:
        """Return a unique name for the candidate's folder: letters, digits and dashes."""
        return self._folder_name((self.precision, sorted(self.options.items()), self.keep))

    @property
    def artifact_key(self) -> str:
        """Return a name for the folder of the recipe's graph. Candidates with equal graphs share it."""
        return self._folder_name((self.keep, self.options["student"]) if self.recipe == DISTILLED else self.keep)

    def _folder_name(self, facts: object) -> str:
        text = repr((self.backend, self.recipe, facts))
        stem = "".join(char if char.isalnum() else "-" for char in f"{self.backend}-{self.recipe}")
        return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
