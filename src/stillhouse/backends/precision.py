"""Conversion of a graph to float16, by the schemas of the ONNX operators.

`onnxruntime.transformers.float16` is not used. It silently clamps weights beyond 65504 and values below 6e-8. It
computes the angle of a timestep embedding in 11 bits; the angle is hundreds of radians, so its sine is noise. It
chooses casts by a list of operators instead of by their schemas, and it holds the whole model in memory.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.backends.graph import load_graph
from stillhouse.backends.inner_graphs import inner_graphs
from stillhouse.backends.onnx_edit import (
    COMPUTE_OPS,
    Constant,
    Node,
    check_node_names,
    load_with_constants,
    node_name,
    save_with_constants,
    set_repeated,
)
from stillhouse.backends.runtime import require, translate_errors
from stillhouse.errors import InvalidRequest

_FLOAT, _HALF = 1, 10  # TensorProto.FLOAT and FLOAT16 as numbers, so that onnx is imported only when it is needed
_HALVES = "tensor(float16)"
_HALF_STARTS = {*COMPUTE_OPS, "ConvTranspose", "Attention", "Einsum"}
_ANGULAR = {"Sin", "Cos", "Tan"}
# The outputs of these operators do not follow the type of their inputs, so the operators are not converted to float16.
_TYPED = {
    *("EyeLike", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"),
    *("Constant", "ConstantOfShape", "SequenceEmpty", "QuantizeLinear", "DequantizeLinear"),
}


def convert_to_float16(graph: Path, out: Path, *, keep: Collection[str] = ()) -> None:
    """Write a graph with float16 weights and arithmetic. Its inputs and outputs keep their types.

    Half precision begins at convolutions, matrix products and embedding tables, and continues through the nodes that
    read their results. Shapes, positions, masks and timesteps therefore stay in float32. Three kinds of nodes also stay
    in float32: nodes between the last layer with weights and a sine, nodes whose schema has no half precision, and
    nodes with inner graphs.

    Nothing is clamped: weights beyond 65504 become infinite. Where the runtime computes in half precision, activations
    beyond 65504 become infinite too. After an overflow the result holds inf or nan.

    The runtime decides which operations run in half precision. On x86, onnxruntime runs nearly all of them in float32,
    between casts, which `Runner.layer_precisions` shows. The weights take half of the space in any case.

    Args:
        graph: an ONNX file of any size.
        out: the file to write. Weights of more than 16 MiB go to `<out>.data` beside it.
        keep: names of nodes that stay in float32.

    Raises:
        InvalidRequest: the graph has no node of a name in `keep`, or no node that can be converted.
        PipelineError: the graph cannot be read.
        RuntimeMissing: onnx is not installed.

    >>> convert_to_float16(Path("model.onnx"), Path("f16/model.onnx"))  # doctest: +SKIP
    """
    model, constants = load_with_constants(graph)
    float32_nodes = check_node_names(keep, model) | _angle_nodes(model.graph.node, constants)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    rewriter = _Float16Rewriter(
        constants, _infer_element_types(graph), versions, {value.name for value in model.graph.output}
    )
    for node in list(model.graph.node):
        rewriter.add_node(node, stays_float32=node_name(node) in float32_nodes)
    if not keep and not rewriter.has_converted:
        raise InvalidRequest(
            f"{graph} has nothing to convert to float16",
            allowed="a convolution, matrix product or embedding table in float32, outside of branches and loops",
        )
    set_repeated(model.graph.node, rewriter.nodes)
    del model.graph.value_info[:]
    save_with_constants(model, constants, out)


class _Float16Rewriter:
    """Rewrites the nodes of a graph to float16. Tensors that become float16 keep their names, unless they are outputs.

    Args:
        constants: constants of the graph by name; float16 copies are added.
        element_types: element type, as a number of TensorProto, of each tensor of the original graph, where known.
        versions: opset version by domain.
        results: names of the graph's outputs.
    """

    def __init__(
        self,
        constants: dict[str, Constant],
        element_types: Mapping[str, int],
        versions: Mapping[str, int],
        results: set[str],
    ) -> None:
        self.nodes: list[Node] = []
        self._constants, self._element_types, self._versions, self._results = (
            constants,
            element_types,
            versions,
            results,
        )
        self._float16_outputs: set[str] = set()
        self._halves: dict[str, str] = {}
        self._floats: dict[str, str] = {}

    @property
    def has_converted(self) -> bool:
        """Whether the outputs of any node were converted to float16."""
        return bool(self._float16_outputs)

    def add_node(self, node: Node, *, stays_float32: bool) -> None:
        """Append a node, converted to float16 where possible, and the casts that its inputs and outputs need.

        Args:
            node: the node, changed in place.
            stays_float32: whether the node must compute in float32.
        """
        schema = None if stays_float32 else self._schema(node)
        if schema is None:
            self._add_float32(node)
        elif node.op_type == "Cast":
            self._add_cast(node)
        else:
            self._add_float16(node, schema)

    def _schema(self, node: Node) -> Any:
        """Return the ONNX schema of a node that can compute in float16; None where the node must stay in float32."""
        has_types = all(name in self._element_types or name in self._constants for name in node.input if name)
        if not has_types or node.op_type in _TYPED or any(inner_graphs(node)) or not self._reaches_or_starts(node):
            return None
        definitions = require("onnx.defs")
        domain = "" if node.domain == "ai.onnx" else node.domain
        if not definitions.has(node.op_type, domain) or domain not in self._versions:
            return None
        return definitions.get_schema(node.op_type, self._versions[domain], domain)

    def _reaches_or_starts(self, node: Node) -> bool:
        """Return whether a node reads a float16 tensor, or is a layer with which float16 begins."""
        if node.op_type == "Gather":
            table = self._constants.get(node.input[0])
            if table and table.dtype == np.float32 and len(table.shape) > 1:
                return True
        return node.op_type in _HALF_STARTS or not self._float16_outputs.isdisjoint(node.input)

    def _add_float16(self, node: Node, schema: Any) -> None:
        allowed = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
        halved = set()
        for place, name in enumerate(node.input):
            if not name or not self._is_float(name):
                continue
            kind = schema.inputs[min(place, len(schema.inputs) - 1)].type_str
            if _HALVES in allowed.get(kind, ()):
                node.input[place] = self._half(name)
                halved.add(kind)
            else:
                node.input[place] = self._float(name)
        self.nodes.append(node)
        for place, name in enumerate(node.output):
            if name and schema.outputs[min(place, len(schema.outputs) - 1)].type_str in halved:
                self._mark_output(node, place)

    def _add_cast(self, node: Node) -> None:
        """Append a Cast node, converted: a Cast to float32 becomes a Cast to float16, other Casts keep their type."""
        (target,) = (attribute for attribute in node.attribute if attribute.name == "to")
        node.input[0] = self._halves.get(node.input[0], node.input[0])
        self.nodes.append(node)
        if target.i == _FLOAT:
            target.i = _HALF
            self._mark_output(node, 0)

    def _add_float32(self, node: Node) -> None:
        for place, name in enumerate(node.input):
            node.input[place] = self._float(name)
        for inner in inner_graphs(node):
            self._restore_inner_inputs(inner)
        self.nodes.append(node)

    def _restore_inner_inputs(self, graph: Any) -> None:
        """Change the nodes of an inner graph (a branch or loop body) to read the float32 tensors of the outer graph."""
        for node in graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = self._float(name)
            for inner in inner_graphs(node):
                self._restore_inner_inputs(inner)

    def _is_float(self, name: str) -> bool:
        constant = self._constants.get(name)
        return constant.dtype == np.float32 if constant else self._element_types[name] == _FLOAT

    def _half(self, name: str) -> str:
        if name not in self._halves:
            self._halves[name] = f"{name}.half"
            if name in self._constants:
                self._constants[self._halves[name]] = self._constants[name].cast(np.dtype(np.float16))
            else:
                self._convert(name, self._halves[name], _HALF)
        return self._halves[name]

    def _float(self, name: str) -> str:
        if self._halves.get(name) != name:
            return name
        if name not in self._floats:
            self._floats[name] = f"{name}.float"
            self._convert(name, self._floats[name], _FLOAT)
        return self._floats[name]

    def _mark_output(self, node: Node, place: int) -> None:
        """Record that a node's output at index `place` is float16; an output of the graph is also cast to float32."""
        name = node.output[place]
        self._float16_outputs.add(name)
        self._halves[name] = name
        if name in self._results:
            self._halves[name] = node.output[place] = f"{name}.half"
            self._convert(self._halves[name], name, _FLOAT)

    def _convert(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(require("onnx.helper").make_node("Cast", [source], [target], name=target, to=kind))


def _infer_element_types(graph: Path) -> dict[str, int]:
    """Return the element types of tensors, as numbers of TensorProto, by name, as far as ONNX can infer them."""
    with translate_errors("onnx", graph, "infer the types of"):
        model: Any = require("onnx.shape_inference").infer_shapes(load_graph(graph))
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values if value.type.HasField("tensor_type")}
    return {name: kind for name, kind in kinds.items() if kind}


def _angle_nodes(nodes: Iterable[Node], constants: Collection[str]) -> set[str]:
    """Return the names of the nodes that compute a sine, cosine or tangent, and of those that compute the angle.

    The nodes of an angle begin after the last layer with weights. All these nodes stay in float32, because half
    precision has a significand of 11 bits, too few for an angle of 900 radians.

    Args:
        nodes: nodes of a graph in the order in which they run.
        constants: names of the graph's constants.
    """
    sources: set[str] = set()
    names = set()
    for node in reversed(list(nodes)):
        has_weights = node.op_type in COMPUTE_OPS and any(name in constants for name in node.input)
        if node.op_type in _ANGULAR or (sources.intersection(node.output) and not has_weights):
            sources.update(node.input)
            names.add(node_name(node))
    return names
