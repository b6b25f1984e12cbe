"""Replaces attention in an OpenVINO model by `int8_attention`.

OpenVINO computes softmax(scale * Q K^T) V block by block as well, but spends most of the time of long sequences outside
of its products. Replaced are attentions over many tokens, as U-Nets have at their upper levels; short ones, such as
those over the 77 tokens of a prompt, stay as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from stillhouse.backends.int8_attention import DIM_MULTIPLE, MAX_DIM, int8_attention, load_library

MIN_TOKENS = 256
"""Least number of queries, and of keys, of an attention that is replaced."""


@dataclass(frozen=True, slots=True)
class _Attention:
    """An attention in a model.

    Args:
        queries, keys, values: outputs of nodes, [rows, tokens, heads * channels].
        result: the node whose output has the same form.
        heads: number of heads.
        scale: factor of the products.
    """

    queries: Any
    keys: Any
    values: Any
    result: Any
    heads: int
    scale: float


@dataclass(frozen=True, slots=True)
class _SplitHeads:
    """The tensor from which the heads of an input of an attention's product were split.

    Args:
        output: output of a node, [rows, tokens, heads * channels].
        shape: shape after the heads were split off, [rows, heads, tokens, channels] or [rows, heads, channels, tokens].
        scale: product of the constants that it is multiplied by.
    """

    output: Any
    shape: tuple[int, ...]
    scale: float


class AttentionOps:
    """Replaces the attentions of one model, and lets go of the model once it is compiled.

    A compiled model keeps the replaced nodes, and each of these would keep all nodes before it with their weights.

    Args:
        runtime: the package openvino.
        threads: number of threads of each attention.
    """

    def __init__(self, runtime: Any, threads: int) -> None:
        load_library()
        self._runtime, self._threads = runtime, threads
        self._nodes: list[Any] = []

    def replace(self, model: Any) -> int:
        """Replace the attentions of a model with static shapes, and return how many there were."""
        attentions = list(_find_attentions(model, self._runtime))
        for found in attentions:
            node = _node_class(self._runtime)(self._nodes, found.heads, found.scale, self._threads)
            node.set_arguments([found.queries, found.keys, found.values])
            node.constructor_validate_and_infer_types()
            node.set_friendly_name(found.result.get_friendly_name())
            for reader in list(found.result.output(0).get_target_inputs()):
                reader.replace_source_output(node.output(0))
        model.validate_nodes_and_infer_types()
        return len(attentions)

    def release(self) -> None:
        """Cut all nodes that were made, copies by the compiler included, off the model."""
        parameter = self._runtime.opset13.parameter
        for node in self._nodes:
            for place in node.inputs():
                place.replace_source_output(parameter(list(place.get_shape()), place.get_element_type()).output(0))
        self._nodes.clear()


@cache
def _node_class(runtime: Any) -> Any:
    """Return the class of the nodes, which is made on first use, because openvino may not be installed."""

    class Int8Attention(runtime.Op):  # type: ignore[misc]
        """A node with the inputs queries, keys and values, float32 [rows, tokens, heads * channels]."""

        def __init__(self, nodes: list[Any], heads: int, scale: float, threads: int) -> None:
            super().__init__(self, None)
            self._state = nodes, heads, scale, threads
            nodes.append(self)

        def validate_and_infer_types(self) -> None:
            self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

        def clone_with_new_inputs(self, inputs: list[Any]) -> Any:
            node = Int8Attention(*self._state)
            node.set_arguments(inputs)
            node.constructor_validate_and_infer_types()
            return node

        def visit_attributes(self, visitor: Any) -> bool:
            return True

        def has_evaluate(self) -> bool:
            return True

        def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
            _, heads, scale, threads = self._state
            queries, keys, values = (tensor.data for tensor in inputs)
            int8_attention(queries, keys, values, heads, scale, out=outputs[0].data, threads=threads)
            return True

    return Int8Attention


def _find_attentions(model: Any, runtime: Any) -> Iterator[_Attention]:
    """Yield the attentions of a model with static shapes that `int8_attention` can compute.

    torch's exporter writes an attention as MatMul, Softmax, MatMul, each head split off by Reshape and Transpose before
    and joined after. Queries and keys are each multiplied by the root of the scale. A quantised model has a
    FakeQuantize before each product.
    """
    folded = _fold_constants(model, runtime)
    for softmax in model.get_ordered_ops():
        if softmax.get_type_name() != "Softmax":
            continue
        product, weighted = softmax.input_value(0).get_node(), _only_reader(softmax)
        if weighted is not None and weighted.get_type_name() == "FakeQuantize":
            weighted = _only_reader(weighted)
        if product.get_type_name() != "MatMul" or weighted is None or weighted.get_type_name() != "MatMul":
            continue
        inputs = product.input_value(0), product.input_value(1), weighted.input_value(1)
        queries, keys, values = (_trace_source(output, folded) for output in inputs)
        result = _join_of_heads(weighted)
        if queries and keys and values and result is not None and values.scale == 1.0:
            _, heads, count, dim = queries.shape
            is_self_like = min(count, values.shape[2]) >= MIN_TOKENS and dim <= MAX_DIM and dim % DIM_MULTIPLE == 0
            if is_self_like and _is_transposed(product) == (keys.shape[2] == values.shape[2]):
                outputs = (queries.output, keys.output, values.output)
                yield _Attention(*outputs, result, heads, queries.scale * keys.scale)


def _is_transposed(product: Any) -> bool:
    return bool(product.get_attributes()["transpose_b"])


def _fold_constants(model: Any, runtime: Any) -> dict[str, Any]:
    """Return the nodes of a copy of a model with folded constants, by name.

    In the model itself, folded weights would no longer be recognised as quantised.
    """
    copy = model.clone()
    manager = runtime.passes.Manager()
    manager.register_pass(runtime.passes.ConstantFolding())
    manager.run_passes(copy)
    return {node.get_friendly_name(): node for node in copy.get_ops()}


def _trace_source(output: Any, folded: dict[str, Any]) -> _SplitHeads | None:
    """Return the source of an input of an attention's product; None where the input has another form.

    Args:
        output: the input of the product.
        folded: nodes of `_fold_constants`.
    """
    scale, shape = 1.0, None
    while (kind := (node := output.get_node()).get_type_name()) != "Reshape":
        if kind == "Multiply":
            name = node.get_friendly_name()
            factor = folded[name].input_value(1).get_node() if name in folded else node
            if factor.get_type_name() != "Constant" or factor.data.size != 1:
                return None
            scale *= float(factor.data.item())
        elif kind == "Transpose":
            shape = tuple(node.output(0).get_shape())
        elif kind not in ("FakeQuantize", "Convert"):
            return None
        output = node.input_value(0)
    source = node.input_value(0)
    is_split = shape is not None and len(shape) == 4 and len(source.get_shape()) == 3
    return _SplitHeads(source, shape, scale) if shape and is_split else None


def _join_of_heads(weighted: Any) -> Any | None:
    """Return the Reshape that joins the heads of an attention's result, [rows, tokens, heads * channels], or None."""
    node = _only_reader(weighted)
    while node is not None and node.get_type_name() in ("Transpose", "FakeQuantize"):
        node = _only_reader(node)
    is_join = node is not None and node.get_type_name() == "Reshape" and len(node.output(0).get_shape()) == 3
    return node if is_join else None


def _only_reader(node: Any) -> Any | None:
    """Return the node that reads the output of a node; None where there are several or none."""
    readers = list(node.output(0).get_target_inputs())
    return readers[0].get_node() if len(readers) == 1 else None
