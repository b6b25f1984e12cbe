"""Replaces attention in an OpenVINO model by `int8_attention`.

OpenVINO computes softmax(scale * Q K^T) V block by block as well, but spends most of the time of long sequences outside
of its products. Replaced are attentions over many tokens, as U-Nets have at their upper levels; short ones, such as
those over the 77 tokens of a prompt, stay as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from stillhouse.backends.int8_attention import DIM_MULTIPLE, INT8_ATTENTION, MAX_DIM, int8_attention
from stillhouse.backends.openvino_nodes import FunctionNodes
from stillhouse.backends.openvino_values import constant_value, only_reader

ATTENTION_NODE = "int8_attention"
"""End of the names of the nodes."""
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


def replace_attentions(model: Any, nodes: FunctionNodes, threads: int, *, is_bf16: bool = False) -> int:
    """Replace the attentions of a model with static shapes, and return how many there were.

    Args:
        model: OpenVINO's model, which is changed in place.
        nodes: where the new nodes are added.
        threads: number of threads of each attention.
        is_bf16: whether the model is compiled for bf16, which the processor must have. Attention then reads and writes
            bf16, too, which spares the conversion of its tensors.
    """
    INT8_ATTENTION.load()
    attentions = list(_find_attentions(model, nodes.runtime))
    for found in attentions:
        output = nodes.add(
            f"{found.result.get_friendly_name()}/{ATTENTION_NODE}",
            partial(_attend, heads=found.heads, scale=found.scale, threads=threads),
            [found.queries, found.keys, found.values],
            is_bf16=is_bf16,
        )
        for reader in list(found.result.output(0).get_target_inputs()):
            reader.replace_source_output(output)
    return len(attentions)


def _attend(inputs: Sequence[NDArray[Any]], out: NDArray[Any], heads: int, scale: float, threads: int) -> None:
    queries, keys, values, result = (array.reshape(-1, *array.shape[-2:]) for array in (*inputs, out))
    int8_attention(queries, keys, values, heads, scale, out=result, threads=threads)


def _find_attentions(model: Any, runtime: Any) -> Iterator[_Attention]:
    """Yield the attentions of a model with static shapes that `int8_attention` can compute.

    torch's exporter writes an attention as MatMul, Softmax, MatMul, each head split off by Reshape and Transpose before
    and joined after. Queries and keys are each multiplied by the root of the scale. A quantised model has a
    FakeQuantize before each product.
    """
    for softmax in model.get_ordered_ops():
        if softmax.get_type_name() != "Softmax":
            continue
        product, weighted = softmax.input_value(0).get_node(), only_reader(softmax)
        if weighted is not None and weighted.get_type_name() == "FakeQuantize":
            weighted = only_reader(weighted)
        if product.get_type_name() != "MatMul" or weighted is None or weighted.get_type_name() != "MatMul":
            continue
        inputs = product.input_value(0), product.input_value(1), weighted.input_value(1)
        queries, keys, values = (_trace_source(output, runtime) for output in inputs)
        result = _join_of_heads(weighted)
        if queries and keys and values and result is not None and values.scale == 1.0:
            _, heads, count, dim = queries.shape
            is_self_like = min(count, values.shape[2]) >= MIN_TOKENS and dim <= MAX_DIM and dim % DIM_MULTIPLE == 0
            if is_self_like and _is_transposed(product) == (keys.shape[2] == values.shape[2]):
                outputs = (queries.output, keys.output, values.output)
                yield _Attention(*outputs, result, heads, queries.scale * keys.scale)


def _is_transposed(product: Any) -> bool:
    return bool(product.get_attributes()["transpose_b"])


def _trace_source(output: Any, runtime: Any) -> _SplitHeads | None:
    """Return the source of an input of an attention's product; None where the input has another form.

    Args:
        output: the input of the product.
        runtime: the package openvino.
    """
    scale, shape = 1.0, None
    while (kind := (node := output.get_node()).get_type_name()) != "Reshape":
        if kind == "Multiply":
            factor = constant_value(node.input_value(1), runtime)
            if factor is None or factor.size != 1:
                return None
            scale *= float(factor.item())
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
    node = only_reader(weighted)
    while node is not None and node.get_type_name() in ("Transpose", "FakeQuantize"):
        node = only_reader(node)
    is_join = node is not None and node.get_type_name() == "Reshape" and len(node.output(0).get_shape()) == 3
    return node if is_join else None
