"""Recipes (conversions of an exported graph to another precision) that several backends share.

The modules that convert import onnx, so each is imported only when its recipe makes a graph.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from stillhouse.backends.backend import BuildGraph, Recipe

if TYPE_CHECKING:
    from stillhouse.backends.qdq import QuantType, WeightType

_Feeds = Sequence[Mapping[str, NDArray[Any]]]
_REQUIRES = ("onnx",)


def _build_float16(graph: Path, out: Path, feeds: _Feeds, keep: Sequence[str]) -> None:
    from stillhouse.backends.precision import convert_to_float16

    convert_to_float16(graph, out, keep=keep)


def _static_builder(quant_type: "QuantType") -> BuildGraph:
    def build(graph: Path, out: Path, feeds: _Feeds, keep: Sequence[str]) -> None:
        from stillhouse.backends.quantize import quantize_static

        quantize_static(graph, out, feeds, keep=keep, quant_type=quant_type)

    return build


def _dynamic_builder(weights: "WeightType") -> BuildGraph:
    def build(graph: Path, out: Path, feeds: _Feeds, keep: Sequence[str]) -> None:
        from stillhouse.backends.quantize import quantize_dynamic

        quantize_dynamic(graph, out, weights=weights, keep=keep, feeds=feeds)

    return build


FLOAT16 = Recipe(_build_float16, requires=_REQUIRES)
"""Recipe of a graph that computes in float16, see `precision.convert_to_float16`."""


def static_recipe(quant_type: "QuantType") -> Recipe:
    """Return the recipe that quantises a graph by `quantize.quantize_static` to operands of this format."""
    return Recipe(_static_builder(quant_type), requires=_REQUIRES)


def dynamic_recipe(weights: "WeightType") -> Recipe:
    """Return the recipe that quantises a graph by `quantize.quantize_dynamic` to weights of this type.

    The result of a row depends on its batch, since an input has one scale for all rows.
    """
    return Recipe(_dynamic_builder(weights), requires=_REQUIRES, is_batch_dependent=True)
