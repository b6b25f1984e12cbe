"""Weights of an engine, by the names of layers: they are torch's, wherever a graph has put them. No engine is run."""

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import tensorrt_rtx
import torch
from torch import nn

import stillhouse
from stillhouse.backends.precision import convert_to_float16
from stillhouse.backends.quantize import quantize_dynamic
from stillhouse.backends.tensorrt_weights import EngineWeights, find_refittable
from stillhouse.errors import BackendFailed

SHIPPED = Path(stillhouse.__file__).parent / "shapes/weights"
FLOATS = {tensorrt_rtx.float32: torch.float32, tensorrt_rtx.float16: torch.float16}
LINEAR, CONVOLUTION = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "conv_in"


@pytest.fixture(scope="module")
def network() -> Any:
    return diffusers.UNet2DConditionModel.from_pretrained(SHIPPED / "unet", torch_dtype=torch.float32)


@pytest.fixture(params=["as it was imported", "halves"])
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    whole = SHIPPED / "unet/model.onnx"
    if request.param == "halves":
        convert_to_float16(whole, tmp_path / "half.onnx")
        return tmp_path / "half.onnx"
    return whole


class Refitter:
    """Takes weights as TensorRT's does, and tells which it was refitted with, by name, flat.

    It keeps addresses until they are unset, and reads all of them again at each refit.
    """

    logger = SimpleNamespace(last="no room")

    def __init__(self, together: tuple[str, ...] = ()) -> None:
        self.problem: dict[str, torch.Tensor] = {}
        self.refitted: list[dict[str, torch.Tensor]] = []
        self.together, self.works = together, True

    def set_named_weights(self, name: str, weights: Any) -> bool:
        dtype = FLOATS[weights.dtype]
        if name == "network.conv_out.weight.stored":
            return False
        buffer = (ctypes.c_char * weights.nbytes).from_address(weights.numpy().ctypes.data)
        self.problem[name] = torch.frombuffer(buffer, dtype=dtype)  # no copy: it is read when it is refitted
        return True

    def unset_named_weights(self, name: str) -> bool:
        return self.problem.pop(name, None) is not None

    def get_missing_weights(self) -> list[str]:
        return [name for name in self.together if self.problem and name not in self.problem]

    def refit_cuda_engine(self) -> bool:
        self.refitted.append({name: tensor.clone() for name, tensor in self.problem.items()})
        return self.works


class Device:
    """Of torch's GPU what is asked for, without one."""

    def __init__(self, index: str) -> None:
        assert index == "cuda:0"

    def __enter__(self) -> None:
        pass

    def __exit__(self, *failure: object) -> None:
        pass


def open_weights(graph: Path, refitter: Refitter, renewed: Callable[[], None] = lambda: None) -> EngineWeights:
    cuda = SimpleNamespace(device=Device, synchronize=lambda: None)
    here = SimpleNamespace(cuda=cuda, from_numpy=torch.from_numpy, **{str(kind)[6:]: kind for kind in FLOATS.values()})
    return EngineWeights(here, tensorrt_rtx, refitter, find_refittable(graph), "cuda:0", renewed)


def layers_of(network: Any) -> Mapping[str, torch.Tensor]:
    kinds = nn.Linear | nn.Conv2d
    return {name: one.weight.detach() for name, one in network.named_modules() if isinstance(one, kinds)}


def test_every_layer_has_its_place_and_its_weights(graph: Path, network: Any) -> None:
    """They are halves on disk, so that a graph of halves has them to the bit, too."""
    weights, layers = open_weights(graph, Refitter()), layers_of(network)
    assert weights.shapes == {name: tuple(weight.shape) for name, weight in layers.items()}
    for name, weight in layers.items():
        assert weights.original(name).dtype == torch.float32
        assert torch.equal(weights.original(name), weight), name


