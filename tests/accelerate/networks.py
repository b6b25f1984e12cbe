"""ONNX files such as users have: random weights of realistic scale, under a megabyte, for onnxruntime and openvino.

Each builder writes a file to `path` and returns `path`; equal calls write equal bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.random import Generator
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, POSITIONS, WIDTH, HEADS, HIDDEN, BLOCKS = 1000, 64, 64, 4, 256, 2
ANCHORS, CLASSES = 3, 10
LATENT_CHANNELS, TEXT_WIDTH = 9, 32
FLOAT, INT64, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
EXTERNAL_BYTES = 1024
"""Size in bytes from which `external` stores a tensor outside the graph."""

ValueInfo = tuple[str, Sequence[int | str | None], int]


class GraphBuilder:
    """Builds a graph: `add_node` adds a node, `weight` an initializer; both return a name."""

    def __init__(self, seed: int) -> None:
        self.rng: Generator = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}

    def add_node(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"{kind.lower()}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{kind}_{len(self.nodes)}", **attributes))
        return name

    def constant(self, value: NDArray[Any] | Sequence[Any]) -> str:
        name = f"weight.{len(self.weights)}"
        self.weights[name] = np.asarray(value)
        return name

    def weight(self, *shape: int, gain: float = 1.0) -> str:
        """Gaussian, with the variance that preserves the scale of activations (He et al. 2015)."""
        fan = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        return self.constant((self.rng.standard_normal(shape) * gain / np.sqrt(fan)).astype(np.float32))

    def vector(self, size: int, mean: float = 0.0, spread: float = 0.1) -> str:
        return self.constant((mean + spread * self.rng.standard_normal(size)).astype(np.float32))

    def linear(self, x: str, inputs: int, outputs: int, gain: float = 1.0) -> str:
        return self.add_node(
            "Add", self.add_node("MatMul", x, self.weight(inputs, outputs, gain=gain)), self.vector(outputs)
        )

    def convolution(self, x: str, inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> str:
        weights = (self.weight(outputs, inputs, kernel, kernel, gain=2**0.5), self.vector(outputs))
        return self.add_node("Conv", x, *weights, strides=[stride] * 2, pads=[kernel // 2] * 4)

    def norm(self, x: str, width: int) -> str:
        return self.add_node(
            "LayerNormalization", x, self.vector(width, 1.0), self.vector(width), axis=-1, epsilon=1e-5
        )

    def silu(self, x: str) -> str:
        return self.add_node("Mul", x, self.add_node("Sigmoid", x))

    def gelu(self, x: str) -> str:
        half, unit, root = (self.constant(np.array(value, np.float32)) for value in (0.5, 1.0, 2**-0.5))
        share = self.add_node("Add", self.add_node("Erf", self.add_node("Mul", x, root)), unit)
        return self.add_node("Mul", self.add_node("Mul", x, half), share)

    def attention(self, x: str, context: str, width: int, context_width: int, bias: str = "") -> str:
        """Multi-head attention of [batch, tokens, width] to a context; `bias` is added to the scores."""
        split = self.constant(np.array([0, 0, HEADS, width // HEADS]))
        sides = (
            (x, width, [0, 2, 1, 3]),
            (context, context_width, [0, 2, 3, 1]),
            (context, context_width, [0, 2, 1, 3]),
        )
        q, k, v = (
            self.add_node("Transpose", self.add_node("Reshape", self.linear(source, size, width), split), perm=order)
            for source, size, order in sides
        )
        scale = self.constant(np.array((width // HEADS) ** -0.5, np.float32))
        scores = self.add_node("Mul", self.add_node("MatMul", q, k), scale)
        shares = self.add_node("Softmax", self.add_node("Add", scores, bias) if bias else scores, axis=-1)
        mixed = self.add_node("Transpose", self.add_node("MatMul", shares, v), perm=[0, 2, 1, 3])
        return self.linear(self.add_node("Reshape", mixed, self.constant(np.array([0, 0, width]))), width, width)

    def write_model(
        self, path: Path, inputs: Sequence[ValueInfo], outputs: Sequence[ValueInfo], opset: int = 18
    ) -> Path:
        initializers = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        input_values, output_values = (
            [helper.make_tensor_value_info(n, kind, axes) for n, axes, kind in v] for v in (inputs, outputs)
        )
        graph = helper.make_graph(self.nodes, "network", input_values, output_values, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString(deterministic=True))
        return path


def encoder(path: Path) -> Path:
    """A transformer encoder.

    input_ids, attention_mask int64 [batch, sequence] (ids below VOCABULARY, at most POSITIONS of them) to
    last_hidden_state [batch, sequence, WIDTH] and pooled [batch, WIDTH].
    """
    net = GraphBuilder(1)
    words = net.add_node("Gather", net.weight(VOCABULARY, WIDTH, gain=8.0), "input_ids")
    length = net.add_node("Gather", net.add_node("Shape", "input_ids"), net.constant(np.array(1)))
    places = net.add_node("Range", net.constant(np.array(0)), length, net.constant(np.array(1)))
    x = net.norm(
        net.add_node("Add", words, net.add_node("Gather", net.weight(POSITIONS, WIDTH, gain=2.0), places)), WIDTH
    )
    visible = net.add_node(
        "Unsqueeze", net.add_node("Cast", "attention_mask", to=FLOAT), net.constant(np.array([1, 2]))
    )
    masked = net.add_node("Sub", net.constant(np.array(1, np.float32)), visible)
    bias = net.add_node("Mul", masked, net.constant(np.array(-1e4, np.float32)))
    for _ in range(BLOCKS):
        y = net.norm(x, WIDTH)
        x = net.add_node("Add", x, net.attention(y, y, WIDTH, WIDTH, bias))
        inside = net.gelu(net.linear(net.norm(x, WIDTH), WIDTH, HIDDEN))
        x = net.add_node("Add", x, net.linear(inside, HIDDEN, WIDTH))
    last = net.add_node(
        "LayerNormalization", x, net.vector(WIDTH, 1.0), net.vector(WIDTH), out="last_hidden_state", axis=-1
    )
    first = net.add_node("Gather", last, net.constant(np.array(0)), axis=1)
    net.add_node("Tanh", net.linear(first, WIDTH, WIDTH), out="pooled")
    inputs: list[ValueInfo] = [
        ("input_ids", ["batch", "sequence"], INT64),
        ("attention_mask", ["batch", "sequence"], INT64),
    ]
    outputs: list[ValueInfo] = [
        ("last_hidden_state", ["batch", "sequence", WIDTH], FLOAT),
        ("pooled", ["batch", WIDTH], FLOAT),
    ]
    return net.write_model(path, inputs, outputs)


def detector(path: Path) -> Path:
    """A convolutional detector with two outputs of different shape.

    images [batch, 3, 64, 64] to boxes [batch, 8 * 8 * ANCHORS, 4], within 0 and 1, and scores [..., CLASSES].
    """
    net = GraphBuilder(2)
    return _detector(net, path)


def _detector(net: GraphBuilder, path: Path) -> Path:
    x, channels = "images", 3
    for width in (16, 32, 64):
        x = net.silu(net.convolution(x, channels, width, stride=2))
        channels = width
    x = net.add_node("Add", x, net.silu(net.convolution(x, channels, channels)))
    for name, each in (("boxes", 4), ("scores", CLASSES)):
        head = net.convolution(net.silu(net.convolution(x, channels, channels)), channels, ANCHORS * each, kernel=1)
        apart = net.add_node("Transpose", head, perm=[0, 2, 3, 1])
        flat = net.add_node("Reshape", apart, net.constant(np.array([0, -1, each])))
        net.add_node("Sigmoid", flat, out=name)
    boxes = 8 * 8 * ANCHORS
    outputs: list[ValueInfo] = [("boxes", ["batch", boxes, 4], FLOAT), ("scores", ["batch", boxes, CLASSES], FLOAT)]
    return net.write_model(path, [("images", ["batch", 3, 64, 64], FLOAT)], outputs)


def denoiser(path: Path) -> Path:
    """A diffusion network as Auto-Acceleration's tutorial exports one: all axes dynamic, floats and an int64 input.

    sample [batch, channels, height, width] (LATENT_CHANNELS of them, even sides), timestep int64 [batch],
    encoder_hidden_states [batch, sequence, TEXT_WIDTH] to out_sample [batch, 4, height, width].
    """
    net, width = GraphBuilder(3), 32
    x = net.convolution("sample", LATENT_CHANNELS, width)
    steps = net.add_node("Unsqueeze", net.add_node("Cast", "timestep", to=FLOAT), net.constant(np.array([1])))
    rates = net.constant((10_000.0 ** -(np.arange(width // 2) / (width // 2))).astype(np.float32))
    angles = net.add_node("Mul", steps, rates)
    waves = net.add_node("Concat", net.add_node("Sin", angles), net.add_node("Cos", angles), axis=1)
    time = net.linear(net.silu(net.linear(waves, width, width)), width, width)
    x = net.add_node("Add", x, net.add_node("Unsqueeze", time, net.constant(np.array([2, 3]))))
    skip = x
    x = net.silu(net.convolution(_group_norm(net, x, width), width, width, stride=2))
    tokens = net.add_node("Transpose", net.add_node("Reshape", x, net.constant(np.array([0, 0, -1]))), perm=[0, 2, 1])
    tokens = net.add_node(
        "Add", tokens, net.attention(net.norm(tokens, width), "encoder_hidden_states", width, TEXT_WIDTH)
    )
    back = net.add_node("Reshape", net.add_node("Transpose", tokens, perm=[0, 2, 1]), net.add_node("Shape", x))
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    x = net.add_node("Resize", back, "", scales, mode="nearest")
    x = net.silu(_group_norm(net, net.add_node("Concat", x, skip, axis=1), 2 * width))
    weights = (net.weight(4, 2 * width, 3, 3), net.vector(4))
    net.add_node("Conv", x, *weights, out="out_sample", pads=[1] * 4)
    inputs: list[ValueInfo] = [
        ("sample", ["batch", "channels", "height", "width"], FLOAT),
        ("timestep", ["batch"], INT64),
        ("encoder_hidden_states", ["batch", "sequence", None], FLOAT),
    ]
    return net.write_model(path, inputs, [("out_sample", ["batch", 4, "height", "width"], FLOAT)])


def _group_norm(net: GraphBuilder, x: str, width: int, groups: int = 8) -> str:
    grouped = net.add_node("Reshape", x, net.constant(np.array([0, groups, -1])))
    ones, zeros = (net.constant(np.full(groups, value, np.float32)) for value in (1, 0))
    normal = net.add_node("InstanceNormalization", grouped, ones, zeros, epsilon=1e-5)
    back = net.add_node("Reshape", normal, net.add_node("Shape", x))
    return net.add_node("Mul", back, net.constant(net.rng.uniform(0.5, 1.5, (width, 1, 1)).astype(np.float32)))


def classifier(path: Path) -> Path:
    """A classifier of NHWC pictures: picture uint8 [batch, height, width, 3] to logits [batch, 10]."""
    net = GraphBuilder(4)
    scaled = net.add_node(
        "Mul", net.add_node("Cast", "picture", to=FLOAT), net.constant(np.array(1 / 127.5, np.float32))
    )
    centred = net.add_node("Sub", scaled, net.constant(np.array(1, np.float32)))
    x, channels = net.add_node("Transpose", centred, perm=[0, 3, 1, 2]), 3
    for width in (16, 32, 64):
        x = net.add_node("Relu", net.convolution(x, channels, width, stride=4))
        channels = width
    pooled = net.add_node("Reshape", net.add_node("GlobalAveragePool", x), net.constant(np.array([0, channels])))
    net.add_node("Gemm", pooled, net.weight(channels, CLASSES), net.vector(CLASSES), out="logits")
    inputs: list[ValueInfo] = [("picture", ["batch", "height", "width", 3], UINT8)]
    return net.write_model(path, inputs, [("logits", ["batch", CLASSES], FLOAT)])


def external(path: Path) -> Path:
    """The detector with external weights in `<path>.data`."""
    detector(path)
    model = onnx.load(path)
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)
    onnx.save_model(model, path, save_as_external_data=True, location=data.name, size_threshold=EXTERNAL_BYTES)
    return path


def numbered(path: Path) -> Path:
    """Names that are numbers, as exporters generate them: "0" and "1" [n, 16] to "5" [n, 8]."""
    net = GraphBuilder(5)
    both = net.add_node("Concat", "0", "1", axis=1)
    inside = net.add_node("Relu", net.linear(both, 32, 64, gain=2**0.5))
    net.add_node("Add", net.add_node("MatMul", inside, net.weight(64, 8)), net.vector(8), out="5")
    return net.write_model(path, [("0", ["n", 16], FLOAT), ("1", ["n", 16], FLOAT)], [("5", ["n", 8], FLOAT)])


NETWORKS: Mapping[str, Callable[[Path], Path]] = {
    builder.__name__: builder for builder in (encoder, detector, denoiser, classifier, external, numbered)
}
