"""The toy family's pipeline directory: small ONNX graphs, a vocabulary of words, and a manifest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from tokenizers import Tokenizer, models, pre_tokenizers

from stillhouse.diffusion import Schedule
from stillhouse.pipelines.manifest import Component, Defaults, Latent, Manifest, Sampling, write_manifest
from stillhouse.pipelines.roles import CONTROLNET, DECODER, DENOISER, TEXT_ENCODERS
from tests.backends.networks import Value, make_model, node, write_model
from tests.pipelines.families.toy_family import PATCH, TOY

CHANNELS, STATES, DOWNSCALE, MAX_TOKENS = 3, 8, 4, 32
TOKEN = CHANNELS * PATCH * PATCH
WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "big", "small", "left", "of")
HIDDEN: Value = ("hidden_states", ["B", "N", TOKEN])
TIMESTEP: Value = ("timestep", ["B"])
STATED: Value = ("encoder_hidden_states", ["B", "L", STATES])
MASKED: Value = ("encoder_attention_mask", ["B", "L"])
VELOCITY: Value = ("velocity", ["B", "N", TOKEN])


def draw(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Return weights of a layer with that many inputs."""
    normal = np.random.default_rng((seed, *shape)).standard_normal(shape)
    weights: NDArray[np.float32] = (normal / np.sqrt(shape[0])).astype(np.float32)
    return weights


def text_encoder() -> onnx.ModelProto:
    """The embedding of each token, 0 for padding."""
    nodes = [
        node("Gather", ["embedding", "input_ids"], ["embedded"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["column"]),
        node("Mul", ["embedded", "column"], ["states"]),
    ]
    inputs: list[Value] = [(name, ["B", "L"], TensorProto.INT64) for name in ("input_ids", "attention_mask")]
    weights = {"embedding": draw(len(WORDS), STATES), "last": np.array([2])}
    return make_model(nodes, inputs, [("states", ["B", "L", STATES])], weights)


CONTROL = [
    node("Unsqueeze", ["timestep", "axes"], ["control_time"]),
    node("MatMul", ["hidden_states", "control.weight"], ["controlled"]),
    node("Mul", ["controlled", "control_time"], ["residual"]),
]
CONTROL_WEIGHTS = {"control.weight": draw(TOKEN, TOKEN, seed=1), "axes": np.array([1, 2])}


def control_network() -> onnx.ModelProto:
    """A residual of every token, which grows with the time."""
    return make_model(CONTROL, [HIDDEN, TIMESTEP], [("residual", ["B", "N", TOKEN])], CONTROL_WEIGHTS)


def transformer(control: str = "") -> onnx.ModelProto:
    """Cross attention from tokens to the text.

    Args:
        control: "input" adds a residual that is an input, "inside" the one that `control_network` would give.
    """
    nodes = [
        node("MatMul", ["hidden_states", "query.weight"], ["query"]),
        node("Transpose", ["encoder_hidden_states"], ["keys"], perm=[0, 2, 1]),
        node("MatMul", ["query", "keys"], ["products"]),
        node("Sub", ["encoder_attention_mask", "one"], ["absent"]),
        node("Mul", ["absent", "large"], ["penalty"]),
        node("Unsqueeze", ["penalty", "middle"], ["bias"]),
        node("Add", ["products", "bias"], ["scores"]),
        node("Softmax", ["scores"], ["shares"], axis=-1),
        node("MatMul", ["shares", "encoder_hidden_states"], ["mixed"]),
        node("MatMul", ["mixed", "out.weight"], ["attended"]),
        node("Unsqueeze", ["timestep", "axes"], ["time"]),
        node("Mul", ["hidden_states", "time"], ["scaled"]),
        node("Add", ["attended", "scaled"], ["summed" if control else "velocity"]),
    ]
    weights: dict[str, NDArray[Any]] = {
        "query.weight": draw(TOKEN, STATES),
        "out.weight": draw(STATES, TOKEN),
        "one": np.array(1, np.float32),
        "large": np.array(1e4, np.float32),
        "middle": np.array([1]),
        "axes": np.array([1, 2]),
    }
    inputs = [HIDDEN, TIMESTEP, STATED, MASKED]
    if control:
        nodes.append(node("Add", ["summed", "control" if control == "input" else "residual"], ["velocity"]))
    if control == "input":
        inputs.append(("control", ["B", "N", TOKEN]))
    if control == "inside":
        nodes, weights = [*CONTROL, *nodes], {**weights, **CONTROL_WEIGHTS}
    return make_model(nodes, inputs, [VELOCITY], weights)


def decoder() -> onnx.ModelProto:
    """Nearest pixels of a mixture of channels."""
    nodes = [
        node("Conv", ["latents", "mix.weight"], ["mixed"]),
        node("Resize", ["mixed", "", "scales"], ["picture"], mode="nearest"),
    ]
    weights = {
        "mix.weight": draw(CHANNELS, 3)[..., None, None],
        "scales": np.array([1, 1, DOWNSCALE, DOWNSCALE], np.float32),
    }
    return make_model(nodes, [("latents", ["B", CHANNELS, "h", "w"])], [("picture", ["B", 3, "H", "W"])], weights)


def write_toy(directory: Path, control: str = "") -> Path:
    """Write a pipeline of the toy family; `control` as for `transformer`, with a control network for "input"."""
    graphs = {TEXT_ENCODERS[0]: text_encoder(), DENOISER: transformer(control), DECODER: decoder()}
    if control == "input":
        graphs[CONTROLNET] = control_network()
    folders = {DENOISER: "transformer"}
    components = {}
    for role, graph in graphs.items():
        path = f"{folders.get(role, role)}/model.onnx"
        (directory / path).parent.mkdir(parents=True)
        write_model(graph, directory / path)
        components[role] = Component(path, path)
    write_tokenizer(directory / "tokenizer")
    manifest = Manifest(
        name="toy",
        family=TOY.name,
        components=components,
        tokenizers={TEXT_ENCODERS[0]: "tokenizer"},
        sampling=Sampling(Schedule("flow"), "flow", "trailing"),
        latent=Latent(CHANNELS, 1.0, 0.0, DOWNSCALE, PATCH, mean=(0.1, -0.2, 0.3), std=(0.5, 0.25, 1.5)),
        granularity=DOWNSCALE * PATCH,
        defaults=Defaults(steps=4, guidance=3.0, sampler="flow_euler", width=32, height=24),
        family_options={"text_step": 8, "max_tokens": MAX_TOKENS},
    )
    write_manifest(directory, manifest)
    return directory


def write_tokenizer(directory: Path) -> None:
    """One word a token, an end token, no start token."""
    directory.mkdir()
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": None, "eos_token": "</s>", "pad_token": "<pad>", "model_max_length": MAX_TOKENS}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