def test_text_encoders_have_theirs(tmp_path: Path) -> None:
    convert_to_float16(SHIPPED / "text_encoder/model.onnx", tmp_path / "half.onnx")
    whole, halves = (find_refittable(one) for one in (SHIPPED / "text_encoder/model.onnx", tmp_path / "half.onnx"))
    assert set(whole) == set(halves)
    assert any(name.endswith("self_attn.q_proj") for name in whole)


def test_integers_have_none(tmp_path: Path) -> None:
    """Even where some layers are still floats: what adapters change would be told to be missing."""
    quantize_dynamic(SHIPPED / "unet/model.onnx", tmp_path / "integers.onnx", keep=["/network/conv_in/Conv"])
    assert not find_refittable(tmp_path / "integers.onnx")


def test_what_is_put_lies_as_the_graph_has_it(graph: Path) -> None:
    refitter, renewals = Refitter(), list[int]()
    weights = open_weights(graph, refitter, lambda: renewals.append(1))
    changed = {name: weights.original(name) + 1 for name in (LINEAR, CONVOLUTION)}
    weights.update(changed)
    (refitted,) = refitter.refitted
    assert len(renewals) == 1, "what was recorded is thrown away"
    for name, values in changed.items():
        place = find_refittable(graph)[name]
        laid = values.T if place.is_transposed else values
        assert torch.equal(refitted[place.name].float(), laid.half().float().flatten())
    assert len(refitted) == len(changed)


def test_what_is_left_out_is_put_back_once(graph: Path) -> None:
    refitter = Refitter()
    weights = open_weights(graph, refitter)
    places_ = find_refittable(graph)
    weights.update({LINEAR: weights.original(LINEAR) + 1})
    weights.update({CONVOLUTION: weights.original(CONVOLUTION) - 1})
    weights.update({})
    weights.update({})
    linear, convolution = places_[LINEAR].name, places_[CONVOLUTION].name
    assert [set(one) for one in refitter.refitted] == [{linear}, {linear, convolution}, {convolution}]
    plain = weights.original(LINEAR)
    laid = plain.T if places_[LINEAR].is_transposed else plain
    assert torch.equal(refitter.refitted[1][linear].float(), laid.flatten())


def test_layers_that_became_one_are_refitted_together(graph: Path) -> None:
    """What is missing gets what it was opened with."""
    other = LINEAR.replace("to_q", "to_k")
    place = find_refittable(graph)[other]
    refitter = Refitter((place.name,))
    weights = open_weights(graph, refitter)
    weights.update({LINEAR: weights.original(LINEAR) + 1})
    assert set(refitter.refitted[0]) == {find_refittable(graph)[LINEAR].name, place.name}
    plain = weights.original(other)
    laid = plain.T if place.is_transposed else plain
    assert torch.equal(refitter.refitted[0][place.name].float(), laid.flatten())
    assert not refitter.problem, "no address is left behind"


def test_a_layer_that_the_engine_does_not_take_changes_none() -> None:
    refitter = Refitter()
    weights = open_weights(SHIPPED / "unet/model.onnx", refitter)
    with pytest.raises(BackendFailed, match="does not accept weights for conv_out: no room"):
        weights.update({name: weights.original(name) + 1 for name in (CONVOLUTION, "conv_out")})
    assert not refitter.problem and not refitter.refitted
    weights.update({})
    weights.update({LINEAR: weights.original(LINEAR)})
    assert [list(one) for one in refitter.refitted] == [[find_refittable(SHIPPED / "unet/model.onnx")[LINEAR].name]]


def test_what_may_have_been_changed_by_a_refit_that_failed_is_put_back() -> None:
    graph, refitter = SHIPPED / "unet/model.onnx", Refitter()
    weights = open_weights(graph, refitter)
    refitter.works = False
    with pytest.raises(BackendFailed, match="could not be refitted: no room"):
        weights.update({LINEAR: weights.original(LINEAR) + 1})
    refitter.works = True
    weights.update({})
    assert torch.equal(
        refitter.refitted[1][find_refittable(graph)[LINEAR].name].float(), weights.original(LINEAR).flatten()
    )
