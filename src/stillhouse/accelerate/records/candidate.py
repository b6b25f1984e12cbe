"""A candidate: one way to run one component, before anything is known of it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

DECODER = "vae_decoder"
NETWORK = "network"
"""The component that a bare ONNX file is."""
PIPELINE = "pipeline"
"""The component of candidates that change how a whole picture is made, and no single network."""
GRAPH_RECIPES = ("f16", "fp8-static", "int8-static", "int8-dynamic", "uint8-dynamic", "int8-weights", "int4-weights")
"""Recipes that make a graph of the component's own; with any other that one is opened as it is."""
DISTILLED = "distilled"
"""The recipe of what a student has in its teacher's place: its decoder, or itself where the whole picture is made."""

BATCH_DEPENDENT = "it takes one scale over a whole batch, so that a picture would depend on who is drawn beside it"
"""What is wrong with a network in a pipeline whose rows are not independent of each other."""
_BATCH_DEPENDENT_RECIPES = ("int8-dynamic", "uint8-dynamic")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run one component.

    Args:
        component: unet, vae_decoder, text_encoder, ...; `network` for a bare ONNX file; `pipeline` for the way in
            which a whole picture is made.
        backend: onnxruntime, openvino, torch; for a pipeline candidate `stillhouse`.
        recipe: what is made of the graph: `f32` (as it is), `f16`, `fp8-static`, `int8-static`, `int8-dynamic`,
            `uint8-dynamic`, `int8-weights`, `int4-weights`, `distilled`; for a pipeline candidate `sampling` or
            `distilled`, or `baseline` where it is only compared with.
        precision: what the runtime is asked to compute in: f32, bf16, f16, auto.
        options: how it is opened (threads, streams, shapes=static, attention, memory_format, compile, kernels, rows;
            on a GPU device, graphs, provider, offload, batches, axes), how much a
            decoder sees at once (tile, in pixels a side) or, for a pipeline candidate, what it changes (sampler,
            steps, guidance_interval, cache_interval); whose it is, where it was distilled (student).
        keep: names of the nodes that stay as they are while the rest is quantised.

    >>> Candidate("unet", "openvino", "int8-static", options={"streams": "2"}).name
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
        """What a table calls it, within its component."""
        asked = [] if self.precision in ("f32", self.recipe) else [self.precision]
        kept = [f"{len(self.keep)} nodes kept"] if self.keep else []
        told = [f"{name.replace('_', ' ')} {value}" for name, value in sorted(self.options.items())]
        return ", ".join([f"{self.backend} {self.recipe}", *asked, *told, *kept])

    @property
    def is_on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return "provider" in self.options or self.options.get("device", "cpu") != "cpu"

    @property
    def is_batch_dependent(self) -> bool:
        """Whether a picture would depend on the others in its batch."""
        return self.recipe in _BATCH_DEPENDENT_RECIPES and self.component != NETWORK

    @property
    def key(self) -> str:
        """A name for its folder: letters, digits and dashes; differs where candidates differ."""
        return self._folder_name((self.precision, sorted(self.options.items()), self.keep))

    @property
    def artifact_key(self) -> str:
        """A name for the folder of the graph that its recipe makes; candidates that open it differently share it."""
        return self._folder_name((self.keep, self.options["student"]) if self.recipe == DISTILLED else self.keep)

    def _folder_name(self, facts: object) -> str:
        told = repr((self.backend, self.recipe, facts))
        stem = "".join(letter if letter.isalnum() else "-" for letter in f"{self.backend}-{self.recipe}")
        return f"{stem}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
