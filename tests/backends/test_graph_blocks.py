"""Blocks cover a network's heavy nodes once each; the search finds a small choice that passes, with few questions."""

from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.backends.graph_blocks import Block, list_blocks, minimal_exact_blocks
from stillhouse.errors import PipelineError, UnsupportedPrecision
from stillhouse.pipelines.load import find_pipeline
from tests.backends.networks import make_model, node, unet, write_model

NAMES = tuple("abcdefghijkl")
ALL = tuple(Block(name, (name,)) for name in NAMES)
CHOICES = st.frozensets(st.sampled_from(NAMES))


def test_nodes_are_put_together_by_their_modules() -> None:
    found = list_blocks(find_pipeline("shapes") / "unet" / "model.onnx")
    names = [block.name for block in found]
    assert {"conv_in", "conv_out", "time_embedding", "down_blocks.1.attentions.0", "up_blocks.0.resnets.1"} <= set(
        names
    )
    assert len(set(names)) == len(names)
    for block in found:
        assert len(block.nodes) <= 16
        assert all(f"/{block.name}".replace(".", "/") in name.replace(".", "/") for name in block.nodes)
    nodes = [name for block in found for name in block.nodes]
    assert len(nodes) == len(set(nodes)) == 161


@pytest.mark.parametrize(("length", "runs", "longest"), [(1, 1, 1), (3, 3, 1), (16, 16, 1), (17, 9, 2), (40, 14, 3)])
def test_nodes_without_modules_are_cut_into_runs(length: int, runs: int, longest: int, tmp_path: Path) -> None:
    layers = [node("MatMul", [f"v{at}", f"v{at}"], [f"v{at + 1}"], name=f"product{at}") for at in range(length)]
    path = write_model(make_model(layers, [("v0", [2, 2])], [(f"v{length}", [2, 2])]), tmp_path / "model.onnx")
    found = list_blocks(path)
    assert [block.name for block in found] == [f"{at} of {runs}" for at in range(1, runs + 1)]
    assert [name for block in found for name in block.nodes] == [f"product{at}" for at in range(length)]
    assert max(len(block.nodes) for block in found) == longest


def test_a_node_without_a_name_goes_by_its_output(tmp_path: Path) -> None:
    found = list_blocks(write_model(unet(), tmp_path / "model.onnx"))
    assert [block.nodes for block in found] == [
        (name,) for name in ("a", "embedded", "q", "k", "products", "mixed", "out_sample")
    ]


def test_a_network_without_heavy_nodes_has_no_blocks(tmp_path: Path) -> None:
    path = write_model(make_model([node("Relu", ["x"], ["y"])], [("x", [1])], [("y", [1])]), tmp_path / "relu.onnx")
    assert list_blocks(path) == []
    with pytest.raises(PipelineError, match="absent"):
        list_blocks(tmp_path / "absent.onnx")


@given(needed=st.lists(CHOICES, min_size=1, max_size=4))
def test_what_is_found_passes_and_no_block_of_it_is_idle(needed: list[frozenset[str]]) -> None:
    """For every monotone question: it passes where one of the needed sets is kept."""
    asked: list[frozenset[str]] = []

    def passes(kept: frozenset[str]) -> bool:
        asked.append(kept)
        return any(one <= kept for one in needed)

    found = minimal_exact_blocks(ALL, passes)
    questions = len(asked)
    assert passes(found)
    assert not any(passes(found - {name}) for name in found)
    assert questions <= len(NAMES) ** 2 + 3 * len(NAMES)
    assert len(set(asked[:questions])) == questions
    assert minimal_exact_blocks(ALL, passes) == found


@given(needed=CHOICES, answers=st.lists(st.booleans(), min_size=400, max_size=400))
def test_what_is_found_passes_where_the_answers_have_no_order(needed: frozenset[str], answers: list[bool]) -> None:
    said: dict[frozenset[str], bool] = {}
    numbers = count()

    def passes(kept: frozenset[str]) -> bool:
        said[kept] = answers[next(numbers)] or len(kept) == len(NAMES)
        return said[kept]

    found = minimal_exact_blocks(ALL, passes)
    assert said[found]
    assert not any(said.get(found - {name}, False) for name in found)


@pytest.mark.parametrize("guilty", NAMES)
def test_one_block_to_blame_is_found_with_few_questions(guilty: str) -> None:
    asked: list[frozenset[str]] = []

    def passes(kept: frozenset[str]) -> bool:
        asked.append(kept)
        return guilty in kept

    assert minimal_exact_blocks(ALL, passes) == {guilty}
    assert len(asked) <= 2 * 4 + 1  # two halves at each of ceil(log2 12) levels, and the empty choice


def test_nothing_is_kept_where_nothing_needs_to_be() -> None:
    assert minimal_exact_blocks(ALL, lambda _: True) == frozenset()


@pytest.mark.parametrize("choice", [ALL, ALL[:1], ()])
def test_what_never_passes_is_said(choice: tuple[Block, ...]) -> None:
    message = f"no choice among {len(choice)} blocks to keep in float32 makes the network accurate enough"
    with pytest.raises(UnsupportedPrecision, match=message):
        minimal_exact_blocks(choice, lambda _: False)


def test_with_few_questions_the_best_so_far_is_given() -> None:
    needed = {"a", "l"}
    found = minimal_exact_blocks(ALL, lambda kept: needed <= kept, max_calls=12)
    assert needed < found < set(NAMES)
    with pytest.raises(UnsupportedPrecision):
        minimal_exact_blocks(ALL, lambda kept: needed <= kept, max_calls=2)
